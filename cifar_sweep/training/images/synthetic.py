"""Synthetic images for where CIFAR-10 is not: ten kinds of shapes and textures, drawn with NumPy alone.

They are made to be learnable but not trivial: position, size, colours and polarity are random, so that no single
pixel says much about the class (a linear model stays low) and local structure does (a small network learns it).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_sweep.config import derive_seed

# Part of the data cache's key: count it up whenever the pixels drawn change.
VERSION = 1
SIDE = 32
_CHUNK = 1000
# Tuned so that a linear model on the pixels and a small network stand apart; the numbers are in the tests.
_MAX_NOISE = 0.14
_MIN_CONTRAST, _MAX_CONTRAST = 0.12, 0.6
_CENTRE_SHIFT = 4  # pixels
Floats = npt.NDArray[Any]  # float32; NumPy's own types lose track of it in arithmetic
Integers = npt.NDArray[np.int64]
# Signed distance in pixels, negative inside the figure: of u, v [n, 32, 32] and the radius [n, 1, 1].
_Figure = Callable[[Floats, Floats, Floats], Floats]


def draw(count: int, *, seed: int) -> tuple[npt.NDArray[np.uint8], Integers]:
    """Draw `count` images: uint8 [count, 32, 32, 3] and labels int64 [count], numbers of `CLASSES`.

    The classes are equally frequent to within one image and come in shuffled order. Equal arguments give equal images.
    """
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    np.random.default_rng(derive_seed(seed, "labels")).shuffle(labels)
    images = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        rng = np.random.default_rng(derive_seed(seed, "pixels", start))
        images[start : start + _CHUNK] = _paint(labels[start : start + _CHUNK], rng)
    return images, labels


def _paint(labels: Integers, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    count = len(labels)
    cover = _cover(labels, rng)[..., None]
    background = _background(count, rng)
    contrast = _uniform(rng, _MIN_CONTRAST, high=_MAX_CONTRAST, shape=(count, 1, 1, 1))
    step = contrast * _directions(count, rng)
    noise = rng.standard_normal((count, SIDE, SIDE, 3), dtype=np.float32)
    noise *= _uniform(rng, 0.3 * _MAX_NOISE, high=_MAX_NOISE, shape=(count, 1, 1, 1))
    noise += background
    noise += cover * step
    noise *= 255
    return np.clip(noise, 0, 255, out=noise).astype(np.uint8)


def _cover(labels: Integers, rng: np.random.Generator) -> Floats:
    """How much of each pixel the figure covers, 0 to 1: [n, 32, 32]."""
    count = len(labels)
    radius = _uniform(rng, 6, high=12, shape=(count, 1, 1))
    centre = _uniform(rng, SIDE / 2 - _CENTRE_SHIFT, high=SIDE / 2 + _CENTRE_SHIFT, shape=(2, count, 1, 1))
    tilt = _uniform(rng, -0.25, high=0.25, shape=(count, 1, 1))
    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    x, y = axis[None, None, :] - centre[0], axis[None, :, None] - centre[1]
    u, v = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    distance = np.empty((count, SIDE, SIDE), dtype=np.float32)
    for number, figure in enumerate(_FIGURES.values()):
        of_class = labels == number
        distance[of_class] = figure(u[of_class], v[of_class], radius[of_class])
    return np.clip(0.5 - distance, 0, 1, out=distance)


def _background(count: int, rng: np.random.Generator) -> Floats:
    """A colour with a linear gradient over it: [n, 32, 32, 3]."""
    axis = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
    slope = _uniform(rng, -0.2, high=0.2, shape=(2, count, 1, 1, 3))
    colour = _uniform(rng, 0.15, high=0.6, shape=(count, 1, 1, 3))
    return np.asarray(colour + axis[None, None, :, None] * slope[0] + axis[None, :, None, None] * slope[1])


def _directions(count: int, rng: np.random.Generator) -> Floats:
    """Unit vectors in colour space, along which the figure differs from its background: [n, 1, 1, 3].

    Most figures are the brighter part, as most are in photographs; else a linear model would know nothing at all.
    """
    directions: Floats = rng.standard_normal((count, 1, 1, 3), dtype=np.float32) + np.float32(1)
    return np.asarray(directions / np.linalg.norm(directions, axis=-1, keepdims=True))


def _uniform(rng: np.random.Generator, low: float, *, high: float, shape: tuple[int, ...]) -> Floats:
    return np.asarray(rng.random(shape, dtype=np.float32) * np.float32(high - low) + np.float32(low))


def _box(u: Floats, v: Floats, *, width: Floats, height: Floats) -> Floats:
    return np.asarray(np.maximum(np.abs(u) - width, np.abs(v) - height))


def _disk(u: Floats, v: Floats, radius: Floats) -> Floats:
    return np.hypot(u, v) - radius


def _cross(u: Floats, v: Floats, radius: Floats) -> Floats:
    arm = 0.3 * radius
    return np.minimum(_box(u, v, width=radius, height=arm), _box(u, v, width=arm, height=radius))


def _stripes(phase: Floats, radius: Floats) -> Floats:
    """Stripes across `phase` (pixels), three and a half periods to the figure."""
    frequency = 3.5 * np.pi / radius
    return np.sin(phase * frequency) / frequency


def _checkerboard(u: Floats, v: Floats, radius: Floats) -> Floats:
    frequency = 2.5 * np.pi / radius
    return np.sin(u * frequency) * np.sin(v * frequency) / frequency


def _dots(u: Floats, v: Floats, radius: Floats) -> Floats:
    frequency = 2.5 * np.pi / radius
    return (0.8 - (np.cos(u * frequency) + np.cos(v * frequency))) / frequency


def _within_disk(texture: _Figure) -> _Figure:
    return lambda u, v, radius: np.maximum(texture(u, v, radius), _disk(u, v, radius))


_FIGURES: dict[str, _Figure] = {
    "disk": _disk,
    "ring": lambda u, v, radius: np.abs(np.hypot(u, v) - 0.8 * radius) - 0.2 * radius,
    "square": lambda u, v, radius: _box(u, v, width=0.9 * radius, height=0.9 * radius),
    "triangle": lambda u, v, radius: np.maximum(0.866 * np.abs(u) - 0.5 * v, v) - 0.55 * radius,
    "cross": _cross,
    "horizontal stripes": _within_disk(lambda _u, v, radius: _stripes(v, radius)),
    "vertical stripes": _within_disk(lambda u, _v, radius: _stripes(u, radius)),
    "diagonal stripes": _within_disk(lambda u, v, radius: _stripes(0.707 * (u + v), radius)),
    "checkerboard": _within_disk(_checkerboard),
    "dots": _within_disk(_dots),
}
CLASSES = tuple(_FIGURES)
