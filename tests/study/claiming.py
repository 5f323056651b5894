"""Processes that claim and finish stub trials of one study all at once: claiming.py URL STUDY FOLDER PROCESSES.

Each process writes the numbers that it claimed to a file of its own in FOLDER. A program, not a test module: a forked
child must inherit neither threads nor connections.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from cifar_sweep.study.claim import Worker
from cifar_sweep.study.opening import load
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import open_existing
from cifar_sweep.study.study import SweepStudy


def claim_until_finished(url: str, name: str, folder: Path, start: Any) -> None:
    storage = open_existing(url)
    study = load(storage, name)
    worker = Worker(Owner.current(), "cpu", 1, "fp32")
    start.wait()
    with (folder / f"{os.getpid()}.txt").open("w", buffering=1) as claimed:
        while (number := finish_one(study, worker)) is not None or not study.finished():
            if number is None:
                time.sleep(0.05)
            else:
                claimed.write(f"{number}\n")
    storage.close()


def finish_one(study: SweepStudy, worker: Worker) -> int | None:
    claims = study.claim(worker)
    if not claims:
        return None
    [claim] = claims
    time.sleep(0.05)  # the training, in which others claim
    study.complete(claim, claim.number / 1000)
    return claim.number


def main(url: str, name: str, folder: str, count: str) -> int:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(int(count))
    arguments = (url, name, Path(folder), start)
    processes = [context.Process(target=claim_until_finished, args=arguments) for _ in range(int(count))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return sum(process.exitcode != 0 for process in processes)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
