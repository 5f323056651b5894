"""Reading the trials of large studies: a few plain queries, and each finished trial once.

Optuna builds an object for each reported value of each trial: of 2,000 trials with 30 epochs each that takes four times
as long as these queries, and on SQLite it holds the workers off meanwhile. The tables are Optuna's; that they are of
the version that Optuna itself expects is checked when the database is opened.
"""

import copy
import json
import math
import threading
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic_core import from_json
from sqlalchemy import ColumnElement, Connection, DateTime, Row, TableClause, column, select, table

from cifar_sweep.search.storage import Storage

FEW = 200  # trials that are asked for by their keys; more of them are read with all others of their study


class PassedOn(BaseStorage):
    """An Optuna storage that passes everything on to another."""

    def __init__(self, behind: BaseStorage) -> None:
        self._behind = behind

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self._behind.create_new_study(directions, study_name=study_name)

    def delete_study(self, study_id: int) -> None:
        self._behind.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._behind.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._behind.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._behind.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._behind.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._behind.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._behind.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._behind.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[Any]:
        return self._behind.get_all_studies()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        return self._behind.create_new_trial(study_id, template_trial)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._behind.set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._behind.get_trial_id_from_study_id_trial_number(study_id, trial_number)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        return self._behind.set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._behind.set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._behind.set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._behind.set_trial_system_attr(trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._behind.get_trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return self._behind.get_all_trials(study_id, deepcopy=deepcopy, states=states)


class ReadingStorage(PassedOn):
    """The storage for who reads whole studies again and again; what is written goes the usual way."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage.optuna)
        self._storage = storage
        self._studies: dict[int, dict[int, tuple[Row[Any], FrozenTrial]]] = {}
        self._lock = threading.Lock()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [trial for trial in self.trials(study_id).values() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def trials(self, study_id: int, *, most_with_reports: int | None = None) -> dict[int, FrozenTrial]:
        """A study's trials as they stand, by their key and in the order of their numbers.

        A trial that has not changed is the same object as before.

        Args:
            study_id: the study's key.
            most_with_reports: of more trials than these, intermediate values need not be there; None: they always are.

        Raises:
            KeyError: there is no such study.
        """
        with self._lock:
            known = self._studies.get(study_id, {})
            with self._storage.reading() as connection:
                rows = {row.trial_id: row for row in connection.execute(_trials_of(study_id))}
                # One whose row is not as it was is another trial: the keys of deleted ones are used again.
                same = {
                    key for key, (row, trial) in known.items() if trial.state.is_finished() and rows.get(key) == row
                }
                changed = [row for key, row in rows.items() if key not in same]
                with_reports = most_with_reports is None or len(rows) <= most_with_reports
                read = _read(connection, study_id, changed, with_reports=with_reports)
            if not rows:
                self._behind.get_study_name_from_id(study_id)
            for key, trial in read.items():
                if key in known and known[key][1] == trial:
                    read[key] = known[key][1]
            now = {key: known[key] if key in same else (row, read[key]) for key, row in rows.items()}
            self._studies[study_id] = now
            return {key: trial for key, (_, trial) in now.items()}


_TRIALS = table(
    "trials",
    *(column(name) for name in ("trial_id", "study_id", "number", "state")),
    *(column(name, DateTime) for name in ("datetime_start", "datetime_complete")),
)
_PARAMS = table(
    "trial_params", *map(column, ("param_id", "trial_id", "param_name", "param_value", "distribution_json"))
)
_VALUES = table("trial_values", *map(column, ("trial_id", "objective", "value", "value_type")))
_REPORTS = table(
    "trial_intermediate_values",
    *map(column, ("trial_id", "step", "intermediate_value", "intermediate_value_type")),
)
_USER, _SYSTEM = (
    table(f"trial_{kind}_attributes", *map(column, (f"trial_{kind}_attribute_id", "trial_id", "key", "value_json")))
    for kind in ("user", "system")
)
_NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}


def _trials_of(study_id: int) -> sqlalchemy.Select[Any]:
    return select(_TRIALS).where(_TRIALS.c.study_id == study_id).order_by(_TRIALS.c.number)


def _read(
    connection: Connection, study_id: int, rows: Sequence[Row[Any]], *, with_reports: bool
) -> dict[int, FrozenTrial]:
    """The trials of these rows, by their key."""
    if not rows:
        return {}
    keys = [row.trial_id for row in rows]

    def parts(of: TableClause, order: str) -> dict[int, list[Row[Any]]]:
        wanted: ColumnElement[bool] = of.c.trial_id.in_(
            keys if len(keys) <= FEW else select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study_id)
        )
        found: dict[int, list[Row[Any]]] = defaultdict(list)
        for row in connection.execute(select(of).where(wanted).order_by(of.c[order])):
            found[row.trial_id].append(row)
        return found

    params, values = parts(_PARAMS, "param_id"), parts(_VALUES, "objective")
    reports = parts(_REPORTS, "step") if with_reports else {}
    user, system = parts(_USER, "trial_user_attribute_id"), parts(_SYSTEM, "trial_system_attribute_id")
    return {
        row.trial_id: FrozenTrial(
            number=row.number,
            state=TrialState[row.state],
            value=None,
            values=[_number(each.value, each.value_type) for each in values[row.trial_id]] or None,
            datetime_start=_local(row.datetime_start),
            datetime_complete=_local(row.datetime_complete),
            params={
                each.param_name: _distribution(each.distribution_json).to_external_repr(each.param_value)
                for each in params[row.trial_id]
            },
            distributions={each.param_name: _distribution(each.distribution_json) for each in params[row.trial_id]},
            user_attrs=_attributes(user[row.trial_id]),
            system_attrs=_attributes(system[row.trial_id]),
            intermediate_values={
                each.step: _number(each.intermediate_value, each.intermediate_value_type)
                for each in reports.get(row.trial_id, ())
            },
            trial_id=row.trial_id,
        )
        for row in rows
    }


@lru_cache(maxsize=1000)
def _distribution(text: str) -> BaseDistribution:
    """A distribution from its JSON: a study's trials share a few."""
    return json_to_distribution(text)


def _number(value: float | None, kind: str) -> float:
    return _NOT_FINITE[kind] if value is None else value


def _local(moment: datetime | None) -> datetime | None:
    """The database's UTC as Optuna shows it: local time that does not say so."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _attributes(rows: Iterable[Row[Any]]) -> dict[str, Any]:
    return {row.key: _parsed(row.value_json) for row in rows}


def _parsed(text: str) -> Any:
    try:
        return from_json(text)  # more than twice as fast as json
    except ValueError:  # half of a surrogate pair, which json takes
        return json.loads(text)
