"""The model card: what the network is, how good, and ten lines that load it without this package."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.training.data import ImageData

IMAGES = "images = torch.rand(8, 3, 32, 32)  # yours go here"


def model_card(config: TrialConfig, network: nn.Sequential, *, metrics: Mapping[str, Any], data: ImageData) -> str:
    """The text of ``MODEL_CARD.md``."""
    knobs = "\n".join(f"| {name} | {value} |" for name, value in config.to_dict().items())
    environment = "\n".join(f"- {name}: {value}" for name, value in metrics["environment"].items())
    return f"""# {config.shape.model} on {data.name}

| | |
|---|---|
| validation accuracy (chosen by it) | {metrics["validation_accuracy"]:.4f} |
| test accuracy (measured once, at export, in float32) | {metrics["test_accuracy"]:.4f} |
| test images | {metrics["test_images"]} |
| parameters | {metrics["parameters"]:,} |
| data | {data.name}, fingerprint {data.fingerprint} |
| classes | {", ".join(data.classes)} |
| origin | {_origin(metrics)}, epoch {metrics["best_epoch"]} |

## Load it

With torch and safetensors alone; images are RGB, 32x32, from 0 to 1, channels first.

```python
{loading_code(config, network, data=data)}
```

## Train it again

`cifar-sweep train config.toml` gives the same numbers on the same machine, device and thread count.

| setting | value |
|---|---|
{knobs}

Environment:

{environment}
- commit: {metrics["commit"] or "an installed package"}
"""


def ensemble_card(
    configs: Sequence[TrialConfig], networks: Sequence[nn.Sequential], *, metrics: Mapping[str, Any], data: ImageData
) -> str:
    """The text of an ensemble's ``MODEL_CARD.md``."""
    members = "\n".join(
        f"| {config.shape.model} | {_origin(member)} | "
        f"{member['validation_accuracy']:.4f} | {member['test_accuracy']:.4f} |"
        for config, member in zip(configs, metrics["members"], strict=True)
    )
    return f"""# Ensemble of {len(configs)} networks on {data.name}

The mean of the members' probabilities. The members were chosen by validation accuracy.

| | |
|---|---|
| validation accuracy | {metrics["validation_accuracy"]:.4f} |
| test accuracy (measured once, in float32) | {metrics["test_accuracy"]:.4f} |
| test images | {metrics["test_images"]} |
| parameters | {metrics["parameters"]:,} |
| data | {data.name}, fingerprint {data.fingerprint} |
| classes | {", ".join(data.classes)} |

| member | origin | validation accuracy | test accuracy |
|---|---|---|---|
{members}

## Load it

With torch and safetensors alone; images are RGB, 32x32, from 0 to 1, channels first.

```python
{ensemble_code(configs, networks, data=data)}
```

`cifar-sweep train config.toml` trains all members again.
"""


def ensemble_code(configs: Sequence[TrialConfig], networks: Sequence[nn.Sequential], *, data: ImageData) -> str:
    """Python that builds the members, loads ``weights.safetensors`` and averages their probabilities."""
    members = [
        textwrap.fill(f"    Sequential({', '.join(map(layer_source, network))}),", width=240, break_long_words=False)
        for network in networks
    ]
    inputs = ["normalized" if config.shape.normalize else "images" for config in configs]
    terms = [
        f"members[{k}]({inputs[k]})" + ("" if config.shape.softmax else ".softmax(dim=1)")
        for k, config in enumerate(configs)
    ]
    normalized = f"normalized = {_normalized(data)}\n" if "normalized" in inputs else ""
    return f"""import torch
from safetensors.torch import load_file
from torch.nn import *
members = ModuleList([
{chr(10).join(members)}
])
members.load_state_dict(load_file("weights.safetensors"))
members.eval()
{IMAGES}
{normalized}probabilities = ({" + ".join(terms)}) / {len(terms)}"""


def _origin(metrics: Mapping[str, Any]) -> str:
    """Where a network comes from, in words."""
    label = f" ({metrics['label']})" if metrics["label"] else ""
    shortened = f", shortened: {metrics['shortened']}" if metrics["shortened"] else ""
    return f"study {metrics['study']}, trial {metrics['trial']}{label}{shortened}"


def _normalized(data: ImageData) -> str:
    """The expression that normalises `images`."""
    deviations = [value or 1.0 for value in data.channel_std]  # as `Batches` does with a constant channel
    mean, std = ([round(value, 6) for value in values] for values in (data.channel_mean, deviations))
    return f"(images - torch.tensor({mean}).view(3, 1, 1)) / torch.tensor({std}).view(3, 1, 1)"


def loading_code(config: TrialConfig, network: nn.Sequential, *, data: ImageData) -> str:
    """Python that builds the network and loads ``weights.safetensors`` from the current folder."""
    layers = textwrap.fill(", ".join(layer_source(layer) for layer in network), width=240, break_long_words=False)
    images = IMAGES + (f"\nimages = {_normalized(data)}" if config.shape.normalize else "")
    probabilities = "network(images)" if config.shape.softmax else "network(images).softmax(dim=1)"
    return f"""import torch
from safetensors.torch import load_file
from torch.nn import *
network = Sequential({layers})
network.load_state_dict(load_file("weights.safetensors"))
network.eval()
{images}
probabilities = {probabilities}"""


def layer_source(layer: nn.Module) -> str:
    """The expression that makes `layer`, with ``from torch.nn import *``.

    Raises:
        ValueError: a kind of layer that no network here has.
    """
    match layer:
        case nn.Conv2d():
            mode = "" if layer.padding_mode == "zeros" else f", padding_mode={layer.padding_mode!r}"
            return (
                f"Conv2d({layer.in_channels}, {layer.out_channels}, {layer.kernel_size[0]}, "
                f"padding={layer.padding[0]}{mode})"
            )
        case nn.Linear():
            return f"Linear({layer.in_features}, {layer.out_features})"
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            return f"{type(layer).__name__}({layer.num_features})"
        case nn.MaxPool2d():
            return f"MaxPool2d({layer.kernel_size})"
        case nn.Softmax():
            return f"Softmax(dim={layer.dim})"
        case nn.Dropout() | nn.Dropout2d() | nn.ReLU() | nn.LeakyReLU() | nn.Sigmoid() | nn.Tanh() | nn.Flatten():
            return f"{type(layer).__name__}()"
        case _:
            raise ValueError(f"no source is known for {layer}")
