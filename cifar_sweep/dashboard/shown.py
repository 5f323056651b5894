"""One study as the dashboard shows it: short facts about it and its trials, notes, figures, and files to take away."""

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from cifar_sweep.artifacts import Stored
from cifar_sweep.dashboard.notes import study_note, trial_note
from cifar_sweep.figures.hand_figures import hand_beside_search
from cifar_sweep.figures.search_figures import learning_rate_by_batch
from cifar_sweep.figures.trial_figures import seconds_by_trial
from cifar_sweep.hand.compare import whole_sweep
from cifar_sweep.hand.rows import HandRow, hand_rows
from cifar_sweep.study.reading import ReadingStorage
from cifar_sweep.study.record import records, seconds_spent
from cifar_sweep.study.storage import OPEN
from cifar_sweep.study.study import SweepStudy, data_words

PLOT = "dashboard:plot_data:"
FIGURE_PIXELS = 450  # the dashboard's own place for a figure is as high
# The note and the figures are made anew when so many times what they took to be made has passed.
REST = 20
LONGEST_TEXT = 300
# optuna-dashboard draws the intermediate values of all trials in one figure; of thousands, for half a minute.
MOST_CURVES = 200


@dataclass(frozen=True)
class File:
    """A trial's file that can be taken away: `id` is made of what it is, `name` is for who takes it."""

    id: str
    name: str
    stored: Stored

    def attribute(self) -> tuple[str, str]:
        """The file as optuna-dashboard expects it among a trial's system attributes."""
        facts = {
            "artifact_id": self.id,
            "filename": self.name,
            "mimetype": "application/octet-stream",
            "encoding": None,
        }
        return f"artifacts:{self.id}", json.dumps(facts)


@dataclass(frozen=True)
class _Seen:
    """A trial, its files, and what is shown of it."""

    trial: FrozenTrial
    files: tuple[File, ...]
    with_curve: bool
    shown: FrozenTrial

    @cached_property
    def note(self) -> str:
        return trial_note(self.trial)


@dataclass(frozen=True)
class _Made:
    """A study's note and figures: of which trials and attributes they are, and until when they are not made anew."""

    of: tuple[object, Mapping[str, Any]]
    until: float
    note: str
    figures: dict[str, str]


class ShownStudy:
    """A study of ours. What is shown is as the database has it; note and figures may be some seconds old.

    Attributes:
        study: the study.
        attributes: its user attributes, as it was loaded from them.
    """

    def __init__(
        self, study: SweepStudy, reading: ReadingStorage, study_id: int, *, attributes: Mapping[str, Any]
    ) -> None:
        self.study = study
        self.attributes = attributes
        self._reading = reading
        self._id = study_id
        self._seen: dict[int, _Seen] = {}
        self._changes = 0
        self._made: _Made | None = None
        self._lock = threading.RLock()

    def take(self, study: SweepStudy, attributes: Mapping[str, Any]) -> None:
        """The same study, whose attributes have changed."""
        self.study, self.attributes = study, attributes

    def facts(self) -> dict[str, Any]:
        """What is shown as the study's user attributes, in place of the data of our programs."""
        sweep, versions = self.study.sweep, self.attributes.get("versions", {})
        facts = {
            "description": sweep.description,
            "data": data_words(self.study),
            "state": self.attributes.get("state", OPEN),
            "reason": self.attributes.get("reason"),
            "budget": self.study.budget,
            "sampler": sweep.sampler.name,
            "pruner": sweep.pruner.name,
            "priority": self.study.priority,
            "artifacts": self.study.artifacts,
            "commit": self.attributes.get("commit"),
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        }
        return {name: fact for name, fact in facts.items() if fact not in (None, "")}

    def trials(self) -> list[FrozenTrial]:
        """All trials as they are shown, by number."""
        return [seen.shown for seen in self._look().values()]

    def trial_note(self, trial_id: int) -> str:
        """The note on a trial; empty where there is no such trial."""
        seen = self._seen.get(trial_id) or self._look().get(trial_id)
        return seen.note if seen else ""

    def file(self, trial_id: int, file_id: str) -> File | None:
        """A file of a trial; None where there is none (any more)."""
        seen = self._look().get(trial_id)
        return next((file for file in seen.files if file.id == file_id), None) if seen else None

    def has(self, file_id: str) -> bool:
        """Whether a trial that was seen has this file."""
        return any(file.id == file_id for seen in list(self._seen.values()) for file in seen.files)

    def _look(self) -> dict[int, _Seen]:
        """Everything that is shown of each trial, by the trial's key. What has not changed is not made again."""
        with self._lock:
            trials = self._reading.trials(self._id, most_with_reports=MOST_CURVES)
            before = self._seen
            if len(trials) == len(before) and all(
                key in before and before[key].trial is trial for key, trial in trials.items()
            ):
                return before
            kept = {trial.number for trial in self.study.kept(records(list(trials.values())))}
            with_curve = len(trials) <= MOST_CURVES
            self._seen = {
                key: _see(
                    key,
                    trial,
                    _files(self.study, trial, kept=trial.number in kept),
                    with_curve=with_curve,
                    before=before.get(key),
                )
                for key, trial in trials.items()
            }
            self._changes += 1
            return self._seen

    def note_and_figures(self) -> tuple[str, dict[str, str]]:
        """The note on the study, and its figures as JSON by name."""
        with self._lock:
            trials = [seen.trial for seen in self._look().values()]
            of = (self._changes, self.attributes)
            made, now = self._made, time.monotonic()
            if made is None or (made.of != of and now >= made.until):
                claims = _claims(self.study)
                note = study_note(self.study, trials, claims, with_curves=len(trials) <= MOST_CURVES)
                figures = _figures(self.study, trials, claims)
                end = time.monotonic()
                made = self._made = _Made(of, end + REST * (end - now), note, figures)
            return made.note, made.figures


