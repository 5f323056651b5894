"""Running sweeps: `run`, `submit`, `worker`."""

import math
import os
import shlex
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import typer
from typer import Option

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.cli import rooms
from cifar_sweep.cli.bundles import FileOptions, NewStudyOptions, StorageOptions, SweepOptions, WorkerOptions
from cifar_sweep.cli.options import Deadline, SameData, say, say_of, terminal
from cifar_sweep.cli.queue import Studies
from cifar_sweep.config import DEFAULT_STORAGE
from cifar_sweep.errors import UsageError
from cifar_sweep.words import counted
from cifar_sweep.work.signals import stop_on_signals

ON_RAY = "ray, or ray://HOST:PORT: workers on a Ray cluster, as many as --workers says."
TIMED_HOURS = 0.1  # in less, timing networks first would take too much of it
TIMED_SHARE = 0.1  # of the time that a study has: timing for its plan takes no more, nor does that for its run
GPUS = "With --on: GPUs of each worker, or a fraction of one; 0 if not given."


def run(
    asked: SweepOptions,
    workers: WorkerOptions,
    *,
    deadline: Deadline = None,
    on: Annotated[str | None, Option(help=ON_RAY)] = None,
    gpus: Annotated[float | None, Option("--gpus-per-worker", min=0, help=GPUS)] = None,
    place: NewStudyOptions,
) -> None:
    """Run a sweep, or continue it: the same command goes on where the last one stopped."""
    begun = time.time()
    if on is None and workers.processes != 1 and asked.trials != 1:
        rooms.processes.prepare()
    cluster = _cluster(on, gpus, workers, place)
    console = terminal()
    sweep = asked.load()
    study, source = _submit(sweep, asked, place, begun=begun, workers=None if cluster else workers)
    job = rooms.worker.Job(place.storage, (study.name,), data=source, device=workers.device, deadline=deadline)
    plan = _plan(study, workers, deadline) if cluster is None else None
    with stop_on_signals() as stop, rooms.progress.shown(study, console):
        if plan is not None:
            rooms.worker.run_workers(job, plan, stop=stop)
        else:
            many: dict[str, Any] = {"workers": workers.processes, "gpus": gpus or 0.0, "group": workers.at_once}
            job = replace(job, threads=workers.threads)
            rooms.ray.run_on_ray(job, str(cluster), **many, stop=stop, say=partial(say, console=console))
    # The database may have been away in the meantime, or be so now.
    rooms.outage.wait_out(lambda: _say_end(study, place), stop=stop, say=say)
    # Another point takes the place of a trial that failed, but never of a listed one.
    missing = sweep.listed and rooms.outage.wait_out(study.missing, stop=stop, say=say)
    raise typer.Exit(stop.exit_code() or int(missing))


def _cluster(on: str | None, gpus: float | None, workers: WorkerOptions, place: FileOptions) -> str | None:
    """The cluster's address, None for this machine; what cannot be is refused, before a study is made for it."""
    device = workers.device
    if on is None:
        rooms.device.resolve_device(device)
        if gpus is not None:
            raise UsageError("--gpus-per-worker: workers here share the GPUs by themselves; accepted with --on ray.")
        return None
    files = {"storage": place.storage, "artifacts": place.artifacts or ""}
    address = rooms.ray_cluster.check_request(on, **files, device=device, gpus=gpus or 0.0)
    if not workers.processes:
        raise UsageError("--workers auto: a cluster's nodes are not known beforehand; accepted with --on: a number.")
    return address


def _plan(study: "rooms.study.SweepStudy", workers: WorkerOptions, deadline: float | None) -> "rooms.plan.Plan":
    """How this machine is spent on the study; what that is and costs is said, and noted in the study."""
    timing = _timing_seconds(study.hours.hours if study.hours else None)
    plan = workers.choose([study.sweep], train_images=rooms.costs.images_of(study), say=say, seconds=timing)
    if plan.costs:
        rooms.costs.note_costs(study, plan.costs)
    device = rooms.device.resolve_device(workers.device)
    begun = any(trial.is_finished for trial in study.asked())
    say_of(
        "start",
        study=study,
        then=_confirmed(study),
        plan=plan,
        device=device.type,
        found=plan.found,
        seconds=None if begun else plan.seconds,
        unpruned=rooms.pruning.never_prunes(study.sweep),
        too_long=_too_long(study, deadline),
    )
    return plan


