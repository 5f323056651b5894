"""The commands as a person types them, above all with bad input: one sentence, the right exit code, nothing lost."""

import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_sweep.cli.options import settings_of
from cifar_sweep.errors import UsageError

RUN = ("run", "tiny.toml", "--data", "synthetic:500", "--workers", 1, "--threads", 1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An image folder of two classes."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return tmp_path / "images"


def assert_one_sentence(finished: Any, exit_code: int, *words: str) -> None:
    assert finished.exit_code == exit_code
    lines = finished.err.strip().splitlines()
    assert len(lines) == 1, finished.err
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(".")
    assert "Traceback" not in finished.out
    for word in words:
        assert word in lines[0]


# --- Usage: exit code 2 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "lr_bach"), ("'lr_bach'", "did you mean lr_batch")),
        (("run", "missing.toml"), ("missing.toml", "no such sweep file", "lr_batch")),
        (("run", "tiny.toml", "--set", "batchsize=32"), ("--set", "batchsize", "batch_size")),
        (("run", "tiny.toml", "--set", "batch_size"), ("--set batch_size", "key and a value")),
        (("run", "tiny.toml", "--set", "batch_size=many"), ("batch_size", "'many'", "whole number from 1 to 65536")),
        (("run", "tiny.toml", "--set", "dropout=1.0"), ("dropout", "1.0", "from 0 to below 1")),
        (("run", "tiny.toml", "--set", "pruner=medium"), ("pruner", "medium", "median")),
        (("run", "tiny.toml", "--data", "synthetic:5"), ("synthetic:5", "from 100")),
        (("run", "tiny.toml", "--data", "synthetic:500", "--set", "batch_size=512"), ("batch_size = 512", "400")),
        (("run", "tiny.toml", "--data", "synthetic:500", "--train-images", 9), ("batch_size = 32", "9 training")),
        (("run", "tiny.toml", "--data", "synthetic:500", "--study", "a/b"), ("a/b", "letters")),
        (("run", "tiny.toml", "--data", "synthetic:500", "--storage", "mysql://x/y"), ("mysql", "sqlite:///")),
        (("run", "tiny.toml", "--data", "synthetic:500", "--storage", "studies.db"), ("storage", "sqlite:///FILE")),
        (("run", "tiny.toml", "--hours", 0), ("--hours 0", "a number above 0")),
        (("submit", "tiny.toml", "--hours", "inf"), ("--hours inf", "a number above 0")),
        (
            ("run", "tiny.toml", "--data", "synthetic:500", "--hours", 1e-5),
            ("--hours 1e-05", "no trial", "from about 0.0"),
        ),
        (("run", "tiny.toml", "--data", "synthetic:500", "--hours", 1, "--trials", 3), ("--trials", "one of the two")),
        (("train", "nothing"), ("nothing", "config.toml")),
        (("train", "tiny.toml"), ("tiny.toml", "[config] and [origin]")),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_wrong_usage(arguments: tuple[Any, ...], words: tuple[str, ...], tiny_sweep: Path, cli: Any) -> None:
    assert_one_sentence(cli(*arguments), 2, *words)
    assert not list(Path().glob("studies.db*")), "no study was made"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("trials = 4", "trails = 4", ("tiny.toml", "'trails'", "trials")),
        ("trials = 4", "trials = 0", ("tiny.toml", "trials = 0", "at least 1")),
        ("[space]", "[spice]", ("tiny.toml", "'spice'", "space")),
        ("learning_rate =", "learning_rat =", ("[space]", "'learning_rat'", "did you mean learning_rate")),
        ("low = 1e-4, high = 1e-2", "low = 1e-2, high = 1e-4", ("[space", "low = 0.01", "high = 0.0001")),
        ("low = 1e-4", "low = 0.0", ("[space", "low = 0", "above 0")),
        ("high = 1e-2", "high = 1e9", ("[space]", "learning_rate", "1e-12 to 1000")),
        ("log = true", "lag = true", ("[space.learning_rate]", "'lag'", "log")),
        ('model = "lenet"', 'model = "lanet"', ("[fixed]", "'lanet'", "lenet, convnet")),
        ("epochs = 3", "epochs = 0", ("[fixed]", "epochs", "from 1 to")),
        ("epochs = 3", "epochs = 3\npadding_mode = 'reflect'", ("padding_mode", "does nothing for lenet")),
        ("[fixed]", "[fixed", ("tiny.toml", "not valid TOML")),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_wrong_sweep_file(old: str, new: str, words: tuple[str, ...], tiny_sweep: Path, cli: Any) -> None:
    tiny_sweep.write_text(tiny_sweep.read_text().replace(old, new))
    assert_one_sentence(cli(*RUN), 2, *words)
    assert not Path("studies.db").exists()


def test_an_unknown_option_and_command_are_usage_errors(cli: Any) -> None:
    for arguments in (("run", "lr_batch", "--trails", "3"), ("rum",), ("run", "lr_batch", "--trials", "0")):
        finished = cli(*arguments)
        assert finished.exit_code == 2
        assert "Traceback" not in finished.err


# --- The world: exit code 1 ------------------------------------------------------------------------------------------


def spoil_nothing(images: Path) -> None:
    shutil.rmtree(images)


def spoil_half(images: Path) -> None:
    shutil.rmtree(images / "test")


def spoil_image(images: Path) -> None:
    path = images / "train" / "dog" / "07.png"
    path.write_bytes(path.read_bytes()[:60])


def spoil_class(images: Path) -> None:
    (images / "test" / "dog").rename(images / "test" / "dig")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_nothing, ("images", "does not exist", "synthetic")),
        (spoil_half, ("no test/",)),
        (spoil_image, ("train/dog/07.png", "cut short")),
        (spoil_class, ("dig", "dog")),
    ],
)
def test_wrong_data(
    spoil: Callable[[Path], None], words: tuple[str, ...], images: Path, tiny_sweep: Path, cli: Any
) -> None:
    spoil(images)
    assert_one_sentence(cli("run", "tiny.toml", "--data", images, "--set", "batch_size=8"), 1, *words)
    assert not Path("studies.db").exists()


