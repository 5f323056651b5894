"""An exported network as Python that needs torch, safetensors and Pillow alone: ``predict.py``."""

from collections.abc import Sequence
from dataclasses import asdict
from inspect import getsource, signature
from pprint import pformat

from torch import nn

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.pages import rendered
from cifar_sweep.parameters import is_named, is_own
from cifar_sweep.pictures import decode
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models.named import SMALL, head_of, named_network

SCRIPT = "predict.py"
LINE_WIDTH = 120


def network_source(config: TrialConfig, network: nn.Module) -> str:
    """The expression that makes `config`'s network without its weights.

    A user's own network is made by the user's module, which lies beside the script. Raises ValueError where it is
    neither a user's own nor a chain of PyTorch's layers.
    """
    if is_own(config.shape.model) or is_named(config.shape.model):
        smaller = f"nn.AdaptiveAvgPool2d({config.shape.input_size}), " if config.shape.input_size else ""
        softmax = ", nn.Softmax(dim=1)" if config.shape.softmax else ""
        made = _made(config.shape.seen)
        return f"nn.Sequential({smaller}{made}{softmax})" if smaller or softmax else made
    if not isinstance(network, nn.Sequential):
        raise ValueError(f"no source is known for {config.shape.model}, a {type(network).__name__}")
    rows: list[str] = []
    for layer in network:
        if not rows or isinstance(layer, (nn.Conv2d, nn.Linear)):
            rows.append("   ")
        rows[-1] += f" {layer_source(layer)},"
    return "\n".join(["nn.Sequential(", *rows, ")"])


def _made(shape: Shape) -> str:
    """The expression that makes a network of a user's own, or one by name."""
    if is_named(shape.model):
        return f"named_network({shape.model!r}, {shape.classes}, {shape.image_size <= SMALL}, {head_of(shape)})"
    own = "".join(f", {name}={value!r}" for name, value in shape.own.items())
    return f"{shape.model.replace(':', '.')}(SimpleNamespace(**{asdict(shape)}){own})"


def layer_source(layer: nn.Module) -> str:
    """The expression that makes one of PyTorch's layers with a bias, with ``from torch import nn``.

    Only what is not PyTorch's default is said: other versions may not know all of the rest. Raises ValueError where it
    is not one of PyTorch's, or has layers inside.
    """
    if not hasattr(nn, type(layer).__name__) or list(layer.children()):
        raise ValueError(f"no source is known for {layer}")
    own = {name: (getattr(layer, name, None), each.default) for name, each in signature(type(layer)).parameters.items()}
    arguments = [
        f"{name}={value!r}"
        for name, (value, default) in own.items()
        if isinstance(value, (int, float, str, tuple)) and value != default
    ]
    return f"nn.{type(layer).__name__}({', '.join(arguments)})"


def script(configs: Sequence[TrialConfig], networks: Sequence[nn.Module], *, data: ImageData) -> str:
    """The text of ``predict.py``, for one network or for an ensemble.

    It says of image files what `cifar-sweep predict` says, and gives ``classify`` to programs that import it. Raises
    ValueError as `network_source` does.
    """
    text = rendered(
        "exports",
        "predict.py.jinja",
        own_modules=sorted({model.partition(":")[0] for config in configs if is_own(model := config.shape.model)}),
        named=getsource(named_network).strip() if any(is_named(config.shape.model) for config in configs) else "",
        decoder=getsource(decode).partition("\n")[2].strip(),  # without its docstring
        classes=pformat(list(data.classes), width=LINE_WIDTH, compact=True),
        mean=list(data.channel_mean),
        std=[value or 1.0 for value in data.channel_std],  # as `Batches` does with a constant channel
        side=configs[0].shape.image_size,
        shapes=[config.shape for config in configs],
        networks=[network_source(config, network) for config, network in zip(configs, networks, strict=True)],
    )
    return f"{text}\n"
