"""The imagined sweep: its groups are the real ones, its time is that of its workers, its ranges are wide enough."""

import random
import statistics
from dataclasses import asdict
from typing import Any

import pytest

from cifar_sweep.forecast.costs import Costs, Kind, NetworkCosts, Pace
from cifar_sweep.forecast.course import Forecast, Standing, UnderWay, Waiting, examples, forecast, kinds_of, queue_of
from cifar_sweep.forecast.fates import Fates
from cifar_sweep.study.claim import Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.strategy import group_sizes
from cifar_sweep.sweep.sweep import Sweep

RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
BATCH = {"batch_size": {"low": 16, "high": 64, "base2": True}}
FIXED = {"model": "lenet", "batch_size": 32, "epochs": 4, "train_images": 1000}
DATA = {"name": "none", "fingerprint": "none", "classes": 10}
# Training alone, an image a millisecond, whatever the group's size or batch.
NETWORK = NetworkCosts(image={1: 1e-3}, step={1: 0.0}, sizes={32: 1}, checkpoint=0)
COSTS = Costs(networks={"lenet": NETWORK}, start=0, trial=0, report=0, train_images=1000)
EPOCH = 1.0 + 0.25 * 0.35  # of 1000 images, and of 250 that are only looked at
TRIAL = 4 * EPOCH


def sweep(trials: int = 8, **keys: Any) -> Sweep:
    fixed = {name: value for name, value in FIXED.items() if name not in keys.get("space", {})}
    return parse(
        {"name": "test", "trials": trials, "pruner": "none", "fixed": fixed, "space": RATE} | keys, where="test"
    )


def costs(*, workers: int = 1, at_once: int = 1, **changes: Any) -> Costs:
    network = NETWORK.model_copy(update={"sizes": {32: at_once}})
    return COSTS.model_copy(update={"networks": {"lenet": network}, "workers": workers, **changes})


def imagine(
    chosen: Sweep,
    known: Costs,
    standing: Standing | None = None,
    *,
    doubt: float = 0.0,
    pruned: bool = False,
    draws: int = 20,
) -> Forecast:
    begin = standing or Standing(waiting=queue_of(chosen), idle=known.workers, delay=known.start)
    fates = Fates(chosen) if pruned else Fates(chosen).without_pruner()
    return forecast(chosen, begin, pace=Pace(known, doubt=doubt), fates=fates, kinds=kinds_of(chosen), draws=draws)


@pytest.mark.parametrize(("workers", "trials", "rounds"), [(1, 4, 4), (2, 4, 2), (2, 5, 3), (4, 4, 1), (4, 5, 2)])
def test_the_last_worker_ends_the_sweep(workers: int, trials: int, rounds: int) -> None:
    assert imagine(sweep(trials), costs(workers=workers)).range == pytest.approx((rounds * TRIAL, rounds * TRIAL))


def test_all_that_takes_time_is_counted() -> None:
    known = costs(start=5, trial=2, report=0.5)
    known = known.model_copy(
        update={"networks": {"lenet": known.networks["lenet"].model_copy(update={"checkpoint": 0.25})}}
    )
    assert imagine(sweep(3), known).range[0] == pytest.approx(5 + 3 * (2 + 4 * (EPOCH + 0.75)))


def test_a_group_takes_as_long_as_its_members_together() -> None:
    fixed = costs(at_once=4, fixed=True)
    assert imagine(sweep(8), fixed).quantile(0.5) == pytest.approx(8 * TRIAL), (
        "members take a millisecond an image each"
    )
    faster = {"lenet": NetworkCosts(image={1: 1e-3, 4: 5e-4}, step={1: 0, 4: 0}, sizes={32: 4}, checkpoint=0)}
    assert imagine(sweep(8), fixed.model_copy(update={"networks": faster})).quantile(0.5) == pytest.approx(4 * TRIAL)


