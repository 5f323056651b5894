"""What several commands share: their options, the console, and loading the images."""

import re
import sys
import tomllib
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_sweep.config import Value
from cifar_sweep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from cifar_sweep.artifacts import Artifacts as Store
    from cifar_sweep.exports.exported import Exported
    from cifar_sweep.study.study import SweepStudy
    from cifar_sweep.sweep.sweep import Sweep
    from cifar_sweep.training.images.data import ImageData

Data = Annotated[
    str,
    typer.Option(
        envvar="CIFAR_SWEEP_DATA",
        help="auto (CIFAR-10 in data/, else downloaded), a folder (torchvision's, or {train,test}/CLASS/*), "
        "synthetic, or synthetic:N for N training images.",
    ),
]
SameData = Annotated[
    str | None, typer.Option("--data", envvar="CIFAR_SWEEP_DATA", help="As in `run`; the same data if not given.")
]


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


_PASSWORD = re.compile(r"^[^/]*://[^/@]*:[^@]*@|[?&](ssl)?password=")
DATABASE_HELP = "sqlite:///FILE or postgresql://USER@HOST/DATABASE."
StorageUrl = Annotated[
    str,
    typer.Option("--storage", envvar="CIFAR_SWEEP_STORAGE", callback=without_password, help=DATABASE_HELP),
]
Artifacts = Annotated[
    str | None,
    typer.Option(
        envvar="CIFAR_SWEEP_ARTIFACTS",
        help="Where checkpoints and kept weights are: a folder, or s3://BUCKET/PREFIX. The study's if not given, which "
        "is artifacts/ at first.",
    ),
]
SweepName = Annotated[str, typer.Argument(help="A sweep by name (see `cifar-sweep list`), or a path to a TOML file.")]
Trials = Annotated[int | None, typer.Option(min=1, help="Finish exactly so many trials, restarts included.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs of each trial.")]
TrainImages = Annotated[int | None, typer.Option(min=1, help="Train on so many of the training images.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the whole sweep.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Fix a parameter (batch_size=32) or a key (pruner=none)."),
]
Only = Annotated[str | None, typer.Option(help="Of a sweep of given runs these, as in B-009,C-1.")]
AsPreview = Annotated[bool, typer.Option("--preview", help="The same sweep at a small part of its cost.")]
NewStudy = Annotated[str | None, typer.Option(help="Name of the study; the sweep's name if not given.")]
Priority = Annotated[
    int | None, typer.Option(help="Workers take trials of the open study of the highest first; 0 at first.")
]
Workers = Annotated[
    str,
    typer.Option(envvar="CIFAR_SWEEP_WORKERS", help="Processes that train; auto: what is measured to be fastest."),
]
GroupSize = Annotated[
    str,
    typer.Option(
        envvar="CIFAR_SWEEP_GROUP",
        help="Trials of one shape that each worker trains at once, as one network; auto: what is measured to pay.",
    ),
]
MaxHours = Annotated[float | None, typer.Option(min=0, help="Stop after so long; run again to go on.")]
Device = Annotated[str, typer.Option(help="auto (CUDA when there is one), cpu, cuda, or cuda:N.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads of each worker; 0 shares the cores out.")]
StudyName = Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Study; the only one, if there is one.")]


def terminal() -> "Console":
    """Where to print: as wide as the terminal is."""
    from rich.console import Console

    # Elsewhere than in a terminal nobody sees 80 columns: a table must not be cut there.
    return Console(width=None if sys.stdout.isatty() else 200)


def printer(console: "Console") -> "Callable[[str], None]":
    """Prints lines as they are."""
    return lambda lines: console.print(lines, highlight=False, markup=False, soft_wrap=True)


def number_or_auto(option: str, text: str) -> int:
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


def load_sweep(
    name: str,
    *,
    settings: list[str] | None,
    trials: int | None,
    epochs: int | None,
    train_images: int | None,
    seed: int | None,
    only: str | None,
    preview: bool,
) -> "Sweep":
    """The sweep of this name or file, with what the options change."""
    from cifar_sweep.sweep.file import find, load

    options = {"trials": trials, "epochs": epochs, "train_images": train_images, "seed": seed}
    changes = settings_of(settings or []) | {key: value for key, value in options.items() if value is not None}
    labels = [label.strip() for label in only.split(",")] if only is not None else []
    return load(find(name), changes=changes, preview=preview, only=labels)


def artifacts_of(study: "SweepStudy", address: str | None) -> "Store":
    """Where a study's files are, if not at `address`."""
    from cifar_sweep.artifacts import open_artifacts

    return open_artifacts(address or study.artifacts)


def load_data(source: str, console: "Console", *, download: bool, quiet: bool = False) -> "tuple[str, ImageData]":
    """The images, and the source that finds them again; the synthetic ones where nothing may be downloaded."""
    from cifar_sweep.training.images import data

    if source == "auto" and not download and data.find_on_disk() is None:
        source = "synthetic"
        console.print(
            "CIFAR-10 is not on this disk: this preview runs on synthetic images (--data FOLDER names yours)."
        )
    return source, data.load(source, on_progress=None if quiet else printer(console))


def data_of_study(study: "SweepStudy", source: str | None, console: "Console", *, quiet: bool = False) -> "ImageData":
    """The images that a study was run on, from `source` or from where the study found them.

    Raises:
        StudyError: they are other images.
    """
    _, images = load_data(source or study.data["source"], console, download=True, quiet=quiet)
    study.check_data(name=images.name, fingerprint=images.fingerprint)
    return images


def data_of_export(
    export: "Exported", source: str | None, console: "Console", *, must_match: bool = False, quiet: bool = False
) -> "ImageData":
    """The images that an export was trained on, from `source` or from where its kind is found.

    Other images of as many classes are only remarked on, unless they `must_match`; not even that where `quiet`.

    Raises:
        UsageError: they have another number of classes, or are others where they must not be.
    """
    origin = export.origin
    _, images = load_data(source or origin.data_source, console, download=True, quiet=quiet)
    if images.fingerprint == origin.data_fingerprint:
        return images
    if must_match or len(images.classes) != len(export.classes):
        raise UsageError(
            f"{export.folder}: trained on {origin.data} ({len(export.classes)} classes), not on {images.name} "
            f"({len(images.classes)} classes); name its data with --data."
        )
    if not quiet:
        console.print(f"note: the export was trained on {origin.data}, this is {images.name}: numbers will differ.")
    return images
