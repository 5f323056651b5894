"""What several commands share: their options, the console, and loading studies and images."""

import functools
import json
import re
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from cifar_sweep.config import DEFAULT_STORAGE, Value
from cifar_sweep.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from cifar_sweep.artifacts import Artifacts as Store
    from cifar_sweep.exports.exported import Exported
    from cifar_sweep.machine.plan import Plan
    from cifar_sweep.study.storage import Storage
    from cifar_sweep.study.study import SweepStudy
    from cifar_sweep.sweep.sweep import Sweep
    from cifar_sweep.training.images.data import ImageData

_PASSWORD = re.compile(r"^[^/]*://[^/@]*:[^@]*@|[?&](ssl)?password=")
DATABASE_HELP = "sqlite:///FILE or postgresql://USER@HOST/DATABASE."


def without_password(context: typer.Context, parameter: typer.CallbackParam, address: str) -> str:
    """Refuse a database address that shows its password to everybody on the machine.

    Raises:
        UsageError: it has one, and stands on the command line.
    """
    told = context.get_parameter_source(str(parameter.name))
    if told is not None and told.name == "COMMANDLINE" and _PASSWORD.search(address):
        raise UsageError(
            f"{parameter.name}: a password on the command line is seen in the process list; accepted: "
            "the address without it, with PGPASSWORD or ~/.pgpass, or the whole of it in CIFAR_SWEEP_STORAGE."
        )
    return address


Data = Annotated[
    str,
    Option(
        envvar="CIFAR_SWEEP_DATA",
        help="auto (CIFAR-10 in data/, else downloaded), a folder (torchvision's, or {train,test}/CLASS/*), "
        "synthetic, or synthetic:N for N training images.",
    ),
]
SAME_DATA = "As in `run`; the same data if not given."
SameData = Annotated[str | None, Option("--data", envvar="CIFAR_SWEEP_DATA", help=SAME_DATA)]
MaxHours = Annotated[float | None, Option(min=0, help="Stop after so long; run again to go on.")]
Device = Annotated[str, Option(help="auto (CUDA when there is one), cpu, cuda, or cuda:N.")]
Threads = Annotated[int, Option(min=0, help="CPU threads of each worker; 0 shares the cores out.")]
WORKERS = "Processes that train; auto: what is measured to be fastest."
GROUP = "Trials of one shape that each worker trains at once, as one network; auto: what is measured to pay."
ARTIFACTS = """Where checkpoints and kept weights are: a folder, or s3://BUCKET/PREFIX. The study's if not given, which
is artifacts/ at first."""
PREVIEW_IMAGES = "synthetic:10000"  # drawn in a second; 60,000 take five
SETTINGS = "Fix a parameter (batch_size=32) or a key (pruner=none)."
StudyName = Annotated[str | None, Argument(metavar="[STUDY]", help="Study; the only one, if there is one.")]


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
    seed: Annotated[int | None, Option(min=0, help="Seed of the whole sweep.")] = None
    settings: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help=SETTINGS)] = None
    only: Annotated[str | None, Option(help="Of a sweep of given runs these, as in B-009,C-1.")] = None
    preview: Annotated[bool, Option("--preview", help="The same sweep at a small part of its cost.")] = False

    def load(self) -> "Sweep":
        """The sweep of this name or file, with what the options change."""
        from cifar_sweep.sweep.file import find, load

        options = {name: getattr(self, name) for name in ("trials", "epochs", "train_images", "seed")}
        changes = settings_of(self.settings or []) | {key: value for key, value in options.items() if value is not None}
        labels = [label.strip() for label in self.only.split(",")] if self.only is not None else []
        return load(find(self.sweep), changes=changes, preview=self.preview, only=labels)

    def images(self, *, quiet: bool = False) -> "tuple[str, ImageData]":
        """The source of the images, and the images. A preview downloads none, and takes synthetic ones instead."""
        from cifar_sweep.training.images.data import find_on_disk

        source = self.data
        if source == "auto" and self.preview and find_on_disk() is None:
            source = PREVIEW_IMAGES
            if not quiet:
                say("CIFAR-10 is not on this disk: this preview runs on synthetic images (--data FOLDER names yours).")
        return source, load_data(source, quiet=quiet)


@dataclass(frozen=True)
class WorkerOptions:
    """How the machine is shared out among workers: of `run`, `plan` and `worker`."""

    workers: Annotated[str, Option(envvar="CIFAR_SWEEP_WORKERS", help=WORKERS)] = "auto"
    group: Annotated[str, Option(envvar="CIFAR_SWEEP_GROUP", help=GROUP)] = "auto"
    threads: Threads = 0
    device: Device = "auto"

    def __post_init__(self) -> None:
        _ = self.processes, self.at_once  # a wrong number is refused before anything is made

    @property
    def processes(self) -> int:
        """The number of workers; 0 is auto."""
        return _number_or_auto("--workers", self.workers)

    @property
    def at_once(self) -> int:
        """How many trials each worker trains at once; 0 is auto."""
        return _number_or_auto("--group", self.group)

    def choose(self, sweeps: "Sequence[Sweep]", **rest: Any) -> "Plan":
        """The plan for these sweeps, as `machine.plan.choose` makes it; what is auto is measured."""
        from cifar_sweep.machine.plan import choose

        return choose(
            sweeps, device=self.device, workers=self.processes, threads=self.threads, group=self.at_once, **rest
        )  # fmt: skip


