"""The unit cube: every point of a space has its place, and every place its point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_sweep.search.cube import Cube
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep, contains

SPACE = {
    "learning_rate": {"low": 1e-5, "high": 0.1, "log": True},
    "batch_size": {"low": 16, "high": 256, "base2": True},
    "dropout": {"low": 0.0, "high": 0.5},
    "step_size": {"low": 5, "high": 40, "step": 5},
    "hidden_units": {"low": 20, "high": 200, "log": True},
    "optimizer": {"choices": ["sgd", "adam", "rmsprop"]},
    "batch_norm": {"choices": [False, True]},
    "epochs": {"choices": [4, 8, 16]},
    "momentum": {"low": 0.0, "high": 0.9},
}
SHARES = st.lists(st.floats(0, 1, exclude_max=True), min_size=len(SPACE), max_size=len(SPACE))


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return parse({"name": "s", "fixed": {"model": "convnet"}, "space": SPACE}, where="test")


@given(shares=SHARES)
def test_every_place_is_a_point_of_the_space_and_back(shares: list[float], sweep: Sweep) -> None:
    cube = Cube(sweep)
    point = cube.params(shares)
    assert all(contains(sweep.space[name], value) for name, value in point.items())
    assert cube.params(cube.shares(point)) == pytest.approx(point)
    assert ("momentum" in point) == (point["optimizer"] != "adam")


def test_unordered_choices_are_as_far_apart_as_each_other(sweep: Sweep) -> None:
    cube = Cube(sweep)
    points = [cube.shares({"optimizer": name}) for name in ("sgd", "adam", "rmsprop")]
    features = cube.features(np.array(points))
    distances = [np.linalg.norm(features[a] - features[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert distances == pytest.approx([1.0] * 3)
    assert features.shape == (3, len(cube.columns))


def test_a_nearby_point_is_nearer_than_a_random_one(sweep: Sweep) -> None:
    cube, generator = Cube(sweep), np.random.default_rng(0)
    centre = cube.uniform(1, generator)[0]
    near, anywhere = cube.near(centre.tolist(), 200, generator), cube.uniform(200, generator)
    assert np.abs(near - centre).mean() < 0.5 * np.abs(anywhere - centre).mean()
    assert ((near >= 0) & (near < 1)).all()
