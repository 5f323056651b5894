"""Several equal networks as one, with a member axis: K trials of one shape in the operations of one.

Images come in once and are shared. Convolutions and batch norm keep the members side by side as channels
[b, K * channels, h, w] and convolve in K groups; the first convolution is a plain one with K times the filters. From
the flattening on, members lie in front: [K, b, features], and a linear layer is a batched matrix product. Nothing is
ever summed over members, so that one which is no longer finite leaves the others as they are.

All parameters lie in one matrix, a row for each member: what an optimizer, a checkpoint and `keep` want. Each step
hands them out to the layers, the members' parts one after the other, in the arithmetic of the forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Masks:
    """A member's dropout: its rate, and the generator that its masks come from and nothing else does."""

    rate: float
    generator: torch.Generator


@dataclass(frozen=True)
class Part:
    """Where a parameter of the plain network lies in a member's row, and the dtype that a step wants it in."""

    name: str
    start: int
    shape: torch.Size
    dtype: torch.dtype | None

    def of(self, rows: Tensor) -> Tensor:
        """The parameter in rows [..., parameters], flat; it shares their memory."""
        return rows[..., self.start : self.start + self.shape.numel()]


class Fused(nn.Module):
    """`networks` as one. From images [b, 3, h, w] to outputs [K, b, classes], in the members' order.

    Args:
        networks: plain networks of one shape, in order.
        masks: the members' dropout.
        dtype: of convolutions and linear layers; None is that of the parameters. Batch norm keeps the parameters'.

    Attributes:
        weights: the members' parameters [K, parameters], each row in the plain network's order.
        gradients: theirs, as `gather_gradients` found them.

    Raises:
        ValueError: a kind of layer that no network here has.
    """

    def __init__(
        self, networks: Sequence[nn.Sequential], masks: Sequence[Masks], *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {place: _fused([network[int(place)] for network in networks], masks) for place in _order(networks[0])}
        )
        rows = [[parameter.detach().flatten() for parameter in network.parameters()] for network in networks]
        self.register_buffer("weights", torch.stack([torch.cat(row) for row in rows]))
        self.register_buffer("gradients", torch.zeros_like(self.weights))
        self.weights: Tensor
        self.gradients: Tensor
        self.parts = _parts(networks[0], dtype=dtype)
        self._handed: list[Tensor] = []
        self.dtype = dtype

    @property
    def size(self) -> int:
        """The number of members."""
        return len(self.weights)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs [K, b, classes] for images [b, 3, h, w]."""
        self._handed = [self._hand_out(part) for part in self.parts]
        handed = iter(self._handed)
        x = images.to(self.dtype or self.weights.dtype)
        for layer in self.layers.values():
            x = layer(x, weight=next(handed), bias=next(handed)) if isinstance(layer, _WITH_WEIGHTS) else layer(x)
        return x

    def _hand_out(self, part: Part) -> Tensor:
        """This parameter of all members [K * n, ...], for one step."""
        whole = part.of(self.weights).to(part.dtype or self.weights.dtype).reshape(-1, *part.shape[1:])
        return whole.contiguous().detach().requires_grad_(torch.is_grad_enabled())

    def gather_gradients(self) -> None:
        """Take the last backward pass's gradients into `gradients`."""
        for part, whole in zip(self.parts, self._handed, strict=True):
            assert whole.grad is not None
            part.of(self.gradients).copy_(whole.grad.reshape(self.size, -1))
        self._handed = []

    def member_state(self, k: int) -> dict[str, Tensor]:
        """Member `k`'s state dict, under the names of the plain network; it shares the memory of the whole."""
        state = {part.name: part.of(self.weights[k]).view(part.shape) for part in self.parts}
        return state | {name: buffer[k] for name, buffer in self.layers.named_buffers()}

    def load_member_state(self, k: int, state: dict[str, Tensor]) -> None:
        """Take over member `k`'s state dict.

        Raises:
            RuntimeError: it is not of this network.
        """
        mine = self.member_state(k)
        if mine.keys() != state.keys() or any(mine[name].shape != state[name].shape for name in mine):
            raise RuntimeError("the state is not one of this network")
        for name, value in mine.items():
            value.copy_(state[name])

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone, in this order."""
        kept = list(members)
        self.weights, self.gradients = self.weights[kept], self.gradients[kept]
        for layer in self.layers.values():
            for name, buffer in layer.named_buffers(recurse=False):
                setattr(layer, name, buffer[kept])
            if isinstance(layer, FusedFlatten):
                layer.size = len(kept)
            if isinstance(layer, FusedDropout):
                layer.masks = [layer.masks[k] for k in kept]


def _parts(network: nn.Sequential, *, dtype: torch.dtype | None) -> list[Part]:
    parts: list[Part] = []
    start = 0
    for name, parameter in network.named_parameters():
        normalizes = isinstance(network[int(name.split(".")[0])], (nn.BatchNorm1d, nn.BatchNorm2d))
        parts.append(Part(name, start, parameter.shape, None if normalizes else dtype))
        start += parameter.numel()
    return parts


# What pooling may come before: the greatest of a window stays the greatest. Of values that the layer rounds to the
# same, the gradient then goes to the one that was greater.
_KEEPS_ORDER = (nn.ReLU, nn.LeakyReLU, nn.Dropout2d)


def _order(network: nn.Sequential) -> list[str]:
    """The places of the layers in the order in which they run: pooling first where that changes no value.

    An activation of a quarter of the values is a quarter of the work.
    """
    order: list[str] = []
    for place, layer in network.named_children():
        at = len(order)
        while isinstance(layer, nn.MaxPool2d) and at and isinstance(network[int(order[at - 1])], _KEEPS_ORDER):
            at -= 1
        order.insert(at, place)
    return order


def _fused(layers: Sequence[nn.Module], masks: Sequence[Masks]) -> nn.Module:
    match layers[0]:
        case nn.Conv2d():
            return FusedConv2d(layers[0])
        case nn.Linear():
            return FusedLinear()
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            return FusedBatchNorm([layer for layer in layers if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm1d))])
        case nn.Dropout2d():
            return FusedDropout(masks, channelwise=True)
        case nn.Dropout():
            return FusedDropout(masks, channelwise=False)
        case nn.Flatten():
            return FusedFlatten(len(layers))
        case nn.Softmax():
            return FusedSoftmax()
        case nn.ReLU():
            return nn.ReLU(inplace=True)  # what comes before a ReLU here needs its own output no more
        case nn.MaxPool2d() | nn.LeakyReLU() | nn.Sigmoid() | nn.Tanh():
            return layers[0]  # works on each element or channel alone: members side by side are more of those
        case unknown:
            raise ValueError(f"no way is known to fuse {unknown}")


class FusedConv2d(nn.Module):
    """K convolutions of stride 1, from [b, K * in, h, w] or shared images [b, in, h, w] to [b, K * out, h, w]."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.padding = int(layer.padding[0])
        self.reflect = layer.padding_mode == "reflect"
        self.inputs = layer.in_channels

    def forward(self, x: Tensor, *, weight: Tensor, bias: Tensor) -> Tensor:
        padding = self.padding
        if self.reflect:
            x, padding = functional.pad(x, [padding] * 4, mode="reflect"), 0
        groups = x.shape[1] // self.inputs  # images are shared: one group
        return functional.conv2d(x, weight, bias, padding=padding, groups=groups)


