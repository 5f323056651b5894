"""What several commands share: single options, and the console."""

import json
import re
import sys
import time
import tomllib
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import Value

if TYPE_CHECKING:
    from rich.console import Console

_PASSWORD = re.compile(r"^[^/]*://[^/@]*:[^@]*@|[?&](ssl)?password=")
DATABASE = "sqlite:///FILE or postgresql://USER@HOST/DATABASE."


def without_password(context: typer.Context, parameter: typer.CallbackParam, address: str | None) -> str | None:
    """Raise UsageError for a database address on the command line that shows everybody its password."""
    told = context.get_parameter_source(str(parameter.name))
    if address and told is not None and told.name == "COMMANDLINE" and _PASSWORD.search(address):
        raise UsageError(
            f"{parameter.name}: a password on the command line is seen in the process list; accepted: "
            "the address without it, with PGPASSWORD or ~/.pgpass, or the whole of it in CIFAR_SWEEP_STORAGE."
        )
    return address


def deadline_of(max_hours: float | None) -> float | None:
    """When so many hours are over, in seconds since the epoch; None is never."""
    return time.time() + 3600 * max_hours if max_hours is not None else None


DATA = """auto (CIFAR-10 in data/, else downloaded); cifar100, mnist, fashion_mnist, kmnist, svhn, stl10 or eurosat
likewise; a folder ({train,test}/CLASS/* or CIFAR's); arrays (.npz); synthetic, or synthetic:N for N training images."""
SKIP_DAMAGED = "Leave out images that cannot be read; the study notes them."
Data = Annotated[str, Option(envvar="CIFAR_SWEEP_DATA", help=DATA)]
Address = Annotated[str, Option("--storage", envvar="CIFAR_SWEEP_STORAGE", callback=without_password, help=DATABASE)]
SAME_DATA = "As in `run`; the same data if not given."
SameData = Annotated[str | None, Option("--data", help=SAME_DATA)]
MAX_HOURS = "Stop this command after so long, wherever the sweep is; run again to go on."
Deadline = Annotated[float | None, Option("--max-hours", min=0, callback=deadline_of, help=MAX_HOURS)]
Device = Annotated[str, Option(help="auto (CUDA when there is one), cpu, cuda, or cuda:N.")]
Threads = Annotated[int, Option(min=0, help="CPU threads of each worker; 0 shares the cores out.")]
StudyName = Annotated[str | None, Argument(metavar="[STUDY]", help="Study; the only one, if there is one.")]


def terminal() -> "Console":
    """Where to print: as wide as the terminal is."""
    from rich.console import Console

    # Elsewhere than in a terminal nobody sees 80 columns: a table must not be cut there.
    return Console(width=None if sys.stdout.isatty() else 200)


def say(lines: str, console: "Console | None" = None) -> None:
    (console or terminal()).print(lines, highlight=False, markup=False, soft_wrap=True)


def say_of(template: str, **facts: Any) -> None:
    """Print the lines that a file in `templates/` makes of these facts."""
    from cifar_sweep.pages import rendered

    say(rendered("cli", f"{template}.txt", **facts).rstrip())


def echo_json(plain: Any) -> None:
    print(json.dumps(plain, indent=2))  # not by click, which tries a stream out and passes its error over


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
        if isinstance(value, list) and value:
            value = ",".join(str(entry) for entry in value)  # as a list of layers is kept
        if not isinstance(value, (bool, int, float, str)):
            raise UsageError(f"--set {pair}: a number, a word, true or false is needed, or a list of these.")
        parsed[key.strip()] = value
    return parsed
