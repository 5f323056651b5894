"""A Python with torch, safetensors and Pillow only: without this package and everything else that is installed."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

WANTED = ("torch", "safetensors", "pillow")


class BarePython:
    """Runs scripts in such a Python. `folder` is filled with links to the three packages and their requirements."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in required(WANTED):
            installed = distribution(name)
            for top in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
                link = folder / top
                if not link.exists():  # nvidia's many packages share one folder
                    link.symlink_to(Path(str(installed.locate_file(top))).absolute())

    def __call__(self, *arguments: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
        # -S leaves out site-packages, and so this package where it is installed as editable.
        command = [sys.executable, "-S", *map(str, arguments)]
        environment = {"PYTHONPATH": str(self._folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def required(names: tuple[str, ...]) -> set[str]:
    """The distributions of these names and of everything that they require on this system."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            requirements = [Requirement(text) for text in distribution(name).requires or []]
            waiting += [each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


def some_pictures(folder: Path) -> list[Path]:
    """One picture that is used as it is, and others that must be turned, enlarged or converted to RGB."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "turned.jpg": (Image.linear_gradient("L").resize((90, 60)).convert("RGB"), {"exif": turned}),
        "right.png": (Image.fromarray(noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)), {}),
        "small.png": (Image.fromarray(noise.integers(0, 255, (10, 20, 4), dtype=np.uint8)), {}),
        "grey.png": (Image.radial_gradient("L").resize((50, 50)), {}),
        "few colours.gif": (Image.linear_gradient("L").resize((40, 30)).rotate(180), {}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return [folder / name for name in made]


def assert_same(printed: str, said: Sequence[dict[str, Any]], *, export: str) -> None:
    """Assert that the script printed for each picture what `cifar-sweep predict --json` says of it."""
    lines = printed.splitlines()
    assert len(lines) == len(said)
    for line, image in zip(lines, said, strict=True):
        name, _, words = line.rpartition(": ")
        assert Path(name).name == Path(image["image"]).name
        ranked = list(image["predictions"][export]["probabilities"].items())[:3]
        found = re.findall(r"(.+?) (\d+\.\d\d)%(?:, |$)", words)
        assert [name for name, _ in found] == [name for name, _ in ranked]
        for (_, percent), (_, probability) in zip(found, ranked, strict=True):
            assert float(percent) == pytest.approx(100 * probability, abs=0.01)


def module_of(script: Path) -> ModuleType:
    """A script, run as a module of this process."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
