"""This machine and what a sweep takes on it: `plan`, `list`, `bench`, `doctor`."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifar_sweep.cli.options import (
    AsPreview,
    Data,
    Device,
    Epochs,
    GroupSize,
    Only,
    Seed,
    Settings,
    SweepName,
    Threads,
    TrainImages,
    Trials,
    Workers,
    load_data,
    load_sweep,
    number_or_auto,
    printer,
    terminal,
)

if TYPE_CHECKING:
    from cifar_sweep.machine.outlook import Outlook
from typing import TYPE_CHECKING

from cifar_sweep.cli.options import Artifacts, StorageUrl
from cifar_sweep.config import DEFAULT_STORAGE
from cifar_sweep.errors import UsageError

if TYPE_CHECKING:
    pass


def plan(
    sweep: SweepName,
    hours: Annotated[float | None, typer.Option(min=0, help="Say what fits into so much time.")] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; seconds from the command to its end.")] = False,
) -> None:
    """Say how long `run` with the same options would take, by trying some steps of it, and what fits into --hours."""
    begun = time.perf_counter()
    from rich.console import Console

    from cifar_sweep.machine.outlook import Outlook, as_plain
    from cifar_sweep.machine.plan import choose
    from cifar_sweep.machine.rehearsal import rehearse
    from cifar_sweep.training.device import resolve_device, resolve_precision
    from cifar_sweep.training.images.split import split
    from cifar_sweep.work.submit import check_submission

    where = resolve_device(device)
    processes, at_once = number_or_auto("--workers", workers), number_or_auto("--group", group)
    console = Console(quiet=True) if as_json else terminal()
    chosen = load_sweep(
        sweep, settings=settings, trials=trials, epochs=epochs, train_images=train_images, seed=seed, only=only,
        preview=preview,
    )  # fmt: skip
    started = time.perf_counter() - begun  # with the libraries, as a run loads them
    source, images = load_data(data, console, download=not preview, quiet=as_json)
    check_submission(chosen.name, chosen, images)
    many = len(split(images.train_labels)[0])
    made = choose(
        [chosen], device=device, workers=processes, threads=threads, group=at_once, train_images=many, always=True,
        say=printer(console),
    )  # fmt: skip
    precision, _ = resolve_precision(where)
    pace = rehearse(
        chosen, made, source=source, device=device, precision=precision, classes=len(images.classes), started=started
    )
    outlook = Outlook(chosen, made, pace)
    if as_json:
        typer.echo(json.dumps(as_plain(outlook, hours=hours) | {"data": images.name}, indent=2))
        return
    printer(console)("\n".join(_lines(outlook, data=images.name, hours=hours)))


def _lines(outlook: "Outlook", *, data: str, hours: float | None) -> list[str]:
    from cifar_sweep.machine.outlook import fitting, seconds_of

    sweep, pruned = outlook.sweep, outlook.pruned
    lines = [
        f"sweep {sweep.name}: {sweep.size} trials of at most {outlook.longest_epochs} epochs on {data}",
        f"plan: {outlook.plan}",
        f"time: {_about(seconds_of(outlook.unpruned))}" + (" if nothing is pruned" if pruned else ""),
    ]
    if pruned:
        lines.append(f"      {_about(seconds_of(pruned))} with the {sweep.pruner.name} pruner, if it prunes as usual")
    return lines + (_fitting_lines(outlook, fitting(outlook, hours=hours)) if hours is not None else [])


def _about(seconds: dict[str, float]) -> str:
    from cifar_sweep.words import duration, span

    likely, around = f"about {duration(seconds['likely'])}", span(seconds["low"], seconds["high"])
    return likely if likely == around else f"{likely} ({around})"


def _fitting_lines(outlook: "Outlook", fits: dict[str, Any]) -> list[str]:
    """What fits into the hours, and what would have to be cut."""
    from cifar_sweep.words import duration

    size, whole, pruned = outlook.sweep.size, fits["trials_unpruned"], fits["trials_pruned"]
    within = f"in {duration(3600 * fits['hours'])}: "
    if whole >= size:
        return [f"{within}all {size} trials" + (", even if nothing is pruned" if pruned is not None else "")]
    lines = [
        f"{whole} of {size} trials, {size - whole} would be cut" + ("; if nothing is pruned" * (pruned is not None))
    ]
    if pruned is not None:
        cut = "none would be cut" if pruned >= size else f"{size - pruned} would be cut"
        lines.append(f"{pruned} of {size} trials, {cut}; with the {outlook.sweep.pruner.name} pruner")
    epochs = fits["epochs_that_fit"]
    few = f"all {size} trials if each has at most {epochs} of {fits['epochs']} epochs"
    lines.append(few + " and nothing is pruned" * (pruned is not None) if epochs else "not all, even of one epoch each")
    return [within + lines[0], *(" " * len(within) + line for line in lines[1:])]


def list_sweeps() -> None:
    """Show the sweeps that can be run by name, and roughly how long each takes if nothing is pruned."""
    from rich.markup import escape
    from rich.table import Table

    from cifar_sweep.machine.speeds import rough_seconds
    from cifar_sweep.sweep.file import load, names
    from cifar_sweep.words import duration

    console = terminal()
    sweeps, faults = {}, []
    for name, path in names().items():
        try:
            sweeps[name] = load(path)
        except UsageError as error:
            faults.append(error)
    view = Table("sweep", "trials", "rough time", "searches", "what for", box=None)
    for name, sweep in sweeps.items():
        searched = "given runs" if sweep.given else ", ".join(sweep.space)
        seconds = rough_seconds(sweep)
        rough = f"about {duration(seconds)}" if seconds is not None else "not known"
        view.add_row(name, str(sweep.size), rough, searched, escape(sweep.description))
    console.print(view)
    printer(console)("times are rough, for a sweep without pruning; `cifar-sweep plan SWEEP` measures them here")
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
    from cifar_sweep.machine.bench import CASES, measure
    from cifar_sweep.study.provenance import commit, versions
    from cifar_sweep.training.device import available_cores, device_name, resolve_device
    from cifar_sweep.training.lanes.compiled import kernels_name

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

    from cifar_sweep.terminal.doctor import examine

    findings = examine(storage=storage, data=data, artifacts=artifacts or "artifacts")
    view = Table.grid(padding=(0, 2))
    for finding in findings:
        view.add_row("ok" if finding.well else "FAULT", finding.subject, finding.found)
    terminal().print(view, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(finding.well for finding in findings) else 1)
