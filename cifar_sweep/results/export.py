"""A trained network as a folder that others can use without us: config, weights, metrics, model card."""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.config import TrialConfig, Value
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.files import replace_file
from cifar_sweep.results.card import model_card
from cifar_sweep.runner import artifact_folder, trial_folder
from cifar_sweep.search.study import SweepStudy, commit, describe, versions
from cifar_sweep.training import checkpoint
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.data import ImageData
from cifar_sweep.training.device import device_name, prepare_process, resolve_device
from cifar_sweep.training.evaluate import evaluate
from cifar_sweep.training.models import build
from cifar_sweep.training.train import EpochInterruptedError, Run

ORIGIN_KEYS = ("study", "trial", "data", "data_source", "data_fingerprint", "device", "threads", "params")


@dataclass(frozen=True)
class Provenance:
    """Where an export comes from, and on what it was trained.

    `study` and `trial` name the trial; `params` are its searched parameters; `source` is where its data is found:
    synthetic images by their name, anything else as auto. `threads` and `device` are the training's:
    the same numbers come out again on the same machine with as many threads.
    """

    study: str
    trial: int
    params: Mapping[str, Value]
    source: str
    device: str
    threads: int
    versions: Mapping[str, str]
    commit: str | None


def pick(study: SweepStudy, number: int | None) -> FrozenTrial:
    """Trial `number`, or the best complete one.

    Raises:
        StudyError: there is none.
    """
    ranked = study.ranked()
    if number is None:
        if not ranked:
            raise StudyError(f"study {study.name!r} has no finished trial to export; run it first.")
        return ranked[0]
    chosen = next((trial for trial in ranked if trial.number == number), None)
    if chosen is None:
        there = ", ".join(str(trial.number) for trial in ranked) or "none"
        raise StudyError(f"study {study.name!r} has no complete trial {number}; complete are: {there}.")
    return chosen


def stored_weights(study: SweepStudy, trial: FrozenTrial, artifacts: Path) -> dict[str, torch.Tensor]:
    """The weights that were kept of a complete trial.

    Raises:
        StudyError: they were not kept, or the file is not the one that was written.
    """
    assert trial.state is TrialState.COMPLETE
    path = artifact_folder(artifacts, study) / trial_folder(trial.number) / "weights.safetensors"
    try:
        return checkpoint.load(path, sha256=trial.user_attrs["weights_sha256"])
    except FileNotFoundError:
        kept = ", ".join(str(kept.number) for kept in study.ranked()[: study.sweep.keep_weights])
        raise StudyError(
            f"{path}: there are no weights of trial {trial.number}; the best {study.sweep.keep_weights} trials keep "
            f"theirs ({kept}), in the folder that --artifacts names."
        ) from None
    except checkpoint.DamagedFileError as error:
        raise StudyError(f"{error}; export another trial with --trial.") from None


