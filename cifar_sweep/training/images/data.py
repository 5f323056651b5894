"""CIFAR-10 as uint8 tensors, decoded once into a cache that every later process maps into memory in milliseconds."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from cifar_sweep.errors import DiskError
from cifar_sweep.files import default_cache
from cifar_sweep.training.images import sources
from cifar_sweep.training.images.sources import SIDE, Decoded, Pixels, Progress
from cifar_sweep.training.images.split import split

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
Triple = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True, eq=False)
class ImageData:
    """A dataset, decoded; the images are memory-mapped from the cache, private to this process.

    Attributes:
        name: what to call it in front of people; synthetic images are always called synthetic.
        classes: the class names, by label.
        train_images: uint8 [n, 32, 32, 3], contiguous; training and validation part together.
        train_labels: int64 [n].
        test_images: uint8 [m, 32, 32, 3].
        test_labels: int64 [m].
        fingerprint: 16 hex digits over pixels, labels and class names; not over file names, formats or times.
        channel_mean: mean of red, green, blue over the training part (see `split`), pixels in [0, 1].
        channel_std: standard deviation likewise.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    fingerprint: str
    channel_mean: Triple
    channel_std: Triple


def load(source: str = "auto", *, cache: Path | None = None, on_progress: Progress | None = None) -> ImageData:
    """Load a dataset, from the cache where it has been decoded before.

    Args:
        source: ``auto`` (CIFAR-10 under ``data/`` in the current directory, downloaded when it is not there), a
            folder (torchvision's, or an image folder ``{train,test}/<class>/*``), ``synthetic`` (50,000 + 10,000
            images) or ``synthetic:N`` (N training and N/5 test images).
        cache: the cache folder; `default_cache` when None.
        on_progress: called with a sentence when something slow starts.

    Raises:
        DataError: the source is missing, incomplete, corrupt, or cannot be downloaded.
        UsageError: the source is malformed.
        DiskError: the cache or the download cannot be written.
    """
    cache = default_cache() if cache is None else cache
    progress = on_progress or (lambda _: None)
    if source == "auto" and not sources.is_complete():
        with _locked(cache, "download"):
            if not sources.is_complete():
                sources.download(progress)
    found = sources.locate(source)
    entry = cache / f"data-{_digest(found.signature.encode(errors='surrogateescape'))}"
    data = _read_entry(entry)
    if data is not None:
        return data
    with _locked(cache, entry.name):
        data = _read_entry(entry)
        if data is None:
            _write_entry(entry, found.read(progress), source=source)
            data = _read_entry(entry)
    if data is None:
        raise DiskError("The data cache does not read back as it was written; CIFAR_SWEEP_CACHE can name another disk.")
    return data


def find_on_disk() -> str | None:
    """The source that ``auto`` uses without a download, or None where it would download."""
    return sources.DOWNLOAD_ROOT if sources.is_complete() else None


def _digest(*chunks: Any) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()[:16]


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"The data cache cannot be written: {error.strerror or error}; it takes about 190 MB for CIFAR-10, in a "
            "folder that CIFAR_SWEEP_CACHE can name."
        ) from error


@contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    with _writing():
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f"{name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read_entry(entry: Path) -> ImageData | None:
    """The entry, mapped into memory; None when it is absent or damaged. Reads headers and sizes, not pixels."""
    try:
        meta: dict[str, Any] = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: _map_array(entry / f"{name}.npy") for name in _ARRAYS}
        if not all(_fit(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")):
            return None
        del meta["source"]
        meta |= {"classes": tuple(meta["classes"])}
        meta |= {name: _triple(*meta[name]) for name in ("channel_mean", "channel_std")}
        return ImageData(**meta | {name: torch.from_numpy(array) for name, array in arrays.items()})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _fit(images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> bool:
    types_fit = images.dtype == np.uint8 and labels.dtype == np.int64
    return types_fit and images.shape == (len(labels), SIDE, SIDE, 3) and labels.ndim == 1


def _triple(red: float, green: float, blue: float) -> Triple:
    return red, green, blue


def _map_array(path: Path) -> npt.NDArray[Any]:
    # "c" is copy-on-write: torch wants writable memory, and the file must never change under another process.
    array: Any = np.lib.format.open_memmap(path, mode="c")
    if array.offset + array.nbytes != path.stat().st_size:
        raise ValueError("the file has another length than its header says")
    return np.asarray(array)


def _write_entry(entry: Path, decoded: Decoded, *, source: str) -> None:
    """Write the entry beside its place and rename it there, so that it is whole or absent."""
    meta = _describe(decoded) | {"source": source}
    with _writing():
        for left_over in entry.parent.glob(f"{entry.name}.tmp*"):
            shutil.rmtree(left_over, ignore_errors=True)
        beside = entry.with_name(f"{entry.name}.tmp")
        try:
            beside.mkdir()
            for name in _ARRAYS:
                with _synced(beside / f"{name}.npy") as file:
                    np.save(file, getattr(decoded, name))
            with _synced(beside / "meta.json") as file:
                file.write(json.dumps(meta, indent=1).encode())
            shutil.rmtree(entry, ignore_errors=True)
            os.rename(beside, entry)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _describe(decoded: Decoded) -> dict[str, Any]:
    """What `ImageData` has besides the arrays."""
    arrays = [getattr(decoded, name) for name in _ARRAYS]
    header = json.dumps([decoded.classes, *(array.shape for array in arrays)])
    train_index, _ = split(torch.from_numpy(decoded.train_labels))
    mean, std = _channel_statistics(decoded.train_images[train_index.numpy()])
    fingerprint = _digest(header.encode(), *arrays)
    named = {"name": decoded.name, "classes": decoded.classes, "fingerprint": fingerprint}
    return named | {"channel_mean": mean, "channel_std": std}


def _channel_statistics(images: Pixels) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels in [0, 1]. Counted, so exact and equal on every machine."""
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(3):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        centre = float(counts @ values / counts.sum())
        mean.append(centre)
        std.append(float(np.sqrt(counts @ (values - centre) ** 2 / counts.sum())))
    return mean, std
