"""What a study promises, on every storage: exact budgets, trials that nobody trains twice, and honest resuming."""

import shutil
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.database import locks
from cifar_sweep.errors import CifarSweepError, StorageError, StudyError, UsageError
from cifar_sweep.study import opening as studies
from cifar_sweep.study.claim import Claim, TrialLostError, Worker
from cifar_sweep.study.claiming import MAX_DEATHS
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.storage import Storage, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
SPACE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}, "batch_size": {"low": 16, "high": 64, "base2": True}}
POINTS = [
    {"learning_rate": 1e-3, "batch_size": 16, "label": "A-1"},
    {"learning_rate": 1e-2, "batch_size": 64},
    {"learning_rate": 1e-4, "batch_size": 32, "label": "B-7"},
]


def sweep(**tables: Any) -> Sweep:
    plain = {"name": "s", "trials": 4, "sampler": "random", "pruner": "none", "fixed": {"epochs": 3}, "space": SPACE}
    return parse(plain | tables, where="test")


@pytest.fixture
def make(storage: Storage, name: str) -> Callable[..., SweepStudy]:
    """Opens or resumes the test's study."""

    def made(*, data: dict[str, Any] = DATA, **tables: Any) -> SweepStudy:
        return open_or_resume(storage, name, sweep(**tables), data=data)

    return made


def worker(precision: str = "fp32", **owner: Any) -> Worker:
    here = Owner.current()
    parts = {"host": here.host, "pid": here.pid, "started": here.started, "token": here.token}
    return Worker(Owner(**parts | owner), "cpu (test)", 2, precision)


def claimed(study: SweepStudy, by: Worker | None = None) -> Claim:
    [claim] = study.claim(by or worker())
    return claim


def curve(epochs: int, accuracy: float = 0.5) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "validation_accuracy": accuracy + epoch / 100} for epoch in range(1, epochs + 1)]


def stored(study: SweepStudy, claim: Claim) -> FrozenTrial:
    return study.storage.optuna.get_trial(claim.trial_id)


def points(study: SweepStudy, claim: Claim) -> list[Any]:
    return TrialRecord(stored(study, claim)).points


def states(study: SweepStudy) -> list[TrialState]:
    return [trial.frozen.state for trial in study.trials()]


def age_heartbeat(study: SweepStudy, claim: Claim) -> None:
    """As if the last heartbeat had been years ago."""
    statement = sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = :then WHERE trial_id = :id")
    with study.storage.optuna.engine.begin() as connection:
        done = connection.execute(statement, {"then": "2020-01-01 00:00:00.000000", "id": claim.trial_id})
        assert done.rowcount == 1


