"""The checker of histories finds what must not happen, and nothing else."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cifar_sweep.study.claim import Claim, TrialLostError, Worker
from cifar_sweep.study.lease import Lease
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import LEASE_SECONDS, Storage, open_storage
from cifar_sweep.sweep.parsing import parse
from tests.faults import history
from tests.faults.history import Believed, Written, problems
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


@pytest.mark.slow
def test_nothing_is_said_of_a_history_that_may_be(play: Play) -> None:
    play.play()
    assert play.problems() == []
    assert [trial.state for trial in play.study.trials()] == ["complete"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_in_a_history(plant: Plant, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        with suppress(Exception):  # what it leads to
            play.play()
    assert PLANTS[plant] in " | ".join(play.problems())


# By hand

A, B = ({"token": name} for name in "ab")
POINT = {"epoch": 1, "train_loss": 2.0, "validation_accuracy": 0.5}
CLAIM = [(1, "state", "WAITING"), (2, "owner", A), (2, "state", "RUNNING"), (2, "beat", None)]
TAKEN = [(9, "deaths", 1), (9, "owner", None), (9, "state", "WAITING")]


def written(*rows: tuple[float, str, Any]) -> list[Written]:
    """What the database notes of trial 0 of a study with one trial, each row as its time, key and value."""
    holder, found = None, [Written(0, None, "sweep", {"trials": 1}, None)]
    for at, key, value in rows:
        if key == "owner":
            holder = value["token"] if value else None
        found.append(Written(at, 0, key, value, holder))
    return found


def said(history: list[Written], *beliefs: Believed, state: str = "complete", points: Sequence[Any] = ()) -> list[str]:
    trial: Any = SimpleNamespace(number=0, state=state, points=points)
    return problems(history, beliefs, [trial], lease=3)


def test_a_trial_is_taken_from_the_silent_and_from_the_killed_alone() -> None:
    heard = (7.5, "beat", None)
    assert said(written(*CLAIM, *TAKEN)) == []
    assert said(written(*CLAIM, heard, *TAKEN)) == ["trial 0: it was taken from a worker that is alive"]
    claimed = Believed(2, "claimed", pid=7, worker="a", trial=0)
    assert said(written(*CLAIM, heard, *TAKEN), claimed, Believed(8, "killed", pid=7)) == []
    later = said(written(*CLAIM, heard, *TAKEN), claimed, Believed(10, "killed", pid=7))
    assert later == ["trial 0: it was taken from a worker that is alive"]


def test_an_epoch_comes_from_its_holder_once_and_stays() -> None:
    sent = {name: Believed(3, "sent", pid=7, worker=name, trial=0, points=[POINT]) for name in "ab"}
    told = Believed(4, "accepted", pid=7, worker="a", trial=0, points=[POINT])
    history = written(*CLAIM, (3, "epoch:1", POINT))
    assert said(history, sent["a"], told, points=[POINT]) == []
    assert said(history, sent["a"], told) == ["trial 0: an epoch that was acknowledged is not there at the end"]
    assert said(history, sent["b"]) == ["trial 0: epoch:1 came from a worker that does not hold it"]
    other = POINT | {"train_loss": 3.0}
    again = Believed(4, "sent", pid=7, worker="a", trial=0, points=[other])
    twice = said(written(*CLAIM, (3, "epoch:1", POINT), (4, "epoch:1", other)), sent["a"], again)
    assert twice == ["trial 0: epoch:1 was accepted twice"]


def test_an_end_is_one_and_stays() -> None:
    ended = written(*CLAIM, (5, "state", "COMPLETE"))
    told = [Believed(5, "told", pid=7, worker=name, trial=0, state="complete") for name in "ab"]
    assert said(ended, told[0]) == []
    assert said(ended, *told) == ["trial 0: 2 workers have ended it"]
    wrong = said(ended, told[0], state="pruned")
    assert wrong == ["trial 0: it is pruned where a worker was told that it was ended by complete"]
    assert said([*ended, Written(6, 0, "state", "WAITING", "a")]) == ["trial 0: its state was changed after its end"]
    assert said(written(*CLAIM), state="running") == ["trial 0: it was never ended"]
    assert said(written(*CLAIM, (3, "owner", B))) == ["trial 0: it was claimed while another worker held it"]


def test_the_budget_counts_what_runs_and_what_is_frozen() -> None:
    second = [Written(at, 1, key, value, "b") for at, key, value in ((3, "owner", B), (3, "state", "RUNNING"))]
    too_many = ["trial 1: 2 trials were under way or finished where the budget is 1"]
    assert said([*written(*CLAIM), *second]) == too_many
    assert said([*written(*CLAIM, (3, "owner", None), (3, "state", "WAITING")), *second]) == []
    theirs = [(3, "epoch:1", POINT), (4, "state", "COMPLETE")]  # another program has ended it
    sent = Believed(3, "sent", pid=7, worker="a", trial=0, points=[POINT])
    assert said([*written(*CLAIM, *theirs), *second], sent) == []
    ours = [(4, "curve", [POINT]), (4, "epoch:1", None), (4, "state", "COMPLETE")]
    assert said([*written(*CLAIM, theirs[0], *ours), *second], sent) == too_many
    frozen = [(1, "config", {"epochs": 2}), (1, "until", 1), (1, "curve", [POINT]), (3, "owner", None)]
    assert said([*written(*CLAIM, *frozen, (3, "state", "WAITING")), *second]) == too_many
