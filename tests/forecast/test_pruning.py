"""At which epochs a pruner looks, and what share of the trials is expected to go on."""

import random
from typing import Any

import optuna
import pytest

from cifar_sweep.forecast.pruning import expected_survival, looks, startup
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.strategy import build_pruner
from cifar_sweep.sweep.sweep import Sweep

RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def sweep(pruner: Any, *, space: dict[str, Any] = RATE) -> Sweep:
    return parse({"name": "test", "fixed": {"model": "lenet"}, "pruner": pruner, "space": space}, where="test")


@pytest.mark.parametrize(
    ("pruner", "epochs", "expected"),
    [
        ("none", 5, []),
        ("median", 5, [1, 2, 3, 4]),
        ({"name": "median", "warmup_steps": 2}, 5, [3, 4]),
        ("median", 1, []),
        ({"name": "percentile", "percentile": 10.0}, 3, [1, 2]),
        ({"name": "asha", "min_steps": 2, "reduction_factor": 3}, 30, [2, 6, 18]),
        ({"name": "hyperband", "min_steps": 1, "reduction_factor": 2}, 9, [1, 2, 4, 8]),
    ],
)
def test_the_epochs_at_which_a_pruner_looks(pruner: Any, epochs: int, expected: list[int]) -> None:
    assert looks(sweep(pruner), epochs) == expected


def test_where_epochs_are_searched_a_look_is_after_a_tenth_of_the_schedule() -> None:
    searched = sweep({"name": "median", "warmup_steps": 1}, space=RATE | {"epochs": {"low": 1, "high": 30}})
    assert looks(searched, 30) == [6, 9, 12, 15, 18, 21, 24, 27]
    assert looks(searched, 4) == [1, 2, 3]


@pytest.mark.parametrize(
    ("pruner", "second", "last"),
    [
        ("none", 1.0, 1.0),
        ("median", 0.5, 0.4),
        ({"name": "percentile", "percentile": 10.0}, 0.1, 0.08),
        ({"name": "median", "warmup_steps": 1}, 1.0, 0.4),
    ],
)
def test_the_share_that_goes_on(pruner: Any, second: float, last: float) -> None:
    survival = expected_survival(sweep(pruner), 10)
    assert (survival[0], survival[1], survival[-1]) == pytest.approx((1.0, second, last))
    assert survival == sorted(survival, reverse=True)


@pytest.mark.parametrize("trials", [2, 8, 40])
@pytest.mark.parametrize(
    ("name", "min_steps", "factor", "epochs"),
    [("asha", 1, 4, 20), ("asha", 2, 3, 6), ("hyperband", 1, 3, 9), ("hyperband", 1, 2, 10), ("hyperband", 3, 2, 2)],
)
def test_successive_halving_lets_as_many_pass_as_optuna_does(
    name: str, min_steps: int, factor: int, epochs: int, trials: int
) -> None:
    made = sweep({"name": name, "min_steps": min_steps, "reduction_factor": factor})
    made = made.model_copy(update={"trials": trials, "fixed": {**made.fixed, "epochs": epochs}})
    generator, trained = random.Random(0), [0] * epochs
    studies = max(300 // trials, 20)
    for number in range(studies):
        study = optuna.create_study(study_name=str(number), pruner=build_pruner(made), direction="maximize")
        for _ in range(trials):
            trial, value = study.ask(), generator.random()
            for epoch in range(1, epochs + 1):
                trained[epoch - 1] += 1
                trial.report(value, epoch)
                if epoch < epochs and trial.should_prune():
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                study.tell(trial, value)
    shares = [count / studies / trials for count in trained]
    assert expected_survival(made, epochs) == pytest.approx(shares, abs=0.08)


def test_when_pruning_begins() -> None:
    assert startup(sweep({"name": "median", "startup_trials": 7})) == 7
    assert startup(sweep("asha")) == 0
