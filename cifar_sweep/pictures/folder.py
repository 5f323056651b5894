"""Folders of image files: what of them is used, what is passed over, and their pixels."""

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unicodedata import normalize

import numpy as np

from cifar_sweep.config import derive_seed
from cifar_sweep.errors import DataError
from cifar_sweep.pictures.source import Decoded, Labels, Pixels, Source, Square, rules

PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_IMAGE_ENDINGS = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm",
    ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_LITTER = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
# What is passed over: one, several, and how that is included.
_KINDS = {
    "ending": ("file with another ending", "files with other endings", "rename {}, or convert {} to PNG, to use {}"),
    "litter": (
        "hidden entry, or such as systems leave behind", "hidden entries, or such as systems leave behind",
        "rename {} to use {}",
    ),
    "link": ("link that leads nowhere", "links that lead nowhere", "bring back what is meant"),
    "circle": (
        "link that leads back to a folder above", "links that lead back to a folder above",
        "link to the folder of the images to use it",
    ),
    "special": (
        "entry that is neither file nor folder", "entries that are neither file nor folder",
        "write what is in {} to files to use it",
    ),
    "outside": (
        "image or folder outside of the class folders", "images and folders outside of the class folders",
        "move {} to {{train,test}}/CLASS/ to use {}",
    ),
    "empty": (
        "class folder without files", "class folders without files", "put images into {}, in each part, to use {}",
    ),
    "unlabelled": ("image without a label", "images without a label", "add {} to the CSV file to use {}"),
    "missing": ("label whose image is not there", "labels whose images are not there", "bring back what is meant"),
}  # fmt: skip
Passed = defaultdict[str, list[str]]  # kind -> places below the root
File = tuple[str, int, int]  # path below the root, bytes, mtime in nanoseconds
Part = dict[str, list[File]]  # class name -> its image files


def folder_source(root: Path, source: str, *, side: int) -> Source:
    """An image folder, {train,test}/CLASS/ with images at any depth. Raises DataError where it is none."""
    passed: Passed = defaultdict(list)
    names = _part_names(root, source, passed)
    parts = {part: _classes(root, name, passed) for part, name in names.items()}
    _drop_empty(parts, names, passed)
    _check_classes(parts, names, passed, source)
    name = f"image folder {os.fsencode(root.resolve().name).decode(errors='replace')}"
    notes = [f"the validation images are those of {names['validation']}/"] if "validation" in names else []
    return files_source(root, parts, passed, name=name, side=side, notes=notes)


def files_source(
    root: Path, parts: Mapping[str, Part], passed: Passed, *, name: str, side: int, notes: Sequence[str]
) -> Source:
    """Image files by part and class, which are those of the training part."""
    classes = tuple(parts["train"])
    by_part = {part: [of_class.get(each, []) for each in classes] for part, of_class in parts.items()}
    count = sum(len(of_class) for files in by_part.values() for of_class in files)

    def read() -> Decoded:
        damaged: list[str] = []
        square = Square(side)
        read_part = {part: _decode_part(root, files, square, damaged) for part, files in by_part.items()}
        return Decoded.of_parts(name, classes, read_part, notes=square.words(), damaged=tuple(damaged))

    unused = [_words(kind, passed[kind]) for kind in _KINDS if passed[kind]]
    lines = [f"{rules()}, {side}, {root.resolve()}"]
    lines += [f"{part}/{each}/{file}" for part, of in parts.items() for each, files in of.items() for file in files]
    return Source("\n".join(lines), f"decoding {count:,} images", read, (*notes, *unused))


