"""What is read and written in plain queries is what Optuna reads and writes, on every storage."""

import math
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from cifar_sweep.study import tables
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.reading import ReadingStorage
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.tables import Change
from tests.study.plain_studies import begun, study_id

SPACE = {
    "learning_rate": FloatDistribution(1e-5, 0.1, log=True),
    "log2_batch_size": IntDistribution(4, 8),
    "model": CategoricalDistribution(("lenet", "cnn3")),
}
PARAMS = {"learning_rate": 1e-3, "log2_batch_size": 5, "model": "cnn3"}
MINE = asdict(Owner("here", 1, "0", token="mine", system="a"))


def as_optuna_reads(storage: Storage, name: str, **asked: Any) -> list[FrozenTrial]:
    """By its own objects, and not by our queries."""
    usual: dict[str, Any] = {"states": None, "included_trial_ids": set(), "trial_id_greater_than": -1}
    return RDBStorage._get_trials(storage.optuna, study_id(storage, name), **(usual | asked))


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
    there = as_optuna_reads(storage, name)
    assert {trial.state for trial in there} == set(TrialState)
    read = ReadingStorage(storage)
    assert read.get_all_trials(key) == there == storage.optuna.get_all_trials(key)
    assert list(read.trials(key)) == [
        storage.trial_id(optuna.load_study(storage=read, study_name=name), n) for n in range(6)
    ]
    for states in ([TrialState.COMPLETE], [TrialState.RUNNING, TrialState.WAITING]):
        assert read.get_all_trials(key, states=states) == as_optuna_reads(storage, name, states=states)
        assert storage.optuna.get_all_trials(key, states=states) == as_optuna_reads(storage, name, states=states)
    assert read.get_best_trial(key) == storage.optuna.get_best_trial(key)


def test_trials_that_the_cache_asks_for(storage: Storage, name: str) -> None:
    """The unfinished ones that it knows, and those that are new."""
    filled(storage, name)
    keys = [trial._trial_id for trial in as_optuna_reads(storage, name)]
    asked = {"states": None, "included_trial_ids": {keys[1], keys[5]}, "trial_id_greater_than": keys[3]}
    found = storage.optuna._get_trials(study_id(storage, name), **asked)
    assert [trial.number for trial in found] == [1, 4, 5]
    assert found == as_optuna_reads(storage, name, **asked)


def test_what_is_not_a_number_is_read_as_such(storage: Storage, name: str) -> None:
    study = optuna.create_study(storage=storage.optuna, study_name=name)
    trial = begun(storage, study)
    trial.report(math.nan, 1)
    trial.set_user_attr("loss", math.nan)
    [read] = ReadingStorage(storage).get_all_trials(study_id(storage, name))
    assert math.isnan(read.intermediate_values[1])
    assert math.isnan(read.user_attrs["loss"])


def test_a_study_that_is_not_there(storage: Storage) -> None:
    with pytest.raises(KeyError):
        storage.optuna.get_all_trials(10_000_000)


# Writing an epoch


def test_a_report_is_what_optuna_would_have_written(storage: Storage, name: str) -> None:
    study = optuna.create_study(storage=storage.optuna, study_name=name, direction="maximize")
    ours, plain = (begun(storage, study) for _ in range(2))
    for trial in (ours, plain):
        trial.set_user_attr("owner", MINE)
    for curve in ([{"epoch": 1, "loss": 0.1}], [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 1 / 3}]):
        last = len(curve)
        assert storage.report(ours, "mine", Change({"checkpoints": [], "curve": curve}, values={last: 0.1 + last / 3}))
        plain.set_user_attr("checkpoints", [])
        plain.set_user_attr("curve", curve)
        plain.report(0.1 + last / 3, last)
    found, expected = as_optuna_reads(storage, name)
    assert found.user_attrs == expected.user_attrs
    assert found.intermediate_values == expected.intermediate_values == {1: 0.1 + 1 / 3, 2: 0.1 + 2 / 3}
    assert ours.user_attrs == plain.user_attrs, "the trial itself knows it, too"
    study.tell(ours, state=TrialState.PRUNED)
    assert study.trials[0].value == 0.1 + 2 / 3, "the last that was reported"


