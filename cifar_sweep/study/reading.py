"""Reading the trials of large studies again and again: each finished trial once."""

import abc
import copy
import threading
from collections.abc import Callable, Container
from operator import attrgetter
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Row

from cifar_sweep.study import tables
from cifar_sweep.study.storage import Storage


class PassedOn(BaseStorage):
    """An Optuna storage that passes everything on to another, by the methods of that."""

    def __init__(self, behind: BaseStorage) -> None:
        self._behind = behind


for _name in BaseStorage.__abstractmethods__:
    setattr(PassedOn, _name, property(attrgetter(f"_behind.{_name}")))
abc.update_abstractmethods(PassedOn)  # type: ignore[type-abstract]


def laid_over(stored: Any, over: Callable[[dict[str, Any], dict[str, Any]], tuple[Any, Any] | None]) -> Any:
    """A copy of Optuna's study or trial with what `over` makes of its user and system attributes; None changes none."""
    shown = copy.copy(stored)
    if attributes := over(stored.user_attrs, stored.system_attrs):
        shown.user_attrs, shown.system_attrs = attributes
    return shown


class ReadingStorage(PassedOn):
    """The storage for who reads whole studies again and again; what is written goes the usual way."""

    replaced = False  # whether a study was seen to be another one than before under the same key

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
        """A study's trials as they stand, by their key and in the order of their numbers; KeyError where it is gone.

        A trial that has not changed is the same object as before. Of more trials than `most_with_reports` intermediate
        values need not be there.
        """
        with self._lock:
            known = self._studies.get(study_id, {})
            with self._storage.optuna.reading() as connection:
                rows = {row.trial_id: row for row in tables.rows_of(connection, study_id)}
                # One whose row is not as it was is another trial: the keys of deleted ones are used again.
                same = {
                    key for key, (row, trial) in known.items() if trial.state.is_finished() and rows.get(key) == row
                }
                changed = [row for key, row in rows.items() if key not in same]
                with_reports = most_with_reports is None or len(rows) <= most_with_reports
                read = self._storage.optuna.read(connection, study_id, changed, with_reports=with_reports)
            finished = [row for row, trial in known.values() if trial.state.is_finished()]
            if any(_begun(rows.get(row.trial_id)) != _begun(row) for row in finished):
                self.replaced = True
            if not rows:
                self._behind.get_study_name_from_id(study_id)
            now: dict[int, tuple[Row[Any], FrozenTrial]] = {}
            for key, row in rows.items():
                _, before = known.get(key, (None, None))
                now[key] = row, before if before and (key in same or before == read[key]) else read[key]
            self._studies[study_id] = now
            return {key: trial for key, (_, trial) in now.items()}


def _begun(row: Row[Any] | None) -> Any:
    """When a trial began, which never changes."""
    return row and row.datetime_start
