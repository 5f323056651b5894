"""Running sweeps: `run`, `list`, `doctor`."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_sweep.cli.options import (
    DEFAULT_STORAGE,
    Artifacts,
    AsPreview,
    Data,
    Device,
    Epochs,
    GroupSize,
    MaxHours,
    NewStudy,
    Only,
    Priority,
    Seed,
    Settings,
    StorageUrl,
    SweepName,
    Threads,
    TrainImages,
    Trials,
    Workers,
    artifacts_of,
    load_data,
    load_sweep,
    number_or_auto,
    printer,
    terminal,
)
from cifar_sweep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from cifar_sweep.launch.plan import Plan
    from cifar_sweep.search.study import SweepStudy
    from cifar_sweep.search.sweepfile import Sweep
    from cifar_sweep.service import Job


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
    from cifar_sweep.launch.local import local_jobs, run_workers
    from cifar_sweep.launch.plan import choose
    from cifar_sweep.launch.signals import stop_on_signals
    from cifar_sweep.results.progress import shown
    from cifar_sweep.search.costs import TRAIN_IMAGES
    from cifar_sweep.search.outage import wait_out
    from cifar_sweep.service import Job
    from cifar_sweep.training.device import resolve_device

    deadline = time.time() + 3600 * max_hours if max_hours is not None else None
    processes, at_once = number_or_auto("--workers", workers), number_or_auto("--group", group)
    if on is None:
        resolve_device(device)
        if gpus_per_worker is not None:
            raise UsageError(
                "--gpus-per-worker: here workers share the GPUs out by themselves; accepted with --on ray."
            )
    else:
        _check_cluster(on, storage=storage, artifacts=artifacts, workers=processes)
    console = terminal()
    chosen = load_sweep(
        sweep, settings=settings, trials=trials, epochs=epochs, train_images=train_images, seed=seed, only=only,
        preview=preview,
    )  # fmt: skip
    the_study, source = _submit(chosen, study, data, storage, artifacts, priority, preview=preview, console=console)
    job = Job(storage, (the_study.name,), data=source, device=device, deadline=deadline)
    if on is not None:
        jobs = [replace(job, threads=threads, worker=worker, workers=processes) for worker in range(processes)]
        with stop_on_signals() as stop, shown(the_study, console):
            _run_on_ray(jobs, on, gpus_per_worker or 0.0, at_once, stop, console)
    else:
        plan = choose(
            [chosen], device=device, workers=processes, threads=threads, group=at_once, say=printer(console),
            train_images=the_study.data.get("train_images", TRAIN_IMAGES),
        )  # fmt: skip
        if plan.costs:
            the_study.note_costs(plan.costs)
        jobs = local_jobs(job, plan)
        _say_start(the_study, jobs, plan, console)
        with stop_on_signals() as stop, shown(the_study, console):
            run_workers(jobs, stop=stop)
    # The database may have been away in the meantime, or be so now.
    wait_out(lambda: _say_end(the_study, storage, console), stop=stop, say=printer(console))
    # Another point takes the place of a trial that failed, but never of a given one.
    missing = chosen.given and wait_out(the_study.missing, stop=stop, say=printer(console))
    raise typer.Exit(stop.exit_code() or int(missing))


def _check_cluster(on: str, *, storage: str, artifacts: str | None, workers: int) -> None:
    """Refuse what cannot be, before a study is made of it."""
    from cifar_sweep.launch.joining import check_request

    check_request(on, storage=storage, artifacts=artifacts or "")
    if not workers:
        raise UsageError("--workers auto: a cluster's nodes are not known beforehand; accepted with --on: a number.")


def _run_on_ray(
    jobs: "list[Job]", on: str, gpus: float, group: int, stop: "Callable[[], bool]", console: "Console"
) -> None:
    from cifar_sweep.launch.ray import run_on_ray

    cpus = float(jobs[0].threads or 1)
    run_on_ray(jobs, on=on, gpus_per_worker=gpus, cpus_per_worker=cpus, group=group, stop=stop, say=printer(console))


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
    from cifar_sweep.artifacts import open_artifacts
    from cifar_sweep.search.storage import open_storage
    from cifar_sweep.service import check_submission
    from cifar_sweep.service import submit as submit_study

    source, images = load_data(data, console, download=not preview)
    name = name or chosen.name + ("-preview" if preview else "")
    check_submission(name, chosen, images)
    address = open_artifacts(artifacts).address if artifacts is not None else None
    the_study = submit_study(
        open_storage(storage), name, chosen, images, source=source, artifacts=address, priority=priority
    )
    return the_study, source


def list_sweeps() -> None:
    """Show the sweeps that can be run by name, and about how long each takes on this machine if nothing is pruned."""
    from rich.markup import escape
    from rich.table import Table

    from cifar_sweep.launch.plan import estimates
    from cifar_sweep.results.status import duration
    from cifar_sweep.search.sweepfile import load, names

    console = terminal()
    sweeps, faults = {}, []
    for name, path in names().items():
        try:
            sweeps[name] = load(path)
        except UsageError as error:
            faults.append(error)
    seconds = estimates(sweeps, say=printer(console))
    view = Table("sweep", "trials", "at most about", "searches", "what for", box=None)
    for name, sweep in sweeps.items():
        searched = "given runs" if sweep.given else ", ".join(sweep.space)
        view.add_row(name, str(sweep.size), duration(seconds[name]), searched, escape(sweep.description))
    console.print(view)
    if faults:  # the others are shown all the same
        raise faults[0]


def bench(
    model: Annotated[str | None, typer.Option(help="One network; with --batch-size.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="The batch size of --model.")] = 16,
    turns: Annotated[int, typer.Option(min=1, help="How often each side is measured, in turns.")] = 5,
    data: Annotated[str, typer.Option(help="As in `run`.")] = "synthetic:10000",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast this machine trains as a sweep does, against a plain loop of one trial at a time."""
    import json
    from dataclasses import asdict

    from rich.table import Table

    from cifar_sweep.config import check_parameter
    from cifar_sweep.launch.bench import CASES, measure
    from cifar_sweep.search.provenance import commit, versions
    from cifar_sweep.training.compiled import kernels_name
    from cifar_sweep.training.device import available_cores, device_name, resolve_device

    where = resolve_device(device)
    cases = [(str(check_parameter("model", model, where="--model")), batch_size)] if model else list(CASES)
    console = terminal()
    source, images = load_data(data, console, download=True, quiet=as_json)
    view = Table(
        "network", "batch", "images/s", "plain", "times", "plain, 2 processes", "times", "of the peak", "plan", box=None
    )
    rows = []
    for row in measure(
        cases, device=device, source=source, turns=turns, say=(lambda _: None) if as_json else printer(console)
    ):
        rows.append(asdict(row))
        low, high = row.spread
        lower, higher = row.spread_to_two
        view.add_row(
            row.model,
            str(row.batch_size),
            f"{row.images_per_second:,}",
            f"{row.plain_images_per_second:,}",
            f"{row.ratio} ({low} to {high})",
            f"{row.two_plain_images_per_second:,}",
            f"{row.ratio_to_two} ({lower} to {higher})",
            f"{row.share_of_peak:.0%}",
            f"{row.plan}, {row.precision}",
        )
    cores = f", {available_cores()} cores" if where.type == "cpu" else ""
    environment = {
        "device": f"{where.type}: {device_name(where)}{cores}",
        "data": images.name,
        "versions": versions() | {"kernels": kernels_name(where)},
        "commit": commit(),
    }
    if as_json:
        printer(console)(json.dumps({"rows": rows, **environment}, indent=2))
        return
    console.print(view)
    printer(console)(
        f"{environment['device']}; {images.name}; medians of {turns} turns (lowest to highest); torch "
        f"{versions()['torch']}; validation in none"
    )