def _too_long(study: "rooms.study.SweepStudy", deadline: float | None) -> float | None:
    """About the seconds of a study's shortest epoch, where not even that is likely to end in time; else None."""
    if deadline is None:
        return None
    costs = rooms.costs.noted_costs(study)
    if costs is None:
        costs, _ = rooms.speeds.rough_costs(study.sweep, train_images=rooms.costs.images_of(study)) or (None, None)
    if costs is None:
        return None
    shapes = [*rooms.expected.possible_shapes(study.sweep), *rooms.expected.queued_shapes(study.sweep)]
    shortest = min(costs.epoch(shape, 1) for shape in shapes)
    return shortest if time.time() + costs.start + shortest > deadline else None


def submit(asked: SweepOptions, place: NewStudyOptions) -> None:
    """Put a sweep into the database, for `cifar-sweep worker` to train, here or on any machine that reaches it."""
    study, _ = _submit(asked.load(), asked, place)
    say_of("submitted", study=study, files=place.files_of(study).shown, at=_at(study, place))


def _submit(
    sweep: "rooms.sweep.Sweep",
    asked: SweepOptions,
    place: NewStudyOptions,
    *,
    begun: float | None = None,
    workers: WorkerOptions | None = None,
) -> "tuple[rooms.study.SweepStudy, str]":
    """The sweep's study, open, and the source of its images; nothing is made of a request that cannot be.

    With --hours the sweep is cut to them. They began at `begun`, or begin with the first worker.
    """
    source, images = asked.images(sweep)
    name = place.study or sweep.name + ("-preview" if asked.preview else "")
    more: dict[str, Any] = {"source": source, "artifacts": place.artifacts, "priority": place.priority}
    more |= {"earlier": place.earlier_study(), "say": say}
    if place.hours is None:
        study = rooms.submit.submit(place.storage, name, sweep, images, extend=place.extend, **more)
        if study.budget > sweep.size and not (sweep.listed and study.changes):  # an extended grid has others beside it
            say(f"study {name} has {study.budget} finished trials already: trials = {sweep.size} changes nothing")
        return study, source
    if asked.trials is not None:
        raise UsageError("--trials: --hours decides how many trials there are; accepted: one of the two.")
    if place.extend:
        raise UsageError("--extend: a study of --hours keeps its own plan; accepted: one of the two.")
    name = place.study or f"{name}-{place.hours:g}h"
    timed = None if place.hours < TIMED_HOURS else workers
    costs = _costs_of(sweep, images, timed, seconds=_timing_seconds(place.hours))
    if workers and workers.processes:
        costs = costs.model_copy(update={"workers": workers.processes})
    cut, hours = rooms.submit.in_hours(sweep, costs, place.hours, begun=begun)
    study = rooms.submit.submit(place.storage, name, cut, images, hours=hours, **more)
    if study.costs is None:
        rooms.costs.note_costs(study, costs)
    _say_hours(study, sweep, costs)
    return study, source


def _timing_seconds(hours: float | None) -> float:
    """How long networks may be timed for a study that has so many hours."""
    return TIMED_SHARE * 3600 * hours if hours else math.inf


def _costs_of(
    sweep: "rooms.sweep.Sweep", images: "rooms.data.ImageData", workers: WorkerOptions | None, *, seconds: float
) -> "rooms.costs.Costs":
    """What the whole sweep's parts cost here; where other machines are to train it, or nothing is timed, typically."""
    many = len(images.divide()[0])
    made = workers.choose([sweep], train_images=many, say=say, seconds=seconds) if workers else None
    if made and made.costs:
        return made.costs
    costs, _ = rooms.speeds.rough_costs(sweep, train_images=many) or (rooms.costs.Costs(train_images=many), None)
    return costs.model_copy(update={"rough": True})


def _say_hours(study: "rooms.study.SweepStudy", whole: "rooms.sweep.Sweep", costs: "rooms.costs.Costs") -> None:
    """What the hours buy, what is cut for them, and when they end."""
    hours = study.hours
    assert hours is not None
    say_of(
        "hours",
        hours=f"{hours.hours:g} hour{'s' * (hours.hours != 1)}",
        study=study,
        then=_confirmed(study),
        whole=whole,
        epochs=[rooms.file.longest(sweep, "epochs") for sweep in (study.sweep, whole)],
        shortened=rooms.hours.shortened(whole, study.sweep, images=costs.train_images),
        seconds=rooms.speeds.unpruned_seconds(whole, costs),
        end=hours.deadline and f"{datetime.fromtimestamp(hours.deadline):%H:%M:%S}",
        over=hours.deadline is not None and hours.deadline <= time.time(),
        begun=any(trial.epochs_done for trial in study.asked()),
    )


