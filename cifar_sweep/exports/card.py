"""The model card: what the network is, how good, and how to use it without this package."""

from collections.abc import Mapping, Sequence
from typing import Any

from cifar_sweep.config import TrialConfig
from cifar_sweep.training.images.data import ImageData

USE = """## Use it

`python predict.py cat.jpg` says what pictures show; it needs torch, safetensors and pillow alone.
From Python, where this folder is the current one:

```python
import torch
from predict import classify
images = torch.rand(8, 3, 32, 32)  # yours go here: RGB from 0 to 1
probabilities = classify(images)
```

`model.onnx`, where this folder has one, needs not even those: it takes `images`, float32 [n, 3, 32, 32], RGB from 0
to 1, and gives `probabilities` [n, classes]. The names of the classes are in its metadata."""


def model_card(config: TrialConfig, *, metrics: Mapping[str, Any], data: ImageData) -> str:
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

{USE}

## Train it again

`cifar-sweep train config.toml` gives the same numbers on the same machine, device and thread count.

| setting | value |
|---|---|
{knobs}

Environment:

{environment}
- commit: {metrics["commit"] or "an installed package"}
"""


def ensemble_card(configs: Sequence[TrialConfig], *, metrics: Mapping[str, Any], data: ImageData) -> str:
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

{USE}

`cifar-sweep train config.toml` trains all members again.
"""


def _origin(metrics: Mapping[str, Any]) -> str:
    """Where a network comes from, in words."""
    label = f" ({metrics['label']})" if metrics["label"] else ""
    shortened = f", shortened: {metrics['shortened']}" if metrics["shortened"] else ""
    return f"study {metrics['study']}, trial {metrics['trial']}{label}{shortened}"
