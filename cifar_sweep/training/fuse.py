"""Several equal networks as one, with a member axis: K trials of one shape in the operations of one.

Images come in once and are shared. Convolutions and batch norm keep the members side by side as channels
[b, K * channels, h, w] and convolve in K groups; the first convolution is a plain one with K times the filters. From
the flattening on, members lie in front: [K, b, features], and a linear layer is a batched matrix product. Nothing is
ever summed over members, so that one which is no longer finite leaves the others as they are.

All parameters lie in one matrix, a row for each member: what an optimizer, a checkpoint and `keep` want. Each step
hands them out to the layers, the members' parts one after the other, in the arithmetic of the forward pass.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_sweep.training.lanes.lanes import EVALUATED, Lanes, fewest_members, stages_of
from cifar_sweep.training.rows import Masks, Part, Rows, masks_of, parts_of


class Fused(Rows):
    """`networks` as one. From images [b, 3, h, w] to outputs [K, b, classes], in the members' order.

    Args:
        networks: plain networks of one shape, in order, which `can_fuse`.
        masks: the members' dropout.
        dtype: of convolutions and linear layers; None is that of the parameters. Batch norm keeps the parameters'.

    Raises:
        ValueError: a kind of layer that has no fused form.
    """

    def __init__(
        self, networks: Sequence[nn.Sequential], masks: Sequence[Masks], *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(networks, parts_of(networks[0], dtypes=_dtypes(networks[0], dtype)))
        self.layers = nn.ModuleDict(
            {place: _fused([network[int(place)] for network in networks], masks) for place in _order(networks[0])}
        )
        self._handed: list[tuple[Part, Tensor]] = []
        self.dtype = dtype
        self._flat = [type(layer) for layer in networks[0]].index(nn.Flatten)
        self._stages = stages_of(networks[0], self.parts)
        self._lanes: Lanes | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Outputs [K, b, classes] for images [b, 3, h, w]."""
        x = images.to(self.dtype or self.weights.dtype)
        lanes = self._lanes_for(x)
        places, parts = list(self.layers), self.parts
        if lanes is not None:
            x = lanes.forward(x, self.weights, self.gradients, self.layers, training=self.training)
            places = [place for place in places if int(place) > self._flat]
            parts = [part for part in parts if int(part.name.partition(".")[0]) > self._flat]
        self._handed = [(part, self._hand_out(part)) for part in parts]
        handed = (whole for _, whole in self._handed)
        for layer in (self.layers[place] for place in places):
            if isinstance(layer, _WITH_WEIGHTS):
                x = layer(x, weight=next(handed), bias=next(handed) if layer.has_bias else None)
            else:
                x = layer(x)
        return x

    def _hand_out(self, part: Part) -> Tensor:
        """This parameter of all members [K * n, ...], for one step."""
        whole = part.of(self.weights).to(part.dtype or self.weights.dtype).reshape(-1, *part.shape[1:])
        return whole.contiguous().detach().requires_grad_(torch.is_grad_enabled())

    def _lanes_for(self, images: Tensor) -> Lanes | None:
        """What does the convolutions of these images, where it is not PyTorch."""
        here = images.device.type == "cpu" and self.weights.dtype is torch.float32 and torch.get_num_threads() == 1
        if self._stages is None or not here:
            return None
        fewest = fewest_members(self._stages, images.dtype)
        if fewest is None or self.size < fewest:
            return None
        if self._lanes is None or not self._lanes.fit(images, members=self.size, training=self.training):
            batch = len(images) if self.training else min(EVALUATED, len(images))
            self._lanes = None
            with suppress(LookupError):
                self._lanes = Lanes(self._stages, members=self.size, images=images, batch=batch)
        return self._lanes

    def gather_gradients(self) -> None:
        """Take the last backward pass's gradients into `gradients`."""
        for part, whole in self._handed:
            assert whole.grad is not None
            part.of(self.gradients).copy_(whole.grad.reshape(self.size, -1))
        self._handed = []

    def member_buffers(self, k: int) -> Mapping[str, Tensor]:
        """Batch norm's statistics."""
        return {name: buffer[k] for name, buffer in self.layers.named_buffers()}

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone, in this order."""
        super().keep(members)
        kept = list(members)
        self._lanes = None
        for layer in self.layers.values():
            for name, buffer in layer.named_buffers(recurse=False):
                setattr(layer, name, buffer[kept])
            if isinstance(layer, FusedFlatten):
                layer.size = len(kept)
            if isinstance(layer, FusedDropout):
                layer.masks = [layer.masks[k] for k in kept]


def _dtypes(network: nn.Sequential, dtype: torch.dtype | None) -> dict[str, torch.dtype | None]:
    """The dtype that each parameter is wanted in: batch norm's stay as they are."""
    return {
        f"{place}.{name}": None if isinstance(layer, _NORMS) else dtype
        for place, layer in network.named_children()
        for name, _ in layer.named_parameters()
    }


