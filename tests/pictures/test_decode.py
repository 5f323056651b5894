"""What a viewer shows of an image file is what networks get: in training, `evaluate`, `predict` and `predict.py`."""

import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_sweep.config import TrialConfig
from cifar_sweep.exports.pictures import read_picture
from cifar_sweep.exports.source import script
from cifar_sweep.pictures.decode import read_image
from cifar_sweep.training import checkpoint
from cifar_sweep.training.images.data import ImageData, load
from cifar_sweep.training.models import build
from tests.bare import module_of
from tests.pictures.kinds import MAKERS, make, swapped_profile


@pytest.fixture
def predict_script(small_data: ImageData, tmp_path: Path) -> ModuleType:
    """An export's script, as a module."""
    config = TrialConfig.from_params({"model": "lenet"}, classes=10, precision="fp32", data_seed=0, seed=0)
    network = build(config.shape, seed=0)
    path = tmp_path / "export" / "predict.py"
    path.parent.mkdir()
    path.write_text(script([config], [network], data=small_data))
    path.with_name("weights.safetensors").write_bytes(checkpoint.pack(network.state_dict()))
    return module_of(path)


@pytest.mark.parametrize("count", [3 * len(MAKERS), pytest.param(10_000, marks=pytest.mark.slow)])
def test_what_is_seen_is_what_the_networks_get(
    tmp_path: Path, predict_script: ModuleType, capfd: pytest.CaptureFixture[str], count: int
) -> None:
    folders = [tmp_path / "pictures" / part / name for part in ("train", "test") for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    wanted = {}
    for number in range(count):
        path, shown = make(number, folders[number % 4])
        image = Image.fromarray(np.ascontiguousarray(shown))
        square = image if image.size == (32, 32) else image.resize((32, 32), Image.Resampling.BILINEAR)
        wanted[path] = image.size, np.asarray(square)
    data = load(str(tmp_path / "pictures"), cache=tmp_path / "cache")
    trained, evaluated = data.train_images.numpy(), data.test_images.numpy()
    assert len(trained) + len(evaluated) == count
    for (path, (size, pixels)), decoded in zip(sorted(wanted.items()), [*evaluated, *trained], strict=True):
        assert np.array_equal(decoded, pixels), path
        picture = read_picture(path, 32)
        assert picture.size == size, path
        assert np.array_equal(picture.pixels.numpy(), pixels), path
        by_script = predict_script.read_picture(path)
        assert torch.equal(by_script, torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255), path
    assert capfd.readouterr() == ("", "")


def test_libraries_warn_of_nothing(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P").save(tmp_path / "a.png", transparency=bytes(4))
    with Image.open(tmp_path / "a.png") as image, pytest.warns(UserWarning, match="Palette images with Transparency"):
        image.convert("RGB")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "b.tif", compression="tiff_lzw", tiffinfo={65000: "x"})
    note = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0"  # it ends too soon
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "c.jpg", exif=note)
    with pytest.warns(UserWarning, match="Corrupt EXIF data"), Image.open(tmp_path / "c.jpg") as image:
        image.getexif()
    warnings.simplefilter("always")
    recwarn.clear()
    for name in ("a.png", "b.tif", "c.jpg"):
        read_image(tmp_path / name)
    assert (list(recwarn), capfd.readouterr()) == ([], ("", ""))


def save_deep(path: Path, values: np.ndarray) -> Path:  # type: ignore[type-arg]
    Image.fromarray(values).save(path)
    return path


def test_numbers_without_a_known_white_are_refused(tmp_path: Path) -> None:
    for number, (values, mode) in enumerate(
        [
            (np.full((2, 2), 1.5, np.float32), "F"),
            (np.full((2, 2), -0.1, np.float32), "F"),
            (np.array([[0, np.nan]], np.float32), "F"),
            (np.full((2, 2), 256, np.int32), "I"),
            (np.full((2, 2), -1, np.int32), "I"),
        ]
    ):
        with pytest.raises(ValueError, match=rf"\(mode {mode}\) are not all from 0 to"):
            read_image(save_deep(tmp_path / f"{number}.tif", values))


def test_reasons_of_files_that_are_no_images(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "whole.bmp")
    for content, reason in (
        (b"", "the file is empty"),
        ((tmp_path / "whole.bmp").read_bytes()[:5000], "cut short or damaged: image file is truncated"),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page, not an image"),
        (b"\0\0\0\x18ftypheic" + bytes(200), "a HEIC image, which Pillow does not read"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "a pointer of Git LFS; `git lfs pull`"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n", "not an image that Pillow reads"),  # it is a program
        (b"some text", "not an image that Pillow reads"),
    ):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(ValueError, match=f"^{reason}"):
            read_image(tmp_path / "x.png")


def test_notes_that_are_damaged_change_nothing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "exif.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    Image.fromarray(pixels).save(tmp_path / "profile.png", icc_profile=b"not a profile")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png", icc_profile=swapped_profile())  # a profile of RGB
    for name, shown in (("exif", pixels), ("profile", pixels), ("grey", np.repeat(pixels[..., :1], 3, axis=2))):
        assert np.array_equal(np.asarray(read_image(tmp_path / f"{name}.png")), shown)


def test_xmp_alone_turns_an_image(tmp_path: Path) -> None:
    note = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.webp", lossless=True, xmp=note)
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.webp")), pixels[::-1, ::-1])
