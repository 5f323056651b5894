"""What a sweep costs, by trying: its own groups for a few steps, with all workers at work, on its own images.

Everything that takes time in a run is timed here: starting workers, building networks, steps, validation, checkpoints,
and the database. Nothing of it is kept.
"""

import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, astuple, replace
from itertools import accumulate
from math import log
from typing import Any, NamedTuple

import torch

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.curve import EpochResult
from cifar_sweep.forecast.costs import VALIDATION_SHARE, Costs, Found, Kind, Pace
from cifar_sweep.forecast.course import forecast, kinds_of
from cifar_sweep.forecast.expected import draw
from cifar_sweep.forecast.fates import Fates
from cifar_sweep.machine.plan import Plan, beginning, kind
from cifar_sweep.machine.processes import Crew, crew
from cifar_sweep.machine.timing import GroupSeconds, group_seconds
from cifar_sweep.study.claim import Worker
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import open_existing, open_storage
from cifar_sweep.sweep.sweep import SamplerSettings, Sweep
from cifar_sweep.training.device import prepare_process, resolve_device
from cifar_sweep.training.images import data as images
from cifar_sweep.training.train import Run

# Of the sweep's time, the share whose groups are timed; but no more groups, and no longer, than this.
COVERED = 0.95
MOST_CASES = 10
LONGEST_SECONDS = 10.0
# A step that is expected to take longer is timed on a smaller batch.
LONGEST_STEP_SECONDS = 1.0
LIKELY_DRAWS = 300
REHEARSED_WEIGHT = 3.0
NAME = "rehearsal"
REPORTED_TRIALS = 4
REPORTED_EPOCHS = 4
# Deviation of a logarithm: how far off a rehearsed pace is. From run to run a shared machine differs by as much.
DOUBT = 0.08


class Case(NamedTuple):
    """Groups of one network, batch size and number of members."""

    network: str
    batch_size: int
    members: int


def rehearse(
    sweep: Sweep, plan: Plan, *, source: str, device: str, precision: str, classes: int, started: float
) -> Pace:
    """The pace at which this machine will run `sweep` by `plan`.

    Args:
        sweep: the sweep.
        plan: how, with its costs as they were reckoned.
        source: where its images are.
        device: as in `choose`.
        precision: the faster one here.
        classes: of the data.
        started: seconds that a command takes until it starts its workers.

    Raises:
        StudyError: a measuring process ended, or raised.
    """
    assert plan.costs is not None
    costs, split = plan.costs, plan.split
    devices = [resolve_device(device, worker=k) for k in range(split.workers)]
    with tempfile.TemporaryDirectory(prefix="cifar-sweep-") as folder, crew(split.workers) as processes:
        begun = time.perf_counter()
        common = {"source": source, "threads": split.threads}
        processes.together(get_ready, *({**common, "device": where} for where in devices))
        started += time.perf_counter() - begun
        timed: dict[Case, GroupSeconds] = {}
        found = []
        begun = time.perf_counter()
        for case in _cases(sweep, costs):
            if timed and time.perf_counter() - begun > LONGEST_SECONDS:
                break
            small = _small(case, costs)
            configs = _configs(sweep, small, precision=precision, classes=classes)
            calls = [{**common, "device": where, "configs": configs, "folder": folder} for where in devices]
            timed[case] = _mean(processes.together(group_seconds, *calls))
            found.append(replace(_found(small, timed[case], costs), batch_size=case.batch_size))
        opening, trial, report = _time_database(processes, split.workers, sweep, folder)
    building = statistics.fmean(each.begin / case.members for case, each in timed.items())
    rehearsed = costs.model_copy(
        update={
            "networks": {
                name: known.model_copy(update={"checkpoint": _checkpoint(name, timed)})
                for name, known in costs.networks.items()
            },
            "start": started + opening,
            "trial": building + trial,
            "report": report,
        }
    )
    return Pace(rehearsed, found, doubt=DOUBT)


def _cases(sweep: Sweep, costs: Costs) -> list[Case]:
    """The groups that take most of the time, the longest first."""
    pace = Pace(costs, doubt=0.0)
    unpruned = Fates(sweep).without_pruner()
    courses = forecast(sweep, beginning(sweep, costs), pace=pace, fates=unpruned, kinds=kinds_of(sweep), draws=20)
    seconds: dict[Case, float] = defaultdict(float)
    for course in courses.courses:
        for group in course.groups:
            seconds[Case(group.kind.network, group.kind.batch_size, group.members)] += group.seconds
    longest = sorted(seconds, key=lambda case: -seconds[case])
    covered = accumulate(seconds[case] for case in longest)
    enough = COVERED * sum(seconds.values())
    return [case for case, so_far in zip(longest, covered, strict=True) if so_far - seconds[case] < enough][:MOST_CASES]


