"""The service: `worker`, `pause`, `resume`, `cancel`, `delete`, `copy`. `submit` stands beside `run`."""

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_sweep.cli.options import (
    DATABASE_HELP,
    DEFAULT_STORAGE,
    Artifacts,
    Device,
    GroupSize,
    MaxHours,
    SameData,
    StorageUrl,
    Threads,
    Workers,
    artifacts_of,
    number_or_auto,
    printer,
    terminal,
    without_password,
)
from cifar_sweep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cifar_sweep.launch.plan import Plan
    from cifar_sweep.search.study import SweepStudy

Studies = Annotated[list[str] | None, typer.Argument(metavar="[STUDY]...", help="These alone; all that are open.")]
OneStudy = Annotated[str, typer.Argument(metavar="STUDY", help="The study.")]


def worker(
    studies: Studies = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Leave when nothing is left to train.")] = False,
    workers: Workers = "auto",
    group: GroupSize = "auto",
    threads: Threads = 0,
    device: Device = "auto",
    data: SameData = None,
    max_hours: MaxHours = None,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Train trials of submitted studies, the most urgent first, until told to stop."""
    from cifar_sweep.artifacts import open_artifacts
    from cifar_sweep.launch.local import serve
    from cifar_sweep.launch.plan import choose
    from cifar_sweep.launch.signals import stop_on_signals
    from cifar_sweep.results.progress import shown
    from cifar_sweep.search.opening import load
    from cifar_sweep.search.storage import open_existing
    from cifar_sweep.service import Job
    from cifar_sweep.training.device import resolve_device

    resolve_device(device)
    processes, at_once = number_or_auto("--workers", workers), number_or_auto("--group", group)
    deadline = time.time() + 3600 * max_hours if max_hours is not None else None
    opened = open_existing(storage)
    names = tuple(load(opened, name).name for name in studies or [])
    address = open_artifacts(artifacts).address if artifacts is not None else None
    say = printer(terminal())

    def plan(there: "Sequence[SweepStudy]") -> "Plan":
        sweeps = [study.sweep for study in there]
        made = choose(sweeps, device=device, workers=processes, threads=threads, group=at_once, say=say)
        for study in there:
            _note_costs(study, made)
        say(f"working on {', '.join(study.name for study in there)}; plan: {made}")
        return made

    @contextmanager
    def all_shown(there: "Sequence[SweepStudy]") -> "Iterator[None]":
        with ExitStack() as views:
            for study in there:
                views.enter_context(shown(study, terminal(), live=False))
            yield

    job = Job(storage, names, data=data, artifacts=address, device=device, deadline=deadline)
    say(f"worker on {opened.shown}" + ("" if until_idle else "; Ctrl-C or SIGTERM ends it"))
    with stop_on_signals() as stop:
        serve(job, until_idle=until_idle, plan=plan, shown=all_shown, stop=stop)
    raise typer.Exit(stop.exit_code())


def _note_costs(study: "SweepStudy", plan: "Plan") -> None:
    """Store what the study is reckoned to cost here, where nobody has yet. It is not worth waiting for a database."""
    from cifar_sweep.search.costs import TRAIN_IMAGES
    from cifar_sweep.search.outage import is_outage

    if plan.costs is None:
        return
    images = study.data.get("train_images", TRAIN_IMAGES)
    try:
        if study.costs is None:
            study.note_costs(plan.costs.model_copy(update={"train_images": images}))
    except Exception as error:
        if not is_outage(error):
            raise


def pause(study: OneStudy, storage: StorageUrl = DEFAULT_STORAGE) -> None:
    """Stop working on a study; `resume` goes on from each trial's last epoch."""
    from cifar_sweep.search.storage import PAUSED

    _set_state(study, PAUSED, storage, "its workers stop within {seconds:.0f} s or so; `cifar-sweep resume` goes on")


def resume(study: OneStudy, storage: StorageUrl = DEFAULT_STORAGE) -> None:
    """Let workers go on with a study that was paused or cancelled."""
    from cifar_sweep.search.storage import OPEN

    _set_state(study, OPEN, storage, "workers take it up again; `cifar-sweep worker` starts one")


def cancel(study: OneStudy, storage: StorageUrl = DEFAULT_STORAGE) -> None:
    """End a study: what is being trained is given up, what is finished stays."""
    from cifar_sweep.search.storage import CANCELLED

    _set_state(study, CANCELLED, storage, "its running trials end within {seconds:.0f} s or so; finished ones stay")


def _set_state(name: str, state: str, storage: str, then: str) -> None:
    from cifar_sweep.search.opening import load
    from cifar_sweep.search.storage import open_existing

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
    from cifar_sweep.keeping import remove_files
    from cifar_sweep.search.opening import load
    from cifar_sweep.search.queue import delete as delete_study
    from cifar_sweep.search.storage import open_existing

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
    from cifar_sweep.search.copying import copy_studies
    from cifar_sweep.search.storage import open_existing, open_storage

    say = printer(terminal())
    copied = copy_studies(open_existing(source), open_storage(target), studies or [], say=say)
    say(f"copied: {', '.join(copied) or 'nothing, there are no studies'}")
