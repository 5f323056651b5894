"""Several equal networks as one, with a member axis: K trials of one shape in the operations of one.

Images come in once and are shared. Convolutions and batch norm keep the members side by side as channels
[b, K * channels, h, w] and convolve in K groups; the first convolution is a plain one with K times the filters. From
the flattening on, members lie in front: [K, b, features], and a linear layer is a batched matrix product. Nothing is
ever summed over members, so that one which is no longer finite leaves the others as they are.

A parameter has the members' parts one after the other on its first axis, so that a member's is a slice, which an
optimizer takes as it is, and the whole is what a convolution takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Masks:
    """A member's dropout: its rate, and the generator that its masks come from and nothing else does."""

    rate: float
    generator: torch.Generator


class Fused(nn.Module):
    """`networks` as one. From images [b, 3, h, w] to outputs [K, b, classes], in the members' order.

    Args:
        networks: plain networks of one shape, in order.
        masks: the members' dropout.

    Raises:
        ValueError: a kind of layer that no network here has.
    """

    def __init__(self, networks: Sequence[nn.Sequential], masks: Sequence[Masks]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _fused([network[place] for network in networks], masks) for place in range(len(networks[0]))
        )
        self.size = len(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs [K, b, classes] for images [b, 3, h, w]."""
        x = images
        for layer in self.layers:
            x = layer(x)
        return x

    def member_parameters(self, k: int) -> list[nn.Parameter]:
        """Member `k`'s parameters, in the plain network's order, as tensors that share the memory of the whole."""
        if self.size == 1:
            return list(self.parameters())
        return [nn.Parameter(self.slice(whole.detach(), k), requires_grad=False) for whole in self.parameters()]

    def slice(self, whole: Tensor, k: int) -> Tensor:
        """Member `k`'s part of a parameter, of its gradient, or of a buffer."""
        length = len(whole) // self.size
        return whole[k * length : (k + 1) * length]

    def member_state(self, k: int) -> dict[str, Tensor]:
        """Member `k`'s state dict, under the names of the plain network; it shares the memory of the whole."""
        state = {name.removeprefix("layers."): self.slice(value, k) for name, value in self.state_dict().items()}
        # Plain batch norm counts its batches in a number, not in a list of one.
        return {name: value[0] if name.endswith("num_batches_tracked") else value for name, value in state.items()}

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
        for layer in self.layers:
            for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
                kept = _joined([self.slice(value.detach(), k) for k in members])
                setattr(layer, name, nn.Parameter(kept) if isinstance(value, nn.Parameter) else kept)
            if isinstance(layer, FusedFlatten):
                layer.size = len(members)
            if isinstance(layer, FusedDropout):
                layer.masks = [layer.masks[k] for k in members]
        self.size = len(members)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors one after the other; filters in the memory order of convolutions over images with channels last."""
    joined = torch.cat([tensor.detach().reshape(-1, *tensor.shape[1:]) for tensor in tensors])
    return joined.contiguous(memory_format=torch.channels_last) if joined.dim() == 4 else joined


def _fused(layers: Sequence[nn.Module], masks: Sequence[Masks]) -> nn.Module:
    match layers[0]:
        case nn.Conv2d():
            return FusedConv2d([layer for layer in layers if isinstance(layer, nn.Conv2d)])
        case nn.Linear():
            return FusedLinear([layer for layer in layers if isinstance(layer, nn.Linear)])
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            return FusedBatchNorm([layer for layer in layers if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm1d))])
        case nn.Dropout2d():
            return FusedDropout(masks, channelwise=True)
        case nn.Dropout():
            return FusedDropout(masks, channelwise=False)
        case nn.Flatten():
            return FusedFlatten(len(layers))
        case nn.Softmax():
            return nn.Softmax(dim=-1)
        case nn.MaxPool2d() | nn.ReLU() | nn.LeakyReLU() | nn.Sigmoid() | nn.Tanh():
            return layers[0]  # works on each element or channel alone: members side by side are more of those
        case unknown:
            raise ValueError(f"no way is known to fuse {unknown}")


class FusedConv2d(nn.Module):
    """K convolutions of stride 1, from [b, K * in, h, w] or shared images [b, in, h, w] to [b, K * out, h, w]."""

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.weight = nn.Parameter(_joined([layer.weight for layer in layers]))
        self.bias = nn.Parameter(_joined([layer.bias for layer in layers if layer.bias is not None]))
        self.padding = int(layers[0].padding[0])
        self.reflect = layers[0].padding_mode == "reflect"
        self.inputs = layers[0].in_channels

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.reflect:
            x, padding = functional.pad(x, [padding] * 4, mode="reflect"), 0
        groups = x.shape[1] // self.inputs  # images are shared: one group
        return functional.conv2d(x, self.weight, self.bias, padding=padding, groups=groups)


class FusedLinear(nn.Module):
    """K linear layers, from [K, b, in] to [K, b, out]."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(_joined([layer.weight for layer in layers]))
        self.bias = nn.Parameter(_joined([layer.bias for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:  # the same product, by a kernel that is faster for one
            return functional.linear(x[0], self.weight, self.bias)[None]
        weight = self.weight.view(len(x), -1, x.shape[2])
        return torch.baddbmm(self.bias.view(len(x), 1, -1), x, weight.transpose(1, 2))


class FusedBatchNorm(nn.Module):
    """K batch norms, over channels [b, K * channels, h, w] or over features [K, b, features]."""

    def __init__(self, layers: Sequence[nn.BatchNorm2d | nn.BatchNorm1d]) -> None:
        super().__init__()
        self.weight = nn.Parameter(_joined([layer.weight for layer in layers]))
        self.bias = nn.Parameter(_joined([layer.bias for layer in layers]))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, _joined([layer.get_buffer(name) for layer in layers]))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.momentum = layers[0].momentum or 0.0
        self.eps = layers[0].eps
        self.of_features = isinstance(layers[0], nn.BatchNorm1d)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        # Features are normalised as channels side by side, too.
        side_by_side = x.transpose(0, 1).flatten(1) if self.of_features else x
        normed = functional.batch_norm(
            side_by_side,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )
        return normed.view(len(normed), len(x), -1).transpose(0, 1) if self.of_features else normed


class FusedFlatten(nn.Module):
    """From [b, K * channels, h, w] to [K, b, channels * h * w], with the features in the plain network's order."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.size, -1, *x.shape[2:]).transpose(0, 1).flatten(2)


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
