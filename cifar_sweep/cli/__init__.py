"""The command line: the only place that turns an error into an exit code.

Each command is one short function: parse, call, print. What it calls below is loaded by `rooms`, when it is called.
"""

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable

import typer

from cifar_sweep.cli import bundles, machine, networks, output, queue, rooms, run, studies
from cifar_sweep.errors import CifarSweepError

app = typer.Typer(
    help="Hyperparameter sweeps for CIFAR-sized convolutional networks: run, watch, and take the best weights away.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

COMMANDS: tuple[Callable[..., None], ...] = (
    machine.plan, run.run, run.submit, run.worker, studies.status,
    queue.pause, queue.resume, queue.cancel, queue.delete, queue.copy,
    machine.list_sweeps, machine.convert, machine.bench, studies.compare, studies.plot, studies.report, studies.replay,
    networks.export, networks.ensemble, networks.evaluate, networks.predict, networks.train, networks.model,
    studies.dashboard, machine.doctor,
)  # fmt: skip
for command in COMMANDS:  # in the order of `--help`
    app.command(name="list" if command is machine.list_sweeps else None)(bundles.spread(command))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Ends the process with 0, 1 (a failure), 2 (wrong usage) or 128 + a signal."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    atexit.register(gc.freeze)  # torch's objects would be looked through for cycles at the end: 0.4 s of every command
    try:
        os.getcwd()
    except FileNotFoundError:
        _fail("the folder that you are in was deleted; accepted: to go to one that is there.", 1)
    with output.protected(sys.argv[1:] if arguments is None else arguments):
        _run(arguments)


def _run(arguments: list[str] | None) -> None:
    try:
        try:
            app(arguments)
        finally:
            sys.stdout.flush()
    except CifarSweepError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if "cifar_sweep.study.storage" not in sys.modules:  # no database was opened
            raise
        known = rooms.outage.explain(error)
        if known is None:
            raise
        _fail(str(known), known.exit_code)


def _fail(sentence: str, exit_code: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(exit_code)
