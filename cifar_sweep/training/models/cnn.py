"""Report B's three-convolution network and report D's two-convolution one."""

from torch import nn

from cifar_sweep.config import Shape
from cifar_sweep.training.models.layers import conv, ordered, pool


def cnn3(shape: Shape) -> nn.Sequential:
    """Convolutions of 16, 32 (halved) and 64 channels (halved), then 4096, ``hidden_units`` (100), classes.

    Dropout2d follows each convolution's activation. In the report batch norm comes after both (from its run 008 on),
    and after the hidden layer too, where it acts on features.
    """
    return nn.Sequential(
        *conv(shape, channels=(3, 16), kernel=3, padding=1, dropout=nn.Dropout2d(0.0)),
        *conv(shape, channels=(16, 32), kernel=3, padding=1, dropout=nn.Dropout2d(0.0)),
        pool(),
        *conv(shape, channels=(32, 64), kernel=3, padding=1, dropout=nn.Dropout2d(0.0)),
        pool(),
        nn.Flatten(),
        nn.Linear(4096, shape.hidden_units),
        *ordered(shape, nn.BatchNorm1d(shape.hidden_units), dropout=nn.Dropout(0.0)),
        nn.Linear(shape.hidden_units, shape.classes),
    )


def cnn1(shape: Shape) -> nn.Sequential:
    """Convolutions of 64 and 256 channels, halved once, then one linear layer from 65,536 features to classes."""
    return nn.Sequential(
        *conv(shape, channels=(3, 64), kernel=3, padding=1),
        *conv(shape, channels=(64, 256), kernel=5, padding=2),
        pool(),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(65536, shape.classes),
    )
