"""What a process may have of its machine, by the files in which the kernel says so."""

import os
from pathlib import Path

import pytest

from cifar_sweep.machine.memory import free_memory
from cifar_sweep.machine.plan import choose
from cifar_sweep.training import limits
from cifar_sweep.training.device import prepare_process, resolve_device

CORES = len(os.sched_getaffinity(0))
NONE_OF_V1 = 2**63 - 4096


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "OF_THIS_PROCESS", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    return tmp_path


def put(groups: Path, place: str, **files: object) -> None:
    folder = groups / "cgroup" / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize("place", ["job/step", "job", ""])  # of a container the kernel shows the own group as the root
@pytest.mark.parametrize(("share", "cores"), [("400000 100000", 4), ("150000 100000", 1), ("50000 100000", 1)])
def test_a_share_of_version_2(groups: Path, place: str, share: str, cores: int) -> None:
    (groups / "self").write_text("0::/job/step\n")
    put(groups, "", cpu__max="max 100000")
    put(groups, place, cpu__max=share)
    assert limits.available_cores() == cores


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_a_share_of_version_1(groups: Path, mount: str) -> None:
    (groups / "self").write_text("3:cpu,cpuacct:/job\n2:memory:/job\n")
    put(groups, f"{mount}/job", cpu__cfs_quota_us=300000, cpu__cfs_period_us=100000)
    put(groups, mount, cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert limits.available_cores() == 3


def test_without_a_share_it_is_the_cores(groups: Path) -> None:
    assert limits.available_cores() == 64
    (groups / "self").write_text("0::/\n")
    put(groups, "", cpu__max="max 100000")
    assert limits.available_cores() == 64


def test_memory_of_version_2(groups: Path) -> None:
    (groups / "self").write_text("0::/job/step\n")
    put(groups, "job/step", memory__max="max", memory__current=1000, memory__stat="anon 500\ninactive_file 300")
    assert limits.memory() is None
    put(groups, "job", memory__max=5000, memory__current=1000, memory__stat="anon 500\ninactive_file 300")
    assert limits.memory() == 4300
    assert free_memory(resolve_device("cpu")) == 4300


def test_memory_of_version_1(groups: Path) -> None:
    (groups / "self").write_text("2:memory:/job\n")
    facts = {"memory__usage_in_bytes": 900, "memory__stat": "cache 500\ntotal_inactive_file 100"}
    put(groups, "memory", memory__limit_in_bytes=NONE_OF_V1, **facts)
    assert limits.memory() is None
    put(groups, "memory/job", memory__limit_in_bytes=1000, **facts)
    assert limits.memory() == 200


@pytest.mark.parametrize(("said", "threads"), [("1", 1), ("3,2", 3)])
def test_the_threads_that_the_environment_asks_for(monkeypatch: pytest.MonkeyPatch, said: str, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert prepare_process(resolve_device("cpu"), threads=0) == threads
    assert prepare_process(resolve_device("cpu"), threads=2) == 2


def test_words_that_ask_for_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert prepare_process(resolve_device("cpu"), threads=0) == CORES


def test_a_plan_has_the_threads_that_the_environment_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from cifar_sweep.sweep.file import find, load

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan = choose([load(find("optimizer"), changes={"precision": "fp32"})], workers=1, group=1)
    assert plan.split.threads == 1
