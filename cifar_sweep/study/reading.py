"""Reading the trials of large studies again and again: each finished trial once."""

import copy
import threading
from collections.abc import Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Row

from cifar_sweep.study import tables
from cifar_sweep.study.storage import Storage


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
            with self._storage.optuna.reading() as connection:
                rows = {row.trial_id: row for row in tables.rows_of(connection, study_id)}
                # One whose row is not as it was is another trial: the keys of deleted ones are used again.
                same = {
                    key for key, (row, trial) in known.items() if trial.state.is_finished() and rows.get(key) == row
                }
                changed = [row for key, row in rows.items() if key not in same]
                with_reports = most_with_reports is None or len(rows) <= most_with_reports
                read = tables.read(connection, study_id, changed, with_reports=with_reports)
            if not rows:
                self._behind.get_study_name_from_id(study_id)
            for key, trial in read.items():
                if key in known and known[key][1] == trial:
                    read[key] = known[key][1]
            now = {key: known[key] if key in same else (row, read[key]) for key, row in rows.items()}
            self._studies[study_id] = now
            return {key: trial for key, (_, trial) in now.items()}
