"""How to spend a machine on a sweep: how many workers, of how many threads, and how many trials each trains at once.

What that depends on is measured, with all workers at work, once for each network on a machine, and kept in the cache.
"""

import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cifar_sweep.config import Shape
from cifar_sweep.forecast.costs import TRAIN_IMAGES, Costs, Kind, NetworkCosts, Pace, kind_of
from cifar_sweep.forecast.course import Standing, forecast, kinds_of, queue_of
from cifar_sweep.forecast.expected import expected_shapes
from cifar_sweep.forecast.fates import Fates
from cifar_sweep.machine.groups import Groups, free_memory, network_of
from cifar_sweep.machine.timing import GROUP_SIZES, Speeds, Split, devices, measure
from cifar_sweep.sweep.strategy import group_sizes
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.training.device import available_cores, prepare_process, resolve_device, resolve_precision
from cifar_sweep.training.lanes import prepare_kernels

MAX_WORKERS = 16
# What may go to the groups of all workers; the rest is for the images, the libraries and other programs.
MEMORY_SHARE = 0.7
# Enough to tell one split from another.
CHOICE_DRAWS = 20


@dataclass(frozen=True)
class Plan:
    """How a sweep is to be run.

    Attributes:
        split: how many workers, of how many threads.
        groups: how many trials of a shape each trains at once.
        usual: the group size of most trials.
        costs: what the sweep's parts are reckoned to cost; None where nothing was measured.
        seconds: the expected wall seconds of the sweep if nothing is pruned, likewise.
        gain: how many times as fast as one trial at a time on the whole machine; None where nothing was measured.
    """

    split: Split
    groups: Groups
    usual: int
    seconds: float | None = None
    gain: float | None = None
    costs: Costs | None = None

    def __str__(self) -> str:
        workers, size = self.split.workers, self.usual
        shown = f"{workers} worker{'s' * (workers > 1)} x {size} trial{'s' * (size > 1)}"
        return shown + (f", about {self.gain:.2g} times one at a time" if self.gain and self.gain >= 1.05 else "")


def choose(
    sweeps: Sequence[Sweep],
    *,
    device: str = "auto",
    workers: int = 0,
    threads: int = 0,
    group: int = 0,
    say: Callable[[str], None] = lambda _: None,
    cache: Path | None = None,
    always: bool = False,
    train_images: int = TRAIN_IMAGES,
) -> Plan:
    """The plan for these sweeps on this machine; of `workers`, `threads` and `group`, what is 0 is chosen.

    Args:
        sweeps: what is to be run, one after the other.
        device: auto, cpu, cuda or cuda:N.
        workers: processes.
        threads: of each of them, on the CPU.
        group: trials at once in each of them.
        say: gets one sentence where networks have to be timed first, which happens once on a machine.
        cache: the folder of what was measured before.
        always: measure, too, where there is nothing to choose, for the time that it takes.
        train_images: of the data, for the time that it takes.

    Raises:
        DeviceError: there is no such device here.
        UsageError: the sweep's parameters are no complete config.
    """
    where = resolve_device(device)
    trials = sum(sweep.size for sweep in sweeps)
    splits = _splits(where, named=device, workers=workers, threads=threads, trials=trials)
    measured_first = always or not (trials == 1 or (group and len(splits) == 1))
    if measured_first and where.type == "cpu":
        prepare_kernels()
    prepare_process(where, threads=splits[0].threads)  # as a worker will be: precision is measured so
    precision, _ = resolve_precision(where, cache=cache)
    expected = [(sweep, expected_shapes(sweep, precision=precision)) for sweep in sweeps]

    def plan(split: Split, speeds: Speeds) -> Plan:
        groups = _groups(split, {} if group else speeds, where, named=device, largest=group or GROUP_SIZES[-1])
        usual = _usual(*expected[0], split, groups)
        if not speeds:
            return Plan(split, groups, usual)
        costs = _costs(everything, split, groups, speeds, train_images=train_images)
        seconds = math.fsum(_seconds(sweep, costs) for sweep, _ in expected)
        return Plan(split, groups, usual, seconds, costs=costs)

    everything = [counted for _, shapes in expected for counted in shapes]
    if not measured_first:
        return plan(splits[0], {})
    networks = {network_of(shape) for _, shape in everything}
    measured = measure(networks, [*splits, _alone(where)], device=device, precision=precision, cache=cache, say=say)
    best = min((plan(split, measured[split]) for split in splits), key=lambda made: made.seconds or math.inf)
    # On all cores, or on fewer where that is faster: beside a busy program, threads wait for each other.
    one_at_a_time = [
        _costs(everything, split, Groups(1), speeds, train_images=train_images) for split, speeds in measured.items()
    ]
    usual = min(math.fsum(count * costs.whole(kind(shape)) for count, shape in everything) for costs in one_at_a_time)
    training = (best.seconds or math.inf) - math.fsum(best.costs.start for _ in sweeps if best.costs)
    return replace(best, gain=usual / training)


def best_plans(
    shapes: Sequence[Shape],
    *,
    device: str,
    precision: str,
    say: Callable[[str], None] = lambda _: None,
    cache: Path | None = None,
) -> list[Plan]:
    """For each of these shapes, all of one precision, the plan for as many trials of it as one likes."""
    where = resolve_device(device)
    splits = _splits(where, named=device, workers=0, threads=0, trials=MAX_WORKERS)
    networks = {network_of(shape) for shape in shapes}
    measured = measure(networks, splits, device=device, precision=precision, cache=cache, say=say)

    def plan(shape: Shape, split: Split) -> Plan:
        groups = _groups(split, measured[split], where, named=device, largest=GROUP_SIZES[-1])
        size = groups.size(shape)
        return Plan(split, groups, size, groups.per_image(shape, size) / split.workers)

    return [
        min((plan(shape, split) for split in splits), key=lambda made: made.seconds or math.inf) for shape in shapes
    ]


