"""Several equal networks as one, with a member axis: K trials of one shape in the operations of one.

Images come in once and are shared. Convolutions and batch norm keep the members side by side as channels
[b, K * channels, h, w] and convolve in K groups; the first convolution is a plain one with K times the filters. From
the flattening on, members lie in front: [K, b, features], and a linear layer is a batched matrix product. Nothing is
ever summed over members, so that one which is no longer finite leaves the others as they are.

Each step hands the members' parameters out to the layers, one after the other, in the arithmetic of the forward pass.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_sweep.training import winograd
from cifar_sweep.training.lanes import Lanes, offer, stages_of
from cifar_sweep.training.rows import Masks, Part, Rows, Stream, masks_of


class Fused(Rows):
    """`networks` as one. From images [b, 3, h, w] to outputs [K, b, classes], in the members' order.

    The networks are plain ones of one shape which `can_fuse`. `dtype` is that of convolutions and linear layers; None
    is that of the parameters, which batch norm keeps. `layers` lie in the order in which they run, by their places in
    the plain network. `lanes` are the compiled kernels that the last images went through; None where that was PyTorch.
    """

    def __init__(
        self, networks: Sequence[nn.Sequential], masks: Sequence[Masks], *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(networks)
        self.layers = nn.ModuleDict()
        for place in _order(networks[0]):
            layers = [network[int(place)] for network in networks]
            self.layers[place] = RULES[type(layers[0])].fuse(layers, masks)
        self._parts_at: dict[str, dict[str, Part]] = {place: {} for place in self.layers}
        for part in self.parts:
            place, _, name = part.name.partition(".")
            self._parts_at[place][name] = part
        self.dtype = dtype
        self._flat = [type(layer) for layer in networks[0]].index(nn.Flatten)
        self._stages = stages_of(networks[0])
        self.lanes: Lanes | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Outputs [K, b, classes] for images [b, 3, h, w]."""
        x = images.to(self.dtype or self.weights.dtype)
        self.lanes = offer(self._stages, self.weights, x, training=self.training, last=self.lanes)
        done = -1
        if self.lanes is not None:
            x = self.lanes.forward(x, self.weights, self.gradients, self.layers, training=self.training)
            done = self._flat
        self.handed = []
        for place, layer in self.layers.items():
            if int(place) > done:
                x = layer(x, **self._hand_out(place, layer))
        return x

    def _hand_out(self, place: str, layer: nn.Module) -> dict[str, Tensor]:
        """All members' parameters of a layer by their names in it, each [K * n, ...], for one step."""
        dtype = None if isinstance(layer, FusedBatchNorm) else self.dtype
        named = {}
        for name, part in self._parts_at[place].items():
            whole = part.of(self.weights).to(dtype or self.weights.dtype).reshape(-1, *part.shape[1:])
            named[name] = whole.contiguous().detach().requires_grad_(torch.is_grad_enabled())
            self.handed.append((part.of(self.gradients), named[name]))
        return named

    def member_buffers(self, k: int) -> Mapping[str, Tensor]:
        """Batch norm's statistics."""
        return {name: buffer[k] for name, buffer in self.layers.named_buffers()}

    def statistics(self) -> list[tuple[slice, Tensor]]:
        return [(slice(None), buffer) for buffer in self.layers.buffers() if buffer.is_floating_point()]

    def keep(self, members: Sequence[int]) -> None:
        super().keep(members)
        self.lanes = None  # before the memory of others is asked for
        for layer in self.layers.values():
            if isinstance(layer, FusedLayer):
                layer.keep(list(members))