@pytest.mark.parametrize("space", [RATE, RATE | BATCH], ids=["knobs", "shapes"])
def test_groups_grow_as_the_claims_let_them(space: dict[str, Any]) -> None:
    chosen = sweep(40, space=space)
    [course] = imagine(chosen, costs(at_once=8), draws=1).courses
    assert [group.members for group in course.groups] == group_sizes(chosen, workers=1, largest=8)
    assert len(course.ends) == 40


POINTS = [{"batch_size": 16, "learning_rate": rate} for rate in (1e-4, 1e-3, 1e-2)] + [
    {"batch_size": 64, "learning_rate": 1e-3},
    {"batch_size": 16, "learning_rate": 5e-3},
]


@pytest.mark.parametrize("space", [RATE | BATCH, RATE | BATCH | {"activation": {"choices": ["relu", "tanh"]}}])
def test_the_first_groups_are_those_that_a_study_hands_out(storage: Storage, name: str, space: dict[str, Any]) -> None:
    chosen = sweep(7, space=space, enqueue=POINTS)
    study = open_or_resume(storage, name, chosen, data=DATA)
    worker = Worker(Owner.current(), "cpu", 1, "fp32")
    real = []
    while claims := study.claim(worker, size=lambda _: 3, workers=1):
        real.append((claims[0].config.shape.batch_size, len(claims)))
        for claim in claims:
            study.complete(claim, 0.5)
    [course] = imagine(chosen, costs(at_once=3), draws=1).courses
    waiting = 5
    imagined = [(group.kind.batch_size, group.members) for group in course.groups]
    for (batch, members), (other, count) in zip(imagined, real, strict=False):
        assert members == count
        if waiting > 0:
            assert batch == other
        waiting -= members


def test_given_points_are_all_that_is_trained() -> None:
    points = [{"label": str(k), "batch_size": batch} for k, batch in enumerate([16, 64, 16, 32])]
    chosen = sweep(sampler="given", space=BATCH, enqueue=points)
    [course] = imagine(parse(chosen.model_dump(exclude={"trials"}), where="test"), costs(at_once=8), draws=1).courses
    assert [(group.kind.batch_size, group.members) for group in course.groups] == [(16, 2), (64, 1), (32, 1)]


KIND = Kind("lenet", 32, epochs=4, train_images=1000)


def test_what_is_under_way_is_trained_to_its_end() -> None:
    standing = Standing(finished=2, under_way=[UnderWay(KIND, 1, done=3, since=0.5), UnderWay(KIND, 1, done=1)])
    found = imagine(sweep(4), costs(workers=2), standing)
    assert found.range == pytest.approx((3 * EPOCH, 3 * EPOCH))
    [course] = imagine(sweep(4), costs(workers=2), standing, draws=1).courses
    assert course.ends == pytest.approx([EPOCH - 0.5, 3 * EPOCH])


def test_an_epoch_that_takes_too_long_ends_soon_but_not_before_now() -> None:
    standing = Standing(finished=3, under_way=[UnderWay(KIND, 1, done=3, since=100.0)])
    assert 0 < imagine(sweep(4), costs(), standing).quantile(0.5) < 0.2 * EPOCH


def test_an_interrupted_trial_has_only_its_last_epochs_to_come() -> None:
    standing = Standing(finished=3, waiting=[Waiting([KIND], done=3)], idle=1)
    assert imagine(sweep(4), costs(), standing).range == pytest.approx((EPOCH, EPOCH))


def test_without_a_worker_nothing_ends() -> None:
    assert imagine(sweep(4), costs(), Standing()).courses[0].ends == []