def _see(
    trial_id: int, trial: FrozenTrial, files: tuple[File, ...], *, with_curve: bool, before: _Seen | None
) -> _Seen:
    if before is not None and before.trial is trial and (before.files, before.with_curve) == (files, with_curve):
        return before
    shown = FrozenTrial(
        number=trial.number,
        state=trial.state,
        value=None,
        values=trial.values,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=_trial_facts(trial),
        system_attrs=trial.system_attrs | dict(file.attribute() for file in files),
        intermediate_values=trial.intermediate_values if with_curve else {},
        trial_id=trial_id,
    )
    return _Seen(trial, files, with_curve, shown)


def _trial_facts(trial: FrozenTrial) -> dict[str, Any]:
    """What is shown as a trial's user attributes: short texts and numbers, in place of the data of our programs."""
    own = trial.user_attrs
    config, curve = own.get("config", {}), own.get("curve", [])
    best: dict[str, Any] = max(curve, key=lambda point: (point["validation_accuracy"], -point["epoch"]), default={})
    facts = {
        "label": own.get("label"),
        "reason": own.get("reason"),
        "device": own.get("environment", {}).get("device"),
        "seconds": round(seconds_spent(trial), 1),
        "epochs_done": len(curve),
        "best_epoch": best.get("epoch"),
        "batch_size": config.get("batch_size"),
        "epochs": config.get("epochs"),
    }
    facts = {name: fact for name, fact in facts.items() if fact is not None and name not in trial.params}
    # What somebody has added; a traceback is too long, and its end is in the note.
    others = {name: value for name, value in own.items() if isinstance(value, (str, int, float)) and value != ""}
    others = {name: value for name, value in others.items() if name not in facts and name != "traceback"}
    return {name: fact[:LONGEST_TEXT] if isinstance(fact, str) else fact for name, fact in (facts | others).items()}


def _files(study: SweepStudy, trial: FrozenTrial, *, kept: bool) -> tuple[File, ...]:
    """A trial's weights, if they are kept, and the checkpoints of one that is not finished."""
    own = trial.user_attrs
    begin = f"{study.name}-{trial.number}"
    named = [(f"{begin}-weights", own["weights"])] if kept and "weights" in own else []
    if not trial.state.is_finished():
        named += [(f"{begin}-checkpoint-{saved['epoch']:04d}", saved) for saved in own.get("checkpoints", [])]
    return tuple(_file(name, Stored(saved["name"], saved["sha256"], saved["size"])) for name, saved in named)


def _file(name: str, stored: Stored) -> File:
    digest = hashlib.sha256(f"{stored.name}:{stored.sha256}".encode()).hexdigest()
    return File(digest[:32], f"{name}.safetensors", stored)


def _claims(study: SweepStudy) -> list[HandRow]:
    """What the reports claim of their hand runs."""
    sweep = study.sweep if study.sweep.given else whole_sweep("reports")
    return hand_rows(sweep, None) if sweep else []


def _figures(study: SweepStudy, trials: Sequence[FrozenTrial], claims: Sequence[HandRow]) -> dict[str, str]:
    """Our figures of a study, as JSON by name."""
    begun = [trial for trial in records(trials) if trial.curve]
    if not begun:
        return {}
    data = data_words(study)
    figures = {"seconds-by-trial": seconds_by_trial(begun, data=data)}
    if not study.sweep.given:  # what was searched
        figures["hand-beside-search"] = hand_beside_search(begun, claims, data=data)
    if "learning_rate" in study.sweep.space:
        figures["learning-rate-by-batch"] = learning_rate_by_batch(begun, data=data)
    return {name: _json(figure) for name, figure in figures.items()}


def _json(figure: go.Figure) -> str:
    return str(figure.update_layout(height=FIGURE_PIXELS).to_json())
