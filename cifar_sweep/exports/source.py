"""An exported network as Python that needs torch, safetensors and Pillow alone: ``predict.py``."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import nn

from cifar_sweep.config import TrialConfig, is_own
from cifar_sweep.training.images.data import ImageData

SCRIPT = "predict.py"
WIDTH = 120


@dataclass(frozen=True)
class NetworkSource:
    """Python that makes a network, without its weights: the import lines that it needs, and an expression."""

    imports: tuple[str, ...]
    expression: str


def network_source(config: TrialConfig, network: nn.Module) -> NetworkSource:
    """What makes `network`, which is `config`'s, anew. One of a user's own is made by the user's module.

    Raises:
        ValueError: it is not made of layers that are known here.
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
    imports = sorted({"from safetensors.torch import load_file"}.union(*(source.imports for source in sources)))
    together = ",\n".join(textwrap.indent(source.expression, "    ") for source in sources)
    network = sources[0].expression if len(sources) == 1 else f"nn.ModuleList([\n{together},\n])"
    # What users named, classes among it, stands in the script as literals only: it is code that others run.
    return f'''"""Says what pictures show: python predict.py cat.jpg [more.png]. Needs torch, safetensors and pillow."""

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # torch misses it; nothing here does

import torch
from PIL import Image, ImageOps
{chr(10).join(imports)}

CLASSES = [
{_listed(data.classes)}
]
WEIGHTS = Path(__file__).with_name("weights.safetensors")
{_normalisation(configs, data)}network = {network}
try:
    network.load_state_dict(load_file(WEIGHTS))
except Exception as error:
    sys.exit(f"error: {{WEIGHTS}}: the weights cannot be read: {{str(error).splitlines()[0]}}")
network.eval()


@torch.no_grad()
def classify(images):
    """Probabilities [n, classes] of images [n, 3, 32, 32], RGB from 0 to 1."""
    return {_probabilities(configs)}


def read_picture(path):
    """An image file as [1, 3, 32, 32], RGB from 0 to 1: upright, the whole of it resized."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(1, 32, 32, 3).permute(0, 3, 1, 2) / 255


def main(paths):
    if not paths:
        print("usage: python predict.py PICTURE [PICTURE ...]", file=sys.stderr)
        sys.exit(2)
    for path in paths:
        try:
            image = read_picture(path)
        except Exception as error:
            sys.exit(f"error: {{path}}: the picture cannot be read: {{getattr(error, 'strerror', None) or error}}.")
        ranked = sorted(zip(CLASSES, classify(image)[0].tolist()), key=lambda entry: -entry[1])
        print(f"{{path}}: " + ", ".join(f"{{name}} {{probability:.2%}}" for name, probability in ranked[:3]))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a name that the terminal's encoding lacks is no reason to stop
    main(sys.argv[1:])
'''


def _listed(classes: Sequence[str]) -> str:
    """The names as literals, as many as fit on each line. `textwrap` would break them at their spaces."""
    rows = ["   "]
    for name in map(repr, classes):
        if rows[-1].strip() and len(rows[-1]) + len(name) + 2 > WIDTH:
            rows.append("   ")
        rows[-1] += f" {name},"
    return "\n".join(rows)


def _normalisation(configs: Sequence[TrialConfig], data: ImageData) -> str:
    """The lines that define what pixels are normalised with, where any network takes them so."""
    if not any(config.shape.normalize for config in configs):
        return ""
    deviations = [value or 1.0 for value in data.channel_std]  # as `Batches` does with a constant channel
    mean, std = (f"torch.tensor({list(values)}).view(3, 1, 1)" for values in (data.channel_mean, deviations))
    return f"MEAN = {mean}\nSTD = {std}\n"


def _probabilities(configs: Sequence[TrialConfig]) -> str:
    """The expression for the mean probabilities of `images`."""
    name = "network" if len(configs) == 1 else "network[{}]"
    terms = [
        f"{name.format(k)}({'(images - MEAN) / STD' if config.shape.normalize else 'images'})"
        + ("" if config.shape.softmax else ".softmax(dim=1)")
        for k, config in enumerate(configs)
    ]
    if len(terms) == 1:
        return terms[0]
    return "torch.stack([\n" + "".join(f"        {term},\n" for term in terms) + "    ]).mean(dim=0)"