def doctor(data: Data = "auto", storage: StorageUrl = DEFAULT_STORAGE, artifacts: Artifacts = None) -> None:
    """Check Python, torch, the device, bf16, the data, the storage and the disk."""
    from rich.table import Table

    from cifar_sweep.results.doctor import examine

    findings = examine(storage=storage, data=data, artifacts=artifacts or "artifacts")
    view = Table.grid(padding=(0, 2))
    for finding in findings:
        view.add_row("ok" if finding.well else "FAULT", finding.subject, finding.found)
    terminal().print(view, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(finding.well for finding in findings) else 1)


def _say_start(study: "SweepStudy", jobs: "list[Job]", plan: "Plan", console: "Console") -> None:
    from cifar_sweep.training.device import device_name, resolve_device, resolve_precision

    device = resolve_device(jobs[0].device)
    precision, ratio = resolve_precision(device)
    asked = study.sweep.fixed.get("precision", "auto")
    chosen = f"auto is {precision} (bf16 is {ratio:.1f} times as fast here)" if asked == "auto" else asked
    threads = f" ({jobs[0].threads} thread(s) each)" if device.type == "cpu" else ""
    printer(console)(
        f"study {study.name}: {study.budget} trials on {study.data['name']}\n"
        f"device {device.type}: {device_name(device)}{threads}; precision {chosen}\n"
        f"plan: {plan}" + _time_text(plan, study)
    )


def _time_text(plan: "Plan", study: "SweepStudy") -> str:
    """About how long the whole study takes, by steps that were timed on this machine before."""
    from cifar_sweep.results.status import duration

    if plan.seconds is None or any(trial.state.is_finished() for trial in study.asked()):
        return ""
    pruning = ", less with pruning" if study.sweep.pruner.name != "none" else ""
    return f"; about {duration(plan.seconds)}{pruning}"


def _say_end(study: "SweepStudy", storage: str, console: "Console") -> None:
    from cifar_sweep.keeping import study_folder
    from cifar_sweep.results.status import setting_text
    from cifar_sweep.search.storage import HALTED

    summary = study.summary(study.asked())
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
