"""Workers to kill, and the history of what they did."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from cifar_sweep.errors import StorageError
from cifar_sweep.study.opening import load
from cifar_sweep.study.storage import open_existing
from tests.faults import history

LEASE_SECONDS = 3  # of the workers of a crew
CREW = Path(__file__).with_name("crew.py")


class Crew:
    """Running workers; see crew.py."""

    def __init__(self, url: str, count: int, folder: Path, *, group: int = 1) -> None:
        self.url, self.log, self.beliefs = url, folder / "crew.log", folder / "beliefs"
        self._watch(history.watch)
        command = [sys.executable, str(CREW), url, str(count), str(self.log), str(group)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.errors = folder / "crew.err"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(command, stderr=errors, env=environment)

    def lines(self, kind: str) -> list[list[str]]:
        text = self.log.read_text() if self.log.exists() else ""
        return [line.split()[1:] for line in text.splitlines() if line.startswith(kind + " ")]

    def pids(self) -> list[int]:
        ended = {pid for pid, _ in self.lines("end")}
        return [int(pid) for (pid,) in self.lines("start") if pid not in ended]

    def epochs(self) -> Counter[tuple[str, str]]:
        """How often each epoch of each trial (by its seed) was trained."""
        return Counter((seed, epoch) for _, seed, epoch in self.lines("epoch"))

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)

    def kill(self, pid: int) -> None:
        """Kill a worker, if it is there."""
        history.note(self.beliefs, what="killed", pid=pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def finish(self, *, seconds: float = 240) -> str:
        """Wait until nothing is left to train; what the workers said. What happened may have happened."""
        assert self.process.wait(timeout=seconds) == 0, self.errors.read_text()
        with closing(open_existing(self.url)) as storage:
            for name in {each.study for each in history.believed(self.beliefs)} - {""}:
                assert history.problems_of(load(storage, name), self.beliefs, lease=LEASE_SECONDS) == []
        return self.errors.read_text()

    def end(self) -> None:
        """Kill all that is left, and leave the database as it was."""
        for pid in self.pids():
            self.kill(pid)
        self.process.kill()
        self.process.wait()
        with suppress(StorageError):  # its server is gone
            self._watch(history.unwatch)

    def _watch(self, begin_or_end: Callable[[sqlalchemy.Connection], None]) -> None:
        with closing(open_existing(self.url)) as storage, storage.optuna.writing() as connection:
            begin_or_end(connection)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Callable[..., Crew]]:
    crews: list[Crew] = []

    def start(url: str, count: int = 2, **options: Any) -> Crew:
        crews.append(Crew(url, count, tmp_path, **options))
        return crews[-1]

    yield start
    for each in crews:
        each.end()
