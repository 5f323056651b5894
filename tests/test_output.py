"""Output that is closed, full, or left by its reader."""

import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.cli import app, output
from cifar_sweep.cli.options import echo_json
from cifar_sweep.errors import DiskError
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.storage import open_storage
from cifar_sweep.sweep.file import load

DATA = {"name": "synthetic images", "fingerprint": "abc", "classes": 10, "source": "synthetic:500"}


class Broken(io.TextIOWrapper):
    def __init__(self, error: Exception) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), ValueError("closed")], ids=str
)
def test_work_goes_on_and_the_log_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(error))
    with output.protected(["run", "x"]), caplog.at_level(logging.WARNING):
        print("one")
        print("two", flush=True)
    assert caplog.messages == [
        f"standard output is gone ({getattr(error, 'strerror', None) or error}); the work goes on"
    ]


def test_who_only_reads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(32, "Broken pipe")))
    with pytest.raises(SystemExit) as ended, output.protected(["status"]):
        print("one")
    assert ended.value.code == 0
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    with (
        pytest.raises(DiskError, match="standard output cannot be written: No space left"),
        output.protected(["status"]),
    ):
        print("one")


def test_what_is_plain_data_is_lost_as_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    with pytest.raises(DiskError, match="No space left"), output.protected(["status", "--json"]):
        echo_json({"studies": []})


def test_a_letter_that_the_terminal_lacks_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    there = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(there, encoding="ascii"))
    with output.protected(["status"]):
        print("größe", flush=True)
    assert there.getvalue() == rb"gr\xf6\xdfe" + b"\n"


def shell(command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    line = command.replace("CS", f"{sys.executable} -m cifar_sweep")
    return subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, text=True)


def test_every_other_command_does_something() -> None:
    doing = "run submit worker pause resume cancel delete copy export ensemble train dashboard convert".split()  # noqa: SIM905
    names = {each.name or getattr(each.callback, "__name__", "") for each in app.registered_commands}
    assert names == {*doing, *output.READING}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["| head -1", "| true", ">&-", "> /dev/full"])
def test_in_a_shell(way: str, tmp_path: Path, tiny_sweep: Path, cli: Any) -> None:
    run = "run ./tiny.toml --data synthetic:500 --workers 1 --group 1 --threads 1 --epochs 1 --trials 2"
    finished = shell(f"CS {run} {way}; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert ("the work goes on" in finished.stderr) == (way != ">&-")
    assert "Traceback" not in finished.stderr
    assert "2/2" in cli("status").out
    read = shell(f"CS status {way}; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert read.returncode == (1 if "full" in way else 0), read.stderr
    assert read.stderr.count("\n") == ("full" in way)


@pytest.mark.slow
def test_eighty_columns_of_ascii(tmp_path: Path, tiny_sweep: Path) -> None:
    for name in ("größe", "日本"):
        with_name = load(tiny_sweep)
        open_or_resume(open_storage(f"sqlite:///{tmp_path}/studies.db"), f"e1_{name}", with_name, data=DATA)
    read = shell("PYTHONIOENCODING=ascii LC_ALL=C COLUMNS=80 CS status", tmp_path)
    assert read.returncode == 0, read.stderr
    assert r"e1_gr\xf6\xdfe" in read.stdout