def can_fuse(network: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a network is a plain ``nn.Sequential`` of layers that `RULES` can fuse, in an order that can be fused.

    That is a convolution first, or an average of the images before it, then what works on channels, one flattening, and
    what works on features.
    """
    if type(network) is not nn.Sequential:
        return False
    layers, kinds = list(network), [type(layer) for layer in network]
    named = [place for place, _ in network.named_children()]  # a layer that stands there twice has one name
    if named != [str(place) for place in range(len(layers))] or not all(kind in RULES for kind in kinds):
        return False
    rules = [RULES[kind] for kind in kinds]
    if not all(rule.accepts(layer) for rule, layer in zip(rules, layers, strict=True)):
        return False
    first = 1 if kinds[:1] == [nn.AdaptiveAvgPool2d] else 0
    if kinds[first : first + 1] != [nn.Conv2d] or kinds.count(nn.Flatten) != 1 or nn.Softmax in kinds[:-1]:
        return False
    flat = kinds.index(nn.Flatten)
    in_place = all(rules[at - 1].before_relu for at, kind in enumerate(kinds) if kind is nn.ReLU)
    return in_place and not (
        any(rule.works_on == "features" for rule in rules[:flat])
        or any(rule.works_on == "channels" for rule in rules[flat:])
    )


def _order(network: nn.Sequential) -> list[str]:
    """The places of the layers in the order in which they run: pooling first, for less work, where no value changes."""
    order: list[str] = []
    for place, layer in network.named_children():
        at = len(order)
        while isinstance(layer, nn.MaxPool2d) and at and RULES[type(network[int(order[at - 1])])].keeps_order:
            at -= 1
        order.insert(at, place)
    return order


class FusedLayer(nn.Module):
    """A layer of all members; its buffers have the members in front. `forward` is handed its parameters by name."""

    def keep(self, members: list[int]) -> None:
        """Go on with these members alone, in this order."""
        for name, buffer in self.named_buffers(recurse=False):
            setattr(self, name, buffer[members])


class FusedConv2d(nn.Module):
    """K convolutions, from [b, K * in, h, w] or shared images [b, in, h, w] to [b, K * out, h', w']."""

    def __init__(self, layers: Sequence[nn.Conv2d], _masks: Sequence[Masks]) -> None:
        super().__init__()
        layer = layers[0]
        self.strides = {"stride": layer.stride, "dilation": layer.dilation}
        self.padding = (int(layer.padding[0]), int(layer.padding[1]))
        self.reflect = layer.padding_mode == "reflect"
        self.inputs = layer.in_channels
        same = self.padding == (1, 1) and layer.stride == layer.dilation == (1, 1) and not self.reflect
        self.may_be_winograd = same and layer.kernel_size == (3, 3)

    def forward(self, x: Tensor, *, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        padding = self.padding
        if self.reflect:
            high, wide = padding
            x, padding = functional.pad(x, [wide, wide, high, high], mode="reflect"), (0, 0)
            x = x.contiguous(memory_format=torch.channels_last)  # CUDA pads into the other order
        groups = x.shape[1] // self.inputs  # images are shared: one group
        faster = winograd.convolve(x, weight, bias, groups=groups) if self.may_be_winograd else None
        if faster is not None:
            return faster
        return functional.conv2d(x, weight, bias, padding=padding, groups=groups, **self.strides)


class FusedLinear(nn.Module):
    """K linear layers, from [K, b, in] to [K, b, out]."""

    def forward(self, x: Tensor, *, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if len(x) == 1:  # the same product, by a kernel that is faster for one
            return functional.linear(x[0], weight, bias)[None]
        return _Products.apply(x, weight.view(len(x), -1, x.shape[2]), bias)  # type: ignore[no-any-return]


class _Products(torch.autograd.Function):
    """K linear layers on [K, b, in], with weights [K, out, in]: turning autograd's gradient would take very long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        each = weight.transpose(1, 2)
        return torch.bmm(x, each) if bias is None else torch.baddbmm(bias.view(len(x), 1, -1), x, each)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        bias = gradient.sum(dim=1).flatten() if ctx.has_bias else None
        return torch.bmm(gradient, weight), torch.bmm(gradient.transpose(1, 2), x), bias


class FusedBatchNorm(FusedLayer):
    """K batch norms, over channels [b, K * channels, h, w] or over features [K, b, features]."""

    def __init__(self, layers: Sequence[nn.BatchNorm2d | nn.BatchNorm1d], _masks: Sequence[Masks]) -> None:
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
            side_by_side, self.running_mean.view(-1), self.running_var.view(-1), weight, bias,
            training=self.training, momentum=self.momentum, eps=self.eps,
        )  # fmt: skip
        return normed.view(len(normed), len(x), -1).transpose(0, 1) if self.of_features else normed


class FusedFlatten(FusedLayer):
    """From [b, K * channels, h, w] to [K, b, channels * h * w], with the features in the plain network's order."""

    def __init__(self, layers: Sequence[nn.Flatten], _masks: Sequence[Masks]) -> None:
        super().__init__()
        self.size = len(layers)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:  # in this memory order pooling and convolutions are fast
            last = torch.channels_last
            x.register_hook(lambda gradient: gradient.contiguous(memory_format=last))  # type: ignore[no-untyped-call]
        return x.reshape(len(x), self.size, -1, *x.shape[2:]).transpose(0, 1).flatten(2)

    def keep(self, members: list[int]) -> None:
        self.size = len(members)


