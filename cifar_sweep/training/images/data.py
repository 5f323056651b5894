"""Images as uint8 tensors, decoded once into a cache that every later process maps into memory in milliseconds."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cifar_sweep.errors import DataError, DiskError
from cifar_sweep.files import default_cache, replace_file
from cifar_sweep.pictures.source import Decoded, Pixels
from cifar_sweep.training.images import sources
from cifar_sweep.training.images.split import split

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
Triple = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True, eq=False)
class ImageData:
    """A dataset, decoded; the images are memory-mapped from the cache, private to this process."""

    name: str  # what to call it in front of people; synthetic images are always called synthetic
    classes: tuple[str, ...]  # their names, by label
    train_images: Tensor  # uint8 [n, side, side, 3], contiguous; training and validation part together
    train_labels: Tensor  # int64 [n]
    test_images: Tensor  # uint8 [m, side, side, 3]
    test_labels: Tensor  # int64 [m]
    fingerprint: str  # 16 hex digits over pixels, labels and class names; not over file names, formats or times
    channel_mean: Triple  # over the training part (see `split`), pixels in [0, 1]
    channel_std: Triple  # standard deviation likewise
    validation: int = 0  # the last so many of the training images are a validation part of the user's own
    notes: tuple[str, ...] = ()  # sentences on what was passed over, resized or set aside
    damaged: tuple[str, ...] = ()  # images that could not be read, with reasons

    @property
    def counted(self) -> str:
        """How many images and classes there are, in words."""
        training, test = len(self.train_labels) - self.validation, len(self.test_labels)
        own = f" + {self.validation:,} (validation)" if self.validation else ""
        return f"{self.name}: {training:,}{own} + {test:,} images, {len(self.classes)} classes"

    def divide(self, *, validation_images: int = 0) -> tuple[Tensor, Tensor]:
        """The indices of the training and of the validation part, as `split` gives them. UsageError as there."""
        return split(self.train_labels, validation_images=validation_images, given=self.validation)


def load(
    source: str = "auto",
    *,
    on_progress: Callable[[str], None] | None = None,
    side: int = sources.SIDE,
    skip_damaged: bool = False,
    may_download: bool = True,
) -> ImageData:
    """Load a dataset, from the cache where it has been decoded before.

    `source` is ``auto`` (CIFAR-10 under ``data/`` in the current directory, downloaded when it is not there), one of
    `sources.NAMED` likewise, a folder or a file (docs/own.md), ``synthetic`` (50,000 + 10,000 images) or
    ``synthetic:N`` (N training and N/5 test images). `on_progress` is called with a sentence when something slow
    starts. Images become `side` pixels wide and high. With `skip_damaged` files that cannot be read are left out.
    Raises DataError if the source is missing, incomplete, damaged, or cannot be downloaded; UsageError if it is
    malformed; DiskError if nothing can be written.
    """
    progress = on_progress or (lambda _: None)
    cache = default_cache()
    downloads = cache / "downloads"
    found = sources.locate(source, side=side, downloads=downloads)
    if found is None:
        if not may_download:
            why = f"The data {source!r} is not on this disk; --data {source} downloads it, --data names others."
            raise DataError(why)
        with _locked(cache, "download"):
            if sources.locate(source, side=side, downloads=downloads) is None:
                sources.download(source, downloads, progress)
        found = sources.locate(source, side=side, downloads=downloads)
    assert found is not None
    entry = cache / f"data-{_digest(found.signature.encode(errors='surrogateescape'))}.safetensors"
    if (data := _read_entry(entry)) is None:
        with _locked(cache, entry.stem):
            if (data := _read_entry(entry)) is None:
                progress(f"{found.doing} (once)")
                decoded = found.read()
                _check_damaged(decoded.damaged, skip_damaged)
                decoded.check()
                _write_entry(entry, decoded, source=source)
                data = _read_entry(entry)
    if data is None:
        raise DiskError("The data cache does not read back as it was written; CIFAR_SWEEP_CACHE can name another disk.")
    _check_damaged(data.damaged, skip_damaged)
    skipped = (f"skipped: {_few(data.damaged)}",) if data.damaged else ()
    return replace(data, notes=(*found.notes, *data.notes, *skipped))


def load_again(named: str | None, was: str, fingerprint: str, **how: Any) -> ImageData:
    """Images that were loaded before: those `named`, else from where they `was`, else where CIFAR_SWEEP_DATA says.

    Whether they have this `fingerprint` is for the caller to check. Raises as `load` does, which takes the rest.
    """
    elsewhere = os.environ.get("CIFAR_SWEEP_DATA")
    if named or elsewhere in (None, was):
        return load(named or was, **how)
    assert elsewhere is not None
    try:
        found = load(was, **how | {"may_download": False})
    except DataError:
        return load(elsewhere, **how)
    return found if found.fingerprint == fingerprint else load(elsewhere, **how)


def _check_damaged(damaged: Sequence[str], skip: bool) -> None:
    if damaged and not skip:
        raise DataError(f"The data has {_few(damaged)}. Replace or remove them; --skip-damaged goes on without them.")


def _few(damaged: Sequence[str]) -> str:
    more = f"; and {len(damaged) - 10:,} more" if len(damaged) > 10 else ""
    images = "image" if len(damaged) == 1 else "images"
    return f"{len(damaged):,} {images} that cannot be used: {'; '.join(damaged[:10])}{more}"


def find_on_disk(source: str = "auto") -> str | None:
    """The source, where it is on this disk; None where it would be downloaded."""
    found = sources.locate(source, side=sources.SIDE, downloads=default_cache() / "downloads")
    return None if found is None else source


def find_decoded(fingerprint: str) -> ImageData | None:
    """The images of this fingerprint, where the cache has them from any source."""
    entries = default_cache().glob("data-*.safetensors")
    return next((data for entry in entries if (data := _read_entry(entry)) and data.fingerprint == fingerprint), None)


def _digest(*chunks: Any) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()[:16]


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, DiskError) as error:
        cause = error.__cause__ or error
        raise DiskError(
            f"The data cache {cache} cannot be written: {getattr(cause, 'strerror', None) or cause}; it takes about "
            "190 MB for CIFAR-10, in a folder that CIFAR_SWEEP_CACHE can name."
        ) from error


@contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f"{name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read_entry(entry: Path) -> ImageData | None:
    """The entry, mapped into memory copy-on-write; None when it is absent or not whole. Does not read the pixels."""
    try:
        with safe_open(entry, framework="pt") as file:
            meta: dict[str, Any] = json.loads(file.metadata()["meta"])
            meta |= {name: tuple(value) for name, value in meta.items() if isinstance(value, list)}
            return ImageData(**meta | {name: file.get_tensor(name) for name in _ARRAYS})
    except (OSError, SafetensorError, ValueError, TypeError, KeyError):
        return None


def _write_entry(entry: Path, decoded: Decoded, *, source: str) -> None:
    arrays = {name: getattr(decoded, name) for name in _ARRAYS}
    own = [decoded.validation] if decoded.validation else []  # else as it was before there could be one
    header = json.dumps([decoded.classes, *(array.shape for array in arrays.values()), *own])
    train_index, _ = split(torch.from_numpy(decoded.train_labels), given=decoded.validation)
    mean, std = _channel_statistics(decoded.train_images[train_index.numpy()])
    meta = {
        "name": decoded.name, "classes": decoded.classes, "channel_mean": mean, "channel_std": std,
        "fingerprint": _digest(header.encode(), *arrays.values()),
        "validation": decoded.validation, "notes": decoded.notes, "damaged": decoded.damaged,
    }  # fmt: skip
    with _writing(entry.parent):
        for left_over in entry.parent.glob(f".{entry.name}.*"):
            left_over.unlink()
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        replace_file(entry, save(tensors, {"meta": json.dumps(meta), "source": source}))


def _channel_statistics(images: Pixels) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels in [0, 1]. Counted, so exact and equal on every machine."""
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(3):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean.append(float(counts @ values / counts.sum()))
        std.append(float(np.sqrt(counts @ (values - mean[-1]) ** 2 / counts.sum())))
    return mean, std
