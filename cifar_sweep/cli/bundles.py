"""Options that belong together, as dataclasses: what they are for, and what is made of them."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer
from typer import Argument, Option

from cifar_sweep.artifacts import Artifacts, open_artifacts
from cifar_sweep.cli import rooms
from cifar_sweep.cli.options import (
    SKIP_DAMAGED,
    Address,
    Data,
    Device,
    SameData,
    Threads,
    say,
    settings_of,
    without_password,
)
from cifar_sweep.config import DEFAULT_STORAGE
from cifar_sweep.errors import UsageError

WORKERS = "Processes that train; auto: what is measured to be fastest."
GROUP = "Trials of one shape that each worker trains at once, as one network; auto: what is measured to pay."
HOURS = """The whole search, its confirmation included, in so many hours: trials, epochs and images are cut to fit, and
the end is kept."""
PREVIEW_IMAGES = "synthetic:10000"  # drawn in a second; 60,000 take five
SETTINGS = "Fix a parameter (batch_size=32) or a key (pruner=none)."
CONFIRM = "TRIALS,SEEDS as in 5,3: so many of the best trials again, under so many fresh seeds each."
FROM = "Begin with what another study knows: STUDY, or DATABASE::STUDY of another database."
EXTEND = "A study that has run gets the edited sweep as its own: more trials, longer ones, another space."
ARTIFACTS = """Where checkpoints and kept weights are: a folder, or s3://BUCKET/PREFIX. The study's if not given, which
is artifacts/ at first."""


def number_or_auto(parameter: typer.CallbackParam, text: str) -> str:
    """Raise UsageError for anything else than auto, or a whole number from 1."""
    if text != "auto" and not (text.isascii() and text.isdecimal() and int(text)):
        raise UsageError(f"--{parameter.name} {text}: accepted: auto, or a whole number from 1.")
    return text


def hours_from(hours: float | None) -> float | None:
    """Raise UsageError for what is no length of time."""
    if hours is not None and not 0 < hours < math.inf:
        raise UsageError(f"--hours {hours:g}: accepted: a number above 0, such as 0.5 or 8.")
    return hours


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer takes it: a parameter that is one of the dataclasses below becomes the options in it."""
    own = signature(command).parameters
    shared: dict[str, Any] = {name: each.annotation for name, each in own.items() if is_dataclass(each.annotation)}
    parts = {name: signature(bundle).parameters for name, bundle in shared.items()}

    @functools.wraps(command)
    def called(**given: Any) -> None:
        bundles = {name: shared[name](**{part: given.pop(part) for part in names}) for name, names in parts.items()}
        command(**bundles, **given)

    options = [part for name, each in own.items() for part in parts.get(name, {name: each}).values()]
    named = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in options]
    called.__signature__ = Signature(named)  # type: ignore[attr-defined]
    return called


@dataclass(frozen=True)
class SweepOptions:
    """Which sweep, on which images: of `run`, `submit` and `plan`."""

    sweep: Annotated[str, Argument(help="A sweep by name (see `cifar-sweep list`), or a path to a TOML file.")]
    trials: Annotated[int | None, Option(min=1, help="Finish exactly so many trials, restarts included.")] = None
    epochs: Annotated[int | None, Option(min=1, help="Epochs of each trial.")] = None
    train_images: Annotated[int | None, Option(min=1, help="Train on so many of the training images.")] = None
    data: Data = "auto"
    skip_damaged: Annotated[bool, Option("--skip-damaged", help=SKIP_DAMAGED)] = False
    seed: Annotated[int | None, Option(min=0, help="Seed of the whole sweep.")] = None
    settings: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help=SETTINGS)] = None
    only: Annotated[str | None, Option(help="Of a sweep of given runs these, as in B-009,C-1.")] = None
    preview: Annotated[bool, Option("--preview", help="The same sweep at a small part of its cost.")] = False
    confirm: Annotated[str | None, Option(metavar="TRIALS,SEEDS", help=CONFIRM)] = None

    def load(self) -> "rooms.sweep.Sweep":
        """The sweep of this name or file, with what the options change."""
        options = {name: getattr(self, name) for name in ("trials", "epochs", "train_images", "seed")}
        changes = settings_of(self.settings or []) | {key: value for key, value in options.items() if value is not None}
        labels = [label.strip() for label in self.only.split(",")] if self.only is not None else []
        sweep = rooms.file.load(rooms.file.find(self.sweep), changes=changes, preview=self.preview, only=labels)
        if self.confirm is None:
            return sweep
        pair = [int(part) if part.strip().isdecimal() else part for part in self.confirm.split(",")]
        return rooms.parsing.parse(sweep.model_dump(mode="json") | {"confirm": pair}, where=f"--confirm {self.confirm}")

    def images(self, sweep: "rooms.sweep.Sweep", *, quiet: bool = False) -> "tuple[str, rooms.data.ImageData]":
        """The source of the images, and the images. A preview downloads none, and takes synthetic ones instead.

        Says what was passed over, resized or set aside.
        """
        source = self.data
        if source == "auto" and self.preview and rooms.data.find_on_disk() is None:
            source = PREVIEW_IMAGES
            if not quiet:
                say("CIFAR-10 is not on this disk: this preview runs on synthetic images (--data FOLDER names yours).")
        how: dict[str, Any] = {"side": sweep.image_size, "skip_damaged": self.skip_damaged}
        images = rooms.data.load(source, on_progress=None if quiet else say, **how)
        for line in [images.counted, *images.notes] if images.notes and not quiet else []:
            say(line)
        return source, images


