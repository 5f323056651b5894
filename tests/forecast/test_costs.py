"""What an epoch, a group and a trial cost; costs survive a database."""

import json
from dataclasses import replace
from typing import Any

import pytest

from cifar_sweep.config import Shape
from cifar_sweep.forecast.costs import FLAT_SECONDS, Costs, NetworkCosts, Pace, change_name, network_name
from cifar_sweep.forecast.expected import shape_of

NETWORK = NetworkCosts(image={1: 4e-3, 4: 1e-3}, step={1: 0.08, 4: 0.02}, sizes={16: 8, 64: 4, 256: 2}, checkpoint=0.5)
COSTS = Costs(networks={"lenet": NETWORK}, workers=2, train_images=1000, report=0.25)


def shape(batch_size: int = 16, **params: Any) -> Shape:
    return shape_of({"model": "lenet", "batch_size": batch_size, "epochs": 2} | params)


def test_batch_norm_makes_another_network() -> None:
    assert network_name(shape(model="vgg11")) == "vgg11+batch_norm"
    assert network_name(shape()) == "lenet"


def test_an_epoch_is_its_training_and_its_validation() -> None:
    validation = 250 * 0.35 * (4e-3 + 0.08 / 200)
    assert COSTS.epoch(shape(), 1) == pytest.approx(1000 * (4e-3 + 0.08 / 16) + validation)
    assert COSTS.epoch(shape(), 4) == pytest.approx(COSTS.epoch(shape(), 1)), "four at once are four times as fast"
    assert COSTS.epoch(shape(64, train_images=500), 1) == pytest.approx(500 * (4e-3 + 0.08 / 64) + validation)
    assert COSTS.epoch(shape(validation_images=25), 1) == pytest.approx(1000 * (4e-3 + 0.08 / 16) + validation / 10)
    assert COSTS.between(shape(), 3) == pytest.approx(3 * 0.75)
    assert COSTS.alone(shape()) == pytest.approx(COSTS.trial + 2 * (COSTS.epoch(shape(), 1) + 0.75))


def test_changed_images_cost_a_whole_group_as_much_as_one() -> None:
    crop, plain = shape(augmentation="crop", rotation=10.0), shape()
    assert change_name(plain) == ""
    assert change_name(crop) == "images: crop+rotation"
    assert change_name(replace(crop, image_size=64)) == "images: crop+rotation 64px"
    costs = COSTS.model_copy(update={"changes": {change_name(crop): 1e-3}})
    for members in (1, 4):
        assert costs.epoch(crop, members) == pytest.approx(COSTS.epoch(plain, members) + 1)
    assert costs.epoch(plain, 4) == COSTS.epoch(plain, 4)


def test_between_two_sizes_that_were_timed_a_member_takes_a_time_between() -> None:
    one, two, four, eight = (NETWORK.per_image(16, size) for size in (1, 2, 4, 8))
    assert two == pytest.approx(one - (one - four) / 3)
    assert eight == four


def test_the_size_of_a_group_is_that_of_the_nearest_batch_size() -> None:
    assert [COSTS.size(shape(batch)) for batch in (1, 16, 30, 60, 128, 1000)] == [8, 8, 8, 4, 4, 2]
    assert COSTS.model_copy(update={"largest": 5}).size(shape(model="cnn3")) == 5


def test_a_network_of_which_nothing_is_known_takes_a_flat_time() -> None:
    assert Costs().epoch(shape(model="cnn1"), 2) == pytest.approx(2 * 40_000 * FLAT_SECONDS * (1 + 0.25 * 0.35))


def test_a_cnn_takes_its_time_from_the_next_in_size() -> None:
    known = {
        "cnn~40": NETWORK,
        "cnn~51": NETWORK,
        "cnn~~50": NETWORK.model_copy(update={"image": {1: 1.0}, "step": {1: 0.0}}),
    }
    costs = COSTS.model_copy(update={"networks": known})
    large = shape(model="cnn", filters=128, activation="gelu")
    assert network_name(large) == "cnn~~51"
    assert costs.epoch(large, 1) == pytest.approx(2**0.5 * (1000 + 0.35 * 250))
    assert COSTS.epoch(large, 1) == pytest.approx(FLAT_SECONDS * (1000 + 0.35 * 250)), "no cnn is known"


def test_costs_survive_a_database() -> None:
    stored = json.loads(json.dumps(COSTS.model_dump(mode="json")))
    assert Costs.model_validate(stored) == COSTS
    del stored["rough"]  # version 0.1 did not store it
    assert Costs.model_validate(stored) == COSTS


def test_one_factor_corrects_all_costs() -> None:
    usual, slow = Pace(COSTS), Pace(COSTS, factor=3.0)
    assert usual.epoch(shape(), 2) == pytest.approx(COSTS.epoch(shape(), 2) + COSTS.between(shape(), 2))
    assert slow.epoch(shape(), 2) == pytest.approx(3 * usual.epoch(shape(), 2))
    assert slow.epoch(replace(shape(), batch_size=64), 2) < slow.epoch(shape(), 2)
