"""Trained networks as a folder that others can use without us: config, weights, metrics, model card, script."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
import torch

from cifar_sweep.errors import StudyError
from cifar_sweep.exports.classifier import Classifier, accuracy, measured, predict
from cifar_sweep.exports.source import SCRIPT, script
from cifar_sweep.exports.trained import Provenance, Trained
from cifar_sweep.files import replace_file
from cifar_sweep.pages import rendered
from cifar_sweep.parameters import is_own
from cifar_sweep.training import checkpoint
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models.user_code import user_code

LARGEST_LOSS = 0.005  # of validation accuracy, by weights in half precision


def write(
    folder: Path, members: Sequence[Trained], *, data: ImageData, device: torch.device, half: bool = False
) -> dict[str, Any]:
    """Measure the test set, once, in float32, and write the folder: of one network, or of several as an ensemble.

    With `half` the weights are rounded to float16 first. Returns the metrics, as in ``metrics.json``: accuracies are
    fractions, losses nats. Raises StudyError where a network is a user's own, and its file is not the one that it was
    trained with, or where rounded weights lose more than `LARGEST_LOSS`.
    """
    beside = _own_files(members)
    members, rounded = _in_half(members, data=data, device=device) if half else (members, {})
    classifier = Classifier(members, mean=data.channel_mean, std=data.channel_std)
    metrics = _metrics(members, classifier, data=data, device=device) | rounded
    # Of an ensemble each tensor has its member's number before its name, as in `0.weight`.
    named = [(f"{k}." if len(members) > 1 else "", member.weights) for k, member in enumerate(members)]
    weights = checkpoint.pack({f"{begin}{name}": value for begin, own in named for name, value in own.items()})
    config = config_toml(members, data=data, sha256=hashlib.sha256(weights).hexdigest())
    texts = {
        "metrics.json": json.dumps(metrics, indent=2) + "\n",
        "MODEL_CARD.md": rendered(
            "exports", "MODEL_CARD.md.jinja", configs=classifier.configs, metrics=metrics, data=data
        ),
        SCRIPT: script(classifier.configs, list(classifier.members), data=data),
        "config.toml": config,
    }
    # A file of that name is of the network that is being replaced.
    (folder / "model.onnx").unlink(missing_ok=True)
    # The weights come first: a folder with a config has all that the config speaks of.
    replace_file(folder / "weights.safetensors", weights)
    encoded = {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    for name, content in {**beside, **encoded}.items():
        replace_file(folder / name, content)
    return metrics


def _in_half(
    members: Sequence[Trained], *, data: ImageData, device: torch.device
) -> tuple[list[Trained], dict[str, Any]]:
    """The networks with weights in float16, and what that costs on the validation images."""
    rounded = [
        replace(each, weights={k: v.half() if v.is_floating_point() else v for k, v in each.weights.items()})
        for each in members
    ]
    batches = Batches(data, device=device)

    def validated(networks: Sequence[Trained]) -> float:
        classifier = Classifier(networks, mean=data.channel_mean, std=data.channel_std)
        found = predict(classifier, batches.validation(), device=device)
        return accuracy(found.mean, found.labels)

    before, after = validated(members), validated(rounded)
    if before - after > LARGEST_LOSS:
        loss = f"the validation accuracy would be {after:.2%} instead of {before:.2%}"
        raise StudyError(f"--half: in half precision {loss}; export it without --half.")
    return rounded, {"half": {"validation_accuracy": after, "validation_accuracy_float32": before}}


def _metrics(
    members: Sequence[Trained], classifier: Classifier, *, data: ImageData, device: torch.device
) -> dict[str, Any]:
    """The metrics of one network or of an ensemble; the test set is read once, for it and its members together."""
    batches, first = Batches(data, device=device), members[0].provenance
    test = predict(classifier, batches.test(), device=device)
    common = {
        **measured(test),
        "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        "environment": {**first.versions, "device": first.device, "threads": first.threads},
        "data": {"name": data.name, "fingerprint": data.fingerprint, "classes": list(data.classes)},
        "commit": first.commit or None,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if len(members) == 1:
        told = {**_origin(first), **members[0].choice, "curve": [asdict(result) for result in members[0].curve]}
        return {"validation_accuracy": first.validation_accuracy, **common, **told}
    validation = predict(classifier, batches.validation(), device=device)
    each = [
        _origin(member.provenance)
        | {"validation_accuracy": accuracy(validation.probabilities[k], validation.labels)}
        | {"test_accuracy": accuracy(test.probabilities[k], test.labels)}
        for k, member in enumerate(members)
    ]
    return {"validation_accuracy": accuracy(validation.mean, validation.labels), **common, "members": each}


def _origin(provenance: Provenance) -> dict[str, Any]:
    kept = ("study", "trial", "label", "shortened", "params", "best_epoch", "changed")
    return {name: value for name, value in asdict(provenance).items() if name in kept}


def _own_files(members: Sequence[Trained]) -> dict[str, bytes]:
    """The files of users' own networks that the script imports, by their path."""
    found: dict[str, bytes] = {}
    for member in members:
        model, provenance = member.config.shape.model, member.provenance
        if is_own(model):
            try:
                found |= user_code(model, provenance.versions.get(model, "")).files
            except StudyError as error:
                raise StudyError(f"trial {provenance.trial} was trained with other files: {error}") from None
            if SCRIPT in found:
                raise StudyError(f"model {model!r}: an export has a {SCRIPT} of its own; name the module otherwise.")
    return found


def config_toml(members: Sequence[Trained], *, data: ImageData, sha256: str) -> str:
    """A file that `cifar-sweep train` runs again: [config] and [origin], or a [[member]] with both for each of several.

    `sha256` is the weights'. Half a surrogate pair, which no TOML file can hold, is written as in ``\\udcff``.
    """
    images = {
        "data": data.name,
        "data_fingerprint": data.fingerprint,
        "classes": data.classes,
        "channel_mean": data.channel_mean,
        "channel_std": data.channel_std,
    }
    tables = [{"config": each.config.to_dict(), "origin": asdict(each.provenance) | images} for each in members]
    content = {**(tables[0] if len(tables) == 1 else {"member": tables}), "weights": {"sha256": sha256}}
    text = f"# Train it again: cifar-sweep train config.toml\n\n{tomli_w.dumps(content)}"
    return re.sub("[\ud800-\udfff]", lambda half: rf"\\u{ord(half[0]):x}", text)
