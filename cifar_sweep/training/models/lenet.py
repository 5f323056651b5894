"""Report E's LeNet."""

from torch import nn

from cifar_sweep.config import Shape
from cifar_sweep.training.models.layers import conv, hidden, pool


def lenet(shape: Shape) -> nn.Sequential:
    """Two 5x5 convolutions without padding, then 400, 120, ``hidden_units`` (84 in the report), classes."""
    return nn.Sequential(
        *conv(shape, channels=(3, 6), kernel=5, padding=0),
        pool(),
        *conv(shape, channels=(6, 16), kernel=5, padding=0),
        pool(),
        nn.Flatten(),
        *hidden(shape, inputs=400, outputs=120),
        *hidden(shape, inputs=120, outputs=shape.hidden_units),
        nn.Linear(shape.hidden_units, shape.classes),
    )
