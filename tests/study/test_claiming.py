"""The rules of claiming: the budget holds at every moment, for every mix of trials, groups and workers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cifar_sweep.forecast.expected import drawn_shapes
from cifar_sweep.forecast.schedule import group_sizes
from cifar_sweep.study.claim import Worker
from cifar_sweep.study.next_group import NEW, Queue, Waiting, next_group
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage, open_existing
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

RATE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}}
BATCH = {"batch_size": {"low": 16, "high": 64, "base2": True}}
DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
SIZES = st.integers(1, 16)
SHAPES = st.sampled_from("abc")


def sweep(trials: int, **tables: Any) -> Sweep:
    plain = {"name": "s", "trials": trials, "sampler": "random", "pruner": "none", "fixed": {"epochs": 3}}
    return parse(plain | {"space": RATE | BATCH} | tables, where="test")


class Study(RuleBasedStateMachine):
    """A model of a study: its workers claim groups by the rules alone, and its trials end in every way."""

    @initialize(
        trials=st.integers(1, 20),
        shapes=st.lists(st.none() | SHAPES, max_size=25),
        sampler=st.sampled_from(["random", "tpe"]),
        searched=st.booleans(),
    )
    def begin(self, trials: int, shapes: list[str | None], sampler: str, searched: bool) -> None:
        self.sweep = sweep(trials, sampler=sampler, space=RATE | BATCH if searched else RATE)
        self.numbers = count()
        self.waiting = [Waiting(next(self.numbers), shape) for shape in shapes]
        self.running: list[Waiting] = []
        self.finished = 0

    @property
    def queue(self) -> Queue:
        return Queue(self.sweep, self.finished, len(self.running), self.waiting)

    @rule(size=SIZES, workers=st.none() | st.integers(1, 4), chosen=SHAPES)
    def claim(self, size: int, workers: int | None, chosen: str) -> None:
        queue = self.queue
        first = queue.first()
        if first is None:
            assert queue.room == 0
            return
        if any(trial.epochs for trial in self.waiting):
            assert first.begun, "an interrupted trial comes first"
        group = next_group(queue, replace(first, shape=first.shape or chosen), size=size, workers=workers)
        assert 1 <= group.size <= size
        assert first is NEW or group.waiting[0].number == first.number
        assert {trial.epochs for trial in group.waiting} <= {first.epochs}
        assert first.epochs == 0 or group.new == 0
        taken = {trial.number for trial in group.waiting}
        new = [Waiting(next(self.numbers)) for _ in range(group.new)]
        self.waiting = [trial for trial in self.waiting if trial.number not in taken]
        shape = first.shape or chosen
        self.running += [replace(trial, shape=shape, begun=True) for trial in (*group.waiting, *new)]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), end=st.sampled_from(["finished", "failed", "interrupted"]), epochs=st.integers(0, 2))
    def end(self, data: st.DataObject, end: str, epochs: int) -> None:
        trial = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.finished += end == "finished"
        if end == "interrupted":
            self.waiting.append(replace(trial, epochs=trial.epochs + epochs))

    @rule(more=st.integers(0, 5), shapes=st.lists(st.none() | SHAPES, max_size=3))
    def resume(self, more: int, shapes: list[str | None]) -> None:
        self.sweep = self.sweep.model_copy(update={"trials": self.sweep.trials + more})
        self.waiting += [Waiting(next(self.numbers), shape) for shape in shapes]

    @invariant()
    def the_budget_holds(self) -> None:
        if hasattr(self, "sweep"):
            assert self.finished + len(self.running) <= self.sweep.size
            begun = [trial for trial in self.waiting if trial.begun]
            assert all(trial in self.queue.placed for trial in begun), "what was begun can always be continued"

    def teardown(self) -> None:
        """Without more failures every study ends with exactly its budget."""
        while hasattr(self, "sweep") and (self.running or self.queue.first()):
            self.finished += len(self.running)
            self.running = []
            self.claim(8, 2, "a")
            self.the_budget_holds()
        if hasattr(self, "sweep"):
            assert self.finished == self.sweep.size


TestStudy = Study.TestCase
TestStudy.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@given(trials=st.integers(1, 30), running=st.integers(0, 5), points=st.integers(0, 30), size=SIZES)
@settings(deadline=None)
def test_given_points_are_never_joined_by_new_trials(trials: int, running: int, points: int, size: int) -> None:
    named = [{"label": str(number), "learning_rate": 1e-3} for number in range(trials)]
    asked = sweep(50, sampler="given", enqueue=named)
    queue = Queue(asked, running=running, waiting=[Waiting(number, "a") for number in range(points)])
    first = queue.first()
    if first is None:
        assert not points or running >= trials
        return
    group = next_group(queue, first, size=size, workers=None)
    assert (group.new, group.size) == (0, min(size, points, trials - running))


def test_trials_of_one_shape_and_as_many_epochs_are_taken_together() -> None:
    kinds = [("a", 0), ("b", 0), ("a", 0), (None, 0), ("a", 2), ("a", 0)]
    waiting = [Waiting(number, shape, epochs) for number, (shape, epochs) in enumerate(kinds)]
    queue = Queue(sweep(9), waiting=waiting)
    group = next_group(queue, waiting[0], size=4, workers=None)
    assert ([trial.number for trial in group.waiting], group.new) == ([0, 2, 5], 1)
    assert next_group(queue, waiting[3], size=4, workers=None) == ([waiting[3]], 3), "its shape is not known"


def test_new_trials_do_not_join_an_interrupted_one() -> None:
    interrupted = Waiting(0, "a", epochs=2, begun=True)
    assert next_group(Queue(sweep(9), waiting=[interrupted]), interrupted, size=4, workers=None).size == 1


def test_groups_of_workers_that_keep_step() -> None:
    assert group_sizes(sweep(32, sampler="tpe", space=RATE), workers=2, largest=16) == [8, 8, 8, 8]


@pytest.mark.parametrize("space", [RATE, RATE | BATCH])
@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("trials", [3, 40, 41])
def test_groups_spend_the_budget_exactly(space: dict[str, Any], workers: int, trials: int) -> None:
    sizes = group_sizes(sweep(trials, sampler="tpe", space=space), workers=workers, largest=8)
    assert sum(sizes) == trials
    assert 1 <= min(sizes) <= max(sizes) <= 8


# In a database

POINTS = [{"learning_rate": 1e-3 + k * 1e-4, "batch_size": 16} for k in range(13)]


@pytest.fixture
def make(storage: Storage, name: str) -> Callable[..., SweepStudy]:
    return lambda trials, **tables: open_or_resume(storage, name, sweep(trials, **tables), data=DATA)


def worker(precision: str = "fp32") -> Worker:
    return Worker(Owner.current(), "cpu (test)", 2, precision)


def counts(study: SweepStudy) -> tuple[int, int, int]:
    found = study.summary()["trials"]
    return found["complete"], found["running"], found["waiting"]


@pytest.mark.parametrize("sampler", ["random", {"name": "tpe", "startup_trials": 12}])
def test_the_shapes_of_leaders_are_foretold(make: Callable[..., SweepStudy], sampler: Any) -> None:
    keys = {"sampler": sampler, "seed": 7, "enqueue": [{"batch_size": 16}]}
    study, leaders = make(24, **keys), {}
    for size in (1, 2, 3, 1, 4, 1):
        claims = study.claim(worker(), size=lambda _, size=size: size)
        leaders[claims[0].trial.number] = claims[0].config.shape
        study.complete(claims[0], 0.5)
    foretold = drawn_shapes(sweep(24, **keys), 1)
    del leaders[0]  # the point that was given
    assert {number: foretold[number] for number in leaders} == leaders
    assert 0 not in foretold
    assert len({shape.batch_size for shape in leaders.values()}) > 1


def test_points_beyond_the_budget_wait_until_it_is_raised(make: Callable[..., SweepStudy]) -> None:
    study = make(4, enqueue=POINTS)
    assert counts(study) == (0, 0, 4)
    claims = study.claim(worker(), size=lambda _: 8)
    assert [claim.number for claim in claims] == [0, 1, 2, 3]
    assert study.claim(worker(), size=lambda _: 8) == []
    assert (counts(study), len(study.asked())) == ((0, 4, 0), 4)
    for claim in claims:
        study.complete(claim, 0.5)
    assert study.finished()
    assert counts(study) == (4, 0, 0)
    assert [trial.state for trial in study.trials()] == ["complete"] * 4 + ["waiting"] * 9
    more = make(6, enqueue=POINTS)
    assert (more.finished(), counts(more)) == (False, (4, 0, 2))
    assert [claim.number for claim in more.claim(worker(), size=lambda _: 8)] == [4, 5]
    assert len(more.trials()) == 13, "nothing is enqueued twice"


def test_an_interrupted_trial_is_continued_before_a_point_is_begun(make: Callable[..., SweepStudy]) -> None:
    study = make(4, enqueue=POINTS[:1])
    claims = study.claim(worker(), size=lambda _: 4)
    study.report(claims[2], [{"epoch": 1, "validation_accuracy": 0.5}])
    study.release(claims[2])
    study = make(4, enqueue=POINTS)
    [again] = study.claim(worker(), size=lambda _: 8)
    assert again.number == claims[2].number
    assert study.claim(worker(), size=lambda _: 8) == []


def test_a_group_is_of_one_precision(make: Callable[..., SweepStudy]) -> None:
    study = make(4, enqueue=POINTS)
    [begun] = study.claim(worker("bf16"))
    study.release(begun)
    [again] = study.claim(worker("fp32"), size=lambda _: 8)
    assert again.config.shape.precision == "bf16"
    rest = study.claim(worker("fp32"), size=lambda _: 8)
    assert {claim.config.shape.precision for claim in rest} == {"fp32"}
    assert len(rest) == 3


def test_the_sweep_is_parsed_again_only_where_its_text_has_changed(
    make: Callable[..., SweepStudy], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_sweep.study import stored as module

    study = make(4)
    parsed: list[str] = []
    monkeypatch.setattr(module, "parse", lambda raw, *, where: (parsed.append(where), parse(raw, where=where))[1])
    for _ in range(3):
        study.claim(worker())
    assert parsed == []
    make(6)
    study.claim(worker())
    assert (study.budget, len(parsed)) == (6, 1)


RUN = ("run", "points.toml", "--data", "synthetic:500", "--epochs", 1, "--train-images", 100, "--workers", 1)


@pytest.mark.parametrize("trials", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_ends_with_exactly_its_budget(tmp_path: Path, cli: Any, trials: int) -> None:
    points = "".join(f"[[enqueue]]\nlearning_rate = {1e-3 + k * 1e-4:.4f}\nbatch_size = 16\n" for k in range(13))
    Path("points.toml").write_text(
        "sampler = 'random'\n[fixed]\nmodel = 'lenet'\nprecision = 'fp32'\n[space]\n"
        "learning_rate = { low = 1e-5, high = 0.1, log = true }\nbatch_size = { low = 16, high = 64, base2 = true }\n"
        + points
    )
    ended = cli(*RUN, "--trials", trials, "--group", 8, "--threads", 1)
    assert ended.exit_code == 0, ended.err
    assert f"{trials} of {trials} trials finished: {trials} complete, 0 pruned" in ended.out
    study = load(open_existing("sqlite:///studies.db"))
    assert [trial.state for trial in study.trials()] == ["complete"] * trials + ["waiting"] * (13 - trials)
    assert study.summary()["trials"]["waiting"] == 0