@dataclass(frozen=True)
class StorageOptions:
    """Which database: of every command that reads or writes studies."""

    storage: Annotated[
        str, Option("--storage", envvar="CIFAR_SWEEP_STORAGE", callback=without_password, help=DATABASE_HELP)
    ] = DEFAULT_STORAGE

    def open(self) -> "Storage":
        """The database. Raises StorageError where there is none."""
        from cifar_sweep.study.storage import open_existing

        return open_existing(self.storage)

    def load(self, name: str | None) -> "SweepStudy":
        """The study of this name; without a name the only one. Raises StudyError where there is none."""
        from cifar_sweep.study.opening import load

        return load(self.open(), name)


@dataclass(frozen=True)
class FileOptions(StorageOptions):
    """Which database, and where the files of its studies are."""

    artifacts: Annotated[str | None, Option(envvar="CIFAR_SWEEP_ARTIFACTS", help=ARTIFACTS)] = None

    @property
    def address(self) -> str | None:
        """The address that finds the files from anywhere; None where the study's own is taken."""
        from cifar_sweep.artifacts import open_artifacts

        return open_artifacts(self.artifacts).address if self.artifacts is not None else None

    def files_of(self, study: "SweepStudy") -> "Store":
        """Where the study's files are."""
        from cifar_sweep.artifacts import open_artifacts

        return open_artifacts(self.artifacts or study.artifacts)


@dataclass(frozen=True)
class NewStudyOptions(FileOptions):
    """Which study a sweep is run as: of `run` and `submit`."""

    study: Annotated[str | None, Option(help="Name of the study; the sweep's name if not given.")] = None
    priority: Annotated[int | None, Option(help="Workers take the open study of the highest first; 0 at first.")] = None


@dataclass(frozen=True)
class ImageOptions(FileOptions):
    """Which database, files, images and device: of every command that measures a study's networks."""

    data: SameData = None
    device: Device = "auto"

    def images_of(self, study: "SweepStudy", *, quiet: bool = False) -> "ImageData":
        """The images that the study was run on. Raises StudyError where `data` names others."""
        images = load_data(self.data or study.data["source"], quiet=quiet)
        study.check_data(name=images.name, fingerprint=images.fingerprint)
        return images


def terminal() -> "Console":
    """Where to print: as wide as the terminal is."""
    from rich.console import Console

    # Elsewhere than in a terminal nobody sees 80 columns: a table must not be cut there.
    return Console(width=None if sys.stdout.isatty() else 200)


def printer(console: "Console") -> Callable[[str], None]:
    """Prints lines as they are."""
    return lambda lines: console.print(lines, highlight=False, markup=False, soft_wrap=True)


def say(lines: str) -> None:
    """Print lines as they are."""
    printer(terminal())(lines)


def say_of(template: str, **facts: Any) -> None:
    """Print the lines that a file in `templates/` makes of these facts."""
    from cifar_sweep.pages import rendered

    say(rendered("cli", f"{template}.txt", **facts).rstrip())


def quiet(_: str) -> None:
    """Say nothing."""


def echo_json(plain: Any) -> None:
    """Print plain data as JSON."""
    typer.echo(json.dumps(plain, indent=2))


def deadline_of(max_hours: float | None) -> float | None:
    """When so many hours are over, in seconds since the epoch; None is never."""
    return time.time() + 3600 * max_hours if max_hours is not None else None


def _number_or_auto(option: str, text: str) -> int:
    """The value of an option that takes a whole number from 1, or auto, which is 0."""
    if text == "auto":
        return 0
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise UsageError(f"{option} {text}: accepted: auto, or a whole number from 1.")
    return int(text)


def settings_of(pairs: list[str]) -> dict[str, Value]:
    """The values of `--set key=value`, read as TOML; what is no TOML value is a word."""
    parsed: dict[str, Value] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals and text):
            raise UsageError(f"--set {pair}: a key and a value are needed, as in --set batch_size=32.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        if not isinstance(value, (bool, int, float, str)):
            raise UsageError(f"--set {pair}: a number, a word, true or false is needed.")
        parsed[key.strip()] = value
    return parsed


def load_data(source: str, *, quiet: bool = False) -> "ImageData":
    """The images of this source."""
    from cifar_sweep.training.images import data

    return data.load(source, on_progress=None if quiet else say)


def data_of_export(
    export: "Exported", source: str | None, *, must_match: bool = False, quiet: bool = False
) -> "ImageData":
    """The images that an export was trained on, from `source` or from where its kind is found.

    Other images of as many classes are only remarked on, unless they `must_match`; not even that where `quiet`.

    Raises:
        UsageError: they have another number of classes, or are others where they must not be.
    """
    origin = export.origin
    images = load_data(source or origin.data_source, quiet=quiet)
    if images.fingerprint == origin.data_fingerprint:
        return images
    if must_match or len(images.classes) != len(origin.classes):
        raise UsageError(
            f"{export.folder}: trained on {origin.data} ({len(origin.classes)} classes), not on {images.name} "
            f"({len(images.classes)} classes); name its data with --data."
        )
    if not quiet:
        say(f"note: the export was trained on {origin.data}, this is {images.name}: numbers will differ.")
    return images
