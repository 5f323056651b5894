"""No test touches the user's own studies, data or cache: each runs in an empty folder with a clean environment."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cifar_sweep.cli import main
from cifar_sweep.training import data
from cifar_sweep.training.data import ImageData

REAL_DATA = os.environ.get("CIFAR_SWEEP_DATA")
OWN_VARIABLES = ("CIFAR_SWEEP_DATA", "CIFAR_SWEEP_STORAGE", "CIFAR_SWEEP_ARTIFACTS")


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in OWN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(session_cache))
    # Nothing to measure before a sweep of seconds; what is measured has tests of its own.
    monkeypatch.setenv("CIFAR_SWEEP_WORKERS", "2")
    monkeypatch.setenv("CIFAR_SWEEP_GROUP", "1")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_data(session_cache: Path) -> ImageData:
    """500 + 100 synthetic images: 400 to train on, 100 to validate."""
    return data.load("synthetic:500", cache=session_cache)


@pytest.fixture(scope="session")
def real_source() -> str:
    """Where CIFAR-10 is, if CIFAR_SWEEP_DATA says so."""
    if REAL_DATA is None or REAL_DATA.startswith("synthetic"):
        pytest.skip("CIFAR_SWEEP_DATA names no real dataset")
    return str(Path(REAL_DATA).absolute())


TINY_SWEEP = """
description = "a small one"
trials = 4
pruner = "none"

[fixed]
model = "lenet"
precision = "fp32"
batch_size = 32
epochs = 3

[space]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
"""


@pytest.fixture
def tiny_sweep(tmp_path: Path) -> Path:
    """A sweep of seconds on `small_data`."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_SWEEP)
    return path


@dataclass(frozen=True)
class Finished:
    """What a command came to."""

    exit_code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs a command in this process, as the console script does."""

    def run(*arguments: object) -> Finished:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a command in a process of its own; none survives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "cifar_sweep", *(str(argument) for argument in arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()
