"""`--extend`: another sweep from now on; the old trials stay, and nobody calls them equal to new ones."""

from collections.abc import Callable
from typing import Any

import pytest

from cifar_sweep.curve import EpochResult
from cifar_sweep.errors import StudyError
from cifar_sweep.search.choice import Choice, Situation
from cifar_sweep.study.claim import Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
RATE = {"low": 1e-4, "high": 1e-2, "log": True}
SPACE = {"learning_rate": RATE, "optimizer": {"choices": ["sgd", "adam"]}}
WIDE = {"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}, "optimizer": {"choices": ["rmsprop", "adam", "sgd"]}}
FIXED = {"model": "convnet", "epochs": 3}
AUTO = {"strategy": "auto", "sampler": "auto", "pruner": "auto"}
ME = Worker(Owner.current(), "cpu (test)", 1, "fp32")
POINTS = [{"learning_rate": 1e-4, "optimizer": "sgd"}, {"learning_rate": 1e-3, "optimizer": "adam"}]
Make = Callable[..., SweepStudy]


def sweep(**tables: Any) -> Sweep:
    plain = {"name": "s", "trials": 2, "sampler": "tpe", "pruner": "none", "fixed": FIXED, "space": SPACE}
    return parse(plain | tables, where="test")


@pytest.fixture
def make(storage: Storage, name: str) -> Make:
    def made(*, extend: bool = False, data: dict[str, Any] = DATA, **tables: Any) -> SweepStudy:
        return open_or_resume(storage, name, sweep(**tables), data=data, extend=extend)

    return made


@pytest.fixture
def ran(make: Make) -> SweepStudy:
    """A study that has run: two complete trials."""
    study = make(enqueue=POINTS)
    train_all(study)
    return study


def train_all(study: SweepStudy) -> None:
    while claims := study.claim(ME):
        for claim in claims:
            epochs = range(1, claim.config.shape.epochs + 1)
            curve = [EpochResult(epoch, 1.0, 0.5, 1.0, 0.1 * epoch, 1e-3, 1.0).to_dict() for epoch in epochs]
            study.report(claim, curve)
            study.complete(claim, curve[-1]["validation_accuracy"])


def test_a_wider_space_is_the_study_s_own_from_now_on(ran: SweepStudy, make: Make) -> None:
    with pytest.raises(StudyError, match="go on with these from now on with --extend"):
        make(space=WIDE, trials=6)
    study = make(space=WIDE, trials=6, extend=True)
    train_all(study)
    assert len(study.trials()) == 6
    assert [trial.params for trial in study.trials()[:2]] == POINTS, "the old ones are what they were"
    [change] = study.changes
    assert change["trials"] == [0, 1]
    assert change["was"]["space"]["learning_rate"]["low"] == 1e-4
    assert "learning_rate: 0.0001 to 0.01, now 1e-05 to 0.1" in change["words"]
    assert "optimizer: one of sgd, adam, now one of rmsprop, adam, sgd" in change["words"]
    assert "2 trials stay as before, and could be of the new space as well" in change["words"]
    assert study.remark(study.trials()[0]) == "trial 0 was trained under the earlier space"
    assert study.remark(study.trials()[2]) == ""
    make(space=WIDE, trials=7)  # it is the same sweep now


def test_optuna_s_sampler_sees_old_and_new_values_as_of_one_range(ran: SweepStudy, make: Make) -> None:
    study = make(space=WIDE, trials=4, extend=True)
    train_all(study)
    trials = ran.storage.load(study.name).trials
    assert len(trials) == 4
    for name in ("learning_rate", "optimizer"):
        assert len({str(trial.distributions[name]) for trial in trials}) == 1
    assert trials[0].params == POINTS[0]


def test_a_narrower_range_leaves_the_old_trials_in_a_range_that_holds_them(ran: SweepStudy, make: Make) -> None:
    study = make(space=SPACE | {"learning_rate": RATE | {"low": 5e-4}}, trials=4, extend=True)
    train_all(study)
    assert study.remark(study.trials()[0]).endswith("earlier space, with learning_rate=0.0001")
    assert study.remark(study.trials()[1]).endswith("earlier space")
    assert study.trials()[0].params == POINTS[0]
    assert "1 of them has settings" in study.changes[0]["words"]
    assert "sampler tpe compares their values with new ones all the same" in study.changes[0]["words"]


def test_the_best_are_trained_longer(ran: SweepStudy, make: Make) -> None:
    study = make(fixed=FIXED | {"epochs": 6}, trials=4, extend=True)
    train_all(study)
    labels = [trial.label for trial in study.trials()[2:]]
    assert labels == ["trial 0, 6 epochs", "trial 1, 6 epochs"], "equal ones by number"
    assert [trial.params for trial in study.trials()[2:]] == POINTS
    assert [trial.epochs_done for trial in study.trials()] == [3, 3, 6, 6]
    assert study.remark(study.trials()[1]) == "trial 1 was trained under the earlier space, with epochs=3"
    assert "remark" not in study.summary()["best"]


def test_the_model_knows_the_old_trials_in_the_new_space(make: Make) -> None:
    """A further parameter has the value that it had; one of another length counts, one of other settings does not."""
    study = make(**AUTO, enqueue=POINTS)
    train_all(study)
    assert [trial.is_frozen for trial in study.trials()] == [False, False]
    further = SPACE | {"dropout": {"low": 0.0, "high": 0.5}}
    seen: list[Situation] = []

    def choose(now: Situation) -> Choice:
        seen.append(now)
        return Choice()

    study = make(**AUTO, space=further, fixed=FIXED | {"epochs": 6}, trials=9, extend=True)
    study.set_state("open")
    while claims := study.claim(ME, choose=choose):
        for claim in claims:
            study.fail(claim, "not wanted")
    assert [course.params["dropout"] for course in seen[0].courses] == [0.0, 0.0]
    assert [course.epochs for course in seen[0].courses] == [3, 3]
    study = make(**AUTO, space=further, fixed=FIXED | {"epochs": 6, "batch_size": 32}, trials=10, extend=True)
    study.claim(ME, choose=choose)
    assert seen[-1].courses == []
    assert "4 of these tell the model nothing" in study.changes[-1]["words"]


def test_what_was_frozen_with_settings_of_the_earlier_space_is_pruned(make: Make) -> None:
    fixed = FIXED | {"epochs": 24}
    study = make(**AUTO, fixed=fixed, trials=2)
    [claim] = study.claim(ME, choose=lambda _: Choice(new=[POINTS[0]]))
    study.report(claim, [EpochResult(k + 1, 1.0, 0.5, 1.0, 0.3, 1e-3, 1.0).to_dict() for k in range(claim.until)])
    study.release(claim)
    assert study.trials()[0].is_frozen
    study = make(**AUTO, fixed=fixed, space=WIDE, trials=2, extend=True)
    assert study.trials()[0].is_frozen, "it could be of the wider space"
    study = make(**AUTO, fixed=fixed | {"batch_size": 32}, space=WIDE, trials=2, extend=True)
    [trial] = study.trials()
    assert trial.state == "pruned"
    assert trial.reason.startswith("frozen after epoch 2 when the study was extended")


def test_an_interrupted_trial_goes_on_as_it_was(make: Make) -> None:
    study = make(enqueue=POINTS)
    [claim, *_] = study.claim(ME)
    study.release(claim)
    study = make(space=WIDE | {"dropout": {"low": 0.1, "high": 0.5}}, trials=5, extend=True)
    [again, *_] = study.claim(ME)
    assert again.number == claim.number
    assert again.config == claim.config
    assert "dropout" not in again.trial.params


def test_what_cannot_be_is_refused_and_changes_nothing(ran: SweepStudy, make: Make) -> None:
    few = SPACE | {"optimizer": {"choices": ["adam", "rmsprop"]}}
    with pytest.raises(StudyError, match="trial 0 has optimizer = sgd, which the new choices leave out"):
        make(space=few, trials=4, extend=True)
    with pytest.raises(StudyError, match="2 trials are finished, and the sweep asks for 2, so nothing new"):
        make(space=WIDE, extend=True)
    with pytest.raises(StudyError, match="was run on other data"):
        make(space=WIDE, trials=4, extend=True, data=DATA | {"fingerprint": "def"})
    given = {"sampler": "given", "space": {}, "enqueue": [{"label": "A", "epochs": 3}]}
    with pytest.raises(StudyError, match="given points have no space to extend"):
        make(extend=True, **given)
    assert ran.changes == []
    make(trials=3)
    [_] = ran.claim(ME)
    with pytest.raises(StudyError, match="1 of its trials are being trained"):
        make(space=WIDE, trials=6, extend=True)


def test_fresh_seeds_of_a_confirmation_are_no_trials_of_the_search(make: Make) -> None:
    train_all(make(confirm=[2, 2]))
    study = make(trials=3, space=WIDE, confirm=[2, 2], extend=True)
    train_all(study)
    assert sum(trial.confirms is None for trial in study.trials()) == 3


def test_a_study_that_is_not_there_is_not_made(storage: Storage, make: Make, name: str) -> None:
    make()
    with pytest.raises(StudyError, match=f"there is no study '{name}-x'"):
        open_or_resume(storage, f"{name}-x", sweep(), data=DATA, extend=True)
    assert f"{name}-x" not in [each for each, _ in storage.studies()]
