"""CIFAR-10 as uint8 tensors: sources, the split, the memory-mapped cache, and batches.

A source is read and decoded once; its pixels then lie in the cache as plain arrays, which every later process maps
into memory in milliseconds. Batches are gathered from the resident uint8 images, on the device where one trains.
"""

import errno
import hashlib
import heapq
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from cifar_sweep.config import derive_seed
from cifar_sweep.errors import DataError, DiskError, UsageError
from cifar_sweep.training import synthetic

Progress = Callable[[str], None]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SIDE = 32
_FORMAT = 1  # of a cache entry; part of its key
_TORCHVISION_FOLDER = "cifar-10-batches-py"
_DOWNLOAD_ROOT = "data"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_MIN_SYNTHETIC, _MAX_SYNTHETIC = 100, 1_000_000
_CHUNK_IMAGES = 2048  # images converted at once for several batches; 25 MB in float32
_ACCEPTED = (
    f"torchvision's folder ({_TORCHVISION_FOLDER}) or an image folder ({{train,test}}/<class>/*, images of "
    f"{SIDE}x{SIDE} as {', '.join(suffix[1:] for suffix in _IMAGE_SUFFIXES)})"
)


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
    channel_mean: tuple[float, float, float]
    channel_std: tuple[float, float, float]


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
    progress = on_progress if on_progress is not None else _silent
    found = _locate(source, cache, progress=progress)
    entry = cache / f"data-{_digest(found.signature.encode(errors='surrogateescape'))}"
    data = _read_entry(entry)
    if data is not None:
        return data
    with _locked(cache, entry.name):
        data = _read_entry(entry)
        if data is None:
            _write_entry(entry, found.read(), source=source)
            data = _read_entry(entry)
    if data is None:
        raise DiskError("The data cache does not read back as it was written; CIFAR_SWEEP_CACHE can name another disk.")
    return data


def find_on_disk() -> str | None:
    """The source that ``auto`` uses without a download, or None where it would download."""
    return _DOWNLOAD_ROOT if (Path(_DOWNLOAD_ROOT) / _TORCHVISION_FOLDER).is_dir() else None


