"""Studies from one database to another, SQLite or PostgreSQL: each whole or not at all, then read back."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import sqlalchemy
from optuna.trial import TrialState

from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.study import tables
from cifar_sweep.study.opening import load, load_all
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.study.tables import StudyRows

# Two URLs of one server may differ in everything. Of two servers that started in the same microsecond, none is known.
SERVER_START = sqlalchemy.text("SELECT CAST(extract(epoch FROM pg_postmaster_start_time()) AS text)")


def copy_studies(
    source: Storage, target: Storage, names: Sequence[str] = (), *, say: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Copy studies of these names, or all of ours, to another database; the source stays as it is.

    A study that is in the target already, the same trial for trial, is passed over while there is another to copy: so
    a command that was broken off goes on where it was. `say` is told of each. Returns the names of the studies copied.

    Raises:
        UsageError: both are the same database.
        StudyError: a study is missing, is being trained, is in the target already, or did not arrive as it was.
    """
    if _identity(source) == _identity(target):
        raise UsageError(f"{target.shown}: the studies are in this database already; name another to copy them to.")
    wanted = [load(source, name) for name in dict.fromkeys(names)] or load_all(source)
    if not wanted:
        raise StudyError(f"{source.shown}: there is no study to copy.")
    # All are looked at before the first is written.
    there = [_is_copied(study, _rows_of(study, target), target) for study in wanted]
    if all(there):
        one_or_all = f"study {wanted[0].name!r} is" if len(wanted) == 1 else f"all {len(wanted)} studies are"
        raise StudyError(f"{target.shown}: {one_or_all} here already, the same trial for trial; nothing was copied.")
    return [study.name for study in wanted if _copy(study, target, say=say)]


def _identity(storage: Storage) -> tuple[str, ...]:
    """What tells databases of one kind apart, however their addresses are written."""
    file_or_tables = storage.identity()
    if storage.folder:
        return (file_or_tables,)
    with storage.optuna.reading() as connection:
        return str(connection.execute(SERVER_START).scalar_one()), file_or_tables


def _copy(study: SweepStudy, target: Storage, *, say: Callable[[str], None]) -> bool:
    """Copy a study, if it is not there; whether it was not."""
    rows = _rows_of(study, target)
    with target.lock():
        if _is_copied(study, rows, target):
            say(f"study {study.name!r} is there already, the same trial for trial, and passed over.")
            return False
        with target.optuna.writing() as connection:
            key = tables.add_study(connection, study.name, rows)
            if difference := rows.difference(tables.study_rows(connection, key)):
                what = f"study {study.name!r} did not arrive as it was ({difference})"
                raise StudyError(f"{target.shown}: {what}, and is no study yet; copy it again.")
    say(f"study {study.name!r} is copied, trials: {len(rows.trials)}.")
    return True


def _rows_of(study: SweepStudy, target: Storage) -> StudyRows:
    """A study as its copy is to be in the target. Raises StudyError where it is being trained."""
    source, name = study.storage, study.name
    with source.lock() if source.writable else nullcontext():
        there = source.load(name)
        orphans = source.orphans(there)
        # Ours: what another program runs, or has left behind, is nobody's to pause, and stays what it is.
        running = [trial.number for trial in there.get_trials(deepcopy=False, states=[TrialState.RUNNING])]
        rows = _read(source, name)
    if held := sum(rows.keys[number] not in orphans for number in running):
        raise StudyError(
            f"{source.shown}: study {name!r} is being trained (running trials: {held}); pause it with "
            f"`cifar-sweep pause {name}`, or wait until it has ended."
        )
    for number in running:
        rows.trials[number]["trials"][0]["state"] = TrialState.WAITING
        for attribute in rows.trials[number]["trial_user_attributes"]:
            if attribute["key"] == "owner":
                attribute["value_json"] = "null"
    for row in rows.facts[
        "study_user_attributes"
    ]:  # paths that are stored from the database's folder, from another one
        value = json.loads(row["value_json"])
        if row["key"] == "artifacts":
            row["value_json"] = json.dumps(target.to_store(source.from_stored(value)))
        elif row["key"] == "data" and "source" in value:
            value["source"] = target.to_store(source.from_stored(value["source"]))
            row["value_json"] = json.dumps(value)
    rows.facts["study_user_attributes"].sort(key=str)
    return rows


def _read(storage: Storage, name: str) -> StudyRows:
    key = storage.optuna.get_study_id_from_name(name)
    with storage.optuna.reading() as connection:
        return tables.study_rows(connection, key)


def _is_copied(study: SweepStudy, rows: StudyRows, target: Storage) -> bool:
    """Whether the target has exactly this study already. Raises StudyError where it has another of that name."""
    there = dict(target.studies()).get(study.name)
    if there is None:
        return False
    if "sweep" not in there:
        problem = "study {!r} here was not made by cifar-sweep, or not to its end"
    elif there["uid"] != study.uid:
        problem = "another study {!r} is here already"
    elif difference := rows.difference(_read(target, study.name)):
        raise StudyError(
            f"{target.shown}: study {study.name!r} is here already, the same one in another state ({difference}); "
            "delete the one that you do not want."
        )
    else:
        return True
    raise StudyError(f"{target.shown}: {problem.format(study.name)}; it stays as it is, copy to another database.")
