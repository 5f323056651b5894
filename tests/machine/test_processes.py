"""Processes that measure at the same time. What they run here is of the standard library, which each can import."""

import multiprocessing
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.errors import StudyError
from cifar_sweep.machine.processes import process_pool


def shell(script: str) -> dict[str, Any]:
    return {"args": ["sh", "-c", script], "check": True, "timeout": 20}


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_calls_run_at_the_same_time_in_processes_that_stay_until_the_end(tmp_path: Path) -> None:
    with process_pool(2) as processes:
        first, second = numbers = processes.together(os.getpid, {}, {})
        assert len({first, second, os.getpid()}) == 3
        assert all(alive(number) for number in numbers)
        each_waits_for_the_other = [
            shell(f"touch {mine}; until [ -e {theirs} ]; do sleep 0.01; done; echo {mine}")
            | {"cwd": tmp_path, "stdout": subprocess.PIPE}
            for mine, theirs in (("a", "b"), ("b", "a"))
        ]
        answers = processes.together(subprocess.run, *each_waits_for_the_other)
        assert [answer.stdout for answer in answers] == [b"a\n", b"b\n"]
        assert processes.together(os.getpid, {}) == [first]
        assert processes.together(os.getpid, {}, {}) == numbers
    assert not any(alive(number) for number in numbers)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_process_has_the_environment_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "second"):
        monkeypatch.setenv("CIFAR_SWEEP_TRIED", value)
        with process_pool(1) as processes:
            assert processes.together(os.getenv, {"key": "CIFAR_SWEEP_TRIED"}) == [value]


@pytest.mark.slow
def test_what_a_call_raises_is_told_and_the_processes_go_on() -> None:
    with process_pool(2) as processes:
        numbers = processes.together(os.getpid, {}, {})
        with pytest.raises(StudyError, match=r"^measuring failed: FileNotFoundError: .*'missing'\.$"):
            processes.together(os.listdir, {"path": "/"}, {"path": "missing"})
        assert processes.together(os.getpid, {}, {}) == numbers


@pytest.mark.slow
def test_a_process_that_is_ended_from_outside_is_an_error() -> None:
    with process_pool(2) as processes:
        numbers = processes.together(os.getpid, {}, {})
        with pytest.raises(StudyError, match=r"^a measuring process was ended from outside\.$"):
            processes.together(subprocess.run, shell("true"), shell("kill -9 $PPID"))
    assert not any(alive(number) for number in numbers)


@pytest.mark.slow
def test_an_error_ends_the_processes_too() -> None:
    numbers: list[int] = []

    def fail() -> None:
        with process_pool(2) as processes:
            numbers.extend(processes.together(os.getpid, {}, {}))
            processes.together(os.listdir, {"path": "missing"})

    with pytest.raises(StudyError):
        fail()
    assert len(numbers) == 2
    assert not any(alive(number) for number in numbers)