def test_an_image_folder_of_two_classes_runs(images: Path, tiny_sweep: Path, cli: Any) -> None:
    finished = cli(
        "run", "tiny.toml", "--data", images, "--set", "batch_size=8", "--trials", 2, "--workers", 1, "--threads", 1
    )
    assert finished.exit_code == 0, finished.err
    assert "2 of 2 trials finished" in finished.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_cuda(tiny_sweep: Path, cli: Any) -> None:
    assert_one_sentence(cli(*RUN, "--device", "cuda"), 1, "'cuda'", "no CUDA device", "cpu")
    assert not Path("studies.db").exists()


def text_file() -> None:
    Path("studies.db").write_text("my notes, not a database, and long enough to be read as one")


def other_program() -> None:
    with sqlite3.connect("studies.db") as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()


def a_folder() -> None:
    Path("studies.db").mkdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (text_file, ("studies.db", "not an SQLite database")),
        (other_program, ("studies.db", "recipes", "--storage")),
        (a_folder, ("studies.db", "folder")),
    ],
)
@pytest.mark.parametrize("command", [RUN, ("status",), ("export", "tiny"), ("dashboard",)], ids=lambda c: c[0])
def test_wrong_database(
    command: tuple[Any, ...], make: Callable[[], None], words: tuple[str, ...], tiny_sweep: Path, cli: Any
) -> None:
    make()
    before = Path("studies.db").read_bytes() if Path("studies.db").is_file() else None
    finished = cli(*command)
    if make is a_folder and command != RUN:
        words = ("studies.db",)
    assert_one_sentence(finished, 1, *words)
    assert before is None or Path("studies.db").read_bytes() == before, "not a byte was changed"


def test_a_database_in_a_missing_folder(tiny_sweep: Path, cli: Any) -> None:
    assert_one_sentence(cli(*RUN, "--storage", "sqlite:///no/where.db"), 1, "no/where.db", "does not exist")
    assert not Path("no").exists()