@pytest.fixture(scope="module", autouse=True)
def quick_commit() -> Iterator[None]:
    """git takes a tenth of a second to look for changes, and here a study is made in every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "commit", lambda: "0123456789ab-dirty")
        yield


# The budget


def test_claims_stop_at_the_budget(make: Callable[..., SweepStudy]) -> None:
    study = make(trials=3)
    claims = [claimed(study) for _ in range(3)]
    assert [claim.number for claim in claims] == [0, 1, 2]
    assert study.claim(worker()) == []
    for claim in claims:
        assert not study.finished()
        study.complete(claim, 0.5)
    assert study.finished()
    assert study.claim(worker()) == []
    assert len(study.trials()) == 3


def test_pruned_trials_count_and_failed_ones_do_not(make: Callable[..., SweepStudy]) -> None:
    study = make(trials=2)
    study.prune(claimed(study), "weak")
    study.fail(claimed(study), "broken")
    assert not study.finished()
    study.complete(claimed(study), 0.5)
    assert study.finished()
    assert study.claim(worker()) == []
    assert states(study) == [TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE]


def test_a_place_in_the_budget_is_free_again_after_a_failure(make: Callable[..., SweepStudy]) -> None:
    study = make(trials=1)
    claim = claimed(study)
    assert study.claim(worker()) == []
    study.fail(claim, "broken")
    assert claimed(study).number == 1


def test_the_budget_may_be_below_the_number_of_points(make: Callable[..., SweepStudy]) -> None:
    study = make(trials=2, enqueue=POINTS)
    for _ in range(2):
        study.complete(claimed(study), 0.5)
    assert study.claim(worker()) == []
    assert study.finished()


def test_the_budget_may_be_raised_on_resuming(make: Callable[..., SweepStudy]) -> None:
    study = make(trials=1)
    study.complete(claimed(study), 0.5)
    again = make(trials=2)
    assert (again.budget, again.uid, again.finished()) == (2, study.uid, False)
    assert claimed(again).number == 1


def test_fewer_trials_than_are_finished_change_nothing(make: Callable[..., SweepStudy]) -> None:
    study = make(trials=3)
    for _ in range(3):
        study.complete(claimed(study), 0.5)
    assert (make(trials=1).budget, make(trials=2).finished(), make(trials=3).budget) == (3, True, 3)
    study = make(trials=5)
    study.complete(claimed(study), 0.5)
    again = make(trials=2)  # those that are finished, and no more
    assert (again.budget, again.finished()) == (4, True)


# Points to try first


def test_points_come_first_in_order_with_their_labels(make: Callable[..., SweepStudy]) -> None:
    study = make(trials=5, enqueue=POINTS)
    claims = [claimed(study) for _ in range(5)]
    found = [(claim.config.knobs.learning_rate, claim.config.shape.batch_size) for claim in claims]
    assert found[:3] == [(point["learning_rate"], point["batch_size"]) for point in POINTS]
    assert [stored(study, claim).user_attrs.get("label") for claim in claims] == ["A-1", None, "B-7", None, None]
    assert len(set(found)) == 5


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_points_leave_open_is_sampled_anew_for_each(make: Callable[..., SweepStudy], sampler: str) -> None:
    points = [{"batch_size": batch} for batch in (16, 32, 64)]
    study = make(trials=5, enqueue=points, sampler=sampler)
    configs = [claimed(study).config for _ in range(5)]
    assert [config.shape.batch_size for config in configs[:3]] == [16, 32, 64]
    assert len({config.knobs.learning_rate for config in configs}) == 5


def test_points_are_not_enqueued_again_on_resuming(make: Callable[..., SweepStudy]) -> None:
    make(enqueue=POINTS)
    assert len(make(enqueue=POINTS).trials()) == 3


# One trial


def test_a_claim_is_stored_with_its_config_and_its_owner(make: Callable[..., SweepStudy]) -> None:
    study, by = make(), worker("bf16")
    claim = claimed(study, by)
    trial = stored(study, claim)
    assert trial.state is TrialState.RUNNING
    assert trial.user_attrs["config"] == claim.config.to_dict()
    assert trial.user_attrs["config"]["precision"] == "bf16"
    environment = trial.user_attrs["environment"]
    assert (environment["device"], environment["threads"]) == ("cpu (test)", 2)
    assert study.storage.owner(claim.trial_id) == by.owner.token
    assert claim.config.shape.classes == 10


@pytest.mark.parametrize("reports", [(1, 2, 2, 3), (3,), (2, 3, 3)])
def test_reports_are_the_whole_curve_and_each_step_once(make: Callable[..., SweepStudy], reports: Any) -> None:
    study = make()
    claim = claimed(study)
    for epochs in reports:
        study.report(claim, curve(epochs))
    assert points(study, claim) == curve(3)
    assert stored(study, claim).intermediate_values == {1: 0.51, 2: 0.52, 3: 0.53}


def test_a_report_writes_the_new_epochs_alone(make: Callable[..., SweepStudy]) -> None:
    study = make()
    claim = claimed(study)
    study.report(claim, curve(2))
    written: list[str] = []

    def note(_c: Any, _u: Any, statement: str, parameters: Any, *_: Any) -> None:
        written.append(f"{statement} {parameters}")

    sqlalchemy.event.listen(study.storage.optuna.engine, "before_cursor_execute", note)
    study.report(claim, curve(3))
    sqlalchemy.event.remove(study.storage.optuna.engine, "before_cursor_execute", note)
    text = "".join(written)
    assert "0.53" in text
    assert "0.51" not in text
    assert "0.52" not in text


def test_a_finished_trial_has_its_curve_in_one_attribute(make: Callable[..., SweepStudy]) -> None:
    study = make()
    claim = claimed(study)
    study.report(claim, curve(3))
    study.complete(claim, 0.53)
    attributes = stored(study, claim).user_attrs
    assert attributes["curve"] == points(study, claim) == curve(3)
    assert not [name for name in attributes if name.startswith("epoch:")]


@pytest.mark.parametrize("known", ["curve", "epochs"])
def test_a_trial_that_goes_on_from_an_earlier_epoch_loses_the_later_ones(
    make: Callable[..., SweepStudy], known: str
) -> None:
    study = make()
    first = claimed(study)
    if known == "curve":  # as all trials had it before version 0.2
        study.storage.optuna.set_trial_user_attr(first.trial_id, "curve", curve(3, 0.1))
    else:
        study.report(first, curve(3, 0.1))
    study.release(first)
    again = claimed(study)
    assert again.before.epochs_done == 3
    study.report(again, [*curve(1, 0.1), *curve(2)[1:]])
    assert points(study, again) == [*curve(1, 0.1), *curve(2)[1:]]
    study.report(again, [*curve(1, 0.1), *curve(3)[1:]])
    study.release(again)
    assert points(study, claimed(study)) == [*curve(1, 0.1), *curve(3)[1:]]


def test_a_curve_in_one_attribute_is_gone_on_with(make: Callable[..., SweepStudy]) -> None:
    study = make()
    first = claimed(study)
    study.storage.optuna.set_trial_user_attr(first.trial_id, "curve", curve(2))
    study.release(first)
    again = claimed(study)
    study.report(again, curve(3))
    assert stored(study, again).user_attrs["curve"] == curve(2)
    assert points(study, again) == curve(3)


def test_a_complete_trial_has_its_value_and_attributes(make: Callable[..., SweepStudy]) -> None:
    study = make()
    claim = claimed(study)
    study.report(claim, curve(3))
    study.complete(claim, 0.9, best_epoch=2, weights_sha256="f00")
    trial = stored(study, claim)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.9)
    assert (trial.user_attrs["best_epoch"], trial.user_attrs["weights_sha256"]) == (2, "f00")


def test_a_pruned_trial_has_its_reason_and_its_last_value(make: Callable[..., SweepStudy]) -> None:
    study = make()
    claim = claimed(study)
    study.report(claim, curve(2))
    study.prune(claim, "weak")
    trial = stored(study, claim)
    assert (trial.state, trial.value, trial.user_attrs["reason"]) == (TrialState.PRUNED, 0.52, "weak")


def test_a_trial_may_be_pruned_before_its_first_report(make: Callable[..., SweepStudy]) -> None:
    study = make()
    claim = claimed(study)
    study.prune(claim, "diverged")
    assert (stored(study, claim).state, stored(study, claim).value) == (TrialState.PRUNED, None)


def test_a_failed_trial_has_its_reason_and_no_value(make: Callable[..., SweepStudy]) -> None:
    study = make()
    claim = claimed(study)
    study.report(claim, curve(1))
    study.fail(claim, "ValueError: bad")
    trial = stored(study, claim)
    assert (trial.state, trial.value, trial.user_attrs["reason"]) == (TrialState.FAIL, None, "ValueError: bad")


def test_the_pruner_of_the_sweep_decides(make: Callable[..., SweepStudy]) -> None:
    study = make(pruner={"name": "median", "startup_trials": 1})
    good, bad = claimed(study), claimed(study)
    study.report(good, curve(3, 0.8))
    study.complete(good, 0.83)
    study.report(bad, curve(1, 0.1))
    assert study.should_prune(bad)
    assert not make(pruner={"name": "median", "startup_trials": 1}).should_prune(claimed(study))


def test_with_searched_epochs_the_steps_are_tenths(make: Callable[..., SweepStudy]) -> None:
    study = make(fixed={}, space={"epochs": {"low": 20, "high": 20}})
    claim = claimed(study)
    study.report(claim, curve(9))
    assert stored(study, claim).intermediate_values == {1: 0.52, 2: 0.54, 3: 0.56, 4: 0.58}
    study.report(claim, curve(20))
    assert list(stored(study, claim).intermediate_values) == list(range(1, 11))


# Interruptions


def test_a_released_trial_comes_back_as_it_was(make: Callable[..., SweepStudy]) -> None:
    study = make()
    first = claimed(study, worker("bf16"))
    study.report(first, curve(2))
    before = stored(study, first)
    study.release(first)
    assert states(study) == [TrialState.WAITING]
    assert not study.finished()
    second = claimed(make(), worker("fp32"))
    after = stored(study, second)
    assert (second.number, second.trial_id, second.config) == (first.number, first.trial_id, first.config)
    assert (after.params, after.intermediate_values) == (before.params, before.intermediate_values)
    assert points(study, second) == curve(2)
    study.report(second, curve(3))
    study.complete(second, 0.6)
    assert list(stored(study, second).intermediate_values) == [1, 2, 3]
    assert states(study) == [TrialState.COMPLETE]


def test_a_trial_taken_up_again_is_not_taken_away_for_its_old_heartbeat(make: Callable[..., SweepStudy]) -> None:
    study = make()
    first = claimed(study)
    study.release(first)
    age_heartbeat(study, first)
    again = claimed(study)
    assert claimed(study).number != again.number == first.number
    study.report(again, curve(1))
    assert "deaths" not in stored(study, again).user_attrs


def test_a_released_trial_is_continued_before_a_new_one_is_begun(make: Callable[..., SweepStudy]) -> None:
    study = make()
    claims = [claimed(study) for _ in range(3)]
    study.release(claims[1])
    assert claimed(study).number == 1
    assert claimed(study).number == 3


def test_the_trial_of_a_dead_process_is_taken_up_at_once(make: Callable[..., SweepStudy], ended_pid: int) -> None:
    study = make()
    lost = claimed(study, worker(pid=ended_pid))
    study.storage.optuna.set_trial_user_attr(lost.trial_id, "curve", curve(2))
    again = claimed(study)
    assert (again.number, again.config) == (lost.number, lost.config)
    attributes = stored(study, again).user_attrs
    assert (attributes["deaths"], attributes["curve"]) == (1, curve(2))


def test_the_trial_of_another_host_is_taken_up_when_its_lease_is_over(make: Callable[..., SweepStudy]) -> None:
    study = make()
    away = claimed(study, worker(host="elsewhere"))
    assert claimed(study).number == 1
    age_heartbeat(study, away)
    assert claimed(study).number == away.number


def test_the_trial_of_a_live_process_is_not_taken(make: Callable[..., SweepStudy]) -> None:
    study = make(trials=2)
    assert {claimed(study).number, claimed(study).number} == {0, 1}
    assert study.claim(worker()) == []


def test_a_trial_whose_worker_died_while_it_claimed_is_taken_up(
    make: Callable[..., SweepStudy], ended_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(trials=1)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cifar_sweep.sweep.space.suggest", die)
        with pytest.raises(KeyboardInterrupt):
            study.claim(worker(pid=ended_pid))
    again = claimed(study)
    assert again.number == 0
    assert SPACE.keys() - {"batch_size"} <= stored(study, again).params.keys()


def test_a_trial_that_kills_its_workers_is_failed(make: Callable[..., SweepStudy], ended_pid: int) -> None:
    study = make(trials=1)
    deaths = MAX_DEATHS + 1
    assert [claimed(study, worker(pid=ended_pid)).number for _ in range(deaths)] == [0] * deaths
    assert claimed(study).number == 1
    first = study.trials()[0].frozen
    assert first.state is TrialState.FAIL
    assert first.user_attrs["reason"].startswith(f"its worker died {deaths} times without finishing epoch 1; if it was")


ENDS: dict[str, Callable[[SweepStudy, Claim], None]] = {
    "report": lambda study, claim: study.report(claim, curve(3)),
    "complete": lambda study, claim: study.complete(claim, 0.9, best_epoch=1),
    "prune": lambda study, claim: study.prune(claim, "weak"),
    "fail": lambda study, claim: study.fail(claim, "broken"),
    "release": lambda study, claim: study.release(claim),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
def test_a_lost_trial_is_not_written_to(make: Callable[..., SweepStudy], end: Callable[..., None]) -> None:
    study = make()
    late = claimed(study, worker(host="elsewhere"))
    study.report(late, curve(1))
    age_heartbeat(study, late)
    taken = claimed(study)
    before = stored(study, taken)
    with pytest.raises(TrialLostError, match="trial 0 was taken up by another worker"):
        end(study, late)
    assert stored(study, taken) == before
    end(study, taken)
    assert stored(study, taken) != before


def test_a_trial_that_another_worker_finished_is_lost_and_keeps_its_value(make: Callable[..., SweepStudy]) -> None:
    study = make()
    late = claimed(study, worker(host="elsewhere"))
    age_heartbeat(study, late)
    study.complete(claimed(study), 0.7)
    with pytest.raises(TrialLostError):
        study.complete(late, 0.1)
    assert stored(study, late).value == 0.7


def test_a_loss_does_not_keep_the_lock(make: Callable[..., SweepStudy], url: str, name: str) -> None:
    study = make()
    claim = claimed(study)
    study.release(claim)
    with pytest.raises(TrialLostError):
        study.report(claim, curve(1))
    with closing(open_storage(url)) as other:
        assert claimed(studies.load(other, name)).number == 0


def test_the_lock_holds_another_worker_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 1)
    refused = pytest.raises(StorageError, match="another process has held the study database for 1 s")
    with closing(open_storage(url)) as one, closing(open_storage(url)) as two:
        with one.lock(), refused:
            two.lock().__enter__()
        with two.lock():
            pass


# Resuming


def test_a_study_is_resumed_with_its_trials_and_facts(make: Callable[..., SweepStudy]) -> None:
    study = make()
    study.complete(claimed(study), 0.5)
    again = make()
    assert (again.uid, again.data, again.sweep) == (study.uid, DATA, study.sweep)
    assert again.ranked()[0].value == 0.5
    assert again._study.user_attrs["versions"]["optuna"] == optuna.__version__
    assert again._study.user_attrs["commit"] == "0123456789ab-dirty"
    assert len(again.uid) == 8


DIFFERENT = {
    "space": (
        {"space": SPACE | {"learning_rate": {"low": 1e-4, "high": 0.1, "log": True}}},
        ['with another space: it has {"learning_rate": {"low": 1e-05', 'this run has {"learning_rate": {"low": 0.0001'],
    ),
    "smaller space": (
        {"space": {"learning_rate": SPACE["learning_rate"]}},
        ['it has {"batch_size"', "this run has less"],
    ),
    "fixed": ({"fixed": {"epochs": 4}}, ['another fixed: it has {"epochs": 3}, this run has {"epochs": 4}']),
    "pruner": ({"pruner": "median"}, ['another pruner: it has {"name": "none"}, this run has {"name": "median"}']),
    "sampler": ({"sampler": "tpe"}, ['another sampler: it has {"name": "random"}, this run has {"name": "tpe"}']),
    "seed": ({"seed": 9}, ["another seed: it has 0, this run has 9"]),
    "data": (
        {"data": DATA | {"name": "paintings", "fingerprint": "xyz"}},
        ["was run on other data: pictures (abc), not paintings (xyz); give the same --data"],
    ),
}


@pytest.mark.parametrize(("change", "expected"), DIFFERENT.values(), ids=list(DIFFERENT))
def test_a_study_of_other_numbers_is_not_resumed(
    make: Callable[..., SweepStudy], name: str, change: dict[str, Any], expected: list[str]
) -> None:
    before = make().sweep
    with pytest.raises(StudyError) as refused:
        make(**change)
    message = str(refused.value)
    assert message.startswith(f"study {name!r} ")
    assert all(part in message for part in expected), message
    assert message.endswith("or name a new study with --study.")
    assert make().sweep == before


def test_a_study_of_somebody_else_is_refused_and_left_alone(
    make: Callable[..., SweepStudy], storage: Storage, name: str
) -> None:
    foreign = optuna.create_study(storage=storage.optuna, study_name=name, direction="maximize")
    foreign.add_trial(optuna.trial.create_trial(value=0.5))
    with pytest.raises(StudyError, match="was not made by cifar-sweep; choose another with --study"):
        make()
    with pytest.raises(StudyError, match="was not made by cifar-sweep; choose another with --study"):
        studies.load(storage, name)
    assert name not in [study.name for study in studies.load_all(storage)]
    assert foreign.user_attrs == {}
    assert len(foreign.trials) == 1


def test_a_study_that_minimises_is_refused(make: Callable[..., SweepStudy], storage: Storage, name: str) -> None:
    optuna.create_study(storage=storage.optuna, study_name=name, direction="minimize")
    with pytest.raises(StudyError, match=f"study '{name}' has another direction"):
        make()


class BreakError(Exception):
    """What ends a process in the middle."""


def test_a_study_is_made_whole_or_not_at_all(
    make: Callable[..., SweepStudy], storage: Storage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = optuna.Study.enqueue_trial
    calls: list[Any] = []

    def break_at_the_third(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise BreakError
        enqueue(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "enqueue_trial", break_at_the_third)
        with pytest.raises(BreakError):
            make(enqueue=POINTS)
    assert name not in dict(storage.studies())
    assert [trial.label for trial in make(enqueue=POINTS).trials()] == ["A-1", "", "B-7"]


def test_a_claim_that_breaks_off_has_taken_nothing(
    make: Callable[..., SweepStudy], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process may be killed there, on a machine whose processes nobody sees: a trial would run for ever."""
    study = make(trials=4)

    def beat(_: int) -> None:
        raise BreakError

    with monkeypatch.context() as patch:
        patch.setattr(storage, "beat", beat)
        with pytest.raises(BreakError):
            claimed(study, worker(host="elsewhere"))
    assert study.trials() == []


