"""The convolutions of a group on the CPU, with the members in the lanes of vector registers.

Where channels are few, a vector of them is mostly empty; a vector of eight or sixteen members is full. Each lane does
what it would do alone, in the same order: a member's numbers depend neither on how many train with it nor on its
place. The work is done by `lanes.c`, from the images to what is flattened, forward and backward.
"""

import ctypes
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_sweep.training.lanes.compiled import MAX_STAGES, Call, Net, kernels, lane_count
from cifar_sweep.training.rows import Masks, parts_of

# Of more channels PyTorch's convolutions are as fast, and of fewer members, for most lanes would be empty:
# docs/LOG.md, 2026-11-28 and 2026-12-01.
_WIDEST = 64
_NARROW = 32
_IMAGE_CHANNELS = 3
_EVALUATED = 32  # images at a time where nothing is trained
_ALIGNED = 64  # bytes, of an arena


@dataclass(frozen=True)
class Convolution:
    """A stage: a convolution with what follows it."""

    settings: Mapping[str, float]  # of the structure `Stage`, but for what depends on the size of the images
    reflect: int  # how far images are padded by reflection first
    norm: str | None  # the place of its batch norm in the network
    dropout: str | None  # the place of its dropout of whole channels


def stages_of(network: nn.Sequential) -> list[Convolution] | None:
    """The stages of a network which `can_fuse`, up to its flattening; None where lanes have no way for one of them.

    That is: convolutions of stride 1 and few channels, each with batch norm, ReLU or LeakyReLU, dropout of whole
    channels and pooling by two after it, any of these left out, batch norm before the activation or after the dropout.
    """
    starts = {part.name: part.start for part in parts_of(network)}
    blocks: list[list[tuple[str, nn.Module]]] = []
    for place, layer in network.named_children():
        if isinstance(layer, nn.Flatten):
            break
        if isinstance(layer, nn.Conv2d):
            blocks.append([])
        elif not blocks:
            return None  # images are averaged first
        blocks[-1].append((place, layer))
    stages = [_stage(block, starts, first=not at) for at, block in enumerate(blocks)]
    known = [stage for stage in stages if stage is not None]
    return known if len(known) == len(stages) <= MAX_STAGES else None


_LETTERS = {nn.BatchNorm2d: "N", nn.ReLU: "A", nn.LeakyReLU: "A", nn.Dropout2d: "D", nn.MaxPool2d: "P"}
# Pooling, activation and dropout keep the order of values: in which order they come makes no difference.
_NORM_FIRST, _NORM_LAST = re.compile("N?(A?D?P?|A?PD?|PA?D?)"), re.compile("A?D?NP?")


def _stage(block: Sequence[tuple[str, nn.Module]], starts: Mapping[str, int], *, first: bool) -> Convolution | None:
    place, conv = block[0]
    assert isinstance(conv, nn.Conv2d)
    letters = "".join(_LETTERS.get(type(layer), "?") for _, layer in block[1:])
    after = not _NORM_FIRST.fullmatch(letters)
    if (after and not _NORM_LAST.fullmatch(letters)) or not _is_known(conv, first=first):
        return None
    settings: dict[str, float] = {
        "ci": conv.in_channels, "co": conv.out_channels, "k": conv.kernel_size[0], "after": after, "slope": 1.0,
        "weight": starts[f"{place}.weight"], "bias": starts.get(f"{place}.bias", -1),
    }  # fmt: skip
    reflect = conv.padding_mode == "reflect"
    padding = int(conv.padding[0])
    settings["pad"] = 0 if reflect else padding
    norm = dropout = None
    for name, layer in block[1:]:
        match layer:
            case nn.BatchNorm2d():
                norm = name
                settings |= {"norm": 1, "gamma": starts[f"{name}.weight"], "beta": starts[f"{name}.bias"]}
                settings |= {"momentum": layer.momentum or 0.0, "eps": layer.eps}
            case nn.ReLU():
                settings["slope"] = 0.0
            case nn.LeakyReLU():
                settings["slope"] = layer.negative_slope
            case nn.Dropout2d():
                dropout = name
                settings["mask"] = 1
            case nn.MaxPool2d():
                if not _halves(layer):
                    return None
                settings["pool"] = 1
    return Convolution(settings, padding if reflect else 0, norm, dropout)