def write(
    folder: Path,
    config: TrialConfig,
    weights: dict[str, torch.Tensor],
    *,
    curve: Sequence[Mapping[str, Any]],
    data: ImageData,
    device: torch.device,
    provenance: Provenance,
) -> dict[str, Any]:
    """Measure the test set, once, in float32, and write the folder. Returns the metrics.

    Raises:
        DiskError: a file could not be written.
    """
    network = build(config.shape, seed=0)
    network.load_state_dict(weights)
    batches = Batches(data, device=device, normalize=config.shape.normalize, dtype=torch.float32)
    on_device = network.to(device).to(memory_format=torch.channels_last)
    test = evaluate(on_device, batches.test(), precision="fp32", device=device)
    best = max(curve, key=lambda point: (point["validation_accuracy"], -point["epoch"]))
    metrics = {
        "validation_accuracy": best["validation_accuracy"],
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_images": test.images,
        "best_epoch": best["epoch"],
        "study": provenance.study,
        "trial": provenance.trial,
        "params": dict(provenance.params),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "curve": [dict(point) for point in curve],
        "environment": {**provenance.versions, "device": provenance.device, "threads": provenance.threads},
        "data": {"name": data.name, "fingerprint": data.fingerprint, "classes": list(data.classes)},
        "commit": provenance.commit,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files = {
        "config.toml": config_toml(config, data=data, provenance=provenance),
        "metrics.json": json.dumps(metrics, indent=2) + "\n",
        "MODEL_CARD.md": model_card(config, network.cpu(), metrics=metrics, data=data),
    }
    checkpoint.save(weights, folder / "weights.safetensors")
    for name, text in files.items():
        replace_file(folder / name, text.encode())
    return metrics


def retrain(
    folder: Path,
    config: TrialConfig,
    origin: Mapping[str, Any],
    *,
    data: ImageData,
    device: str,
    threads: int,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Train an exported config from its first epoch and write the result as an export. None where `stop` said yes.

    Raises:
        StudyError: the training diverged before any epoch ended well.
        CifarSweepError: the device or the disk is at fault, or the data is too small.
    """
    on = resolve_device(device)
    used = prepare_process(on, threads=threads or int(origin["threads"]))
    run = Run([config], data, device=on)
    try:
        while run.epochs_done < config.shape.epochs:
            [result] = run.epoch(stop)
            say(
                f"epoch {result.epoch} of {config.shape.epochs}: train {result.train_accuracy:.2%}, "
                f"validation {result.validation_accuracy:.2%}, {result.seconds:.1f} s"
            )
            if result.diverged:
                raise StudyError(f"the training diverged in epoch {result.epoch}: the loss is not a finite number.")
    except EpochInterruptedError:
        return None
    provenance = Provenance(
        study=origin["study"],
        trial=origin["trial"],
        params=origin["params"],
        source=origin["data_source"],
        device=f"{on.type} ({device_name(on)})",
        threads=used,
        versions=versions(),
        commit=commit(),
    )
    weights = dict(run.member(0).state_dict())
    curve = [asdict(result) for result in run.members[0].history]
    return write(folder, config, weights, curve=curve, data=data, device=on, provenance=provenance)


def config_toml(config: TrialConfig, *, data: ImageData, provenance: Provenance) -> str:
    """A file that `cifar-sweep train` runs again."""
    lines = [
        f"# Trial {provenance.trial} of study {provenance.study}. Train it again: cifar-sweep train config.toml",
        "",
        "[config]",
        *(f"{name} = {_toml(value)}" for name, value in config.to_dict().items()),
        "",
        "[origin]",
        f"study = {_toml(provenance.study)}",
        f"trial = {provenance.trial}",
        f"data = {_toml(data.name)}",
        f"data_source = {_toml(provenance.source)}",
        f"data_fingerprint = {_toml(data.fingerprint)}",
        f"device = {_toml(provenance.device)}",
        f"threads = {provenance.threads}",
        "",
        "[origin.params]",
        *(f"{name} = {_toml(value)}" for name, value in provenance.params.items()),
    ]
    return "\n".join(lines) + "\n"


def _toml(value: Value) -> str:
    """A plain value in TOML: as in JSON, but for characters beyond 16 bits, which TOML does not take as two escapes."""
    return json.dumps(value, ensure_ascii=False)


def read_config(path: Path) -> tuple[TrialConfig, dict[str, Any]]:
    """The config and the origin of an exported ``config.toml``, or of the folder that holds it.

    Raises:
        UsageError: there is no such file, or it is not one of ours.
    """
    file = path / "config.toml" if path.is_dir() else path
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{file}: there is no such file; give the config.toml of an export, or its folder.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: not a readable TOML file: {error}.") from None
    if not isinstance(raw.get("config"), dict) or not isinstance(raw.get("origin"), dict):
        raise UsageError(f"{file}: not an exported config: it needs the tables [config] and [origin].")
    missing = [key for key in ORIGIN_KEYS if key not in raw["origin"]]
    if missing:
        raise UsageError(f"{file}: [origin]: {', '.join(missing)} is missing; it has all of {', '.join(ORIGIN_KEYS)}.")
    try:
        return TrialConfig.from_dict(raw["config"]), raw["origin"]
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def known_metrics(path: Path) -> dict[str, Any] | None:
    """The metrics that lie beside an exported config, if any."""
    file = (path if path.is_dir() else path.parent) / "metrics.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def provenance_of(study: SweepStudy, trial: FrozenTrial) -> Provenance:
    """The provenance of a study's trial."""
    attributes = trial.user_attrs
    # An export is handed on: a folder of its maker's is of no use to others, and none of their business.
    source = str(study.data["source"]) if str(study.data["source"]).startswith("synthetic") else "auto"
    return Provenance(
        study=study.name,
        trial=trial.number,
        params=describe(trial)["params"],
        source=source,
        device=attributes["device"],
        threads=int(attributes["threads"]),
        versions=attributes["versions"],
        commit=attributes["commit"],
    )
