"""Sources, split, cache and batches of the data."""

import errno
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from cifar_sweep.errors import DataError, DiskError, UsageError
from cifar_sweep.files import default_cache
from cifar_sweep.training import batches as batches_module
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.images import data as data_module
from cifar_sweep.training.images import synthetic
from cifar_sweep.training.images.data import ImageData, find_on_disk, load
from cifar_sweep.training.images.split import split

CPU = torch.device("cpu")
BATCH_FILES = [f"data_batch_{number}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """500 + 100 synthetic images: a training part of 400."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load("synthetic:500")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that is not there yet."""
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_image(path: Path, *, seed: int, mode: str = "RGB", side: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder of two classes: 5 training images and 2 test images each."""
    root = tmp_path / "pictures"
    for part, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                write_image(root / part / name / f"{number}.png", seed=1000 * label + 10 * count + number)
    return root


# --- Split -----------------------------------------------------------------------------------------------------------


def labels_of(*sizes: int) -> Tensor:
    labels = torch.cat([torch.full((size,), number, dtype=torch.int64) for number, size in enumerate(sizes)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("sizes", [(100,) * 10, (7, 100, 3, 41), (2, 2), (4, 4, 4, 4, 4, 4, 4, 4, 4, 1000), (2, 999)])
def test_split_is_stratified_disjoint_and_complete(sizes: tuple[int, ...]) -> None:
    labels = labels_of(*sizes)
    train, validation = split(labels)
    assert train.dtype == validation.dtype == torch.int64
    assert sorted(torch.cat([train, validation]).tolist()) == list(range(len(labels)))
    held_out = torch.bincount(labels[validation], minlength=len(sizes)).tolist()
    assert held_out == [max(1, size // 5) for size in sizes]


@pytest.mark.parametrize("sizes", [(100,) * 10, (7, 100, 3, 41), (2, 2), (4, 4, 4, 4, 4, 4, 4, 4, 4, 1000), (2, 999)])
def test_every_prefix_of_the_training_part_is_stratified_to_within_one_image(sizes: tuple[int, ...]) -> None:
    labels = labels_of(*sizes)
    train, _ = split(labels)
    counts = nn.functional.one_hot(labels[train], len(sizes)).cumsum(0).double()
    share = counts[-1] / len(train)
    ideal = torch.arange(1, len(train) + 1, dtype=torch.float64)[:, None] * share
    assert (counts - ideal).abs().max() < 1


def test_part_of_the_validation_images_is_stratified_and_the_training_part_stays() -> None:
    labels = labels_of(100, 300)
    train, validation = split(labels)
    same, some = split(labels, validation_images=20)
    assert torch.equal(same, train)
    assert set(some.tolist()) < set(validation.tolist())
    assert torch.bincount(labels[some]).tolist() == [5, 15]
    assert some.tolist() == sorted(some.tolist())


def test_more_validation_images_than_there_are_are_refused() -> None:
    with pytest.raises(UsageError, match=r"validation_images = 21 .* 20 images, and 0 is all"):
        split(labels_of(50, 50), validation_images=21)


def test_split_is_always_the_same() -> None:
    # Numbers of old sweeps compare with new ones as long as this does not change.
    train, validation = split(torch.arange(50) % 5)
    assert train[:10].tolist() == [35, 6, 22, 13, 24, 0, 1, 2, 33, 14]
    assert validation.tolist() == [9, 16, 17, 18, 25, 27, 34, 36, 38, 45]


def test_split_draws_each_class_in_random_order() -> None:
    train, _ = split(torch.zeros(1000, dtype=torch.int64))
    assert any(later < earlier for earlier, later in pairwise(train.tolist()))


# --- Sources ---------------------------------------------------------------------------------------------------------


def test_image_folder_is_decoded_in_sorted_order(folder: Path, cache: Path) -> None:
    said: list[str] = []
    data = load(str(folder), on_progress=said.append)
    assert said == ["decoding 14 images (once)"]
    assert (data.name, data.classes) == ("image folder pictures", ("cat", "dog"))
    assert data.train_labels.tolist() == [0] * 5 + [1] * 5
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.train_images.shape == (10, 32, 32, 3)
    assert data.train_images.dtype == torch.uint8
    assert data.train_images.is_contiguous()
    with Image.open(folder / "train" / "dog" / "3.png") as image:
        assert np.array_equal(data.train_images[8].numpy(), np.asarray(image))


def test_other_files_and_hidden_ones_are_ignored(folder: Path, cache: Path) -> None:
    before = load(str(folder)).fingerprint
    (folder / "README.md").write_text("x")
    (folder / "train" / "labels.csv").write_text("x")
    (folder / "train" / ".hidden").mkdir()
    (folder / "train" / "cat" / "Thumbs.db").write_text("x")
    (folder / "train" / "cat" / "._0.png").write_text("x")
    assert load(str(folder)).fingerprint == before


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_become_rgb(folder: Path, cache: Path, mode: str) -> None:
    path = folder / "train" / "cat" / "0.png"
    write_image(path, seed=1, mode=mode)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(load(str(folder)).train_images[0].numpy(), expected)


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "bmp", "webp"])
def test_other_image_formats_are_read(folder: Path, cache: Path, suffix: str) -> None:
    write_image(folder / "train" / "cat" / f"9.{suffix}", seed=1)
    assert len(load(str(folder)).train_images) == 11


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(root: Path, how: str) -> None:
    match how:
        case "missing" | "a file" | "neither":
            shutil.rmtree(root)
            if how == "a file":
                root.write_text("x")
            elif how == "neither":
                root.mkdir()
        case "no test" | "no train":
            shutil.rmtree(root / how.removeprefix("no "))
        case "extra class":
            write_image(root / "test" / "emu" / "0.png", seed=0)
        case "one class":
            for part in ("train", "test"):
                shutil.rmtree(root / part / "dog")
        case "empty class" | "lone image":
            files = sorted((root / ("test" if how == "empty class" else "train") / "dog").iterdir())
            for file in files if how == "empty class" else files[1:]:
                file.unlink()
        case "corrupt":
            truncate(root / "train/dog/2.png")
        case "not an image":
            (root / "test/cat/1.png").write_text("x")


DAMAGES = {
    "missing": r"'.*pictures' does not exist; accepted are auto, .*synthetic, synthetic:N, an image folder",
    "a file": "is not a folder; of files only those of NumPy that end with .npz are read",
    "neither": r"has neither layout that is accepted: .*cifar-10-batches-py.*{train,test}",
    "no test": "has train/ but no test/",
    "no train": "has test/ but no train/",
    "extra class": r"differ .* 'emu'",
    "one class": r"train/ .* has 1 class folder",
    "empty class": r"test/dog of .* has 0 images; it takes 1",
    "lone image": r"train/dog of .* has 1 images; it takes 2",
    "corrupt": r"1 image that cannot be used: train/dog/2\.png: cut short or damaged",
    "not an image": r"1 image that cannot be used: test/cat/1\.png: not an image that Pillow reads",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_broken_image_folders_are_refused_in_a_sentence(folder: Path, cache: Path, damage: str) -> None:
    spoil(folder, damage)
    with pytest.raises(DataError, match=DAMAGES[damage]) as caught:
        load(str(folder))
    assert caught.value.exit_code == 1
    assert not list(cache.glob("data-*[!k]"))  # nothing but lock files


@pytest.mark.parametrize(
    "source", ["", "synthetic:", "synthetic:99", "synthetic:1e3", "synthetic:-200", "synthetic:9" * 99]
)
def test_malformed_sources_are_usage_errors(source: str, cache: Path) -> None:
    with pytest.raises(UsageError, match=r"synthetic:N"):
        load(source)


def make_torchvision_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's layout with 20 images a file, and its MD5 sums to match."""
    from torchvision.datasets import CIFAR10  # type: ignore[import-untyped, unused-ignore]

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = []
    for number, name in enumerate([*BATCH_FILES, "test_batch"]):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [n % 2 for n in range(20)]}))
        sums.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    md5 = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5})
    return folder


