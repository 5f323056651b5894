"""Images in other forms than class folders: read, or answered with the command that makes them readable."""

import pickle
import shlex
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from cifar_sweep.errors import DataError
from cifar_sweep.training.images import sources
from cifar_sweep.training.images.data import find_decoded, find_on_disk, load

Array = np.ndarray[Any, Any]


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def arrays(*, n: int = 12, test: int = 4, side: int = 32) -> dict[str, Array]:
    return {
        "x_train": noise(n, side, side, 3), "y_train": np.arange(n) % 2,
        "x_test": noise(test, side, side, 3, seed=1), "y_test": np.arange(test) % 2,
    }  # fmt: skip


# NumPy's arrays


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_arrays_with_labels(tmp_path: Path, suffix: str) -> None:
    made = arrays()
    if suffix == "npz":
        source = tmp_path / "mine.npz"
        np.savez_compressed(source, **made)
    else:
        source = tmp_path / "mine"
        source.mkdir()
        for name, array in made.items():
            np.save(source / f"{name.replace('x', 'X')}.npy", array)
    data = load(str(source))
    assert (data.name, data.classes) == (source.name, ("0", "1"))
    assert np.array_equal(data.train_images.numpy(), made["x_train"])
    assert np.array_equal(data.test_labels.numpy(), made["y_test"])


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda x: x.transpose(0, 3, 1, 2), lambda x: x),
        (lambda x: x.astype(np.float32) / 255, lambda x: x),
        (lambda x: x[..., 0], lambda x: x[..., [0, 0, 0]]),
        (lambda x: x[..., :1], lambda x: x[..., [0, 0, 0]]),
        (lambda x: np.concatenate([x, 0 * x[..., :1]], axis=3), lambda x: 0 * x + 255),  # wholly transparent
    ],
)
def test_arrays_in_other_orders_and_types(tmp_path: Path, change: Any, shown: Any) -> None:
    made = arrays()
    changed = made | {name: change(made[name]) for name in ("x_train", "x_test")}
    np.savez(tmp_path / "x.npz", **changed)
    data = load(str(tmp_path / "x.npz"))
    assert np.array_equal(data.train_images.numpy(), shown(made["x_train"]))


