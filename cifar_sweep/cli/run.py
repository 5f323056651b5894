"""Running sweeps: `run`, `submit`, `worker`."""

import math
import os
import shlex
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.cli.bundles import FileOptions, NewStudyOptions, StorageOptions, SweepOptions, WorkerOptions
from cifar_sweep.cli.options import MaxHours, SameData, deadline_of, say, say_of, terminal
from cifar_sweep.cli.queue import Studies
from cifar_sweep.config import DEFAULT_STORAGE
from cifar_sweep.errors import UsageError
from cifar_sweep.work.signals import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cifar_sweep.forecast.costs import Costs
    from cifar_sweep.machine.plan import Plan
    from cifar_sweep.study.study import SweepStudy
    from cifar_sweep.sweep.sweep import Sweep
    from cifar_sweep.training.images.data import ImageData

ON_RAY = "ray, or ray://HOST:PORT: workers on a Ray cluster, as many as --workers says."
TIMED_HOURS = 0.1  # in less, timing networks first would take too much of it
TIMED_SHARE = 0.1  # of the time that a study has: timing for its plan takes no more, nor does that for its run
GPUS = "With --on: GPUs of each worker, or a fraction of one; 0 if not given."


def run(
    asked: SweepOptions,
    workers: WorkerOptions,
    *,
    max_hours: MaxHours = None,
    on: Annotated[str | None, Option(help=ON_RAY)] = None,
    gpus_per_worker: Annotated[float | None, Option(min=0, help=GPUS)] = None,
    place: NewStudyOptions,
) -> None:
    """Run a sweep, or continue it: the same command goes on where the last one stopped."""
    from cifar_sweep.database.outage import wait_out
    from cifar_sweep.terminal.progress import shown
    from cifar_sweep.work.worker import Job, run_workers

    begun, deadline, gpus = time.time(), deadline_of(max_hours), gpus_per_worker
    cluster = _cluster(on, gpus, workers, place)
    console = terminal()
    sweep = asked.load()
    study, source = _submit(sweep, asked, place, begun=begun, workers=None if cluster else workers)
    job = Job(place.storage, (study.name,), data=source, device=workers.device, deadline=deadline)
    plan = _plan(study, workers, deadline) if cluster is None else None
    with stop_on_signals() as stop, shown(study, console):
        if plan is not None:
            run_workers(job, plan, stop=stop)
        else:
            from cifar_sweep.work.ray import run_on_ray

            many: dict[str, Any] = {"workers": workers.processes, "gpus": gpus or 0.0, "group": workers.at_once}
            job = replace(job, threads=workers.threads)
            run_on_ray(job, str(cluster), **many, stop=stop, say=partial(say, console=console))
    # The database may have been away in the meantime, or be so now.
    wait_out(lambda: _say_end(study, place), stop=stop, say=say)
    # Another point takes the place of a trial that failed, but never of a given one.
    missing = sweep.given and wait_out(study.missing, stop=stop, say=say)
    raise typer.Exit(stop.exit_code() or int(missing))


def _cluster(on: str | None, gpus: float | None, workers: WorkerOptions, place: FileOptions) -> str | None:
    """The cluster's address, None for this machine; what cannot be is refused, before a study is made for it."""
    device = workers.device
    if on is None:
        from cifar_sweep.training.device import resolve_device

        resolve_device(device)
        if gpus is not None:
            raise UsageError("--gpus-per-worker: workers here share the GPUs by themselves; accepted with --on ray.")
        return None
    from cifar_sweep.work.ray_cluster import check_request

    address = check_request(on, storage=place.storage, artifacts=place.artifacts or "", device=device, gpus=gpus or 0.0)
    if not workers.processes:
        raise UsageError("--workers auto: a cluster's nodes are not known beforehand; accepted with --on: a number.")
    return address