def test_torchvision_folder_by_its_name_by_its_parents_and_by_auto(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = make_torchvision_folder(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert find_on_disk() == "auto"
    by_name = load(str(inner))
    assert (by_name.name, by_name.classes) == ("CIFAR-10", ("cat", "dog"))
    assert (len(by_name.train_images), len(by_name.test_images)) == (100, 20)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    assert np.array_equal(by_name.train_images[7].numpy(), pixels[7].reshape(3, 32, 32).transpose(1, 2, 0))
    assert {load(source).fingerprint for source in ("auto", "data", str(tmp_path / "data"))} == {by_name.fingerprint}
    assert len(list(cache.glob("data-*[!k]"))) == 1


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_half_a_torchvision_folder_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = make_torchvision_folder(tmp_path / "data", monkeypatch) / name
    truncate(file)
    with pytest.raises(DataError, match=r"CIFAR-10 in .* lacks files, or theirs is not the published content"):
        load(str(tmp_path / "data"))
    file.unlink()
    with pytest.raises(DataError, match="lacks files"):
        load(str(tmp_path / "data"))


def fail_download(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make torchvision's download write half an archive and fail."""
    from torchvision.datasets import CIFAR10

    def download(self: Any) -> None:
        root = Path(self.root)
        (root / "cifar-10-batches-py").mkdir(parents=True)
        (root / "cifar-10-batches-py" / "data_batch_1").write_text("half")
        (root / CIFAR10.filename).write_text("half")
        raise error

    monkeypatch.setattr(CIFAR10, "download", download)


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("File not found or corrupted.")])
def test_offline_auto_names_three_ways_out_and_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.chdir(tmp_path)
    fail_download(monkeypatch, error)
    assert find_on_disk() is None
    said: list[str] = []
    with pytest.raises(DataError) as caught:
        load(on_progress=said.append)
    message = str(caught.value)
    for way in (
        "where there is a network",
        "cifar-10-batches-py",
        "--data FOLDER",
        "CIFAR_SWEEP_DATA",
        "--data synthetic",
    ):
        assert way in message
    assert said == ["downloading CIFAR-10 (170 MB, once)"]
    assert not (tmp_path / "data").exists()
    assert os.listdir(cache / "downloads") == []


@pytest.mark.parametrize("error", [URLError("no network"), KeyboardInterrupt()])
def test_a_failed_download_touches_no_file_of_the_users(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = {"cifar-10-python.tar.gz": "an archive of mine", "cifar-10-batches-py/data_batch_1": "a file of mine"}
    for name, text in mine.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    fail_download(monkeypatch, error)
    with pytest.raises((KeyboardInterrupt, DataError)) as caught:
        load()
    if isinstance(caught.value, DataError):
        assert "data/cifar-10-batches-py is there, but lacks some of its files" in str(caught.value)
    assert {name: (tmp_path / "data" / name).read_text() for name in mine} == mine
    assert sum(path.is_file() for path in (tmp_path / "data").rglob("*")) == len(mine)


def test_a_full_disk_is_not_a_missing_network(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fail_download(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DiskError, match=r"CIFAR-10 cannot be written to .*: No space left"):
        load()


# --- Cache -----------------------------------------------------------------------------------------------------------


def test_second_load_reads_the_cache_alone(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(str(folder))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Image, "open", refuse)
    started = time.perf_counter()
    second = load(str(folder), on_progress=refuse)
    assert time.perf_counter() - started < 1
    assert torch.equal(first.train_images, second.train_images)
    assert torch.equal(first.test_labels, second.test_labels)
    for field in ("name", "classes", "fingerprint", "channel_mean", "channel_std"):
        assert getattr(first, field) == getattr(second, field)


@pytest.mark.slow
def test_a_cache_hit_imports_neither_torchvision_nor_pillow(folder: Path, cache: Path) -> None:
    load(str(folder))
    script = (
        "import sys; from cifar_sweep.training.images.data import load\n"
        f"load({str(folder)!r})\n"
        "print([name for name in ('torchvision', 'PIL') if name in sys.modules])"
    )
    assert run_python(script).communicate()[0] == "[]\n"


def run_python(script: str) -> "subprocess.Popen[str]":
    root = Path(data_module.__file__).parents[3]
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)


@pytest.mark.slow
def test_two_processes_that_build_one_entry_both_get_it(cache: Path) -> None:
    # The drawing is slowed, so that the second surely comes while the first is at it.
    script = """
import time
from cifar_sweep.training.images import data, synthetic
draw = synthetic.draw
synthetic.draw = lambda count, *, seed: (time.sleep(1), draw(count, seed=seed))[1]
said = []
loaded = data.load("synthetic:200", on_progress=said.append)
print(loaded.fingerprint, len(said))
"""
    outputs = [process.communicate()[0].split() for process in [run_python(script), run_python(script)]]
    assert outputs[0][0] == outputs[1][0] == load("synthetic:200").fingerprint
    assert sorted(output[1] for output in outputs) == ["0", "1"]


def with_meta(path: Path, meta: dict[str, str]) -> None:
    safetensors.torch.save_file(safetensors.torch.load(path.read_bytes()), path, meta)


def without(path: Path, name: str) -> None:
    tensors = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, framework="pt") as file:
        meta = file.metadata()
    del tensors[name]
    safetensors.torch.save_file(tensors, path, meta)


CACHE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda entry: entry.unlink(),
    "truncated": truncate,
    "long": lambda entry: entry.write_bytes(entry.read_bytes() + b"x"),
    "empty": lambda entry: entry.write_bytes(b""),
    "other bytes": lambda entry: entry.write_bytes(b"\xff" * 1000),
    "missing array": lambda entry: without(entry, "train_labels"),
    "no meta": lambda entry: with_meta(entry, {}),
    "bad JSON": lambda entry: with_meta(entry, {"meta": '{"name": "x'}),
    "unknown value": lambda entry: with_meta(entry, {"meta": '{"more": 1}'}),
    "missing value": lambda entry: with_meta(entry, {"meta": '{"name": "x"}'}),
}


