"""Workers that are started again when they are killed, until nothing is left to train: crew.py URL COUNT LOG [GROUP].

A program, not a test module: it loads everything once and forks, so that a worker is at work a moment after its start.
To LOG it writes a line for each start (`start PID`), each epoch that was trained (`epoch PID SEED NUMBER`), and each
end (`end PID EXITCODE`); beside it, to `beliefs`, what each worker holds and is told (history.py). As long as there is
a file `stay` beside it, workers that have nothing to do are started again, too, and every third one is as if it were on
another machine.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cifar_sweep.machine.groups import Groups
from cifar_sweep.study.owner import Owner
from cifar_sweep.training.train import Run
from cifar_sweep.work.worker import Job, work
from tests.faults.history import recording


def note(log: Path, *words: object) -> None:
    with log.open("a") as file:  # one write of one line: whole, whoever else writes
        file.write(" ".join(map(str, words)) + "\n")


def train(url: str, log: Path, group: int, elsewhere: bool) -> None:
    epoch = Run.epoch

    def noted(run: Run, *arguments: Any) -> Any:
        results = epoch(run, *arguments)
        for member in run.members:
            note(log, "epoch", os.getpid(), member.config.knobs.seed, results[0].epoch)
        return results

    Run.epoch = noted  # type: ignore[method-assign]
    if elsewhere:
        current = Owner.current
        Owner.current = lambda: replace(current(), host="elsewhere")  # type: ignore[method-assign]
    try:
        with recording(log.with_name("beliefs"), os.getpid()):
            work(Job(url, threads=1, groups=Groups(group)))
    except Exception as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def main(url: str, count: int, log: Path, group: int) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    context = multiprocessing.get_context("fork")
    running: list[BaseProcess] = []
    worst, stay, number = 0, log.with_name("stay"), itertools.count()

    def start() -> None:
        elsewhere = stay.exists() and next(number) % 3 == 2
        process = context.Process(target=train, args=(url, log, group, elsewhere), daemon=True)
        process.start()
        note(log, "start", process.pid)
        running.append(process)

    for _ in range(count):
        start()
    while running:
        time.sleep(0.05)
        for process in [process for process in running if not process.is_alive()]:
            running.remove(process)
            note(log, "end", process.pid, process.exitcode)
            if process.exitcode == 0 and stay.exists():
                time.sleep(0.3)  # the study is halted, or done until it is extended
            if process.exitcode == -signal.SIGKILL or (process.exitcode == 0 and stay.exists()):
                start()
            else:
                worst = max(worst, abs(process.exitcode or 0))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 1))