class FusedSoftmax(nn.Module):
    """K softmaxes over classes [K, b, classes], in float32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))


class FusedDropout(FusedLayer):
    """K dropouts (of whole channels for Dropout2d), each at its own rate, its masks from its own generator."""

    def __init__(self, layers: Sequence[nn.Dropout | nn.Dropout2d], masks: Sequence[Masks]) -> None:
        super().__init__()
        self.masks = masks_of(layers[0], masks)
        self.channelwise = isinstance(layers[0], nn.Dropout2d)
        self.has_place = hasattr(layers[0], "place")
        self._rates: Tensor | None = None  # of the members [K, 1], where they share a stream

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if all(mask.rate == 0 for mask in self.masks):
            self._pass_over(x)
            return x
        if x.dim() == 4:
            shape = [x.shape[0], x.shape[1] // len(self.masks), *((1, 1) if self.channelwise else x.shape[2:])]
            return x * torch.cat([*self._draw(shape, like=x)], dim=1)
        return x * torch.stack([*self._draw(x.shape[1:], like=x)])

    def _pass_over(self, x: Tensor) -> None:
        """Leave out what members with another rate at this place would have drawn: places later on draw the same."""
        stream = self.masks[0].generator
        if self.has_place and isinstance(stream, Stream):
            each = [x.shape[0], x.shape[1] // len(self.masks), *((1, 1) if self.channelwise else x.shape[2:])]
            stream.drawn.add_(math.prod(each if x.dim() == 4 else x.shape[1:]))

    def _draw(self, shape: Sequence[int], *, like: Tensor) -> Sequence[Tensor]:
        """The members' masks, each of this shape."""
        stream = self.masks[0].generator
        if not isinstance(stream, Stream):
            return [mask.draw(shape, like=like) for mask in self.masks]
        if self._rates is None:
            self._rates = torch.tensor([mask.rate for mask in self.masks], device=like.device)[:, None]
        return stream.masks(self._rates, shape, like=like).unbind()

    def keep(self, members: list[int]) -> None:
        self.masks, self._rates = [self.masks[k] for k in members], None


def _the_first(layers: Sequence[nn.Module], _masks: Sequence[Masks]) -> nn.Module:
    """The fused form of a layer that works on each value or channel alone: members side by side are more of those."""
    return layers[0]


def _can_fuse_conv(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and not isinstance(layer.padding, str) and layer.padding_mode in ("zeros", "reflect")


def _can_fuse_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    return layer.affine and layer.track_running_stats and layer.momentum is not None


@dataclass(frozen=True)
class Rule:
    """How the layers of one type are fused."""

    fuse: Callable[[Sequence[Any], Sequence[Masks]], nn.Module]  # makes one layer of the members' and their dropout
    works_on: Literal["channels", "features", "either"] = "either"  # channels before the flattening, features after it
    accepts: Callable[[Any], bool] = lambda _layer: True  # whether a layer of these settings can be fused
    before_relu: bool = False  # its gradient does not need its output, so that a ReLU after it may work in place
    # The greatest of a window stays the greatest, so that pooling may come before it. Of values that the layer rounds
    # to the same, the gradient then goes to the one that was greater.
    keeps_order: bool = False


# By exact type: what a subclass does is not known.
RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: Rule(FusedConv2d, "channels", _can_fuse_conv, before_relu=True),
    nn.Linear: Rule(lambda _layers, _masks: FusedLinear(), "features", before_relu=True),
    nn.BatchNorm2d: Rule(FusedBatchNorm, "channels", _can_fuse_norm, before_relu=True),
    nn.BatchNorm1d: Rule(FusedBatchNorm, "features", _can_fuse_norm, before_relu=True),
    nn.Dropout2d: Rule(FusedDropout, "channels", before_relu=True, keeps_order=True),
    nn.Dropout: Rule(FusedDropout, before_relu=True),
    nn.MaxPool2d: Rule(_the_first, "channels", lambda layer: not layer.return_indices, before_relu=True),
    nn.AvgPool2d: Rule(_the_first, "channels"),
    nn.AdaptiveAvgPool2d: Rule(_the_first, "channels"),
    nn.Flatten: Rule(FusedFlatten, accepts=lambda layer: (layer.start_dim, layer.end_dim) == (1, -1)),
    nn.ReLU: Rule(lambda _layers, _masks: nn.ReLU(inplace=True), keeps_order=True),
    nn.LeakyReLU: Rule(_the_first, accepts=lambda layer: layer.negative_slope >= 0, keeps_order=True),
    nn.Softmax: Rule(lambda _layers, _masks: FusedSoftmax(), accepts=lambda layer: layer.dim in (1, -1)),
    nn.Identity: Rule(_the_first, keeps_order=True),
    **dict.fromkeys(
        (nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.Mish, nn.Hardswish, nn.ReLU6, nn.Softplus),
        Rule(_the_first),
    ),
}
