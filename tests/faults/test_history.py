"""The checker of histories finds what must not happen, and nothing else."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cifar_sweep.study.claim import Claim, TrialLostError, Worker
from cifar_sweep.study.lease import Lease
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import LEASE_SECONDS, Storage, open_storage
from cifar_sweep.sweep.parsing import parse
from tests.faults import history
from tests.study.plants import PLANTS, Plant

SWEEP = {
    "name": "s",
    "trials": 4,
    "sampler": "random",
    "pruner": "none",
    "fixed": {"epochs": 3},
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
}
DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}


class Play:
    """Workers in turns, on a study that is watched."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.storage, self.notes, self.marks = storage, folder / "beliefs", 0
        with storage.optuna.writing() as connection:
            history.watch(connection)
        self.study = open_or_resume(storage, "s", parse(SWEEP, where="test"), data=DATA)
        self.passed = 0.0

    def worker(self, place: int) -> Worker:
        return Worker(replace(Owner.current(), host=f"elsewhere-{place}"), "cpu", 1, "fp32")

    def report(self, claim: Claim) -> None:
        self.marks += 1
        same = dict.fromkeys(("train_accuracy", "validation_loss", "validation_accuracy", "learning_rate"), 0.5)
        point = same | {"epoch": len(claim.curve) + 1, "train_loss": float(self.marks), "seconds": 1.0}
        with suppress(TrialLostError):
            self.study.report(claim, [*claim.curve, point])

    def complete(self, claim: Claim) -> None:
        with suppress(TrialLostError):
            self.study.complete(claim, 0.5)

    def pass_time(self) -> None:
        """What was written and noted until now moves into the past."""
        with self.storage.optuna.writing() as connection:
            connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-130 seconds')")
            connection.exec_driver_sql(
                "DELETE FROM history WHERE id > (SELECT MAX(id) FROM history WHERE key <> 'beat')"
            )
            connection.exec_driver_sql("UPDATE history SET at = at - 130")

    def play(self) -> None:
        """One worker stands still longer than its lease, one is gone, one goes on; the fourth one takes over.

        Then all is trained to its end.
        """
        slow, busy, gone, quick, late, last = (self.worker(place) for place in range(6))
        [stale] = self.study.claim(slow)
        self.report(stale)
        time.sleep(1.2)  # then its beat is no race
        [held] = self.study.claim(busy)
        self.report(held)
        for claim in self.study.claim(gone):
            self.report(claim)
            self.report(claim)
        self.pass_time()
        Lease(self.storage, "s", [held]).beat()
        [taken] = self.study.claim(quick)
        rest = [claim for each in (late, last) for claim in self.study.claim(each, size=lambda _: 4)]
        self.report(taken)
        self.report(stale)
        for claim in (taken, held, *rest):
            for _ in range(3 - len(claim.curve)):
                self.report(claim)
            for _ in range(2):  # the answer to the first time was lost
                self.complete(claim)
        self.complete(stale)

    def problems(self) -> list[str]:
        return history.problems_of(load(self.storage, "s"), self.notes, lease=LEASE_SECONDS)


@pytest.fixture
def play(sqlite_template: Path, tmp_path: Path) -> Iterator[Play]:
    shutil.copy(sqlite_template, tmp_path / "studies.db")
    with closing(open_storage(f"sqlite:///{tmp_path}/studies.db")) as storage:
        play = Play(storage, tmp_path)
        with history.recording(play.notes, os.getpid()):
            yield play


def test_nothing_is_said_of_a_history_that_may_be(play: Play) -> None:
    play.play()
    assert play.problems() == []
    assert [trial.state for trial in play.study.trials()] == ["complete"] * 4


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_in_a_history(plant: Plant, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        with suppress(Exception):  # what it leads to
            play.play()
    assert PLANTS[plant] in " | ".join(play.problems())