@pytest.mark.parametrize("damage", CACHE_DAMAGES)
def test_a_damaged_entry_is_built_again(cache: Path, damage: str) -> None:
    first = load("synthetic:100")
    expected = first.train_images.clone()
    (entry,) = cache.glob("data-*[!k]")
    # A copy, since the first load still maps the file, and truncating a mapped file kills the process.
    copy = entry.with_name("copy")
    shutil.copy(entry, copy)
    os.replace(copy, entry)
    CACHE_DAMAGES[damage](entry)
    said: list[str] = []
    again = load("synthetic:100", on_progress=said.append)
    assert said == ["drawing 120 synthetic images (once)"]
    assert torch.equal(again.train_images, expected)
    assert again.fingerprint == first.fingerprint
    load("synthetic:100", on_progress=said.append)
    assert len(said) == 1


def test_leftovers_of_a_crashed_run_are_harmless(cache: Path) -> None:
    load("synthetic:100")
    (entry,) = cache.glob("data-*[!k]")
    os.rename(entry, entry.with_name(f".{entry.name}.0123.tmp"))
    load("synthetic:100")
    assert list(cache.glob("*[!k]")) == [entry]


def test_a_full_disk_leaves_nothing_half_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"cache cannot be written: No space left .* CIFAR_SWEEP_CACHE"):
        load("synthetic:100")
    assert not list(cache.glob("*[!k]"))


