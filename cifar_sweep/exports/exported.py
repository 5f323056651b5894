"""Reading an export folder: its config, what it comes from, and the classifier that it is."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.exports.classifier import Classifier, accuracy, confusion, measured, predict
from cifar_sweep.exports.trained import Provenance, Trained
from cifar_sweep.files import read_toml
from cifar_sweep.training import checkpoint
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.words import line


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Origin(Provenance):
    """The [origin] of an exported network, checked: where it comes from, and what images it takes."""

    data: str
    data_fingerprint: str
    classes: Annotated[list[str], Field(min_length=2)]
    channel_mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    channel_std: Annotated[list[float], Field(min_length=3, max_length=3)]
    device: Annotated[str, Field(min_length=1)]
    threads: Annotated[int, Field(ge=1)]
    group_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
    group_places: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, validate_default=True)] = ()

    @field_validator("group_places")
    @classmethod
    def _are_in_the_groups(cls, places: tuple[int, ...], origin: ValidationInfo) -> tuple[int, ...]:
        sizes = origin.data.get("group_sizes", places)
        if len(places) != len(sizes) or any(place >= size for place, size in zip(places, sizes, strict=True)):
            raise ValueError("a place below its size is needed for each of group_sizes")
        return places


@dataclass(frozen=True)
class Member:
    """A network of an export."""

    config: TrialConfig
    origin: Origin


@dataclass(frozen=True)
class Exported:
    """An export folder that was read. An ensemble has several members, trained on the same data; others have one.

    `sha256` is the weights' file's, in hex; None where config.toml does not say.
    """

    folder: Path
    members: tuple[Member, ...]
    sha256: str | None

    @property
    def origin(self) -> Origin:
        """The first member's origin; the data that it names is every member's."""
        return self.members[0].origin

    @property
    def image_size(self) -> int:
        """The pixels of a side of the images that it takes."""
        return self.members[0].config.shape.image_size

    @property
    def shortened(self) -> str:
        """In what the members' trainings were shortened, as in "3 of 30 epochs"; empty where none was."""
        return "; ".join(sorted({member.origin.shortened for member in self.members} - {""}))

    def weights(self) -> list[dict[str, Tensor]]:
        """The members' state dicts, in order. Raises StudyError where the file is missing or damaged."""
        path = self.folder / "weights.safetensors"
        try:
            content = path.read_bytes()
            if self.sha256 not in (None, hashlib.sha256(content).hexdigest()):
                raise checkpoint.StateError("the file's checksum is not the one noted when it was written")
            tensors = checkpoint.unpack(content)
        except OSError as error:
            raise StudyError(f"{path}: the weights cannot be read: {error.strerror}.") from None
        except checkpoint.StateError as error:
            raise StudyError(f"{path}: {error}; write the export again.") from None
        if len(self.members) == 1:
            return [tensors]
        return [
            {name.removeprefix(f"{k}."): value for name, value in tensors.items() if name.startswith(f"{k}.")}
            for k in range(len(self.members))
        ]

    def trained(self) -> list[Trained]:
        """The members with their weights. Raises StudyError as `weights` does."""
        pairs = zip(self.members, self.weights(), strict=True)
        return [Trained(member.config, weights, member.origin) for member, weights in pairs]

    def classifier(self) -> Classifier:
        """The trained networks. Raises StudyError where the weights are missing or damaged, or do not fit."""
        try:
            return Classifier(self.trained(), mean=self.origin.channel_mean, std=self.origin.channel_std)
        except RuntimeError:
            raise StudyError(f"{self.folder}: weights.safetensors does not fit config.toml; export it again.") from None


def joined(exports: Sequence[Exported]) -> list[Trained]:
    """The members of several exports, in order, to make another ensemble of.

    Raises UsageError where they were trained on different data, and StudyError as `Exported.weights` does.
    """
    for other in exports[1:]:
        second, first = other.origin, exports[0].origin
        if second.data_fingerprint != first.data_fingerprint:
            raise UsageError(
                f"{other.folder}: trained on {second.data} ({second.data_fingerprint}), not as {exports[0].folder} on "
                f"{first.data} ({first.data_fingerprint}); an ensemble's members are trained on the same data."
            )
    return [member for export in exports for member in export.trained()]


def is_export(path: Path) -> bool:
    """Whether `path` is an export's folder or its ``config.toml``."""
    return (path / "config.toml").is_file() or (path.name == "config.toml" and path.is_file())


