"""Optuna's tables in plain queries, where its own objects cost too much.

Optuna builds an object for each reported value of each trial: of 2,000 trials with 30 epochs each that takes four times
as long as these queries, and on SQLite it holds the workers off meanwhile. What it writes, it writes in a transaction
for each attribute and each value. That the tables are of the version that Optuna itself expects is checked when the
database is opened.
"""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

import optuna
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json, json_to_distribution
from optuna.storages import _rdb
from optuna.storages._rdb.models import SCHEMA_VERSION, BaseModel
from optuna.trial import FrozenTrial, TrialState
from pydantic_core import from_json
from sqlalchemy import Connection, Row, Select, Table, delete, insert, or_, select, text, update

from cifar_sweep.errors import StorageError

FEW = 200  # trials that are asked for by their keys; more of them are read with all others of their study
_TABLES = BaseModel.metadata.tables
NAMES = {*_TABLES, "alembic_version"}
_TRIALS, _PARAMS, _VALUES = _TABLES["trials"], _TABLES["trial_params"], _TABLES["trial_values"]
_REPORTS = _TABLES["trial_intermediate_values"]
_USER, _SYSTEM = _TABLES["trial_user_attributes"], _TABLES["trial_system_attributes"]
_STUDIES = _TABLES["studies"]
_OF_STUDY = [_TABLES[f"study_{name}"] for name in ("directions", "user_attributes", "system_attributes")]
_OF_TRIALS = [_TRIALS, _PARAMS, _VALUES, _REPORTS, _USER, _SYSTEM]
_NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
_HOLDER = text(
    "SELECT t.state, a.value_json FROM trials t LEFT JOIN trial_user_attributes a "
    "ON a.trial_id = t.trial_id AND a.key = 'owner' WHERE t.trial_id = :trial_id"
)
_IS_OURS = text(
    "SELECT COUNT(*) FROM study_user_attributes WHERE study_id = :study_id AND key IN ('sweep', 'data', 'uid')"
)
_SET_ATTRIBUTE = text(
    "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:trial_id, :key, :value) "
    "ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
)
_REMOVE_ATTRIBUTE = text("DELETE FROM trial_user_attributes WHERE trial_id = :trial_id AND key = :key")
_REPORT = text(
    "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
    "VALUES (:trial_id, :step, :value, 'FINITE') ON CONFLICT (trial_id, step) DO NOTHING"
)
# What stands in the user attributes of a study of ours.
_OF_A_STUDY: dict[str, type] = {
    **dict.fromkeys(("sweep", "data", "code", "versions", "hopes", "costs", "test_accuracy"), dict),
    **dict.fromkeys(("uid", "artifacts", "state", "reason"), str), "priority": int,
}  # fmt: skip
_BEAT = text("UPDATE trial_heartbeats SET heartbeat = clock_timestamp() WHERE trial_id = :trial_id")  # PostgreSQL's


@cache
def _versions() -> ScriptDirectory:
    return ScriptDirectory(str(Path(_rdb.__file__).parent / "alembic"))


def make(connection: Connection) -> None:
    """Make Optuna's tables. Its own constructor would do it over several connections, and in several transactions."""
    BaseModel.metadata.create_all(connection)
    version = {"version_info_id": 1, "schema_version": SCHEMA_VERSION, "library_version": optuna.__version__}
    connection.execute(insert(_TABLES["version_info"]), version)
    MigrationContext.configure(connection).stamp(_versions(), "head")


def check_version(connection: Connection) -> None:
    """Raise StorageError where the tables are those of another version of Optuna."""
    found, known = MigrationContext.configure(connection).get_current_revision(), _versions()
    if found != known.get_current_head():
        is_old = found in (None, *(each.revision for each in known.walk_revisions()))
        cure = "bring it up with `optuna storage upgrade --storage URL`" if is_old else "`pip install -U optuna` helps"
        made = f"made by an {'older' if is_old else 'unknown'} version of Optuna, this is {optuna.__version__}"
        raise StorageError(f"storage: the database was {made}; {cure}.")


def beat_now(connection: Connection, trial_id: int) -> None:
    """Set the heartbeat of a trial that has one to this moment, which is not that of the transaction."""
    connection.execute(_BEAT, {"trial_id": trial_id})


def holder(connection: Connection, trial_id: int) -> tuple[TrialState | None, str | None]:
    """A trial's state, and the token of its last worker; None where there is no such trial, or worker."""
    row = connection.execute(_HOLDER, {"trial_id": trial_id}).one_or_none()
    if row is None:
        return None, None
    owner = json.loads(row.value_json) if row.value_json else None
    return TrialState[row.state], str(owner.get("token")) if isinstance(owner, dict) else None


