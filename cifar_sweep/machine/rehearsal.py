"""What a sweep costs, by trying: short epochs of its own groups, with all workers at work, on its own images."""

import math
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.files import replace_file
from cifar_sweep.forecast.costs import OPEN_SECONDS, Costs, Pace, change_name, network_name
from cifar_sweep.forecast.expected import draw
from cifar_sweep.machine.plan import Plan
from cifar_sweep.machine.processes import process_pool
from cifar_sweep.parameters import Value
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.training import checkpoint
from cifar_sweep.training.device import prepare_process, resolve_device
from cifar_sweep.training.images import data as images
from cifar_sweep.training.train import Run

# No more groups are tried, and no longer, than this.
MOST_GROUPS = 10
LONGEST_SECONDS = 10.0
# About what one epoch is to take.
EPOCH_SECONDS = 0.7
LIKELY_DRAWS = 300
# How far off a rehearsed pace is, as a standard deviation of a logarithm: a shared machine differs so from run to run.
DOUBT = 0.08
# What a process that has just started is tried on, so that it has loaded all.
FIRST: dict[str, Value] = {"model": "lenet", "batch_size": 2, "train_images": 2, "validation_images": 2}


class GroupSeconds(NamedTuple):
    """Wall seconds of a group: to build it, for an epoch of all its members, and to keep one member's checkpoint."""

    begin: float
    epoch: float
    checkpoint: float


def rehearse(sweep: Sweep, plan: Plan, *, source: str, device: str, classes: int, started: float) -> Pace:
    """The pace at which this machine will run `sweep` by `plan`, of whose costs the steps were timed.

    `started` are the seconds that a command takes until it starts its workers. Raises StudyError if a measuring process
    ended, or raised.
    """
    assert plan.costs is not None
    assert plan.found is not None
    precision = plan.found.precision
    places = [resolve_device(device, worker=k) for k in range(plan.split.workers)]
    timed: list[tuple[Shape, int, GroupSeconds]] = []
    with tempfile.TemporaryDirectory(prefix="cifar-sweep-") as folder, process_pool(len(places)) as pool:
        begun = time.perf_counter()
        call = {"source": source, "folder": folder, "threads": plan.split.threads}
        first = [_config(FIRST | {"image_size": sweep.image_size}, precision=precision, classes=classes)]
        pool.together(group_seconds, *(call | {"device": place, "configs": first} for place in places))
        ready = time.perf_counter()
        for configs in _groups(sweep, plan, precision=precision, classes=classes):
            if timed and time.perf_counter() - ready > LONGEST_SECONDS:
                break
            answers = pool.together(group_seconds, *(call | {"device": place, "configs": configs} for place in places))
            taken = map(statistics.fmean, zip(*answers, strict=True))
            timed.append((configs[0].shape, len(configs), GroupSeconds(*taken)))
    return Pace(_corrected(plan.costs, timed, start=started + ready - begun + OPEN_SECONDS), doubt=DOUBT)


def _config(params: Mapping[str, Value], *, precision: str, classes: int, seed: int = 0) -> TrialConfig:
    return TrialConfig.from_params(params, classes=classes, precision=precision, data_seed=0, seed=seed)


def _groups(sweep: Sweep, plan: Plan, *, precision: str, classes: int) -> list[list[TrialConfig]]:
    """The usual groups as they are likely to come in this sweep, those that take most of the time first."""
    assert plan.costs is not None
    generator = random.Random(0)  # noqa: S311 - no secret
    points = [sweep.fixed | point.params() for point in sweep.enqueue]
    points += [sweep.fixed | draw(sweep, generator) for _ in range(0 if sweep.given else LIKELY_DRAWS)]
    alike: dict[tuple[str, int, str], list[TrialConfig]] = defaultdict(list)
    for seed, params in enumerate(points):
        config = _config(params, precision=precision, classes=classes, seed=seed)
        alike[network_name(config.shape), config.shape.batch_size, change_name(config.shape)].append(config)
    seconds = {key: math.fsum(plan.costs.alone(config.shape) for config in alike[key]) for key in alike}
    longest = sorted(alike, key=lambda key: -seconds[key])[:MOST_GROUPS]
    return [_group(alike[key], plan.costs, usual=plan.usual) for key in longest]


def _group(alike: Sequence[TrialConfig], costs: Costs, *, usual: int) -> list[TrialConfig]:
    """A group of these trials with the shape of the first one, for an epoch of `EPOCH_SECONDS` or of one step."""
    shape = alike[0].shape
    size = min(costs.size(shape), usual)
    image = costs.epoch(replace(shape, train_images=costs.train_images), size) / costs.train_images
    count = max(int(EPOCH_SECONDS / image), 10)
    batch = min(shape.batch_size, count)
    short = replace(shape, batch_size=batch, epochs=2, train_images=count - count % batch, validation_images=count // 4)
    if short.train_images >= costs.train_images:
        short = replace(short, train_images=0, validation_images=0)
    return [replace(alike[k % len(alike)], shape=short) for k in range(size)]


def _corrected(costs: Costs, timed: Sequence[tuple[Shape, int, GroupSeconds]], *, start: float) -> Costs:
    """The costs as they were tried; a network of which no group was tried is off like the others."""
    networks, factors = {}, [seconds.epoch / costs.epoch(shape, size) for shape, size, seconds in timed]
    changes = {name: seconds * statistics.geometric_mean(factors) for name, seconds in costs.changes.items()}
    for name, known in costs.networks.items():
        own = [each for each in timed if network_name(each[0]) == name] or timed
        factor = statistics.geometric_mean(seconds.epoch / costs.epoch(shape, size) for shape, size, seconds in own)
        image, step = ({size: factor * part for size, part in parts.items()} for parts in (known.image, known.step))
        kept = statistics.fmean(seconds.checkpoint for _, _, seconds in own)
        networks[name] = known.model_copy(update={"image": image, "step": step, "checkpoint": kept})
    building = statistics.fmean(seconds.begin / size for _, size, seconds in timed)
    found = {"networks": networks, "changes": changes, "start": start, "trial": building + costs.trial}
    return costs.model_copy(update=found)


def group_seconds(
    configs: Sequence[TrialConfig], *, source: str, folder: str, threads: int, device: torch.device
) -> GroupSeconds:
    """Time a group's second epoch on the images of `source`, and a checkpoint in `folder`. Sets the threads."""
    prepare_process(device, threads=threads)
    loaded = images.load(source, side=configs[0].shape.image_size, skip_damaged=True)
    start = time.perf_counter()
    run = Run(configs, loaded, device=device)
    run.epoch()
    begin = time.perf_counter() - start
    epoch = math.fsum(result.seconds for result in run.epoch())
    start = time.perf_counter()
    path = Path(folder) / f"{os.getpid()}.safetensors"
    replace_file(path, checkpoint.pack(run.state(0)))
    kept = time.perf_counter() - start
    path.unlink()
    return GroupSeconds(max(begin - epoch, 0.0), epoch, kept)
