"""Reading an export folder: its config, what it comes from, and the classifier that it is."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.results.classifier import Classifier
from cifar_sweep.results.export import Provenance, Trained
from cifar_sweep.training import checkpoint

ORIGIN_KEYS = (
    "study", "trial", "label", "shortened", "data", "data_source", "data_fingerprint", "classes", "channel_mean",
    "channel_std", "device",
    "threads", "params",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A network of an export: what was trained, and where it comes from (the keys of `ORIGIN_KEYS`)."""

    config: TrialConfig
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class Exported:
    """An export folder, read. An ensemble has several members, all on the same data; any other export has one."""

    folder: Path
    members: tuple[Member, ...]
    sha256: str | None

    @property
    def origin(self) -> Mapping[str, Any]:
        """The first member's; what it says of the data holds for all."""
        return self.members[0].origin

    @property
    def classes(self) -> list[str]:
        """Class names, by label."""
        return list(self.origin["classes"])

    def weights(self) -> list[dict[str, Tensor]]:
        """The members' state dicts, in order.

        Raises:
            StudyError: the file is missing, damaged, or another export's.
        """
        path = self.folder / "weights.safetensors"
        try:
            tensors = checkpoint.load(path, sha256=self.sha256)
        except OSError as error:
            raise StudyError(f"{path}: the weights cannot be read: {error.strerror}.") from None
        except checkpoint.DamagedFileError as error:
            raise StudyError(f"{error}; write the export again.") from None
        if len(self.members) == 1:
            return [tensors]
        return [
            {name.removeprefix(f"{k}."): value for name, value in tensors.items() if name.startswith(f"{k}.")}
            for k in range(len(self.members))
        ]

    def classifier(self) -> Classifier:
        """The trained networks.

        Raises:
            StudyError: the weights are missing, damaged, or do not fit the config.
        """
        weights = self.weights()
        try:
            return Classifier(
                [member.config for member in self.members],
                weights,
                mean=self.origin["channel_mean"],
                std=self.origin["channel_std"],
            )
        except RuntimeError:
            raise StudyError(f"{self.folder}: weights.safetensors does not fit config.toml; export it again.") from None

    def trained(self) -> list[Trained]:
        """The members as trainings, to make another ensemble of.

        Raises:
            StudyError: the weights are missing or damaged, or metrics.json is.
        """
        metrics = known_metrics(self.folder)
        if metrics is None:
            raise StudyError(f"{self.folder}: metrics.json is missing or damaged; export it again.")
        curves = [metrics.get("curve")] if len(self.members) == 1 else [[known] for known in metrics["members"]]
        return [
            Trained(
                member.config,
                weights,
                [{"epoch": point.get("epoch", point.get("best_epoch")), **point} for point in curve or []],
                provenance_from(member.origin, metrics),
            )
            for member, weights, curve in zip(self.members, self.weights(), curves, strict=True)
        ]


def provenance_from(origin: Mapping[str, Any], metrics: Mapping[str, Any]) -> Provenance:
    """The provenance that an export's files tell."""
    versions = {name: value for name, value in metrics["environment"].items() if name not in ("device", "threads")}
    return Provenance(
        study=origin["study"],
        trial=int(origin["trial"]),
        params=origin["params"],
        source=origin["data_source"],
        device=origin["device"],
        threads=int(origin["threads"]),
        versions=versions,
        commit=metrics["commit"],
        label=origin["label"],
        shortened=origin["shortened"],
    )


def read(path: Path) -> Exported:
    """An export by its folder, or by its ``config.toml``.

    Raises:
        UsageError: there is no such file, or it is not one of ours.
    """
    file = path / "config.toml" if path.is_dir() else path
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{file}: there is no such file; give the config.toml of an export, or its folder.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: not a readable TOML file: {error}.") from None
    tables = raw.get("member", [raw])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{file}: not an exported config: [[member]] is a list of tables, one for each network.")
    members = tuple(_member(table, file=file) for table in tables)
    if len({member.origin["data_fingerprint"] for member in members}) > 1:
        raise UsageError(f"{file}: its members were trained on different data; an ensemble's are trained on the same.")
    weights = raw.get("weights", {})
    return Exported(file.parent, members, weights.get("sha256") if isinstance(weights, dict) else None)


def _member(table: Mapping[str, Any], *, file: Path) -> Member:
    if not isinstance(table.get("config"), dict) or not isinstance(table.get("origin"), dict):
        raise UsageError(f"{file}: not an exported config: it needs the tables [config] and [origin].")
    missing = [key for key in ORIGIN_KEYS if key not in table["origin"]]
    if missing:
        raise UsageError(f"{file}: [origin]: {', '.join(missing)} is missing; it has all of {', '.join(ORIGIN_KEYS)}.")
    try:
        return Member(TrialConfig.from_dict(table["config"]), table["origin"])
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def known_metrics(folder: Path) -> dict[str, Any] | None:
    """The metrics of an export, if they are there."""
    try:
        return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
