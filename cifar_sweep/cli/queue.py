"""The queue of studies: `pause`, `resume`, `cancel`, `delete`, `copy`."""

from typing import TYPE_CHECKING, Annotated

import typer

from cifar_sweep.cli.options import (
    DATABASE_HELP,
    Artifacts,
    StorageUrl,
    artifacts_of,
    printer,
    terminal,
    without_password,
)
from cifar_sweep.config import DEFAULT_STORAGE
from cifar_sweep.errors import UsageError

if TYPE_CHECKING:
    pass


Studies = Annotated[list[str] | None, typer.Argument(metavar="[STUDY]...", help="These alone; all that are open.")]
OneStudy = Annotated[str, typer.Argument(metavar="STUDY", help="The study.")]


def pause(study: OneStudy, storage: StorageUrl = DEFAULT_STORAGE) -> None:
    """Stop working on a study; `resume` goes on from each trial's last epoch."""
    from cifar_sweep.study.storage import PAUSED

    _set_state(study, PAUSED, storage, "its workers stop within {seconds:.0f} s or so; `cifar-sweep resume` goes on")


def resume(study: OneStudy, storage: StorageUrl = DEFAULT_STORAGE) -> None:
    """Let workers go on with a study that was paused or cancelled."""
    from cifar_sweep.study.storage import OPEN

    _set_state(study, OPEN, storage, "workers take it up again; `cifar-sweep worker` starts one")


def cancel(study: OneStudy, storage: StorageUrl = DEFAULT_STORAGE) -> None:
    """End a study: what is being trained is given up, what is finished stays."""
    from cifar_sweep.study.storage import CANCELLED

    _set_state(study, CANCELLED, storage, "its running trials end within {seconds:.0f} s or so; finished ones stay")


def _set_state(name: str, state: str, storage: str, then: str) -> None:
    from cifar_sweep.study.opening import load
    from cifar_sweep.study.storage import open_existing

    opened = open_existing(storage)
    study = load(opened, name)
    study.set_state(state)
    printer(terminal())(f"study {study.name} is {study.state}: {then.format(seconds=opened.heartbeat_seconds)}")


def delete(
    study: OneStudy,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keep_files: Annotated[
        bool,
        typer.Option("--keep-files", help="Leave checkpoints and weights: a copy in another database has them, too."),
    ] = False,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Delete a study with all its trials, checkpoints and weights. Exports stay."""
    from cifar_sweep.study.files import remove_files
    from cifar_sweep.study.opening import delete as delete_study
    from cifar_sweep.study.opening import load
    from cifar_sweep.study.storage import open_existing

    opened = open_existing(storage)
    the_study = load(opened, study)
    store = artifacts_of(the_study, artifacts)
    files = f", but not its files from {store.shown}" if keep_files else f", and its files from {store.shown}"
    question = f"Delete study {the_study.name} with its {len(the_study.trials())} trials from {opened.shown}{files}?"
    if not yes and not _confirmed(question):
        raise UsageError(f"study {study!r} was not deleted; accepted: y at the question, or --yes.")
    delete_study(opened, study, remove_files=lambda each: None if keep_files else remove_files(each, store))
    printer(terminal())(f"study {study} is deleted")


def _confirmed(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:  # the input has ended: nobody is there to answer
        return False


def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", callback=without_password, help=DATABASE_HELP)],
    target: Annotated[str, typer.Argument(metavar="TO", callback=without_password, help="Likewise; made if needed.")],
    studies: Studies = None,
) -> None:
    """Copy studies to another database; `delete --keep-files` removes the originals. Pause them before.

    Checkpoints and weights stay where they are, and are found from both.
    """
    from cifar_sweep.study.copying import copy_studies
    from cifar_sweep.study.storage import open_existing, open_storage

    say = printer(terminal())
    copied = copy_studies(open_existing(source), open_storage(target), studies or [], say=say)
    say(f"copied: {', '.join(copied) or 'nothing, there are no studies'}")
