"""The groups of a sweep, spread over its workers: the last worker's end is the sweep's, and ranges are wide enough."""

import random
import statistics
from dataclasses import replace
from typing import Any

import pytest

from cifar_sweep.config import Shape
from cifar_sweep.forecast.costs import Costs, NetworkCosts, Pace
from cifar_sweep.forecast.expected import possible_shapes, shape_of
from cifar_sweep.forecast.schedule import Forecast, Start, UnderWay, beginning, forecast
from cifar_sweep.study.next_group import Waiting
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
BATCH = {"batch_size": {"low": 16, "high": 64, "base2": True}}
FIXED = {"model": "lenet", "batch_size": 32, "epochs": 4, "train_images": 1000}
# Training alone, an image a millisecond, whatever the group's size or batch.
NETWORK = NetworkCosts(image={1: 1e-3}, step={1: 0.0}, sizes={32: 1}, checkpoint=0)
COSTS = Costs(networks={"lenet": NETWORK}, start=0, trial=0, report=0, train_images=1000)
EPOCH = 1.0 + 0.25 * 0.35  # of 1000 images, and of 250 that are only looked at
TRIAL = 4 * EPOCH
SHAPE = shape_of(FIXED)


def sweep(trials: int = 8, **keys: Any) -> Sweep:
    fixed = {name: value for name, value in FIXED.items() if name not in keys.get("space", {})}
    return parse(
        {"name": "test", "trials": trials, "pruner": "none", "fixed": fixed, "space": RATE} | keys, where="test"
    )


def costs(*, workers: int = 1, at_once: int = 1, **changes: Any) -> Costs:
    network = NETWORK.model_copy(update={"sizes": {32: at_once}})
    return COSTS.model_copy(update={"networks": {"lenet": network}, "workers": workers, **changes})


def laid_out(chosen: Sweep, known: Costs, start: Start | None = None, *, doubt: float = 0.0) -> Forecast:
    begin = start or beginning(chosen, workers=known.workers, delay=known.start)
    return forecast(chosen, begin, Pace(known, doubt=doubt), possible_shapes(chosen))


@pytest.mark.parametrize(("workers", "trials", "rounds"), [(1, 4, 4), (2, 4, 2), (2, 5, 3), (4, 4, 1), (4, 5, 2)])
def test_the_last_worker_ends_the_sweep(workers: int, trials: int, rounds: int) -> None:
    found = laid_out(sweep(trials), costs(workers=workers))
    assert (*found.range, found.likely, found.mean) == pytest.approx((rounds * TRIAL,) * 4)


def test_all_that_takes_time_is_counted() -> None:
    known = costs(start=5, trial=2, report=0.5)
    slow = known.networks["lenet"].model_copy(update={"checkpoint": 0.25})
    found = laid_out(sweep(3), known.model_copy(update={"networks": {"lenet": slow}}))
    assert found.likely == pytest.approx(5 + 3 * (2 + 4 * (EPOCH + 0.75)))


def test_a_group_takes_as_long_as_its_members_together() -> None:
    fixed = costs(at_once=4, fixed=True)
    assert laid_out(sweep(8), fixed).likely == pytest.approx(8 * TRIAL)
    faster = {"lenet": NetworkCosts(image={1: 1e-3, 4: 5e-4}, step={1: 0, 4: 0}, sizes={32: 4}, checkpoint=0)}
    assert laid_out(sweep(8), fixed.model_copy(update={"networks": faster})).likely == pytest.approx(4 * TRIAL)


def test_given_points_are_trained_with_those_alone_that_are_alike() -> None:
    points = [{"label": str(k), "batch_size": batch} for k, batch in enumerate([16, 64, 16, 32])]
    chosen = sweep(sampler="given", space=BATCH, enqueue=points)
    chosen = parse(chosen.model_dump(exclude={"trials"}), where="test")
    faster = {"lenet": NetworkCosts(image={1: 1e-3, 2: 5e-4}, step={1: 0, 2: 0}, sizes={32: 8}, checkpoint=0)}
    [ends] = forecast(
        chosen, beginning(chosen, workers=1, delay=0), Pace(costs(networks=faster), doubt=0.0), [], layouts=1
    ).layouts
    assert ends == pytest.approx([TRIAL, TRIAL, 2 * TRIAL, 3 * TRIAL]), "two of batch 16 at once, then the others"


def test_points_that_wait_come_first_and_are_of_their_own_shape() -> None:
    slow = {"lenet": NetworkCosts(image={1: 1e-3}, step={1: 0.1}, sizes={32: 1}, checkpoint=0)}
    points = [{"batch_size": batch, "learning_rate": 1e-3} for batch in (16, 64)]
    ends = laid_out(sweep(2, space=RATE | BATCH, enqueue=points), costs(networks=slow)).layouts[0]
    validation = 250 * 0.35 * (1e-3 + 0.1 / 200)
    first, second = (4 * (1000 * (1e-3 + 0.1 / batch) + validation) for batch in (16, 64))
    assert ends == pytest.approx([first, first + second])