class FusedLinear(nn.Module):
    """K linear layers, from [K, b, in] to [K, b, out]."""

    def forward(self, x: Tensor, *, weight: Tensor, bias: Tensor) -> Tensor:
        if len(x) == 1:  # the same product, by a kernel that is faster for one
            return functional.linear(x[0], weight, bias)[None]
        each = weight.view(len(x), -1, x.shape[2])
        return torch.baddbmm(bias.view(len(x), 1, -1), x, each.transpose(1, 2))


class FusedBatchNorm(nn.Module):
    """K batch norms, over channels [b, K * channels, h, w] or over features [K, b, features].

    Buffers have the members in front: running mean and variance [K, channels], and the number of batches [K].
    """

    def __init__(self, layers: Sequence[nn.BatchNorm2d | nn.BatchNorm1d]) -> None:
        super().__init__()
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, torch.stack([layer.get_buffer(name) for layer in layers]))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.momentum = layers[0].momentum or 0.0
        self.eps = layers[0].eps
        self.of_features = isinstance(layers[0], nn.BatchNorm1d)

    def forward(self, x: Tensor, *, weight: Tensor, bias: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        # Features are normalised as channels side by side, too.
        side_by_side = x.transpose(0, 1).flatten(1) if self.of_features else x
        normed = functional.batch_norm(
            side_by_side,
            self.running_mean.view(-1),
            self.running_var.view(-1),
            weight,
            bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )
        return normed.view(len(normed), len(x), -1).transpose(0, 1) if self.of_features else normed


_WITH_WEIGHTS = (FusedConv2d, FusedLinear, FusedBatchNorm)


class FusedFlatten(nn.Module):
    """From [b, K * channels, h, w] to [K, b, channels * h * w], with the features in the plain network's order."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        x = _GradientChannelsLast.apply(x)
        return x.reshape(len(x), self.size, -1, *x.shape[2:]).transpose(0, 1).flatten(2)


class _GradientChannelsLast(torch.autograd.Function):
    """The identity, whose gradient has the memory order in which pooling and convolutions are fast."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


class FusedSoftmax(nn.Module):
    """K softmaxes over classes [K, b, classes], in float32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))


class FusedDropout(nn.Module):
    """K dropouts (of whole channels, where `channelwise`), each at its own rate, its masks from its own generator."""

    def __init__(self, masks: Sequence[Masks], *, channelwise: bool) -> None:
        super().__init__()
        self.masks = list(masks)
        self.channelwise = channelwise

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or all(mask.rate == 0 for mask in self.masks):
            return x
        if x.dim() == 4:
            shape = [x.shape[0], x.shape[1] // len(self.masks), *((1, 1) if self.channelwise else x.shape[2:])]
            return x * torch.cat([self._draw(mask, shape, like=x) for mask in self.masks], dim=1)
        return x * torch.stack([self._draw(mask, list(x.shape[1:]), like=x) for mask in self.masks])

    def _draw(self, mask: Masks, shape: list[int], *, like: Tensor) -> Tensor:
        """A mask of this shape: 0 at the rate, else what keeps the mean. A member without dropout draws nothing."""
        drawn = torch.empty(shape, device=like.device, dtype=like.dtype)
        if mask.rate == 0:
            return drawn.fill_(1)
        kept = 1 - mask.rate
        return drawn.bernoulli_(kept, generator=mask.generator).div_(kept)