@pytest.mark.slow
def test_the_sampler_does_not_repeat_itself_after_a_restart(
    make: Callable[..., SweepStudy], url: str, name: str
) -> None:
    make(trials=24, sampler={"name": "tpe", "startup_trials": 16})
    rates: list[float] = []
    for _ in range(2):
        with closing(open_storage(url)) as opened:
            study = studies.load(opened, name)
            for _ in range(12):
                claim = claimed(study)
                rates.append(claim.config.knobs.learning_rate)
                study.complete(claim, 0.5)
    assert len(set(rates)) == 24


def test_one_worker_samples_the_same_trials_in_every_study(storage: Storage) -> None:
    def params() -> list[Any]:
        settings = {"name": "tpe", "startup_trials": 4}
        study = open_or_resume(storage, f"study-{uuid.uuid4().hex}", sweep(sampler=settings, trials=8), data=DATA)
        found = []
        for number in range(8):
            claim = claimed(study)
            found.append(claim.config)
            study.complete(claim, number / 100)
        return found

    assert params() == params()


# Loading


def test_an_unknown_study_is_refused_with_the_nearest(
    make: Callable[..., SweepStudy], storage: Storage, name: str
) -> None:
    make()
    with pytest.raises(StudyError, match=f"there is no study '{name[:-1]}'; did you mean") as refused:
        studies.load(storage, name[:-1])
    assert name in str(refused.value)
    assert str(refused.value).startswith(storage.shown)


