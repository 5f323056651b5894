"""How long a study will still take: by its workers, by the kinds of trial to come, and by the clock."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from cifar_sweep.config import TrialConfig
from cifar_sweep.curve import EpochResult
from cifar_sweep.forecast.costs import END_SECONDS, Costs, NetworkCosts, note_costs
from cifar_sweep.forecast.expected import drawn_shapes
from cifar_sweep.forecast.time_left import at_work, forecast_rest, groups_of, seconds_left
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.storage import PAUSED, Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse

RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
FIXED = {"model": "lenet", "batch_size": 32, "epochs": 4}
FIXED_BUT_EPOCHS = {"model": "lenet", "batch_size": 32}
LENGTHS = {"epochs": {"choices": [1, 41]}}
DATA = {"name": "none", "fingerprint": "none", "classes": 10}
START = datetime(2026, 1, 1, 12)
COSTS = Costs(
    networks={"lenet": NetworkCosts(image={1: 1e-3}, step={1: 0.0}, sizes={32: 1}, checkpoint=0)},
    start=0,
    trial=0,
    report=0,
    train_images=1000,
)
RUNNING, COMPLETE, PRUNED = TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED
Open = Callable[..., SweepStudy]


@pytest.fixture
def study(storage: Storage, name: str) -> Open:
    def made(trials: int = 8, **keys: Any) -> SweepStudy:
        raw = {"name": "test", "trials": trials, "pruner": "none", "fixed": FIXED, "space": RATE} | keys
        return open_or_resume(storage, name, parse(raw, where="test"), data=DATA)

    return made


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def trial(
    number: int,
    state: TrialState,
    begun: float,
    ended: float | None,
    epochs: list[float],
    *,
    owner: str = "a",
    together: int = 1,
    **params: Any,
) -> TrialRecord:
    """A trial whose group of so many took these seconds for each epoch."""
    config = TrialConfig.from_params(FIXED | params, classes=10, precision="fp32", data_seed=0, seed=0)
    curve = [
        EpochResult(epoch, 1.0, 0.5, 1.0, 0.5, 1e-3, seconds / together, group_size=together).to_dict()
        for epoch, seconds in enumerate(epochs, start=1)
    ]
    who = asdict(Owner("here", 1, "", owner, ""))
    attributes = {"config": config.to_dict(), "curve": curve, "owner": who}
    value = 0.5 if state in (COMPLETE, PRUNED) else None
    made = optuna.create_trial(state=state, value=value, user_attrs=attributes)
    made.number, made.datetime_start = number, at(begun)
    made.datetime_complete = None if ended is None else at(ended)
    return TrialRecord(made)


def left(study: SweepStudy, trials: list[TrialRecord], now: float, **options: Any) -> tuple[float, float]:
    found = seconds_left(study, trials, now=at(now), **options)
    assert found is not None
    return found


def middle(study: SweepStudy, trials: list[TrialRecord], now: float) -> float:
    found = forecast_rest(study, trials, now=at(now))
    assert found is not None
    return found.likely


FOUR = [10.0] * 4


def test_the_time_is_shared_among_workers_not_among_trials(study: Open) -> None:
    """Two groups of four, each trial's seconds a quarter of its group's."""
    eight = [trial(k, COMPLETE, 0, 40.4, FOUR, owner="ab"[k // 4], together=4) for k in range(8)]
    running = [trial(8 + k, RUNNING, 40.5, None, FOUR[:1], owner="ab"[k // 4], together=4) for k in range(8)]
    now = 51.0
    assert middle(study(trials=16), [*eight, *running], now) == pytest.approx(30, abs=2)
    low, high = left(study(trials=16), [*eight, *running], now)
    assert low < 30 < high
    assert high - low < 20


@pytest.mark.parametrize("seed", range(3))
def test_lengths_that_seeds_decide_are_known(study: Open, seed: int) -> None:
    """One second an epoch; without the seeds a trial would take 1 or 41 of them, as luck has it."""
    made = study(trials=8, seed=seed, sampler="random", fixed=FIXED_BUT_EPOCHS, space=RATE | LENGTHS)
    note_costs(made, COSTS)
    begun = [trial(0, COMPLETE, 0, 4, [1.0] * 4), trial(1, RUNNING, 4, None, [])]
    expected = 4 + sum(drawn_shapes(made.sweep, 2, 1)[number].epochs for number in range(2, 8))
    assert middle(made, begun, 4) == pytest.approx(expected, rel=0.1)


def test_one_worker_has_all_that_is_to_come(study: Open) -> None:
    known = [trial(k, COMPLETE, 41 * k, 41 * k + 40.5, FOUR) for k in range(4)]
    known.append(trial(4, RUNNING, 164, None, []))
    assert middle(study(trials=8), known, 164.5) == pytest.approx(4 * 41, rel=0.1)
    second = [*known, trial(5, RUNNING, 164, None, [], owner="b")]
    assert middle(study(trials=8), second, 164.5) == pytest.approx(2 * 41, rel=0.1)


def test_the_last_worker_counts(study: Open) -> None:
    """Three trials are left, and two workers: two rounds."""
    known = [trial(k, COMPLETE, 41 * (k // 2), 41 * (k // 2) + 40.5, FOUR, owner="ab"[k % 2]) for k in range(4)]
    known += [trial(4, RUNNING, 82, None, [], owner="a"), trial(5, RUNNING, 82, None, [], owner="b")]
    assert middle(study(trials=7), known, 82.2) == pytest.approx(2 * 41, rel=0.1)


def test_a_trial_is_expected_to_take_what_its_own_batch_size_takes(study: Open) -> None:
    """Steps take twice as long as they were reckoned to."""
    space = RATE | {"batch_size": {"low": 16, "high": 256, "base2": True}}
    fixed = {name: value for name, value in FIXED.items() if name != "batch_size"}
    known = [trial(k, COMPLETE, 21 * k, 21 * k + 20, [5.0] * 4, batch_size=256) for k in range(3)]
    known += [trial(3 + k, COMPLETE, 63 + 201 * k, 263 + 201 * k, [50.0] * 4, batch_size=16) for k in range(3)]
    now = 63 + 603.0
    opened = study(trials=7, space=space, fixed=fixed)
    steps = COSTS.networks["lenet"].model_copy(update={"image": {1: 0.0}, "step": {1: 0.4}})
    note_costs(opened, COSTS.model_copy(update={"networks": {"lenet": steps}}))
    fast = middle(opened, [*known, trial(6, RUNNING, now, None, [], batch_size=256)], now)
    slow = middle(opened, [*known, trial(6, RUNNING, now, None, [], batch_size=16)], now)
    assert fast < 40
    assert slow > 130


def test_the_part_of_an_epoch_that_is_over_is_counted_by_the_clock(study: Open) -> None:
    known = [trial(k, COMPLETE, 41 * k, 41 * k + 40.1, FOUR) for k in range(3)]
    known.append(trial(3, RUNNING, 123, None, FOUR[:2]))
    begun, half = (middle(study(trials=4), known, now) for now in (143.5, 148.5))
    assert begun == pytest.approx(20, abs=2)
    assert begun - half == pytest.approx(5, abs=1)
    assert 0 < middle(study(trials=4), known, 1000) < 15, "a stalled epoch is about to end"


def test_epochs_that_made_the_processor_ready_are_not_taken_for_usual_ones(study: Open) -> None:
    warming = [trial(0, RUNNING, 0, None, [25.0, 10.0, 10.0])]
    assert middle(study(trials=1), warming, 45) == pytest.approx(10, abs=1)
    ended = [trial(0, COMPLETE, 0, 61, [25.0, *FOUR[:3]]), trial(1, RUNNING, 61, None, [])]
    assert middle(study(trials=2), ended, 61) == pytest.approx(40, abs=4)


def test_pruned_trials_make_those_to_come_shorter(study: Open) -> None:
    pruner = {"name": "median", "startup_trials": 2}
    opened = study(trials=40, pruner=pruner)
    complete = [trial(k, COMPLETE, 41 * k, 41 * k + 40.5, FOUR) for k in range(2)]
    last = trial(17, RUNNING, 500, None, [])
    pruned = [trial(2 + k, PRUNED, 82 + 11 * k, 92.5 + 11 * k, FOUR[:1]) for k in range(15)]
    passed = [trial(2 + k, COMPLETE, 82 + 11 * k, 122.5 + 11 * k, FOUR, owner=f"old {k}") for k in range(15)]
    assert middle(opened, [*complete, *pruned, last], 500) < 0.6 * middle(opened, [*complete, *passed, last], 500)


def test_all_trials_done_leave_nothing(study: Open) -> None:
    known = [trial(k, COMPLETE, 41 * k, 41 * k + 40.1, FOUR) for k in range(4)]
    assert left(study(trials=4), known, 1000) == (0.0, 0.0)


def test_what_is_not_known_is_not_said(study: Open) -> None:
    opened = study(trials=4)
    running = [trial(0, RUNNING, 0, None, [])]
    assert seconds_left(opened, running, now=at(5)) is None, "no epoch has ended, and nothing was timed"
    note_costs(opened, COSTS)
    assert seconds_left(opened, running, now=at(5)) is not None
    old = [trial(0, COMPLETE, 0, 40.1, FOUR)]
    assert seconds_left(opened, old, now=at(1000)) is None, "nobody works on it"
    assert seconds_left(opened, old, now=at(41)) is not None, "its worker takes the next trial"
    opened.set_state(PAUSED)
    assert seconds_left(opened, running, now=at(5)) is None


def test_before_the_first_epoch_it_is_the_costs_word_that_counts(study: Open) -> None:
    opened = study(trials=4)
    note_costs(opened, COSTS.model_copy(update={"workers": 2, "start": 7.0}))
    low, high = left(opened, [], 0, starting=True)
    expected = 3.5 + 2 * 4 * (1 + 0.25 * 0.35)  # half the start is over when the study is there; two rounds
    assert low < expected + END_SECONDS < high
    assert high < 2 * expected


def test_what_was_found_corrects_the_costs(study: Open) -> None:
    opened = study(trials=8)
    note_costs(opened, COSTS)
    three_times = [3 * 1.0875] * 4
    known = [trial(k, COMPLETE, 13.2 * k, 13.2 * k + 13.1, three_times) for k in range(5)]
    assert middle(opened, known, 67) == pytest.approx(3 * 13.1, rel=0.15)


def test_time_between_epochs_counts(study: Open) -> None:
    """Each trial takes 40 seconds of epochs, and 20 more by the clock."""
    opened = study(trials=8)
    ten_seconds = COSTS.networks["lenet"].model_copy(update={"image": {1: 0.0092}})
    note_costs(opened, COSTS.model_copy(update={"networks": {"lenet": ten_seconds}, "trial": 1.0, "report": 0.5}))
    known = [trial(k, COMPLETE, 60 * k, 60 * k + 59.9, FOUR) for k in range(5)]
    assert middle(opened, known, 300.5) == pytest.approx(3 * 60, rel=0.1)


def test_a_worker_takes_one_group_after_another() -> None:
    known = [trial(k, COMPLETE, 0.1 * k, 20 + k, [5.0], owner="a", together=3) for k in range(3)]
    known += [trial(3, RUNNING, 23, None, [5.0], owner="a"), trial(4, RUNNING, 23.2, None, [5.0], owner="a")]
    known += [trial(5, RUNNING, 1, None, [], owner="b")]
    groups = [(group.owner, [each.number for each in group.trials], group.ended) for group in groups_of(known)]
    assert groups == [("a", [0, 1, 2], at(22)), ("b", [5], None), ("a", [3, 4], None)]
    assert groups_of(known)[0].epoch_seconds == pytest.approx(5.0)
    assert at_work(known, at(30)) == {"a", "b"}
    assert at_work(known[:3], at(25)) == {"a"}
    assert at_work(known[:3], at(60)) == set()


def test_trials_without_a_worker_are_in_no_group() -> None:
    waiting = TrialRecord(optuna.create_trial(state=TrialState.WAITING))
    given_back = trial(0, RUNNING, 0, None, [1.0])
    given_back.frozen.user_attrs["owner"] = None
    assert groups_of([waiting, given_back]) == []


def test_trials_that_wait_are_counted(study: Open) -> None:
    """A point that was never begun has all its epochs to come, an interrupted trial its last ones."""
    opened = study(trials=3)
    note_costs(opened, COSTS)
    interrupted = trial(0, TrialState.WAITING, 0, None, [1.0875] * 3)
    interrupted.frozen.user_attrs["owner"] = None
    queued = TrialRecord(optuna.create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {}}))
    queued.frozen.number = 1
    running = trial(2, RUNNING, 100, None, [1.0875])
    assert middle(opened, [interrupted, queued, running], 101.1) == pytest.approx((3 + 1 + 4) * 1.0875, rel=0.05)
