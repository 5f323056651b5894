"""The VGG family of reports D and E (Simonyan and Zisserman, 2014), with one hidden classifier layer."""

from torch import nn

from cifar_sweep.config import Shape
from cifar_sweep.training.models.layers import conv, hidden, pool

# For each of the five blocks: its width and its number of convolutions. Report D's 16 and 19 are shorter than the
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


def vgg(shape: Shape) -> nn.Sequential:
    """Five blocks of 3x3 convolutions, each block halved, then 512, ``hidden_units``, classes."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in zip(_WIDTHS, VGG_LAYERS[shape.model], strict=True):
        for _ in range(count):
            layers += conv(shape, channels=(channels, width), kernel=3, padding=1)
            channels = width
        layers.append(pool())
    layers += [nn.Flatten(), *hidden(shape, inputs=512, outputs=shape.hidden_units)]
    return nn.Sequential(*layers, nn.Linear(shape.hidden_units, shape.classes))
