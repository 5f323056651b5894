"""Where images come from: torchvision's CIFAR-10, image folders, and our own drawings."""

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_sweep.config import derive_seed
from cifar_sweep.errors import DataError, DiskError, UsageError
from cifar_sweep.training.images import synthetic

Progress = Callable[[str], None]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
SIDE = 32
FORMAT = 1  # of a cache entry; part of every signature
TORCHVISION_FOLDER = "cifar-10-batches-py"
DOWNLOAD_ROOT = "data"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_MIN_SYNTHETIC, _MAX_SYNTHETIC = 100, 1_000_000
_ACCEPTED = (
    f"torchvision's folder ({TORCHVISION_FOLDER}) or an image folder ({{train,test}}/<class>/*, images of "
    f"{SIDE}x{SIDE} as {', '.join(suffix[1:] for suffix in _IMAGE_SUFFIXES)})"
)


@dataclass(frozen=True, eq=False)
class Decoded:
    name: str
    classes: tuple[str, ...]
    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from."""

    signature: str  # changes when it may have changed
    read: Callable[[Progress], Decoded]  # the slow way; it says in a sentence what it does


def locate(source: str) -> Source:
    """Find a source, as `images.data.load` takes it, without reading its pixels. Raises as that does."""
    if source == "auto":
        return _torchvision_source(Path(DOWNLOAD_ROOT), source)
    if source == "synthetic" or source.startswith("synthetic:"):
        return _synthetic_source(source)
    if not source:
        raise UsageError(f"The name of the data is empty; accepted are auto, synthetic, synthetic:N, or {_ACCEPTED}.")
    path = Path(os.path.expanduser(source))
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"The data {source!r} {what}; accepted are auto, synthetic, synthetic:N, or {_ACCEPTED}.")
    if path.absolute().name == TORCHVISION_FOLDER:
        return _torchvision_source(path.absolute().parent, source)
    return (_torchvision_source if (path / TORCHVISION_FOLDER).is_dir() else _folder_source)(path, source)


def _synthetic_source(source: str) -> Source:
    digits = "50000" if source == "synthetic" else source.removeprefix("synthetic:")
    count = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
    if not _MIN_SYNTHETIC <= count <= _MAX_SYNTHETIC:
        raise UsageError(
            f"The data {source!r} is not accepted; synthetic:N takes a whole number of training images from "
            f"{_MIN_SYNTHETIC} to {_MAX_SYNTHETIC}, and synthetic alone is 50000."
        )

    def read(progress: Progress) -> Decoded:
        progress(f"drawing {count + count // 5:,} synthetic images (once)")
        train = synthetic.draw(count, seed=derive_seed("train"))
        test = synthetic.draw(count // 5, seed=derive_seed("test"))
        name = f"synthetic images ({count:,} + {count // 5:,})"
        return Decoded(name, synthetic.CLASSES, *train, *test)

    return Source(f"{FORMAT} synthetic {count} version {synthetic.VERSION}", read)


def _torchvision_source(root: Path, source: str) -> Source:
    def read(progress: Progress) -> Decoded:
        progress("reading CIFAR-10 (once)")
        try:
            parts = [_cifar10(root, train=train) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"CIFAR-10 in {source!r} is incomplete or corrupt (a file in {TORCHVISION_FOLDER} is missing, or its "
                "MD5 sum is wrong); delete that folder and download or unpack it again."
            ) from error
        train, test = ((np.ascontiguousarray(part.data), np.asarray(part.targets, dtype=np.int64)) for part in parts)
        return Decoded("CIFAR-10", tuple(parts[0].classes), *train, *test)

    files = _scan(root / TORCHVISION_FOLDER)
    return Source(f"{FORMAT} torchvision {root.resolve()}\n" + "\n".join(map(str, files)), read)


def _cifar10(root: Path, **options: bool) -> Any:
    from torchvision.datasets import CIFAR10  # type: ignore[import-untyped, unused-ignore]

    with warnings.catch_warnings():
        # The published batches were pickled by an old NumPy; newer ones warn when they read them.
        warnings.simplefilter("ignore")
        return CIFAR10(str(root), **options)


def is_complete() -> bool:
    """Whether ``auto`` finds its files by name; whether they are whole is checked once, when they are read."""
    folder = Path(DOWNLOAD_ROOT) / TORCHVISION_FOLDER
    names = ("batches.meta", *(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    return all((folder / name).is_file() for name in names)


def download(progress: Progress) -> None:
    root = Path(DOWNLOAD_ROOT)
    before = [path for path in (root, root / TORCHVISION_FOLDER) if path.exists()]
    progress("downloading CIFAR-10 (170 MB, once)")
    try:
        _cifar10(root, download=True)
    except BaseException as error:
        _remove_partial_download(root, keep=before)
        if isinstance(error, (OSError, RuntimeError)):
            raise _download_error(error) from error
        raise


def _remove_partial_download(root: Path, *, keep: list[Path]) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity  # type: ignore[import-untyped, unused-ignore]

    archive = root / CIFAR10.filename
    if not check_integrity(archive, CIFAR10.tgz_md5):
        archive.unlink(missing_ok=True)
    if root / TORCHVISION_FOLDER not in keep:
        shutil.rmtree(root / TORCHVISION_FOLDER, ignore_errors=True)
    if root not in keep and root.is_dir() and not any(root.iterdir()):
        root.rmdir()


def _download_error(error: Exception) -> DataError | DiskError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return DiskError(f"CIFAR-10 cannot be written to {DOWNLOAD_ROOT}/: {error.strerror}; it takes 360 MB there.")
    return DataError(
        f"CIFAR-10 is not in {DOWNLOAD_ROOT}/ and could not be downloaded ({error}); run once where there is a "
        f"network, or put the folder {TORCHVISION_FOLDER} of CIFAR-10's python version into {DOWNLOAD_ROOT}/ or "
        f"name a folder with --data FOLDER or CIFAR_SWEEP_DATA: {_ACCEPTED}; or train on drawn images with "
        "--data synthetic."
    )


_File = tuple[str, int, int]  # name, bytes, mtime in nanoseconds
_Part = dict[str, list[_File]]  # class name -> its image files


def _folder_source(root: Path, source: str) -> Source:
    parts = _scan_image_folder(root, source)

    def read(progress: Progress) -> Decoded:
        count = sum(len(files) for part in parts.values() for files in part.values())
        progress(f"decoding {count:,} images (once)")
        train, test = (_decode_part(root / name, part) for name, part in parts.items())
        return Decoded(f"image folder {root.resolve().name}", tuple(parts["train"]), *train, *test)

    lines = [f"{FORMAT} folder {root.resolve()}"]
    for name, part in parts.items():
        lines += [f"{name}/{class_name}/{file}" for class_name, files in part.items() for file in files]
    return Source("\n".join(lines), read)


def _scan_image_folder(root: Path, source: str) -> dict[str, _Part]:
    """The files of ``train`` and ``test`` by class, sorted; a few hundred thousand files a second."""
    match [name for name in ("train", "test") if (root / name).is_dir()]:
        case []:
            raise DataError(f"The data folder {source!r} has neither layout that is accepted: {_ACCEPTED}.")
        case [one]:
            missing = "test" if one == "train" else "train"
            raise DataError(f"The data folder {source!r} has {one}/ but no {missing}/; accepted is {_ACCEPTED}.")
    parts: dict[str, _Part] = {"train": {}, "test": {}}
    for name, part in parts.items():
        with _reading(root / name) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        part.update({each: _scan(root / name / each, suffixes=_IMAGE_SUFFIXES) for each in classes})
    _check_classes(parts, source)
    return parts


def _scan(folder: Path, *, suffixes: str | tuple[str, ...] = "") -> list[_File]:
    """Files that are not hidden and end so, sorted."""
    with _reading(folder) as entries:
        files = (entry for entry in entries if entry.is_file() and not entry.name.startswith("."))
        stats = ((entry.name, entry.stat()) for entry in files if entry.name.lower().endswith(suffixes))
        return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@contextmanager
def _reading(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        what = f"The data's folder {folder.name} cannot be read ({error.strerror}); it must be readable."
        raise DataError(what) from error


def _check_classes(parts: dict[str, _Part], source: str) -> None:
    train, test = parts["train"], parts["test"]
    if len(train) < 2:
        raise DataError(f"train/ of the data folder {source!r} has {len(train)} class folders; it takes 2 or more.")
    if train.keys() != test.keys():
        differing = ", ".join(sorted(train.keys() ^ test.keys()))
        raise DataError(
            f"The classes of train/ and test/ differ in the data folder {source!r} in {differing}; "
            "both must have the same class folders."
        )
    for part, least in (("train", 2), ("test", 1)):
        if few := next((name for name, files in parts[part].items() if len(files) < least), None):
            many = len(parts[part][few])
            raise DataError(f"{part}/{few} of the data folder {source!r} has {many} images; it takes {least} or more.")


def _decode_part(folder: Path, part: _Part) -> tuple[Pixels, Labels]:
    """Decode one image after the other: for images this small two threads were slower (docs/LOG.md, 2026-11-22)."""
    sizes = [len(files) for files in part.values()]
    pixels = np.empty((sum(sizes), SIDE, SIDE, 3), dtype=np.uint8)
    names = (f"{name}/{file[0]}" for name, files in part.items() for file in files)
    for row, name in zip(pixels, names, strict=True):
        row[:] = _decode(folder / name, where=f"{folder.name}/{name}")
    return pixels, np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


def _decode(path: Path, *, where: str) -> Pixels:
    from PIL import Image

    try:
        with open(path, "rb") as file, Image.open(file, formats=_IMAGE_FORMATS) as image:
            size = image.size
            if size == (SIDE, SIDE):
                return np.asarray(image.convert("RGB"))
    except Exception as error:  # a damaged image makes Pillow raise nearly anything
        raise DataError(f"The image {where} is corrupt or unreadable; replace or remove it.") from error
    raise DataError(f"The image {where} is {size[0]}x{size[1]} pixels; {SIDE}x{SIDE} is accepted.")
