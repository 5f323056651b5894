"""What exports say of pictures: any image file, or a few of the test set, by one export or by two side by side."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from cifar_sweep.errors import UsageError
from cifar_sweep.exports.exported import Exported
from cifar_sweep.files import replace_file
from cifar_sweep.training.images.data import ImageData

SIDE = 32
SHOWN = 3  # classes named per picture


@dataclass(frozen=True)
class Picture:
    """A picture as the networks see it.

    Attributes:
        name: its file, or its place in the test set.
        pixels: uint8 [32, 32, 3].
        size: width and height before it was resized.
        right: its class, where that is known.
    """

    name: str
    pixels: Tensor
    size: tuple[int, int]
    right: str | None = None

    @property
    def resized(self) -> bool:
        """Whether its size was another."""
        return self.size != (SIDE, SIDE)


def read_picture(path: Path) -> Picture:
    """An image file in RGB, turned as its EXIF says, the whole of it resized to 32x32.

    Raises:
        UsageError: the file is missing, or no image that can be read.
    """
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such image file.") from None
    except UnidentifiedImageError:
        raise UsageError(f"{path}: not an image; accepted: JPEG, PNG, WebP and what else Pillow reads.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: the image cannot be read: {error}.") from None
    small = upright if upright.size == (SIDE, SIDE) else upright.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3)
    return Picture(str(path), pixels, upright.size)


def some_of_test(data: ImageData, count: int) -> list[Picture]:
    """`count` images from all over the test set, the same ones every time.

    Raises:
        UsageError: there are not as many.
    """
    available = len(data.test_labels)
    if count > available:
        raise UsageError(f"--test {count}: {data.name} has {available:,} test images.")
    order = torch.randperm(available, generator=torch.Generator().manual_seed(0))[:count]
    return [
        Picture(
            f"test image {index}",
            data.test_images[index].clone(),
            (SIDE, SIDE),
            data.classes[int(data.test_labels[index])],
        )
        for index in order.tolist()
    ]


@dataclass(frozen=True)
class Answer:
    """What one export says of one picture: classes with their probabilities, the most probable first."""

    ranked: tuple[tuple[str, float], ...]

    @property
    def best(self) -> str:
        """The most probable class."""
        return self.ranked[0][0]


def answers(export: Exported, pictures: Sequence[Picture]) -> list[Answer]:
    """What `export` says of each picture. Raises StudyError as `Exported.classifier` does."""
    images = torch.stack([picture.pixels for picture in pictures]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        probabilities: list[list[float]] = export.classifier()(images).tolist()
    return [
        Answer(tuple(sorted(zip(export.classes, row, strict=True), key=lambda entry: -entry[1])))
        for row in probabilities
    ]


def as_json(pictures: Sequence[Picture], said: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """Everything, as plain data; probabilities are fractions of 1, by export and class."""
    return {
        "images": [
            {
                "image": picture.name,
                "size": list(picture.size),
                "resized": picture.resized,
                "right": picture.right,
                "predictions": {
                    name: {"class": given[index].best, "probabilities": dict(given[index].ranked)}
                    for name, given in said.items()
                },
            }
            for index, picture in enumerate(pictures)
        ]
    }


def table(pictures: Sequence[Picture], said: Mapping[str, Sequence[Answer]]) -> Table:
    """A row for each picture, a column for each export."""
    view = Table("image", box=None)
    labelled = any(picture.right for picture in pictures)
    if labelled:
        view.add_column("is")
    for name in said:
        view.add_column(escape(name))
    for index, picture in enumerate(pictures):
        size = f" ({picture.size[0]}x{picture.size[1]}, resized)" if picture.resized else ""
        cells = [escape(picture.name) + size] + ([escape(picture.right or "-")] if labelled else [])
        for given in said.values():
            wrong = picture.right is not None and given[index].best != picture.right
            text = escape(_words(given[index]))
            cells.append(f"[red]{text}[/]" if wrong else text)
        view.add_row(*cells)
    return view


def _words(answer: Answer) -> str:
    return ", ".join(f"{name} {probability:.1%}" for name, probability in answer.ranked[:SHOWN])


def write_page(path: Path, pictures: Sequence[Picture], said: Mapping[str, Sequence[Answer]]) -> None:
    """Write one HTML file that opens offline: each picture, enlarged, with what every export says of it.

    Raises:
        DiskError: the file could not be written.
    """
    figures = "\n".join(_figure(picture, index, said) for index, picture in enumerate(pictures))
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Predictions</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; }} figcaption p {{ margin: .3rem 0; overflow-wrap: anywhere; }}
img {{ width: 8rem; height: 8rem; image-rendering: pixelated; }}
.wrong {{ color: #c0392b; }} .name {{ opacity: .7; }}
</style></head><body><h1>Predictions</h1><main>
{figures}
</main></body></html>
"""
    replace_file(path, text.encode(errors="replace"))


def _figure(picture: Picture, index: int, said: Mapping[str, Sequence[Answer]]) -> str:
    file = io.BytesIO()
    Image.fromarray(picture.pixels.numpy()).save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    resized = f", resized from {picture.size[0]}x{picture.size[1]}" if picture.resized else ""
    lines = [f'<p class="name">{html.escape(picture.name)}{resized}</p>']
    if picture.right is not None:
        lines.append(f"<p>is: {html.escape(picture.right)}</p>")
    for name, given in said.items():
        wrong = ' class="wrong"' if picture.right is not None and given[index].best != picture.right else ""
        lines.append(f"<p{wrong}>{html.escape(name)}: {html.escape(_words(given[index]))}</p>")
    alternative = html.escape(picture.name)
    return (
        f'<figure><img alt="{alternative}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{''.join(lines)}</figcaption></figure>"
    )