def read(path: Path) -> Exported:
    """The export at `path`, a folder or its ``config.toml``. Raises UsageError where there is none that can be read."""
    file = path / "config.toml" if path.is_dir() else path
    try:
        raw = read_toml(file)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{file}: there is no such file; give the config.toml of an export, or its folder.") from None
    except OSError as error:
        raise UsageError(f"{file}: the file cannot be read: {error.strerror}.") from None
    tables = raw.get("member", [raw])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{file}: not an exported config: [[member]] is a list of tables, one for each network.")
    members = tuple(_member(table, file=file) for table in tables)
    if len({member.origin.data_fingerprint for member in members}) > 1:
        raise UsageError(f"{file}: its members were trained on different data; an ensemble's are trained on the same.")
    weights = raw.get("weights", {})
    return Exported(file.parent, members, weights.get("sha256") if isinstance(weights, dict) else None)


def _member(table: Mapping[str, Any], *, file: Path) -> Member:
    if not isinstance(table.get("config"), dict) or not isinstance(table.get("origin"), dict):
        raise UsageError(f"{file}: not an exported config: it needs the tables [config] and [origin].")
    try:
        return Member(TrialConfig.from_dict(table["config"]), Origin(**table["origin"]))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{file}: [origin]: {key}: {first['msg'].lower()}; export the trial again.") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def known_test_accuracy(folder: Path) -> float | None:
    """The test accuracy (a fraction) in an export's ``metrics.json``; None where the file or the number is missing."""
    try:
        return float(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test_accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def evaluate_export(export: Exported, data: ImageData, *, device: torch.device) -> dict[str, Any]:
    """Read the test set, in float32. Accuracies are fractions; `confusion` counts images, a row per right class."""
    test = predict(export.classifier(), Batches(data, device=device).test(), device=device)
    counts = confusion(test.mean, test.labels)
    return {
        "export": str(export.folder),
        "shortened": export.shortened,
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        **measured(test),
        "members": [accuracy(probabilities, test.labels) for probabilities in test.probabilities],
        "classes": [
            {"class": name, "images": sum(row), "accuracy": row[label] / sum(row) if sum(row) else None}
            for label, (name, row) in enumerate(zip(data.classes, counts, strict=True))
        ],
        "confusion": counts,
    }


MOST_COLUMNS = 76  # of a terminal of 80
MOST_WORST, MOST_PAIRS = 15, 10


def tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """For a terminal of 80 columns: the confusion matrix with each class's accuracy, or, where that is wider, the worst
    classes and the commonest confusions.
    """
    classes = [(line(each["class"]), each["accuracy"]) for each in evaluation["classes"]]
    counts = evaluation["confusion"]
    name_width = max(len(name) for name, _ in classes)
    cell_width = max(*(len(str(count)) for row in counts for count in row), 2)
    share = ["-" if accuracy is None else f"{accuracy:.1%}" for _, accuracy in classes]
    if name_width + (2 + max(cell_width, len(str(len(classes))))) * len(classes) + 10 <= MOST_COLUMNS:
        caption = "a row is what the images show, a column what they were taken for"
        view = Table(box=None, padding=(0, 2, 0, 0), caption=caption)
        view.add_column("", no_wrap=True)
        for label in range(len(classes)):
            view.add_column(str(label), justify="right", no_wrap=True)
        view.add_column("accuracy", justify="right", no_wrap=True)
        for label, ((name, _), row) in enumerate(zip(classes, counts, strict=True)):
            cells = [f"[bold]{count}[/]" if place == label else str(count) for place, count in enumerate(row)]
            view.add_row(f"{label} {escape(name)}", *cells, share[label])
        return [view]
    worst = Table("worst classes", "images", "accuracy", box=None, padding=(0, 2, 0, 0))
    ranked = sorted(range(len(classes)), key=lambda label: (classes[label][1] is None, classes[label][1]))
    for label in ranked[:MOST_WORST]:
        worst.add_row(escape(classes[label][0]), str(sum(counts[label])), share[label])
    mixed = Table("shown", "taken for", "images", box=None, padding=(0, 2, 0, 0), caption="--json has the whole matrix")
    pairs = [(count, right, taken) for right, row in enumerate(counts) for taken, count in enumerate(row)]
    wrong = [pair for pair in pairs if pair[0] and pair[1] != pair[2]]
    for count, right, taken in sorted(wrong, key=lambda pair: -pair[0])[:MOST_PAIRS]:
        mixed.add_row(escape(classes[right][0]), escape(classes[taken][0]), str(count))
    return [worst, mixed]