def test_a_study_is_loaded_by_name(make: Callable[..., SweepStudy], storage: Storage, name: str) -> None:
    made = make(trials=9)
    loaded = studies.load(storage, name)
    assert (loaded.name, loaded.uid, loaded.budget) == (name, made.uid, 9)
    assert name in [study.name for study in studies.load_all(storage)]


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "../up", ".hidden", "-x", "a\n", "straße?", "_a", "\udcff"])
def test_bad_names_are_refused(storage: Storage, bad: str) -> None:
    with pytest.raises(UsageError, match="accepted: letters, digits, dots, dashes and underscores"):
        open_or_resume(storage, bad, sweep(), data=DATA)


def test_a_name_is_of_any_script_and_as_long_as_files_can_be(storage: Storage, name: str) -> None:
    assert open_or_resume(storage, f"über_日本_{name}", sweep(), data=DATA).name.startswith("über")
    open_or_resume(storage, f"{name:x<200}", sweep(), data=DATA)
    for long in (f"{name:x<201}", f"{name:ß<130}"):
        with pytest.raises(UsageError, match="the name is too long; accepted: 200 bytes"):
            open_or_resume(storage, long, sweep(), data=DATA)


def test_a_pruner_that_does_not_fit_makes_no_study(
    make: Callable[..., SweepStudy], storage: Storage, name: str
) -> None:
    with pytest.raises(UsageError, match="unfair to long schedules"):
        make(pruner="asha", fixed={}, space={"epochs": {"low": 1, "high": 5}})
    assert name not in optuna.get_all_study_names(storage.optuna)