@dataclass(frozen=True)
class Change:
    """What is to be written of a trial: user attributes, and finite values by step, of which the first one stays."""

    attributes: Mapping[str, Any]
    removed: Collection[str] = ()
    values: Mapping[int, float] = field(default_factory=dict)


def without_odd(attributes: dict[str, Any]) -> dict[str, Any]:
    """A study's user attributes; of one of ours without those under our names that somebody else wrote over."""
    if not {"sweep", "data", "uid"} <= attributes.keys():
        return attributes
    return {key: value for key, value in attributes.items() if isinstance(value, _OF_A_STUDY.get(key, object))}


def is_ours(connection: Connection, study_id: int) -> bool:
    """Whether a study has what all of ours have."""
    return int(connection.execute(_IS_OURS, {"study_id": study_id}).scalar_one()) == 3


def enqueue(connection: Connection, study_id: int, points: Sequence[Mapping[str, Any]]) -> None:
    """Add trials that wait to a study, each to begin with such parameters: Optuna takes a transaction for each."""
    # As Optuna does it: no two trials get one number.
    connection.execute(select(_STUDIES).where(_STUDIES.c.study_id == study_id).with_for_update())
    there = len(rows_of(connection, study_id))
    waiting = {"study_id": study_id, "state": TrialState.WAITING}
    connection.execute(insert(_TRIALS), [waiting | {"number": there + place} for place in range(len(points))])
    added = zip(rows_of(connection, study_id)[there:], points, strict=True)
    connection.execute(insert(_SYSTEM), [_queued(row.trial_id, point) for row, point in added])


def _queued(trial_id: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """The system attribute that has a waiting trial begin with these parameters."""
    return {"trial_id": trial_id, "key": "fixed_params", "value_json": json.dumps(params)}


def requeue(connection: Connection, trial_id: int, params: Mapping[str, Any]) -> None:
    """Have a waiting trial begin with these parameters, and with nothing else that somebody gave it."""
    for table in (_PARAMS, _REPORTS, _SYSTEM):
        connection.execute(delete(table).where(table.c.trial_id == trial_id))
    connection.execute(insert(_SYSTEM), _queued(trial_id, params))


def write(connection: Connection, trial_id: int, change: Change) -> None:
    """Write a change of a trial."""
    for statement, rows in (
        (_REMOVE_ATTRIBUTE, [{"key": key} for key in change.removed]),
        (_SET_ATTRIBUTE, [{"key": key, "value": json.dumps(value)} for key, value in change.attributes.items()]),
        (_REPORT, [{"step": step, "value": value} for step, value in change.values.items()]),
    ):
        if rows:
            connection.execute(statement, [{"trial_id": trial_id} | row for row in rows])


def rows_of(
    connection: Connection, study_id: int, *, after: int = -1, besides: Set[int] = frozenset()
) -> Sequence[Row[Any]]:
    """The rows of a study's trials by number: of those with a key above `after`, and of `besides`."""
    wanted = or_(_TRIALS.c.trial_id > after, _TRIALS.c.trial_id.in_(sorted(besides)))
    query = select(_TRIALS).where(_TRIALS.c.study_id == study_id, wanted)
    return connection.execute(query.order_by(_TRIALS.c.number)).all()


def read(
    connection: Connection, study_id: int, rows: Sequence[Row[Any]], *, with_reports: bool = True
) -> dict[int, FrozenTrial]:
    """The trials of these rows, by their key."""
    if not rows:
        return {}
    keys = [row.trial_id for row in rows] if len(rows) <= FEW else _keys_of(study_id)
    params, values, user, system = (_by_trial(connection, table, keys) for table in (_PARAMS, _VALUES, _USER, _SYSTEM))
    reports = _by_trial(connection, _REPORTS, keys, order="step") if with_reports else {}
    return {
        row.trial_id: FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=[_number(each.value, each.value_type) for each in values[row.trial_id]] or None,
            datetime_start=_local(row.datetime_start),
            datetime_complete=_local(row.datetime_complete),
            params={
                each.param_name: _distribution(each.distribution_json).to_external_repr(each.param_value)
                for each in params[row.trial_id]
            },
            distributions={each.param_name: _distribution(each.distribution_json) for each in params[row.trial_id]},
            user_attrs={each.key: _parsed(each.value_json) for each in user[row.trial_id]},
            system_attrs={each.key: _parsed(each.value_json) for each in system[row.trial_id]},
            intermediate_values={
                each.step: _number(each.intermediate_value, each.intermediate_value_type)
                for each in reports.get(row.trial_id, ())
            },
            trial_id=row.trial_id,
        )
        for row in rows
    }


