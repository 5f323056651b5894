"""Running sweeps: `run`, `list`, `doctor`."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cifar_sweep.cli.options import (
    DEFAULT_ARTIFACTS,
    DEFAULT_STORAGE,
    Artifacts,
    Data,
    Device,
    StorageUrl,
    Threads,
    load_data,
    number_or_auto,
    printer,
    settings_of,
    terminal,
)
from cifar_sweep.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from cifar_sweep.launch.plan import Plan
    from cifar_sweep.runner import Job
    from cifar_sweep.search.study import SweepStudy


def run(
    sweep: Annotated[str, typer.Argument(help="A sweep by name (see `cifar-sweep list`), or a path to a TOML file.")],
    trials: Annotated[int | None, typer.Option(min=1, help="Finish exactly so many trials, restarts included.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each trial.")] = None,
    train_images: Annotated[int | None, typer.Option(min=1, help="Train on so many of the training images.")] = None,
    workers: Annotated[
        str,
        typer.Option(envvar="CIFAR_SWEEP_WORKERS", help="Processes that train; auto: what is measured to be fastest."),
    ] = "auto",
    group: Annotated[
        str,
        typer.Option(
            envvar="CIFAR_SWEEP_GROUP",
            help="Trials of one shape that each worker trains at once, as one network; auto: what is measured to pay.",
        ),
    ] = "auto",
    threads: Threads = 0,
    device: Device = "auto",
    data: Data = "auto",
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the whole sweep.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Fix a parameter (batch_size=32) or a key (pruner=none)."),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Of a sweep of given runs these, as in B-009,C-1.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="The same sweep at a small part of its cost.")] = False,
    max_hours: Annotated[float | None, typer.Option(min=0, help="Stop after so long; run again to go on.")] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study; the sweep's name if not given.")] = None,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
) -> None:
    """Run a sweep, or continue it: the same command goes on where the last one stopped."""
    from cifar_sweep.launch.local import run_workers, stop_on_signals
    from cifar_sweep.launch.plan import choose
    from cifar_sweep.results.progress import shown
    from cifar_sweep.runner import check_images, facts, local_jobs
    from cifar_sweep.search.storage import open_storage
    from cifar_sweep.search.study import check_request, open_or_resume
    from cifar_sweep.search.sweepfile import find, load
    from cifar_sweep.training.device import resolve_device

    options = {"trials": trials, "epochs": epochs, "train_images": train_images, "seed": seed}
    changes = settings_of(settings or []) | {name: value for name, value in options.items() if value is not None}
    deadline = time.time() + 3600 * max_hours if max_hours is not None else None
    labels = [label.strip() for label in only.split(",")] if only is not None else []
    chosen = load(find(sweep), changes=changes, preview=preview, only=labels)
    resolve_device(device)
    processes, at_once = number_or_auto("--workers", workers), number_or_auto("--group", group)
    console = terminal()
    source, images = load_data(data, console, download=not preview)
    check_images(chosen, images)
    name = study or chosen.name + ("-preview" if preview else "")
    check_request(name, chosen)
    the_study = open_or_resume(open_storage(storage), name, chosen, data=facts(images, source=source))
    plan = choose(chosen, device=device, workers=processes, threads=threads, group=at_once, say=printer(console))
    jobs = local_jobs(
        storage, name, source,
        artifacts=artifacts, device=device, deadline=deadline,
        workers=plan.split.workers, threads=plan.split.threads, groups=plan.groups,
    )  # fmt: skip
    _say_start(the_study, jobs, plan, console)
    with stop_on_signals() as stop, shown(the_study, console):
        run_workers(jobs, stop=stop)
    _say_end(the_study, jobs[0], console)
    # Another point takes the place of a trial that failed, but never of a given one.
    missing = chosen.given and the_study.missing()
    raise typer.Exit(stop.exit_code() or int(missing))


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
    from cifar_sweep.search.study import commit, versions
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
        "versions": versions(),
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


def doctor(
    data: Data = "auto", storage: StorageUrl = DEFAULT_STORAGE, artifacts: Artifacts = DEFAULT_ARTIFACTS
) -> None:
    """Check Python, torch, the device, bf16, the data, the storage and the disk."""
    from rich.table import Table

    from cifar_sweep.results.doctor import examine

    findings = examine(storage=storage, data=data, artifacts=artifacts)
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
        f"plan: {plan}"
    )


def _say_end(study: "SweepStudy", job: "Job", console: "Console") -> None:
    from cifar_sweep.results.status import setting_text
    from cifar_sweep.runner import artifact_folder

    summary = study.summary(study.asked())
    counts, best = summary["trials"], summary["best"]
    finished = counts["complete"] + counts["pruned"]
    lines = [f"{finished} of {study.budget} trials finished: {counts['complete']} complete, {counts['pruned']} pruned"]
    if counts["failed"]:
        lines.append(f"{counts['failed']} failed; `cifar-sweep dashboard` has their reasons")
    if finished < study.budget:
        lines.append("stopped before the end; the same command goes on from each trial's last epoch")
    if best is not None:
        lines.append(f"best: trial {best['number']}, validation accuracy {best['value']:.2%}, {setting_text(best)}")
    at = "" if job.storage == DEFAULT_STORAGE else f" --storage {study.storage.shown}"
    kept = "" if job.artifacts == DEFAULT_ARTIFACTS else f" --artifacts {job.artifacts}"
    lines += [
        f"study: {study.storage.shown}, weights: {artifact_folder(job.artifacts, study)}",
        f"next: cifar-sweep export {study.name}{at}{kept}   config, weights and test accuracy",
        f"      cifar-sweep dashboard{at}   every trial, in a browser",
    ]
    printer(console)("\n".join(lines))
