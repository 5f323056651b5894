"""Faults that are planted into the storage's rules: each must be found, by the model of the rules and in a history."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import TrialState

from cifar_sweep.study import claiming, tables
from cifar_sweep.study.claim import Claim
from cifar_sweep.study.next_group import Waiting
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.storage import Database, Storage
from cifar_sweep.study.tables import Change

Plant = Callable[[pytest.MonkeyPatch], None]


def the_holder_is_not_asked_at_a_report(patch: pytest.MonkeyPatch) -> None:
    def report(storage: Storage, trial: Any, _token: str, change: Change) -> bool:
        with storage.lock():
            storage.write(trial._trial_id, change)
        return True

    patch.setattr(Storage, "report", report)


def a_living_worker_is_taken_for_dead(patch: pytest.MonkeyPatch) -> None:
    def orphans(storage: Storage, study: Any) -> list[int]:
        there = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        return [storage.trial_id(study, trial.number) for trial in there]

    patch.setattr(Storage, "orphans", orphans)


def a_dead_worker_keeps_its_claim(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Storage, "orphans", lambda storage, study: ())


def the_budget_does_not_count_what_runs(patch: pytest.MonkeyPatch) -> None:
    queue_of = claiming.queue_of
    patch.setattr(claiming, "queue_of", lambda *given, **options: replace(queue_of(*given, **options), running=0))


def what_runs_can_be_claimed(patch: pytest.MonkeyPatch) -> None:
    queue_of, set_state = claiming.queue_of, Database.set_trial_state_values

    def with_running(trials: list[TrialRecord], sweep: Any, **options: Any) -> Any:
        queue = queue_of(trials, sweep, **options)
        shape_of = options.get("shape_of", lambda _: None)
        running = [
            Waiting(trial.number, shape_of(trial), trial.epochs_done, begun=True)
            for trial in trials
            if trial.state == "running"
        ]
        return replace(queue, running=0, waiting=[*queue.waiting, *running])

    def set_again(storage: Database, trial_id: int, state: TrialState, values: Any = None) -> bool:
        if state is not TrialState.RUNNING or set_state(storage, trial_id, state, values):
            return set_state(storage, trial_id, state, values) if state is not TrialState.RUNNING else True
        with storage.writing() as connection:
            connection.exec_driver_sql(f"UPDATE trials SET state = 'RUNNING' WHERE trial_id = {trial_id}")
        return True

    patch.setattr(claiming, "queue_of", with_running)
    patch.setattr(Database, "set_trial_state_values", set_again)


def a_trial_that_is_taken_up_begins_again(patch: pytest.MonkeyPatch) -> None:
    def forgetful(trial: Any, trial_id: int, owner: Any, config: Any, before: Any, _curve: Any, *rest: Any) -> Claim:
        return Claim(trial, trial_id, owner, config, before, [], *rest)

    patch.setattr(claiming, "Claim", forgetful)


def an_acknowledged_epoch_is_not_kept(patch: pytest.MonkeyPatch) -> None:
    write = tables.write

    def without_the_second(connection: Any, trial_id: int, change: Change) -> None:
        kept = {key: value for key, value in change.attributes.items() if key != "epoch:2"}
        write(connection, trial_id, replace(change, attributes=kept))

    patch.setattr(tables, "write", without_the_second)


def anybody_may_end_a_trial(patch: pytest.MonkeyPatch) -> None:
    real = Storage.holder

    def holder(storage: Storage, trial_id: int) -> Any:
        return real(storage, trial_id)[0], Everybody()

    patch.setattr(Storage, "holder", holder)


class Everybody(str):
    """A token that is everybody's."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


# Each with what is said of it in a history.
PLANTS: dict[Plant, str] = {
    the_holder_is_not_asked_at_a_report: "epoch:2 came from a worker that does not hold it",
    a_living_worker_is_taken_for_dead: "it was taken from a worker that is alive",
    a_dead_worker_keeps_its_claim: "it was never ended",
    the_budget_does_not_count_what_runs: "were under way or finished where the budget is",
    what_runs_can_be_claimed: "it was claimed while another worker held it",
    a_trial_that_is_taken_up_begins_again: "epoch:1 was accepted twice",
    an_acknowledged_epoch_is_not_kept: "an epoch that was acknowledged is not there at the end",
    anybody_may_end_a_trial: "2 workers have ended it",
}
