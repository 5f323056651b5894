"""Generated image files of every mode and note that files have, each with what a viewer shows of it."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Array = np.ndarray[Any, Any]
Maker = Callable[[np.random.Generator, Path, int, int, dict[str, Any]], Array]
TURNED = ("png", "jpg", "webp", "tif", "avif")  # what has notes on how it is to be turned


def turned(shown: Array, orientation: int) -> Array:
    """Pixels as the EXIF specification says for an orientation, 1 to 8."""
    across = shown.transpose(1, 0, 2)
    return (
        shown, shown[:, ::-1], shown[::-1, ::-1], shown[::-1], across, np.rot90(shown, -1), across[::-1, ::-1],
        np.rot90(shown),
    )[orientation - 1]  # fmt: skip


def on_white(rgba: Array) -> Array:
    page = Image.new("RGB", (rgba.shape[1], rgba.shape[0]), "white")
    image = Image.fromarray(rgba.astype(np.uint8))
    page.paste(image, mask=image.getchannel("A"))
    return np.asarray(page)


def grey(values: Array) -> Array:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def noise(rng: np.random.Generator, *shape: int, top: int = 256) -> Array:
    return rng.integers(0, top, shape, dtype=np.int64).astype(np.uint8 if top <= 256 else np.uint16)


def swapped_profile() -> bytes:
    """A profile whose red is sRGB's blue, and the other way round."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, blue = (profile.index(name, 128) for name in (b"rXYZ", b"bXYZ"))
    changed = bytearray(profile)
    changed[red : red + 4], changed[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(changed).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def tiff(data: bytes, width: int, height: int, *, bits: int, photometric: int = 1) -> bytes:
    """An uncompressed TIFF of one channel of whole numbers."""
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, 134), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(data)), (339, 3, 1, 1),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + data


def packed_12(values: Array) -> bytes:
    pairs = values.reshape(-1, 2).tolist()
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)


def lossless(mode: str, ending: str) -> Maker:
    """A file that keeps an image of a mode without alpha as it is."""

    def make(rng: np.random.Generator, path: Path, h: int, w: int, options: dict[str, Any]) -> Array:
        image = Image.fromarray(noise(rng, h, w, 3)).convert(mode)
        image.save(path, **options)
        return np.asarray(image.convert("RGB"))

    make.__name__ = ending
    return make


def lossy(ending: str, mode: str = "RGB", **more: Any) -> Maker:
    """A file of which Pillow's own pixels are the truth, before it is turned."""

    def make(rng: np.random.Generator, path: Path, h: int, w: int, options: dict[str, Any]) -> Array:
        Image.fromarray(noise(rng, h, w, 3)).convert(mode).save(path, **options, **more)
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    make.__name__ = ending
    return make


def transparent(ending: str, **more: Any) -> Maker:
    def make(rng: np.random.Generator, path: Path, h: int, w: int, options: dict[str, Any]) -> Array:
        rgba = noise(rng, h, w, 4)
        Image.fromarray(rgba).save(path, **options, **more)
        return on_white(rgba)

    make.__name__ = ending
    return make


def png(rng: np.random.Generator, path: Path, h: int, w: int, options: dict[str, Any]) -> Array:
    """Grey with alpha."""
    values, alpha = noise(rng, 2, h, w)
    Image.merge("LA", [Image.fromarray(values), Image.fromarray(alpha)]).save(path, **options)
    return on_white(np.dstack([grey(values), alpha]))


def palette(ending: str, clear: str) -> Maker:
    """Few colours; transparency of one of them, of each in a degree, or none."""

    def make(rng: np.random.Generator, path: Path, h: int, w: int, options: dict[str, Any]) -> Array:
        colours, places = noise(rng, 8, 3), noise(rng, h, w, top=8)
        alpha = np.full(8, 255)
        if clear == "one":
            alpha[3] = 0
            options = options | {"transparency": 3}
        elif clear == "each":
            alpha = noise(rng, 8)
            options = options | {"transparency": alpha.tobytes()}
        image = Image.fromarray(places).convert("L")
        image.putpalette(colours.tobytes())
        image.save(path, **options)
        return on_white(np.column_stack([colours, alpha])[places])

    make.__name__ = ending
    return make


def keyed(channels: int) -> Maker:
    """One colour that is transparent."""

    def png(rng: np.random.Generator, path: Path, h: int, w: int, options: dict[str, Any]) -> Array:
        pixels = noise(rng, h, w, channels, top=3)
        key = pixels[0, 0].tolist()
        image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        image.save(path, **options, transparency=tuple(key) if channels == 3 else key[0])
        alpha = 255 * (pixels != pixels[0, 0]).any(axis=2)
        return on_white(np.dstack([pixels if channels == 3 else grey(pixels[..., 0]), alpha]))

    return png