def _confirmed(study: "rooms.study.SweepStudy") -> str:
    """How the best of the search are to be confirmed; empty where nothing is."""
    if study.sweep.confirm is None:
        return ""
    most, seeds = study.sweep.confirm
    uncuts = study.hours is not None and study.hours.uncuts
    under = "" if uncuts and seeds == 1 else f" under {counted(seeds, 'fresh seed')} each"
    return f", then the best {'one' if most == 1 else most} again{under}{', without the cuts' if uncuts else ''}"


def _say_end(study: "rooms.study.SweepStudy", place: FileOptions) -> None:
    asked = study.asked()
    summary = study.summary(asked)
    best = next(iter(rooms.winner.ranked(asked)), None)
    uncut, seconds = rooms.hours.uncut(study, best) if best else ({}, 0.0)
    say_of(
        "end",
        study=study,
        counts=summary["trials"],
        budget=summary["budget"],
        best=best,
        whole=" ".join(f"--set {name}={value}" for name, value in uncut.items()),
        whole_seconds=seconds,
        remarks=study.remarks(asked),
        verdict=rooms.verdict.verdict(study, asked),
        begun=any(trial.epochs_done for trial in asked),
        epoch=rooms.costs.epoch_seconds(study, asked),
        given=rooms.claiming.given_among(asked, study.sweep),
        halted=study.state if study.state in rooms.storage.HALTED else "stopped",
        files=f"{place.files_of(study).shown}/{rooms.files.study_folder(study)}",
        at=_at(study, place),
    )


def _at(study: "rooms.study.SweepStudy", place: StorageOptions) -> str:
    """The option that other commands need to find the study, for a shell."""
    known = (DEFAULT_STORAGE, os.environ.get("CIFAR_SWEEP_STORAGE"))  # with a password, which is not shown
    return "" if place.storage in known else f" --storage {shlex.quote(study.storage.shown)}"


def worker(
    studies: Studies = None,
    until_idle: Annotated[bool, Option("--until-idle", help="Leave when nothing is left to train.")] = False,
    *,
    workers: WorkerOptions,
    data: SameData = None,
    deadline: Deadline = None,
    place: FileOptions,
) -> None:
    """Train trials of submitted studies, the most urgent first, until told to stop."""
    rooms.device.resolve_device(workers.device)
    with closing(rooms.storage.open_waiting(place.storage)) as opened:
        opened.check_writable()
        names = tuple(rooms.opening.load(opened, name).name for name in studies or [])
    files = None if place.artifacts is None else open_artifacts(place.artifacts).address
    job = rooms.worker.Job(place.storage, names, data=data, artifacts=files, device=workers.device, deadline=deadline)

    begun: dict[str, tuple[rooms.study.SweepStudy, int]] = {}  # of studies by name: their epochs before

    def plan(there: "Sequence[rooms.study.SweepStudy]") -> "rooms.plan.Plan":
        made = workers.choose([study.sweep for study in there], say=say)
        for study in there:
            begun.setdefault(study.name, (study, _epochs(study)))
            _note_costs(study, made)
        say(f"working on {', '.join(study.name for study in there)}; plan: {made}")
        return made

    say(f"worker on {opened.shown}" + ("" if until_idle else "; Ctrl-C or SIGTERM ends it"))
    with stop_on_signals() as stop:
        shown = partial(rooms.progress.all_shown, console=terminal())
        rooms.worker.serve(job, until_idle=until_idle, plan=plan, shown=shown, stop=stop)
        if begun and (stop() or job.out_of_time()):
            with suppress(Exception):  # the database is away, or a study deleted
                if all(_epochs(study) == epochs for study, epochs in begun.values()):
                    say("stopped before the first epoch's end: nothing was gained; give it more time")
    raise typer.Exit(stop.exit_code())


def _epochs(study: "rooms.study.SweepStudy") -> int:
    return sum(trial.epochs_done for trial in study.asked())


def _note_costs(study: "rooms.study.SweepStudy", plan: "rooms.plan.Plan") -> None:
    """Store what the study is reckoned to cost here, where nobody has yet. It is not worth waiting for a database."""
    try:
        if plan.costs and study.costs is None:
            rooms.costs.note_costs(study, plan.costs)
    except Exception as error:
        if not rooms.outage.is_outage(error):
            raise
