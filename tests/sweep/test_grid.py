"""A grid: each point of the space once, in an order of the sweep's seed."""

from itertools import product
from typing import Any

import pytest

from cifar_sweep.errors import UsageError
from cifar_sweep.sweep import grid as module
from cifar_sweep.sweep.file import from_mapping
from cifar_sweep.sweep.grid import MOST_POINTS, grid
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

SPACE: dict[str, Any] = {
    "learning_rate": {"choices": [0.1, 0.01]},
    "batch_size": {"low": 16, "high": 64, "base2": True},
    "epochs": {"low": 5, "high": 15, "step": 5},
    "step_size": {"low": 1, "high": 2},
}


def sweep(**tables: Any) -> Sweep:
    return parse({"name": "s", "sampler": "grid", "space": SPACE} | tables, where="test")


def test_each_point_is_there_once() -> None:
    every = list(product([0.1, 0.01], [16, 32, 64], [5, 10, 15], [1, 2]))
    found = [tuple(point[name] for name in SPACE) for point in grid(sweep())]
    assert sorted(found) == sorted(every)
    assert found != every, "it is shuffled"


def test_the_order_is_the_seeds() -> None:
    assert grid(sweep(seed=3)) == grid(sweep(seed=3)) != grid(sweep(seed=4))


def test_a_grid_is_made_once_however_often_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Sweep] = []
    order = module.suggested_order
    monkeypatch.setattr(module, "suggested_order", lambda sweep: made.append(sweep) or order(sweep))
    chosen = sweep(seed=77)
    assert grid(chosen.model_copy(update={"trials": 3})) == grid(chosen)
    assert len(made) == 1


def test_points_that_differ_in_what_does_nothing_are_one() -> None:
    space = {"momentum": {"choices": [0.0, 0.5, 0.9]}, "optimizer": {"choices": ["adam", "sgd"]}}
    points = grid(sweep(space=space))
    assert len(points) == 4
    assert points.count({"optimizer": "adam"}) == 1


@pytest.mark.parametrize(("trials", "size"), [({}, 36), ({"trials": 10}, 10), ({"trials": 99}, 36)])
def test_it_has_as_many_trials_as_points_or_the_first_so_many(trials: dict[str, int], size: int) -> None:
    assert sweep(**trials).size == size


def test_changes_count_the_points_anew() -> None:
    plain = {"name": "s", "space": SPACE}
    assert from_mapping(plain, where="test", changes={"sampler": "grid"}).size == 36
    fixed = from_mapping(plain | {"sampler": "grid"}, where="test", changes={"learning_rate": 0.2})
    assert fixed.size == 18
    assert from_mapping(plain | {"sampler": "grid"}, where="test", preview=True).size == 8


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (
            {"space": {"dropout": {"low": 0, "high": 0.4}}},
            r"dropout: a grid tries each value, and 0 to 0.4 is a range without steps; .*\[0, 0.1, 0.2, 0.3, 0.4\]",
        ),
        (
            {"space": {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}}},
            r"log range without steps; accepted: a list, such as choices = \[1e-05, 0.0001, 0.001, 0.01, 0.1\]",
        ),
        ({"space": {"hidden_units": {"low": 8, "high": 128, "log": True}}}, r"choices = \[8, 16, 32, 64, 128\]"),
        ({"space": {"hidden_units": {"low": 1, "high": MOST_POINTS + 1}}}, "more than 10,000 points; accepted: fewer"),
        ({"enqueue": [{"epochs": 5}]}, "sampler 'grid' tries each one in its own order"),
    ],
)
def test_what_a_grid_does_not_take(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sweep(**tables)
