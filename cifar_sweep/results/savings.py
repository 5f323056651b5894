"""What pruning has saved: the epochs that weak trials were not trained for, and their time."""

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState


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
