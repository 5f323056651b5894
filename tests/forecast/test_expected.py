"""What a sweep is expected to train: which shapes, how many of each, and the draws from its space."""

import math
import random
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.forecast import expected as module
from cifar_sweep.forecast.costs import change_name, network_name
from cifar_sweep.forecast.expected import draw, expected_shapes, possible_shapes, shape_of
from cifar_sweep.sweep.file import load
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Choices, Range, Sweep, contains

LENET = {"model": "lenet"}
RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
Expected = list[tuple[float, Shape]]


def expected(precision: str = "fp32", **keys: Any) -> Expected:
    return expected_shapes(parse({"name": "test"} | keys, where="test"), precision=precision)


def given(*points: dict[str, Any], **keys: Any) -> Expected:
    labelled = [{"label": str(number), **point} for number, point in enumerate(points)]
    return expected(sampler="given", pruner="none", enqueue=labelled, **keys)


def shape(**params: Any) -> Shape:
    return TrialConfig.from_params(LENET | params, classes=10, precision="fp32", data_seed=0, seed=0).shape


def trials(found: Expected) -> float:
    return math.fsum(count for count, _ in found)


def epochs(found: Expected) -> float:
    return math.fsum(count * shape.epochs for count, shape in found)


def test_given_points_are_themselves() -> None:
    space = {
        "batch_size": {"low": 16, "high": 64, "base2": True},
        "epochs": {"low": 1, "high": 300},
        "train_images": {"low": 0, "high": 40000},
    }
    points = [{"batch_size": 16, "epochs": 3}, {"batch_size": 32, "epochs": 5, "train_images": 4000}, {"epochs": 2}]
    assert given(*points, fixed=LENET, space=space) == [
        (1.0, shape(batch_size=16, epochs=3)),
        (1.0, shape(batch_size=32, epochs=5, train_images=4000)),
        (1.0, shape(batch_size=64, epochs=2, train_images=0)),  # what a given point leaves out is its default
    ]


def test_a_given_point_may_be_of_another_model() -> None:
    space = {"model": {"choices": ["lenet", "cnn1"]}}
    found = given({"model": "lenet"}, {"model": "cnn1"}, fixed={"epochs": 1}, space=space)
    assert found == [(1.0, shape(epochs=1)), (1.0, shape(model="cnn1", epochs=1))]


@pytest.mark.parametrize("space", [{}, RATE, {"optimizer": {"choices": ["sgd", "adam"]}}])
def test_where_nothing_that_decides_is_searched_all_trials_are_alike(space: dict[str, Any]) -> None:
    fixed = LENET | {"batch_size": 32, "epochs": 4, "train_images": 1000}
    assert expected(trials=7, fixed=fixed, space=space) == [
        (7.0, shape(batch_size=32, epochs=4, train_images=1000)),
    ]


@pytest.mark.parametrize(
    "decisive",
    [
        {"model": {"choices": ["lenet", "cnn3"]}},
        {"batch_norm": {"choices": [True, False]}},
        {"batch_size": {"low": 16, "high": 256, "base2": True}},
        {"epochs": {"low": 1, "high": 30}},
        {"train_images": {"low": 100, "high": 1000}},
    ],
)
def test_what_decides_a_trials_time_is_drawn(decisive: dict[str, Any]) -> None:
    [name] = decisive
    found = expected(trials=3, fixed=LENET if name != "model" else {}, space=decisive | RATE)
    assert len({getattr(shape, name) for _, shape in found}) > 1
    assert trials(found) == pytest.approx(3)


def test_the_mean_over_the_space() -> None:
    keys: dict[str, Any] = {"trials": 50, "fixed": LENET, "space": {"epochs": {"choices": [10, 30]}}}
    found = expected(**keys)
    assert trials(found) == pytest.approx(50)
    assert epochs(found) == pytest.approx(50 * 20, rel=0.1)
    assert found == expected(**keys)


def test_points_tried_first_count_as_themselves() -> None:
    keys: dict[str, Any] = {"fixed": LENET, "space": {"epochs": {"low": 1, "high": 300}, **RATE}}
    first = [{"epochs": 300, "learning_rate": 1e-3}, {"epochs": 200}, {"epochs": 200}]
    both = [(1.0, shape(epochs=300)), (1.0, shape(epochs=200))]
    assert expected(trials=2, enqueue=first, **keys) == both  # the third is the second again
    assert expected(trials=1, enqueue=first, **keys) == both[:1]
    drawn = epochs(expected(trials=1, **keys))
    more = expected(trials=5, enqueue=first, **keys)
    assert more[:2] == both
    assert trials(more) == pytest.approx(5)
    assert epochs(more) == pytest.approx(300 + 200 + 3 * drawn)
    assert drawn == pytest.approx(150.5, rel=0.15)


