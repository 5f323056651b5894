"""The layers of `model = "cnn"`, as numbers: their widths, and what they leave of an image. Standard library only."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cifar_sweep.parameters import PARAMETERS, VGG_MODELS

MOST_FILTERS = 65536
_GROWTH = {"same": 1.0, "double": 2.0, "half": 0.5}


class Block(NamedTuple):
    """Some convolutions, and a pooling after them."""

    filters: int
    kernel_size: int
    stride: int
    padding: int  # pixels at each border; with an even kernel and padding "same" a pixel is lost
    pooling: str
    pool_size: int
    batch_norm: bool
    side: int  # of the image that it leaves, in pixels; below 1 where it leaves none


def blocks_of(values: Mapping[str, Any]) -> list[Block]:
    """The blocks of a cnn with these settings, complete but for single layers'."""
    count, side = int(values["conv_layers"]), int(values["image_size"])
    names = ("filters", "kernel_size", "stride", "pooling", "pool_size", "batch_norm", "padding")
    blocks = []
    for each in zip(*(each_layer(values, name, count) for name in names), strict=True):
        filters, kernel, stride, pooling, pool_size, norm, borders = each
        padding = (kernel - 1) // 2 if borders == "same" else 0 if borders == "valid" else int(borders)
        for _ in range(values["convs_per_block"]):
            side = _convolved(side, kernel, stride, padding)
        if pooling != "none" and side > 0:
            side //= pool_size
        blocks.append(Block(filters, kernel, stride, padding, pooling, pool_size, norm, side))
        side = max(side, 0)
    return blocks


def _convolved(side: int, kernel_size: int, stride: int, padding: int) -> int:
    """The side of an image after a convolution."""
    return (side + 2 * padding - kernel_size) // stride + 1


def each_layer(values: Mapping[str, Any], name: str, count: int) -> list[Any]:
    """The value of parameter `name` in each layer: the layer's own, else that of the list, else the general one."""
    entries = PARAMETERS[name].entries(values[name])
    growth = values.get("filter_growth", "same") if name == "filters" and not entries else "same"
    factor = _GROWTH[growth] if growth in _GROWTH else float(growth)
    general = entries or [
        values[name] if factor == 1 else max(1, round(values[name] * factor**layer)) for layer in range(count)
    ]
    return [values.get(f"{name}_{layer}", value) for layer, value in enumerate(general, start=1)]


SHRINKS = ("conv_layers", "convs_per_block", "stride", "pool_size", "kernel_size", "pooling", "padding")


def image_fault(values: Mapping[str, Any]) -> str:
    """Why a model with these settings, complete ones, leaves nothing of its images; empty where something is left."""
    model, size = values["model"], values["image_size"]
    if model in VGG_MODELS and size < 32:
        return f"{model} halves images five times; accepted: image_size = 32 or more"
    if model == "lenet" and size < 16:
        return "lenet leaves nothing of images below 16 pixels; accepted: image_size = 16 or more"
    blocks = blocks_of(values) if model == "cnn" else []
    if any(block.filters > MOST_FILTERS for block in blocks):
        return (
            f"filters = {values['filters']} grow beyond {MOST_FILTERS:,}; accepted: fewer, or a smaller filter_growth"
        )
    if blocks and values["padding_mode"] == "reflect" and blocks[0].padding >= size:
        return (
            f"images of {size} pixels have too few to reflect {blocks[0].padding} of them; accepted: a smaller kernel"
        )
    for number, block in enumerate(blocks, start=1):
        if block.side < 1:
            return (
                f"images of {size} pixels have nothing left after layer {number} of {len(blocks)}: kernel "
                f"{block.kernel_size}, padding {block.padding}, stride {block.stride}, pooling {block.pooling} "
                f"of {block.pool_size}; fewer or smaller ones are accepted, or a larger image_size"
            )
    return ""


def macs_of(values: Mapping[str, Any]) -> int:
    """Multiply-accumulates of one image in a cnn with these settings."""
    channels, side, total = 3, int(values["image_size"]), 0
    for block in blocks_of(values):
        for _ in range(values["convs_per_block"]):
            side = _convolved(side, block.kernel_size, block.stride, block.padding)
            total += block.kernel_size**2 * channels * block.filters * side**2
            channels = block.filters
        side = block.side
    features = channels * (1 if values["global_pooling"] else side**2)
    for width in (*widths_of(values), values["classes"]):
        total, features = total + features * width, width
    return total


def widths_of(values: Mapping[str, Any]) -> Sequence[int]:
    """The widths of the hidden dense layers."""
    return each_layer(values, "dense_units", int(values["dense_layers"]))