def test_arrays_with_names_a_validation_part_and_another_size(tmp_path: Path) -> None:
    made = arrays(side=28)
    words = {name: np.array(["plane", "auto"])[made[name]] for name in ("y_train", "y_test")}
    own = {"val_images": noise(4, 28, 28, 3), "val_labels": np.array([["auto"], ["plane"], ["auto"], ["auto"]])}
    np.savez(tmp_path / "x.npz", **made | words | own)
    data = load(str(tmp_path / "x.npz"))
    assert data.classes == ("auto", "plane")
    assert data.divide()[1].tolist() == [12, 13, 14, 15]
    assert data.train_labels[12:].tolist() == [0, 1, 0, 0]
    assert data.notes[0].startswith("20 of 20 images are not 32x32 (20 of 28x28)")
    small = Image.fromarray(made["x_train"][0]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(data.train_images[0].numpy(), np.asarray(small))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_test": None}, "has the arrays x_train, y_train, y_test; accepted are x_train, y_train, x_test, y_test"),
        ({"y_train": np.arange(11)}, r"y_train is int64 \[11\] for 12 images; accepted is a whole number or a text"),
        ({"y_train": np.eye(2)[np.arange(12) % 2]}, r"y_train is float64 \[12, 2\]"),
        ({"x_train": np.full((12, 32, 32), 300.0)}, r"x_train is float64 \[12, 32, 32\]; accepted are images"),
        ({"x_train": noise(12, 3072)}, r"x_train is uint8 \[12, 3072\]"),
        ({"y_train": np.zeros(12, int), "y_test": np.zeros(4, int)}, "has 1 class; it takes 2 or more"),
        ({"y_test": np.full(4, 1)}, "each class takes 1 or more test images; '0' has 0"),
        ({"y_train": np.array([object()] * 12)}, "cannot be read: ValueError: Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    made = {name: array for name, array in (arrays() | change).items() if array is not None}
    np.savez(tmp_path / "x.npz", **made)
    with pytest.raises(DataError, match=words):
        load(str(tmp_path / "x.npz"))


def test_a_file_of_arrays_that_is_damaged(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays())
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"The arrays in .* cannot be read: BadZipFile"):
        load(str(tmp_path / "x.npz"))


# CIFAR


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("folder", ["cifar-10-batches-bin", "cifar-100-binary"])
def test_the_binary_version(tmp_path: Path, folder: str, named: bool) -> None:
    there = tmp_path / folder
    there.mkdir()
    pixels = noise(12, 3072)
    before = [[0] * (folder == "cifar-100-binary") + [k % 2] for k in range(12)]
    rows = np.concatenate([np.array(before, np.uint8), pixels], axis=1)
    names = ("train.bin", "test.bin", "fine_label_names.txt")
    if folder == "cifar-10-batches-bin":
        names = ("data_batch_1.bin", "test_batch.bin", "batches.meta.txt")
    for name in names[:2]:
        (there / name).write_bytes(rows.tobytes())
    if named:
        (there / names[2]).write_text("airplane\nautomobile\n\n")
    data = load(str(there if named else tmp_path))
    assert data.classes == (("airplane", "automobile") if named else ("0", "1"))
    assert np.array_equal(data.train_images.numpy(), pixels.reshape(12, 3, 32, 32).transpose(0, 2, 3, 1))
    (there / names[0]).write_bytes(rows.tobytes()[:-1])
    with pytest.raises(DataError, match="a file of CIFAR's binary version is cut short"):
        load(str(there))


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar-100-python"])
def test_files_of_the_right_names_with_other_content_are_never_unpickled(tmp_path: Path, folder: str) -> None:
    there = tmp_path / folder
    there.mkdir()

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (there / name).write_bytes(pickle.dumps(Trap()))
    for name in ("batches.meta", "train", "test", "meta"):
        (there / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"theirs is not the published content .* as an image folder"):
        load(str(tmp_path))
    assert not (tmp_path / "sprung").exists()


# Kaggle


def kaggle(root: Path, *, named: str = "trainLabels.csv", ending: str = "") -> Path:
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    rows = ["id,label"]
    for number in range(1, 21):
        Image.fromarray(noise(32, 32, 3, seed=number)).save(root / "train" / f"{number}.png")
        rows.append(f"{number}{ending},{'frog' if number % 2 else 'cat'}")
    Image.fromarray(noise(32, 32, 3)).save(root / "test" / "1.png")
    (root / named).write_text("\r\n".join([*rows, "99,cat"]), encoding="utf-8-sig")
    return root


@pytest.mark.parametrize(("named", "ending"), [("trainLabels.csv", ""), ("labels.csv", ".png")])
def test_kaggles_labels_in_a_table(tmp_path: Path, named: str, ending: str) -> None:
    root = kaggle(tmp_path / "kaggle", named=named, ending=ending)
    Image.fromarray(noise(32, 32, 3)).save(root / "train" / "more.png")
    data = load(str(root))
    assert data.classes == ("cat", "frog")
    assert (data.train_labels.bincount().tolist(), data.test_labels.bincount().tolist()) == ([8, 8], [2, 2])
    by_pixels = {noise(32, 32, 3, seed=number).tobytes(): number % 2 for number in range(1, 21)}
    both = [
        *zip(data.train_images, data.train_labels, strict=True),
        *zip(data.test_images, data.test_labels, strict=True),
    ]
    assert {pixels.numpy().tobytes(): int(label) for pixels, label in both} == by_pixels
    assert data.notes == (
        f"{named} labels 20 images of train/: a fifth of each class is the test set",
        "passed over: 2 images without a label, such as 'train/more.png', 'test/1.png'; add them to the CSV file to "
        "use them",
        "passed over: 1 label whose image is not there, '99'; bring back what is meant",
    )


def test_kaggles_images_that_are_still_packed(tmp_path: Path) -> None:
    root = kaggle(tmp_path / "kaggle")
    shutil.rmtree(root / "train")
    with pytest.raises(DataError, match=r"has trainLabels.csv but no folder train/; unpack it: 7z x train.7z"):
        load(str(root))


# What is not read


def packed(tmp_path: Path, kind: str) -> Path:
    root = tmp_path / "packed images"
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "in" / part / name).mkdir(parents=True)
            for number in range(3):
                Image.fromarray(noise(32, 32, 3, seed=number)).save(tmp_path / "in" / part / name / f"{number}.png")
    root.mkdir()
    archive = shutil.make_archive(str(root / "all"), kind, tmp_path / "in")
    return Path(archive)


@pytest.mark.parametrize("kind", ["zip", "gztar"])
@pytest.mark.parametrize("by", ["file", "folder"])
def test_an_archive_is_answered_with_the_command_that_unpacks_it(tmp_path: Path, kind: str, by: str) -> None:
    archive = packed(tmp_path, kind)
    with pytest.raises(DataError, match="is packed; unpack it, and name the folder that it holds: ") as caught:
        load(str(archive if by == "file" else archive.parent))
    command = str(caught.value).rpartition("holds: ")[2]
    subprocess.run(command, shell=True, check=True)
    assert load("images").classes == ("cat", "dog")


