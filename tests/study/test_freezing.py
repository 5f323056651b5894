"""Strategy auto in a database: trials are frozen after a grant, thawed, and pruned as a choice says."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cifar_sweep.curve import EpochResult
from cifar_sweep.errors import UsageError
from cifar_sweep.search.choice import Choice, Choose, Gain, Hope, Situation
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.terminal.status import glance, remarks

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
SPACE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}}
EPOCHS = 24  # in grants that end after 2, 8 and 24


def sweep(trials: int, **tables: Any) -> Sweep:
    fixed = {"model": "convnet", "epochs": EPOCHS}
    plain = {"name": "s", "trials": trials, "strategy": "auto", "fixed": fixed, "space": SPACE}
    return parse(plain | tables, where="test")


@pytest.fixture
def make(storage: Storage, name: str) -> Callable[..., SweepStudy]:
    return lambda trials, **tables: open_or_resume(storage, name, sweep(trials, **tables), data=DATA)


def worker() -> Worker:
    return Worker(Owner.current(), "cpu (test)", 1, "fp32")


def says(**choice: Any) -> Choose:
    return lambda _: Choice(**choice)


def new(count: int) -> Choose:
    return says(new=[{"learning_rate": 1e-3 * (k + 1)} for k in range(count)])


def train(study: SweepStudy, claims: Sequence[Claim], *, until: int | None = None) -> None:
    """Report epochs up to the end of the grant, or `until`; then freeze or complete."""
    for claim in claims:
        curve = list(claim.curve)
        for epoch in range(len(curve) + 1, (until or claim.until) + 1):
            curve.append(EpochResult(epoch, 1.0, 0.5, 1.0, 0.1 + 0.01 * epoch, 1e-3, 1.0).to_dict())
        study.report(claim, curve)
        if len(curve) == EPOCHS:
            study.complete(claim, 0.34)
        else:
            study.release(claim)


def counts(study: SweepStudy) -> dict[str, int]:
    return {name: count for name, count in study.summary()["trials"].items() if count}


def test_a_trial_is_frozen_after_its_grant_and_goes_on_when_it_is_chosen(make: Callable[..., SweepStudy]) -> None:
    study, me = make(4), worker()
    claims = study.claim(me, choose=new(2))
    assert [claim.until for claim in claims] == [2, 2]
    train(study, claims)
    assert counts(study) == {"frozen": 2}
    first, second = study.trials()
    assert first.is_frozen
    assert first.state_words == "frozen after epoch 2"
    assert study.claim(me, choose=says()) == [], "a frozen trial does not go on by itself"
    hope = Hope(0.7, 0.02, 0.5, 0.9)
    [thawed] = study.claim(me, choose=says(thawed=[second.number], hopes={1: hope}))
    assert (thawed.number, len(thawed.curve), thawed.until) == (1, 2, 8)
    assert study.hopes == {1: hope}
    train(study, [thawed], until=3)
    assert not study.trials()[1].is_frozen, "its grant is not at its end"
    [again] = study.claim(me, choose=says(thawed=[0]))
    assert (again.number, again.until) == (1, 8), "an interrupted trial goes on before anything is chosen"


def test_a_frozen_trial_is_pruned_with_its_reason(make: Callable[..., SweepStudy]) -> None:
    study, me = make(2), worker()
    train(study, study.claim(me, choose=new(2)))
    reason = "stopped after epoch 2: 1% chance to beat trial 1"
    study.claim(me, choose=says(thawed=[1], pruned={0: reason}))
    pruned = study.trials()[0]
    assert (pruned.state, pruned.reason, pruned.epochs_done) == ("pruned", reason, 2)
    assert pruned.value == pytest.approx(0.12), "the last one reported"
    assert counts(study) == {"pruned": 1, "running": 1}
    told = glance(study)
    assert told["stopped"] == {0: reason}
    assert remarks(told)[-1] == f"trial 0: {reason}"
    study.claim(worker(), choose=says(thawed=[0], pruned={0: "twice"}))
    assert study.trials()[0].reason == reason


def test_a_trial_whose_worker_died_between_its_last_epoch_and_its_end_is_ended_and_not_frozen(
    make: Callable[..., SweepStudy], ended_pid: int
) -> None:
    study, dead = make(2), worker()
    dead = replace(dead, owner=replace(dead.owner, pid=ended_pid))
    [claim] = study.claim(dead, choose=new(1))
    curve = [EpochResult(epoch, 1.0, 0.5, 1.0, 0.5, 1e-3, 1.0).to_dict() for epoch in range(1, EPOCHS + 1)]
    study.report(claim, curve)
    [again] = study.claim(worker(), choose=says(pruned={0: "hopeless"}))
    assert (again.number, len(again.curve), again.until) == (0, EPOCHS, EPOCHS)


def test_what_was_chosen_counts_as_far_as_it_is_still_so(make: Callable[..., SweepStudy]) -> None:
    study, one, two = make(3), worker(), worker()
    train(study, study.claim(one, choose=new(2)))
    held = study.claim(one, choose=says(thawed=[0]))
    assert [claim.number for claim in study.claim(two, choose=says(thawed=[0, 1]))] == [1]
    assert [claim.number for claim in held] == [0]
    assert len(study.claim(worker(), choose=new(5))) == 1, "the budget has room for one more"
    assert study.claim(worker(), choose=new(5)) == []


def test_points_that_others_have_begun_meanwhile_are_not_begun_again(make: Callable[..., SweepStudy]) -> None:
    study, one, two = make(6), worker(), worker()
    asked: list[int] = []

    def choose(now: Situation) -> Choice:
        asked.append(len(now.courses))
        if len(asked) == 1:
            study.claim(two, choose=new(1))
        return Choice(new=[{"learning_rate": 1e-3}])

    assert len(study.claim(one, choose=choose)) == 1
    assert asked == [0, 1]


def test_points_tried_first_come_before_a_choice(make: Callable[..., SweepStudy]) -> None:
    study = make(3, enqueue=[{"learning_rate": 0.01}, {"learning_rate": 0.02}])
    claims = study.claim(worker(), size=lambda _: 8, choose=new(5))
    assert [claim.config.knobs.learning_rate for claim in claims] == [0.01, 0.02]
    assert [claim.until for claim in claims] == [2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_every_mix_of_choices_ends_with_exactly_the_budget(seed: int, make: Callable[..., SweepStudy]) -> None:
    chance = random.Random(seed)
    study = make(9, enqueue=[{"learning_rate": 0.01}])

    def choose(now: Situation) -> Choice:
        frozen = [course.number for course in now.courses if course.frozen]
        if now.room and (chance.random() < 0.5 or not frozen):
            return Choice(new=[{"learning_rate": 1e-3}] * chance.randint(1, 12))
        pruned = dict.fromkeys(chance.sample(frozen, chance.randint(0, len(frozen) // 2)), "hopeless")
        return Choice(
            thawed=[number for number in frozen if number not in pruned][: chance.randint(1, 4)], pruned=pruned
        )

    held: list[tuple[Worker, list[Claim]]] = []
    for _ in range(400):
        if study.finished():
            break
        if len(held) < 3 and (claims := study.claim(me := worker(), size=lambda _: 4, choose=choose)):
            held.append((me, claims))
        found = study.summary()["trials"]
        begun = sum(found[state] for state in ("complete", "pruned", "running", "frozen"))
        assert begun <= 9
        if held and chance.random() < 0.7:
            _, claims = held.pop(chance.randrange(len(held)))
            train(study, claims, until=min(claims[0].until, len(claims[0].curve) + chance.randint(1, 2)))
    assert study.finished()
    found = study.summary()["trials"]
    assert found["complete"] + found["pruned"] == 9
    assert found["running"] == found["waiting"] == found["frozen"] == found["failed"] == 0


@pytest.mark.parametrize("named", [{"sampler": "tpe"}, {"pruner": "median"}])
def test_strategy_auto_takes_no_sampler_and_no_pruner(named: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="strategy 'auto' does not go with"):
        sweep(4, **named)


@pytest.mark.parametrize("named", [{"sampler": "auto"}, {"pruner": "auto"}])
def test_sampler_and_pruner_auto_need_the_strategy(named: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="strategy 'optuna' does not go with"):
        sweep(4, strategy="optuna", **named)


def test_a_stored_sweep_of_strategy_auto_is_read_again() -> None:
    stored = sweep(4).model_dump(mode="json")
    assert parse(stored, where="test") == sweep(4)


def test_a_search_that_is_not_worth_going_on_with_ends_where_it_was_asked_to(make: Callable[..., SweepStudy]) -> None:
    study, me, other = make(9, stop="auto"), worker(), worker()
    train(study, study.claim(me, choose=new(2)))
    held = study.claim(other, choose=says(new=[{"learning_rate": 0.01}], gain=Gain(0.02, 0.01)))
    assert study.gain == Gain(0.02, 0.01)
    assert study.claim(me, choose=says(thawed=[0], gain=Gain(0.001, 0.01))) == []
    why = "10 more trials are expected to gain 0.1 points; one seed's noise is 1.0"
    assert study.over == why
    assert [trial.reason for trial in study.trials()] == [f"stopped after epoch 2: {why}"] * 2 + [""]
    assert not study.finished(), "another worker is at it"
    train(study, held)
    assert study.claim(me, choose=new(1)) == []
    assert study.finished()
    assert study.settle()
    assert (study.state, study.reason, study.budget) == ("finished", why, 3)
    assert counts(study) == {"pruned": 3}


def test_a_search_goes_on_where_nobody_asked_it_to_stop(make: Callable[..., SweepStudy]) -> None:
    study = make(9)
    assert len(study.claim(worker(), choose=says(new=[{"learning_rate": 0.01}], gain=Gain(0.001, 0.01)))) == 1
    assert study.over == ""
    with pytest.raises(UsageError, match="stop = 'auto' needs the model of strategy = 'auto'"):
        sweep(4, strategy="optuna", stop="auto")
    with pytest.raises(UsageError, match="there is no stop 'now'; known: auto, never"):
        sweep(4, stop="now")