def test_a_report_may_be_made_twice(storage: Storage, name: str) -> None:
    """Where the database's answer was lost; what stands at a step stays, as in Optuna."""
    study = optuna.create_study(storage=storage.optuna, study_name=name)
    trial = begun(storage, study)
    trial.set_user_attr("owner", MINE)
    for value in (0.5, 0.75):
        assert storage.report(trial, "mine", Change({"curve": [value]}, values={1: value}))
    [found] = as_optuna_reads(storage, name)
    assert (found.user_attrs["curve"], found.intermediate_values) == ([0.75], {1: 0.5})


def test_what_is_removed_is_gone_for_the_trial_too(storage: Storage, name: str) -> None:
    study = optuna.create_study(storage=storage.optuna, study_name=name)
    trial = begun(storage, study)
    for key, value in {"owner": MINE, "old": 1, "other": 2}.items():
        trial.set_user_attr(key, value)
    assert storage.report(trial, "mine", Change({"new": 3}, removed=["old", "never there"]))
    [found] = as_optuna_reads(storage, name)
    assert found.user_attrs == trial.user_attrs == {"owner": MINE, "other": 2, "new": 3}


@pytest.mark.parametrize("why", ["another's", "nobody's", "waits", "finished"])
def test_of_a_trial_that_is_not_held_nothing_is_written(storage: Storage, name: str, why: str) -> None:
    study = optuna.create_study(storage=storage.optuna, study_name=name)
    trial = begun(storage, study)
    trial.set_user_attr("owner", {"another's": MINE | {"token": "other"}, "nobody's": None}.get(why, MINE))
    if why == "waits":
        storage.give_back(trial._trial_id)
    if why == "finished":
        study.tell(trial, 1.0)
    before = as_optuna_reads(storage, name)
    assert not storage.report(trial, "mine", Change({"curve": [1]}, values={1: 0.5}))
    assert as_optuna_reads(storage, name) == before
    assert "curve" not in trial.user_attrs


def test_a_report_is_whole_or_not_there(storage: Storage, name: str) -> None:
    study = optuna.create_study(storage=storage.optuna, study_name=name)
    trial = begun(storage, study)
    trial.set_user_attr("owner", MINE)
    before = as_optuna_reads(storage, name)
    values: Any = {1: "no number", None: 0.5}
    with pytest.raises(sqlalchemy.exc.SQLAlchemyError):
        storage.report(trial, "mine", Change({"curve": [1]}, removed=["owner"], values=values))
    assert as_optuna_reads(storage, name) == before


def test_a_report_waits_for_the_lock(storage: Storage, name: str) -> None:
    """What a claim does in several transactions is not to be met in its middle."""
    study = optuna.create_study(storage=storage.optuna, study_name=name)
    trial = begun(storage, study)
    trial.set_user_attr("owner", MINE)
    with ThreadPoolExecutor() as pool:
        with storage.lock():
            waiting = pool.submit(storage.report, trial, "mine", Change({"curve": [1]}))
            assert wait([waiting], timeout=0.5).not_done
            [during] = as_optuna_reads(storage, name)
        assert waiting.result(timeout=20)
    assert "curve" not in during.user_attrs


def test_points_that_are_queued_at_once_are_those_that_optuna_queues(storage: Storage, name: str) -> None:
    points = [{"learning_rate": 1e-3, "model": "cnn3"}, {}, {"log2_batch_size": 5, "batch_norm": True}]
    one, other = (
        optuna.create_study(storage=storage.optuna, study_name=f"{name}-{which}") for which in ("one", "other")
    )
    for study in (one, other):
        study.enqueue_trial({"learning_rate": 1e-2})
    storage.enqueue(one, points)
    for point in points:
        other.enqueue_trial(point)
    for study in (one, other):
        study.enqueue_trial({"learning_rate": 1e-4})

    def known(study: optuna.Study) -> list[Any]:
        return [
            (each.number, each.state, each.system_attrs, each.params, each.datetime_start)
            for each in as_optuna_reads(storage, study.study_name)
        ]

    assert known(one) == known(other)
