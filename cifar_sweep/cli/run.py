"""Running sweeps: `run`, `submit`, `worker`."""

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_sweep.cli.options import (
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
)
from cifar_sweep.config import DEFAULT_STORAGE
from cifar_sweep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cifar_sweep.machine.plan import Plan
    from cifar_sweep.study.study import SweepStudy
from dataclasses import replace

from cifar_sweep.cli.options import (
    AsPreview,
    Data,
    Epochs,
    NewStudy,
    Only,
    Priority,
    Seed,
    Settings,
    SweepName,
    TrainImages,
    Trials,
    load_data,
    load_sweep,
)
from cifar_sweep.cli.queue import Studies

if TYPE_CHECKING:
    from rich.console import Console

    from cifar_sweep.machine.plan import Plan
    from cifar_sweep.study.study import SweepStudy
    from cifar_sweep.sweep.sweep import Sweep


def run(
    sweep: SweepName,
    trials: Trials = None,
    epochs: Epochs = None,
    train_images: TrainImages = None,
    workers: Workers = "auto",
    group: GroupSize = "auto",
    threads: Threads = 0,
    device: Device = "auto",
    data: Data = "auto",
    seed: Seed = None,
    settings: Settings = None,
    only: Only = None,
    preview: AsPreview = False,
    max_hours: MaxHours = None,
    on: Annotated[
        str | None, typer.Option(help="ray, or ray://HOST:PORT: workers on a Ray cluster, as many as --workers says.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="With --on: GPUs of each worker, or a fraction of one; 0 if not given.")
    ] = None,
    study: NewStudy = None,
    priority: Priority = None,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Run a sweep, or continue it: the same command goes on where the last one stopped."""
    from cifar_sweep.forecast.costs import TRAIN_IMAGES, note_costs
    from cifar_sweep.machine.plan import choose
    from cifar_sweep.study.outage import wait_out
    from cifar_sweep.terminal.progress import shown
    from cifar_sweep.training.device import resolve_device
    from cifar_sweep.work.signals import stop_on_signals
    from cifar_sweep.work.worker import Job, run_workers

    deadline = time.time() + 3600 * max_hours if max_hours is not None else None
    processes, at_once = number_or_auto("--workers", workers), number_or_auto("--group", group)
    if on is None:
        resolve_device(device)
        if gpus_per_worker is not None:
            raise UsageError(
                "--gpus-per-worker: here workers share the GPUs out by themselves; accepted with --on ray."
            )
        address = ""
    else:
        address = _check_cluster(on, storage, artifacts, device, gpus_per_worker or 0.0, workers=processes)
    console = terminal()
    chosen = load_sweep(
        sweep, settings=settings, trials=trials, epochs=epochs, train_images=train_images, seed=seed, only=only,
        preview=preview,
    )  # fmt: skip
    the_study, source = _submit(chosen, study, data, storage, artifacts, priority, preview=preview, console=console)
    job = Job(storage, (the_study.name,), data=source, device=device, deadline=deadline)
    if on is not None:
        from cifar_sweep.work.ray import run_on_ray

        with stop_on_signals() as stop, shown(the_study, console):
            run_on_ray(
                replace(job, threads=threads), address, workers=processes, gpus=gpus_per_worker or 0.0, group=at_once,
                stop=stop, say=printer(console),
            )  # fmt: skip
    else:
        plan = choose(
            [chosen], device=device, workers=processes, threads=threads, group=at_once, say=printer(console),
            train_images=the_study.data.get("train_images", TRAIN_IMAGES),
        )  # fmt: skip
        if plan.costs:
            note_costs(the_study, plan.costs)
        _say_start(the_study, device, plan, console)
        with stop_on_signals() as stop, shown(the_study, console):
            run_workers(job, plan, stop=stop)
    # The database may have been away in the meantime, or be so now.
    wait_out(lambda: _say_end(the_study, storage, console), stop=stop, say=printer(console))
    # Another point takes the place of a trial that failed, but never of a given one.
    missing = chosen.given and wait_out(the_study.missing, stop=stop, say=printer(console))
    raise typer.Exit(stop.exit_code() or int(missing))


def _check_cluster(on: str, storage: str, artifacts: str | None, device: str, gpus: float, *, workers: int) -> str:
    """The cluster's address; what cannot be is refused, before a study is made of it."""
    from cifar_sweep.work.ray_cluster import check_request

    address = check_request(on, storage=storage, artifacts=artifacts or "", device=device, gpus=gpus)
    if not workers:
        raise UsageError("--workers auto: a cluster's nodes are not known beforehand; accepted with --on: a number.")
    return address


def submit(
    sweep: SweepName,
    trials: Trials = None,
    epochs: Epochs = None,
    train_images: TrainImages = None,
    data: Data = "auto",
    seed: Seed = None,
    settings: Settings = None,
    only: Only = None,
    preview: AsPreview = False,
    study: NewStudy = None,
    priority: Priority = None,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
) -> None:
    """Put a sweep into the database, for `cifar-sweep worker` to train, here or on any machine that reaches it."""
    console = terminal()
    chosen = load_sweep(
        sweep, settings=settings, trials=trials, epochs=epochs, train_images=train_images, seed=seed, only=only,
        preview=preview,
    )  # fmt: skip
    the_study, _ = _submit(chosen, study, data, storage, artifacts, priority, preview=preview, console=console)
    printer(console)(
        f"study {the_study.name}: {the_study.budget} trials on {the_study.data['name']}\n"
        f"priority {the_study.priority}, in {the_study.storage.shown}\n"
        f"checkpoints and weights go to {artifacts_of(the_study, None).shown}\n"
        f"next: cifar-sweep worker{_at(the_study, storage)}   trains it; any number of them, on any machine"
    )


def _submit(
    chosen: "Sweep",
    name: str | None,
    data: str,
    storage: str,
    artifacts: str | None,
    priority: int | None,
    *,
    preview: bool,
    console: "Console",
) -> "tuple[SweepStudy, str]":
    """The sweep's study, open, and the source of its images; nothing is made of a request that cannot be."""
    from cifar_sweep.work.submit import submit as submit_study

    source, images = load_data(data, console, download=not preview)
    name = name or chosen.name + ("-preview" if preview else "")
    return submit_study(storage, name, chosen, images, source=source, artifacts=artifacts, priority=priority), source


def _say_start(study: "SweepStudy", named: str, plan: "Plan", console: "Console") -> None:
    from cifar_sweep.training.device import device_name, resolve_device, resolve_precision

    device = resolve_device(named)
    precision, ratio = resolve_precision(device)
    asked = study.sweep.fixed.get("precision", "auto")
    chosen = f"auto is {precision} (bf16 is {ratio:.1f} times as fast here)" if asked == "auto" else asked
    threads = f" ({plan.split.threads} thread(s) each)" if device.type == "cpu" else ""
    printer(console)(
        f"study {study.name}: {study.budget} trials on {study.data['name']}\n"
        f"device {device.type}: {device_name(device)}{threads}; precision {chosen}\n"
        f"plan: {plan}" + _time_text(plan, study)
    )


def _time_text(plan: "Plan", study: "SweepStudy") -> str:
    """About how long the whole study takes, by steps that were timed on this machine before."""
    from cifar_sweep.words import duration

    if plan.seconds is None or any(trial.state.is_finished() for trial in study.asked()):
        return ""
    pruning = ", less with pruning" if study.sweep.pruner.name != "none" else ""
    return f"; about {duration(plan.seconds)}{pruning}"


def _say_end(study: "SweepStudy", storage: str, console: "Console") -> None:
    from cifar_sweep.study.files import study_folder
    from cifar_sweep.study.record import setting_text
    from cifar_sweep.study.storage import HALTED

    summary = study.summary(study.asked_records())
    counts, best = summary["trials"], summary["best"]
    finished = counts["complete"] + counts["pruned"]
    lines = [f"{finished} of {study.budget} trials finished: {counts['complete']} complete, {counts['pruned']} pruned"]
    if counts["failed"]:
        lines.append(f"{counts['failed']} failed; `cifar-sweep dashboard` has their reasons")
    if finished < study.budget:
        halted = f"{summary['state']} " if summary["state"] in HALTED else "stopped "
        lines.append(f"{halted}before the end; the same command goes on from each trial's last epoch")
    if best is not None:
        lines.append(f"best: trial {best['number']}, validation accuracy {best['value']:.2%}, {setting_text(best)}")
    at = _at(study, storage)
    lines += [
        f"study: {study.storage.shown}, weights: {artifacts_of(study, None).shown}/{study_folder(study)}",
        f"next: cifar-sweep export {study.name}{at}   config, weights and test accuracy",
        f"      cifar-sweep dashboard{at}   every trial, in a browser",
    ]
    printer(console)("\n".join(lines))


def _at(study: "SweepStudy", storage: str) -> str:
    """The option that other commands need to find the study."""
    return "" if storage == DEFAULT_STORAGE else f" --storage {study.storage.shown}"


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
    from cifar_sweep.machine.plan import choose
    from cifar_sweep.study.opening import load
    from cifar_sweep.study.storage import open_existing
    from cifar_sweep.terminal.progress import shown
    from cifar_sweep.training.device import resolve_device
    from cifar_sweep.work.signals import stop_on_signals
    from cifar_sweep.work.worker import Job, serve

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
    from cifar_sweep.forecast.costs import TRAIN_IMAGES, note_costs
    from cifar_sweep.study.outage import is_outage

    if plan.costs is None:
        return
    images = study.data.get("train_images", TRAIN_IMAGES)
    try:
        if study.costs is None:
            note_costs(study, plan.costs.model_copy(update={"train_images": images}))
    except Exception as error:
        if not is_outage(error):
            raise
