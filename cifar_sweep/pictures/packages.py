"""Images that are no class folders: NumPy's arrays, CIFAR's binary version, Kaggle's labels; and what is not read."""

import csv
import shlex
import sys
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from cifar_sweep.errors import DataError, one_line
from cifar_sweep.pictures.folder import Part, Passed, files_source, image_files, reading, set_aside
from cifar_sweep.pictures.source import Decoded, Labels, Pixels, Source, Square, rules

_LABEL_FILES = ("trainLabels.csv", "labels.csv", "train.csv")
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z")
# What arrays are called, in small letters: of each part those with the images, and those with the labels.
_ARRAYS = {
    "train": (("x_train", "train_images", "train_x", "train_data"), ("y_train", "train_labels", "train_y")),
    "validation": (("x_val", "x_valid", "val_images", "val_x"), ("y_val", "y_valid", "val_labels", "val_y")),
    "test": (("x_test", "test_images", "test_x", "test_data"), ("y_test", "test_labels", "test_y")),
}
# Training files, test file, names of the classes, and how many bytes stand before the pixels; the last is the label.
_BINARY = {
    "cifar-10-batches-bin": ("data_batch_*.bin", "test_batch.bin", "batches.meta.txt", 1),
    "cifar-100-binary": ("train.bin", "test.bin", "fine_label_names.txt", 2),
}
_PYTHON = shlex.quote(sys.executable)  # a shell may know it by another name, or not at all
_FROM_PARQUET = (
    "\"import pathlib as p, pandas as d; [((c := p.Path('images', f.stem.split('-')[0], str(r.iloc[1])))"
    ".mkdir(parents=True, exist_ok=True), (c / f'{f.stem}-{i}.png').write_bytes(r.iloc[0]['bytes'])) "
    "for f in p.Path(%r).rglob('*.parquet') for i, r in d.read_parquet(f).iterrows()]\""
)


def package_source(path: Path, source: str, *, side: int) -> Source | None:
    """The images at a file or folder that is one of these packages; None for a folder of another kind.

    Raises DataError where the package is not read as it is, with the command that makes it readable.
    """
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return _arrays_source([path], path, side=side)
        _refuse_unread(path.parent, source, [path.name])
        raise DataError(
            f"The data {source!r} is not a folder; of files only those of NumPy that end with .npz are read."
        )
    with reading(path) as entries:
        names = sorted(entry.name for entry in entries)
    own = path.absolute().name
    for folder in _BINARY:
        if own == folder or folder in names:
            return _binary_source(path if own == folder else path / folder, *_BINARY[folder], side=side)
    if labels := next((name for name in _LABEL_FILES if name in names), None):
        return _kaggle_source(path, labels, source, side=side)
    if arrays := [path / name for name in names if name.lower().endswith(".npy")]:
        return _arrays_source(arrays, path, side=side)
    if not any(name.lower() in ("train", "training", "test") for name in names):
        _refuse_unread(path, source, names)
    return None


def _refuse_unread(folder: Path, source: str, names: list[str]) -> None:
    """Raise DataError where one of these is an archive or a table of images, with a command."""
    for name in names:
        path = folder / name
        if name.lower().endswith(_ARCHIVES):
            tar = f"mkdir images && tar -xf '{path}' -C images"
            command = {".zip": f"{_PYTHON} -m zipfile -e '{path}' images", ".7z": f"7z x -oimages '{path}'"}.get(
                path.suffix, tar
            )
            raise DataError(f"The data {source!r} is packed; unpack it, and name the folder that it holds: {command}")
        if name.lower().endswith(".npz"):
            raise DataError(f"The data {source!r} is a folder with arrays of NumPy; name the file: --data '{path}'")
        if name.lower().endswith(".parquet") or (path.is_dir() and any(path.glob("*.parquet"))):
            command = f"{_PYTHON} -m pip install pyarrow && {_PYTHON} -c {_FROM_PARQUET % str(folder)}"
            raise DataError(f"The data {source!r} is a table in parquet; this makes an image folder of it: {command}")


def _signature(files: list[Path], side: int) -> str:
    try:
        return f"{rules()}, {side}, {[(str(f.resolve()), (s := f.stat()).st_size, s.st_mtime_ns) for f in files]}"
    except OSError as error:
        raise DataError(f"The data's file {error.filename} cannot be read ({error.strerror}).") from None


def _arrays_source(files: list[Path], path: Path, *, side: int) -> Source:
    """Arrays by name: those in a file of NumPy's, or those that have a file each."""

    def read() -> Decoded:
        named: dict[str, Any] = {}
        try:
            for file in files:
                with open(file, "rb") as opened:
                    loaded = np.load(opened, allow_pickle=False)
                    whole = {name.lower(): loaded[name] for name in loaded.files} if file == path else {}
                    named |= whole or {file.stem.lower(): loaded}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"The arrays in {path} cannot be read: {one_line(error)}.") from None
        return _of_named_arrays(named, path, side)

    return Source(_signature(files, side), f"reading {path.name}", read)


