"""Where the cache is, whoever and wherever this process is."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.database.address import parse_address
from cifar_sweep.errors import UsageError
from cifar_sweep.files import default_cache
from cifar_sweep.training.images import data
from tests.conftest import CAREFUL

ROOT = Path(__file__).parent.parent


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process without a home folder, whose user is in no list; what the temporary folder is to it."""
    for name in ("CIFAR_SWEEP_CACHE", "XDG_CACHE_HOME", "HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_the_cache_is_a_temporary_folder_and_that_is_said_once(
    nobody: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = nobody / f"cifar-sweep-{os.getuid()}"
    assert default_cache() == default_cache() == expected
    assert caplog.messages == [
        f"there is no home folder to write to: the cache is {expected}; CIFAR_SWEEP_CACHE names another"
    ]
    assert len(data.load("synthetic:100").classes) == 10
    assert expected.is_dir()


@pytest.mark.parametrize("home", ["/proc/nowhere", "/proc"])
def test_a_home_that_cannot_be_written_to_is_none(nobody: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("HOME", home)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith("/proc") and allowed(path, mode))
    assert default_cache() == nobody / f"cifar-sweep-{os.getuid()}"


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may look everywhere")
def test_a_home_of_somebody_else_is_none(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0)
    print_it = "from cifar_sweep.files import default_cache; print(default_cache())"
    command = [*(CAREFUL if os.geteuid() == 0 else ()), sys.executable, "-c", print_it]
    environment = {"HOME": str(tmp_path / "root"), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout.strip() == f"{tmp_path}/cifar-sweep-{os.getuid()}"


def test_what_is_named_is_taken_as_it_is(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(nobody / "x"))
    assert default_cache() == nobody / "x" / "cifar-sweep"
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", "~/c")
    for use in (default_cache, lambda: open_artifacts("~/a"), lambda: parse_address("sqlite:///~/s.db")):
        with pytest.raises(UsageError, match="there is no home folder to put for the ~"):
            use()
    monkeypatch.setenv("HOME", str(nobody))
    assert default_cache() == nobody / "c"
    assert open_artifacts("~/art").root == nobody / "art"
