"""A study of a grid: each point exactly once, with several workers, groups, failures and further runs."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import sqlalchemy

from cifar_sweep.errors import StudyError
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.earlier import earlier_of
from cifar_sweep.study.hours import Hours
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
SPACE = {
    "optimizer": {"choices": ["adam", "sgd"]},
    "momentum": {"choices": [0.0, 0.9]},
    "batch_size": {"low": 16, "high": 32, "base2": True},
}
POINTS = {("adam", None, 16), ("adam", None, 32), *(("sgd", m, b) for m in (0.0, 0.9) for b in (16, 32))}


def sweep(**tables: Any) -> Sweep:
    plain = {"name": "s", "sampler": "grid", "pruner": "none", "fixed": {"epochs": 3}, "space": SPACE}
    return parse(plain | tables, where="test")


def test_a_grid_is_queued_at_once(storage: Storage, name: str) -> None:
    statements: list[str] = []

    def note(*event: Any) -> None:
        statements.append(event[2])

    rates = {"learning_rate": {"choices": [k / 1000 for k in range(1, 101)]}}
    sqlalchemy.event.listen(storage.optuna.engine, "before_cursor_execute", note)
    study = open_or_resume(storage, name, sweep(space=rates), data=DATA)
    sqlalchemy.event.remove(storage.optuna.engine, "before_cursor_execute", note)
    assert len(study.trials()) == 100
    assert len(statements) < 200


@pytest.fixture
def make(storage: Storage, name: str) -> Callable[..., SweepStudy]:
    def made(hours: Hours | None = None, extend: bool = False, **tables: Any) -> SweepStudy:
        return open_or_resume(storage, name, sweep(**tables), data=DATA, hours=hours, extend=extend)

    return made


def worker(pid: int = 0) -> Worker:
    return Worker(Owner(**asdict(Owner.current()) | {"token": f"worker {pid}"}), "cpu", 1, "fp32")


def trained(study: SweepStudy, *, size: int = 1, most: int = 99) -> list[Claim]:
    """Two workers in turn, who hold a group each before either ends it."""
    found: list[Claim] = []
    while len(found) < most:
        groups = [study.claim(worker(pid), size=lambda _: size, workers=2) for pid in range(2)]
        if not any(groups):
            break
        for claim in (claim for group in groups for claim in group):
            study.complete(claim, 0.5)
            found.append(claim)
    return found


def points(study: SweepStudy) -> Counter[tuple[Any, ...]]:
    done = [trial.params for trial in study.trials() if trial.state == "complete"]
    return Counter(tuple(point.get(name) for name in SPACE) for point in done)


@pytest.mark.parametrize("size", [1, 4])
def test_two_workers_train_each_point_once(make: Callable[..., SweepStudy], size: int) -> None:
    study = make()
    assert study.budget == 6
    trained(study, size=size)
    assert points(study) == dict.fromkeys(POINTS, 1)
    assert study.finished()
    assert study.settle()


def test_a_group_is_of_one_shape_and_as_full_as_can_be(make: Callable[..., SweepStudy]) -> None:
    study = make(
        space={"learning_rate": {"choices": [k / 1000 for k in range(1, 9)]}, "batch_size": SPACE["batch_size"]}
    )
    sizes = [len(study.claim(worker(pid), size=lambda _: 8, workers=None)) for pid in range(2)]
    assert sizes == [8, 8]


def test_fewer_trials_are_the_first_ones_and_more_go_on(make: Callable[..., SweepStudy], storage: Storage) -> None:
    trained(make(trials=4))
    first = points(make(trials=4))
    assert len(first) == first.total() == 4
    study = make()
    assert not study.finished()
    trained(study)
    assert points(study) == dict.fromkeys(POINTS, 1)
    assert trained(load(storage, study.name)) == []


def test_a_point_that_failed_is_tried_again_by_the_next_run_alone(make: Callable[..., SweepStudy]) -> None:
    study = make()
    [failing] = study.claim(worker())
    study.fail(failing, "broken")
    trained(study)
    assert study.finished()
    assert study.missing()
    assert len(points(study)) == 5
    again = make()
    assert not again.finished()
    [claim] = trained(again)
    assert claim.config.to_dict() | {"seed": 0} == failing.config.to_dict() | {"seed": 0}
    assert points(again) == dict.fromkeys(POINTS, 1)


def test_an_interrupted_point_is_not_queued_twice(make: Callable[..., SweepStudy]) -> None:
    study = make()
    [claim] = study.claim(worker())
    study.release(claim)
    trained(make())
    assert points(study) == dict.fromkeys(POINTS, 1)


def test_the_best_are_confirmed(make: Callable[..., SweepStudy]) -> None:
    study = make(confirm=[2, 2])
    trained(study)
    assert Counter(trial.confirms is None for trial in study.trials()) == {True: 6, False: 4}
    assert study.finished()


# Another grid than SPACE with `fixed`, and the settings of all its points: optimizer, momentum, batch size, epochs and
# weight decay.
BATCHES = {"low": 16, "high": 64, "base2": True}
OPTIMIZERS = [("adam", 0.0), ("sgd", 0.0), ("sgd", 0.9)]
WAYS: dict[str, tuple[dict[str, Any], set[tuple[Any, ...]]]] = {
    "wider": (
        {"space": SPACE | {"batch_size": BATCHES}},
        {(*each, size, 3, 0.0) for each in OPTIMIZERS for size in (16, 32, 64)},
    ),
    "shifted": (
        {"space": SPACE | {"batch_size": BATCHES | {"low": 32}}},
        {(*each, size, 3, 0.0) for each in OPTIMIZERS for size in (32, 64)},
    ),
    "as choices": (
        {"space": SPACE | {"batch_size": {"choices": [16, 32, 48]}}},
        {(*each, size, 3, 0.0) for each in OPTIMIZERS for size in (16, 32, 48)},
    ),
    "longer": (
        {"fixed": {"epochs": 6}},
        {(*each, size, 6, 0.0) for each in OPTIMIZERS for size in (16, 32)},
    ),
    "fixed otherwise": (
        {"fixed": {"epochs": 3, "weight_decay": 0.1}},
        {(*each, size, 3, 0.1) for each in OPTIMIZERS for size in (16, 32)},
    ),
    "searched further": (
        {"space": SPACE | {"weight_decay": {"choices": [0.0, 0.1]}}},
        {(*each, size, 3, decay) for each in OPTIMIZERS for size in (16, 32) for decay in (0.0, 0.1)},
    ),
    "fixed now": (
        {"fixed": {"epochs": 3, "batch_size": 64}, "space": {key: SPACE[key] for key in ("optimizer", "momentum")}},
        {(*each, 64, 3, 0.0) for each in OPTIMIZERS},
    ),
}


def settings(study: SweepStudy) -> Counter[tuple[Any, ...]]:
    """The settings of complete trials: optimizer, momentum, batch size, epochs, weight decay."""
    names = ("optimizer", "momentum", "batch_size", "epochs", "weight_decay")
    done = [trial.settings for trial in study.trials() if trial.state == "complete" and trial.confirms is None]
    return Counter(tuple(each[name] for name in names) for each in done)


@pytest.mark.parametrize(("way", "before"), [*((way, 1) for way in WAYS), ("shifted", 6), ("longer", 6)])
def test_an_extended_grid_goes_on_with_exactly_the_points_not_tried_yet(
    make: Callable[..., SweepStudy], way: str, before: int
) -> None:
    """One trial was interrupted, others wait; of a study that has run to its end none."""
    tables, wanted = WAYS[way]
    study = make()
    trained(study, most=before)
    held = study.claim(worker())
    for claim in held:
        study.release(claim)
    old = settings(study)
    study = make(**tables, extend=True)
    trained(study)
    found = settings(study)
    assert found.keys() >= wanted
    assert set(found.values()) == {1}
    goes_on = {
        tuple(claim.config.complete()[name] for name in ("optimizer", "momentum", "batch_size")) for claim in held
    }
    assert {each for each in found.keys() - wanted - old.keys() if each[:3] not in goes_on} == set()
    assert study.finished()
    assert not study.missing()
    assert trained(make(**tables)) == [], "a further run has nothing to do"


def test_a_cut_grid_is_extended_by_as_many_points_as_it_asks_for(make: Callable[..., SweepStudy]) -> None:
    trained(make(trials=4))
    wider = SPACE | {"batch_size": BATCHES}
    with pytest.raises(StudyError, match=r"4 of the grid's 9 points are trained.* for 4,.*trials = 5 to 9\.$"):
        make(trials=4, space=wider, extend=True)
    study = make(trials=7, space=wider, extend=True)
    assert len(trained(study)) == 3
    assert len(trained(make(trials=8, space=wider))) == 1, "and then goes on as any other"
    trained(make(space=wider))
    assert settings(study) == dict.fromkeys(WAYS["wider"][1], 1)


def test_an_extension_that_has_nothing_new_is_refused(make: Callable[..., SweepStudy]) -> None:
    trained(make())
    words = r"6 of the grid's 6 points are trained.*accepted: further values in \[space\], or others in \[fixed\]\.$"
    with pytest.raises(StudyError, match=words):
        make(pruner="median", extend=True)
    with pytest.raises(StudyError, match=r"keep it, or begin a new study\.$"):  # --from is of no use to a grid
        make(space=SPACE | {"optimizer": {"choices": ["sgd", "nesterov"]}}, extend=True)


def test_a_search_that_becomes_a_grid_trains_what_it_did_not_find(make: Callable[..., SweepStudy]) -> None:
    trained(make(sampler="random", trials=4))
    study = make(extend=True)
    trained(study)
    assert {each[:3] for each in settings(study)} == {(*each, size) for each in OPTIMIZERS for size in (16, 32)}


def test_a_grid_that_becomes_a_search_leaves_its_points(make: Callable[..., SweepStudy]) -> None:
    trained(make(), most=1)
    study = make(sampler="random", trials=4, extend=True)
    trained(study)
    assert [trial.number for trial in study.trials() if trial.state == "complete"] == [0, 1, 6, 7]


def test_in_so_many_hours_the_grid_ends_when_each_point_was_trained(make: Callable[..., SweepStudy]) -> None:
    """How many trials fit is reckoned again and again: all points wait."""
    asked = sweep().identity()
    study = make(hours=Hours(1.0, asked, deadline=4e9), trials=2)
    while claims := study.claim(worker(), trials=6):
        study.complete(claims[0], 0.5)
    assert points(study) == dict.fromkeys(POINTS, 1)
    assert (study.finished(), study.over) == (True, "each point was trained")


def test_a_grid_takes_nothing_over(make: Callable[..., SweepStudy]) -> None:
    with pytest.raises(StudyError, match="a grid searches nothing"):
        earlier_of(make(), sweep(), data=DATA, code={})