@dataclass(frozen=True)
class WorkerOptions:
    """How the machine is shared out among workers: of `run`, `plan` and `worker`."""

    workers: Annotated[str, Option(envvar="CIFAR_SWEEP_WORKERS", callback=number_or_auto, help=WORKERS)] = "auto"
    group: Annotated[str, Option(envvar="CIFAR_SWEEP_GROUP", callback=number_or_auto, help=GROUP)] = "auto"
    threads: Threads = 0
    device: Device = "auto"

    @property
    def processes(self) -> int:
        """The number of workers; 0 is auto."""
        return 0 if self.workers == "auto" else int(self.workers)

    @property
    def at_once(self) -> int:
        """How many trials each worker trains at once; 0 is auto."""
        return 0 if self.group == "auto" else int(self.group)

    def choose(self, sweeps: "Sequence[rooms.sweep.Sweep]", **rest: Any) -> "rooms.plan.Plan":
        """The plan for these sweeps, as `machine.plan.choose` makes it; what is auto is measured."""
        asked: dict[str, Any] = {"workers": self.processes, "threads": self.threads, "group": self.at_once}
        return rooms.plan.choose(sweeps, device=self.device, **asked, **rest)


@dataclass(frozen=True)
class StorageOptions:
    """Which database: of every command that reads or writes studies."""

    storage: Address = DEFAULT_STORAGE

    def open(self) -> "rooms.storage.Storage":
        """The database. Raises StorageError where there is none."""
        return rooms.storage.open_existing(self.storage)

    def load(self, name: str | None) -> "rooms.study.SweepStudy":
        """The study of this name; without a name the only one. Raises StudyError where there is none."""
        return rooms.opening.load(self.open(), name)


@dataclass(frozen=True)
class FileOptions(StorageOptions):
    """Which database, and where the files of its studies are."""

    artifacts: Annotated[str | None, Option(envvar="CIFAR_SWEEP_ARTIFACTS", help=ARTIFACTS)] = None

    def files_of(self, study: "rooms.study.SweepStudy") -> Artifacts:
        """Where the study's files are."""
        return open_artifacts(self.artifacts or study.artifacts)


@dataclass(frozen=True)
class NewStudyOptions(FileOptions):
    """Which study a sweep is run as: of `run` and `submit`."""

    study: Annotated[str | None, Option(help="Name of the study; the sweep's name if not given.")] = None
    hours: Annotated[float | None, Option(help=HOURS, callback=hours_from)] = None
    priority: Annotated[int | None, Option(help="Workers take the open study of the highest first; 0 at first.")] = None
    earlier: Annotated[str | None, Option("--from", metavar="STUDY", callback=without_password, help=FROM)] = None
    extend: Annotated[bool, Option("--extend", help=EXTEND)] = False

    def earlier_study(self) -> "rooms.study.SweepStudy | None":
        """The study of `--from`. Raises StudyError or StorageError where there is none."""
        if self.earlier is None:
            return None
        address, _, name = self.earlier.rpartition("::")
        return StorageOptions(address or self.storage).load(name)


@dataclass(frozen=True)
class ImageOptions(FileOptions):
    """Which database, files, images and device: of every command that measures a study's networks."""

    data: SameData = None
    device: Device = "auto"

    def images_of(self, study: "rooms.study.SweepStudy", *, quiet: bool = False) -> "rooms.data.ImageData":
        """The images that the study was run on. Raises StudyError where `data` names others."""
        how: dict[str, Any] = {"may_download": self.data is not None, "on_progress": None if quiet else say}
        return rooms.trained.images_of(study, self.data, **how)
