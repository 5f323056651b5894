"""What pruning saved is counted from the curves of pruned trials alone."""

from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.study.record import Saved, saved_by_pruning


def trial(state: TrialState, *, epochs: int, seconds: list[float], **attributes: Any) -> FrozenTrial:
    curve = [{"epoch": epoch, "seconds": each} for epoch, each in enumerate(seconds, start=1)]
    value = 0.5 if state is TrialState.COMPLETE else None
    return optuna.create_trial(
        state=state, value=value, user_attrs={"config": {"epochs": epochs}, "curve": curve} | attributes
    )


def test_the_epochs_that_pruned_trials_were_spared() -> None:
    trials = [
        trial(TrialState.PRUNED, epochs=10, seconds=[2.0, 4.0]),
        trial(TrialState.PRUNED, epochs=5, seconds=[1.0]),
        trial(TrialState.COMPLETE, epochs=10, seconds=[2.0] * 10),
        trial(TrialState.RUNNING, epochs=10, seconds=[2.0]),
    ]
    saved = saved_by_pruning(trials)
    assert (saved.trials, saved.epochs) == (2, 12)
    assert saved.seconds == pytest.approx(8 * 3.0 + 4 * 1.0)


def test_without_a_pace_there_is_no_time() -> None:
    pruned = [trial(TrialState.PRUNED, epochs=10, seconds=[]), optuna.create_trial(state=TrialState.PRUNED)]
    assert saved_by_pruning(pruned) == Saved(trials=1, epochs=10, seconds=0.0)