def _plan(study: "SweepStudy", workers: WorkerOptions, deadline: float | None) -> "Plan":
    """How this machine is spent on the study; what that is and costs is said, and noted in the study."""
    from cifar_sweep.forecast.costs import images_of, note_costs
    from cifar_sweep.forecast.pruning import never_prunes
    from cifar_sweep.training.device import resolve_device

    timing = _timing_seconds(study.hours.hours if study.hours else None)
    plan = workers.choose([study.sweep], train_images=images_of(study), say=say, seconds=timing)
    if plan.costs:
        note_costs(study, plan.costs)
    device, found = resolve_device(workers.device), plan.found
    assert found is not None
    begun = any(trial.is_finished for trial in study.asked())
    say_of(
        "start",
        study=study,
        plan=plan,
        device=f"{device.type}: {found.name}",
        threads=device.type == "cpu",
        asked=study.sweep.fixed.get("precision", "auto"),
        measured=f"{found.precision} ({found.why})",
        seconds=None if begun else plan.seconds,
        unpruned=never_prunes(study.sweep),
        too_long=_too_long(study, deadline),
    )
    return plan


def _too_long(study: "SweepStudy", deadline: float | None) -> float | None:
    """About the seconds of a study's shortest epoch, where not even that is likely to end in time; else None."""
    from cifar_sweep.forecast.costs import images_of, noted_costs
    from cifar_sweep.forecast.expected import possible_shapes, queued_shapes
    from cifar_sweep.machine.speeds import rough_costs

    costs = noted_costs(study)
    if deadline and costs is None and (rough := rough_costs(study.sweep, train_images=images_of(study))):
        costs, _ = rough
    if deadline is None or costs is None:
        return None
    shapes = [*possible_shapes(study.sweep), *queued_shapes(study.sweep)]
    shortest = min(costs.epoch(shape, 1) for shape in shapes)
    return shortest if time.time() + costs.start + shortest > deadline else None


def submit(asked: SweepOptions, place: NewStudyOptions) -> None:
    """Put a sweep into the database, for `cifar-sweep worker` to train, here or on any machine that reaches it."""
    study, _ = _submit(asked.load(), asked, place)
    say_of("submitted", study=study, files=place.files_of(study).shown, at=_at(study, place))


def _submit(
    sweep: "Sweep",
    asked: SweepOptions,
    place: NewStudyOptions,
    *,
    begun: float | None = None,
    workers: WorkerOptions | None = None,
) -> "tuple[SweepStudy, str]":
    """The sweep's study, open, and the source of its images; nothing is made of a request that cannot be.

    With --hours the sweep is cut to them. They began at `begun`, or begin with the first worker.
    """
    from cifar_sweep.work.submit import submit as submit_study
    from cifar_sweep.work.submit import submit_in_hours

    source, images = asked.images(sweep)
    name = place.study or sweep.name + ("-preview" if asked.preview else "")
    more: dict[str, Any] = {"source": source, "artifacts": place.artifacts, "priority": place.priority}
    more |= {"earlier": place.earlier_study(), "say": say}
    if place.hours is None:
        study = submit_study(place.storage, name, sweep, images, extend=place.extend, **more)
        if study.budget > sweep.size:
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
    study = submit_in_hours(place.hours, place.storage, name, sweep, images, costs=costs, begun=begun, **more)
    _say_hours(study, sweep, costs)
    return study, source


def _timing_seconds(hours: float | None) -> float:
    """How long networks may be timed for a study that has so many hours."""
    return TIMED_SHARE * 3600 * hours if hours else math.inf


def _costs_of(sweep: "Sweep", images: "ImageData", workers: WorkerOptions | None, *, seconds: float) -> "Costs":
    """What the whole sweep's parts cost here; where other machines are to train it, or nothing is timed, typically."""
    from cifar_sweep.forecast.costs import Costs
    from cifar_sweep.machine.speeds import rough_costs

    many = len(images.divide()[0])
    made = workers.choose([sweep], train_images=many, say=say, seconds=seconds) if workers else None
    if made and made.costs:
        return made.costs
    costs, _ = rough_costs(sweep, train_images=many) or (Costs(train_images=many), None)
    return costs.model_copy(update={"rough": True})