def test_shapes_that_are_foretold_are_laid_out_in_turn_and_impossible_ones_passed_over() -> None:
    one, three = (replace(SHAPE, epochs=epochs) for epochs in (1, 3))
    impossible = shape_of({"model": "cnn", "conv_layers": 8, "image_size": 32})
    assert impossible.fault
    start = Start(idle=1, drawn={0: one, 1: impossible, 2: three, 5: one})
    found = laid_out(sweep(4, sampler="random"), costs(), start).layouts[0]
    # The third leader is of number 3, of which nothing is foretold; so is the fourth.
    assert found == pytest.approx([EPOCH, 4 * EPOCH, 4 * EPOCH + TRIAL, 4 * EPOCH + 2 * TRIAL])


def test_what_is_under_way_is_trained_to_its_end() -> None:
    start = Start(finished=2, under_way=[UnderWay(SHAPE, 1, done=3, since=0.5), UnderWay(SHAPE, 1, done=1)])
    assert laid_out(sweep(4), costs(workers=2), start).layouts[0] == pytest.approx([EPOCH - 0.5, 3 * EPOCH])


def test_an_epoch_that_takes_too_long_ends_soon_but_not_before_now() -> None:
    start = Start(finished=3, under_way=[UnderWay(SHAPE, 1, done=3, since=100.0)])
    assert 0 < laid_out(sweep(4), costs(), start).likely < 0.2 * EPOCH


def test_an_interrupted_trial_has_only_its_last_epochs_to_come() -> None:
    start = Start([Waiting(3, SHAPE, epochs=3, begun=True)], finished=3, idle=1)
    assert laid_out(sweep(4), costs(), start).likely == pytest.approx(EPOCH)


def test_without_a_worker_nothing_ends() -> None:
    assert laid_out(sweep(4), costs(), Start()).layouts[0] == []


def test_a_sampler_that_learns_takes_what_is_like_the_best() -> None:
    slow = {"lenet": NetworkCosts(image={1: 1e-3}, step={1: 0.1}, sizes={32: 1}, checkpoint=0)}
    chosen = sweep(60, space=RATE | BATCH)

    def likely(given: Sweep, best: Shape, finished: int = 30) -> float:
        return laid_out(given, costs(networks=slow), Start(finished=finished, best=[best], idle=1)).likely

    small, large = (replace(SHAPE, batch_size=batch) for batch in (16, 64))
    assert likely(chosen, large) < 0.8 * likely(chosen, small)
    random_one = chosen.model_copy(update={"sampler": chosen.sampler.model_copy(update={"name": "random"})})
    assert likely(random_one, large) == pytest.approx(likely(random_one, small), rel=0.05)


def test_pruning_begins_when_enough_trials_are_complete() -> None:
    chosen = sweep(30, pruner={"name": "median", "startup_trials": 10})
    start = beginning(chosen, workers=1, delay=0.0)
    assert 10 * TRIAL < laid_out(chosen, costs()).likely < 0.9 * 30 * TRIAL
    assert laid_out(chosen, costs(), start.unpruned()).likely == pytest.approx(30 * TRIAL)
    few = sweep(10, pruner={"name": "median", "startup_trials": 10})
    assert laid_out(few, costs()).range == pytest.approx((10 * TRIAL, 10 * TRIAL))


def test_a_pruner_that_was_strict_is_expected_to_stay_strict() -> None:
    chosen = sweep(30, pruner={"name": "median", "startup_trials": 0})
    mild, strict = (Start(idle=1, strictness=strictness, judged=50) for strictness in (0.2, 1.5))
    assert laid_out(chosen, costs(), strict).likely < 0.7 * laid_out(chosen, costs(), mild).likely


def test_how_many_trials_are_over_by_then() -> None:
    found = laid_out(sweep(6), costs(workers=2))
    assert [found.finished(rounds * TRIAL + 0.1) for rounds in (0, 1, 2, 3, 9)] == [0, 2, 4, 6, 6]


def test_shortened_trials_take_their_share() -> None:
    points = [{"batch_size": 32, "learning_rate": 1e-3}]
    chosen = sweep(1, space=RATE | BATCH, enqueue=points)
    start = beginning(chosen, workers=1, delay=0.0)
    assert laid_out(chosen, costs(), start.shortened(0.5)).likely == pytest.approx(TRIAL / 2)


@pytest.mark.parametrize("doubt", [0.05, 0.3])
def test_a_pace_that_is_not_sure_gives_a_range_that_holds_the_truth(doubt: float) -> None:
    """The truth is drawn as the doubt says; its time is in the range in nine cases of ten."""
    generator = random.Random(1)
    low, high = laid_out(sweep(12), costs(workers=2), doubt=doubt).range
    truths = [6 * TRIAL * 2.718281828 ** generator.gauss(0, doubt) for _ in range(500)]
    assert statistics.fmean(low <= truth <= high for truth in truths) == pytest.approx(0.93, abs=0.06)


def test_the_same_forecast_twice() -> None:
    chosen = sweep(30, space=RATE | BATCH, pruner="median")
    assert laid_out(chosen, costs(workers=2), doubt=0.2) == laid_out(chosen, costs(workers=2), doubt=0.2)


def test_many_trials_are_laid_out_less_often() -> None:
    assert len(laid_out(sweep(1000), costs(at_once=8)).layouts) == 20
    assert len(laid_out(sweep(10), costs()).layouts) == 100
