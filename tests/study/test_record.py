"""What a trial's record knows: rules that everybody reads in one place."""

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from cifar_sweep.config import TrialConfig
from cifar_sweep.study.record import Saved, TrialRecord, is_reserved, saved_by_pruning


def record(state: TrialState, *, epochs: int, seconds: list[float]) -> TrialRecord:
    config = TrialConfig.from_params({"epochs": epochs}, classes=10, precision="fp32", data_seed=0, seed=0)
    curve = [point(epoch, each) for epoch, each in enumerate(seconds, start=1)]
    value = 0.5 if state is TrialState.COMPLETE else None
    attributes = {"config": config.to_dict(), "curve": curve}
    return TrialRecord(optuna.create_trial(state=state, value=value, user_attrs=attributes))


def point(epoch: int, seconds: float = 1.0) -> dict[str, Any]:
    losses = dict.fromkeys(("train_loss", "validation_loss", "learning_rate"), 0.1)
    return {"epoch": epoch, "train_accuracy": 0.5, "validation_accuracy": 0.5, "seconds": seconds} | losses


def test_the_epochs_that_pruned_trials_were_spared() -> None:
    trials = [
        record(TrialState.PRUNED, epochs=10, seconds=[2.0, 4.0]),
        record(TrialState.PRUNED, epochs=5, seconds=[1.0]),
        record(TrialState.COMPLETE, epochs=10, seconds=[2.0] * 10),
        record(TrialState.RUNNING, epochs=10, seconds=[2.0]),
    ]
    saved = saved_by_pruning(trials)
    assert (saved.trials, saved.epochs) == (2, 12)
    assert saved.seconds == pytest.approx(8 * 3.0 + 4 * 1.0)


def test_the_epochs_that_frozen_trials_are_spared() -> None:
    waiting = record(TrialState.WAITING, epochs=12, seconds=[2.0])
    frozen = record(TrialState.WAITING, epochs=12, seconds=[2.0])
    frozen.frozen.user_attrs["until"] = 1
    assert saved_by_pruning([waiting, frozen]) == Saved(trials=0, epochs=11, seconds=22.0, frozen=1)


def test_without_a_pace_there_is_no_time() -> None:
    begun = record(TrialState.PRUNED, epochs=10, seconds=[])
    never_begun = TrialRecord(optuna.create_trial(state=TrialState.PRUNED))
    assert saved_by_pruning([begun, never_begun]) == Saved(trials=1, epochs=10, seconds=0.0)


def test_a_curve_is_one_attribute_or_one_for_each_epoch_or_both() -> None:
    whole = [point(epoch) for epoch in (1, 2, 3)]
    apart = {f"epoch:{each['epoch']}": each for each in whole}
    for attributes in (
        {"curve": whole},
        apart,
        {"curve": whole[:1]} | apart,
        {"curve": whole[:2], "epoch:3": whole[2]},
    ):
        trial = TrialRecord(optuna.create_trial(state=TrialState.RUNNING, user_attrs=attributes))
        assert (trial.points, trial.epochs_done, trial.seconds) == (whole, 3, 3.0)
        assert [result.epoch for result in trial.curve] == [1, 2, 3]
        assert all(map(is_reserved, attributes))
    assert not is_reserved("mine")