def test_a_cache_that_cannot_be_made_is_a_disk_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DiskError, match="cache cannot be written"):
        load("synthetic:100")


def test_writing_to_the_tensors_leaves_the_cache_as_it_was(cache: Path) -> None:
    first = load("synthetic:100")
    before = first.train_images[0].clone()
    first.train_images[0] = 7
    assert torch.equal(load("synthetic:100").train_images[0], before)


def test_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CIFAR_SWEEP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_cache() == tmp_path / ".cache" / "cifar-sweep"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "cifar-sweep"
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"


def test_fingerprint_is_of_the_pixels_not_of_the_files(folder: Path, cache: Path) -> None:
    first = load(str(folder)).fingerprint
    path = folder / "train" / "cat" / "0.png"
    os.utime(path, ns=(1, 1))
    os.rename(folder / "train" / "cat" / "4.png", folder / "train" / "cat" / "5.png")
    assert load(str(folder)).fingerprint == first
    assert len(first) == 16
    assert int(first, 16) >= 0
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    assert load(str(folder)).fingerprint != first


def test_fingerprint_is_of_the_class_names_too(folder: Path, cache: Path) -> None:
    first = load(str(folder)).fingerprint
    for part in ("train", "test"):
        os.rename(folder / part / "dog", folder / part / "dodo")
    assert load(str(folder)).fingerprint != first


