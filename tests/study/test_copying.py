"""What a copy promises, from SQLite and PostgreSQL to either: all trials as they were, or nothing."""

import math
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial

from cifar_sweep.database import locks
from cifar_sweep.errors import StorageError, StudyError, UsageError
from cifar_sweep.study import opening as studies
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.copying import copy_studies
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep
from tests.study.plain_studies import begun

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
SPACE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}, "batch_size": {"low": 16, "high": 64, "base2": True}}
POINTS = [{"learning_rate": 1e-3, "batch_size": 16, "label": "A-1"}, {"learning_rate": 1e-2}]
KINDS = ("sqlite", "postgresql")
# What a test asks of each database by itself is asked once of each, not in all four directions.
ACROSS = [pytest.param(pair, marks=pytest.mark.slow) for pair in (KINDS, KINDS[::-1], ("postgresql", "postgresql"))]
there_and_back = pytest.mark.parametrize("databases", ACROSS[:2], ids="-to-".join, indirect=True)


def postgres_database(url: str) -> str:
    """The address of a new database of the server at `url`."""
    name = f"copying-{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return sqlalchemy.make_url(url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def postgres_pair(postgres_url: str) -> Iterator[tuple[Storage, Storage]]:
    """Two databases, opened once: the tables of one take a second."""
    with (
        closing(open_storage(postgres_database(postgres_url))) as one,
        closing(open_storage(postgres_database(postgres_url))) as two,
    ):
        yield one, two


@pytest.fixture(scope="module")
def sqlite_pair(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Storage, Storage]]:
    folder = tmp_path_factory.mktemp("copying")
    for name in ("one.db", "two.db"):
        shutil.copy(sqlite_template, folder / name)
    with (
        closing(open_storage(f"sqlite:///{folder}/one.db")) as one,
        closing(open_storage(f"sqlite:///{folder}/two.db")) as two,
    ):
        yield one, two


@pytest.fixture(params=[("sqlite", "sqlite"), *ACROSS], ids="-to-".join)
def databases(request: pytest.FixtureRequest) -> Iterator[tuple[Storage, Storage]]:
    """Source and target, both empty."""
    pairs = {"sqlite": "sqlite_pair", "postgresql": "postgres_pair"}
    one, two = (request.getfixturevalue(pairs[kind])[place] for place, kind in enumerate(request.param))
    yield one, two
    for storage in (one, two):
        for name in optuna.get_all_study_names(storage.optuna):
            optuna.delete_study(storage=storage.optuna, study_name=name)


@pytest.fixture
def source(databases: tuple[Storage, Storage]) -> Storage:
    return databases[0]


@pytest.fixture
def target(databases: tuple[Storage, Storage]) -> Storage:
    return databases[1]