def test_tables_and_arrays_in_a_folder_are_answered(tmp_path: Path) -> None:
    (tmp_path / "hub" / "plain_text").mkdir(parents=True)
    (tmp_path / "hub" / "plain_text" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        DataError, match=r"is a table in parquet; this makes an image folder of it: .* -m pip install"
    ) as caught:
        load(str(tmp_path / "hub"))
    words = shlex.split(str(caught.value).rpartition("&& ")[2])
    compile(words[2], "command", "exec")  # it can be pasted
    np.savez(tmp_path / "x.npz", **arrays())
    with pytest.raises(DataError, match=r"name the file: --data '.*x\.npz'"):
        load(str(tmp_path))


# By name


def idx(array: Array) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def make_mnist(root: Path, name: str = "MNIST") -> Array:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    images = noise(40, 28, 28)
    for part, count in (("train", 40), ("t10k", 20)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images[:count]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return images


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_digits_by_name_are_grey_in_three_channels(tmp_path: Path, name: str, folder: str) -> None:
    images = make_mnist(tmp_path / "data", folder)
    data = load(name, may_download=False)
    assert (len(data.train_images), len(data.test_images), len(data.classes)) == (40, 20, 10)
    assert data.notes[0].startswith("60 of 60 images are not 32x32 (60 of 28x28)")
    shown = Image.fromarray(images[3]).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(data.train_images[3].numpy(), np.asarray(shown))
    assert load(name, side=28).notes == ()
    for place in (tmp_path / "data", tmp_path / "data" / folder / "raw"):
        assert load(str(place)).fingerprint == data.fingerprint


def test_eurosat_has_a_fifth_of_each_class_as_its_test_set(tmp_path: Path) -> None:
    for label, name in enumerate(("Forest", "River")):
        folder = tmp_path / "data" / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for number in range(10):
            Image.fromarray(noise(64, 64, 3, seed=10 * label + number)).save(folder / f"{name}_{number}.jpg")
    data = load("eurosat", side=64)
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0] * 8 + [1] * 8, [0, 0, 1, 1])
    assert data.notes == ("EuroSAT has no parts: a fifth of each class is the test set",)


def test_svhn_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train_32x32.mat").write_bytes(b"x")
    monkeypatch.setattr(sources, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="SVHN is read with SciPy, which is not installed: pip install scipy"):
        load("svhn")


def test_a_folder_of_a_datasets_name_is_that_folder(tmp_path: Path) -> None:
    packed(tmp_path, "zip")
    (tmp_path / "in").rename("mnist")
    assert load("mnist").name == "image folder mnist"


def test_nothing_is_downloaded_that_nobody_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "download", lambda *_: pytest.fail("a download"))
    for name in ("auto", *sources.NAMED):
        assert find_on_disk(name) is None
        with pytest.raises(DataError, match=f"The data '{name}' is not on this disk; --data {name} downloads it"):
            load(name, may_download=False)


def test_a_download_goes_to_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST  # type: ignore[import-untyped, unused-ignore]

    monkeypatch.setattr(MNIST, "download", lambda self: make_mnist(Path(self.root)))
    said: list[str] = []
    cache = tmp_path / "cache"
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(cache))
    data = load("mnist", on_progress=said.append)
    assert said == ["downloading MNIST (once)", "reading MNIST (once)"]
    assert sorted(path.name for path in (cache / "downloads").iterdir()) == ["mnist"]
    assert not Path("data").exists()
    assert find_on_disk("mnist") == "mnist"
    assert load("mnist", may_download=False).fingerprint == data.fingerprint
    found = find_decoded(data.fingerprint)
    assert found is not None
    assert found.name == "MNIST"
    assert find_decoded("0123456789abcdef") is None


def test_the_published_archive_is_unpacked_without_a_download_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / CIFAR10.filename, "w:gz"):
        pass
    before = (tmp_path / "data" / CIFAR10.filename).read_bytes()

    def download(self: Any) -> None:
        assert (Path(self.root) / CIFAR10.filename).read_bytes() == before
        (Path(self.root) / CIFAR10.filename).write_bytes(b"another one")
        raise URLError("no network")

    monkeypatch.setattr(CIFAR10, "download", download)
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="could not be downloaded"):
        load("cifar10")
    assert (tmp_path / "data" / CIFAR10.filename).read_bytes() == before