def test_an_unreachable_server_says_so_without_its_password(
    tiny_sweep: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_SWEEP_STORAGE", "postgresql://me:secret@127.0.0.1:1/studies")
    finished = cli(*RUN)
    assert_one_sentence(finished, 1, "127.0.0.1")
    assert "secret" not in finished.out + finished.err


@pytest.mark.parametrize("command", [("status",), ("export", "tiny"), ("dashboard",)], ids=lambda c: c[0])
def test_no_database_yet(command: tuple[str, ...], cli: Any) -> None:
    assert_one_sentence(cli(*command), 1, "no study database here yet")
    assert not Path("studies.db").exists()


def test_the_same_study_with_another_space_or_other_data(tiny_sweep: Path, cli: Any) -> None:
    assert cli(*RUN, "--trials", 1).exit_code == 0
    database = Path("studies.db")
    tiny_sweep.write_text(tiny_sweep.read_text().replace("high = 1e-2", "high = 2e-2"))
    assert_one_sentence(cli(*RUN), 1, "'tiny'", "another space", "0.02", "--study")
    tiny_sweep.write_text(tiny_sweep.read_text().replace("high = 2e-2", "high = 1e-2"))
    assert_one_sentence(cli("run", "tiny.toml", "--data", "synthetic:600"), 1, "other data", "--study")
    assert_one_sentence(cli(*RUN, "--epochs", 9), 1, "another fixed", '"epochs": 9')
    assert cli(*RUN, "--trials", 2).exit_code == 0, "more trials of the same are welcome"
    assert database.exists()


def test_export_before_a_trial_is_finished(tiny_sweep: Path, cli: Any) -> None:
    begun = cli(*RUN, "--max-hours", 0)
    assert begun.exit_code == 0
    assert re.search(r"^likely no epoch ends in time: one takes about .+, and what was trained of", begun.out, re.M)
    assert_one_sentence(cli("export", "tiny", "--data", "synthetic:500"), 1, "no finished trial")
    assert_one_sentence(cli("export", "tidy"), 1, "'tidy'", "did you mean tiny")
    assert not Path("exports").exists()


@dataclass(frozen=True)
class Finished:
    exit_code: int
    out: str
    err: str


def ended(process: "subprocess.Popen[str]") -> Finished:
    """A process of its own, as a person has one: a trial that could not be given back is found as a dead worker's."""
    out, err = process.communicate(timeout=60)
    return Finished(process.returncode, out, err)


def mounted(path: Path, size: str) -> bool:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("what", ["database", "artifacts"])
@pytest.mark.slow
def test_a_full_disk(what: str, tiny_sweep: Path, start: Any, tmp_path: Path) -> None:
    """A real one, of a few hundred kilobytes; then more room, and the sweep goes on."""
    small = tmp_path / "small"
    if sys.platform != "linux" or os.geteuid() != 0 or not mounted(small, "900k"):
        pytest.skip("a small file system cannot be mounted here")
    try:
        places = {
            "database": ("--storage", f"sqlite:///{small}/studies.db"),
            "artifacts": ("--artifacts", small / "artifacts"),
        }
        filler = small / "filler"
        filler.write_bytes(b"0" * (100 if what == "artifacts" else 400) * 1024)
        command = (*RUN, "--trials", 6, *places[what])
        first = ended(start(*command))
        assert_one_sentence(first, 1)
        assert "full" in first.err or "No space left" in first.err
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        second = ended(start(*command))
        assert second.exit_code == 0, second.err
        assert "6 of 6 trials finished" in second.out
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


# --- The commands ----------------------------------------------------------------------------------------------------


def test_help_answers_at_once() -> None:
    """By processor time, which other programs at work do not lengthen much."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "cifar_sweep", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(4)) < 0.3


def test_a_working_folder_that_was_deleted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "the folder that you are in was deleted" in cli("list").err


@pytest.mark.slow
@pytest.mark.alone
def test_a_run_in_so_many_hours_ends_in_time_and_stays_as_it_was_cut(tiny_sweep: Path, cli: Any) -> None:
    tiny_sweep.write_text(tiny_sweep.read_text().replace('pruner = "none"', 'strategy = "auto"'))
    command = (*RUN, "--hours", 0.015)
    begun = time.monotonic()
    finished = cli(*command)
    assert finished.exit_code == 0, finished.err
    assert time.monotonic() - begun < 54 + 60
    assert re.search(
        r"^0.015 hours: about \d+ trials of 3 epochs.*; the end is at \d\d:\d\d:\d\d$", finished.out, re.MULTILINE
    )
    assert "the sweep's own budget, 4 trials of 3 epochs, would take about" in finished.out
    assert "the search ended: the time was over" in finished.out
    if "cut to 0.015 h" in finished.out:
        uncut = r"cifar-sweep train exports/tiny-0.015h-\d+ --set \S+ .*then, the same uncut, in about"
        assert re.search(rf"trial \d+ without the cuts of the search: |{uncut}", finished.out)
    [study] = json.loads(cli("status", "--json").out)["studies"]
    assert (study["name"], study["state"], study["reason"]) == ("tiny-0.015h", "finished", "the time was over")
    assert study["trials"]["complete"] >= 1
    assert study["trials"]["complete"] + study["trials"]["pruned"] == study["budget"]
    again = cli(*command)
    assert again.exit_code == 0, again.err
    # Where nothing else fitted into them, it ended before its hours did.
    assert re.search(
        r"the 0.015 hours of study tiny-0.015h ended at|study tiny-0.015h is finished as it was cut", again.out
    )
    assert json.loads(cli("status", "--json").out)["studies"] == [study]
    assert_one_sentence(cli(*command[:-2], "--study", "tiny-0.015h"), 1, "was begun with --hours 0.015")


def test_list_shows_every_sweep(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path))
    out = cli("list").out
    for name in ("lr_batch", "schedule", "regularization", "optimizer", "vgg_depth", "full", "reports"):
        [line] = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert re.search(r" \d+ x \d+ +about \d+(\.\d)? (s|min|h) +\d+ x \d+ ", line), line
    assert "learning_rate, batch_size" in out
    assert "rough" in out
    assert "cifar-sweep plan" in out
    assert list(tmp_path.iterdir()) == [], "nothing was timed"


def test_a_worker_that_gains_nothing_says_so(tiny_sweep: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("submit", tiny_sweep, "--data", "synthetic:500", "--epochs", 1).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr("cifar_sweep.work.worker.run_workers", lambda *_, **__: time.sleep(1.8))
        assert "nothing was gained" in cli("worker", "--until-idle", "--max-hours", 1.8 / 3600).out
    assert "nothing was gained" not in cli("worker", "--until-idle", "--max-hours", 1).out


def test_a_run_that_gains_nothing_and_fewer_trials_than_there_are_say_so(tiny_sweep: Path, cli: Any) -> None:
    run = ("run", tiny_sweep, "--data", "synthetic:500", "--epochs", 1)
    ended = cli(*run, "--trials", 2, "--max-hours", 0)
    assert ended.exit_code == 0
    assert "stopped before the first epoch's end" in ended.out
    assert "nothing was gained; give it more time" in ended.out
    assert "export" not in ended.out
    assert cli(*run, "--trials", 2).exit_code == 0
    ended = cli(*run, "--trials", 1)
    assert (ended.exit_code, ended.err) == (0, "")
    assert "study tiny has 2 finished trials already: trials = 1 changes nothing" in ended.out
    assert "2 of 2 trials finished" in ended.out
    assert "2/2" in cli("status").out


def test_run_says_where_everything_is(tiny_sweep: Path, cli: Any) -> None:
    finished = cli(*RUN)
    assert finished.exit_code == 0, finished.err
    for words in ("4 of 4 trials finished", "best: trial", "studies.db", "artifacts/tiny-", "cifar-sweep export tiny"):
        assert words in finished.out
    assert finished.out.count("trial 0 complete") == 1, "one plain line for a trial that ends"
    again = cli(*RUN)
    assert again.exit_code == 0
    assert "complete" not in again.out.split("4 of 4")[0], "nothing was left to do"


def test_the_best_trials_are_confirmed_and_everything_says_so(
    tiny_sweep: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (
        "study.verdict",
        "study.stored",
        "terminal.status",
    ):  # as if so short a run could be better than chance
        monkeypatch.setattr(f"cifar_sweep.{module}.verdict", lambda *_: "")
    assert "is confirmed" not in cli(*RUN).out
    finished = cli(*RUN, "--confirm", "2,2")
    assert finished.exit_code == 0, finished.err
    confirmed = next(line for line in finished.out.splitlines() if "is confirmed" in line)
    expected = next(line for line in finished.out.splitlines() if line.startswith("expected on new images"))
    assert "over 2 fresh seeds" in confirmed
    assert "4 of 4 trials finished" in finished.out
    assert finished.out.count("(confirms trial") == 4
    for command in (("status",), ("report", "--no-images", "--format", "md", "--out", "-"), ("export",)):
        told = cli(*command)
        assert confirmed in told.out, command
        assert expected in told.out, command
    [card] = Path("exports").glob("*/MODEL_CARD.md")
    assert confirmed in card.read_text()
    metrics = json.loads((card.parent / "metrics.json").read_text())
    assert metrics["expected"]["text"] == expected
    assert metrics["trial"] in metrics["confirmation"]["candidates"][0]["seeds"]
    refused = cli(*RUN, "--confirm", "2")
    assert refused.exit_code == 2
    assert "--confirm 2: confirm = [2] is not accepted; it takes two whole numbers from 1" in refused.err


def test_options_reach_the_trials(tiny_sweep: Path, cli: Any) -> None:
    options = ("--epochs", 2, "--train-images", 100, "--seed", 5, "--trials", 1, "--study", "mine")
    settings = ("--set", "pruner=none", "--set", "learning_rate=0.002", "--set", "optimizer=sgd")
    assert cli(*RUN, *options, *settings).exit_code == 0
    connection = sqlite3.connect("studies.db")
    [(text,)] = connection.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'config'").fetchall()
    connection.close()
    config = json.loads(text)
    asked = {"epochs": 2, "train_images": 100, "learning_rate": 0.002, "optimizer": "sgd"}
    assert {name: config[name] for name in asked} == asked
    assert [study["name"] for study in json.loads(cli("status", "--json").out)["studies"]] == ["mine"]


def test_preview_without_cifar10_runs_on_synthetic_images_and_says_so(tiny_sweep: Path, cli: Any) -> None:
    tiny_sweep.write_text(tiny_sweep.read_text() + "\n[preview]\ntrials = 2\nepochs = 1\ntrain_images = 64\n")
    finished = cli("run", "tiny.toml", "--preview", "--workers", 1, "--threads", 1)
    assert finished.exit_code == 0, finished.err
    assert "synthetic images" in finished.out
    assert "tiny-preview: 2 trials" in finished.out
    assert "2 of 2 trials finished" in finished.out


def test_settings_are_read_as_toml() -> None:
    parsed = settings_of(["batch_size=32", "learning_rate=1e-3", "pruner=none", "batch_norm=true", "init='xavier'"])
    assert parsed == {"batch_size": 32, "learning_rate": 1e-3, "pruner": "none", "batch_norm": True, "init": "xavier"}
    assert settings_of(["filters=[8, 16]"]) == {"filters": "8,16"}  # as a list of layers is kept
    with pytest.raises(UsageError, match="a number, a word"):
        settings_of(["batch_size={ low = 1 }"])


def test_status_of_one_study_and_of_none(tiny_sweep: Path, cli: Any) -> None:
    assert cli(*RUN, "--trials", 1).exit_code == 0
    assert "tiny" in cli("status").out
    assert_one_sentence(cli("status", "other"), 1, "'other'", "tiny")


def test_doctor(cli: Any) -> None:
    finished = cli("doctor", "--data", "synthetic:500")
    assert finished.exit_code == 0, finished.out
    for subject in ("Python", "torch", "device", "bf16", "data", "storage", "disk"):
        assert subject in finished.out
    assert not Path("studies.db").exists()


def test_doctor_finds_faults(cli: Any) -> None:
    text_file()
    finished = cli("doctor", "--data", "/no/where")
    assert finished.exit_code == 1
    assert finished.out.count("FAULT") == 2
    assert "not an SQLite database" in finished.out
    assert "/no/where" in finished.out


def test_a_sweep_on_real_images(real_source: str, cli: Any) -> None:
    """CIFAR-10 itself, a few hundred images of it: learnt beyond chance, exported, and trained again to the same."""
    run = ("run", "lr_batch", "--trials", 1, "--epochs", 2, "--train-images", 2000, "--workers", 1, "--threads", 1)
    finished = cli(*run, "--data", real_source, "--set", "batch_size=64", "--set", "learning_rate=0.002")
    assert finished.exit_code == 0, finished.err
    assert "1 of 1 trials finished" in finished.out
    assert cli("export", "lr_batch", "--out", "here").exit_code == 0
    metrics = json.loads(Path("here/metrics.json").read_text())
    assert metrics["test_images"] == 10_000
    assert 0.25 < metrics["test_accuracy"] < 0.6
    assert abs(metrics["test_accuracy"] - metrics["validation_accuracy"]) < 0.03
    assert "the same" in cli("train", "here", "--data", real_source).out.splitlines()[-1]
