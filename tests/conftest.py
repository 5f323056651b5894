"""No test touches the user's own studies, data or cache: each runs in an empty folder with a clean environment."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_data(session_cache: Path) -> ImageData:
    """500 + 100 synthetic images: 400 to train on, 100 to validate."""
    return data.load("synthetic:500", cache=session_cache)


@pytest.fixture(scope="session")
def real_data(session_cache: Path) -> ImageData:
    """CIFAR-10, where CIFAR_SWEEP_DATA says that it is."""
    if REAL_DATA is None or REAL_DATA.startswith("synthetic"):
        pytest.skip("CIFAR_SWEEP_DATA names no real dataset")
    return data.load(REAL_DATA, cache=session_cache)
