"""The network of reports A and C."""

from torch import nn

from cifar_sweep.config import Shape
from cifar_sweep.training.models.layers import conv, hidden, pool


def convnet(shape: Shape) -> nn.Sequential:
    """Three convolutions, each halved, then 512, 120, ``hidden_units`` (84 in A, 80 in C), classes."""
    return nn.Sequential(
        *conv(shape, channels=(3, 6), kernel=5, padding=2, padding_mode=shape.padding_mode),
        pool(),
        *conv(shape, channels=(6, 16), kernel=3, padding=1),
        pool(),
        *conv(shape, channels=(16, 32), kernel=3, padding=1),
        pool(),
        nn.Flatten(),
        *hidden(shape, inputs=512, outputs=120),
        *hidden(shape, inputs=120, outputs=shape.hidden_units),
        nn.Linear(shape.hidden_units, shape.classes),
    )
