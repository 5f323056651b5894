"""Networks of torchvision and of timm by name, with a stem for small images; exports have a copy of `named_network`."""

import hashlib
import urllib.error
from functools import lru_cache
from pathlib import Path

from torch import Tensor, nn

from cifar_sweep.config import Shape
from cifar_sweep.errors import StudyError, UsageError, nearest, one_line
from cifar_sweep.training.checkpoint import StateError, unpack

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads that some networks are trained with, and that are left out here
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


def by_name(shape: Shape, *, code: str | None = None, begin: bool = False) -> nn.Module:
    """The network that ``shape.model`` names; with `begin` with pretrained weights, where the shape says so.

    UsageError where there is none of this name, timm is not installed, it cannot be made for the images, or pretrained
    weights cannot be had; StudyError where those of a file are not those of the fingerprint `code`.
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
    if begin and shape.weights_file != "none":
        _load_file(network, shape, code)
    elif begin and shape.pretrained:
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


def file_fingerprint(path: str) -> str:
    """The fingerprint of a file of weights: 16 hex digits of its SHA-256. UsageError where it cannot be read."""
    return hashlib.sha256(_read(path)).hexdigest()[:16]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        wanted = "accepted: a safetensors file, by its path from where the command is run"
        raise UsageError(f"weights_file {path!r}: it cannot be read: {error.strerror}; {wanted}.") from None


def _load_file(network: nn.Module, shape: Shape, code: str | None) -> None:
    """Give a network the weights of a file; its last layer, as `PartRates` has it, only where they fit.

    They are named as the library names them, or as here, where dropout stands before the last linear layer.
    """
    where, content = f"weights_file {shape.weights_file!r}", _read(shape.weights_file)
    if code not in (None, hashlib.sha256(content).hexdigest()[:16]):
        raise StudyError(f"{where}: it is another file by now; restore it.")
    try:
        stored = unpack(content)
    except StateError as error:
        raise UsageError(f"{where}: {one_line(error)}; accepted: a state dict as safetensors.") from None
    mine = network.state_dict()
    head = [name for name, _ in network.named_parameters()][-1].rpartition(".")[0]
    plain = f"{head.removesuffix('.1')}."
    weights = {
        f"{head}.{name.removeprefix(plain)}" if name.startswith(plain) and name not in mine else name: value
        for name, value in stored.items()
        if not name.startswith(AUXILIARY)
    }
    fitting = {name: value for name, value in weights.items() if name in mine and mine[name].shape == value.shape}
    for name in mine:
        if name not in fitting and not name.startswith(f"{head}.") and not name.endswith("num_batches_tracked"):
            there = f"is of {list(weights[name].shape)}" if name in weights else "is missing"
            raise UsageError(f"{where}: {name} {there}; {shape.model} takes {list(mine[name].shape)} there.")
    for name in weights:
        if name not in mine:
            raise UsageError(f"{where}: {shape.model} has nothing named {name!r}; {nearest(name, mine)[:300]}.")
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
