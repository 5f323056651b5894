"""Networks of torchvision and of timm by name, with a stem for small images; exports have a copy of `named_network`."""

import urllib.error
from functools import lru_cache

from torch import Tensor, nn

from cifar_sweep.config import Shape
from cifar_sweep.errors import UsageError, nearest, one_line

SMALL = 64  # pixels: up to these an image loses too much in a stem that is made for 224


def named_network(name: str, classes: int, small: bool, hidden: tuple[int, ...] = ()) -> nn.Module:
    """A network such as torchvision:resnet18 or timm:resnet18, without weights, for so many classes.

    Of small images a first convolution that skips places takes them all, and the pooling right after it goes; one that
    cuts images into patches stays. Dropout stands before the last linear layer, and hidden ones of these widths.
    """
    library, _, network_name = name.partition(":")
    network: nn.Module
    if library == "timm":
        import timm

        network = timm.create_model(network_name, pretrained=False, num_classes=classes)
    else:
        import torchvision

        extra = {"aux_logits": False, "init_weights": True} if network_name in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(network_name, weights=None, num_classes=classes, **extra)
    layers = [
        (place, layer) for place, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.MaxPool2d))
    ]
    if small and layers[0][1].stride not in ((1, 1), layers[0][1].kernel_size):
        layers[0][1].stride = (1, 1)
        if isinstance(layers[1][1], nn.MaxPool2d):
            parent, _, child = layers[1][0].rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Identity())
    linear = [(place, layer) for place, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    for place, last in linear[-1:]:
        parent, _, child = place.rpartition(".")
        head: list[nn.Module] = [nn.Dropout(0.0)]
        inputs = last.in_features
        for width in hidden:
            head += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.0)]
            inputs = width
        end = nn.Linear(inputs, classes) if hidden else last
        setattr(network.get_submodule(parent), child, nn.Sequential(*head, end))
    if hidden and not linear:
        raise ValueError("it ends with no linear layer, before which others could stand")
    return network


def by_name(shape: Shape, *, begin: bool = False) -> nn.Module:
    """The network that ``shape.model`` names; with `begin` with pretrained weights, where the shape says so.

    UsageError where there is none of this name, timm is not installed, it cannot be made for the images, or pretrained
    weights cannot be had.
    """
    library, _, name = shape.model.partition(":")
    try:
        if name not in (known := names_of(library)):
            raise UsageError(f"model {shape.model!r}: {library} has no such network; {nearest(name, known)[:300]}.")
        network = named_network(shape.model, shape.classes, shape.image_size <= SMALL, head_of(shape))
    except ImportError as error:
        wanted = f"{library} is not installed: {one_line(error)}; accepted: pip install {library}"
        raise UsageError(f"model {shape.model!r}: {wanted}.") from error
    except (ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
        raise UsageError(f"model {shape.model!r}: it cannot be made: {one_line(error)}.") from error
    if shape.pretrained and begin:
        _load(network, shape.model)
    for stage in _stages(network)[: shape.freeze]:
        stage.requires_grad_(False)
    return network


def head_of(shape: Shape) -> tuple[int, ...]:
    """The widths of the hidden layers before the last one."""
    return (shape.head_units,) * shape.head_layers


def names_of(library: str) -> list[str]:
    """The networks that a library has; ImportError where it is not installed."""
    if library == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _stages(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that can be frozen, from the first; its last layer is none of them.

    They are its children with parameters; of one that has most of all parameters and is a chain, its own children.
    """
    whole = sum(parameter.numel() for parameter in network.parameters())
    stages: list[nn.Module] = []
    for child in network.children():
        size = sum(parameter.numel() for parameter in child.parameters())
        parts = list(child.children()) if isinstance(child, nn.Sequential) and 2 * size > whole else [child]
        stages += [part for part in parts if any(True for _ in part.parameters())]
    return stages[:-1]


def _load(network: nn.Module, model: str) -> None:
    """Give a network the pretrained weights of its library, but for layers of another shape, such as the last one."""
    mine = network.state_dict()
    try:
        weights = _pretrained(model)
    except (urllib.error.URLError, OSError, RuntimeError, ValueError) as error:
        wanted = f"its pretrained weights cannot be had: {one_line(error)}; accepted: pretrained = false"
        raise UsageError(f"model {model!r}: {wanted}.") from error
    fitting = {name: value for name, value in weights.items() if name in mine and mine[name].shape == value.shape}
    network.load_state_dict(mine | fitting)


@lru_cache(maxsize=2)
def _pretrained(model: str) -> dict[str, Tensor]:
    """The weights that a library has for a network, downloaded where they are not there yet, and checked by hash."""
    library, _, name = model.partition(":")
    if library == "timm":
        import timm

        return dict(timm.create_model(name, pretrained=True).state_dict())
    import torchvision

    weights = torchvision.models.get_model_weights(name)
    if not list(weights):
        raise ValueError("torchvision has none for it")
    return dict(weights.DEFAULT.get_state_dict(progress=False, check_hash=True))
