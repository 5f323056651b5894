"""Predictions of one or more exports for pictures: image files, or some images of the test set."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from cifar_sweep.errors import UsageError
from cifar_sweep.exports.exported import Exported
from cifar_sweep.files import replace_file
from cifar_sweep.pages import rendered
from cifar_sweep.pictures.decode import read_image, resized
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.words import line

SHOWN = 3  # classes named per picture


@dataclass(frozen=True)
class Picture:
    """A picture, a file or one of the test set, as the networks see it."""

    name: str
    pixels: Tensor  # uint8 [side, side, 3]
    size: Sequence[int]  # width and height before the picture was resized
    right: str | None = None  # the class that it shows; None where that is not known

    @property
    def resized(self) -> bool:
        """Whether the picture had another size."""
        return self.size != (self.pixels.shape[1], self.pixels.shape[0])


def data_uri(pixels: Tensor) -> str:
    """Pixels, uint8 [height, width, 3], as a PNG in a ``data:`` address."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def read_picture(path: Path, side: int) -> Picture:
    """An image file as training reads it, the whole picture resized. Raises UsageError."""
    try:
        image = read_image(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such image file.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: the image cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    pixels = torch.frombuffer(bytearray(resized(image, side).tobytes()), dtype=torch.uint8).view(side, side, 3)
    return Picture(str(path), pixels, image.size)


def some_of_test(data: ImageData, count: int) -> list[Picture]:
    """`count` random images of the test set, the same ones every time. Raises UsageError where it has fewer."""
    available = len(data.test_labels)
    if count > available:
        raise UsageError(f"--test {count}: {data.name} has {available:,} test images.")
    order = torch.randperm(available, generator=torch.Generator().manual_seed(0))[:count]
    names, (_, *size, _) = [data.classes[label] for label in data.test_labels.tolist()], data.test_images.shape
    return [Picture(f"test image {k}", data.test_images[k].clone(), size, names[k]) for k in order.tolist()]


@dataclass(frozen=True)
class Prediction:
    """What one export says of one picture: fractions by class, the most probable class first.

    `wrong` says whether the picture is known to show another class than that.
    """

    export: str
    probabilities: Mapping[str, float]
    wrong: bool

    @property
    def words(self) -> str:
        """The most probable classes with their probabilities."""
        return ", ".join(f"{name} {share:.1%}" for name, share in islice(self.probabilities.items(), SHOWN))


def predictions(exports: Mapping[str, Exported], pictures: Sequence[Picture]) -> list[list[Prediction]]:
    """For each picture, what each export says of it. Raises StudyError as `Exported.classifier` does."""
    images = torch.stack([picture.pixels for picture in pictures]).permute(0, 3, 1, 2).float() / 255
    by_export = [_of_export(name, export, pictures, images) for name, export in exports.items()]
    return [list(row) for row in zip(*by_export, strict=True)]


def _of_export(name: str, export: Exported, pictures: Sequence[Picture], images: Tensor) -> list[Prediction]:
    with torch.no_grad():
        probabilities: list[list[float]] = export.classifier()(images).tolist()
    found = []
    for picture, row in zip(pictures, probabilities, strict=True):
        ranked = sorted(zip(export.origin.classes, row, strict=True), key=lambda entry: -entry[1])
        found.append(Prediction(name, dict(ranked), picture.right not in (None, ranked[0][0])))
    return found


def as_json(pictures: Sequence[Picture], said: Sequence[Sequence[Prediction]]) -> dict[str, Any]:
    """Everything, as plain data; probabilities are fractions of 1, by export and class."""
    return {
        "images": [
            {
                "image": picture.name,
                "size": list(picture.size),
                "resized": picture.resized,
                "right": picture.right,
                "predictions": {
                    one.export: {"class": next(iter(one.probabilities)), "probabilities": one.probabilities}
                    for one in row
                },
            }
            for picture, row in zip(pictures, said, strict=True)
        ]
    }


def table(pictures: Sequence[Picture], said: Sequence[Sequence[Prediction]]) -> Table:
    """A row for each picture, a column for each export."""
    labelled = any(picture.right for picture in pictures)
    view = Table("image", *(["is"] if labelled else []), *(escape(one.export) for one in said[0]), box=None)
    for picture, row in zip(pictures, said, strict=True):
        size = f" ({picture.size[0]}x{picture.size[1]}, resized)" if picture.resized else ""
        cells = [escape(line(picture.name)) + size] + ([escape(line(picture.right or "-"))] if labelled else [])
        cells += [f"[red]{escape(line(one.words))}[/]" if one.wrong else escape(line(one.words)) for one in row]
        view.add_row(*cells)
    return view


def write_page(path: Path, pictures: Sequence[Picture], said: Sequence[Sequence[Prediction]]) -> None:
    """Write one HTML file that opens offline: each picture, enlarged, with what every export says of it."""
    rows = list(zip(pictures, said, strict=True))
    page = rendered("exports", "predictions.html.jinja", rows=rows, data_uri=data_uri)
    replace_file(path, f"{page}\n")
