"""A trained network of a study: which trial it comes from, its stored weights, and what it was trained on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifar_sweep.artifacts import Artifacts, DamagedArtifactError, MissingArtifactError
from cifar_sweep.config import TrialConfig
from cifar_sweep.curve import EpochResult, best_epoch
from cifar_sweep.errors import StudyError
from cifar_sweep.parameters import Value
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.study.verdict import verdict
from cifar_sweep.training import checkpoint
from cifar_sweep.training.images.data import ImageData, load_again
from cifar_sweep.training.models import build


class WeightsNotKeptError(StudyError):
    """The weights of a trial are not there."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a network comes from, and on what it was trained. An export keeps all of it, under these names."""

    study: str
    trial: int
    label: str = ""  # of a given point its label; else empty
    shortened: str = ""  # in what a given point was shortened, in words; else empty
    best_epoch: int  # the epoch that the weights are of, from 1
    validation_accuracy: float  # of that epoch, as a fraction
    data_source: str  # where the images are found: by name; those of a folder by ``auto``
    device: str
    threads: int
    group_sizes: tuple[int, ...] = ()  # how many trials were trained together, epoch by epoch
    # This one's place among them, from 0. With sizes, places and threads the same machine gives the same numbers again.
    group_places: tuple[int, ...] = ()
    commit: str  # of the source; empty where a package was installed
    versions: Mapping[str, str]  # of the packages and kernels that decide a number
    params: Mapping[str, Value]
    config_sha256: str = ""  # of the config that was trained; empty in exports that do not say
    changed: bool = False  # whether settings were changed since, so that it is another run than that trial's


def digest(config: TrialConfig) -> str:
    """A hash of all settings, in hex."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()


def facts_of_curve(curve: Sequence[EpochResult], *, metric: str) -> dict[str, Any]:
    """What a `Provenance` says of a learning curve that has a best epoch by this metric."""
    best = best_epoch(curve, metric)
    assert best is not None
    return {
        "best_epoch": best.epoch,
        "validation_accuracy": best.validation_accuracy,
        "group_sizes": tuple(result.group_size for result in curve),
        "group_places": tuple(result.group_place for result in curve),
    }


@dataclass(frozen=True)
class Trained:
    """A network whose training is over: the weights of its best epoch. The curve of a network read back is empty.

    `choice` are the remarks on a study's best trial, as `SweepStudy.remarks` makes them; none on any other.
    """

    config: TrialConfig
    weights: Mapping[str, torch.Tensor]
    provenance: Provenance
    curve: Sequence[EpochResult] = ()
    choice: Mapping[str, Any] = field(default_factory=dict)

    def network(self) -> nn.Module:
        """The network with its weights, on the CPU.

        Raises RuntimeError where they do not fit its config, StudyError where a user's own network is another by now.
        """
        shape = self.config.shape
        network = build(shape, seed=0, code=self.provenance.versions.get(shape.model))
        network.load_state_dict(dict(self.weights))
        return network


def images_of(study: SweepStudy, named: str | None = None, **how: Any) -> ImageData:
    """The images that a study was run on, as `load_again` finds them, which takes the rest; StudyError for others."""
    was = study.data["source"], study.data["fingerprint"]
    data = load_again(named, *was, side=study.sweep.image_size, skip_damaged=True, **how)
    study.check_data(name=data.name, fingerprint=data.fingerprint)
    return data


def pick(study: SweepStudy, number: int | None) -> TrialRecord:
    """The complete trial `number`, or the best one. Raises StudyError where there is none."""
    ranked = study.ranked()
    if number is None and not ranked:
        why = verdict(study, study.trials()) or "run it first"
        raise StudyError(f"study {study.name!r} has no finished trial to export; {why}.")
    chosen = next((trial for trial in ranked if number in (None, trial.number)), None)
    if chosen is None:
        there = ", ".join(str(trial.number) for trial in ranked) or "none"
        raise StudyError(f"study {study.name!r} has no complete trial {number}; complete are: {there}.")
    return chosen


def choose(study: SweepStudy, *, top: int, numbers: Sequence[int]) -> list[TrialRecord]:
    """The complete trials with these numbers; with none, the `top` best ones. Raises StudyError."""
    if numbers:
        return [pick(study, number) for number in numbers]
    ranked = study.ranked()
    if len(ranked) < top:
        raise StudyError(f"study {study.name!r} has {len(ranked)} complete trials, fewer than the {top} asked for.")
    return ranked[:top]


def trained_trial(study: SweepStudy, trial: TrialRecord, artifacts: Artifacts) -> Trained:
    """A complete trial with the weights kept of it. Raises WeightsNotKeptError; StudyError where they are damaged."""
    assert trial.weights is not None
    assert trial.config is not None
    choice = study.remarks() if trial.number == study.ranked()[0].number else {}
    try:
        weights = checkpoint.unpack(artifacts.get(trial.weights))
    except MissingArtifactError:
        kept = ", ".join(str(kept.number) for kept in study.kept())
        raise WeightsNotKeptError(
            f"{artifacts.shown}: there are no weights of trial {trial.number}; the best {study.sweep.keep_weights} "
            f"trials keep theirs ({kept}), where --artifacts says."
        ) from None
    except (DamagedArtifactError, checkpoint.StateError) as error:
        name = trial.weights.name
        raise StudyError(f"{artifacts.shown}: {name}: {error}; export another trial with --trial.") from None
    return Trained(trial.config, weights, provenance_of(study, trial), trial.curve, choice)


def provenance_of(study: SweepStudy, trial: TrialRecord) -> Provenance:
    """The provenance of a study's complete trial."""
    environment, source = trial.environment, str(study.data["source"])
    assert environment is not None
    assert trial.config is not None
    return Provenance(
        study=study.name,
        trial=trial.number,
        label=trial.label,
        shortened=trial.shortened,
        # An export is handed on: a folder of its maker's is of no use to others, and none of their business.
        data_source="auto" if Path(source).is_absolute() else source,
        device=environment.device,
        threads=environment.threads,
        commit=environment.commit or "",
        versions=environment.versions,
        params=trial.params,
        config_sha256=digest(trial.config),
        **facts_of_curve(trial.curve, metric=trial.config.shape.metric),
    )