def test_each_trial_takes_the_time_of_its_own_kind() -> None:
    slow = {"lenet": NetworkCosts(image={1: 1e-3}, step={1: 0.1}, sizes={32: 1}, checkpoint=0)}
    points = [{"batch_size": batch, "learning_rate": 1e-3} for batch in (16, 64)]
    chosen = sweep(2, space=RATE | BATCH, enqueue=points)
    [course] = imagine(chosen, costs(networks=slow), draws=1).courses
    first, both = course.ends
    validation = 250 * 0.35 * (1e-3 + 0.1 / 200)
    assert first == pytest.approx(4 * (1000 * (1e-3 + 0.1 / 16) + validation))
    assert both - first == pytest.approx(4 * (1000 * (1e-3 + 0.1 / 64) + validation))


def test_a_sampler_that_learns_takes_what_is_like_the_best() -> None:
    chosen = sweep(60, space=RATE | BATCH)
    large = Kind("lenet", 64, epochs=4, train_images=1000)
    standing = Standing(finished=30, best=[large] * examples(30), idle=1)

    def shares(given: Sweep) -> list[float]:
        kinds = [group.kind for course in imagine(given, costs(), standing).courses for group in course.groups]
        return [statistics.fmean(kind == large._replace(batch_size=batch) for kind in kinds) for batch in (16, 32, 64)]

    other, near, same = shares(chosen)
    assert same > 0.45
    assert other < near < same
    at_random = chosen.model_copy(update={"sampler": replace_name(chosen, "random")})
    assert shares(at_random) == pytest.approx([1 / 3] * 3, abs=0.1)
    young = Standing(finished=5, best=[large], idle=1)
    first = [course.groups[0].kind.batch_size for course in imagine(chosen, costs(), young, draws=300).courses]
    assert first.count(64) / len(first) == pytest.approx(1 / 3, abs=0.1), "the startup trials are random"


def replace_name(chosen: Sweep, name: str) -> Any:
    return chosen.sampler.model_copy(update={"name": name})


def test_pruning_begins_when_enough_trials_are_complete() -> None:
    chosen = sweep(30, pruner={"name": "median", "startup_trials": 10})
    one, ten = (imagine(chosen, costs(), pruned=True).quantile(0.5), imagine(chosen, costs()).quantile(0.5))
    assert 10 * TRIAL < one < 0.9 * ten
    assert ten == pytest.approx(30 * TRIAL)
    few = sweep(10, pruner={"name": "median", "startup_trials": 10})
    assert imagine(few, costs(), pruned=True).quantile(0.9) == pytest.approx(10 * TRIAL)


def test_how_many_trials_are_over_by_then() -> None:
    found = imagine(sweep(6), costs(workers=2))
    assert [found.finished(rounds * TRIAL + 0.1, 0.5) for rounds in (0, 1, 2, 3, 9)] == [0, 2, 4, 6, 6]


@pytest.mark.parametrize("doubt", [0.05, 0.3])
def test_a_pace_that_is_not_sure_gives_a_range_that_holds_the_truth(doubt: float) -> None:
    """The truth is drawn as the doubt says; its time is in the range in nine cases of ten."""
    generator = random.Random(1)
    low, high = imagine(sweep(12), costs(workers=2), doubt=doubt, draws=200).range
    assert low < 6 * TRIAL < high
    held = 0
    for _ in range(200):
        pace = Pace(costs(workers=2), doubt=doubt).drawn(generator)
        held += low <= 6 * 4 * pace.epoch(KIND, 1) <= high
    assert held / 200 == pytest.approx(0.9, abs=0.06)


def test_the_same_forecast_twice() -> None:
    chosen = sweep(30, space=RATE | BATCH, pruner="median")
    first, second = (imagine(chosen, costs(workers=2), doubt=0.2, pruned=True, draws=50) for _ in range(2))
    assert [asdict(course) for course in first.courses] == [asdict(course) for course in second.courses]


def test_many_trials_are_imagined_less_often() -> None:
    assert len(imagine(sweep(1000), costs(at_once=8), draws=200).courses) == 40
    assert len(imagine(replace_trials(sweep(), 10), costs(), draws=200).courses) == 200


def replace_trials(chosen: Sweep, trials: int) -> Sweep:
    return chosen.model_copy(update={"trials": trials})
