"""The queue of studies: `pause`, `resume`, `cancel`, `delete`, `copy`."""

from typing import Annotated

import typer
from typer import Argument, Option

from cifar_sweep.cli import rooms
from cifar_sweep.cli.bundles import FileOptions, StorageOptions
from cifar_sweep.cli.options import DATABASE, say, without_password
from cifar_sweep.errors import UsageError

Studies = Annotated[list[str] | None, Argument(metavar="[STUDY]...", help="These alone; all that are open.")]
KEEP_FILES = "Leave checkpoints and weights: a copy in another database has them, too."
OneStudy = Annotated[str, Argument(metavar="STUDY", help="The study.")]


def pause(study: OneStudy, place: StorageOptions) -> None:
    """Stop working on a study; `resume` goes on from each trial's last epoch."""
    then = "its workers stop within {seconds:.0f} s or so; `cifar-sweep resume` goes on"
    _set_state(study, rooms.storage.PAUSED, place, then)


def resume(study: OneStudy, place: StorageOptions) -> None:
    """Let workers go on with a study that was paused or cancelled."""
    _set_state(study, rooms.storage.OPEN, place, "workers take it up again; `cifar-sweep worker` starts one")


def cancel(study: OneStudy, place: StorageOptions) -> None:
    """End a study: what is being trained is given up, what is finished stays."""
    then = "its running trials end within {seconds:.0f} s or so; finished ones stay"
    _set_state(study, rooms.storage.CANCELLED, place, then)


def _set_state(name: str, state: str, place: StorageOptions, then: str) -> None:
    study = place.load(name)
    study.set_state(state)
    say(f"study {study.name} is {study.state}: {then.format(seconds=study.storage.heartbeat_seconds)}")


def delete(
    study: OneStudy,
    *,
    yes: Annotated[bool, Option("--yes", help="Do not ask.")] = False,
    keep_files: Annotated[bool, Option("--keep-files", help=KEEP_FILES)] = False,
    place: FileOptions,
) -> None:
    """Delete a study with all its trials, checkpoints and weights. Exports stay."""
    doomed = place.load(study)
    store, opened = place.files_of(doomed), doomed.storage
    keep_files = keep_files or not rooms.files.is_own(doomed, store)  # a copy's are the original's, too
    files = f", {'but not' if keep_files else 'and'} its files from {store.shown}"
    question = f"Delete study {study} with its {len(doomed.trials())} trials from {opened.shown}{files}?"
    try:
        confirmed = yes or typer.confirm(question)
    except typer.Abort:  # the input has ended: nobody is there to answer
        confirmed = False
    if not confirmed:
        raise UsageError(f"study {study!r} was not deleted; accepted: y at the question, or --yes.")
    rooms.opening.delete(opened, study, files=None if keep_files else store)
    say(f"study {study} is deleted")


def copy(
    source: Annotated[str, Argument(metavar="FROM", callback=without_password, help=DATABASE)],
    target: Annotated[str, Argument(metavar="TO", callback=without_password, help="Likewise; made if needed.")],
    studies: Studies = None,
) -> None:
    """Copy studies to another database; `delete --keep-files` removes the originals. Pause them before.

    Checkpoints and weights stay where they are, and are found from both.
    """
    databases = rooms.storage.open_existing(source), rooms.storage.open_storage(target)
    copied = rooms.copying.copy_studies(*databases, studies or [], say=say)
    say(f"copied: {', '.join(copied) or 'nothing, there are no studies'}")
