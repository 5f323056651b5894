"""Where images come from: torchvision's datasets, folders and files of the user's, our own drawings."""

import errno
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cifar_sweep.config import derive_seed
from cifar_sweep.errors import DataError, DiskError, UsageError
from cifar_sweep.pictures.folder import Part, Passed, files_source, folder_source, image_files, reading, set_aside
from cifar_sweep.pictures.packages import of_arrays, package_source
from cifar_sweep.pictures.source import Decoded, Source
from cifar_sweep.training.images import synthetic

SIDE = 32
FORMAT = 1  # of what is not decoded from image files; part of every signature
DATA_FOLDER = "data"
_MIN_SYNTHETIC, _MAX_SYNTHETIC = 100, 1_000_000


@dataclass(frozen=True)
class Named:
    """One of torchvision's datasets."""

    title: str
    kind: str  # its class
    marker: str  # what its root holds
    by_split: bool = False  # whether its parts are called by `split`, not by `train`


NAMED = {
    "cifar10": Named("CIFAR-10", "CIFAR10", "cifar-10-batches-py"),
    "cifar100": Named("CIFAR-100", "CIFAR100", "cifar-100-python"),
    "mnist": Named("MNIST", "MNIST", "MNIST/raw"),
    "fashion_mnist": Named("Fashion-MNIST", "FashionMNIST", "FashionMNIST/raw"),
    "kmnist": Named("KMNIST", "KMNIST", "KMNIST/raw"),
    "svhn": Named("SVHN", "SVHN", "train_32x32.mat", by_split=True),
    "stl10": Named("STL-10", "STL10", "stl10_binary", by_split=True),
    "eurosat": Named("EuroSAT", "EuroSAT", "eurosat/2750"),
}
ACCEPTED = (
    f"auto, {', '.join(NAMED)}, synthetic, synthetic:N, an image folder ({{train,test}}/CLASS/*, with val/ if there is "
    "one), CIFAR's folders, Kaggle's (trainLabels.csv), or arrays of NumPy (.npz)"
)


def locate(source: str, *, side: int, downloads: Path) -> Source | None:
    """Find a source, as `images.data.load` takes it, without reading its pixels; None where it must be downloaded.

    Raises as that does.
    """
    if source == "synthetic" or source.startswith("synthetic:"):
        return _synthetic_source(source, side)
    if not source:
        raise UsageError(f"The name of the data is empty; accepted are {ACCEPTED}.")
    path = Path(os.path.expanduser(source))  # Path's own fails where there is no home
    name = "cifar10" if source == "auto" else source
    if source == "auto" or (name in NAMED and not path.exists()):
        roots = (Path(DATA_FOLDER), downloads / name)
        found = next((root for root in roots if is_there(name, root)), None)
        return None if found is None else _named_source(name, found, source, side)
    if not path.exists():
        raise DataError(f"The data {source!r} does not exist; accepted are {ACCEPTED}.")
    for known, entry in NAMED.items():
        for root in (path, *path.absolute().parents[:2]):
            if root / entry.marker == path.absolute() or (root == path and (path / entry.marker).exists()):
                return _named_source(known, root, source, side)
    return package_source(path, source, side=side) or folder_source(path, source, side=side)