# At a glance


def test_the_summary_counts_every_state_and_orphans_as_waiting(
    make: Callable[..., SweepStudy], name: str, ended_pid: int
) -> None:
    study = make(trials=8, enqueue=POINTS, description="what for")
    study.complete(claimed(study), 0.6)
    best = claimed(study)
    study.complete(best, 0.7)
    study.prune(claimed(study), "weak")
    study.fail(claimed(study), "broken")
    claimed(study)
    claimed(study, worker(host="elsewhere"))
    released = claimed(study)
    claimed(study, worker(pid=ended_pid))
    study.release(released)
    assert study.summary() == {
        "name": name,
        "description": "what for",
        "trials": {
            "complete": 2,
            "pruned": 1,
            "failed": 1,
            "running": 2,
            "waiting": 2,
            "frozen": 0,
            "outside": 0,
            "impossible": 0,
            "diverged": 0,
        },
        "budget": 8,
        "confirmation": None,
        "metric": "accuracy",
        "best": {"number": best.number, "value": 0.7, "params": {"learning_rate": 1e-2, "batch_size": 64}},
        "earlier": None,
        "changes": [],
        "data": "pictures",
        "data_fingerprint": "abc",
        "state": "open",
        "reason": "",
        "priority": 0,
        "stored_bytes": 0,
        "stored_bytes_cap": 5_000_000_000,
    }


