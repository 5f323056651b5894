"""Image folders as people have them: what is used, what is passed over and said, and what is refused."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_sweep.errors import DataError
from cifar_sweep.pictures import folder as folder_module
from cifar_sweep.training.images.data import load


def image(*seed: int, side: int = 32, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8))


def fill(root: Path, names: Iterable[str] = ("cat", "dog"), *, train: int = 6, test: int = 3) -> Path:
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image(label, number, count).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """An image folder of two classes: 6 training images and 3 test images each."""
    return fill(tmp_path / "pictures")


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """The fingerprint of `pictures` as it was at first."""
    return load(str(fill(tmp_path / "plain"))).fingerprint


def test_hidden_colours_below_transparency_are_not_seen(tmp_path: Path) -> None:
    found = set()
    for kind in ("noise", "class", "palette"):
        root = fill(tmp_path / kind)
        for label, path in enumerate(sorted(root.rglob("*.png"))):
            pixels = np.random.default_rng(label).integers(0, 256, (32, 32, 4), dtype=np.uint8)
            pixels[..., 3] = 0
            if kind != "noise":
                pixels[..., :3] = 80 * ("dog" in str(path)) + 20
            pixels[8:20, 8:20] = (255, 0, 0, 255)
            made = Image.fromarray(pixels)
            (made.quantize(16) if kind == "palette" else made).save(path)
        data = load(str(root))
        assert data.train_images[0, 0, 0].tolist() == [255, 255, 255]
        found.add(data.fingerprint)
    assert len(found) == 1


def test_all_formats_are_read_by_their_content(pictures: Path) -> None:
    cats = pictures / "train" / "cat"
    for number, ending in enumerate(("gif", "tiff", "jfif", "ppm", "avif", "WEBP", "bmp", "jp2")):
        image(number).save(cats / f"more.{ending}", format="JPEG" if ending == "jfif" else None)
    image(0).save(cats / "named wrongly.png", format="GIF")
    data = load(str(pictures))
    assert (len(data.train_images), data.notes) == (12 + 9, ())


def test_other_endings_are_counted_with_examples(pictures: Path) -> None:
    for number in range(4):
        (pictures / "train" / "cat" / f"{number}.heic").write_bytes(b"x")
    (pictures / "train" / "dog" / "noending").write_bytes(b"x")
    (pictures / "train" / "lost.png").write_bytes(b"x")
    (pictures / "extra").mkdir()
    endings, outside = load(str(pictures)).notes
    assert endings.startswith("passed over: 5 files with other endings (.heic 4, none 1), such as 'train/cat/0.heic', ")
    assert endings.endswith("'train/cat/2.heic'; rename them, or convert them to PNG, to use them")
    assert outside.startswith(
        "passed over: 2 images and folders outside of the class folders, such as 'extra', 'train/"
    )


def test_a_class_of_other_files_is_refused_with_that_reason(pictures: Path) -> None:
    for path in (pictures / "train" / "cat").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(DataError, match=r"train/cat of .* has 0 images.* There, passed over: 6 .*\(\.heic 6\)"):
        load(str(pictures))


def test_folders_below_a_class_are_of_the_class(pictures: Path, plain: str) -> None:
    for name in ("cat", "dog"):
        folder = pictures / "train" / name
        (folder / "session 2" / "day").mkdir(parents=True)
        (folder / "session 2" / "day" / "5.png").write_bytes((folder / "5.png").read_bytes())
        (folder / "5.png").unlink()
        (folder / ".ipynb_checkpoints").mkdir()
        shutil.copy(folder / "0.png", folder / ".ipynb_checkpoints" / "0-checkpoint.png")
    data = load(str(pictures))
    assert data.fingerprint == plain
    [note] = data.notes
    assert "2 hidden entries, or such as systems leave behind, such as 'train/cat/.ipynb_checkpoints'" in note


def test_what_systems_leave_behind_is_no_class(pictures: Path, plain: str) -> None:
    for junk in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", "__pycache__"):
        (pictures / "train" / junk).mkdir()
        image(1).save(pictures / "train" / junk / "0.png")
    for junk in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (pictures / "test" / "dog" / junk).write_bytes(b"junk")
    for part in ("train", "test"):
        (pictures / part / "birds").mkdir()
    data = load(str(pictures))
    assert (data.fingerprint, data.classes) == (plain, ("cat", "dog"))
    litter, empty = data.notes
    assert litter.startswith("passed over: 10 hidden entries")
    assert empty.startswith(
        "passed over: 2 class folders without files, such as 'test/birds', 'train/birds'; put images"
    )


def test_what_is_passed_over_is_said_afresh_and_decodes_nothing_again(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(str(pictures)).notes == ()
    (pictures / "train" / "cat" / "notes.txt").write_text("x")
    monkeypatch.setattr(folder_module, "_decode_part", None)
    assert len(load(str(pictures)).notes) == 1


def test_what_other_rules_decoded_is_not_served(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    load(str(pictures))
    load(str(pictures), on_progress=said.append)
    assert said == []
    monkeypatch.setattr(folder_module, "rules", lambda: "other rules")
    load(str(pictures), on_progress=said.append)
    assert said == ["decoding 18 images (once)"]


def damage(pictures: Path) -> dict[str, str]:
    whole = (pictures / "train/cat/1.png").read_bytes()
    contents: dict[str, tuple[bytes, str]] = {
        "train/cat/0.png": (b"", "the file is empty"),
        "train/cat/1.png": (whole[: len(whole) // 2], "cut short or damaged: image file is truncated"),
        "train/dog/2.png": (b"<!DOCTYPE html>", "a web page, not an image"),
        "test/cat/0.png": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    }
    for place, (content, _) in contents.items():
        (pictures / place).write_bytes(content)
    return {place: reason for place, (_, reason) in contents.items()}


def test_all_damaged_images_are_named_at_once(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path / "cache"))
    reasons = damage(pictures)
    with pytest.raises(DataError, match=r"The data has 4 images that cannot be used: .*--skip-damaged") as caught:
        load(str(pictures))
    for place, reason in reasons.items():
        assert f"{place}: {reason}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "cache").glob("data-*[!k]"))  # nothing but lock files


def test_damaged_images_are_left_out_on_request_alone(pictures: Path, plain: str) -> None:
    damage(pictures)
    skipped = load(str(pictures), skip_damaged=True)
    assert (len(skipped.train_images), len(skipped.test_images)) == (9, 5)
    assert skipped.train_labels.tolist() == [0] * 4 + [1] * 5
    assert skipped.notes[0].startswith("skipped: 4 images that cannot be used: train/cat/0.png: the file is empty; ")
    with pytest.raises(DataError, match="4 images that cannot be used"):  # though the cache has the rest
        load(str(pictures))
    for path in (pictures / "test" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"each class takes 1 or more test images; 'cat' has 0"):
        load(str(pictures), skip_damaged=True)


def test_of_many_damaged_images_ten_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "many", train=9)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"has 18 images that .*; and 8 more\. Replace") as caught:
        load(str(root))
    assert str(caught.value).count("the file is empty") == 10


@pytest.mark.parametrize("parts", [("test",), ("train",), ("train", "test")])
def test_names_that_look_alike_are_one_class(tmp_path: Path, parts: tuple[str, ...]) -> None:
    root = fill(tmp_path / "forms", ("café", "plain"))
    for part in parts:
        (root / part / "café").rename(root / part / normalize("NFD", "café"))
    assert load(str(root)).classes == ("café", "plain")
    if len(parts) == 1:
        # Both forms in one part are one class, too.
        (root / parts[0] / "café").mkdir()
        image(7).save(root / parts[0] / "café" / "other.png")
        data = load(str(root))
        assert (data.classes, len(data.train_images) + len(data.test_images)) == (("café", "plain"), 19)


def test_a_name_in_other_bytes_than_utf_8_is_refused_before_training(pictures: Path) -> None:
    for part in ("train", "test"):
        os.rename(os.fsencode(pictures / part / "cat"), os.fsencode(pictures / part) + b"/l\xe9ft")
    with pytest.raises(DataError, match=r"The class folder 'train/l\\udce9ft' has a name that is not UTF-8; rename it"):
        load(str(pictures))


def test_names_that_differ_are_shown_with_their_ends(pictures: Path) -> None:
    (pictures / "test" / "cat").rename(pictures / "test" / "cat ")
    with pytest.raises(DataError, match=r"differ in the data folder .* in 'cat', 'cat '"):
        load(str(pictures))


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val"])
def test_a_validation_part_is_the_validation_set(pictures: Path, plain: str, name: str) -> None:
    for label, of in enumerate(("cat", "dog")):
        (pictures / name / of).mkdir(parents=True)
        for number in range(4 - label):
            image(9, label, number).save(pictures / name / of / f"{number}.png")
    data = load(str(pictures))
    training, validation = data.divide()
    assert sorted(training.tolist()) == list(range(12))
    assert validation.tolist() == list(range(12, 19))
    assert data.train_labels[12:].tolist() == [0] * 4 + [1] * 3
    assert torch.equal(data.train_images[12], torch.from_numpy(np.asarray(image(9, 0, 0)).copy()))
    assert torch.bincount(data.train_labels[data.divide(validation_images=4)[1]]).tolist() == [2, 2]
    assert data.fingerprint != plain
    assert data.notes == (f"the validation images are those of {name}/",)
    assert data.counted == "image folder pictures: 12 + 7 (validation) + 6 images, 2 classes"


def rename(pictures: Path, **names: str) -> None:
    for before, after in names.items():
        (pictures / before).rename(pictures / after)


def test_parts_in_other_spellings(pictures: Path, plain: str) -> None:
    rename(pictures, train="Training", test="TEST")
    assert load(str(pictures)).fingerprint == plain


def without_test(pictures: Path) -> None:
    rename(pictures, test="val")


def two_of_a_kind(pictures: Path) -> None:
    shutil.copytree(pictures / "test", pictures / "val")
    shutil.copytree(pictures / "test", pictures / "dev")


def wrapped(pictures: Path) -> None:
    (pictures / "data").mkdir()
    for part in ("train", "test"):
        (pictures / part).rename(pictures / "data" / part)


def without_parts(pictures: Path) -> None:
    shutil.rmtree(pictures / "test")
    for path in (pictures / "train").iterdir():
        path.rename(pictures / path.name)
    (pictures / "train").rmdir()


def other_class_in_val(pictures: Path) -> None:
    shutil.copytree(pictures / "test", pictures / "val")
    rename(pictures, **{"val/cat": "val/bird"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_test, r"has train/ and val/ but no test/.* or rename val/ to test/"),
        (two_of_a_kind, r"has dev and val, of which one is accepted"),
        (wrapped, r"holds the image folder 'data'; name that one: --data '.*/data'"),
        (without_parts, r"has folders \('cat', 'dog'\) but no train/ and test/"),
        (other_class_in_val, r"differ in the data folder .* in 'bird'"),
    ],
)
def test_folders_that_lack_something_say_what_to_do(pictures: Path, change: Any, words: str) -> None:
    change(pictures)
    with pytest.raises(DataError, match=words):
        load(str(pictures))


@pytest.mark.parametrize("side", [28, 32, 64])
def test_images_of_any_size_are_resized_as_a_whole_and_counted(pictures: Path, side: int) -> None:
    image(1, side=64).save(pictures / "train/cat/0.png")
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8))
    wide.save(pictures / "train/cat/1.png")
    data = load(str(pictures), side=side)
    assert data.train_images.shape[1:] == data.test_images.shape[1:] == (side, side, 3)
    assert np.array_equal(data.train_images[1], np.asarray(wide.resize((side, side), Image.Resampling.BILINEAR)))
    others = {28: "18 of 18", 32: "2 of 18", 64: "17 of 18"}[side]
    assert data.notes[0].startswith(f"{others} images are not {side}x{side} (")
    assert "1 of 50x20" in data.notes[0]
    assert data.notes[0].endswith("each is resized as a whole, by bilinear interpolation")


def test_links_are_followed_and_those_that_lead_nowhere_are_counted(pictures: Path, plain: str) -> None:
    store = pictures.with_name("store")
    store.mkdir()
    for number, path in enumerate(sorted(pictures.rglob("*.png"))):
        path.rename(store / f"{number}.png")
        path.symlink_to(store / f"{number}.png")
    (pictures / "train" / "cat" / "gone.png").symlink_to("/srv/annex/gone.png")
    (pictures / "train" / "cat" / "self.png").symlink_to("self.png")
    (pictures / "train" / "cat" / "up").symlink_to(pictures / "train" / "cat")
    (pictures / "train" / "birds").symlink_to("/srv/annex/birds")
    os.mkfifo(pictures / "train" / "cat" / "pipe.png")
    data = load(str(pictures))
    assert data.fingerprint == plain
    assert [note.partition(",")[0] for note in data.notes] == [
        "passed over: 3 links that lead nowhere",
        "passed over: 1 link that leads back to a folder above",
        "passed over: 1 entry that is neither file nor folder",
    ]
    assert "'train/birds', 'train/cat/gone.png', 'train/cat/self.png'" in data.notes[0]


def test_images_that_show_nothing_are_counted(pictures: Path) -> None:
    for number, top in ((0, 255), (1, 4095), (2, 65535)):  # of 12 bits in 16, and of fewer
        values = np.random.default_rng(number).integers(0, top + 1, (32, 32)).astype(np.uint16)
        values[0, 0] = top
        Image.fromarray(values).save(pictures / "train" / "cat" / f"{number}.png")
    [note] = load(str(pictures)).notes
    assert note.startswith("2 of 18 images are nearly black, no value being above 15 of 255; where they have 12 bits")