def _say_hours(study: "SweepStudy", whole: "Sweep", costs: "Costs") -> None:
    """What the hours buy, what is cut for them, and when they end."""
    from datetime import datetime

    from cifar_sweep.forecast.hours import shortened
    from cifar_sweep.machine.speeds import unpruned_seconds
    from cifar_sweep.sweep.file import longest

    hours = study.hours
    assert hours is not None
    say_of(
        "hours",
        hours=f"{hours.hours:g} hour{'s' * (hours.hours != 1)}",
        study=study,
        whole=whole,
        epochs=[longest(sweep, "epochs") for sweep in (study.sweep, whole)],
        shortened=shortened(whole, study.sweep, images=costs.train_images),
        seconds=unpruned_seconds(whole, costs),
        end=hours.deadline and f"{datetime.fromtimestamp(hours.deadline):%H:%M:%S}",
        over=hours.deadline is not None and hours.deadline <= time.time(),
        begun=any(trial.epochs_done for trial in study.asked()),
    )


def _say_end(study: "SweepStudy", place: FileOptions) -> None:
    from cifar_sweep.forecast.costs import epoch_seconds
    from cifar_sweep.study.claiming import given_among
    from cifar_sweep.study.files import study_folder
    from cifar_sweep.study.storage import HALTED
    from cifar_sweep.study.verdict import verdict
    from cifar_sweep.study.winner import ranked

    asked = study.asked()
    summary = study.summary(asked)
    say_of(
        "end",
        study=study,
        counts=summary["trials"],
        budget=summary["budget"],
        best=next(iter(ranked(asked)), None),
        remarks=study.remarks(asked),
        finished=study.finished(),
        earlier=study.begun_with(),
        remark=study.remark,
        verdict=verdict(study, asked),
        begun=any(trial.epochs_done for trial in asked),
        epoch=epoch_seconds(study, asked),
        given=0 if study.sweep.given else given_among(asked, study.sweep),
        halted=study.state if study.state in HALTED else "stopped",
        files=f"{place.files_of(study).shown}/{study_folder(study)}",
        at=_at(study, place),
    )


def _at(study: "SweepStudy", place: StorageOptions) -> str:
    """The option that other commands need to find the study, for a shell."""
    known = (DEFAULT_STORAGE, os.environ.get("CIFAR_SWEEP_STORAGE"))  # with a password, which is not shown
    return "" if place.storage in known else f" --storage {shlex.quote(study.storage.shown)}"


def worker(
    studies: Studies = None,
    until_idle: Annotated[bool, Option("--until-idle", help="Leave when nothing is left to train.")] = False,
    *,
    workers: WorkerOptions,
    data: SameData = None,
    max_hours: MaxHours = None,
    place: FileOptions,
) -> None:
    """Train trials of submitted studies, the most urgent first, until told to stop."""
    from cifar_sweep.study.opening import load
    from cifar_sweep.study.storage import open_waiting
    from cifar_sweep.training.device import resolve_device
    from cifar_sweep.work.worker import Job, serve

    resolve_device(workers.device)
    deadline = deadline_of(max_hours)
    opened = open_waiting(place.storage)
    names = tuple(load(opened, name).name for name in studies or [])
    files = None if place.artifacts is None else open_artifacts(place.artifacts).address
    job = Job(place.storage, names, data=data, artifacts=files, device=workers.device, deadline=deadline)

    def plan(there: "Sequence[SweepStudy]") -> "Plan":
        made = workers.choose([study.sweep for study in there], say=say)
        for study in there:
            _note_costs(study, made)
        say(f"working on {', '.join(study.name for study in there)}; plan: {made}")
        return made

    say(f"worker on {opened.shown}" + ("" if until_idle else "; Ctrl-C or SIGTERM ends it"))
    with stop_on_signals() as stop:
        serve(job, until_idle=until_idle, plan=plan, shown=_all_shown, stop=stop)
    raise typer.Exit(stop.exit_code())


@contextmanager
def _all_shown(studies: "Sequence[SweepStudy]") -> "Iterator[None]":
    """Says of each study's trials what they come to, while the body runs."""
    from cifar_sweep.terminal.progress import shown

    with ExitStack() as views:
        for study in studies:
            views.enter_context(shown(study, terminal(), live=False))
        yield


def _note_costs(study: "SweepStudy", plan: "Plan") -> None:
    """Store what the study is reckoned to cost here, where nobody has yet. It is not worth waiting for a database."""
    from cifar_sweep.database.outage import is_outage
    from cifar_sweep.forecast.costs import note_costs

    try:
        if plan.costs and study.costs is None:
            note_costs(study, plan.costs)
    except Exception as error:
        if not is_outage(error):
            raise
