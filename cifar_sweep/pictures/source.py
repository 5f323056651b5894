"""What a source of images is: how to know it again, and what is read from it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from cifar_sweep.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Decoded:
    """Images [n, side, side, 3] with labels; the last `validation` training images are a validation part of their own.

    `notes` are sentences on what was done to the images, `damaged` names those that could not be read, with reasons.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels
    validation: int = 0
    notes: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()

    @classmethod
    def of_parts(
        cls, name: str, classes: Sequence[str], parts: Mapping[str, tuple[Pixels, Labels]], **more: Any
    ) -> Self:
        """Of images and labels by part, which are train, test and perhaps validation."""
        (images, labels), own = parts["train"], parts.get("validation")
        if own is not None:
            images, labels = np.concatenate([images, own[0]]), np.concatenate([labels, own[1]])
        held_out = 0 if own is None else len(own[1])
        return cls(name, tuple(classes), images, labels, *parts["test"], validation=held_out, **more)

    def check(self) -> None:
        """Raise DataError where a class has too few images for each of the parts."""
        training = self.train_labels[: len(self.train_labels) - self.validation]
        for part, labels, least in (("training", training, 2), ("test", self.test_labels, 1)):
            counts = np.bincount(labels, minlength=len(self.classes)).tolist()
            if few := [f"{name!r} has {n}" for name, n in zip(self.classes, counts, strict=True) if n < least]:
                shown = ", ".join(few[:3]) + (f" and {len(few) - 3} more" if len(few) > 3 else "")
                raise DataError(f"The data {self.name}: each class takes {least} or more {part} images; {shown}.")
        if len(self.classes) < 2:
            raise DataError(f"The data {self.name} has {len(self.classes)} class; it takes 2 or more.")


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from; `notes` are sentences on what was found there, and what is passed over."""

    signature: str  # changes when it may have changed
    doing: str  # what `read` does, in words
    read: Callable[[], Decoded]  # the slow way
    notes: tuple[str, ...] = ()


def rules() -> str:
    """What decides how an image file is decoded; part of the signature of what was decoded so."""
    text = Path(__file__).with_name("decode.py").read_bytes()
    return f"decoded by {hashlib.sha256(text).hexdigest()[:16]}, Pillow {version('pillow')}"


@dataclass
class Square:
    """Makes images square, as the rule of `decode.resized` says, and counts their sizes and those nearly black."""

    side: int
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dark: int = 0

    def pixels(self, image: "Image") -> Pixels:
        """An image in RGB as uint8 [side, side, 3]."""
        from cifar_sweep.pictures.decode import resized

        self.sizes[image.size] += 1
        pixels = np.asarray(resized(image, self.side))
        self.dark += int(pixels.max()) < 16
        return pixels

    def words(self) -> tuple[str, ...]:
        """What was counted, in sentences without a full stop: images that were resized, and that show nothing."""
        notes = []
        others = Counter({size: n for size, n in self.sizes.items() if size != (self.side, self.side)})
        if others:
            shown = ", ".join(f"{n:,} of {width}x{height}" for (width, height), n in others.most_common(3))
            more = f" and {len(others) - 3} other sizes" if len(others) > 3 else ""
            whole = f"{others.total():,} of {self.sizes.total():,} images are not {self.side}x{self.side}"
            notes.append(f"{whole} ({shown}{more}): each is resized as a whole, by bilinear interpolation")
        if self.dark:
            whole = f"{self.dark:,} of {self.sizes.total():,} images are nearly black, no value being above 15 of 255"
            notes.append(f"{whole}; where they have 12 bits in 16, spread them over all 16")
        return tuple(notes)
