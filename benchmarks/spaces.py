"""What people search over, read from a file of definitions in a neutral form: each as a sweep file of ours, and run.

    python benchmarks/spaces.py FILE                 # writes and checks a sweep file for each definition
    python benchmarks/spaces.py FILE --train         # two trials of each besides, exported and predicted with
    python benchmarks/spaces.py FILE --out DIR --only O5 O42

FILE is a JSON list of objects with `id`, `method`, `stopping`, `metric`, `trials`, `data` (`size`, `channels`,
`classes`), `fixed`, `parameters` (each a `name` and a `kind`: `choices`, `range` or `int`) and `beyond`. The last line
says how many of them run. A definition is counted as not run where any of its parameters, or of its values, has no
meaning here. What describes a network that `model = "cnn"` cannot be is a parameter of a function of the user's own,
for which a small network stands. Trained are a few hundred generated images of its own size, channels and classes, for
one epoch: whether it runs is seen, not how well. What is said of a sweep with "note:" runs otherwise than its author
had it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import tomli_w
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from spaces_translation import Translation, UntranslatableError

from cifar_sweep.errors import CifarSweepError
from cifar_sweep.parameters import PARAMETERS
from cifar_sweep.sweep.parsing import parse

IMAGES = (200, 60, 40)  # training, validation and test images that are generated where a sweep is trained
LARGE = 64  # pixels of a side: of larger images trials are trained one at a time, on fewer


def pictures_of(definition: Mapping[str, Any]) -> tuple[int, int, int]:
    """Pixels of a side of its images, their channels, and how many classes: 32, 3 and 10 where it does not say."""
    data = definition.get("data") or {}
    size = data.get("size") or 32
    return (
        int(max(size) if isinstance(size, list) else size),
        data.get("channels") or 3,
        max(data.get("classes") or 10, 2),
    )


def sweep_of(definition: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The definition's sweep, checked, and notes; UntranslatableError, or an error of ours, with the reason."""
    translation = Translation(definition, folder)
    data = translation.translated()
    if (size := pictures_of(definition)[0]) != PARAMETERS["image_size"].default:
        data["fixed"].setdefault("image_size", size)
    parse(data, where=definition["id"])
    return data, translation.notes


def images(folder: Path, *, size: int, channels: int, classes: int) -> Path:
    """A folder of generated images: of each class noise around its own brightness and stripes."""
    generator = np.random.default_rng(0)
    for part, count in zip(("train", "val", "test"), IMAGES, strict=True):
        for label in range(classes):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            for number in range(-(-count // classes) if size <= LARGE else 3):
                stripes = 100 * (np.arange(size) // (label + 1) % 2)
                pixels = generator.integers(0, 80, (size, size, 3)) + stripes[:, None] + 7 * label % 70
                image = Image.fromarray(pixels.astype(np.uint8)).convert("L" if channels == 1 else "RGB")
                image.save(place / f"{number}.png")
    return folder


def command(*words: str, folder: Path) -> None:
    """Run a command of ours; UntranslatableError with its last line where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "cifar_sweep", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or [str(done.returncode)]
        told = next((line for line in lines if "error:" in line or "failed" in line), lines[-1])
        raise UntranslatableError(f"{words[0]}: {told}")


def train(definition: Mapping[str, Any], file: Path, pictures: Callable[..., Path], *, size: int) -> None:
    """Two trials of a sweep for an epoch on images of this size, exported, and a prediction."""
    folder, name = file.parent, definition["id"]
    source = pictures(size, *pictures_of(definition)[1:])
    storage = f"sqlite:///{name}.db"
    together = "2" if size <= LARGE else "1"  # memory
    small = ["--set", "epochs=1", "--set", "train_images=0", "--set", "validation_images=0", "--set", "batch_size=16"]
    if "pretrained" in file.read_text():
        small += ["--set", "pretrained=false"]
    command("run", file.name, "--storage", storage, "--data", str(source), "--trials", "2", "--workers", "1",
            "--group", together, "--set", "pruner=none", *small, folder=folder)  # fmt: skip
    command("export", name, "--storage", storage, "--out", f"export-{name}", folder=folder)
    command("predict", f"export-{name}", str(next((source / "test").rglob("*.png"))), folder=folder)


def check(definition: Mapping[str, Any], folder: Path, pictures: Callable[..., Path] | None) -> tuple[bool, str]:
    """Whether a definition runs, and what is to be said of it."""
    began = time.monotonic()
    try:
        data, notes = sweep_of(definition, folder)
        file = folder / f"{definition['id']}.toml"
        file.write_text(tomli_w.dumps({key: value for key, value in data.items() if key != "name"}))
        if pictures is not None:
            train(definition, file, pictures, size=data["fixed"].get("image_size", PARAMETERS["image_size"].default))
    except (UntranslatableError, CifarSweepError) as error:
        return False, str(error)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return False, f"it is not in the neutral form: {type(error).__name__}: {error}"
    took = f"{time.monotonic() - began:.0f} s" if pictures is not None else "reads"
    return True, "; ".join([took, *(f"note: {note}" for note in notes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--out", type=Path, help="where sweep files go; a temporary folder if not given")
    parser.add_argument("--only", nargs="*", help="definitions by their ids")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    folder = asked.out or Path(tempfile.mkdtemp(prefix="spaces-"))
    folder.mkdir(parents=True, exist_ok=True)
    definitions = [each for each in json.loads(asked.file.read_text()) if not asked.only or each["id"] in asked.only]
    lock, made = Lock(), cache(images)

    def pictures(size: int, channels: int, classes: int) -> Path:
        with lock:
            place = (folder / f"images-{size}px-{channels}-{classes}").resolve()
            return made(place, size=size, channels=channels, classes=classes)

    def told(definition: Mapping[str, Any]) -> bool:
        runs, words = check(definition, folder, pictures if asked.train else None)
        print(f"{definition['id']:5} {'runs' if runs else 'NO  '} {words}\n", end="", flush=True)
        return runs

    with ThreadPoolExecutor(asked.jobs if asked.train else 1) as pool:
        good = sum(pool.map(told, definitions))
    print(f"sweep files: {folder}")
    print(f"{good} of {len(definitions)} run")


if __name__ == "__main__":
    main()
