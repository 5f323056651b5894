"""A trained network as a folder that others can use without us: config, weights, metrics, model card, script."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cifar_sweep.config import Value, is_own
from cifar_sweep.errors import StudyError
from cifar_sweep.exports.card import ensemble_card, model_card
from cifar_sweep.exports.classifier import Classifier, accuracy, loss, predict, resident
from cifar_sweep.exports.source import SCRIPT, script
from cifar_sweep.exports.trained import Provenance, Trained, classifier_of
from cifar_sweep.files import replace_file
from cifar_sweep.training import checkpoint
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models.own import fingerprint, source_of


def write(folder: Path, trained: Trained, *, data: ImageData, device: torch.device) -> dict[str, Any]:
    """Measure the test set, once, in float32, and write the folder. Returns the metrics.

    Raises:
        DiskError: a file could not be written.
    """
    beside = _own_files([trained])
    classifier = classifier_of([trained], data)
    test = predict(classifier, resident(data, device=device).test(), device=device)
    provenance = trained.provenance
    metrics = {
        "validation_accuracy": trained.best["validation_accuracy"],
        "test_accuracy": accuracy(test.mean, test.labels),
        "test_loss": loss(test.mean, test.labels),
        "test_images": len(test.labels),
        "best_epoch": trained.best["epoch"],
        **_origin(provenance),
        "parameters": _parameters(classifier),
        "curve": [dict(point) for point in trained.curve],
        **_surroundings(provenance, data),
    }
    put(
        folder,
        trained.weights,
        metrics=metrics,
        config=config_toml(trained, data=data),
        card=model_card(trained.config, metrics=metrics, data=data),
        code=script(classifier.configs, list(classifier.members), data=data),
        beside=beside,
    )
    return metrics


def write_ensemble(
    folder: Path, members: Sequence[Trained], *, data: ImageData, device: torch.device
) -> dict[str, Any]:
    """Measure the members' mean probabilities, and write them as one folder. Returns the metrics.

    The test set is read once, for the ensemble and its members together.

    Raises:
        DiskError: a file could not be written.
    """
    beside = _own_files(members)
    classifier = classifier_of(members, data)
    batches = resident(data, device=device)
    validation = predict(classifier, batches.validation(), device=device)
    test = predict(classifier, batches.test(), device=device)
    metrics = {
        "validation_accuracy": accuracy(validation.mean, validation.labels),
        "test_accuracy": accuracy(test.mean, test.labels),
        "test_loss": loss(test.mean, test.labels),
        "test_images": len(test.labels),
        "parameters": _parameters(classifier),
        "members": [
            {
                **_origin(member.provenance),
                "best_epoch": member.best["epoch"],
                "validation_accuracy": accuracy(validation.member(k), validation.labels),
                "test_accuracy": accuracy(test.member(k), test.labels),
            }
            for k, member in enumerate(members)
        ],
        **_surroundings(members[0].provenance, data),
    }
    put(
        folder,
        {f"{k}.{name}": value for k, member in enumerate(members) for name, value in member.weights.items()},
        metrics=metrics,
        config=ensemble_toml(members, data=data),
        card=ensemble_card(classifier.configs, metrics=metrics, data=data),
        code=script(classifier.configs, list(classifier.members), data=data),
        beside=beside,
    )
    return metrics


def _own_files(members: Sequence[Trained]) -> dict[str, bytes]:
    """The files of users' own networks that the script imports, by name.

    Raises:
        StudyError: a file is not the one that its network was trained with, or is named like one of an export.
        UsageError: it is not to be found.
    """
    found = {}
    for member in members:
        model, provenance = member.config.shape.model, member.provenance
        if is_own(model):
            path = source_of(model)
            if provenance.versions.get(model, "") != fingerprint(model):
                raise StudyError(
                    f"model {model!r}: {path} is not what trial {provenance.trial} was trained with; restore the file."
                )
            name = f"{model.partition(':')[0].rpartition('.')[2]}.py"
            if name == SCRIPT:
                raise StudyError(f"model {model!r}: an export has a {SCRIPT} of its own; name the module otherwise.")
            found[name] = path.read_bytes()
    return found


def _origin(provenance: Provenance) -> dict[str, Any]:
    return {name: getattr(provenance, name) for name in ("study", "trial", "label", "shortened")} | {
        "params": dict(provenance.params)
    }


def _parameters(classifier: Classifier) -> int:
    return sum(parameter.numel() for parameter in classifier.parameters())


def _surroundings(provenance: Provenance, data: ImageData) -> dict[str, Any]:
    return {
        "environment": {**provenance.versions, "device": provenance.device, "threads": provenance.threads},
        "data": {"name": data.name, "fingerprint": data.fingerprint, "classes": list(data.classes)},
        "commit": provenance.commit,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def put(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    *,
    metrics: Mapping[str, Any],
    config: str,
    card: str,
    code: str,
    beside: Mapping[str, bytes],
) -> None:
    """Write an export's files, the weights first: a folder with a config has all it speaks of."""
    # One that is there already is of the network that is being replaced.
    (folder / "model.onnx").unlink(missing_ok=True)
    digest = checkpoint.save(dict(weights), folder / "weights.safetensors")
    texts = {
        "metrics.json": json.dumps(metrics, indent=2) + "\n",
        "MODEL_CARD.md": card,
        SCRIPT: code,
        "config.toml": f"{config}\n[weights]\nsha256 = {_toml(digest)}\n",
    }
    for name, content in {**beside, **{name: text.encode() for name, text in texts.items()}}.items():
        replace_file(folder / name, content)