def _is_known(conv: nn.Conv2d, *, first: bool) -> bool:
    square = len({*conv.kernel_size}) == len({*conv.padding}) == 1 and int(conv.padding[0]) < conv.kernel_size[0]
    plain = (conv.stride, conv.dilation) == ((1, 1), (1, 1))
    of_images = conv.in_channels == _IMAGE_CHANNELS and conv.padding_mode in ("zeros", "reflect")
    return square and plain and (of_images if first else conv.padding_mode == "zeros")


def _halves(pool: nn.MaxPool2d) -> bool:
    sides = ((pool.kernel_size, 2), (pool.stride, 2), (pool.padding, 0), (pool.dilation, 1))
    return not pool.ceil_mode and all(value in (side, (side, side), [side, side]) for value, side in sides)


def fewest_members(stages: Sequence[Convolution] | None, dtype: torch.dtype) -> int | None:
    """From how many members on lanes are faster than PyTorch for images of `dtype`; None for never."""
    if not stages:
        return None
    channels = max(int(stage.settings["co"]) for stage in stages)
    if channels > _WIDEST or dtype not in (torch.bfloat16, torch.float32):
        return None
    return 5 if channels <= _NARROW else 7


def offer(
    stages: Sequence[Convolution] | None, rows: Tensor, images: Tensor, *, training: bool, last: "Lanes | None" = None
) -> "Lanes | None":
    """What convolves images [b, 3, h, w] faster than PyTorch, for members with the parameters `rows` [K, parameters].

    None where nothing does. What was offered last is offered again if it fits.
    """
    here = images.device.type == "cpu" and rows.dtype is torch.float32 and torch.get_num_threads() == 1
    if stages is None or not here:
        return None
    if last is not None and last.fit(images, members=len(rows), training=training):
        return last
    if len(rows) < (fewest_members(stages, images.dtype) or math.inf):
        return None
    library = kernels(bf16=images.dtype is torch.bfloat16, members=len(rows))
    batch = len(images) if training else min(_EVALUATED, len(images))
    return Lanes(library, stages, members=len(rows), images=images, batch=batch) if library is not None else None


class _Tile(NamedTuple):
    """Some of the members: those that share the lanes of a vector, and the memory that they work in."""

    start: int
    members: int
    arena: Tensor


