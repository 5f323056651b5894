"""A worker's hold on its trials: what it says while they train, and what it hears."""

import threading
import time
from collections.abc import Callable

import pytest

from cifar_sweep.errors import StorageBusyError
from cifar_sweep.study import lease as lease_module
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.lease import Lease
from cifar_sweep.study.opening import delete, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import CANCELLED, PAUSED, Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse

SWEEP = {"name": "s", "trials": 4, "sampler": "random", "pruner": "none", "fixed": {"epochs": 3}}
SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


@pytest.fixture
def study(storage: Storage, name: str) -> SweepStudy:
    data = {"name": "pictures", "fingerprint": "abc", "classes": 10}
    return open_or_resume(storage, name, parse(SWEEP | {"space": SPACE}, where="test"), data=data)


@pytest.fixture
def claim(study: SweepStudy) -> Claim:
    [claim] = study.claim(Worker(Owner.current(), "cpu", 1, "fp32"))
    return claim


@pytest.fixture
def beaten(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The trials spoken for, in a quick rhythm."""
    monkeypatch.setattr(storage, "heartbeat_seconds", 0.02)
    beat, said = storage.beat, list[int]()

    def noted(trial_id: int) -> None:
        beat(trial_id)
        said.append(trial_id)

    monkeypatch.setattr(storage, "beat", noted)
    return said


def lease_of(study: SweepStudy, claim: Claim) -> Lease:
    return Lease(study.storage, study.name, [claim])


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_a_held_trial_is_spoken_for_again_and_again(study: SweepStudy, claim: Claim, beaten: list[int]) -> None:
    with lease_of(study, claim) as lease:
        wait_for(lambda: len(beaten) > 2)
        assert set(beaten) == {claim.trial_id}
        assert not lease.halted
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_a_failed_beat_is_tried_again_soon(
    study: SweepStudy, claim: Claim, beaten: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(study.storage, "heartbeat_seconds", 0.05)
    answers = iter([StorageBusyError("held"), StorageBusyError("held")])
    halted = study.storage.is_halted

    def away(name: str) -> bool:
        for error in answers:
            raise error
        return halted(name)

    monkeypatch.setattr(study.storage, "is_halted", away)
    with lease_of(study, claim):
        wait_for(lambda: len(beaten) > 0)


def test_a_trial_that_another_took_up_is_not_spoken_for(study: SweepStudy, claim: Claim, beaten: list[int]) -> None:
    """Its new holder may die, too: our beats would hide that."""
    other = Owner.current()
    study.storage.optuna.set_trial_user_attr(claim.trial_id, "owner", {**vars(other)})
    with lease_of(study, claim):
        time.sleep(0.2)
    assert beaten == []


@pytest.mark.parametrize("state", [PAUSED, CANCELLED])
def test_word_that_the_study_is_halted_arrives(study: SweepStudy, claim: Claim, beaten: list[int], state: str) -> None:
    with lease_of(study, claim) as lease:
        wait_for(lambda: len(beaten) > 0)
        assert not lease.halted
        study.set_state(state)
        wait_for(lambda: lease.halted)


def test_a_deleted_study_is_halted(study: SweepStudy, claim: Claim, beaten: list[int]) -> None:
    study.release(claim)
    with lease_of(study, claim) as lease:
        delete(study.storage, study.name, files=None)
        wait_for(lambda: lease.halted)