def _small(case: Case, costs: Costs) -> Case:
    """The case with a batch of which a step does not take too long."""
    step = case.batch_size * case.members * costs.per_image(case.network, case.batch_size, case.members)
    return case._replace(batch_size=max(2, int(case.batch_size * min(1.0, LONGEST_STEP_SECONDS / step))))


def _configs(sweep: Sweep, case: Case, *, precision: str, classes: int) -> list[TrialConfig]:
    """As many configs as the case has members, all of one shape, as they are likely to come in this sweep."""
    generator = random.Random(0)  # noqa: S311 - no secret
    points = [sweep.fixed | point.params() for point in sweep.enqueue]
    points += [sweep.fixed | draw(sweep.space, generator) for _ in range(0 if sweep.given else LIKELY_DRAWS)]
    by_shape: dict[Shape, list[TrialConfig]] = defaultdict(list)
    for seed, params in enumerate(points):
        config = TrialConfig.from_params(params, classes=classes, precision=precision, data_seed=0, seed=seed)
        if kind(config.shape).network == case.network:
            shape = replace(config.shape, batch_size=case.batch_size, train_images=0)
            by_shape[shape].append(replace(config, shape=shape))
    likely = max(by_shape.values(), key=len)
    return [likely[k % len(likely)] for k in range(case.members)]


def _mean(timed: list[GroupSeconds]) -> GroupSeconds:
    return GroupSeconds(*map(statistics.fmean, zip(*map(astuple, timed), strict=True)))


def _found(case: Case, timed: GroupSeconds, costs: Costs) -> Found:
    """How far the costs of an epoch on all images are off."""
    whole = Kind(case.network, case.batch_size, epochs=1, train_images=0)
    validated = VALIDATION_SHARE * timed.validated
    seconds = case.members * costs.train_images * (timed.image + validated)
    return Found(
        case.network, case.batch_size, log(seconds / costs.epoch(whole, case.members)), weight=REHEARSED_WEIGHT
    )


def _checkpoint(network: str, timed: Mapping[Case, GroupSeconds]) -> float:
    """Seconds of a checkpoint of this network; of the others, if it was not timed."""
    own = [each.checkpoint for case, each in timed.items() if case.network == network]
    return statistics.fmean(own or [each.checkpoint for each in timed.values()])


# The database


def _time_database(processes: Crew, workers: int, sweep: Sweep, folder: str) -> tuple[float, float, float]:
    """Seconds to open a new study, to claim and to complete a trial, and to report an epoch of it, in a file here."""
    url = f"sqlite:///{folder}/studies.db"
    begun = time.perf_counter()
    with closing(open_storage(url)) as storage:
        # Its points would be claimed first, and a given one has no other.
        plain = sweep.model_copy(update={"enqueue": [], "sampler": SamplerSettings(name="random"), "trials": 1000})
        open_or_resume(storage, NAME, plain, data={"name": "none", "fingerprint": "none", "classes": 10})
        opening = time.perf_counter() - begun
        answers = processes.together(use_database, *({"url": url} for _ in range(workers)))
    trial, report = (statistics.fmean(part) for part in zip(*answers, strict=True))
    return opening, trial, report


def get_ready(*, source: str, threads: int, device: torch.device) -> None:
    """What a worker does before its first epoch, in a process that has just started."""
    prepare_process(device, threads=threads)
    loaded = images.load(source)
    config = TrialConfig.from_params(
        {"model": "lenet", "batch_size": 2}, classes=len(loaded.classes), precision="fp32", data_seed=0, seed=0
    )
    run = Run([config], loaded, device=device)
    run.step(*next(run.batches.train(2, seed=0, epoch=1)))


def use_database(*, url: str) -> tuple[float, float]:
    """Claim, report and complete a few trials. Returns the seconds of a trial, and those of a report."""
    with closing(open_existing(url)) as storage:
        study = load(storage, NAME)
        worker = Worker(Owner.current(), "cpu", 1, "fp32")
        study.claim(worker)  # the first one compiles its statements
        begun = time.perf_counter()
        claims = study.claim(worker, size=lambda _: REPORTED_TRIALS)
        claiming = time.perf_counter() - begun
        begun = time.perf_counter()
        for epoch in range(1, REPORTED_EPOCHS + 1):
            for claim in claims:
                study.report(claim, [point(each) for each in range(1, epoch + 1)])
            for claim in claims:
                study.should_prune(claim)
        reporting = time.perf_counter() - begun
        begun = time.perf_counter()
        for claim in claims:
            study.complete(claim, 0.5)
        completing = time.perf_counter() - begun
    return (claiming + completing) / len(claims), reporting / len(claims) / REPORTED_EPOCHS


def point(epoch: int) -> dict[str, Any]:
    """An epoch's result, as long as a real one."""
    third = 1 / 3
    return asdict(EpochResult(epoch, third, third, third, third, third, third, group_size=1, group_place=0))