def redistribute(connection: Connection, study_id: int, distributions: Mapping[str, BaseDistribution]) -> None:
    """Give the parameters of a study's trials these distributions; where one does not hold a value, it gets wider.

    Optuna refuses a new trial of a study where its choices differ from an old one's, and its samplers pass a parameter
    over whose ranges do. Raises ValueError where a value is none of the choices.
    """
    for row in connection.execute(select(_PARAMS).where(_PARAMS.c.trial_id.in_(_keys_of(study_id)))).all():
        if (now := distributions.get(row.param_name)) is not None:
            value = _distribution(row.distribution_json).to_external_repr(row.param_value)
            wide = now if isinstance(now, CategoricalDistribution) else _holding(now, value)
            stored = {"param_value": wide.to_internal_repr(value), "distribution_json": distribution_to_json(wide)}
            connection.execute(update(_PARAMS).where(_PARAMS.c.param_id == row.param_id).values(stored))


def _holding(distribution: Any, value: float) -> BaseDistribution:
    """The same distribution if it holds a value, otherwise one that does."""
    low, high, step = min(distribution.low, value), max(distribution.high, value), distribution.step
    if (low, high) == (distribution.low, distribution.high) and not (step and (value - low) % step):
        return cast(BaseDistribution, distribution)
    return cast(BaseDistribution, type(distribution)(low, high, log=distribution.log))


def _keys_of(study_id: int) -> Select[Any]:
    return select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study_id)


def _by_trial(
    connection: Connection, table: Table, keys: Sequence[int] | Select[Any], order: str | None = None
) -> dict[int, list[Row[Any]]]:
    """What a table has of trials, by their key; in the order in which it was written, or that of a column."""
    found: dict[int, list[Row[Any]]] = defaultdict(list)
    by = table.c[order] if order else table.primary_key.columns[0]
    for row in connection.execute(select(table).where(table.c.trial_id.in_(keys)).order_by(by)):
        found[row.trial_id].append(row)
    return found


@dataclass(frozen=True)
class StudyRows:
    """All that the database has of a study, without its keys: rows by the name of their table, of trials by number."""

    facts: Mapping[str, list[dict[str, Any]]]
    trials: Mapping[int, Mapping[str, list[dict[str, Any]]]]
    keys: Mapping[int, int] = field(compare=False)  # of the trials where they were read, by number

    def difference(self, other: "StudyRows") -> str | None:
        """Where `other` first differs, in short; None where all is equal."""
        if len(self.trials) != len(other.trials):
            return f"{len(other.trials)} trials instead of {len(self.trials)}"
        number = next((number for number in self.trials if self.trials[number] != other.trials.get(number)), None)
        if number is not None:
            return f"another trial {number}"
        return None if self == other else "other attributes"


def study_rows(connection: Connection, study_id: int) -> StudyRows:
    """All rows of a study."""
    facts = {
        table.name: _plain(connection.execute(select(table).where(table.c.study_id == study_id))) for table in _OF_STUDY
    }
    parts = {table.name: _by_trial(connection, table, _keys_of(study_id)) for table in _OF_TRIALS}
    keys = {row.number: row.trial_id for row in rows_of(connection, study_id)}
    trials = {number: {name: _plain(rows[key]) for name, rows in parts.items()} for number, key in keys.items()}
    return StudyRows({name: sorted(rows, key=str) for name, rows in facts.items()}, trials, keys)


def add_study(connection: Connection, name: str, rows: StudyRows) -> int:
    """Write a study of this name with these rows. Returns its key."""

    def add(table: Table, added: list[dict[str, Any]]) -> None:
        if added:
            connection.execute(insert(table), added)

    connection.execute(insert(_STUDIES), {"study_name": name})
    study_id: int = connection.execute(select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name)).scalar_one()
    for table in _OF_STUDY:
        add(table, [{"study_id": study_id} | row for row in rows.facts[table.name]])
    add(_TRIALS, [{"study_id": study_id} | row for trial in rows.trials.values() for row in trial[_TRIALS.name]])
    keys = {row.number: row.trial_id for row in rows_of(connection, study_id)}
    for table in _OF_TRIALS[1:]:
        added = [(keys[number], row) for number, trial in rows.trials.items() for row in trial[table.name]]
        add(table, [{"trial_id": key} | row for key, row in added])
    return study_id


def _plain(rows: Iterable[Row[Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row._mapping.items() if not name.endswith("_id")} for row in rows]


@lru_cache(maxsize=1000)
def _distribution(text: str) -> BaseDistribution:
    """A distribution from its JSON: a study's trials share a few."""
    return json_to_distribution(text)


def _number(value: float | None, value_type: Enum) -> float:
    return _NOT_FINITE[value_type.name] if value is None else value


def _local(moment: datetime | None) -> datetime | None:
    """The database's UTC as Optuna shows it: local time that does not say so."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _parsed(text: str) -> Any:
    try:
        return from_json(text)  # more than twice as fast as json
    except ValueError:  # half of a surrogate pair, which json takes
        return json.loads(text)
