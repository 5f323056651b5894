"""When a pruner looks at trials, and how many it is expected to end."""

import random
import statistics
from typing import Any

import pytest

from cifar_sweep.forecast.costs import Kind
from cifar_sweep.forecast.fates import Fates, Shares
from cifar_sweep.sweep.parsing import parse

RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
NOTHING = Shares()


def fates(pruner: Any, *, space: dict[str, Any] = RATE, counted: Shares = NOTHING) -> Fates:
    sweep = parse({"name": "test", "fixed": {"model": "lenet"}, "pruner": pruner, "space": space}, where="test")
    return Fates(sweep, counted)


@pytest.mark.parametrize(
    ("pruner", "epochs", "looks"),
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
def test_the_epochs_at_which_a_pruner_looks(pruner: Any, epochs: int, looks: list[int]) -> None:
    assert fates(pruner).looks(epochs) == looks
    assert fates(pruner).without_pruner().looks(epochs) == []


def test_where_epochs_are_searched_a_look_is_after_a_tenth_of_the_schedule() -> None:
    searched = RATE | {"epochs": {"low": 1, "high": 30}}
    assert fates({"name": "median", "warmup_steps": 1}, space=searched).looks(30) == [6, 9, 12, 15, 18, 21, 24, 27]
    assert fates({"name": "median", "warmup_steps": 1}, space=searched).looks(4) == [1, 2, 3]


def lengths(known: Fates, *, epochs: int = 10, done: int = 0, active: float = 0.0) -> list[int]:
    generator = random.Random(0)
    kind = Kind("lenet", 32, epochs=epochs, train_images=0)
    return [known.drawn(generator).length(kind, known.looks(epochs), done=done, active=active) for _ in range(2000)]


def share(found: list[int], epoch: int) -> float:
    return statistics.fmean(length == epoch for length in found)


def test_before_anything_is_known_a_guess_stands() -> None:
    found = lengths(fates("median"))
    assert share(found, 1) == pytest.approx(0.5, abs=0.08)
    assert 0.02 < statistics.fmean(1 < length < 10 for length in found) < 0.2
    assert share(lengths(fates({"name": "percentile", "percentile": 10.0})), 1) == pytest.approx(0.9, abs=0.05)
    assert set(lengths(fates("median").without_pruner())) == {10}


def test_what_was_counted_moves_the_guess() -> None:
    strict, mild = Shares(first=(30, 2), later=(0, 20)), Shares(first=(1, 40), later=(0, 20))
    assert share(lengths(fates("median", counted=strict)), 1) > 0.85
    assert share(lengths(fates("median", counted=mild)), 10) > 0.85
    assert share(lengths(fates("none", counted=Shares(diverged=(40, 40)))), 1) == pytest.approx(0.5, abs=0.08)


def test_a_trial_that_was_let_pass_is_mostly_let_pass_again() -> None:
    begun = lengths(fates("median"), done=3)
    assert min(begun) > 3
    assert share(begun, 10) == pytest.approx(0.8, abs=0.08)


def test_a_pruner_that_is_not_at_work_yet_looks_later() -> None:
    assert min(lengths(fates("median", counted=Shares(diverged=(0, 500))), active=4.5)) == 5
    assert set(lengths(fates("median", counted=Shares(diverged=(0, 10**6))), active=float("inf"))) == {10}
    assert share(lengths(fates("median"), done=3, active=4.5), 5) == pytest.approx(0.5, abs=0.08)


def test_when_pruning_begins() -> None:
    assert fates({"name": "median", "startup_trials": 7}).startup == 7
    assert fates("asha").startup == 0


def test_at_each_rung_a_share_is_ended() -> None:
    found = lengths(fates({"name": "asha", "reduction_factor": 3}))
    assert [share(found, epoch) for epoch in (1, 3, 9, 10)] == pytest.approx([2 / 3, 2 / 9, 2 / 27, 1 / 27], abs=0.05)
    counted = fates({"name": "asha", "reduction_factor": 3}, counted=Shares(later=(100, 0)))
    assert share(lengths(counted), 10) < 0.02