def test_the_ranking_is_by_value_then_by_number(make: Callable[..., SweepStudy]) -> None:
    study = make(trials=5)
    for value in (0.5, 0.9, 0.5, 0.95):
        study.complete(claimed(study), value)
    study.prune(claimed(study), "weak")
    assert [trial.number for trial in study.ranked()] == [3, 1, 0, 2]


# Many processes at once


@pytest.mark.slow
def test_processes_at_once_finish_exactly_the_budget_and_no_trial_twice(
    make: Callable[..., SweepStudy], url: str, name: str, tmp_path: Path
) -> None:
    points = [{"learning_rate": 1e-5 * number, "batch_size": 16, "label": str(number)} for number in range(1, 41)]
    study = make(trials=60, enqueue=points)
    folder = tmp_path / "claimed"
    folder.mkdir()
    program = Path(__file__).with_name("claiming.py")
    ended = subprocess.run(
        [sys.executable, program, url, name, folder, "6"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    claims = [path.read_text().split() for path in folder.iterdir()]
    assert len([numbers for numbers in claims if numbers]) > 1
    assert Counter(int(number) for numbers in claims for number in numbers) == dict.fromkeys(range(60), 1)
    assert states(study) == [TrialState.COMPLETE] * 60
    assert [trial.value for trial in study.trials()] == [number / 1000 for number in range(60)]
    labels = [trial.frozen.user_attrs.get("label") for trial in study.trials()]
    assert labels == [str(number) for number in range(1, 41)] + [None] * 20
    assert len({trial.params["learning_rate"] for trial in study.trials()}) == 60


def test_a_new_database_of_a_server_may_be_opened_by_several_at_once(
    postgres_url: str, postgres_storage: Storage, name: str
) -> None:
    with postgres_storage.optuna.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
    url = sqlalchemy.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    start = threading.Barrier(4)

    def open_it(_: int) -> None:
        start.wait()
        open_storage(url).close()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_it, range(4))) == [None] * 4