def is_there(name: str, root: Path) -> bool:
    """Whether a dataset is below `root`, by its files' names; whether they are whole is checked when they are read."""
    if name == "cifar10":
        files = ("batches.meta", *(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
        return all((root / NAMED[name].marker / file).is_file() for file in files)
    return (root / NAMED[name].marker).exists()


def _synthetic_source(source: str, side: int) -> Source:
    digits = "50000" if source == "synthetic" else source.removeprefix("synthetic:")
    count = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
    if not _MIN_SYNTHETIC <= count <= _MAX_SYNTHETIC:
        raise UsageError(
            f"The data {source!r} is not accepted; synthetic:N takes a whole number of training images from "
            f"{_MIN_SYNTHETIC} to {_MAX_SYNTHETIC}, and synthetic alone is 50000."
        )

    sizes = {"train": count, "test": count // 5}

    def read() -> Decoded:
        drawn = {part: synthetic.draw(size, seed=derive_seed(part)) for part, size in sizes.items()}
        name = f"synthetic images ({count:,} + {count // 5:,})"
        return of_arrays(name, synthetic.CLASSES, drawn, side=side)

    doing = f"drawing {sum(sizes.values()):,} synthetic images"
    return Source(f"{FORMAT} synthetic {count} version {synthetic.VERSION}{_sized(side)}", doing, read)


def _sized(side: int) -> str:
    return "" if side == SIDE else f", {side}"  # what was cached before there was a choice is served


def _named_source(name: str, root: Path, source: str, side: int) -> Source:
    entry = NAMED[name]
    if name == "eurosat":
        return _eurosat_source(root, side)

    def read() -> Decoded:
        try:
            parts = {part: _torchvision(entry, root, part) for part in ("train", "test")}
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{entry.title} in {source!r}: {root / entry.marker} lacks files, or theirs is not the published "
                "content (by the MD5 sums), and no other is read in this form; images of your own are read as an image "
                "folder {train,test}/CLASS/* or as arrays of NumPy (.npz)."
            ) from error
        arrays = {
            part: (np.asarray(each.data), np.asarray(each.labels if entry.by_split else each.targets, dtype=np.int64))
            for part, each in parts.items()
        }
        classes = getattr(parts["train"], "classes", None) or [str(digit) for digit in range(10)]
        return of_arrays(entry.title, classes, arrays, side=side)

    place = root / entry.marker
    files = [(file.name, (s := file.stat()).st_size, s.st_mtime_ns) for file in _files(place)]
    kind = "torchvision" if name == "cifar10" else name
    signature = f"{FORMAT} {kind} {root.resolve()}{_sized(side)}\n" + "\n".join(map(str, files))
    return Source(signature, f"reading {entry.title}", read)


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    with reading(place) as entries:
        return sorted(Path(each) for each in entries if each.is_file() and not each.name.startswith("."))


def _class(entry: Named) -> Any:
    from torchvision import datasets  # type: ignore[import-untyped, unused-ignore]

    return getattr(datasets, entry.kind)


def _torchvision(entry: Named, root: Path, part: str, **options: bool) -> Any:
    if entry.kind == "SVHN" and find_spec("scipy") is None:
        raise DataError("SVHN is read with SciPy, which is not installed: pip install scipy")
    chosen = {"split": part} if entry.by_split else {} if entry.kind == "EuroSAT" else {"train": part == "train"}
    with warnings.catch_warnings():
        # The published batches were pickled by an old NumPy; newer ones warn when they read them.
        warnings.simplefilter("ignore")
        return _class(entry)(str(root), **chosen, **options)


def _eurosat_source(root: Path, side: int) -> Source:
    """Of the dataset without parts a fifth of each class is the test set."""
    passed: Passed = defaultdict(list)
    files: Part = {}
    for file in image_files(root, f"{NAMED['eurosat'].marker}/", passed):
        files.setdefault(file[0].split("/")[2], []).append(file)
    note = "EuroSAT has no parts: a fifth of each class is the test set"
    return files_source(root, set_aside(files), passed, name="EuroSAT", side=side, notes=[note])


def download(source: str, downloads: Path, progress: Callable[[str], None]) -> None:
    """Download a dataset to a place of its own below `downloads`. Raises DataError or DiskError, and leaves nothing."""
    name = "cifar10" if source == "auto" else source
    entry = NAMED[name]
    progress(f"downloading {entry.title} ({'170 MB, ' if name == 'cifar10' else ''}once)")
    begun = downloads / f".{name}.part"  # is of a download that was killed, if it is there
    shutil.rmtree(begun, ignore_errors=True)
    try:
        begun.mkdir(parents=True)
        archive = Path(DATA_FOLDER) / getattr(_class(entry), "filename", "-")
        if archive.is_file():  # the published one is unpacked without a download
            shutil.copy(archive, begun)
        for part in ("train", "test") if entry.by_split else ("train",):
            _torchvision(entry, begun, part, download=True)
        shutil.rmtree(downloads / name, ignore_errors=True)
        begun.replace(downloads / name)
    except (OSError, RuntimeError) as error:
        raise _download_error(entry, downloads, error) from error
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def _download_error(entry: Named, downloads: Path, error: Exception) -> DataError | DiskError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return DiskError(f"{entry.title} cannot be written to {downloads}: {error.strerror}.")
    there = Path(DATA_FOLDER) / entry.marker
    found = f" ({there} is there, but lacks some of its files)" if there.exists() else ""
    return DataError(
        f"{entry.title} is not in {DATA_FOLDER}/{found} and could not be downloaded ({error}); run once where there is "
        f"a network, or put {entry.marker} as torchvision has it into {DATA_FOLDER}/, or name other data with --data "
        f"FOLDER or CIFAR_SWEEP_DATA: {ACCEPTED}; or train on drawn images with --data synthetic."
    )
