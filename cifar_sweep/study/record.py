"""One trial as everybody reads it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.config import Value
from cifar_sweep.sweep import space
from cifar_sweep.words import params_text

STATE_NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
SYNTHETIC_REMARK = "synthetic images say nothing about CIFAR-10, which the claims are about"


def describe(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's number, value and parameters under their own names.

    Of a given point, its label, too, and in what it was shortened, if it was.
    """
    own = ("label", "shortened") if "given" in trial.user_attrs else ()
    known = {name: trial.user_attrs[name] for name in own if trial.user_attrs.get(name)}
    return {"number": trial.number, "value": trial.value, "params": space.decode(trial.params), **known}


def given_point(trial: FrozenTrial) -> tuple[Any, Any]:
    """What tells given points apart: two reports may have run the same."""
    return trial.user_attrs.get("label"), trial.user_attrs.get("given")


def best_first(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials, best validation accuracy first; of equals the earlier one."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (-float(trial.value or 0), trial.number))


def count(trials: Sequence[FrozenTrial], *states: str) -> int:
    return sum(STATE_NAMES[trial.state] in states for trial in trials)


@dataclass(frozen=True)
class Saved:
    """What was not trained. `seconds` are a worker's, as if each trial had gone on at its own mean pace."""

    trials: int
    epochs: int
    seconds: float


def saved_by_pruning(trials: Sequence[FrozenTrial]) -> Saved:
    """The epochs that pruned trials were spared; one that was pruned before its first epoch counts without time."""
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED and "config" in trial.user_attrs]
    return Saved(len(pruned), sum(map(epochs_left, pruned)), sum(map(seconds_spared, pruned)))


def epochs_left(trial: FrozenTrial) -> int:
    """The epochs of its config that a trial was not trained for."""
    return max(int(trial.user_attrs["config"]["epochs"]) - len(trial.user_attrs.get("curve", [])), 0)


def seconds_spared(trial: FrozenTrial) -> float:
    """What `epochs_left` would have taken at the trial's mean pace; 0 where it has none."""
    curve = trial.user_attrs.get("curve", [])
    return epochs_left(trial) * sum(point["seconds"] for point in curve) / len(curve) if curve else 0.0


def is_synthetic(data: Iterable[str]) -> bool:
    """Whether any of these `data_words` names images that were drawn."""
    return any(name.startswith("synthetic") for name in data)


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


def accuracy_of(trial: FrozenTrial) -> float | None:
    """A complete trial's best validation accuracy, any other's last one, as a fraction; None before its first epoch."""
    if trial.state is TrialState.COMPLETE:
        return trial.value
    curve = trial.user_attrs.get("curve")
    return float(curve[-1]["validation_accuracy"]) if curve else None


def setting_text(described: Mapping[str, Any]) -> str:
    """What a trial (see `study.describe`) tried: its parameters; of a given point its label."""
    if "label" not in described:
        return params_text(described["params"])
    shortened = f", shortened: {described['shortened']}" if "shortened" in described else ""
    return f"{described['label']}{shortened}"


def seconds_spent(trial: FrozenTrial) -> float:
    """Training time of a trial so far, over all its holders, in seconds."""
    return float(sum(point["seconds"] for point in trial.user_attrs.get("curve", [])))