def estimates(
    sweeps: Mapping[str, Sweep], *, say: Callable[[str], None], cache: Path | None = None
) -> dict[str, float]:
    """Wall seconds that each sweep takes on this machine as `choose` would run it, if no trial is pruned."""
    if not sweeps:
        return {}
    where = resolve_device("auto")
    splits = _splits(where, named="auto", workers=0, threads=0, trials=MAX_WORKERS)
    prepare_process(where, threads=splits[0].threads)
    precision, _ = resolve_precision(where, cache=cache)
    # All networks at once: each time something is measured, processes are started for it.
    shapes = [shape for sweep in sweeps.values() for _, shape in expected_shapes(sweep, precision=precision)]
    networks = {network_of(shape) for shape in shapes}
    measure(networks, [*splits, _alone(where)], device="auto", precision=precision, cache=cache, say=say)
    plans = {name: choose([sweep], say=say, cache=cache, always=True) for name, sweep in sweeps.items()}
    return {name: plan.seconds or 0.0 for name, plan in plans.items()}


def kind(shape: Shape) -> Kind:
    """What of a shape decides how long a trial takes."""
    return kind_of(asdict(shape))


def beginning(sweep: Sweep, costs: Costs) -> Standing:
    """Where a sweep stands when its command is given."""
    return Standing(waiting=queue_of(sweep), idle=costs.workers, delay=costs.start)


def _seconds(sweep: Sweep, costs: Costs) -> float:
    """Expected seconds of a sweep of which nothing is pruned."""
    unpruned = Fates(sweep).without_pruner()
    standing = beginning(sweep, costs)
    found = forecast(
        sweep, standing, pace=Pace(costs, doubt=0.0), fates=unpruned, kinds=kinds_of(sweep), draws=CHOICE_DRAWS
    )
    return statistics.fmean(course.seconds for course in found.courses)


def _costs(
    expected: Sequence[tuple[float, Shape]], split: Split, groups: Groups, speeds: Speeds, *, train_images: int
) -> Costs:
    """What the parts of sweeps of these shapes cost under this split, in these groups, at these speeds."""
    shapes: dict[str, dict[int, Shape]] = defaultdict(dict)
    for _, shape in expected:
        shapes[kind(shape).network].setdefault(shape.batch_size, shape)
    networks = {}
    for name, by_batch in shapes.items():
        timed = speeds[network_of(next(iter(by_batch.values())))]
        networks[name] = NetworkCosts(
            image={size: speed.image for size, speed in timed.items()},
            step={size: speed.step for size, speed in timed.items()},
            sizes={batch: groups.size(shape) for batch, shape in by_batch.items()},
        )
    return Costs(networks=networks, workers=split.workers, fixed=groups.fixed, train_images=train_images)


def _splits(device: torch.device, *, named: str, workers: int, threads: int, trials: int) -> list[Split]:
    """The splits to choose from, the one whose workers get in each other's way least first."""
    if device.type == "cuda":
        gpus = devices(device, named)
        counts = [workers] if workers else sorted({min(each * gpus, trials) for each in (1, 2, 4)})
        return [Split(count, 1) for count in counts]
    cores = available_cores()
    most = min(cores, MAX_WORKERS, trials)
    counts = [workers] if workers else [count for count in (most >> half for half in range(5)) if count]
    return [Split(count, threads or max(1, cores // count)) for count in counts]


def _alone(device: torch.device) -> Split:
    """One trial at a time on the whole machine."""
    return Split(1, available_cores() if device.type == "cpu" else 1)


def _usual(sweep: Sweep, expected: Sequence[tuple[float, Shape]], split: Split, groups: Groups) -> int:
    """The group size of most trials."""
    alike = Counter(shape for _, shape in expected)  # given points are trained with those alone that are alike
    largest = [groups.size(shape) for _, shape in expected]
    if sweep.given:
        sizes = [min(size, alike[shape]) for size, (_, shape) in zip(largest, expected, strict=True)]
    elif groups.fixed:
        sizes = [min(size, sweep.size) for size in largest]
    else:
        typical = {size: _typical(sweep, split, size) for size in set(largest)}
        sizes = [typical[size] for size in largest]
    return _median([(size, count) for size, (count, _) in zip(sizes, expected, strict=True)])


def _typical(sweep: Sweep, split: Split, largest: int) -> int:
    """The size of the group that the median trial is in."""
    sizes = group_sizes(sweep, workers=split.workers, largest=largest)
    return _median([(size, size) for size in sizes])


def _median(weighed: Sequence[tuple[int, float]]) -> int:
    """The median of numbers that count as often as their weight says."""
    half = math.fsum(weight for _, weight in weighed) / 2
    ordered = sorted(weighed)
    below = itertools.accumulate(weight for _, weight in ordered)
    return next(
        (number for (number, _), reached in zip(ordered, below, strict=True) if reached >= half), ordered[-1][0]
    )


def _groups(split: Split, speeds: Speeds, device: torch.device, *, named: str, largest: int) -> Groups:
    """Groups of at most `largest`, which take no more than their worker's part of a device's free memory."""
    free = free_memory(device)
    workers_of_a_device = math.ceil(split.workers / devices(device, named))
    return Groups(largest, speeds, None if free is None else int(MEMORY_SHARE * free / workers_of_a_device))