# A database with one study or none


@pytest.fixture
def own_storage(sqlite_template: Path, tmp_path: Path) -> Iterator[Storage]:
    shutil.copy(sqlite_template, tmp_path / "own.db")
    with closing(open_storage(f"sqlite:///{tmp_path}/own.db")) as opened:
        yield opened


def load_error(storage: Storage, name: str | None = None) -> str:
    with pytest.raises(CifarSweepError) as refused:
        studies.load(storage, name)
    assert type(refused.value) is StudyError
    return str(refused.value)


def test_without_a_name_the_only_study_is_loaded(own_storage: Storage) -> None:
    assert load_error(own_storage).endswith("own.db: name one of its studies: it has none.")
    assert load_error(own_storage, "x").endswith("own.db: there is no study 'x'; it has no study.")
    open_or_resume(own_storage, "b", sweep(), data=DATA)
    assert studies.load(own_storage).name == "b"
    open_or_resume(own_storage, "a", sweep(), data=DATA)
    assert load_error(own_storage).endswith("own.db: name one of its studies: a, b.")
    assert [study.name for study in studies.load_all(own_storage)] == ["a", "b"]


def test_what_a_broken_claim_left_is_not_lost(make: Callable[..., SweepStudy]) -> None:
    study = make()
    me = worker()
    left = claimed(study, me)  # and the answer of the database was lost
    again = claimed(study, me)
    assert again.number == left.number
    assert "deaths" not in stored(study, again).user_attrs
