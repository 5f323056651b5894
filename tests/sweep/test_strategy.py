"""Samplers, pruners and steps."""

import math
from collections import Counter
from typing import Any

import optuna
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler

from cifar_sweep.errors import UsageError
from cifar_sweep.sweep import space, strategy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.strategy import build_pruner, build_sampler, most_new, step_of, steps_in_all
from cifar_sweep.sweep.sweep import Sweep

SEARCHED_EPOCHS = {"epochs": {"low": 1, "high": 50}}


def sweep(**tables: Any) -> Sweep:
    return parse({"name": "s"} | tables, where="test")


def settings_of(pruner: object, *names: str) -> list[Any]:
    return [getattr(pruner, f"_{name}") for name in names]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("none", NopPruner),
        ("median", MedianPruner),
        ("percentile", PercentilePruner),
        ("asha", SuccessiveHalvingPruner),
        ("hyperband", HyperbandPruner),
    ],
)
def test_a_name_builds_its_pruner(name: str, kind: type) -> None:
    assert type(build_pruner(sweep(pruner=name))) is kind


@pytest.mark.parametrize("name", ["median", "percentile"])
def test_the_percentile_family_takes_its_settings(name: str) -> None:
    share = {"percentile": 40} if name == "percentile" else {}
    pruner = build_pruner(sweep(pruner={"name": name, "startup_trials": 7, "warmup_steps": 3} | share))
    assert settings_of(pruner, "n_startup_trials", "n_warmup_steps") == [7, 4], "steps here begin at 1, Optuna's at 0"
    # Optuna turns the percentile round where the objective is maximised.
    assert settings_of(pruner, "percentile") == [50 if name == "median" else 40]


def test_asha_takes_whole_numbers() -> None:
    pruner = build_pruner(sweep(pruner={"name": "asha", "min_steps": 2, "reduction_factor": 4}))
    assert settings_of(pruner, "min_resource", "reduction_factor") == [2, 4]


@pytest.mark.parametrize(
    ("epochs", "min_steps", "expected"), [({}, 1, 30), ({"epochs": 12}, 2, 12), ({"epochs": 3}, 9, 9)]
)
def test_the_budget_of_hyperband_is_a_whole_number(epochs: dict[str, int], min_steps: int, expected: int) -> None:
    pruner = build_pruner(sweep(pruner={"name": "hyperband", "min_steps": min_steps}, fixed=epochs))
    [budget] = settings_of(pruner, "max_resource")
    assert (budget, type(budget)) == (expected, int)


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_pruners_by_resources_are_refused_where_epochs_are_searched(name: str) -> None:
    with pytest.raises(UsageError, match=f"pruner '{name}'.* accepted there: median, percentile, none"):
        build_pruner(sweep(pruner=name, space=SEARCHED_EPOCHS))


@pytest.mark.parametrize("name", ["median", "percentile", "none"])
def test_the_others_are_accepted_where_epochs_are_searched(name: str) -> None:
    assert build_pruner(sweep(pruner=name, space=SEARCHED_EPOCHS)) is not None


@pytest.mark.parametrize(("name", "kind"), [("tpe", TPESampler), ("random", RandomSampler)])
def test_a_name_builds_its_sampler(name: Any, kind: type) -> None:
    assert type(build_sampler(sweep(sampler=name), number=1)) is kind


def test_tpe_takes_its_startup_trials() -> None:
    four = sweep(sampler={"name": "tpe", "startup_trials": 4})
    assert settings_of(build_sampler(four, number=1), "n_startup_trials") == [4]


def test_every_ask_has_its_own_seed() -> None:
    def drawn(seed: int, number: int) -> float:
        sampler: Any = build_sampler(sweep(seed=seed, sampler="random"), number=number)
        return float(sampler._rng.rng.random())

    assert len({drawn(seed, number) for seed in range(3) for number in range(100)}) == 300
    assert drawn(5, 7) == drawn(5, 7)


def test_the_last_step_is_the_last_epoch_or_ten() -> None:
    assert steps_in_all(sweep(fixed={"epochs": 12})) == 12
    assert steps_in_all(sweep()) == 30
    assert steps_in_all(sweep(space=SEARCHED_EPOCHS)) == strategy.STEPS_OF_A_SCHEDULE == 10


def steps(epochs: int, *, searched: bool) -> list[int | None]:
    return [step_of(epoch, epochs=epochs, searched=searched) for epoch in range(1, epochs + 1)]


def test_with_a_fixed_schedule_the_step_is_the_epoch() -> None:
    assert steps(4, searched=False) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, [10]),
        (3, [3, 6, 10]),
        (10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (20, [None, 1, None, 2, None, 3, None, 4, None, 5, None, 6, None, 7, None, 8, None, 9, None, 10]),
        (12, [None, 1, 2, 3, 4, 5, None, 6, 7, 8, 9, 10]),
    ],
)
def test_with_a_searched_schedule_the_step_is_a_tenth_of_it(epochs: int, expected: list[int | None]) -> None:
    assert steps(epochs, searched=True) == expected