def deep(ending: str, order: str = "<u2", *, clear: bool = False) -> Maker:
    """Grey of 16 bits."""

    def make(rng: np.random.Generator, path: Path, h: int, w: int, options: dict[str, Any]) -> Array:
        values = noise(rng, h, w, top=65536)
        alpha = np.full((h, w), 255)
        if clear:
            options, alpha = options | {"transparency": int(values[0, 0])}, 255 * (values != values[0, 0])
        if ending == "pgm":
            path.write_bytes(b"P5 %d %d 65535\n" % (w, h) + values.astype(">u2").tobytes())
        else:
            Image.fromarray(values.astype(order)).save(path, **options)
        return on_white(np.dstack([grey(values >> 8), alpha]))

    make.__name__ = ending
    return make


def tif(rng: np.random.Generator, path: Path, h: int, w: int, options: dict[str, Any]) -> Array:
    """Grey of 12 bits, or of 16 with white as zero; whole numbers of 32 bits, or floats."""
    w += w % 2
    which = int(rng.integers(4))
    if which == 0:
        values = noise(rng, h, w, top=4096)
        path.write_bytes(tiff(packed_12(values), w, h, bits=12))
        return grey(values >> 4)
    if which == 1:
        values = noise(rng, h, w, top=65536)
        path.write_bytes(tiff(values.astype("<u2").tobytes(), w, h, bits=16, photometric=0))
        return grey(255 - (values >> 8))
    if which == 2:
        values = noise(rng, h, w)
        Image.fromarray(values.astype(np.int32)).save(path)
        return grey(values)
    floats = rng.random((h, w), dtype=np.float32)
    Image.fromarray(floats).save(path)
    return grey(np.floor(floats * 255 + np.float32(0.5)))


def frames(ending: str, mode: str = "RGB", **more: Any) -> Maker:
    """An animation, or several pages."""

    def make(rng: np.random.Generator, path: Path, h: int, w: int, options: dict[str, Any]) -> Array:
        images = [Image.fromarray(noise(rng, h, w, 3, top=4) * 85).convert(mode) for _ in range(3)]
        images[0].save(path, save_all=True, append_images=images[1:], **options, **more)
        return np.asarray(images[0].convert("RGB"))

    make.__name__ = ending
    return make


def profiled(mode: str, ending: str) -> Maker:
    """Colours that a profile describes; with alpha, too."""

    def make(rng: np.random.Generator, path: Path, h: int, w: int, options: dict[str, Any]) -> Array:
        pixels, profile = noise(rng, h, w, 4), swapped_profile()
        Image.fromarray(pixels).convert(mode).save(path, icc_profile=profile, **options)
        described, srgb = ImageCms.getOpenProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        shown = ImageCms.profileToProfile(Image.fromarray(pixels[..., :3]), described, srgb)
        assert shown is not None
        assert np.abs(np.asarray(shown).astype(int) - pixels[..., 2::-1]).max() <= 2
        return np.asarray(shown) if mode == "RGB" else on_white(np.dstack([np.asarray(shown), pixels[..., 3]]))

    make.__name__ = ending
    return make


MAKERS: list[Maker] = [
    lossless("1", "png"), lossless("1", "tif"), lossless("1", "pbm"), lossless("1", "bmp"), lossless("L", "png"),
    lossless("L", "bmp"), lossless("L", "tif"), lossless("L", "pgm"), lossless("L", "gif"), lossless("RGB", "png"),
    lossless("RGB", "bmp"), lossless("RGB", "tif"), lossless("RGB", "ppm"), lossless("RGB", "jp2"),
    lossless("CMYK", "tif"), lossless("YCbCr", "tif"), lossless("LAB", "tif"), lossless("RGBX", "tif"),
    lossless("P", "png"), lossy("jpg", "L"), lossy("jpg"), lossy("jpg", "CMYK"), lossy("jpg", "YCbCr"), lossy("webp"),
    lossy("avif", speed=10), png, transparent("png"), transparent("tif"),
    transparent("webp", lossless=True, exact=True),
    transparent("ico", bitmap_format="png"), palette("png", "one"), palette("png", "each"), palette("png", "none"),
    palette("gif", "one"), palette("gif", "none"), keyed(1), keyed(3), deep("png"), deep("png", clear=True),
    deep("tif"), deep("tif", ">u2"), deep("pgm"), tif, tif, frames("gif", "P"), frames("png"), frames("tif"),
    frames("webp", lossless=True), profiled("RGB", "png"), profiled("RGB", "tif"), profiled("RGBA", "png"),
]  # fmt: skip


def make(number: int, folder: Path) -> tuple[Path, Array]:
    """The file of this number, and what is seen of it: uint8 [height, width, 3]. Equal numbers give equal files."""
    rng = np.random.default_rng(number)
    maker = MAKERS[number % len(MAKERS)]
    ending = maker.__name__
    path = folder / f"{number:06}.{ending}"
    h, w = (32, 32) if rng.random() < 0.5 else (int(side) for side in rng.integers(2, 49, 2))
    if ending == "ico":
        h = w = 32
    options: dict[str, Any] = {}
    orientation = int(rng.integers(1, 9)) if ending in TURNED and maker is not tif else 1
    if orientation > 1 or rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = orientation
        if ending in TURNED:
            options["exif"] = exif
    shown = maker(rng, path, h, w, options)
    return path, turned(shown, orientation)
