"""Worker processes on this machine: one whose device is sick is started again. The others' tests run whole sweeps."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cifar_sweep.errors import SickDeviceError
from cifar_sweep.work import local
from cifar_sweep.work.local import run_in_processes

pytestmark = pytest.mark.slow


def note(file: Path, *, stop: Callable[[], bool]) -> int:
    """Add this process to the file. Returns how many have done so."""
    with file.open("a") as opened:
        opened.write(f"{os.getpid()}\n")
    return len(file.read_text().split())


def sick_until(enough: int, file: Path, *, stop: Callable[[], bool]) -> None:
    if note(file, stop=stop) < enough:
        raise SickDeviceError("cuda:0: AcceleratorError: CUDA error: unspecified launch failure.")


def test_a_worker_whose_device_is_sick_is_started_again_in_a_new_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MOST_RESTARTS", 1)
    monkeypatch.setattr(local, "WELL_SECONDS", 0.0)  # then each time is the first
    well, sick = tmp_path / "well", tmp_path / "sick"
    workers = [partial(note, well), partial(sick_until, 3, sick)]
    with caplog.at_level(logging.WARNING):
        run_in_processes(workers, stop=lambda: False)
    assert len(set(sick.read_text().split())) == 3
    assert len(well.read_text().split()) == 1
    words = "worker-1: cuda:0: AcceleratorError: CUDA error: unspecified launch failure. It is started again."
    assert caplog.messages == [words] * 2


def test_a_device_that_stays_sick_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOST_RESTARTS", 1)
    with pytest.raises(SickDeviceError, match="unspecified launch failure"):
        run_in_processes([partial(sick_until, 9, tmp_path / "sick")], stop=lambda: False)
    assert len((tmp_path / "sick").read_text().split()) == 2
