"""The command line: the only place that turns an error into an exit code.

Each command is one short function: parse, call, print. Heavy modules are imported inside of them, so that
`cifar-sweep --help` loads neither torch nor Optuna.
"""

import atexit
import gc
import logging
import sys

import typer

from cifar_sweep.cli import networks, plan, report, service, studies, sweeps
from cifar_sweep.errors import CifarSweepError

app = typer.Typer(
    help="Hyperparameter sweeps for CIFAR-sized convolutional networks: run, watch, and take the best weights away.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for command in (
    plan.plan,
    sweeps.run,
    sweeps.submit,
    service.worker,
    studies.status,
    service.pause,
    service.resume,
    service.cancel,
    service.delete,
    service.copy,
    sweeps.list_sweeps,
    sweeps.bench,
    studies.compare,
    studies.plot,
    report.report,
    networks.export,
    networks.ensemble,
    networks.evaluate,
    networks.predict,
    networks.train,
    networks.model,
    studies.dashboard,
    sweeps.doctor,
):
    app.command(name="list" if command is sweeps.list_sweeps else None)(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Ends the process with 0, 1 (a failure), 2 (wrong usage) or 128 + a signal."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    atexit.register(gc.freeze)  # torch's objects would be looked through for cycles at the end: 0.4 s of every command
    try:
        app(arguments)
    except CifarSweepError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        known = _storage_fault(error)
        if known is None:
            raise
        _fail(str(known), known.exit_code)


def _storage_fault(error: Exception) -> CifarSweepError | None:
    """A database error in one sentence; the module that knows them is loaded wherever one can happen."""
    if "cifar_sweep.search.storage" not in sys.modules:
        return None
    from cifar_sweep.search.storage import explain

    return explain(error)


def _fail(sentence: str, exit_code: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(exit_code)
