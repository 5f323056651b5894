"""An exported network as Python that needs torch, safetensors and Pillow alone: ``predict.py``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pprint import pformat

from torch import nn

from cifar_sweep.config import TrialConfig, is_own
from cifar_sweep.exports.rendering import render
from cifar_sweep.training.images.data import ImageData

SCRIPT = "predict.py"
LINE_WIDTH = 120


@dataclass(frozen=True)
class NetworkSource:
    """Python that makes a network without its weights: an expression, and the import lines that it needs."""

    imports: tuple[str, ...]
    expression: str


def network_source(config: TrialConfig, network: nn.Module) -> NetworkSource:
    """Source of `config`'s network. A user's own network is made by the user's module.

    Raises:
        ValueError: the network has a layer that is not known here.
    """
    if is_own(config.shape.model):
        return _own_source(config)
    if not isinstance(network, nn.Sequential):
        raise ValueError(f"no source is known for {config.shape.model}, a {type(network).__name__}")
    rows: list[str] = []
    for layer in network:
        if not rows or isinstance(layer, (nn.Conv2d, nn.Linear)):
            rows.append("   ")
        rows[-1] += f" {layer_source(layer)},"
    return NetworkSource(("from torch import nn",), "\n".join(["nn.Sequential(", *rows, ")"]))


def _own_source(config: TrialConfig) -> NetworkSource:
    """A call of the user's function, whose module lies beside the script."""
    module, _, function = config.shape.model.partition(":")
    beside = module.rpartition(".")[2]
    made = f"{beside}.{function}(SimpleNamespace(**{asdict(config.shape)}))"
    if config.shape.softmax:
        made = f"nn.Sequential({made}, nn.Softmax(dim=1))"
    return NetworkSource(("from torch import nn", "from types import SimpleNamespace", f"import {beside}"), made)


def layer_source(layer: nn.Module) -> str:
    """The expression that makes `layer`, with ``from torch import nn``.

    Raises:
        ValueError: a kind of layer that no network here has.
    """
    match layer:
        case nn.Conv2d():
            mode = "" if layer.padding_mode == "zeros" else f", padding_mode={layer.padding_mode!r}"
            arguments = (
                f"{layer.in_channels}, {layer.out_channels}, {layer.kernel_size[0]}, padding={layer.padding[0]}{mode}"
            )
        case nn.Linear():
            arguments = f"{layer.in_features}, {layer.out_features}"
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            arguments = f"{layer.num_features}"
        case nn.MaxPool2d():
            arguments = f"{layer.kernel_size}"
        case nn.Softmax():
            arguments = f"dim={layer.dim}"
        case nn.Dropout() | nn.Dropout2d() | nn.ReLU() | nn.LeakyReLU() | nn.Sigmoid() | nn.Tanh() | nn.Flatten():
            arguments = ""
        case _:
            raise ValueError(f"no source is known for {layer}")
    return f"nn.{type(layer).__name__}({arguments})"


def script(configs: Sequence[TrialConfig], networks: Sequence[nn.Module], *, data: ImageData) -> str:
    """The text of ``predict.py``, for one network or for an ensemble.

    It says of image files what `cifar-sweep predict` says, and gives ``classify`` to programs that import it.

    Raises:
        ValueError: as `network_source` does.
    """
    sources = [network_source(config, network) for config, network in zip(configs, networks, strict=True)]
    return render(
        "predict.py.jinja",
        imports=sorted({"from safetensors.torch import load_file"}.union(*(source.imports for source in sources))),
        classes=pformat(list(data.classes), width=LINE_WIDTH, compact=True),
        mean=list(data.channel_mean),
        std=[value or 1.0 for value in data.channel_std],  # as `Batches` does with a constant channel
        shapes=[config.shape for config in configs],
        networks=[source.expression for source in sources],
    )
