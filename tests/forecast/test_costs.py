"""Costs are corrected by what was found, batch size by batch size, and doubted as far as that differs."""

import json
import random
import statistics
from math import log

import pytest

from cifar_sweep.config import TrialConfig
from cifar_sweep.forecast.costs import FLAT_SECONDS, Costs, Found, Kind, NetworkCosts, Pace, kind_of

NETWORK = NetworkCosts(image={1: 4e-3, 4: 1e-3}, step={1: 0.08, 4: 0.02}, sizes={16: 8, 64: 4, 256: 2}, checkpoint=0.5)
COSTS = Costs(networks={"lenet": NETWORK}, workers=2, train_images=1000, report=0.25)


def kind(batch_size: int = 16, network: str = "lenet") -> Kind:
    return Kind(network, batch_size, epochs=2, train_images=0)


def found(ratio: float, *, batch_size: int = 16, weight: float = 1.0, network: str = "lenet") -> Found:
    return Found(network, batch_size, log(ratio), weight)


def test_a_kind_is_what_decides_a_time() -> None:
    params = {"model": "vgg11", "batch_size": 128, "epochs": 7, "train_images": 500, "learning_rate": 0.1}
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0)
    assert kind_of(config.to_dict()) == ("vgg11+batch_norm", 128, 7, 500)


def test_an_epoch_is_its_training_and_its_validation() -> None:
    validation = 250 * 0.35 * (4e-3 + 0.08 / 200)
    assert COSTS.epoch(kind(), 1) == pytest.approx(1000 * (4e-3 + 0.08 / 16) + validation)
    assert COSTS.epoch(kind(), 4) == pytest.approx(4 * COSTS.epoch(kind(), 1) / 4), (
        "four at once are four times as fast"
    )
    assert COSTS.epoch(kind(64)._replace(train_images=500), 1) == pytest.approx(500 * (4e-3 + 0.08 / 64) + validation)
    assert COSTS.between(kind(), 3) == pytest.approx(3 * 0.75)


def test_between_two_sizes_that_were_timed_a_member_takes_a_time_between() -> None:
    one, two, four, eight = (COSTS.per_image("lenet", 16, size) for size in (1, 2, 4, 8))
    assert two == pytest.approx(one - (one - four) / 3)
    assert eight == four


def test_the_size_of_a_group_is_that_of_the_nearest_batch_size() -> None:
    assert [COSTS.size(kind(batch)) for batch in (1, 16, 30, 60, 128, 1000)] == [8, 8, 8, 4, 4, 2]
    assert COSTS.model_copy(update={"largest": 5}).size(kind(network="cnn3")) == 5


def test_costs_survive_a_database() -> None:
    assert Costs.model_validate(json.loads(json.dumps(COSTS.model_dump(mode="json")))) == COSTS


def test_without_anything_found_the_costs_stand() -> None:
    pace = Pace(COSTS).usual()
    assert pace.epoch(kind(), 2) == pytest.approx(COSTS.epoch(kind(), 2) + COSTS.between(kind(), 2))
    assert pace.begin(3) == pytest.approx(3 * COSTS.trial)


def ratio(pace: Pace, batch_size: int, *, network: str = "lenet") -> float:
    of = kind(batch_size, network)
    costs = pace.costs
    return (pace.usual().epoch(of, 1) - costs.between(of, 1)) / costs.epoch(of, 1)


def test_a_batch_size_is_off_as_far_as_was_found_of_it() -> None:
    pace = Pace(COSTS, [found(2.0, weight=20), found(0.5, batch_size=64, weight=20)])
    assert ratio(pace, 16) == pytest.approx(2.0, rel=0.1)
    assert ratio(pace, 64) == pytest.approx(0.5, rel=0.1)
    assert ratio(pace, 256) == pytest.approx(1.0, rel=0.1), "like the mean of the others"


def test_one_result_moves_all_batch_sizes_a_little_and_its_own_more() -> None:
    pace = Pace(COSTS, [found(2.0)])
    assert 1.0 < ratio(pace, 64) < ratio(pace, 16) < 2.0


def test_a_network_of_which_nothing_is_known_is_like_the_others() -> None:
    pace = Pace(Costs(), [found(3.0, network="cnn3", weight=9)])
    assert pace.costs.epoch(kind(network="cnn3"), 1) == pytest.approx(40_000 * FLAT_SECONDS * (1 + 0.25 * 0.35))
    assert ratio(pace, 16, network="cnn3") == pytest.approx(3.0)
    assert ratio(pace, 16, network="lenet") == pytest.approx(3.0)


def spread(pace: Pace, *, batch_size: int = 16) -> float:
    generator = random.Random(0)
    return statistics.stdev(pace.drawn(generator).epoch(kind(batch_size), 1) for _ in range(500)) / pace.usual().epoch(
        kind(batch_size), 1
    )


def test_the_doubt_falls_with_what_is_found_and_rises_where_it_differs() -> None:
    agreeing = [found(1.0) for _ in range(10)]
    differing = [found(2.0 if k % 2 else 0.5) for k in range(10)]
    unknown, sure, unsure = (spread(Pace(COSTS, known)) for known in ([], agreeing, differing))
    assert 0 < sure < unknown < unsure
    assert spread(Pace(COSTS, agreeing), batch_size=64) > sure, "nothing was found of this one"
    assert spread(Pace(COSTS, doubt=0.0)) == pytest.approx(0.0, abs=1e-12)


def test_what_is_no_epoch_is_corrected_apart() -> None:
    pace = Pace(COSTS, overhead=3.0).usual()
    assert pace.begin(2) == pytest.approx(6 * COSTS.trial)
    assert pace.epoch(kind(), 1) == pytest.approx(COSTS.epoch(kind(), 1) + 3 * COSTS.between(kind(), 1))