def set_aside(files: Part) -> dict[str, Part]:
    """A training and a test part of files that have none: a fifth of each class, drawn with a fixed seed."""
    parts: dict[str, Part] = {part: {name: [] for name in files} for part in ("train", "test")}
    for number, (name, of_class) in enumerate(files.items()):
        order = np.random.RandomState(derive_seed("test", number)).permutation(len(of_class))
        held_out = set(order[: max(1, len(of_class) // 5)].tolist())
        for place, file in enumerate(of_class):
            parts["test" if place in held_out else "train"][name].append(file)
    return parts


def _words(kind: str, places: list[str]) -> str:
    one, several, remedy = _KINDS[kind]
    what, them, such_as = (one, "it", "") if len(places) == 1 else (several, "them", "such as ")
    if kind == "ending":
        counts = Counter(os.path.splitext(place)[1].lower() or "none" for place in places)
        what += f" ({', '.join(f'{ending} {count:,}' for ending, count in counts.most_common(5))})"
    shown = f"{such_as}{', '.join(map(repr, places[:3]))}"
    return f"passed over: {len(places):,} {what}, {shown}; {remedy.format(*[them] * 3)}"


def _part_names(root: Path, source: str, passed: Passed) -> dict[str, str]:
    """The folder of each part, as it is written. Raises DataError where the training or the test part is missing."""
    entries = list(_entries(root, "", passed))
    folders = [name for name, _, is_folder in entries if is_folder]
    names: dict[str, str] = {}
    for part, spellings in PARTS.items():
        found = [name for name in folders if name.lower() in spellings]
        if len(found) > 1:
            raise DataError(f"The data folder {source!r} has {' and '.join(found)}, of which one is accepted.")
        if found:
            names[part] = found[0]
    if not {"train", "test"} <= names.keys():
        raise DataError(f"The data folder {source!r} {_missing(root, names, folders)}.")
    passed["outside"] += [name for name in folders if name not in names.values()]
    for name, _, is_folder in entries:
        if not is_folder:
            passed["outside" if name.lower().endswith(_IMAGE_ENDINGS) else "ending"].append(name)
    return names


def _missing(root: Path, names: Mapping[str, str], folders: list[str]) -> str:
    """What a folder without a training or a test part has, and what is to be done."""
    layout = "accepted is an image folder {train,test}/CLASS/*"
    if names:
        there = " and ".join(f"{name}/" for name in names.values())
        if "train" not in names:
            return f"has {there} but no train/; {layout}"
        ways = "move some images of each class to test/CLASS/"
        if own := names.get("validation"):
            ways += f", or rename {own}/ to test/: a fifth of {names['train']}/ then is to validate"
        return f"has {there} but no test/, which is read once, at the end; {ways}"
    for inner in (root / name for name in folders):
        below = {entry.name.lower() for entry in os.scandir(inner) if entry.is_dir()}
        if below & set(PARTS["train"]) and below & set(PARTS["test"]):
            return f"holds the image folder {inner.name!r}; name that one: --data '{inner}'"
    if folders:
        return f"has folders ({', '.join(map(repr, folders[:3]))}) but no train/ and test/ with class folders; {layout}"
    return "has neither layout that is accepted: cifar-10-batches-py of torchvision, or {train,test}/CLASS/*"


def _classes(root: Path, part: str, passed: Passed) -> Part:
    """The image files of a part by class, both sorted. Names that differ only in their Unicode form are one class."""
    classes: Part = {}
    for name, status, is_folder in _entries(root / part, f"{part}/", passed):
        if not is_folder:
            passed["outside" if name.lower().endswith(_IMAGE_ENDINGS) else "ending"].append(f"{part}/{name}")
            continue
        try:
            shown = os.fsencode(name).decode()  # whatever the locale takes names for
        except UnicodeDecodeError:
            raise DataError(f"The class folder {f'{part}/{name}'!r} has a name that is not UTF-8; rename it.") from None
        files = image_files(root, f"{part}/{name}/", passed, frozenset([(status.st_dev, status.st_ino)]))
        classes.setdefault(normalize("NFC", shown), []).extend(files)
    return {name: sorted(classes[name], key=lambda file: normalize("NFC", file[0])) for name in sorted(classes)}


def image_files(
    root: Path, below: str, passed: Passed, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[File]:
    """The image files of a folder and of those in it; `above` are the folders around it."""
    for name, status, is_folder in _entries(root / below, below, passed):
        place, identity = f"{below}{name}", (status.st_dev, status.st_ino)
        if is_folder and identity in above:
            passed["circle"].append(place)
        elif is_folder:
            yield from image_files(root, f"{place}/", passed, above | {identity})
        elif name.lower().endswith(_IMAGE_ENDINGS):
            yield place, status.st_size, status.st_mtime_ns
        else:
            passed["ending"].append(place)


def _entries(folder: Path, below: str, passed: Passed) -> Iterator[tuple[str, os.stat_result, bool]]:
    """The files and folders in a folder, sorted: name, status, and whether it is a folder. Notes what else there is."""
    with reading(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        place = f"{below}{entry.name}"
        if entry.name.startswith(".") or entry.name.lower() in _LITTER:
            passed["litter"].append(place)
            continue
        try:
            status = entry.stat()
        except OSError:
            passed["link"].append(place)
            continue
        if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
            yield entry.name, status, stat.S_ISDIR(status.st_mode)
        else:
            passed["special"].append(place)


@contextmanager
def reading(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of a folder. Raises DataError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        what = f"The data's folder {folder.name} cannot be read ({error.strerror}); it must be readable."
        raise DataError(what) from error


def _drop_empty(parts: dict[str, Part], names: Mapping[str, str], passed: Passed) -> None:
    """Pass over the classes of which no part has any file."""
    places = [place for kind, of_kind in passed.items() if kind != "litter" for place in of_kind]
    for name in {name for part in parts.values() for name in part}:
        found = [f"{names[part]}/{name}" for part in parts if name in parts[part]]
        if not any(of.get(name) for of in parts.values()) and not any(_is_in(place, found) for place in places):
            passed["empty"] += found
            for of_class in parts.values():
                of_class.pop(name, None)
    passed["empty"].sort()


def _is_in(place: str, folders: list[str]) -> bool:
    return any(normalize("NFC", place).startswith(f"{folder}/") for folder in folders)


def _check_classes(parts: Mapping[str, Part], names: Mapping[str, str], passed: Passed, source: str) -> None:
    train, test = parts["train"], parts["test"]
    if len(train) < 2:
        raise DataError(f"{names['train']}/ of the data folder {source!r} has {len(train)} class folders; it takes 2.")
    differing = (train.keys() ^ test.keys()) | (parts.get("validation", {}).keys() - train.keys())
    if differing:
        raise DataError(
            f"The classes of {'/, '.join(names.values())}/ differ in the data folder {source!r} in "
            f"{', '.join(map(repr, sorted(differing)))}; all must have the same class folders."
        )
    for part, least in (("train", 2), ("test", 1)):
        if few := next((name for name, files in parts[part].items() if len(files) < least), None):
            place = f"{names[part]}/{few}"
            unused = [_words(kind, of) for kind in _KINDS if (of := [p for p in passed[kind] if _is_in(p, [place])])]
            raise DataError(
                f"{place} of the data folder {source!r} has {len(parts[part][few])} images; it takes {least} or more."
                + (f" There, {'; '.join(unused)}." if unused else "")
            )


def _decode_part(root: Path, by_class: list[list[File]], square: Square, damaged: list[str]) -> tuple[Pixels, Labels]:
    """Decode one image after the other: for images this small two threads were slower (docs/LOG.md, 2026-11-22)."""
    from cifar_sweep.pictures.decode import read_image

    total = sum(map(len, by_class))
    pixels, labels = np.empty((total, square.side, square.side, 3), np.uint8), np.empty(total, np.int64)
    count = 0
    for label, (place, _, _) in ((label, file) for label, files in enumerate(by_class) for file in files):
        try:
            pixels[count], labels[count] = square.pixels(read_image(root / place)), label
            count += 1
        except (OSError, ValueError) as error:
            name = place if place.isprintable() else repr(place)
            damaged.append(f"{name}: {getattr(error, 'strerror', None) or error}")
    return pixels[:count], labels[:count]