@pytest.fixture(scope="module", autouse=True)
def quick_commit() -> Iterator[None]:
    """git takes a tenth of a second to look for changes, and here a study is made in every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "commit", lambda: "0123456789ab-dirty")
        yield


def sweep(**tables: Any) -> Sweep:
    plain = {"name": "s", "trials": 8, "sampler": "random", "pruner": "none", "fixed": {"epochs": 3}, "space": SPACE}
    return parse(plain | tables, where="test")


def make(storage: Storage, name: str = "first", **tables: Any) -> SweepStudy:
    return open_or_resume(storage, name, sweep(**tables), data=DATA)


def claimed(study: SweepStudy, **owner: Any) -> Claim:
    here = Owner.current()
    parts = {"host": here.host, "pid": here.pid, "started": here.started, "token": here.token, "system": here.system}
    [claim] = study.claim(Worker(Owner(**parts | owner), "cpu (test)", 2, "fp32"))
    return claim


def curve(epochs: int) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "validation_accuracy": 0.5 + epoch / 30} for epoch in range(1, epochs + 1)]


def study_of(storage: Storage, name: str = "first") -> optuna.Study:
    return optuna.load_study(storage=storage.optuna, study_name=name)


def parts(trial: FrozenTrial) -> dict[str, Any]:
    """All of a trial but its key; dictionaries as sorted text, because a NaN does not equal itself."""
    names = (
        "number state values params distributions intermediate_values user_attrs system_attrs "
        "datetime_start datetime_complete"
    )
    found = {name: getattr(trial, name) for name in names.split()}
    return {name: repr(sorted(part.items()) if isinstance(part, dict) else part) for name, part in found.items()}


def everything(storage: Storage, name: str = "first") -> tuple[Any, ...]:
    """All of a study, to be compared."""
    study = study_of(storage, name)
    system = storage.optuna.get_study_system_attrs(storage.optuna.get_study_id_from_name(name))
    return study.user_attrs, system, study.metric_names, study.directions, [parts(trial) for trial in study.trials]


def make_rich(storage: Storage) -> SweepStudy:
    """A study with trials of all states that may rest, and with all that a trial may have."""
    study = make(storage, enqueue=[*POINTS, {"batch_size": 32}])
    first, second, third, fourth, fifth = (claimed(study) for _ in range(5))
    study.report(first, curve(3))
    study.complete(first, 0.1 + 0.2, best_epoch=2, weights={"name": "w", "size": 3, "sha256": "f00"})
    second.trial.report(math.nan, 1)
    second.trial.report(math.inf, 2)
    second.trial.report(1 / 3, 10)
    study.prune(second, 'weak: "ä", \\ and \u0000')
    study.fail(third, "ValueError: bad")
    study.report(fourth, curve(2))
    study.release(fourth)
    storage.optuna.set_trial_system_attr(fifth.trial_id, "artifacts:1", '{"filename": "w"}')
    study.complete(fifth, math.inf)
    choices = optuna.distributions.CategoricalDistribution([None, True, 1.5, "a"])
    distributions = {"x": choices, "y": optuna.distributions.FloatDistribution(0, 1)}
    given = optuna.trial.create_trial(value=0.25, params={"x": "a", "y": 0.5}, distributions=distributions)
    given.params = {"x": "a", "y": 2.5}  # as a given point outside of its space
    study_id = storage.optuna.get_study_id_from_name("first")
    storage.optuna.create_new_trial(study_id, template_trial=given)
    study_of(storage).enqueue_trial({"learning_rate": 1e-4, "batch_size": 16}, user_attrs={"label": "queued"})
    study.record_test([0, 4], 0.75)
    storage.optuna.set_study_system_attr(study_id, "dashboard:note", "what for")
    return study


class BreakError(Exception):
    """What ends a process in the middle."""


@contextmanager
def before_writing(storage: Storage, table: str, act: Callable[[sqlalchemy.Connection], None]) -> Iterator[None]:
    """Do something in the transaction that is about to add rows to a table of the database."""

    def on_statement(connection: sqlalchemy.Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith(f"INSERT INTO {table} "):
            act(connection)

    sqlalchemy.event.listen(storage.optuna.engine, "before_cursor_execute", on_statement)
    try:
        yield
    finally:
        sqlalchemy.event.remove(storage.optuna.engine, "before_cursor_execute", on_statement)


def break_at(count: int) -> Callable[[sqlalchemy.Connection], None]:
    """What raises when it is called for the `count`-th time."""
    calls = iter(range(1, count + 1))

    def broken(_connection: sqlalchemy.Connection) -> None:
        if next(calls) == count:
            raise BreakError

    return broken


# What arrives


def test_a_study_arrives_as_it_was_and_comes_back(source: Storage, target: Storage) -> None:
    study = make_rich(source)
    before = everything(source)
    states = ["COMPLETE", "PRUNED", "FAIL", "WAITING", "COMPLETE", "FAIL", "WAITING"]  # the last FAIL: not ours
    assert [trial.frozen.state.name for trial in study.trials()] == states
    said: list[str] = []
    assert copy_studies(source, target, ["first"], say=said.append) == ["first"]
    assert said == ["study 'first' is copied, trials: 7."]
    assert everything(target) == before
    assert everything(source) == before
    copied = load(target, "first")
    assert (copied.uid, copied.test_accuracy([0, 4])) == (study.uid, 0.75)
    assert copied.summary() == study.summary()
    optuna.delete_study(storage=source.optuna, study_name="first")
    assert copy_studies(target, source) == ["first"]
    assert everything(source) == before


def test_a_waiting_point_is_claimed_there_with_its_parameters(source: Storage, target: Storage) -> None:
    make(source, enqueue=POINTS)
    copy_studies(source, target)
    study = load(target, "first")
    first, second = claimed(study), claimed(study)
    assert (first.config.knobs.learning_rate, first.config.shape.batch_size) == (1e-3, 16)
    assert second.config.knobs.learning_rate == 1e-2
    assert [trial.label for trial in study.trials()] == ["A-1", ""]


def test_the_budget_goes_on_exactly(source: Storage, target: Storage) -> None:
    study = make(source, trials=5)
    study.complete(claimed(study), 0.5)
    study.fail(claimed(study), "broken")
    study.release(claimed(study))
    copy_studies(source, target)
    there = make(target, trials=5)
    numbers = []
    while not there.finished():
        claim = claimed(there)
        numbers.append(claim.number)
        there.complete(claim, 0.5)
    assert numbers == [2, 3, 4, 5]
    assert len(there.trials()) == 6
    assert there.claim(Worker(Owner.current(), "cpu", 1, "fp32")) == []


def test_a_released_trial_goes_on_where_it_was(source: Storage, target: Storage) -> None:
    study = make(source)
    released = claimed(study)
    study.report(released, curve(2), [{"epoch": 2, "name": "k", "sha256": "0", "size": 1}])
    study.release(released)
    copy_studies(source, target)
    there = load(target, "first")
    again = claimed(there)
    assert (again.number, again.config, again.before.epochs_done) == (0, released.config, 2)
    assert again.before.checkpoints == [{"epoch": 2, "name": "k", "sha256": "0", "size": 1}]
    there.report(again, curve(3))
    assert list(there.trials()[0].frozen.intermediate_values) == [1, 2, 3]


def test_the_trial_of_a_dead_worker_arrives_waiting(source: Storage, target: Storage, ended_pid: int) -> None:
    study = make(source, trials=1)
    lost = claimed(study, pid=ended_pid)
    study.report(lost, curve(2))
    copy_studies(source, target)
    there = load(target, "first")
    [trial] = there.trials()
    assert (trial.state, trial.owner) == ("waiting", None)
    assert trial.epochs_done == 2
    again = claimed(there)
    assert (again.number, again.config, again.before.epochs_done) == (0, lost.config, 2)
    assert study.trials()[0].state == "running"


@there_and_back
def test_all_studies_of_ours_are_copied_and_no_other(source: Storage, target: Storage) -> None:
    make(source, "b")
    make(source, "a")
    optuna.create_study(storage=source.optuna, study_name="foreign", direction="maximize")
    assert copy_studies(source, target) == ["a", "b"]
    assert sorted(optuna.get_all_study_names(target.optuna)) == ["a", "b"]


@there_and_back
def test_named_studies_are_copied_alone_and_once(source: Storage, target: Storage) -> None:
    for name in "abc":
        make(source, name)
    assert copy_studies(source, target, ["c", "a", "c"]) == ["c", "a"]
    assert sorted(optuna.get_all_study_names(target.optuna)) == ["a", "c"]


# Broken off


@pytest.mark.parametrize("table", ["studies", "study_user_attributes", "trials", "trial_intermediate_values"])
def test_a_copy_that_is_broken_off_leaves_nothing(source: Storage, target: Storage, table: str) -> None:
    make_rich(source)
    with before_writing(target, table, break_at(1)), pytest.raises(BreakError):
        copy_studies(source, target)
    assert optuna.get_all_study_names(target.optuna) == []
    assert copy_studies(source, target) == ["first"]
    assert everything(target) == everything(source)


@there_and_back
def test_a_command_that_was_broken_off_goes_on_where_it_was(source: Storage, target: Storage) -> None:
    for name in "abc":
        make(source, name, enqueue=POINTS)
    with before_writing(target, "trials", break_at(2)), pytest.raises(BreakError):
        copy_studies(source, target)
    said: list[str] = []
    assert copy_studies(source, target, say=said.append) == ["b", "c"]
    assert said == [
        "study 'a' is there already, the same trial for trial, and passed over.",
        "study 'b' is copied, trials: 2.",
        "study 'c' is copied, trials: 2.",
    ]
    for name in "abc":
        assert everything(target, name) == everything(source, name)
    with pytest.raises(StudyError, match="all 3 studies are here already, the same trial for trial; nothing was cop"):
        copy_studies(source, target)


DISTORTIONS = {
    "another trial 0": "UPDATE trial_values SET value = 0.5, value_type = 'FINITE'",
    "other attributes": "UPDATE study_user_attributes SET value_json = '1'",
}


@there_and_back
@pytest.mark.parametrize("found", DISTORTIONS)
def test_what_did_not_arrive_as_it_was_is_no_study(source: Storage, target: Storage, found: str) -> None:
    make_rich(source)

    def distort(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql(DISTORTIONS[found])

    said = rf"did not arrive as it was \({found}\), and is no study yet; copy it again"
    with before_writing(target, "trial_system_attributes", distort), pytest.raises(StudyError, match=said):
        copy_studies(source, target)
    assert optuna.get_all_study_names(target.optuna) == []
    assert copy_studies(source, target) == ["first"]


# Refused


@there_and_back
def test_a_study_that_is_trained_is_refused_and_nothing_is_copied(source: Storage, target: Storage) -> None:
    make(source, "a", enqueue=POINTS)
    study = make(source, "b")
    claim = claimed(study)
    claimed(study, host="elsewhere")
    claimed(study)
    study.complete(claim, 0.5)
    with pytest.raises(StudyError) as refused:
        copy_studies(source, target)
    assert str(refused.value) == (
        f"{source.shown}: study 'b' is being trained (running trials: 2); pause it with `cifar-sweep pause b`, or wait "
        "until it has ended."
    )
    assert optuna.get_all_study_names(target.optuna) == []
    assert copy_studies(source, target, ["a"]) == ["a"]


def test_a_trial_that_another_program_has_left_behind_holds_no_copy_off(source: Storage, target: Storage) -> None:
    study = make(source)
    begun(source, study_of(source))
    assert [trial.state for trial in study.trials()] == ["outside"]
    assert copy_studies(source, target) == ["first"]
    assert [trial.state for trial in load(target, "first").trials()] == ["outside"]


@there_and_back
def test_a_study_that_is_there_already_is_refused(source: Storage, target: Storage) -> None:
    make_rich(source)
    copy_studies(source, target)
    before = everything(target)
    with pytest.raises(StudyError) as refused:
        copy_studies(source, target, ["first"])
    assert str(refused.value) == (
        f"{target.shown}: study 'first' is here already, the same trial for trial; nothing was copied."
    )
    assert everything(target) == before


CHANGES: dict[str, Callable[[SweepStudy], Any]] = {
    "2 trials instead of 1": lambda study: (claimed(study), claimed(study)),
    "another trial 0": lambda study: study.complete(claimed(study), 0.5),
    "other attributes": lambda study: study.set_state("paused"),
}


@there_and_back
@pytest.mark.parametrize(("found", "change"), CHANGES.items(), ids=list(CHANGES))
def test_a_study_that_went_on_in_the_target_is_left_alone(
    source: Storage, target: Storage, change: Callable[[SweepStudy], Any], found: str
) -> None:
    study = make(source)
    study.release(claimed(study))
    copy_studies(source, target)
    change(load(target, "first"))
    before = everything(target)
    make(source, "second")
    with pytest.raises(StudyError) as refused:
        copy_studies(source, target)
    assert str(refused.value) == (
        f"{target.shown}: study 'first' is here already, the same one in another state ({found}); delete the one that "
        "you do not want."
    )
    assert everything(target) == before
    assert optuna.get_all_study_names(target.optuna) == ["first"]


@there_and_back
def test_another_study_of_that_name_is_left_alone(source: Storage, target: Storage) -> None:
    make(source)
    make(target, enqueue=POINTS)
    before = everything(target)
    with pytest.raises(StudyError) as refused:
        copy_studies(source, target)
    assert str(refused.value) == (
        f"{target.shown}: another study 'first' is here already; it stays as it is, copy to another database."
    )
    assert everything(target) == before


@there_and_back
@pytest.mark.parametrize("kind", ["trials", "attributes", "minimises"])
def test_a_study_of_somebody_else_is_left_alone(source: Storage, target: Storage, kind: str) -> None:
    direction = "minimize" if kind == "minimises" else "maximize"
    foreign = optuna.create_study(storage=target.optuna, study_name="first", direction=direction)
    if kind == "trials":
        foreign.add_trial(optuna.trial.create_trial(value=0.5))
    if kind == "attributes":
        foreign.set_user_attr("theirs", 1)
    before = everything(target)
    make(source, enqueue=POINTS)
    with pytest.raises(StudyError, match="study 'first' here was not made by cifar-sweep, or not to its end; it stays"):
        copy_studies(source, target)
    assert everything(target) == before


@there_and_back
def test_unknown_studies_and_an_empty_database_are_refused(source: Storage, target: Storage) -> None:
    with pytest.raises(StudyError, match="there is no study to copy"):
        copy_studies(source, target)
    make(source)
    with pytest.raises(StudyError, match="there is no study 'frist'; did you mean first"):
        copy_studies(source, target, ["first", "frist"])
    assert optuna.get_all_study_names(target.optuna) == []


def test_a_database_is_not_copied_to_itself(url: str, tmp_path: Path) -> None:
    if url.startswith("sqlite"):
        (tmp_path / "link.db").symlink_to(tmp_path / "studies.db")
        other = f"sqlite:///{tmp_path}/link.db"
    else:
        parsed = sqlalchemy.make_url(url).update_query_dict({"application_name": "other"})
        other = parsed.set(host="localhost").render_as_string(hide_password=False)
    with closing(open_storage(url)) as one, closing(open_storage(other)) as two:
        for target in (one, two):
            with pytest.raises(UsageError, match="the studies are in this database already; name another to copy them"):
                copy_studies(one, target)


# Others at the same time


def lock(address: str) -> None:
    with closing(open_storage(address)) as other, other.lock():
        pass


@there_and_back
def test_nobody_claims_while_the_source_is_read(
    source: Storage, target: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(source)
    address = source.optuna.engine.url.render_as_string(hide_password=False)
    refused = []

    def look(study: optuna.Study) -> list[int]:
        with pytest.raises(StorageError, match="another process has held the study database for 1 s") as busy:
            lock(address)
        refused.append(busy.value)
        monkeypatch.undo()
        return []

    monkeypatch.setattr(source, "orphans", look)
    monkeypatch.setattr(locks, "LOCK_SECONDS", 1)
    copy_studies(source, target)
    assert len(refused) == 1


@there_and_back
def test_nobody_claims_while_the_target_is_written(
    source: Storage, target: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_rich(source)
    address = target.optuna.engine.url.render_as_string(hide_password=False)
    refused = []

    def look(_connection: sqlalchemy.Connection) -> None:
        with pytest.raises(StorageError, match="another process has held the study database for 1 s") as busy:
            lock(address)
        refused.append(busy.value)

    monkeypatch.setattr(locks, "LOCK_SECONDS", 1)
    with before_writing(target, "trials", look):
        copy_studies(source, target)
    assert len(refused) == 1