def test_what_a_point_leaves_open_is_drawn() -> None:
    space = {"epochs": {"choices": [10, 30]}, "batch_size": {"low": 16, "high": 128, "step": 1}}
    points = [{"batch_size": batch} for batch in range(16, 116)]
    found = expected(trials=100, enqueue=points, fixed=LENET, space=space)
    assert [shape.batch_size for _, shape in found] == list(range(16, 116))
    assert epochs(found) == pytest.approx(100 * 20, rel=0.15)


def test_the_precision_is_the_machines_where_the_sweep_says_none() -> None:
    assert [shape.precision for _, shape in expected("bf16", fixed=LENET)] == ["bf16"]
    assert [shape.precision for _, shape in expected("bf16", fixed=LENET | {"precision": "fp32"})] == ["fp32"]


def drawn(domain: Range | Choices, name: str) -> list[Any]:
    generator, sweep = random.Random(1), Sweep(name="test", space={name: domain})
    values = [draw(sweep, generator)[name] for _ in range(2000)]
    assert all(contains(domain, value) for value in values)
    return values


def test_draws_are_as_the_domain_says() -> None:
    powers = drawn(Range(low=16, high=256, base2=True), "batch_size")
    assert {power: round(powers.count(power) / 2000, 1) for power in powers} == dict.fromkeys(
        (16, 32, 64, 128, 256), 0.2
    )
    assert all(type(power) is int for power in powers)
    assert statistics.median(drawn(Range(low=1e-5, high=0.1, log=True), "learning_rate")) == pytest.approx(
        1e-3, rel=0.3
    )
    assert statistics.mean(drawn(Range(low=0, high=0.5), "dropout")) == pytest.approx(0.25, rel=0.1)
    assert set(drawn(Range(low=10, high=30, step=10), "epochs")) == {10, 20, 30}
    assert set(drawn(Range(low=1, high=4), "epochs")) == {1, 2, 3, 4}
    assert statistics.median(drawn(Range(low=1, high=10_000, log=True), "epochs")) == pytest.approx(100, rel=0.3)
    ones = drawn(Range(low=1, high=2, log=True), "epochs").count(1)
    assert ones / 2000 == pytest.approx(0.585, abs=0.04)  # log(1.5) of log(2)
    assert set(drawn(Choices(choices=["lenet", "cnn1"]), "model")) == {"lenet", "cnn1"}


def test_a_grid_s_shapes_are_reckoned_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    reckoned: list[object] = []
    shape_of = module.shape_of
    monkeypatch.setattr(module, "shape_of", lambda *values: reckoned.append(values) or shape_of(*values))
    space = {"learning_rate": {"choices": [k / 100 for k in range(1, 51)]}, "batch_size": {"choices": [16, 32]}}
    found = module.queued_shapes(parse({"name": "s", "sampler": "grid", "space": space}, where="test"))
    assert Counter(shape.batch_size for shape in found) == {16: 50, 32: 50}
    assert len(reckoned) == 2


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_a_network_that_leaves_nothing_of_its_images_is_not_expected(sampler: str) -> None:
    space = {"pool_size": {"choices": [2, 4]}, "conv_layers": {"low": 1, "high": 3}}
    fixed = {"model": "cnn", "image_size": 28}
    found = expected_shapes(
        parse({"name": "s", "sampler": sampler, "pruner": "none", "fixed": fixed, "space": space}, where="t"),
        precision="fp32",
    )
    assert found
    assert not any(shape.fault for _, shape in found)


FILES = sorted(path for path in Path(__file__).parents[2].glob("sweeps/**/*.toml") if not load(path).listed)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_trials_cost_is_known_whatever_is_drawn(path: Path) -> None:
    """Of a cnn the nearest in size is enough, of the same activation and batch norm."""
    sweep, generator = load(path), random.Random(1)
    kinds = {kind_of(shape) for shape in possible_shapes(sweep)}
    drawn = [shape_of(sweep.fixed | draw(sweep, generator)) for _ in range(100)]
    assert {kind_of(shape) for shape in drawn if not shape.fault} <= kinds


def kind_of(shape: Shape) -> tuple[str, str]:
    return re.sub(r"\d+$", "", network_name(shape)), change_name(shape)
