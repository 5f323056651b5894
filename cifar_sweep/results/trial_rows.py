"""Trials in lines, for tables and figures: what became of each, and its parameters under their own names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial

from cifar_sweep.config import Value
from cifar_sweep.results.figures import accuracy_of
from cifar_sweep.results.status import seconds_spent
from cifar_sweep.search import space
from cifar_sweep.search.study import STATE_NAMES


@dataclass(frozen=True)
class TrialRow:
    """One trial in a line.

    Attributes:
        number: the trial's.
        state: in Optuna's words.
        value: Optuna's: a complete trial's best validation accuracy, a pruned one's last.
        accuracy: the same, and of a trial that runs or failed the last one it reached.
        epochs_done: how many it was trained for.
        epochs: of its config.
        seconds: training time.
        params: its parameters under their own names; of a given point, the point's.
        label: of a point by hand.
        device: what trained it.
        worker: which process did, as in "worker 2"; empty where that is not known.
        started: when it was last taken up.
        ended: when it ended.
        seed: its own.
        weights_bytes: the size of its weights' file; None where there never was one.
        reason: why it ended early.
    """

    number: int
    state: str
    value: float | None
    accuracy: float | None
    epochs_done: int
    epochs: int | None
    seconds: float
    params: Mapping[str, Value]
    label: str
    device: str
    worker: str
    started: datetime | None
    ended: datetime | None
    seed: int | None
    weights_bytes: int | None
    reason: str


def rows_of(trials: Sequence[FrozenTrial]) -> list[TrialRow]:
    """The trials in lines, by number."""
    workers = worker_names(trials)
    return [_row(trial, workers.get(trial.number, "")) for trial in trials]


def _row(trial: FrozenTrial, worker: str) -> TrialRow:
    attributes = trial.user_attrs
    config: Mapping[str, Any] = attributes.get("config", {})
    weights: Mapping[str, Any] = attributes.get("weights", {})
    return TrialRow(
        number=trial.number,
        state=STATE_NAMES[trial.state],
        value=trial.value,
        accuracy=accuracy_of(trial),
        epochs_done=len(attributes.get("curve", [])),
        epochs=config.get("epochs"),
        seconds=seconds_spent(trial),
        params=attributes["given"] if "given" in attributes else space.decode(trial.params),
        label=str(attributes.get("label", "")),
        device=str(attributes.get("environment", {}).get("device", "")),
        worker=worker,
        started=trial.datetime_start,
        ended=trial.datetime_complete,
        seed=config.get("seed"),
        weights_bytes=weights.get("size"),
        reason=str(attributes.get("reason", "")),
    )


def worker_names(trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Who trained each trial last, by number: "worker 1" began first; the machine is named where there are several.

    A trial that its worker's death ended has none.
    """
    owned = [trial for trial in trials if trial.user_attrs.get("owner") and trial.datetime_start]
    owned.sort(key=lambda trial: (trial.datetime_start or datetime.min, trial.number))
    tokens = list(dict.fromkeys(trial.user_attrs["owner"]["token"] for trial in owned))
    several = len({trial.user_attrs["owner"]["host"] for trial in owned}) > 1
    names = {}
    for trial in owned:
        owner = trial.user_attrs["owner"]
        where = f" on {owner['host']}" if several else ""
        names[trial.number] = f"worker {tokens.index(owner['token']) + 1}{where}"
    return names
