"""A trained network of a study: which trial it comes from, its stored weights, and what it was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.artifacts import Artifacts, DamagedArtifactError, MissingArtifactError, Stored
from cifar_sweep.config import TrialConfig, Value
from cifar_sweep.errors import StudyError
from cifar_sweep.exports.classifier import Classifier
from cifar_sweep.study.record import describe
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.training import checkpoint
from cifar_sweep.training.images.data import ImageData


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
    except (DamagedArtifactError, checkpoint.StateError) as error:
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
