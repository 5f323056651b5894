"""Choices: the groups are of one shape and within the budget, the promising goes on, the hopeless is pruned."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cifar_sweep.parameters import Value
from cifar_sweep.search.choice import Choice, Course, Gain, InTime, Situation, grant_end
from cifar_sweep.search.chooser import Chooser, decay, told
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

RATE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}}
BATCH = {"batch_size": {"low": 16, "high": 64, "base2": True}}
EPOCHS = 12


def sweep(**space: Any) -> Sweep:
    fixed = {"model": "convnet", "epochs": EPOCHS}
    return parse({"name": "s", "strategy": "auto", "fixed": fixed, "space": RATE | space}, where="test")


def course(number: int, accuracies: Sequence[float], *, rate: float = 1e-3, size: int = 32, **state: bool) -> Course:
    point: dict[str, Value] = {"learning_rate": rate, "batch_size": size}
    return Course(number, point, point, size, EPOCHS, accuracies, **state)


def choose(sweep: Sweep, courses: Sequence[Course], *, size: int = 8, room: int = 100, seed: int = 0) -> Choice:
    def shape_of(point: Mapping[str, Value]) -> Value:
        return point.get("batch_size", 32)

    return Chooser(sweep).choose(Situation(courses, lambda _: size, room, shape_of, seed))


def test_the_first_trials_are_random_points_of_one_shape() -> None:
    choice = choose(sweep(**BATCH), [])
    assert len(choice.new) == 2
    assert len({point["batch_size"] for point in choice.new}) == 1
    assert len({point["learning_rate"] for point in choice.new}) == 2
    assert len(choose(sweep(), []).new) == 8, "where the shape is not searched, a whole group is free"


@pytest.mark.parametrize("room", [1, 3])
def test_no_more_trials_begin_than_there_is_room_for(room: int) -> None:
    assert len(choose(sweep(), [], room=room).new) == room


def good_and_bad() -> list[Course]:
    """Four trials that learn, four that do not, of two epochs each; and one that is complete."""
    good = [course(k, [0.3 + 0.01 * k, 0.4 + 0.01 * k], rate=1e-3 * (1 + k / 10), frozen=True) for k in range(4)]
    bad = [course(k, [0.1, 0.1], rate=0.09 + 0.001 * k, frozen=True) for k in range(4, 8)]
    whole = [0.3 + 0.02 * epoch for epoch in range(EPOCHS)]
    return [*good, *bad, course(8, whole, rate=1.2e-3, complete=True)]


def test_the_promising_go_on_and_the_hopeless_are_pruned_with_the_reason() -> None:
    choice = choose(sweep(), good_and_bad(), room=0)
    assert set(choice.thawed) <= {0, 1, 2, 3}
    assert choice.thawed
    assert set(choice.pruned) >= {4, 5, 6, 7}
    assert all(" % chance to beat trial 8 (52.0 ± " in reason for reason in choice.pruned.values())
    assert not set(choice.pruned) & set(choice.thawed)
    assert sum(hope.is_best for hope in choice.hopes.values()) == pytest.approx(1)
    assert min(choice.hopes[k].accuracy for k in range(4)) > max(choice.hopes[k].accuracy for k in range(4, 8))


def test_nothing_is_pruned_before_a_trial_is_complete() -> None:
    assert choose(sweep(), good_and_bad()[:-1], room=0).pruned == {}


def test_until_a_trial_is_complete_the_most_promising_one_goes_on() -> None:
    alike = [course(k, [0.3 + 0.02 * (k % 3)], rate=10 ** (-4 + k / 4), frozen=True) for k in range(8)]
    early, later = (
        [choose(sweep(), courses, size=1, room=0, seed=k).thawed for k in range(8)]
        for courses in (alike, [*alike, good_and_bad()[-1]])
    )
    assert early == [early[0]] * 8
    assert len({tuple(thawed) for thawed in later}) > 1, "then a sample decides"


def test_trials_that_go_on_together_have_one_shape_and_as_many_epochs() -> None:
    courses = good_and_bad()[:-1]
    courses[1] = replace(courses[1], shape="another")
    courses[2] = replace(courses[2], accuracies=[*courses[2].accuracies, 0.45, 0.5])
    for seed in range(10):
        thawed = [courses[number] for number in choose(sweep(), courses, room=0, seed=seed).thawed]
        assert len({(each.shape, each.done) for each in thawed}) == 1


def test_where_all_trials_run_there_is_nothing_to_choose() -> None:
    running = [replace(each, frozen=False, complete=False) for each in good_and_bad()]
    assert choose(sweep(), running, room=0).thawed == ()
    assert choose(sweep(), running, room=0).new == ()


@pytest.mark.parametrize("room", [0, 3])
def test_a_space_without_parameters_has_trials_that_differ_in_their_seed_alone(room: int) -> None:
    fixed = {"model": "convnet", "epochs": EPOCHS, "learning_rate": 1e-3}
    plain = parse({"name": "s", "strategy": "auto", "fixed": fixed}, where="test")
    courses = [replace(each, params={}, shape="one") for each in good_and_bad()]
    assert choose(plain, [], room=3).new == [{}, {}, {}]
    choice = choose(plain, courses * 2, room=room)
    assert choice.thawed or choice.new
    assert all(point == {} for point in choice.new)


def test_the_model_chooses_new_points_near_the_good_ones() -> None:
    rates = [10 ** (-5 + k / 5) for k in range(20)]
    courses = [course(k, [0.1 + 0.4 / (1 + 4 * abs(k - 10))], rate=rate) for k, rate in enumerate(rates)]
    found = [float(choose(sweep(), courses, size=1, seed=seed).new[0]["learning_rate"]) for seed in range(12)]
    near = [rate for rate in found if rates[7] < rate < rates[13]]
    assert 6 <= len(near) < 12, "most are near the best, and some anywhere"


def test_a_choice_is_the_same_for_the_same_seed() -> None:
    assert choose(sweep(), good_and_bad(), room=0, seed=3) == choose(sweep(), good_and_bad(), room=0, seed=3)
    news = {str(choose(sweep(), good_and_bad()[:1], seed=seed).new) for seed in range(3)}
    assert len(news) == 3, "before the model is asked, points are random"


@pytest.mark.parametrize(
    ("epochs", "ends"), [(12, [1, 4, 12]), (30, [2, 10, 30]), (300, [25, 100, 300]), (3, [1, 3]), (1, [1])]
)
def test_a_schedule_is_cut_into_grants(epochs: int, ends: list[int]) -> None:
    found = [grant_end(0, epochs)]
    while found[-1] < epochs:
        found.append(grant_end(found[-1], epochs))
    assert found == ends
    assert grant_end(ends[-1] - 1, epochs) == ends[-1], "an interrupted grant is finished"


def test_the_model_is_told_the_first_and_the_last_epochs() -> None:
    assert told(1) == [1]
    assert told(30) == [1, 2, 3, 4, 6, 8, 11, 16, 23, 30]


def test_decay_counts_the_steps_of_the_schedule() -> None:
    settings = {"step_size": 4, "gamma": 0.1}
    assert [decay(settings, epoch) for epoch in (1, 4, 5, 9)] == pytest.approx([0, 0, 1, 2])
    assert decay({}, 100) == 0


def searched(count: int, value: Any, *, noise: float = 0.01) -> list[Course]:
    """Trials at random points, trained to their end; `value` is the accuracy there by the share of the range."""
    chance = random.Random(0)
    shares = [chance.random() for _ in range(count)]
    whole = [value(share) + chance.gauss(0, noise) for share in shares]
    return [
        course(
            k, [end * (0.5 + epoch / 24) for epoch in range(1, EPOCHS + 1)], rate=10 ** (-5 + 4 * share), complete=True
        )
        for k, (share, end) in enumerate(zip(shares, whole, strict=True))
    ]


def gain_of(courses: Sequence[Course]) -> Gain:
    """What more trials would gain, as the first choice says that is not at random."""
    return next(gain for seed in range(20) if (gain := choose(sweep(), courses, seed=seed).gain))


def test_on_a_flat_space_more_trials_are_not_worth_it() -> None:
    gain = gain_of(searched(24, lambda _: 0.6))
    assert not gain.is_worthwhile
    assert 0.002 < gain.noise < 0.05
    assert str(Gain(0.001, 0.005)) == "10 more trials are expected to gain 0.1 points; one seed's noise is 0.5"


def test_where_the_best_region_is_hardly_searched_more_trials_are_worth_it() -> None:
    rising = [
        each for each in searched(50, lambda share: 0.2 + 0.5 * share) if float(each.params["learning_rate"]) < 1e-3
    ]
    assert len(rising) >= 16
    gain = gain_of(rising)
    assert gain.is_worthwhile
    assert gain.expected > 0.03
    assert choose(sweep(), good_and_bad()[:2], seed=1).gain is None, "before anything is complete nobody knows"


def test_where_time_is_short_only_what_ends_in_time_is_chosen() -> None:
    def timed(shape: Value, done: int) -> int:
        return 2 if (shape == 16 and not done) or done == 2 else 0

    def chosen(courses: Sequence[Course], seed: int, in_time: InTime = timed) -> Choice:
        situation = Situation(courses, lambda _: 8, 100, lambda point: point.get("batch_size", 32), seed, in_time)
        return Chooser(sweep(**BATCH)).choose(situation)

    for seed in range(6):
        begun = chosen([], seed).new
        assert 1 <= len(begun) <= 2
        assert {point["batch_size"] for point in begun} == {16}
        late = chosen([*good_and_bad(), course(9, [0.5] * 4, frozen=True)], seed)
        assert {point["batch_size"] for point in late.new} <= {16}
        assert len(late.thawed) <= 2
        assert 9 not in late.thawed, "the best one, but there is no time for it"
        assert not late.new or not late.thawed
    over = chosen(good_and_bad(), 0, in_time=lambda _shape, _done: 0)
    assert not over.new
    assert not over.thawed
    assert not chosen([], 0, in_time=lambda _shape, _done: 0).new
