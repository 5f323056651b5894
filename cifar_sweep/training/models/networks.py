"""The reports' networks, each a function from a `Shape` to a plain ``nn.Sequential``; widths are of 32x32 images."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from torch import nn

from cifar_sweep.config import Shape
from cifar_sweep.layers import blocks_of, widths_of
from cifar_sweep.parameters import MODEL_NAMES

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "elu": nn.ELU,
    "selu": nn.SELU, "gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish, "none": nn.Identity,
    "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "softplus": nn.Softplus,
}  # fmt: skip
# For each of the five VGG blocks: its width and its number of convolutions. Report D's 16 and 19 are shorter than the
# paper's; they keep names of their own.
_WIDTHS = (64, 128, 256, 512, 512)
VGG_LAYERS: dict[str, tuple[int, int, int, int, int]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
    "vgg16-short": (2, 2, 3, 2, 2),
    "vgg19-short": (2, 2, 4, 3, 3),
}


def _ordered(shape: Shape, norm: nn.Module, *, dropout: nn.Module | None = None) -> list[nn.Module]:
    """What follows a layer: norm, activation, dropout, with the norm last where the shape says so."""
    middle = [ACTIVATIONS[shape.activation]()] + ([dropout] if dropout is not None else [])
    if not shape.batch_norm:
        return middle
    return [norm, *middle] if shape.norm_position == "before_activation" else [*middle, norm]


def _conv(shape: Shape, layer: nn.Conv2d, *, dropout: nn.Module | None = None) -> list[nn.Module]:
    """A convolution with what follows it."""
    return [layer, *_ordered(shape, nn.BatchNorm2d(layer.out_channels), dropout=dropout)]


def _connected(shape: Shape, *widths: int) -> list[nn.Module]:
    """From the flattening to the classes: hidden layers with activation and dropout, without batch norm."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[shape.activation](), nn.Dropout(0.0)]
    return [*layers, nn.Linear(widths[-1], shape.classes)]


def lenet(shape: Shape) -> nn.Sequential:
    """Report E: two 5x5 convolutions without padding, then 400, 120, ``hidden_units`` (84 in the report), classes."""
    side = ((shape.image_size - 4) // 2 - 4) // 2
    return nn.Sequential(
        *_conv(shape, nn.Conv2d(3, 6, 5)),
        nn.MaxPool2d(2),
        *_conv(shape, nn.Conv2d(6, 16, 5)),
        nn.MaxPool2d(2),
        *_connected(shape, 16 * side**2, 120, shape.hidden_units),
    )


def convnet(shape: Shape) -> nn.Sequential:
    """Reports A and C: three convolutions, each halved, then 512, 120, ``hidden_units`` (A: 84, C: 80), classes."""
    return nn.Sequential(
        *_conv(shape, nn.Conv2d(3, 6, 5, padding=2, padding_mode=shape.padding_mode)),
        nn.MaxPool2d(2),
        *_conv(shape, nn.Conv2d(6, 16, 3, padding=1)),
        nn.MaxPool2d(2),
        *_conv(shape, nn.Conv2d(16, 32, 3, padding=1)),
        nn.MaxPool2d(2),
        *_connected(shape, 32 * (shape.image_size // 8) ** 2, 120, shape.hidden_units),
    )


def cnn3(shape: Shape) -> nn.Sequential:
    """Report B: convolutions of 16, 32 (halved) and 64 channels (halved), then 4096, ``hidden_units`` (100), classes.

    Dropout2d follows each convolution's activation. In the report batch norm comes after both (from its run 008 on),
    and after the hidden layer too, where it acts on features.
    """
    return nn.Sequential(
        *_conv(shape, nn.Conv2d(3, 16, 3, padding=1), dropout=nn.Dropout2d(0.0)),
        *_conv(shape, nn.Conv2d(16, 32, 3, padding=1), dropout=nn.Dropout2d(0.0)),
        nn.MaxPool2d(2),
        *_conv(shape, nn.Conv2d(32, 64, 3, padding=1), dropout=nn.Dropout2d(0.0)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (shape.image_size // 4) ** 2, shape.hidden_units),
        *_ordered(shape, nn.BatchNorm1d(shape.hidden_units), dropout=nn.Dropout(0.0)),
        nn.Linear(shape.hidden_units, shape.classes),
    )


def cnn1(shape: Shape) -> nn.Sequential:
    """Report D: convolutions of 64 and 256 channels, halved once, then one linear layer from 65,536 features."""
    return nn.Sequential(
        *_conv(shape, nn.Conv2d(3, 64, 3, padding=1)),
        *_conv(shape, nn.Conv2d(64, 256, 5, padding=2)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(256 * (shape.image_size // 2) ** 2, shape.classes),
    )


def vgg(shape: Shape) -> nn.Sequential:
    """Reports D and E (Simonyan and Zisserman, 2014): five blocks, each halved, then 512, ``hidden_units``, classes."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in zip(_WIDTHS, VGG_LAYERS[shape.model], strict=True):
        for _ in range(count):
            layers += _conv(shape, nn.Conv2d(channels, width, 3, padding=1))
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *_connected(shape, 512 * (shape.image_size // 32) ** 2, shape.hidden_units))


def cnn(shape: Shape) -> nn.Sequential:
    """A network by numbers: blocks of convolutions, each pooled, then dense layers; `layers` says how large they are.

    Dropout is of whole channels after each block, and of single values after each hidden dense layer.
    """
    values = shape.values
    layers: list[nn.Module] = []
    channels, side = 3, shape.image_size
    for number, block in enumerate(blocks_of(values), start=1):
        own = replace(shape, batch_norm=block.batch_norm)
        for _ in range(shape.convs_per_block):
            mode = shape.padding_mode if block.padding and not layers else "zeros"
            conv = nn.Conv2d(channels, block.filters, block.kernel_size, block.stride, block.padding, padding_mode=mode)
            layers += _conv(own, conv)
            channels = block.filters
        if block.pooling != "none":
            layers.append((nn.MaxPool2d if block.pooling == "max" else nn.AvgPool2d)(block.pool_size))
        layers.append(_at(nn.Dropout2d(0.0), f"conv_dropout_{number}"))
        side = block.side
    if shape.global_pooling:
        layers.append(nn.AdaptiveAvgPool2d(1))
    features = channels * (1 if shape.global_pooling else side**2)
    if shape.input_dropout:
        layers.insert(0, nn.Dropout(shape.input_dropout))
    layers.append(nn.Flatten())
    dense = shape if shape.dense_activation == "as_activation" else replace(shape, activation=shape.dense_activation)
    dense = replace(dense, batch_norm=shape.dense_batch_norm)
    for number, width in enumerate(widths_of(values), start=1):
        dropout = _at(nn.Dropout(0.0), f"dropout_{number}")
        layers += [nn.Linear(features, width), *_ordered(dense, nn.BatchNorm1d(width), dropout=dropout)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, shape.classes))


def _at(dropout: nn.Module, place: str) -> nn.Module:
    """A dropout layer that has the rate of its own place, as `Knobs.rate` says it."""
    dropout.place = place  # type: ignore[assignment]
    return dropout


MODELS: dict[str, Callable[[Shape], nn.Sequential]] = {
    "lenet": lenet, "convnet": convnet, "cnn3": cnn3, "cnn1": cnn1, "cnn": cnn, **dict.fromkeys(VGG_LAYERS, vgg),
}  # fmt: skip
assert set(MODELS) == set(MODEL_NAMES)
