"""One study as the dashboard shows it: short facts about it and its trials, notes, figures, and files to take away."""

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cifar_sweep.artifacts import Stored
from cifar_sweep.dashboard.notes import study_note, trial_note
from cifar_sweep.figures.hand_figures import hand_beside_search
from cifar_sweep.figures.search_figures import learning_rate_by_batch
from cifar_sweep.figures.trial_figures import seconds_by_trial
from cifar_sweep.hand.compare import whole_sweep
from cifar_sweep.hand.rows import HandRow, hand_rows, names_claims
from cifar_sweep.study.reading import ReadingStorage, laid_over
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.storage import OPEN
from cifar_sweep.study.study import SweepStudy, data_words

PLOT = "dashboard:plot_data:"
FIGURE_PIXELS = 450  # the dashboard's own place for a figure is as high
# The note and the figures are made anew when so many times what they took to be made has passed.
REST = 20
LONGEST_TEXT = 300
BYTES = "application/octet-stream"
# optuna-dashboard draws the intermediate values of all trials in one figure; of thousands, for half a minute.
MOST_CURVES = 200


@dataclass(frozen=True)
class File:
    """A trial's file that can be taken away: `id` is made of what it is, `name` is for who takes it."""

    name: str
    stored: Stored

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(f"{self.stored.name}:{self.stored.sha256}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class TrialView:
    """A trial, its files, and the Optuna trial that is shown for it."""

    trial: TrialRecord
    files: tuple[File, ...]
    with_curve: bool

    @cached_property
    def shown(self) -> Any:
        kind = {"mimetype": BYTES, "encoding": None}
        artifacts = {
            f"artifacts:{file.id}": json.dumps({"artifact_id": file.id, "filename": file.name} | kind)
            for file in self.files
        }
        shown = laid_over(self.trial.frozen, lambda _, system: (_facts(self.trial), system | artifacts))
        if not self.with_curve:
            shown.intermediate_values = {}
        return shown


class StudyView:
    """A study of ours. What is shown is as the database has it; note and figures may be some seconds old.

    `attributes` are the user attributes that the study was loaded from.
    """

    def __init__(self, study: SweepStudy, reading: ReadingStorage, key: int, *, attributes: Mapping[str, Any]) -> None:
        self.study, self.attributes = study, attributes
        self._reading, self._key = reading, key
        self._seen: dict[int, TrialView] = {}
        self._changes = 0
        # The note and the figures; what they were made of; when they may be made anew.
        self._made: tuple[str, dict[str, str]] | None = None
        self._made_of: tuple[int, Mapping[str, Any]] | None = None
        self._made_until = 0.0
        self._lock = threading.RLock()

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

    def trials(self) -> list[Any]:
        """All trials as they are shown, by number."""
        return [seen.shown for seen in self._look().values()]

    def trial_note(self, trial_id: int) -> str:
        """The note on a trial; empty where there is no such trial."""
        seen = self._seen.get(trial_id) or self._look().get(trial_id)
        return trial_note(seen.trial, self.study.hopes.get(seen.trial.number)) if seen else ""

    def file(self, trial_id: int, file_id: str) -> File | None:
        """A file of a trial; None where there is none (any more)."""
        seen = self._look().get(trial_id)
        return next((file for file in seen.files if file.id == file_id), None) if seen else None

    def has(self, file_id: str) -> bool:
        """Whether a trial that was seen has this file."""
        return any(file.id == file_id for seen in list(self._seen.values()) for file in seen.files)

    def _look(self) -> dict[int, TrialView]:
        """Everything that is shown of each trial, by the trial's key. What has not changed is not made again."""
        with self._lock:
            before = self._seen
            trials = {
                key: before[key].trial if key in before and before[key].trial.frozen is trial else TrialRecord(trial)
                for key, trial in self._reading.trials(self._key, most_with_reports=MOST_CURVES).items()
            }
            if [seen.trial for seen in before.values()] == list(trials.values()):
                return before
            own = [trial for trial in trials.values() if not trial.earlier]
            kept = {trial.number for trial in self.study.kept(own)}
            now = {
                key: TrialView(trial, _files(self.study, trial, kept=trial.number in kept), len(trials) <= MOST_CURVES)
                for key, trial in trials.items()
            }
            self._seen = {key: before[key] if before.get(key) == seen else seen for key, seen in now.items()}
            self._changes += 1
            return self._seen

    def note_and_figures(self) -> tuple[str, dict[str, str]]:
        """The note on the study, and its figures as JSON by name."""
        with self._lock:
            trials = [seen.trial for seen in self._look().values() if not seen.trial.earlier]
            of, begun = (self._changes, self.attributes), time.monotonic()
            if self._made is None or (self._made_of != of and begun >= self._made_until):
                claims = _claims(self.study)
                note = study_note(self.study, trials, claims, with_curves=len(trials) <= MOST_CURVES)
                self._made, self._made_of = (note, _figures(self.study, trials, claims)), of
                end = time.monotonic()
                self._made_until = end + REST * (end - begun)
            return self._made


def _facts(trial: TrialRecord) -> dict[str, Any]:
    """What is shown as a trial's user attributes: short texts and numbers, in place of the data of our programs."""
    facts = {
        "label": trial.label,
        "reason": trial.reason,
        "device": trial.device,
        "seconds": round(trial.seconds, 1),
        "epochs_done": trial.epochs_done,
        "best_epoch": trial.best.epoch if trial.best else None,
        "batch_size": trial.config.shape.batch_size if trial.config else None,
        "epochs": trial.epochs,
    }
    facts = {name: fact for name, fact in facts.items() if fact not in (None, "") and name not in trial.frozen.params}
    # What somebody has added; a traceback is too long, and its end is in the note.
    others = {name: value for name, value in trial.plain_attributes.items() if name != "traceback"}
    shown = facts | others | facts
    return {name: fact[:LONGEST_TEXT] if isinstance(fact, str) else fact for name, fact in shown.items()}


def _files(study: SweepStudy, trial: TrialRecord, *, kept: bool) -> tuple[File, ...]:
    """A trial's weights, if they are kept, and the checkpoints of one that is not finished."""
    files = {"weights": trial.weights} if kept and trial.weights else {}
    for saved in [] if trial.is_finished else trial.checkpoints:
        files[f"checkpoint-{saved['epoch']:04d}"] = Stored(saved["name"], saved["sha256"], saved["size"])
    return tuple(File(f"{study.name}-{trial.number}-{kind}.safetensors", stored) for kind, stored in files.items())


def _claims(study: SweepStudy) -> list[HandRow]:
    """What the reports claim of their hand runs."""
    if not names_claims(study):
        return []
    sweep = study.sweep if study.sweep.given else whole_sweep("reports")
    return hand_rows(sweep, None) if sweep else []


def _figures(study: SweepStudy, trials: Sequence[TrialRecord], claims: Sequence[HandRow]) -> dict[str, str]:
    """Our figures of a study, as JSON by name."""
    begun = [trial for trial in trials if trial.curve]
    if not begun:
        return {}
    data = data_words(study)
    figures = {"seconds-by-trial": seconds_by_trial(begun, data=data)}
    if not study.sweep.given:  # what was searched
        figures["hand-beside-search"] = hand_beside_search(begun, claims, data=data)
    if "learning_rate" in study.sweep.space:
        figures["learning-rate-by-batch"] = learning_rate_by_batch(begun, data=data)
    return {name: figure.update_layout(height=FIGURE_PIXELS).to_json() for name, figure in figures.items()}
