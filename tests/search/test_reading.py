"""What is read in plain queries is what Optuna reads, on every storage; finished trials are read once."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from cifar_sweep.search import tables
from cifar_sweep.search.reading import ReadingStorage
from cifar_sweep.search.storage import Storage

SPACE = {
    "learning_rate": FloatDistribution(1e-5, 0.1, log=True),
    "log2_batch_size": IntDistribution(4, 8),
    "model": CategoricalDistribution(("lenet", "cnn3")),
}
PARAMS = {"learning_rate": 1e-3, "log2_batch_size": 5, "model": "cnn3"}


def study_id(storage: Storage, name: str) -> int:
    return storage.optuna.get_study_id_from_name(name)


def begun(storage: Storage, study: optuna.Study) -> optuna.Trial:
    """A new trial that runs."""
    return optuna.Trial(study, storage.optuna.create_new_trial(study_id(storage, study.study_name)))


def filled(storage: Storage, name: str) -> optuna.Study:
    """A study with a trial of every state, and with numbers and texts of every kind."""
    study = optuna.create_study(storage=storage.optuna, study_name=name, direction="maximize")
    kinds: list[dict[str, Any]] = [
        {"value": 0.5, "user_attrs": {"b": {"c": [1, None]}, "a": "\ud83c"}, "intermediate_values": {2: 0.4, 1: 0.3}},
        {"value": math.inf, "system_attrs": {"fixed_params": {"model": "cnn3"}}},
        {"state": TrialState.PRUNED, "value": -math.inf, "intermediate_values": {1: math.inf, 2: -math.inf}},
        {"state": TrialState.FAIL, "user_attrs": {"curve": [{"loss": math.inf}]}},
    ]  # fmt: skip
    study.add_trials([create_trial(params=PARAMS, distributions=SPACE, **kind) for kind in kinds])
    study.enqueue_trial({"learning_rate": 1e-2}, user_attrs={"label": "A-1"})
    running = begun(storage, study)
    running.suggest_float("learning_rate", 1e-5, 0.1, log=True)
    running.report(0.1, 1)
    return study


@pytest.mark.parametrize("few", [0, 200], ids=["as a whole", "by their keys"])
def test_trials_are_those_that_optuna_reads(
    storage: Storage, name: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "FEW", few)
    filled(storage, name)
    optuna.create_study(storage=storage.optuna, study_name=f"{name}-other").enqueue_trial({"x": 1})
    key = study_id(storage, name)
    there = storage.optuna.get_all_trials(key)
    assert {trial.state for trial in there} == set(TrialState)
    read = ReadingStorage(storage)
    assert read.get_all_trials(key) == there
    assert list(read.trials(key)) == [
        storage.trial_id(optuna.load_study(storage=read, study_name=name), n) for n in range(6)
    ]
    complete = read.get_all_trials(key, states=[TrialState.COMPLETE])
    assert [trial.number for trial in complete] == [0, 1]
    assert read.get_best_trial(key) == storage.optuna.get_best_trial(key)


def test_what_is_not_a_number_is_read_as_such(storage: Storage, name: str) -> None:
    study = optuna.create_study(storage=storage.optuna, study_name=name)
    trial = begun(storage, study)
    trial.report(math.nan, 1)
    trial.set_user_attr("loss", math.nan)
    [read] = ReadingStorage(storage).get_all_trials(study_id(storage, name))
    assert math.isnan(read.intermediate_values[1])
    assert math.isnan(read.user_attrs["loss"])


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


def test_who_reads_holds_no_writer_off(storage: Storage, name: str) -> None:
    study = optuna.create_study(storage=storage.optuna, study_name=name)
    count = sqlalchemy.text("SELECT count(*) FROM trials WHERE study_id = :study_id")
    key = {"study_id": study_id(storage, name)}
    with ThreadPoolExecutor() as pool, storage.optuna.reading() as connection:
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