def config_toml(trained: Trained, *, data: ImageData) -> str:
    """A file that `cifar-sweep train` runs again."""
    provenance = trained.provenance
    return "\n".join(
        [
            f"# Trial {provenance.trial} of study {provenance.study}. Train it again: cifar-sweep train config.toml",
            *_tables(trained, data=data, below=""),
        ]
    )


def ensemble_toml(members: Sequence[Trained], *, data: ImageData) -> str:
    """As `config_toml`, a [[member]] for each network of an ensemble."""
    lines = ["# The mean of the members' probabilities. Train them again: cifar-sweep train config.toml"]
    for member in members:
        lines += ["", "[[member]]", *_tables(member, data=data, below="member.")]
    return "\n".join(lines)


def _tables(trained: Trained, *, data: ImageData, below: str) -> list[str]:
    provenance = trained.provenance
    return [
        "",
        f"[{below}config]",
        *(f"{name} = {_toml(value)}" for name, value in trained.config.to_dict().items()),
        "",
        f"[{below}origin]",
        f"study = {_toml(provenance.study)}",
        f"trial = {provenance.trial}",
        f"label = {_toml(provenance.label)}",
        f"shortened = {_toml(provenance.shortened)}",
        f"best_epoch = {trained.best['epoch']}",
        f"validation_accuracy = {trained.best['validation_accuracy']}",
        f"data = {_toml(data.name)}",
        f"data_source = {_toml(provenance.source)}",
        f"data_fingerprint = {_toml(data.fingerprint)}",
        f"classes = {_toml(list(data.classes))}",
        f"channel_mean = {_toml(list(data.channel_mean))}",
        f"channel_std = {_toml(list(data.channel_std))}",
        f"device = {_toml(provenance.device)}",
        f"threads = {provenance.threads}",
        f"group_sizes = {_toml(list(provenance.group_sizes))}",
        f"group_places = {_toml(list(provenance.group_places))}",
        f"commit = {_toml(provenance.commit or '')}",
        "",
        f"[{below}origin.versions]",
        *(f"{_toml(name)} = {_toml(version)}" for name, version in provenance.versions.items()),
        "",
        f"[{below}origin.params]",
        *(f"{name} = {_toml(value)}" for name, value in provenance.params.items()),
        "",
    ]


def _toml(value: Value | list[str] | list[float] | list[int]) -> str:
    """A plain value, or a list of such, in TOML: as in JSON.

    But for characters beyond 16 bits, which TOML does not take as two escapes.
    """
    return json.dumps(value, ensure_ascii=False)
