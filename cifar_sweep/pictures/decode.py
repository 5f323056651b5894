"""An image file as a person sees it: upright, 8-bit RGB, on white. Pillow is all it needs: each export has a copy."""

import io
import logging
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError

# Whatever a file's name ends with, its content must be of these formats. None of them starts another program.
_NAMES = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
Image.init()
FORMATS = [name for name in _NAMES if name in Image.OPEN]  # an older Pillow has no AVIF
# What turns an image upright, by the orientation that EXIF and XMP note.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# By what Pillow multiplies a PNG's samples as it unpacks them, though not the colour that is transparent.
_SCALED = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it logs is printed


def read_image(path: str | Path) -> Image.Image:
    """An image file as seen; of several frames the first. Raises OSError where it cannot be opened, else ValueError."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=FORMATS) as image:
                _check_bits(image)
                return as_seen(image)
        except Exception as error:  # a damaged image makes Pillow raise nearly anything
            file.seek(0)
            raise ValueError(_reason(file.read(64), error)) from error


def resized(image: Image.Image, side: int) -> Image.Image:
    """The whole image in a square, by bilinear interpolation."""
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


def as_seen(image: Image.Image) -> Image.Image:
    """An image in 8-bit RGB: its colours in sRGB where a profile describes them, on white, turned as its notes say."""
    scale = _SCALED.get(str(tile[0][3])) if (tile := getattr(image, "tile", None)) else None
    image.load()
    clear = image.info.get("transparency")
    if scale and clear is not None:
        scaled = tuple(int(value * scale) for value in (clear if isinstance(clear, tuple) else (clear,)))
        image.info["transparency"] = scaled if isinstance(clear, tuple) else scaled[0]
    shown, alpha = _in_8_bits(image) if image.mode[0] in "IF" else image, None
    if shown.has_transparency_data:
        whole = shown.convert("RGBA")
        alpha, shown = whole.getchannel("A"), shown.convert("L") if shown.mode in ("1", "L", "LA") else whole
    shown = _in_srgb(shown, image.info.get("icc_profile"))
    if alpha is not None:
        shown.putalpha(alpha)
        shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    try:
        turn = _TURNS.get(_orientation(image))
    except Exception:  # a damaged note turns nothing
        turn = None
    return shown if turn is None else shown.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    found = image.getexif().get(0x0112)  # from XMP, too, where that is written as Adobe does
    if found is None and (note := image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")):
        text = note if isinstance(note, str) else note.decode("latin-1")
        found = int(match[1]) if (match := re.search(r"tiff:Orientation\s*=\s*['\"]([1-8])['\"]", text)) else None
    return found


def _check_bits(image: Image.Image) -> None:
    """Raise ValueError where Pillow would read samples of more than 8 bits as something else."""
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(284) == 2 and tags.get(259) == 1 and tags[258][0] > 8:
        raise ValueError("its samples of more than 8 bits lie plane by plane; save it with compression, or by pixels")
    if image.format == "JPEG2000" and image.mode != "I;16":
        file: Any = getattr(image, "fp")  # noqa: B009 - Pillow's types do not know it
        file.seek(0)
        content = file.read()
        if content[content.index(b"\xff\x4f\xff\x51") + 42] & 127 > 7:  # the first component's bits, less 1
            raise ValueError("its JPEG 2000 colours of more than 8 bits are not read; save it as PNG or TIFF")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey of more bits in L, or LA: the upper 8 of 12 or 16 bits, floats from 0 to 1 times 255, others as they are."""
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    if image.mode == "F":
        if not all(0 <= value <= 1 for value in memoryview(image.tobytes()).cast("f")):
            raise ValueError("its floats (mode F) are not all from 0 to 1; save it in 8 or 16 bits")
        shown = image.point(lambda value: value * 255 + 0.5).convert("L")
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):
        shown = image.convert("L")
        if shown.convert("I").tobytes() != image.tobytes():
            raise ValueError("its whole numbers (mode I) are not all from 0 to 255; save it in 8 or 16 bits")
    else:
        scale = 2.0 ** (8 - tags.get(258, (16,))[0])
        shown = image.convert("I").point(lambda value: value * scale).convert("L")
    if tags.get(262) == 0:  # white is zero, which Pillow minds in 8 bits only
        shown = ImageOps.invert(shown)
    if (clear := shown.info.pop("transparency", None)) is not None:
        values = memoryview(image.convert("I").tobytes()).cast("i")
        shown.putalpha(Image.frombytes("L", image.size, bytes(255 * (value != clear) for value in values)))
    return shown


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Grey, CMYK or RGB as RGB; a profile that is broken, or of another kind of colours, is passed over."""
    image = image if image.mode in ("L", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")
    converter = _converter(profile, image.mode) if profile else None
    return image.convert("RGB") if converter is None else converter.apply(image)


@lru_cache(maxsize=8)
def _converter(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB's; None where they are the same but for rounding, whatever its name says."""
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converter = ImageCms.buildTransform(described, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    across = Image.linear_gradient("L")
    probe = Image.merge("RGB", (across, across.rotate(90), Image.radial_gradient("L")))
    probe = probe if mode == "RGB" else across if mode == "L" else probe.convert(mode)
    difference = ImageChops.difference(converter.apply(probe), probe.convert("RGB"))
    return None if max(difference.tobytes()) <= 4 else converter


def _reason(head: bytes, error: Exception) -> str:
    """Why a file that begins so cannot be read."""
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; `git lfs pull` fetches the image"
    if isinstance(error, UnidentifiedImageError):
        if head[4:11] == b"ftyphei":
            return "a HEIC image, which Pillow does not read"
        if (start := head.lstrip())[:1] == b"<":
            drawn = start.startswith((b"<svg", b"<?xml"))
            return "a drawing in SVG, which Pillow does not read" if drawn else "a web page, not an image"
        return "not an image that Pillow reads"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels; make it smaller"
    said = (str(error) or type(error).__name__).splitlines()[0]
    return said if said.startswith("its ") else f"cut short or damaged: {said}"