def _of_named_arrays(named: dict[str, Any], path: Path, side: int) -> Decoded:
    parts: dict[str, tuple[Any, Any]] = {}
    for part, names in _ARRAYS.items():
        images, labels = (next((named[name] for name in among if name in named), None) for among in names)
        if images is not None and labels is not None:
            parts[part] = images, labels
        elif part != "validation":
            there = ", ".join(named) or "none"
            raise DataError(
                f"{path} has the arrays {there}; accepted are x_train, y_train, x_test, y_test, and x_val with y_val."
            )
    labels = {part: _labels(*pair, where=f"{path}: y_{part}") for part, pair in parts.items()}
    values = np.unique(np.concatenate(list(labels.values())))
    numbered = {
        part: (images, np.searchsorted(values, labels[part]).astype(np.int64)) for part, (images, _) in parts.items()
    }
    classes = [normalize("NFC", str(value)) for value in values]
    return of_arrays(path.name, classes, numbered, side=side, where=f"{path}: x_")


def _labels(images: Any, labels: Any, *, where: str) -> Any:
    """Whole numbers or texts, one for each image."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iuU":
        found = f"{labels.dtype} {list(labels.shape)} for {images.shape[0] if images.ndim else 0} images"
        raise DataError(f"{where} is {found}; accepted is a whole number or a text for each image.")
    return labels


def of_arrays(
    name: str, classes: Sequence[str], parts: Mapping[str, tuple[Any, Labels]], *, side: int, where: str = ""
) -> Decoded:
    """A dataset of images, as `_pixels` takes them, and labels by part. What is refused is called `where` and part."""
    square = Square(side)
    decoded = {
        part: (_pixels(images, square, where=f"{where}{part}"), labels) for part, (images, labels) in parts.items()
    }
    return Decoded.of_parts(name, classes, decoded, notes=square.words())


def _pixels(images: Any, square: Square, *, where: str) -> Pixels:
    """uint8 [n, side, side, 3] of images [n, h, w], [n, h, w, c] or [n, c, h, w], c being 1 (grey), 3, 4 (with alpha).

    They are uint8, or floats from 0 to 1. Grey becomes three equal channels. Raises DataError.
    """
    from PIL import Image

    from cifar_sweep.pictures.decode import as_seen

    channels = (1, 3, 4)
    if images.ndim == 4 and images.shape[1] in channels and images.shape[3] not in channels:
        images = images.transpose(0, 2, 3, 1)
    if images.dtype.kind == "f" and images.size and 0 <= images.min() <= images.max() <= 1:
        images = (images * 255 + 0.5).astype(np.uint8)
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in channels)):
        raise DataError(
            f"{where} is {images.dtype} {list(images.shape)}; accepted are images [n, height, width], or with 1, 3 "
            "or 4 channels, as uint8 or as floats from 0 to 1."
        )
    if images.shape[1:] == (square.side, square.side, 3):
        square.sizes[square.side, square.side] += len(images)
        return np.ascontiguousarray(images)
    flat = images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
    shown = (square.pixels(as_seen(Image.fromarray(image))) for image in np.ascontiguousarray(flat))
    return np.stack(list(shown)) if len(flat) else np.empty((0, square.side, square.side, 3), np.uint8)


def _binary_source(folder: Path, train: str, test: str, meta: str, before: int, *, side: int) -> Source:
    files = {"train": sorted(folder.glob(train)), "test": [folder / test]}
    names = folder / meta

    def part(paths: list[Path]) -> tuple[Pixels, Labels]:
        content = np.frombuffer(b"".join(path.read_bytes() for path in paths), np.uint8)
        if content.size % (before + 3072):
            raise DataError(f"{folder}: a file of CIFAR's binary version is cut short; unpack it again.")
        rows = content.reshape(-1, before + 3072)
        return rows[:, before:].reshape(-1, 3, 32, 32), rows[:, before - 1].astype(np.int64)

    def read() -> Decoded:
        parts = {name: part(paths) for name, paths in files.items()}
        count = 1 + max((int(labels.max(initial=0)) for _, labels in parts.values()), default=0)
        known = names.read_text(encoding="utf-8").split() if names.is_file() else []
        classes = known if len(known) >= count else [str(label) for label in range(count)]
        return of_arrays(folder.name, classes, parts, side=side)

    return Source(_signature([*files["train"], *files["test"]], side), f"reading {folder.name}", read)


def _kaggle_source(root: Path, labels: str, source: str, *, side: int) -> Source:
    """Images of a folder train/, with a table of their names and labels. A fifth of each class becomes the test set."""
    try:
        with open(root / labels, encoding="utf-8-sig", newline="") as file:
            rows = [row[:2] for row in csv.reader(file) if len(row) > 1][1:]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The labels {labels} of the data {source!r} cannot be read: {one_line(error)}.") from None
    if not (root / "train").is_dir():
        raise DataError(f"The data {source!r} has {labels} but no folder train/; unpack it: 7z x train.7z")
    passed: Passed = defaultdict(list)
    there = {image[0].removeprefix("train/"): image for image in image_files(root, "train/", passed)}
    by_stem = {name.rpartition(".")[0]: image for name, image in there.items()}
    by_class: Part = defaultdict(list)
    labelled = set()
    for name, label in rows:
        image = there.get(name) or by_stem.get(name)
        if image is None:
            passed["missing"].append(name)
        else:
            by_class[normalize("NFC", label.strip())].append(image)
            labelled.add(image)
    passed["unlabelled"] += [image[0] for image in there.values() if image not in labelled]
    if (root / "test").is_dir():
        passed["unlabelled"] += [image[0] for image in image_files(root, "test/", passed)]
    parts = set_aside({name: by_class[name] for name in sorted(by_class)})
    note = f"{labels} labels {len(labelled):,} images of train/: a fifth of each class is the test set"
    return files_source(root, parts, passed, name=f"{root.resolve().name} ({labels})", side=side, notes=[note])
