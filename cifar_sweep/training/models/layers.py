"""The two blocks that every network here is made of."""

from typing import Literal

from torch import nn

from cifar_sweep.config import Shape

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def ordered(shape: Shape, norm: nn.Module, *, dropout: nn.Module | None = None) -> list[nn.Module]:
    """What follows a layer: norm, activation, dropout, with the norm last where the shape says so."""
    middle = [ACTIVATIONS[shape.activation]()] + ([dropout] if dropout is not None else [])
    if not shape.batch_norm:
        return middle
    return [norm, *middle] if shape.norm_position == "before_activation" else [*middle, norm]


def conv(
    shape: Shape,
    *,
    channels: tuple[int, int],
    kernel: int,
    padding: int,
    padding_mode: Literal["zeros", "reflect"] = "zeros",
    dropout: nn.Module | None = None,
) -> list[nn.Module]:
    """A convolution of stride 1 from ``channels[0]`` to ``channels[1]``, with what follows it."""
    layer = nn.Conv2d(*channels, kernel, padding=padding, padding_mode=padding_mode)
    return [layer, *ordered(shape, nn.BatchNorm2d(channels[1]), dropout=dropout)]


def hidden(shape: Shape, *, inputs: int, outputs: int) -> list[nn.Module]:
    """A fully connected hidden layer with its activation and dropout, without batch norm."""
    return [nn.Linear(inputs, outputs), ACTIVATIONS[shape.activation](), nn.Dropout(0.0)]


def pool() -> nn.Module:
    """Max pooling that halves height and width."""
    return nn.MaxPool2d(2)
