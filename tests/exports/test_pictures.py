"""`predict` and `evaluate`: any picture, said what was done to it; the test set, class by class."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_sweep.exports import pictures
from cifar_sweep.training.images.data import ImageData


def test_image_files_of_any_size_and_mode(exports: None, cli: Any) -> None:
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save("large.png")
    Image.fromarray(generator.integers(0, 255, (32, 32), dtype=np.uint8), "L").save("grey.jpg")
    Image.fromarray(generator.integers(0, 255, (10, 10, 4), dtype=np.uint8), "RGBA").save("small.png")
    finished = cli("predict", "one", "large.png", "grey.jpg", "small.png")
    assert finished.exit_code == 0, finished.err
    assert "large.png (70x50, resized)" in finished.out
    assert "small.png (10x10, resized)" in finished.out
    assert "grey.jpg (" not in finished.out
    said = json.loads(cli("predict", "one", "large.png", "--json").out)["images"][0]
    assert (said["size"], said["resized"], said["right"]) == ([70, 50], True, None)
    probabilities = said["predictions"]["one"]["probabilities"]
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert said["predictions"]["one"]["class"] == max(probabilities, key=probabilities.get)


def test_a_picture_of_the_right_size_is_taken_as_it_is(small_data: ImageData, tmp_path: Path) -> None:
    pixels = small_data.test_images[3]
    Image.fromarray(pixels.numpy()).save(tmp_path / "one.png")
    picture = pictures.read_picture(tmp_path / "one.png", 32)
    assert not picture.resized
    assert picture.pixels.equal(pixels)


def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((32, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert pictures.read_picture(tmp_path / "turned.jpg", 32).size == (32, 64)


def test_two_exports_side_by_side_on_the_test_set(exports: None, small_data: ImageData, cli: Any) -> None:
    command = ("predict", "one", "--against", "two", "--test", 5)
    first, second = json.loads(cli(*command, "--json").out), json.loads(cli(*command, "--json").out)
    assert first == second
    assert len(first["images"]) == 5
    for image in first["images"]:
        assert set(image["predictions"]) == {"one", "two"}
        index = int(image["image"].removeprefix("test image "))
        assert image["right"] == small_data.classes[int(small_data.test_labels[index])]
    finished = cli(*command)
    assert "one" in finished.out
    assert "two" in finished.out


def test_the_page_opens_alone_and_escapes_names(exports: None, cli: Any) -> None:
    name = "<b>&.png"
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(name)
    finished = cli("predict", "one", name, "--against", "two", "--test", 2, "--page", "out.html")
    assert finished.exit_code == 0, finished.err
    page = Path("out.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;.png" in page

    sources: list[str] = []

    class Images(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "iframe")
            if tag == "img":
                sources.append(dict(attrs)["src"] or "")

    Images().feed(page)
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_what_is_no_picture(exports: None, cli: Any) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save("whole.png")
    Path("half.png").write_bytes(Path("whole.png").read_bytes()[:3000])
    Path("note.txt").write_text("no picture")
    for arguments, words in (
        (("one",), "give image files, or --test N"),
        (("one", "nothing.png"), "nothing.png: there is no such image file"),
        (("one", "note.txt"), "note.txt: the image cannot be read: not an image that Pillow reads"),
        (("one", "half.png"), "half.png: the image cannot be read"),
        (("one", "--test", 101), "has 100 test images"),
        (("one", "whole.png", "--against", "one"), "that is the same export"),
        (("elsewhere", "half.png"), "give the config.toml of an export"),
    ):
        finished = cli("predict", *arguments)
        assert finished.exit_code == 2
        assert words in finished.err


def test_evaluate_counts_what_is_taken_for_what(exports: None, small_data: ImageData, cli: Any) -> None:
    finished = cli("evaluate", "one", "--json")
    assert finished.exit_code == 0, finished.err
    evaluation = json.loads(finished.out)
    metrics = json.loads(Path("one/metrics.json").read_text())
    assert evaluation["test_accuracy"] == metrics["test_accuracy"]
    assert evaluation["test_loss"] == pytest.approx(metrics["test_loss"])
    counts = np.array(evaluation["confusion"])
    assert counts.sum() == 100
    assert counts.trace() / 100 == evaluation["test_accuracy"]
    assert counts.sum(axis=1).tolist() == np.bincount(small_data.test_labels.numpy(), minlength=10).tolist()
    for label, entry in enumerate(evaluation["classes"]):
        assert entry["class"] == small_data.classes[label]
        assert entry["accuracy"] == counts[label, label] / counts[label].sum()
    shown = cli("evaluate", "one").out
    assert f"test accuracy {metrics['test_accuracy']:.2%} (100 images" in shown


def test_evaluate_on_other_images_says_so(exports: None, cli: Any) -> None:
    finished = cli("evaluate", "one", "--data", "synthetic:600")
    assert finished.exit_code == 0
    assert "numbers will differ" in finished.out
    assert "(120 images of synthetic images (600 + 120))" in finished.out
