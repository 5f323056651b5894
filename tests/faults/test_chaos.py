"""All at once, by chance: workers are killed and stand still, and their study is paused, extended, copied and written
to by others, while its database comes and goes.

`CIFAR_SWEEP_CHAOS_SECONDS=300 CIFAR_SWEEP_CHAOS_SEED=7` says how long, and which chance; the seed is printed.
"""

import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest

from cifar_sweep.errors import StudyError
from cifar_sweep.study.copying import copy_studies
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.storage import OPEN, PAUSED, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.work.submit import facts
from tests.faults import history
from tests.faults.conftest import LEASE_SECONDS
from tests.servers import PostgresServer
from tests.study.plain_studies import opened_by_optuna

SECONDS = float(os.environ.get("CIFAR_SWEEP_CHAOS_SECONDS", "30"))
SEED = int(os.environ.get("CIFAR_SWEEP_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
EPOCHS = 8
BASE: dict[str, Any] = {
    "name": "s",
    "fixed": {"model": "lenet", "precision": "fp32", "batch_size": 32, "epochs": EPOCHS},
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
}
STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "auto"},
    {"sampler": "random", "pruner": "none", "confirm": [2, 2]},
    {"sampler": "random", "pruner": "median"},
]
DEEDS = ["kill", "kill", "kill", "stop", "stop", "pause", "outage", "copy", "enqueue", "ask", "tell", "extend"]

pytestmark = [pytest.mark.alone, pytest.mark.slow]