@pytest.mark.parametrize("epochs", range(1, 61))
def test_steps_of_any_schedule_rise_on_one_grid_to_its_end(epochs: int) -> None:
    found = steps(epochs, searched=True)
    reported = [step for step in found if step is not None]
    assert reported == sorted(set(reported))
    assert set(reported) <= set(range(1, 11))
    assert found[-1] == 10
    assert len(reported) == min(epochs, 10)


@pytest.mark.parametrize("epochs", [10, 25, 60, 137])
def test_a_step_is_reported_when_its_share_is_first_reached(epochs: int) -> None:
    for epoch, step in enumerate(steps(epochs, searched=True), start=1):
        if step is not None:
            assert (epoch - 1) * 10 < step * epochs <= epoch * 10


RATE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}}
BATCH = {"batch_size": {"low": 16, "high": 256, "base2": True}}


def test_no_more_new_trials_of_a_shape_are_under_way_than_half_of_what_has_finished() -> None:
    searched = sweep(trials=100, space=RATE | BATCH)
    most = [most_new(searched, asked=finished, finished=finished, workers=2) for finished in (0, 1, 2, 8, 30)]
    assert most == [1, 1, 1, 2, 8]
    assert most_new(searched, asked=38, finished=30, workers=1) == 16


def test_the_first_trials_of_tpe_are_asked_at_once_where_no_shape_is_searched() -> None:
    rates = sweep(trials=100, space=RATE, sampler={"name": "tpe", "startup_trials": 10})
    assert most_new(rates, asked=0, finished=0, workers=2) == 8
    assert most_new(rates, asked=8, finished=0, workers=2) == 8
    many = sweep(trials=100, space=RATE, sampler={"name": "tpe", "startup_trials": 32})
    assert most_new(many, asked=16, finished=0, workers=2) == 16
    assert most_new(many, asked=32, finished=0, workers=2) == 8


def test_sixteen_trials_of_one_shape_or_as_many_as_have_finished_may_be_under_way() -> None:
    rates = sweep(trials=200, space=RATE, sampler={"name": "tpe", "startup_trials": 10})
    at_two = [most_new(rates, asked=16 + done, finished=done, workers=2) for done in (1, 8, 16, 32, 64)]
    assert at_two == [8, 8, 8, 16, 32]
    at_eight = [most_new(rates, asked=16 + done, finished=done, workers=8) for done in (1, 16, 32, 64)]
    assert at_eight == [2, 2, 4, 8]


def test_each_of_several_devices_has_as_many_under_way_as_one() -> None:
    rates = sweep(trials=2000, space=RATE, sampler={"name": "tpe", "startup_trials": 10})
    for finished in (0, 16, 64):
        one = most_new(rates, asked=16 + finished, finished=finished, workers=2)
        assert most_new(rates, asked=16 + finished, finished=finished, workers=16, devices=8) == one
    few = sweep(trials=40, space=RATE)
    assert most_new(few, asked=34, finished=34, workers=3, devices=3) == 2, "the last ones are for all workers"


def test_a_random_sampler_learns_nothing() -> None:
    assert most_new(sweep(trials=100, space=RATE, sampler="random"), asked=0, finished=0, workers=2) == 50
    assert most_new(sweep(trials=100, space=RATE | BATCH, sampler="random"), asked=0, finished=0, workers=2) == 1


def test_the_last_trials_are_for_all_workers() -> None:
    assert most_new(sweep(trials=40, space=RATE), asked=34, finished=34, workers=2) == 3
    assert most_new(sweep(trials=40, space=RATE), asked=40, finished=39, workers=2) == 1


QMC_SPACE = {
    "learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
    "activation": {"choices": ["relu", "tanh"]},
    "batch_size": {"low": 16, "high": 128, "base2": True},
}


def test_a_quasi_random_sequence_goes_on_after_a_restart() -> None:
    """Each trial has a sampler of its own, as after a restart; 16 points of a Sobol sequence fill 16 rates evenly."""
    searched = sweep(sampler="qmc", space=QMC_SPACE)
    study = optuna.create_study()
    for number in range(16):
        study.sampler = build_sampler(searched, number=number, whole=space.distributions(searched))
        space.suggest(study.ask(), searched)  # none is told: they all run at once
    points = [space.decode(trial.params) for trial in study.trials]
    parts = sorted(int(16 * (math.log10(point["learning_rate"]) + 4) / 3) for point in points)
    assert parts == list(range(16))
    assert Counter(point["activation"] for point in points) == {"relu": 8, "tanh": 8}
    assert Counter(point["batch_size"] for point in points) == {16: 4, 32: 4, 64: 4, 128: 4}


def test_of_a_quasi_random_sequence_all_may_be_asked_for_at_once() -> None:
    searched = sweep(sampler="qmc", trials=40, space={"learning_rate": QMC_SPACE["learning_rate"]})
    assert most_new(searched, asked=0, finished=0, workers=1) == 40
