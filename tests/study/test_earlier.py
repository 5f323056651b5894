"""`--from`: a study begins with the trials of another one that it could have had itself, and with nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from cifar_sweep.curve import EpochResult
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.search.choice import Choice, Situation
from cifar_sweep.study.claim import Worker
from cifar_sweep.study.earlier import Earlier, earlier_of
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
SPACE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}, "batch_size": {"low": 16, "high": 64, "base2": True}}
RATES = (1e-4, 1e-3, 1e-2)
ME = Worker(Owner.current(), "cpu (test)", 1, "fp32")


def sweep(**tables: Any) -> Sweep:
    fixed = {"model": "convnet", "epochs": 3}
    plain = {"name": "s", "trials": 3, "sampler": "random", "pruner": "none", "fixed": fixed, "space": SPACE}
    return parse(plain | tables, where="test")


def train_all(study: SweepStudy, accuracy: Callable[[float], float]) -> None:
    while claims := study.claim(ME):
        for claim in claims:
            best = accuracy(claim.config.knobs.learning_rate)
            values = [best / 2, best, best - 0.01]
            curve = [EpochResult(k + 1, 1.0, 0.5, 1.0, value, 1e-3, 1.0).to_dict() for k, value in enumerate(values)]
            study.report(claim, curve)
            study.complete(claim, best, weights={"name": "there", "size": 1, "sha256": "x"}, best_epoch=2)


@pytest.fixture
def source(storage: Storage, name: str) -> SweepStudy:
    """Three complete trials, at three rates; the one in the middle is the best."""
    points = [{"learning_rate": rate, "batch_size": 16} for rate in RATES]
    study = open_or_resume(storage, f"{name}-old", sweep(enqueue=points), data=DATA)
    train_all(study, lambda rate: {1e-4: 0.5, 1e-3: 0.7, 1e-2: 0.6}[rate])
    return study


def begun(source: SweepStudy, name: str, **tables: Any) -> SweepStudy:
    asked = sweep(**tables)
    return open_or_resume(source.storage, name, asked, data=DATA, earlier=found(source, **tables))


def found(source: SweepStudy, *, data: dict[str, Any] = DATA, **tables: Any) -> Earlier:
    return earlier_of(source, sweep(**tables), data=data, code={})


def test_trials_of_the_same_settings_are_known_and_not_counted(source: SweepStudy, name: str) -> None:
    study = begun(source, name, strategy="auto", sampler="auto", pruner="auto")
    assert study.trials() == []
    assert study.ranked() == study.kept() == [], "nothing of it can be exported here"
    assert study.summary()["trials"]["complete"] == 0
    best = {"study": source.name, "number": 1, "value": 0.7}
    assert study.begun_with() == {"studies": [source.name], "trials": 3, "best": best}
    assert source.begun_with() is None
    seen: list[Situation] = []

    def choose(now: Situation) -> Choice:
        seen.append(now)
        return Choice(new=[{"learning_rate": 2e-3, "batch_size": 32}])

    [claim] = study.claim(ME, choose=choose)
    assert seen[0].room == 3
    assert [course.params["learning_rate"] for course in seen[0].courses] == list(RATES)
    assert [list(course.accuracies) for course in seen[0].courses][1] == [0.35, 0.7, 0.69]
    assert not any(course.complete or course.frozen for course in seen[0].courses), "no trial is pruned because of them"
    assert [trial.number for trial in study.trials()] == [claim.number]


def test_a_point_that_was_measured_is_not_trained_again(source: SweepStudy, name: str) -> None:
    points = [{"learning_rate": 1e-3, "batch_size": 16}, {"learning_rate": 3e-3, "batch_size": 16}]
    study = begun(source, name, enqueue=points, trials=1)
    assert [trial.queued["learning_rate"] for trial in study.trials()] == [3e-3]


def test_optuna_knows_their_values_and_their_curves(source: SweepStudy, name: str) -> None:
    study = begun(source, name)
    there = source.storage.load(study.name).trials
    assert [trial.value for trial in there] == [0.5, 0.7, 0.6]
    assert there[1].intermediate_values == {1: 0.35, 2: 0.7, 3: 0.69}
    assert there[1].params == {"learning_rate": 1e-3, "log2_batch_size": 4}


def test_the_budget_is_the_own_trials_and_nothing_comes_twice(source: SweepStudy, name: str) -> None:
    study = begun(source, name)
    train_all(study, lambda _: 0.4)
    assert len(study.trials()) == 3
    assert study.finished()
    again = begun(source, name)
    assert again.begun_with() == study.begun_with()
    assert again.summary()["best"]["value"] == 0.4


def test_trials_outside_of_the_space_are_left_out(source: SweepStudy) -> None:
    narrow = SPACE | {"learning_rate": {"low": 5e-4, "high": 0.1, "log": True}}
    earlier = found(source, space=narrow)
    assert list(earlier.known) == [1, 2]
    assert "2 of 3 finished trials are known" in earlier.words
    assert "learning_rate = 0.0001" in earlier.words


def test_a_searched_parameter_may_be_fixed_there(source: SweepStudy) -> None:
    wider = SPACE | {"dropout": {"low": 0.0, "high": 0.5}}
    assert found(source, space=wider).known[1] == {"learning_rate": 1e-3, "batch_size": 16, "dropout": 0.0}


def test_what_means_something_else_is_refused(source: SweepStudy, name: str) -> None:
    with pytest.raises(StudyError, match="nothing of it can be used here, it has epochs = 3; accepted"):
        found(source, fixed={"model": "convnet", "epochs": 6})
    with pytest.raises(StudyError, match="was run on pictures, not on others"):
        found(source, data=DATA | {"name": "others", "fingerprint": "def"})
    with pytest.raises(StudyError, match="it has no finished trial"):
        found(open_or_resume(source.storage, f"{name}-empty", sweep(), data=DATA))
    with pytest.raises(StudyError, match="a sweep of given points searches nothing"):
        found(source, sampler="given", fixed={}, enqueue=[{"label": "A", "learning_rate": 1e-3}])
    with pytest.raises(UsageError, match="a study knows its own trials already"):
        begun(source, source.name)


def test_another_file_of_the_same_model_is_another_model(source: SweepStudy) -> None:
    source.code = {"convnet": "one"}
    with pytest.raises(StudyError, match="another file for model = convnet"):
        found(source)
