"""Images of a user's own from `run` to `evaluate`: the same rules everywhere, and no download that nobody asked for."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cifar_sweep.study.opening import load
from cifar_sweep.study.storage import open_existing
from cifar_sweep.training.images import sources
from tests.pictures.test_folder import fill, image

RUN = ("run", "./own.toml", "--data", "pictures", "--skip-damaged", "--threads", 1)
SWEEP = """
trials = 1
[fixed]
model = "lenet"
precision = "fp32"
batch_size = 4
epochs = 1
image_size = 48
[space]
learning_rate = { low = 1e-3, high = 1e-2 }
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = fill(tmp_path / "pictures", ("cat", "dog"))
    for name in ("cat", "dog"):
        (root / "val" / name).mkdir(parents=True)
        image(5).save(root / "val" / name / "0.png")
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "broken.png").write_text("x")
    (tmp_path / "own.toml").write_text(SWEEP)
    return root


def test_what_is_passed_over_is_said_kept_and_known_to_the_export(
    pictures: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "download", lambda *_: pytest.fail("a download"))
    refused = cli(*RUN[:4])
    assert (refused.exit_code, refused.err.count("\n")) == (1, 1)
    assert "train/cat/broken.png: not an image that Pillow reads. Replace or remove" in refused.err
    assert not Path("studies.db").exists()
    finished = cli(*RUN)
    assert finished.exit_code == 0, finished.err
    notes = [
        "the validation images are those of val/",
        "passed over: 1 file with another ending (.txt 1), 'train/cat/notes.txt'; rename it",
        "20 of 20 images are not 48x48 (20 of 32x32): each is resized as a whole, by bilinear interpolation",
        "skipped: 1 image that cannot be used: train/cat/broken.png: not an image that Pillow reads",
    ]
    lines = finished.out.splitlines()
    assert "image folder pictures: 12 + 2 (validation) + 6 images, 2 classes" in lines
    assert all(any(line.startswith(note) for line in lines) for note in notes)
    study = load(open_existing("sqlite:///studies.db"), "own")
    assert all(note in study.data["notes"] for note in notes)
    assert study.data["validation_images"] == 2

    assert cli("export", "own", "--out", "e").exit_code == 0
    assert tomllib.loads(Path("e/config.toml").read_text())["config"]["image_size"] == 48
    assert notes[0] in Path("e/MODEL_CARD.md").read_text()
    pictures.rename(tmp_path / "elsewhere")
    evaluated = cli("evaluate", "e", "--json")
    assert evaluated.exit_code == 0, evaluated.err
    assert json.loads(evaluated.out)["test_images"] == 6
    assert cli("predict", "e", "--test", 2).exit_code == 0
    again = cli("train", "e", "--out", "f")
    assert again.exit_code == 0, again.err
    assert "compared with the export's: the same" in again.out

    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path / "another"))
    for command in (("evaluate", "e"), ("train", "e"), ("predict", "e", "--test", 1)):
        lost = cli(*command)
        assert (lost.exit_code, lost.err) == (
            2, "error: e: trained on image folder pictures; name it with --data.\n",
        )  # fmt: skip
    found = cli("evaluate", "e", "--data", "elsewhere", "--json")
    assert json.loads(found.out)["test_accuracy"] == json.loads(evaluated.out)["test_accuracy"]


def test_a_variable_names_images_of_new_studies_and_of_those_whose_own_are_gone(
    pictures: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_SWEEP_DATA", "synthetic:200")
    assert cli(*RUN).exit_code == 0
    for command in (("export", "own", "--out", "e"), ("evaluate", "e"), ("predict", "e", "--test", 1)):
        ended = cli(*command)
        assert (ended.exit_code, ended.err) == (0, ""), command
    pictures.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path / "another"))
    refused = cli("export", "own", "--out", "f")
    assert (refused.exit_code, refused.err.count("\n")) == (1, 1)
    monkeypatch.setenv("CIFAR_SWEEP_DATA", "elsewhere")
    assert cli("export", "own", "--out", "f").exit_code == 0
    ended = cli("worker", "own", "--until-idle")
    assert (ended.exit_code, ended.err) == (0, "")


def test_other_classes_are_refused_however_many(pictures: Path, cli: Any) -> None:
    assert cli(*RUN).exit_code == 0
    assert cli("export", "own", "--out", "e").exit_code == 0
    fill(Path("others"), ("bird", "frog"))
    for command in (("evaluate", "e"), ("evaluate", "e", "--json"), ("train", "e")):
        refused = cli(*command, "--data", "others")
        assert refused.exit_code == 2
        assert (
            "trained on image folder pictures (2 classes), not on image folder others (2 classes, such as 'bird')"
            in (refused.err)
        )


@pytest.mark.slow
def test_doctor_says_what_is_passed_over(pictures: Path, cli: Any) -> None:
    refused = cli("doctor", "--data", "pictures")
    assert refused.exit_code == 1
    assert "FAULT  data" in refused.out
    assert "1 image that cannot be used: train/cat/broken.png" in refused.out
    finished = cli("doctor", "--data", "pictures", "--skip-damaged")
    assert "image folder pictures: 12 + 2 (validation) + 6 images, 2 classes, fingerprint" in finished.out
    assert "passed over: 1 file with another ending (.txt 1)" in finished.out


def test_exports_of_two_sizes_are_not_set_side_by_side(pictures: Path, cli: Any) -> None:
    assert cli(*RUN).exit_code == 0
    assert cli("export", "own", "--out", "e").exit_code == 0
    assert cli(*RUN, "--study", "small", "--set", "image_size=28").exit_code == 0
    assert cli("export", "small", "--out", "f").exit_code == 0
    Image.new("RGB", (40, 40)).save("a.png")
    refused = cli("predict", "e", "a.png", "--against", "f")
    assert (refused.exit_code, refused.err) == (
        2, "error: --against f: it takes images of another size than e; accepted: the same size.\n",
    )  # fmt: skip
    assert "(40x40, resized)" in cli("predict", "f", "a.png").out
