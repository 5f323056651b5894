"""Networks that have no fused form, one after the other: any ``nn.Module`` of a user's own.

The interface is that of `Fused`, so that there is one training loop; a group of them takes as long as its members.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cifar_sweep.training.rows import Masks, Rows, Stream, masks_of

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Apart(Rows):
    """`networks`, each by itself. Arguments as for `Fused`; `dtype` is what autocast computes in, None is none."""

    def __init__(
        self, networks: Sequence[nn.Module], masks: Sequence[Masks], *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(networks)
        for network, mask in zip(networks, masks, strict=True):
            _own_dropout(network, mask)
        self.networks, self.masks = nn.ModuleList(networks), list(masks)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Outputs [K, b, classes] for images [b, 3, h, w]."""
        grad = torch.is_grad_enabled()
        named = [
            {part.name: part.whole(row).detach().requires_grad_(grad) for part in self.parts} for row in self.weights
        ]
        self.handed = [
            (part.whole(row), each[part.name])
            for row, each in zip(self.gradients, named, strict=True)
            for part in self.parts
        ]
        with torch.autocast(images.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            x = images.to(self.weights.dtype)  # as autocast expects it: what a network stores of them has float32
            each = []
            for network, parameters, masks in zip(self.networks, named, self.masks, strict=True):
                with _own_chance(masks) if self.training else nullcontext():
                    each.append(functional_call(network, parameters, (x,)))
        return torch.stack(each)

    def member_buffers(self, k: int) -> Mapping[str, Tensor]:
        """Buffers, parameters that are not trained, and trained ones under their second names."""
        state = self.networks[k].state_dict(keep_vars=True)
        trained = {id(state.pop(part.name)): part for part in self.parts}
        return {
            name: trained[id(value)].whole(self.weights[k]) if id(value) in trained else value
            for name, value in state.items()
        }

    def statistics(self) -> list[tuple[slice, Tensor]]:
        return [
            (slice(k, k + 1), buffer[None])
            for k, network in enumerate(self.networks)
            for buffer in network.buffers()
            if buffer.is_floating_point()
        ]

    def keep(self, members: Sequence[int]) -> None:
        super().keep(members)
        self.networks, self.masks = nn.ModuleList([self.networks[k] for k in members]), [self.masks[k] for k in members]


@contextmanager
def _own_chance(masks: Masks) -> Iterator[None]:
    """Have what a network draws itself, as attention's dropout does, come from the member's own generator or stream."""
    if isinstance(masks.generator, Stream):
        with torch.random.fork_rng(devices=[]):
            seed_own_chance(masks.generator.device, masks.generator.next_seed())
            yield
        return
    ours = torch.default_generator
    with torch.random.fork_rng(devices=[]):
        twin = torch.Generator()
        twin.set_state(masks.generator.get_state())
        ours.manual_seed(int(torch.randint(2**62, (), generator=twin)))
        before = ours.get_state()
        yield
        has_drawn = not torch.equal(before, ours.get_state())
    if has_drawn:  # else the member's own goes on as if nobody had asked
        torch.randint(2**62, (), generator=masks.generator)


def seed_own_chance(device: torch.device, seed: int) -> None:
    """Seed what networks on a device draw from by themselves; on a GPU nothing else draws from its generator."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":  # without it nothing of CUDA is loaded
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _own_dropout(network: nn.Module, masks: Masks) -> None:
    """Have dropout layers draw from the member's own generator: at its rate, where the layer has none of its own."""
    for module in list(network.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, _DROPOUTS):
                [own] = masks_of(layer, [masks])
                setattr(module, name, OwnDropout(own, whole=not isinstance(layer, nn.Dropout)))


class OwnDropout(nn.Module):
    """Dropout of one member, of single values [b, ...], or of `whole` channels [b, channels, ...]."""

    def __init__(self, masks: Masks, *, whole: bool) -> None:
        super().__init__()
        self.masks = masks
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.masks.rate == 0:
            return x
        shape = [*x.shape[:2], *([1] * (x.dim() - 2))] if self.whole else list(x.shape)
        return x * self.masks.draw(shape, like=x)
