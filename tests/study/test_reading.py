"""Who reads large studies reads finished trials once, and holds nobody off."""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from cifar_sweep.study.reading import ReadingStorage
from cifar_sweep.study.storage import Storage, open_storage
from tests.study.plain_studies import begun, study_id


def test_several_objectives(storage: Storage, name: str) -> None:
    study = optuna.create_study(storage=storage.optuna, study_name=name, directions=["minimize", "maximize"])
    study.add_trial(create_trial(values=[1.5, math.inf]))
    [read] = ReadingStorage(storage).get_all_trials(study_id(storage, name))
    assert read.values == [1.5, math.inf]


def test_a_finished_trial_is_read_once_and_a_running_one_again(storage: Storage, name: str) -> None:
    study = optuna.create_study(storage=storage.optuna, study_name=name)
    study.add_trial(create_trial(value=1.0))
    running = begun(storage, study)
    read, key = ReadingStorage(storage), study_id(storage, name)
    first = read.get_all_trials(key, deepcopy=False)
    again = read.get_all_trials(key, deepcopy=False)
    assert [one is other for one, other in zip(first, again, strict=True)] == [True, True]
    assert [one is other for one, other in zip(first, read.get_all_trials(key), strict=True)] == [False, False]
    running.report(0.5, 1)
    after = read.get_all_trials(key, deepcopy=False)
    assert after[0] is first[0]
    assert after[1].intermediate_values == {1: 0.5}
    study.tell(running, 2.0)
    assert [trial.value for trial in read.get_all_trials(key)] == [1.0, 2.0]


def test_a_new_study_under_an_old_key(storage: Storage, name: str) -> None:
    """SQLite gives the keys of what was deleted out again."""
    read = ReadingStorage(storage)
    for value in (1.0, 2.0):
        study = optuna.create_study(storage=storage.optuna, study_name=name)
        study.add_trial(create_trial(value=value))
        assert [trial.value for trial in read.get_all_trials(study_id(storage, name))] == [value]
        optuna.delete_study(storage=storage.optuna, study_name=name)


def test_a_study_that_is_not_there(storage: Storage) -> None:
    with pytest.raises(KeyError):
        ReadingStorage(storage).get_all_trials(10_000_000)


def test_who_reads_holds_no_writer_off(storage: Storage, url: str, name: str) -> None:
    optuna.create_study(storage=storage.optuna, study_name=name)
    other = open_storage(url)
    study = optuna.load_study(storage=other.optuna, study_name=name)
    count = sqlalchemy.text("SELECT count(*) FROM trials WHERE study_id = :study_id")
    key = {"study_id": study_id(storage, name)}
    with closing(other), ThreadPoolExecutor() as pool, storage.optuna.reading() as connection:
        assert connection.execute(count, key).scalar() == 0
        pool.submit(study.add_trial, create_trial(value=1.0)).result(timeout=20)
        assert connection.execute(count, key).scalar() == 0, "one moment of the database"
    with storage.optuna.reading() as connection:
        assert connection.execute(count, key).scalar() == 1


def test_writes_are_passed_on(storage: Storage, name: str) -> None:
    """Each of them, to Optuna's own storage."""
    read = ReadingStorage(storage)
    key = read.create_new_study([StudyDirection.MINIMIZE], name)
    read.set_study_user_attr(key, "a", 1)
    read.set_study_system_attr(key, "b", [2])
    trial = read.create_new_trial(key)
    read.set_trial_param(trial, "x", 0.5, FloatDistribution(0, 1))
    read.set_trial_intermediate_value(trial, 1, 0.25)
    read.set_trial_user_attr(trial, "c", 3)
    read.set_trial_system_attr(trial, "d", 4)
    assert read.set_trial_state_values(trial, TrialState.COMPLETE, [0.75])
    assert (read.get_study_name_from_id(key), read.get_study_id_from_name(name)) == (name, key)
    assert read.get_study_directions(key) == [StudyDirection.MINIMIZE]
    assert (read.get_study_user_attrs(key), read.get_study_system_attrs(key)) == ({"a": 1}, {"b": [2]})
    assert read.get_trial_id_from_study_id_trial_number(key, 0) == trial
    assert key in [each._study_id for each in read.get_all_studies()]
    there = storage.optuna.get_trial(trial)
    assert read.get_trial(trial) == there
    assert (there.params, there.value, there.intermediate_values) == ({"x": 0.5}, 0.75, {1: 0.25})
    assert (there.user_attrs, there.system_attrs) == ({"c": 3}, {"d": 4})
    read.delete_study(key)
    with pytest.raises(KeyError):
        storage.optuna.get_study_name_from_id(key)


def test_keys_of_a_study_that_deletes_and_adds(storage: Storage, name: str) -> None:
    """The trials of a study go on being in the order of their numbers, whoever else writes."""
    one = optuna.create_study(storage=storage.optuna, study_name=name)
    other = optuna.create_study(storage=storage.optuna, study_name=f"{name}-other")
    for value in range(3):
        one.add_trial(create_trial(value=value))
        other.add_trial(create_trial(value=-value))
    trials = ReadingStorage(storage).trials(study_id(storage, name))
    assert [trial.number for trial in trials.values()] == [0, 1, 2]
    assert [trial.value for trial in trials.values()] == [0, 1, 2]
