"""This machine, sweep files, and what a sweep takes here: `plan`, `list`, `convert`, `bench`, `doctor`."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from cifar_sweep.cli import rooms
from cifar_sweep.cli.bundles import FileOptions, SweepOptions, WorkerOptions
from cifar_sweep.cli.options import SKIP_DAMAGED, Data, Device, echo_json, say, say_of, terminal
from cifar_sweep.errors import CifarSweepError, UsageError
from cifar_sweep.files import replace_file
from cifar_sweep.parameters import check_parameter
from cifar_sweep.words import duration, span

FOREIGN = "A sweep of W&B (YAML, or a dict in a script or notebook), an NNI search space (JSON), a Hydra sweep (YAML)."
LOG_ENDS = "How log ranges are meant of which nothing tells whether their ends are values or exponents."


def plan(
    asked: SweepOptions,
    workers: WorkerOptions,
    hours: Annotated[float | None, Option(min=0, help="Say what fits into so much time.")] = None,
    as_json: Annotated[bool, Option("--json", help="As JSON; seconds from the command to its end.")] = False,
) -> None:
    """Say how long `run` with the same options would take, by trying some steps of it, and what fits into --hours."""
    begun = time.perf_counter()
    device = workers.device
    rooms.device.resolve_device(device)
    chosen = asked.load()
    started = time.perf_counter() - begun  # with the libraries, as a run loads them
    source, images = asked.images(chosen, quiet=as_json)
    rooms.submit.check_submission(chosen.name, chosen, images)
    many, classes = len(images.divide()[0]), len(images.classes)
    made = workers.choose([chosen], train_images=many, always=True, say=(lambda _: None) if as_json else say)
    pace = rooms.rehearsal.rehearse(chosen, made, source=source, device=device, classes=classes, started=started)
    ahead = rooms.outlook.look_ahead(chosen, made, pace, hours=hours) | {"data": images.name}
    if as_json:
        echo_json(ahead)
    else:
        say_of("plan", **ahead, made=str(made), about=_about)


def _about(seconds: dict[str, float]) -> str:
    likely, around = f"about {duration(seconds['likely'])}", span(seconds["low"], seconds["high"])
    return likely if likely == around else f"{likely} ({around})"


def list_sweeps() -> None:
    """Show the sweeps that can be run by name, roughly how long each takes if nothing is pruned, and one hour of it."""
    from rich.markup import escape
    from rich.table import Table

    view, faults = Table("sweep", "trials", "rough time", "in one hour", "searches", "what for", box=None), []
    for name, path in rooms.file.names().items():
        try:
            sweep = rooms.file.load(path)
        except UsageError as error:
            faults.append(error)
            continue
        searched = "given runs" if sweep.given else ", ".join(sweep.space)
        costs, seconds = rooms.speeds.rough_costs(sweep) or (None, 0.0)
        rough = f"about {duration(seconds)}" if costs else "not known"
        hour = _trials_of(rooms.hours.plan_hours(sweep, costs, 1.0).sweep) if costs else "not known"
        view.add_row(name, _trials_of(sweep), rough, hour, searched, escape(sweep.description))
    terminal().print(view)
    say("trials x their epochs at most, and on how many images where they are not all; `run SWEEP --hours 1` cuts so")
    say("times are rough, for a sweep without pruning; `cifar-sweep plan SWEEP` measures them here")
    if faults:  # the others are shown all the same
        raise faults[0]


def convert(
    source: Annotated[Path, Argument(metavar="FILE", help=FOREIGN)],
    out: Annotated[Path | None, Option(help="File to write, - for standard output; FILE.toml if not given.")] = None,
    log_ends: Annotated[Literal["values", "exponents"] | None, Option("--log-ends", help=LOG_ENDS)] = None,
) -> None:
    """Write another program's sweep as a sweep file: each line translated, or kept as a comment with the reason."""
    written = rooms.writing.as_toml(rooms.reading.read(source), source=source.name, log_ends=log_ends)
    path = out or Path(f"{source.stem}.toml")
    if str(path) == "-":
        say(written.text.rstrip("\n"))
    elif path.is_file() and path.read_bytes().splitlines()[:1] != written.text.encode().splitlines()[:1]:
        raise UsageError(f"{path} is there already; name another file with --out, or --out - to see the text.")
    else:
        replace_file(path, written.text)
        say(f"written: {path}")
    if written.questions:
        unclear = f"the log range of {', '.join(written.questions)} may be given by values or by exponents"
        raise CifarSweepError(f"{source}: {unclear}; both are in the file as comments; say which with --log-ends.")


def _trials_of(sweep: "rooms.sweep.Sweep") -> str:
    """How many trials of how many epochs a sweep has."""
    images = rooms.file.longest(sweep, "train_images")
    return f"{sweep.size} x {rooms.file.longest(sweep, 'epochs')}" + (f" on {images:,}" if images else "")


def bench(
    model: Annotated[str | None, Option(help="One network; with --batch-size.")] = None,
    batch_size: Annotated[int, Option(min=2, help="The batch size of --model.")] = 16,
    turns: Annotated[int, Option(min=1, help="How often each side is measured, in turns.")] = 5,
    data: Annotated[str, Option(help="As in `run`.")] = "synthetic:10000",
    device: Device = "auto",
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast this machine trains as a sweep does, against a plain loop of one trial at a time."""
    cases = [(str(check_parameter("model", model, where="--model")), batch_size)] if model else list(rooms.bench.CASES)
    where = rooms.device.resolve_device(device)
    images = rooms.data.load(data, on_progress=None if as_json else say)
    told = (lambda _: None) if as_json else say
    rows = list(rooms.bench.measure(cases, device=device, source=data, turns=turns, say=told))
    examined = rooms.gpu_bench.examine(cases, device=where, source=data) if where.type == "cuda" else None
    cores = f", {rooms.limits.available_cores()} cores" if where.type == "cpu" else ""
    on = f"{where.type}: {rooms.device.device_name(where)}{cores}"
    known = rooms.provenance.versions() | {"kernels": rooms.lanes.kernels_name(where)}
    if as_json:
        facts = {"data": images.name, "device": on, "versions": known, "commit": rooms.provenance.commit()}
        echo_json({"rows": [asdict(row) for row in rows], "gpu": examined and asdict(examined)} | facts)
        return
    terminal().print(rooms.bench.table(rows))
    turned = f"medians of {turns} turns (lowest to highest)"
    say(f"{on}; {images.name}; {turned}; torch {known['torch']}; validation in none")
    if examined:
        say_of("gpu", **vars(examined), about=rooms.doctor.gpus(where), precision=rows[0].precision)
        for named, rungs in examined.ladders.items():
            say(f"{named}: groups of so many trials, steps on images that are there")
            terminal().print(rooms.gpu_bench.table(rungs))


def doctor(
    data: Data = "auto",
    skip_damaged: Annotated[bool, Option("--skip-damaged", help=SKIP_DAMAGED)] = False,
    *,
    place: FileOptions,
) -> None:
    """Check Python, torch, the device, bf16, the data, the storage and the disk."""
    from rich.table import Table

    findings = rooms.doctor.examine(
        storage=place.storage, data=data, skip_damaged=skip_damaged, artifacts=place.artifacts or "artifacts"
    )
    view = Table.grid(padding=(0, 2))
    for subject, well, found in findings:
        view.add_row("ok" if well else "FAULT", subject, found)
    terminal().print(view, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(well for _, well, _ in findings) else 1)