# Layers that work on each value or each channel alone: members side by side are more of those.
_ALONE = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU,
    nn.Hardswish,
)  # fmt: skip
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_OF_CHANNELS = (nn.Conv2d, nn.BatchNorm2d, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_OF_FEATURES = (nn.Linear, nn.BatchNorm1d)
# What comes before a ReLU needs its own output no more, so that it can work in place.
_BEFORE_RELU = (nn.Conv2d, nn.Linear, nn.MaxPool2d, *_NORMS, nn.Dropout, nn.Dropout2d)


def can_fuse(network: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a network is a plain ``nn.Sequential`` of layers that have a fused form, in an order that has one.

    That is a convolution first, then what works on channels, one flattening, and what works on features.
    """
    if type(network) is not nn.Sequential:
        return False
    layers = list(network)
    named = [place for place, _ in network.named_children()]  # a layer that stands there twice has one name
    if named != [str(place) for place in range(len(layers))] or not all(map(_has_fused_form, layers)):
        return False
    kinds = [type(layer) for layer in layers]
    if kinds[0] is not nn.Conv2d or kinds.count(nn.Flatten) != 1 or nn.Softmax in kinds[:-1]:
        return False
    flat = kinds.index(nn.Flatten)
    in_place = all(issubclass(kinds[at - 1], _BEFORE_RELU) for at, kind in enumerate(kinds) if kind is nn.ReLU)
    return in_place and not (set(_OF_FEATURES) & set(kinds[:flat]) or set(_OF_CHANNELS) & set(kinds[flat:]))


def _has_fused_form(layer: nn.Module) -> bool:
    kind = type(layer)  # what a subclass does is not known
    if isinstance(layer, nn.Conv2d):
        pads = not isinstance(layer.padding, str) and layer.padding_mode in ("zeros", "reflect")
        return kind is nn.Conv2d and layer.groups == 1 and pads
    if isinstance(layer, _NORMS):
        return kind in _NORMS and layer.affine and layer.track_running_stats and layer.momentum is not None
    if isinstance(layer, nn.MaxPool2d):
        return kind is nn.MaxPool2d and not layer.return_indices
    if isinstance(layer, nn.LeakyReLU) and layer.negative_slope < 0:
        return False  # pooling is moved before it, which needs it to keep the order
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    if isinstance(layer, nn.Softmax):
        return layer.dim in (1, -1)
    return kind in (nn.Linear, nn.Dropout, nn.Dropout2d, nn.ReLU, *_ALONE)


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
            return FusedLinear(has_bias=layers[0].bias is not None)
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            return FusedBatchNorm([layer for layer in layers if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm1d))])
        case nn.Dropout2d() | nn.Dropout():
            return FusedDropout(masks_of(layers[0], masks), channelwise=isinstance(layers[0], nn.Dropout2d))
        case nn.Flatten():
            return FusedFlatten(len(layers))
        case nn.Softmax():
            return FusedSoftmax()
        case nn.ReLU():
            return nn.ReLU(inplace=True)  # `_BEFORE_RELU`
        case layer if isinstance(layer, _ALONE):
            return layer
        case unknown:
            raise ValueError(f"no way is known to fuse {unknown}")


class FusedConv2d(nn.Module):
    """K convolutions, from [b, K * in, h, w] or shared images [b, in, h, w] to [b, K * out, h', w']."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.strides = {"stride": layer.stride, "dilation": layer.dilation}
        self.padding = (int(layer.padding[0]), int(layer.padding[1]))
        self.reflect = layer.padding_mode == "reflect"
        self.inputs = layer.in_channels
        self.has_bias = layer.bias is not None

    def forward(self, x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.reflect:
            high, wide = padding
            x, padding = functional.pad(x, [wide, wide, high, high], mode="reflect"), (0, 0)
        groups = x.shape[1] // self.inputs  # images are shared: one group
        return functional.conv2d(x, weight, bias, padding=padding, groups=groups, **self.strides)


class FusedLinear(nn.Module):
    """K linear layers, from [K, b, in] to [K, b, out]."""

    def __init__(self, *, has_bias: bool) -> None:
        super().__init__()
        self.has_bias = has_bias

    def forward(self, x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
        if len(x) == 1:  # the same product, by a kernel that is faster for one
            return functional.linear(x[0], weight, bias)[None]
        return _Products.apply(x, weight.view(len(x), -1, x.shape[2]), bias)  # type: ignore[no-any-return]


class _Products(torch.autograd.Function):
    """K linear layers on [K, b, in], with weights [K, out, in]: their gradient comes in this order.

    From autograd's own product it would come as [K, in, out], and turning it takes longer than the product.
    """

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


class FusedBatchNorm(nn.Module):
    """K batch norms, over channels [b, K * channels, h, w] or over features [K, b, features].

    Buffers have the members in front: running mean and variance [K, channels], and the number of batches [K].
    """

    has_bias = True

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

    def forward(self, x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
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
            return x * torch.cat([mask.draw(shape, like=x) for mask in self.masks], dim=1)
        return x * torch.stack([mask.draw(x.shape[1:], like=x) for mask in self.masks])