def test_channel_statistics_are_of_the_training_part(small: ImageData) -> None:
    train, _ = split(small.train_labels)
    pixels = small.train_images[train].double().div(255).flatten(0, 2)
    assert torch.allclose(pixels.mean(0), torch.tensor(small.channel_mean, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(pixels.std(0, correction=0), torch.tensor(small.channel_std, dtype=torch.float64), atol=1e-12)


# --- Batches ---------------------------------------------------------------------------------------------------------


def epoch_of(batches: Batches, batch_size: int, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches.train(batch_size, seed=seed, epoch=epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_batches_are_channels_last_floats_in_0_to_1(small: ImageData) -> None:
    batches = Batches(small, device=CPU)
    assert (batches.train_images, sum(len(labels) for _, labels in batches.validation())) == (400, 100)
    for images, labels in batches.train(32, seed=0, epoch=0):
        assert images.shape[1:] == (3, 32, 32)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.min() >= 0
        assert images.max() <= 1
        assert len(images) == len(labels)


@pytest.mark.parametrize("batch_size", [1, 16, 400])
def test_an_epoch_is_every_training_image_once(small: ImageData, batch_size: int) -> None:
    train, _ = split(small.train_labels)
    images, labels = epoch_of(Batches(small, device=CPU), batch_size)
    pixels = images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).reshape(len(labels), -1)
    expected = {(small.train_images[i].numpy().tobytes(), int(small.train_labels[i])) for i in train}
    assert {(row.numpy().tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True)} == expected
    assert len(labels) == 400


def test_order_depends_on_seed_and_epoch_alone(small: ImageData) -> None:
    batches = Batches(small, device=CPU)
    third, _ = epoch_of(batches, 32, seed=1, epoch=3)
    assert not torch.equal(third, epoch_of(batches, 32, seed=1, epoch=2)[0])
    assert not torch.equal(third, epoch_of(batches, 32, seed=2, epoch=3)[0])
    # A fresh object that never ran epochs 0 to 2, and another batch size.
    assert torch.equal(third, epoch_of(Batches(small, device=CPU), 100, seed=1, epoch=3)[0])


@pytest.mark.parametrize(("normalize", "tolerance"), [(True, 1e-5), (False, 1.0)])
def test_normalised_training_part_has_mean_0_and_deviation_1(
    small: ImageData, normalize: bool, tolerance: float
) -> None:
    images, _ = epoch_of(Batches(small, device=CPU, normalize=normalize), 100)
    means, deviations = images.double().mean((0, 2, 3)), images.double().std((0, 2, 3), correction=0)
    assert means.abs().max() < tolerance
    assert (deviations - 1).abs().max() < tolerance
    assert normalize or means.min() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_rounded_once(small: ImageData, dtype: torch.dtype) -> None:
    exact, _ = epoch_of(Batches(small, device=CPU, normalize=True, dtype=torch.float64), 100)
    images, _ = epoch_of(Batches(small, device=CPU, normalize=True, dtype=dtype), 100)
    assert images.dtype == dtype
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (images.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize(("batch_size", "sizes"), [(133, [133] * 3), (399, [399]), (398, [398, 2]), (400, [400])])
def test_a_last_batch_of_one_is_left_out(small: ImageData, batch_size: int, sizes: list[int]) -> None:
    batches = Batches(small, device=CPU)
    assert [len(labels) for _, labels in batches.train(batch_size, seed=0, epoch=0)] == sizes


def test_batch_size_one_keeps_every_image(small: ImageData) -> None:
    assert len(list(Batches(small, device=CPU).train(1, seed=0, epoch=0))) == 400


def test_images_left_out_differ_from_epoch_to_epoch(small: ImageData) -> None:
    batches = Batches(small, device=CPU)
    sums = {round(float(epoch_of(batches, 133, epoch=epoch)[0].double().sum()), 3) for epoch in range(4)}
    assert len(sums) > 1


def test_train_images_is_a_stratified_prefix(small: ImageData) -> None:
    batches = Batches(small, device=CPU, train_images=105)
    _, labels = epoch_of(batches, 105)
    assert batches.train_images == 105
    assert set(torch.bincount(labels).tolist()) == {10, 11}
    assert sum(len(labels) for _, labels in batches.validation()) == 100
    smaller = {image.numpy().tobytes() for image in epoch_of(Batches(small, device=CPU, train_images=50), 50)[0]}
    assert smaller < {image.numpy().tobytes() for image in epoch_of(batches, 105)[0]}


def test_more_train_images_than_there_are_is_a_usage_error(small: ImageData) -> None:
    with pytest.raises(UsageError, match=r"train_images = 401 .* has 400 images"):
        Batches(small, device=CPU, train_images=401)


@pytest.mark.parametrize("batch_size", [0, 51])
def test_batch_size_beyond_the_images_used_is_a_usage_error(small: ImageData, batch_size: int) -> None:
    batches = Batches(small, device=CPU, train_images=50)
    batches.check_batch_size(50)
    with pytest.raises(UsageError, match=f"batch_size = {batch_size} .* takes 1 to 50"):
        batches.check_batch_size(batch_size)
    with pytest.raises(UsageError):
        batches.train(batch_size, seed=0, epoch=0)


def test_validation_and_test_come_whole_and_in_order(small: ImageData) -> None:
    batches = Batches(small, device=CPU, train_images=50)
    _, validation = split(small.train_labels)
    for iterator, images, labels in [
        (batches.validation(30), small.train_images[validation], small.train_labels[validation]),
        (batches.test(30), small.test_images, small.test_labels),
    ]:
        parts = list(iterator)
        assert [len(part[1]) for part in parts] == [30, 30, 30, 10]
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)
        assert torch.equal(torch.cat([part[0] for part in parts]), images.permute(0, 3, 1, 2) / 255)


def test_on_the_cpu_the_memory_map_is_not_copied(small: ImageData) -> None:
    assert Batches(small, device=CPU)._images.data_ptr() == small.train_images.data_ptr()


def test_chunks_do_not_show(small: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(small, device=CPU)
    whole, _ = epoch_of(batches, 16)
    monkeypatch.setattr(batches_module, "CHUNK_PIXELS", 40 * 32**2)
    assert torch.equal(epoch_of(batches, 16)[0], whole)
    assert [len(labels) for _, labels in batches.train(48, seed=0, epoch=0)] == [48] * 8 + [16]


# --- Synthetic images ------------------------------------------------------------------------------------------------


def test_synthetic_images_are_called_synthetic_and_are_balanced(small: ImageData) -> None:
    assert small.name == "synthetic images (500 + 100)"
    assert small.classes == synthetic.CLASSES
    assert torch.bincount(small.train_labels).tolist() == [50] * 10
    assert small.train_labels[:20].tolist() != sorted(small.train_labels[:20].tolist())


def test_drawing_is_deterministic_and_follows_the_seed() -> None:
    images, labels = synthetic.draw(103, seed=1)
    again, labels_again = synthetic.draw(103, seed=1)
    other, _ = synthetic.draw(103, seed=2)
    assert images.shape == (103, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.array_equal(images, again)
    assert np.array_equal(labels, labels_again)
    assert not np.array_equal(images, other)
    assert set(np.bincount(labels)) == {10, 11}


def accuracy_after(model: nn.Module, data: ImageData, *, epochs: int, learning_rate: float) -> float:
    batches = Batches(data, device=CPU, normalize=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    for epoch in range(epochs):
        for images, labels in batches.train(64, seed=0, epoch=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()
    with torch.no_grad():
        correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches.test())
    return correct / len(data.test_labels)


@pytest.mark.slow
def test_a_small_network_learns_the_synthetic_images_and_a_linear_model_does_not(cache: Path) -> None:
    data = load("synthetic:5000")
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )
    of_linear = accuracy_after(linear, data, epochs=8, learning_rate=1e-3)
    of_network = accuracy_after(network, data, epochs=4, learning_rate=3e-3)
    assert 0.15 < of_linear < 0.45
    assert of_linear + 0.2 < of_network < 0.97


# --- The real images -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_cifar10(real_source: str) -> None:
    data = load(real_source)
    started = time.process_time()
    assert load(real_source).fingerprint == data.fingerprint
    assert time.process_time() - started < 2  # a third of a second
    assert (len(data.train_images), len(data.test_images), len(data.classes)) == (50_000, 10_000, 10)
    assert data.classes[0] == "airplane"
    assert torch.bincount(data.train_labels).tolist() == [5000] * 10
    train, validation = split(data.train_labels)
    assert (len(train), len(validation)) == (40_000, 10_000)
    assert torch.bincount(data.train_labels[train[:4000]]).tolist() == [400] * 10
    assert data.channel_mean == pytest.approx((0.491, 0.482, 0.447), abs=0.005)
