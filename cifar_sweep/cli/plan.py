"""What a sweep will take, before it is run: `plan`."""

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
    from cifar_sweep.launch.outlook import Outlook


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

    from cifar_sweep.launch.outlook import Outlook, as_plain
    from cifar_sweep.launch.plan import choose
    from cifar_sweep.launch.rehearsal import rehearse
    from cifar_sweep.service import check_submission
    from cifar_sweep.training.device import resolve_device, resolve_precision
    from cifar_sweep.training.split import split

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
    from cifar_sweep.launch.outlook import fitting, seconds_of

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
    from cifar_sweep.results.status import duration, span

    likely, around = f"about {duration(seconds['likely'])}", span(seconds["low"], seconds["high"])
    return likely if likely == around else f"{likely} ({around})"


def _fitting_lines(outlook: "Outlook", fits: dict[str, Any]) -> list[str]:
    """What fits into the hours, and what would have to be cut."""
    from cifar_sweep.results.status import duration

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
