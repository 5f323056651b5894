"""What a viewer shows of an image file is what networks get: in training, `evaluate`, `predict` and `predict.py`."""

import struct
import warnings
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

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
    data = load(str(tmp_path / "pictures"))
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
        (b'<?xml version="1.0"?><svg/>', "a drawing in SVG, which Pillow does not read"),
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


@pytest.mark.parametrize("written", ['="3"', "='3'", ' = "3"'])
def test_xmp_alone_turns_an_image(tmp_path: Path, written: str) -> None:
    note = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation{written}/></x:xmpmeta>'
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.webp", lossless=True, xmp=note.encode())
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.webp")), pixels[::-1, ::-1])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(("bits", "channels"), [(1, 1), (2, 1), (4, 1), (8, 1), (8, 3), (16, 1), (16, 3)])
def test_a_transparent_colour_in_any_number_of_bits(tmp_path: Path, bits: int, channels: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (8, 16 * channels))
    key = (2**bits - 1) // 2 if bits < 16 else 0x1234  # in the bits of the file
    values[2, :channels] = key
    if bits == 16:
        values[2, channels : 2 * channels] = key >> 8  # a colour of its own
        rows = values.astype(">u2").view(np.uint8).reshape(8, -1)
    else:
        ones = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        rows = np.packbits(ones.reshape(8, -1), axis=1)
    header = struct.pack(">IIBBBBB", 16, 8, bits, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", key) * channels)
    content = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + content)
    pixels = values.reshape(8, 16, channels)
    shown = pixels >> 8 if bits == 16 else pixels * 255 // (2**bits - 1)
    shown = np.where((pixels == key).all(axis=2, keepdims=True), 255, shown)
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")), np.broadcast_to(shown, (8, 16, 3)))


def test_colours_of_more_than_8_bits_that_pillow_gets_wrong_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    planes = [(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, 140)]
    planes += [(277, 3, 1, 3), (278, 4, 1, 4), (279, 4, 3, 152), (284, 3, 1, 2)]
    directory = struct.pack("<IH", 8, 10) + b"".join(struct.pack("<HHII", *tag) for tag in planes) + bytes(4)
    places = struct.pack("<3H3I3I", 16, 16, 16, 164, 196, 228, 32, 32, 32)
    path.write_bytes(b"II*\0" + directory + places + bytes(96))
    with pytest.raises(ValueError, match="its samples of more than 8 bits lie plane by plane; save it"):
        read_image(path)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "x.jp2", irreversible=False)
    assert np.asarray(read_image(tmp_path / "x.jp2")).min() == 255
    content = (tmp_path / "x.jp2").read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 42
    deeper = content[:at] + b"".join(bytes([11, 1, 1]) for _ in range(3)) + content[at + 9 :]  # 12 bits
    (tmp_path / "x.jp2").write_bytes(deeper)
    with pytest.raises(ValueError, match="its JPEG 2000 colours of more than 8 bits are not read"):
        read_image(tmp_path / "x.jp2")


def test_a_profile_is_known_by_its_colours_and_not_by_its_name(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    named_srgb = swapped_profile().replace("swap".encode("utf-16-be"), "sRGB".encode("utf-16-be"))
    for profile, is_same in ((srgb, True), (named_srgb, False)):
        image.save(tmp_path / "x.png", icc_profile=profile)
        assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")), np.asarray(image)) == is_same


def test_an_image_that_is_too_large_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    Image.new("1", (2001, 2001)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"^more than 4 million pixels"):
        read_image(tmp_path / "x.png")