@dataclass
class Chaos:
    """What happens to a study by chance."""

    chance: random.Random
    workers: Any
    study: SweepStudy
    url: str
    server: PostgresServer | None
    base: dict[str, Any]
    data: ImageData
    target: Path
    done: Counter[str] = field(default_factory=Counter)
    asleep: dict[int, threading.Timer] = field(default_factory=dict)  # stopped processes, and what wakes them
    asked: list[optuna.trial.Trial] = field(default_factory=list)
    newborn: int = 0  # workers that were killed before their first epoch

    def go_on(self, seconds: float) -> None:
        """One deed after the other, until the time is over; then all that stands still goes on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            deed = self.chance.choice(DEEDS)
            getattr(self, deed)()
            self.done[deed] += 1
            if not self.room():
                self.extend()
            time.sleep(self.chance.uniform(0.1, 1.5))
        for timer in list(self.asleep.values()):
            timer.join()

    def room(self) -> bool:
        counts = self.study.summary()["trials"]
        return counts["complete"] + counts["pruned"] + 2 < self.study.budget

    def wake(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        del self.asleep[pid]

    def one(self) -> int | None:
        """A worker that has trained an epoch; four deaths in one epoch end a trial, so hardly ever another one."""
        trained = {int(pid) for pid, *_ in self.workers.lines("epoch")}
        pids = [pid for pid in self.workers.pids() if pid not in self.asleep and (pid in trained or self.newborn < 2)]
        if not pids:
            return None
        chosen = self.chance.choice(pids)
        self.newborn += chosen not in trained
        return chosen

    def kill(self) -> None:
        if pid := self.one():
            self.workers.kill(pid)

    def stop(self) -> None:
        if pid := self.one():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            # In a thread of its own: it may hold the database's lock, for which the next deed waits.
            self.asleep[pid] = threading.Timer(self.chance.uniform(0.2, 2.5 * LEASE_SECONDS), self.wake, [pid])
            self.asleep[pid].start()

    def pause(self) -> None:
        self.study.set_state(PAUSED)
        time.sleep(self.chance.uniform(0.2, 3))
        self.study.set_state(OPEN)

    def outage(self) -> None:
        """The server is stopped, or crashes, and is started again; another program holds the file."""
        seconds = self.chance.uniform(0.2, 1.5 * LEASE_SECONDS)
        if self.server:
            self.server.stop(self.chance.choice(["fast", "immediate"]))
            time.sleep(seconds)
            self.server.start()
            return
        with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=60)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")

    def copy(self) -> None:
        """A copy holds all that was acknowledged before it, or there is none."""
        if self.chance.random() < 0.7:
            self.study.set_state(PAUSED)
            time.sleep(self.chance.uniform(1, 4))
        before = [each for each in history.believed(self.workers.beliefs) if each.what == "accepted"]
        with closing(open_storage(f"sqlite:///{self.target}")) as target:
            try:
                copy_studies(self.study.storage, target, [self.study.name])
            except StudyError as error:
                if "is being trained" not in str(error):
                    raise
            else:
                self.done["copied"] += 1
                trials = load(target, self.study.name).trials()
                there = {trial.number: [*map(dict, trial.points)] for trial in trials if trial.state != "outside"}
                ours = [each for each in before if each.trial in there]
                assert all(point in there[each.trial] for each in ours for point in each.points)
                optuna.delete_study(storage=target.optuna, study_name=self.study.name)
        self.study.set_state(OPEN)

    @contextmanager
    def other(self) -> Iterator[optuna.Study]:
        with opened_by_optuna(self.url, self.study.name) as study:
            yield study

    def enqueue(self) -> None:
        with self.other() as study:
            study.enqueue_trial({"learning_rate": self.chance.choice([1e-3, 5.0])})

    def ask(self) -> None:
        with self.other() as study:
            self.asked.append(study.ask())

    def tell(self) -> None:
        """On SQLite a worker may have claimed at the same moment, and whoever ends the trial first has it."""
        if self.asked:
            number = self.asked.pop().number
            with self.other() as study:
                try:
                    study.tell(number, 0.99)
                except ValueError:
                    if self.server or not self.study.trials()[number].owner:
                        raise
                    self.done["taken twice"] += 1

    def extend(self) -> None:
        trials = self.study.budget + self.chance.randint(1, 4)
        sweep = parse(self.base | {"trials": trials}, where="test")
        self.study = open_or_resume(
            self.study.storage, self.study.name, sweep, data=facts(self.data, source="synthetic:500")
        )


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_nothing_is_lost_whatever_happens(
    kind: str,
    request: pytest.FixtureRequest,
    crew: Callable[..., Any],
    small_data: ImageData,
    tmp_path: Path,
    sqlite_template: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    seed = SEED
    record_property("seed", seed)
    print(f"CIFAR_SWEEP_CHAOS_SEED={seed}")
    monkeypatch.setenv("CIFAR_SWEEP_LEASE_SECONDS", str(LEASE_SECONDS))
    chance = random.Random(f"{kind} {seed}")
    server = request.getfixturevalue("own_postgres") if kind == "postgresql" else None
    for file in ("studies.db", "copy.db"):
        shutil.copy(sqlite_template, tmp_path / file)
    url = server.url if server else f"sqlite:///{tmp_path}/studies.db"
    base = BASE | chance.choice(STRATEGIES)
    with closing(open_storage(url)) as storage:
        data = facts(small_data, source="synthetic:500")
        study = open_or_resume(storage, "chaos", parse(base | {"trials": 6}, where="test"), data=data)
        (tmp_path / "stay").touch()
        workers = crew(url, group=chance.choice([1, 2]))
        workers.wait_for(lambda: bool(workers.lines("epoch")))
        chaos = Chaos(chance, workers, study, url, server, base, small_data, tmp_path / "copy.db")
        chaos.go_on(SECONDS)
        (tmp_path / "stay").unlink()
        workers.finish()
        trials = study.trials()
        states = Counter(trial.state for trial in trials if trial.confirms is None)
        record_property("chaos", {"kind": kind, **chaos.done, **states, "epochs": len(workers.lines("epoch"))})
        assert load(storage, "chaos").finished()
        assert states["complete"] + states["pruned"] == load(storage, "chaos").budget
        for trial in trials:
            assert [point.epoch for point in trial.curve] == list(range(1, trial.epochs_done + 1))
            assert trial.state != "complete" or (trial.epochs_done == EPOCHS and trial.weights)
            assert trial.state != "failed" or "this point: " in trial.reason or "its worker died" in trial.reason