class Lanes:
    """The stages of K networks, for images [b, 3, h, w] of one dtype and size, at most `batch` at a time.

    `images` is an example batch: dtype, height and width are taken from it. `library` has the kernels for its dtype.
    """

    def __init__(
        self, library: ctypes.CDLL, stages: Sequence[Convolution], *, members: int, images: Tensor, batch: int
    ) -> None:
        self._library = library
        self.stages = stages
        self.members = members
        self.batch = batch
        self._kind = _kind(images)
        self._net, self.features = self._laid_out()
        width, size = lane_count(members), library.lanes_bytes(ctypes.byref(self._net))
        self.tiles = [
            _Tile(start, min(width, members - start), torch.zeros(size + _ALIGNED, dtype=torch.uint8))
            for start in range(0, members, width)
        ]
        self._calls: list[Call] = []
        self._held: tuple[Any, ...] = ()

    def _laid_out(self) -> tuple[Net, int]:
        """The stages for images of this size, and how many numbers come out for each."""
        net = Net(len(self.stages), self.batch)
        high, wide = (side + 2 * self.stages[0].reflect for side in self._kind[1:])
        for into, stage in zip(net.stage, self.stages, strict=False):
            for name, value in stage.settings.items():
                setattr(into, name, value)
            grown = 2 * into.pad - into.k + 1
            into.hi, into.wi, into.ho, into.wo = high, wide, high + grown, wide + grown
            into.hq, into.wq = high, wide = into.ho >> into.pool, into.wo >> into.pool
        return net, high * wide * int(self.stages[-1].settings["co"])

    def fit(self, images: Tensor, *, members: int, training: bool) -> bool:
        """Whether this was made for such images and so many members."""
        return (self._kind, self.members) == (_kind(images), members) and (len(images) <= self.batch or not training)

    def forward(self, images: Tensor, rows: Tensor, gradients: Tensor, layers: Any, *, training: bool) -> Tensor:
        """What is to be flattened [K, b, features], for images [b, 3, h, w] and the parameters `rows` [K, parameters].

        The backward pass, which there is in `training` alone, fills `gradients`. The fused `layers`, by place, have
        batch norm's statistics and the dropouts' masks.
        """
        if self.stages[0].reflect:
            # Under autocast it comes in float32.
            images = functional.pad(images, [self.stages[0].reflect] * 4, mode="reflect").to(images.dtype)
        if training:
            anchor = torch.empty(0, requires_grad=True)  # so that there is a backward pass
            return _Trained.apply(anchor, self, images, rows, gradients, layers)  # type: ignore[no-any-return]
        chunks = torch.split(images, min(self.batch, len(images)))
        return torch.cat([self.run(chunk, rows, gradients, layers, training=False) for chunk in chunks], dim=1)

    def run(self, images: Tensor, rows: Tensor, gradients: Tensor, layers: Any, *, training: bool) -> Tensor:
        """`forward` of at most `batch` images, padded by reflection where that is asked for."""
        assert images.dtype is self._kind[0]  # the kernels would take any bytes for numbers
        pixels = images.contiguous(memory_format=torch.channels_last)
        outputs = images.new_empty(self.members, len(images), self.features)
        masks = [_masks(layers, stage, images) if training else None for stage in self.stages]
        self._calls = []
        self._held = (pixels, masks, rows, gradients)  # what the calls point to
        for tile in self.tiles:
            call = Call(
                arena=-(-tile.arena.data_ptr() // _ALIGNED) * _ALIGNED, images=pixels.data_ptr(),
                features=outputs[tile.start].data_ptr(), rows=rows[tile.start].data_ptr(),
                gradients=gradients[tile.start].data_ptr(), stride=rows.stride(0), members=tile.members,
                count=len(images), training=training,
            )  # fmt: skip
            for at, (stage, mask) in enumerate(zip(self.stages, masks, strict=True)):
                if stage.norm is not None:
                    call.running_mean[at] = layers[stage.norm].running_mean[tile.start].data_ptr()
                    call.running_var[at] = layers[stage.norm].running_var[tile.start].data_ptr()
                if mask is not None:
                    call.masks[at] = mask[tile.start].data_ptr()
            self._library.lanes_forward(ctypes.byref(self._net), ctypes.byref(call))
            self._calls.append(call)
        for stage in self.stages if training else []:
            if stage.norm is not None:
                layers[stage.norm].num_batches_tracked.add_(1)
        return outputs

    def backward(self, gradient: Tensor) -> None:
        """From the gradient of what the last `run` gave to the `gradients` of its parameters."""
        gradient = gradient.contiguous()
        for tile, call in zip(self.tiles, self._calls, strict=True):
            call.features = gradient[tile.start].data_ptr()
            self._library.lanes_backward(ctypes.byref(self._net), ctypes.byref(call))
        self._calls, self._held = [], ()


def _kind(images: Tensor) -> tuple[torch.dtype, int, int]:
    return images.dtype, images.shape[2], images.shape[3]


def _masks(layers: Any, stage: Convolution, images: Tensor) -> Tensor | None:
    """The members' masks of a stage's channels [K, b, channels]; None where no member drops any."""
    if stage.dropout is None:
        return None
    each: list[Masks] = layers[stage.dropout].masks
    if all(mask.rate == 0 for mask in each):
        return None
    shape = [len(images), int(stage.settings["co"]), 1, 1]
    return torch.stack([mask.draw(shape, like=images) for mask in each]).float()


class _Trained(torch.autograd.Function):
    """`Lanes.run` with its backward pass. The parameters' gradients go where they belong, past autograd."""

    @staticmethod
    def forward(
        ctx: Any, _anchor: Tensor, lanes: Lanes, images: Tensor, rows: Tensor, gradients: Tensor, layers: Any
    ) -> Tensor:
        ctx.lanes = lanes
        return lanes.run(images, rows, gradients, layers, training=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.lanes.backward(gradient)
        return (None,) * 6
