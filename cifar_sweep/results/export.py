"""A trained network as a folder that others can use without us: config, weights, metrics, model card, script."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.artifacts import Artifacts, DamagedArtifactError, MissingArtifactError, Stored
from cifar_sweep.config import TrialConfig, Value, is_own
from cifar_sweep.errors import StudyError
from cifar_sweep.files import replace_file
from cifar_sweep.keeping import UnusableError, restore
from cifar_sweep.own_model import fingerprint, fingerprints, source_of
from cifar_sweep.results.card import ensemble_card, model_card
from cifar_sweep.results.classifier import Classifier, accuracy, loss, predict, resident
from cifar_sweep.results.source import SCRIPT, script
from cifar_sweep.search.provenance import commit, versions
from cifar_sweep.search.study import SweepStudy, describe
from cifar_sweep.training import checkpoint
from cifar_sweep.training.compiled import KERNELS, kernels_name
from cifar_sweep.training.data import ImageData
from cifar_sweep.training.device import device_name, prepare_process, resolve_device
from cifar_sweep.training.train import EpochInterruptedError, Run


@dataclass(frozen=True)
class Provenance:
    """Where an export comes from, and on what it was trained.

    `study` and `trial` name the trial, and `label` a given point; `shortened` says in what that was cut short;
    `params` are its searched parameters; `source` is where its data is found: synthetic images by their name, anything
    else as auto. `threads` and `device` are the training's; `group_sizes` are how many trials were trained together in
    each epoch, and `group_places` this one's place among them: with these the same numbers come out again on the same
    machine.
    """

    study: str
    trial: int
    params: Mapping[str, Value]
    source: str
    device: str
    threads: int
    versions: Mapping[str, str]
    commit: str | None
    label: str = ""
    shortened: str = ""
    group_sizes: tuple[int, ...] = ()
    group_places: tuple[int, ...] = ()


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


def stored_weights(study: SweepStudy, trial: FrozenTrial, artifacts: Artifacts) -> dict[str, torch.Tensor]:
    """The weights that were kept of a complete trial.

    Raises:
        WeightsNotKeptError: they were not kept, or not here.
        StudyError: the file is not the one that was written.
    """
    assert trial.state is TrialState.COMPLETE
    stored = Stored(**trial.user_attrs["weights"])
    try:
        return checkpoint.unpack(artifacts.get(stored))
    except MissingArtifactError:
        kept = ", ".join(str(kept.number) for kept in study.kept())
        raise WeightsNotKeptError(
            f"{artifacts.shown}: there are no weights of trial {trial.number}; the best {study.sweep.keep_weights} "
            f"trials keep theirs ({kept}), where --artifacts says."
        ) from None
    except (DamagedArtifactError, checkpoint.DamagedFileError) as error:
        raise StudyError(f"{artifacts.shown}: {stored.name}: {error}; export another trial with --trial.") from None


class WeightsNotKeptError(StudyError):
    """The weights of a trial are not there."""


@dataclass(frozen=True)
class Trained:
    """A training that is over: its best weights, and its curve epoch by epoch (see `EpochResult`)."""

    config: TrialConfig
    weights: Mapping[str, torch.Tensor]
    curve: Sequence[Mapping[str, Any]]
    provenance: Provenance

    @property
    def best(self) -> Mapping[str, Any]:
        """The epoch of the best validation accuracy; of equals the first."""
        return max(self.curve, key=lambda point: (point["validation_accuracy"], -point["epoch"]))


def classifier_of(members: Sequence[Trained], data: ImageData) -> Classifier:
    """The trained networks as one, for images like `data`."""
    return Classifier(
        [member.config for member in members],
        [member.weights for member in members],
        mean=data.channel_mean,
        std=data.channel_std,
    )


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


def train_again(
    config: TrialConfig,
    provenance: Provenance,
    *,
    data: ImageData,
    device: str,
    threads: int,
    unfinished: Path,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Trained | None:
    """Train an exported config from its first epoch, or on from where this was stopped. None where `stop` said yes.

    Args:
        config: what to train.
        provenance: of the export.
        data: the images.
        device: as `resolve_device` takes it.
        threads: CPU threads; 0 takes the provenance's number.
        unfinished: a folder for the checkpoint of a training that is stopped.
        stop: asked before every step.
        say: takes a line per epoch.

    Raises:
        StudyError: the training diverged before any epoch ended well.
        CifarSweepError: the device or the disk is at fault, or the data is too small.
    """
    on = resolve_device(device)
    used = prepare_process(on, threads=threads or provenance.threads)
    groups = list(zip(provenance.group_sizes, provenance.group_places, strict=True))
    run, place = Run([config], data, device=on), 0
    used_then, used_now = provenance.versions.get("kernels", "torch"), kernels_name(on)
    if used_then != used_now and max(provenance.group_sizes, default=1) > 1:
        say(
            f"a group of trials was trained by other kernels ({used_then}) than here ({used_now}): the last digits may "
            "differ" + (f"; {KERNELS}=torch trains as then" if used_then == "torch" else "")
        )
    identity = json.dumps([config.to_dict(), data.fingerprint, on.type, used, used_now]).encode()
    last = unfinished / f".training-{hashlib.sha256(identity).hexdigest()[:16]}.safetensors"
    try:
        restore(run, 0, last.read_bytes)
        say(f"going on after epoch {run.epochs_done}")
    except UnusableError as error:
        if last.exists():
            say(f"{last}: {error}; starting again from the first epoch")
    try:
        while run.epochs_done < config.shape.epochs:
            # What is missing was trained alone.
            size, then = groups[run.epochs_done] if run.epochs_done < len(groups) else (1, 0)
            run, place = _among_copies(run, place, size, then, data, device=on), then
            result = run.epoch(stop)[place]
            say(
                f"epoch {result.epoch} of {config.shape.epochs}: train {result.train_accuracy:.2%}, "
                f"validation {result.validation_accuracy:.2%}, {result.seconds * size:.1f} s"
            )
            if result.diverged:
                raise StudyError(f"the training diverged in epoch {result.epoch}: the loss is not a finite number.")
            checkpoint.save(run.state(place), last)
    except EpochInterruptedError:
        return None
    here = replace(
        provenance,
        device=f"{on.type} ({device_name(on)})",
        threads=used,
        versions=versions() | {"kernels": used_now} | fingerprints([config.shape.model]),
        commit=commit(),
        group_sizes=tuple(result.group_size for result in run.members[place].history),
        group_places=tuple(result.group_place for result in run.members[place].history),
    )
    curve = [asdict(result) for result in run.members[place].history]
    return Trained(config, run.member(place).state_dict(), curve, here)


def _among_copies(run: Run, ours: int, size: int, place: int, data: ImageData, *, device: torch.device) -> Run:
    """The run of member `ours`, at `place` in a group of `size` whose others are copies of it.

    Kernels may round by the size of a group and the place in it, never by what the others are.
    """
    others = [k for k in range(len(run.members)) if k != ours]
    if size <= len(run.members):
        run.keep([*others[:place], ours, *others[place : size - 1]])
        return run
    together = Run([run.members[ours].config] * size, data, device=device)
    for k in range(size if run.epochs_done else 0):
        together.restore(k, run.state(ours))
    return together


def discard_unfinished(folder: Path) -> None:
    """Remove the checkpoints of trainings that `folder` now holds the result of."""
    for path in folder.glob(".training-*.safetensors"):
        path.unlink(missing_ok=True)


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


def trained_trial(study: SweepStudy, trial: FrozenTrial, artifacts: Artifacts) -> Trained:
    """A complete trial with the weights that were kept of it. Raises StudyError as `stored_weights` does."""
    return Trained(
        TrialConfig.from_dict(trial.user_attrs["config"]),
        stored_weights(study, trial, artifacts),
        trial.user_attrs["curve"],
        provenance_of(study, trial),
    )


def provenance_of(study: SweepStudy, trial: FrozenTrial) -> Provenance:
    """The provenance of a study's trial."""
    attributes, environment = trial.user_attrs, trial.user_attrs["environment"]
    # An export is handed on: a folder of its maker's is of no use to others, and none of their business.
    source = str(study.data["source"]) if str(study.data["source"]).startswith("synthetic") else "auto"
    return Provenance(
        study=study.name,
        trial=trial.number,
        params=describe(trial)["params"],
        source=source,
        device=environment["device"],
        threads=int(environment["threads"]),
        versions=environment["versions"],
        commit=environment["commit"],
        label=attributes.get("label", ""),
        shortened=attributes.get("shortened", ""),
        group_sizes=tuple(int(result.get("group_size", 1)) for result in attributes["curve"]),
        group_places=tuple(int(result.get("group_place", 0)) for result in attributes["curve"]),
    )