def default_cache() -> Path:
    """The cache folder: CIFAR_SWEEP_CACHE, else ``cifar-sweep`` in XDG_CACHE_HOME, else in ``~/.cache``."""
    own = os.environ.get("CIFAR_SWEEP_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cifar-sweep"


# --- The split -------------------------------------------------------------------------------------------------------


def split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Divide the training images 80:20 into training and validation part, class by class.

    The seed is fixed: every study splits the same data alike, so that the numbers of different sweeps compare.

    Args:
        labels: int64 [n], each class with 2 images or more.

    Returns:
        The indices of the training part, int64, ordered so that any prefix holds every class in its proportion to
        within one image; and those of the validation part, ascending. Disjoint, and complete together.

    Raises:
        DataError: a class has fewer than 2 images.
    """
    classes = labels.cpu().numpy()
    sizes = np.bincount(classes)
    for number, size in enumerate(sizes):
        if size < 2:
            raise DataError(
                f"Class number {number} has {size} training images; the split into training and validation part "
                "takes 2 or more of each class."
            )
    if len(sizes) == 0:
        raise DataError("There are no training images; the split takes 2 or more of each class.")
    training, validation = [], []
    for number, size in enumerate(sizes):
        # RandomState, not Generator: its streams are frozen, so the split outlives every NumPy version.
        order = np.random.RandomState(derive_seed("split", number)).permutation(size)
        members = np.flatnonzero(classes == number)[order]
        held_out = max(1, int(size) // 5)
        validation.append(members[:held_out])
        training.append(members[held_out:])
    return torch.from_numpy(_interleave(training)), torch.from_numpy(np.sort(np.concatenate(validation)))


def _interleave(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Merge the parts into one sequence whose every prefix holds each part in proportion to within one element.

    Element j of a part with share w of the whole must come at a position p with (j - 1) / w < p < j / w + 1. Taking
    the earliest deadline first always succeeds: Baruah, Cohen, Plaxton, Varvel, Proportionate progress (1996).
    """
    sizes = [len(part) for part in parts]
    total = sum(sizes)
    waiting = [(0, -(-total // size), number, 0) for number, size in enumerate(sizes)]  # release, deadline, part, j
    ready: list[tuple[int, int, int]] = []
    sequence = np.empty(total, dtype=np.int64)
    for position in range(total):
        while waiting and waiting[0][0] <= position:
            _, deadline, number, j = heapq.heappop(waiting)
            heapq.heappush(ready, (deadline, number, j))
        _, number, j = heapq.heappop(ready)
        sequence[position] = parts[number][j]
        j, size = j + 1, sizes[number]
        if j < size:
            heapq.heappush(waiting, (j * total // size, -(-(j + 1) * total // size), number, j))
    return sequence


# --- Sources ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Decoded:
    name: str
    classes: tuple[str, ...]
    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels


@dataclass(frozen=True)
class _Source:
    """Where a dataset comes from: a text that changes when it may have changed, and the slow way to read it."""

    signature: str
    read: Callable[[], _Decoded]


def _silent(_: str) -> None:
    pass


def _locate(source: str, cache: Path, *, progress: Progress) -> _Source:
    if source == "auto":
        if not _is_complete():
            with _locked(cache, "download"):
                if not _is_complete():
                    _download(progress)
        return _torchvision_source(Path(_DOWNLOAD_ROOT), source, progress=progress)
    if source == "synthetic" or source.startswith("synthetic:"):
        return _synthetic_source(source, progress=progress)
    if not source:
        raise UsageError(f"The name of the data is empty; accepted are auto, synthetic, synthetic:N, or {_ACCEPTED}.")
    path = Path(source).expanduser()
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"The data {source!r} {what}; accepted are auto, synthetic, synthetic:N, or {_ACCEPTED}.")
    if path.absolute().name == _TORCHVISION_FOLDER:
        return _torchvision_source(path.absolute().parent, source, progress=progress)
    if (path / _TORCHVISION_FOLDER).is_dir():
        return _torchvision_source(path, source, progress=progress)
    return _folder_source(path, source, progress=progress)


def _synthetic_source(source: str, *, progress: Progress) -> _Source:
    count = _synthetic_count(source)

    def read() -> _Decoded:
        progress(f"drawing {count + count // 5:,} synthetic images (once)")
        train = synthetic.draw(count, seed=derive_seed("train"))
        test = synthetic.draw(count // 5, seed=derive_seed("test"))
        name = f"synthetic images ({count:,} + {count // 5:,})"
        return _Decoded(name, synthetic.CLASSES, *train, *test)

    return _Source(f"{_FORMAT} synthetic {count} version {synthetic.VERSION}", read)


def _synthetic_count(source: str) -> int:
    if source == "synthetic":
        return 50_000
    digits = source.removeprefix("synthetic:")
    count = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
    if not _MIN_SYNTHETIC <= count <= _MAX_SYNTHETIC:
        raise UsageError(
            f"The data {source!r} is not accepted; synthetic:N takes a whole number of training images from "
            f"{_MIN_SYNTHETIC} to {_MAX_SYNTHETIC}, and synthetic alone is 50000."
        )
    return count


# --- torchvision's CIFAR-10 ------------------------------------------------------------------------------------------


def _torchvision_source(root: Path, source: str, *, progress: Progress) -> _Source:
    def read() -> _Decoded:
        progress("reading CIFAR-10 (once)")
        return _read_torchvision(root, source)

    files = _scan(root / _TORCHVISION_FOLDER)
    return _Source(f"{_FORMAT} torchvision {root.resolve()}\n" + "\n".join(map(str, files)), read)


def _read_torchvision(root: Path, source: str) -> _Decoded:
    try:
        parts = [_cifar10(root, train=train) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"CIFAR-10 in {source!r} is incomplete or corrupt (a file in {_TORCHVISION_FOLDER} is missing, or its MD5 "
            "sum is wrong); delete that folder and download or unpack it again."
        ) from error
    train, test = ((np.ascontiguousarray(part.data), np.asarray(part.targets, dtype=np.int64)) for part in parts)
    return _Decoded("CIFAR-10", tuple(parts[0].classes), *train, *test)


def _cifar10(root: Path, **options: bool) -> Any:
    from torchvision.datasets import CIFAR10  # type: ignore[import-untyped, unused-ignore]

    with warnings.catch_warnings():
        # The published batches were pickled by an old NumPy; newer ones warn when they read them.
        warnings.simplefilter("ignore")
        return CIFAR10(str(root), **options)


def _is_complete() -> bool:
    """Whether ``auto`` finds its files by name; whether they are whole is checked once, when they are read."""
    folder = Path(_DOWNLOAD_ROOT) / _TORCHVISION_FOLDER
    names = ("batches.meta", *(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    return all((folder / name).is_file() for name in names)


def _download(progress: Progress) -> None:
    root = Path(_DOWNLOAD_ROOT)
    before = [path for path in (root, root / _TORCHVISION_FOLDER) if path.exists()]
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
    if root / _TORCHVISION_FOLDER not in keep:
        shutil.rmtree(root / _TORCHVISION_FOLDER, ignore_errors=True)
    if root not in keep and root.is_dir() and not any(root.iterdir()):
        root.rmdir()


def _download_error(error: Exception) -> DataError | DiskError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return DiskError(f"CIFAR-10 cannot be written to {_DOWNLOAD_ROOT}/: {error.strerror}; it takes 360 MB there.")
    return DataError(
        f"CIFAR-10 is not in {_DOWNLOAD_ROOT}/ and could not be downloaded ({error}); run once where there is a "
        f"network, or put the folder {_TORCHVISION_FOLDER} of CIFAR-10's python version into {_DOWNLOAD_ROOT}/ or name a folder "
        f"with --data FOLDER or CIFAR_SWEEP_DATA: {_ACCEPTED}; or train on drawn images with --data synthetic."
    )


# --- Image folders ---------------------------------------------------------------------------------------------------

_File = tuple[str, int, int]  # name, bytes, mtime in nanoseconds
_Part = dict[str, list[_File]]  # class name -> its image files


def _folder_source(root: Path, source: str, *, progress: Progress) -> _Source:
    parts = _scan_image_folder(root, source)

    def read() -> _Decoded:
        count = sum(len(files) for part in parts.values() for files in part.values())
        progress(f"decoding {count:,} images (once)")
        train, test = (_decode_part(root / name, part) for name, part in parts.items())
        return _Decoded(f"image folder {root.resolve().name}", tuple(parts["train"]), *train, *test)

    lines = [f"{_FORMAT} folder {root.resolve()}"]
    for name, part in parts.items():
        for class_name, files in part.items():
            lines += [f"{name}/{class_name}/{file}" for file in files]
    return _Source("\n".join(lines), read)


def _scan_image_folder(root: Path, source: str) -> dict[str, _Part]:
    """The files of ``train`` and ``test`` by class, sorted; a few hundred thousand files a second."""
    there = [name for name in ("train", "test") if (root / name).is_dir()]
    if not there:
        raise DataError(f"The data folder {source!r} has neither layout that is accepted: {_ACCEPTED}.")
    if len(there) == 1:
        missing = "test" if there == ["train"] else "train"
        raise DataError(f"The data folder {source!r} has {there[0]}/ but no {missing}/; accepted is {_ACCEPTED}.")
    parts = {name: _scan_part(root / name) for name in there}
    _check_classes(parts, source)
    return parts


def _scan_part(folder: Path) -> _Part:
    with _reading(folder.name), os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return {name: [file for file in _scan(folder / name) if _is_image(file[0])] for name in names}


def _scan(folder: Path) -> list[_File]:
    with _reading(folder.name), os.scandir(folder) as entries:
        stats = ((entry.name, entry.stat()) for entry in entries if entry.is_file())
        return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"The data's folder {what} cannot be read ({error.strerror}); it must be readable.") from error


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(_IMAGE_SUFFIXES)


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
        for name, files in parts[part].items():
            if len(files) < least:
                raise DataError(
                    f"{part}/{name} of the data folder {source!r} has {len(files)} images; it takes {least} or more."
                )


def _decode_part(folder: Path, part: _Part) -> tuple[Pixels, Labels]:
    """Decode one image after the other: for images this small two threads were slower than one, measured."""
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


# --- The cache -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Meta:
    name: str
    classes: tuple[str, ...]
    fingerprint: str
    channel_mean: tuple[float, float, float]
    channel_std: tuple[float, float, float]
    source: str


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
        meta = _Meta(**json.loads((entry / "meta.json").read_text(encoding="utf-8")))
        train_images, train_labels, test_images, test_labels = (_map_array(entry / f"{name}.npy") for name in _ARRAYS)
        if not (_fit(train_images, train_labels) and _fit(test_images, test_labels)):
            return None
        return ImageData(
            name=meta.name,
            classes=tuple(meta.classes),
            train_images=torch.from_numpy(train_images),
            train_labels=torch.from_numpy(train_labels),
            test_images=torch.from_numpy(test_images),
            test_labels=torch.from_numpy(test_labels),
            fingerprint=meta.fingerprint,
            channel_mean=_triple(meta.channel_mean),
            channel_std=_triple(meta.channel_std),
        )
    except (OSError, ValueError, TypeError):
        return None


def _fit(images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> bool:
    types_fit = images.dtype == np.uint8 and labels.dtype == np.int64
    return types_fit and images.shape == (len(labels), SIDE, SIDE, 3) and labels.ndim == 1


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _map_array(path: Path) -> npt.NDArray[Any]:
    # "c" is copy-on-write: torch wants writable memory, and the file must never change under another process.
    array: Any = np.lib.format.open_memmap(path, mode="c")
    if array.offset + array.nbytes != path.stat().st_size:
        raise ValueError("the file has another length than its header says")
    return np.asarray(array)


def _write_entry(entry: Path, decoded: _Decoded, *, source: str) -> None:
    """Write the entry beside its place and rename it there, so that it is whole or absent."""
    meta = _describe(decoded, source=source)
    with _writing():
        for left_over in entry.parent.glob(f"{entry.name}.tmp*"):
            shutil.rmtree(left_over, ignore_errors=True)
        beside = entry.with_name(f"{entry.name}.tmp")
        try:
            _write_files(beside, decoded, meta)
            shutil.rmtree(entry, ignore_errors=True)
            os.rename(beside, entry)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _write_files(folder: Path, decoded: _Decoded, meta: _Meta) -> None:
    folder.mkdir()
    for name in _ARRAYS:
        with open(folder / f"{name}.npy", "wb") as file:
            np.save(file, getattr(decoded, name))
            _sync(file)
    with open(folder / "meta.json", "w", encoding="utf-8") as text:
        json.dump(asdict(meta), text, indent=1)
        _sync(text)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _describe(decoded: _Decoded, *, source: str) -> _Meta:
    arrays = [getattr(decoded, name) for name in _ARRAYS]
    header = json.dumps([decoded.classes, *(array.shape for array in arrays)])
    fingerprint = _digest(header.encode(), *arrays)
    train_index, _ = split(torch.from_numpy(decoded.train_labels))
    mean, std = _channel_statistics(decoded.train_images[train_index.numpy()])
    return _Meta(decoded.name, decoded.classes, fingerprint, mean, std, source)


def _channel_statistics(images: Pixels) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, pixels in [0, 1]. Counted, so exact and equal on every machine."""
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(3):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        centre = float(counts @ values / counts.sum())
        mean.append(centre)
        std.append(float(np.sqrt(counts @ (values - centre) ** 2 / counts.sum())))
    return _triple(mean), _triple(std)


# --- Batches ---------------------------------------------------------------------------------------------------------


class Batches:
    """The training part of the data, resident on a device, handed out in batches by index.

    Attributes:
        train_images: number of training images used.
        validation_images: number of validation images, always all.
        classes: number of classes.
        device: where the batches lie.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        device: torch.device,
        train_images: int = 0,
        normalize: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Move the images to `device` as uint8; on the CPU they stay in the memory map.

        Args:
            data: the dataset.
            device: where to train.
            train_images: training images to use, class by class alike; 0 is all of the training part.
            normalize: subtract the training part's channel mean and divide by its deviation; else pixels in [0, 1].
            dtype: of the batches' images.

        Raises:
            UsageError: there are fewer than `train_images`.
        """
        train_index, validation_index = split(data.train_labels)
        if not 0 <= train_images <= len(train_index):
            raise UsageError(
                f"train_images = {train_images} is not accepted; the training part of {data.name} has "
                f"{len(train_index):,} images, and 0 is all of them."
            )
        self.device = device
        self.classes = len(data.classes)
        self.train_images = train_images or len(train_index)
        self.validation_images = len(validation_index)
        self._data = data
        self._train_index = train_index[: self.train_images]
        self._validation_index = validation_index
        self._images = data.train_images.to(device)
        self._labels = data.train_labels.to(device)
        self._dtype = dtype
        self._normalize = normalize
        self._mean = torch.tensor(data.channel_mean, dtype=self._arithmetic, device=device).view(3, 1, 1)
        # A channel that is the same everywhere has no deviation; dividing by 1 leaves it at 0.
        deviations = [deviation or 1.0 for deviation in data.channel_std]
        self._std = torch.tensor(deviations, dtype=self._arithmetic, device=device).view(3, 1, 1)

    def check_batch_size(self, batch_size: int) -> None:
        """Raise UsageError when `batch_size` is below 1 or above the number of training images used."""
        if not 1 <= batch_size <= self.train_images:
            raise UsageError(
                f"batch_size = {batch_size} is not accepted; with {self.train_images:,} training images it takes 1 to "
                f"{self.train_images:,}."
            )

    def steps(self, batch_size: int) -> int:
        """The number of batches that `train` yields in an epoch."""
        return -(-self._used(batch_size) // batch_size)

    def train(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch of training batches in random order.

        The order depends on `seed`, `epoch` and the images used alone: it is the same on every device, and an epoch
        does not need the ones before it. The last batch may be smaller; a last batch of one image is left out, since
        batch normalisation cannot train on one.

        Yields:
            Images [b, 3, 32, 32] in channels_last memory format, and labels int64 [b].

        Raises:
            UsageError: see `check_batch_size`.
        """
        self.check_batch_size(batch_size)
        generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
        order = torch.randperm(self.train_images, generator=generator)[: self._used(batch_size)]
        return self._batches(self._images, self._labels, index=self._train_index[order], batch_size=batch_size)

    def validation(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all validation images in fixed order, as `train` does."""
        return self._batches(self._images, self._labels, index=self._validation_index, batch_size=batch_size)

    def test(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all test images in fixed order, as `train` does; only this call moves them to the device."""
        images, labels = self._data.test_images.to(self.device), self._data.test_labels.to(self.device)
        return self._batches(images, labels, index=torch.arange(len(labels)), batch_size=batch_size)

    def _used(self, batch_size: int) -> int:
        leaves_one = batch_size > 1 and self.train_images % batch_size == 1
        return self.train_images - leaves_one

    @property
    def _arithmetic(self) -> torch.dtype:
        """Where the pixels are converted: a half precision would round twice."""
        return torch.float64 if self._dtype is torch.float64 else torch.float32

    def _batches(
        self, images: Tensor, labels: Tensor, *, index: Tensor, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gather and convert many batches at once: at small batches a step must not pay for it in tiny operations."""
        per_chunk = max(1, _CHUNK_IMAGES // batch_size) * batch_size
        for rows in torch.split(index.to(self.device), per_chunk):
            pixels = self._convert(images.index_select(0, rows))
            chosen = labels.index_select(0, rows)
            yield from zip(torch.split(pixels, batch_size), torch.split(chosen, batch_size), strict=True)

    def _convert(self, rows: Tensor) -> Tensor:
        # The permuted NHWC rows are channels_last already, and `to` keeps that.
        pixels = rows.permute(0, 3, 1, 2).to(self._arithmetic).div_(255)
        if self._normalize:
            pixels.sub_(self._mean).div_(self._std)
        return pixels.to(self._dtype)
