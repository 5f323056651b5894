"""How to spend a machine on a sweep: how many workers, of how many threads, and how many trials each trains at once.

What that depends on is measured, with all workers at work, once for each network on a machine, and kept in the cache.
"""

import itertools
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import torch

from cifar_sweep.config import Shape
from cifar_sweep.errors import DiskError
from cifar_sweep.files import replace_file
from cifar_sweep.launch.crew import Crew, crew
from cifar_sweep.search.costs import TRAIN_IMAGES, Costs, Kind, NetworkCosts, Pace, kind_of
from cifar_sweep.search.expected import expected_shapes
from cifar_sweep.search.fates import Fates
from cifar_sweep.search.forecast import Standing, forecast, kinds_of, queue_of
from cifar_sweep.search.strategy import group_sizes
from cifar_sweep.search.sweepfile import Sweep
from cifar_sweep.training.compiled import kernels_name, prepare_kernels
from cifar_sweep.training.data import default_cache
from cifar_sweep.training.device import (
    available_cores,
    device_name,
    prepare_process,
    resolve_device,
    resolve_precision,
)
from cifar_sweep.training.speed import (
    TIMED_BATCHES,
    WORTHWHILE_GAIN,
    Groups,
    Speed,
    free_memory,
    network_of,
    stand_in,
    step_seconds,
    trained_as_large_from,
)

GROUP_SIZES = (1, 2, 4, 8, 16, 32)
MAX_WORKERS = 16
# What may go to the groups of all workers; the rest is for the images, the libraries and other programs.
MEMORY_SHARE = 0.7
# Enough to tell one split from another.
CHOICE_DRAWS = 20

Speeds = Mapping[str, Mapping[int, Speed]]


@dataclass(frozen=True)
class Split:
    """A machine shared out: `workers` processes of `threads` threads each (on a GPU, where threads do not count, 1)."""

    workers: int
    threads: int


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
        gpus = _devices(device, named)
        counts = [workers] if workers else sorted({min(each * gpus, trials) for each in (1, 2, 4)})
        return [Split(count, 1) for count in counts]
    cores = available_cores()
    most = min(cores, MAX_WORKERS, trials)
    counts = [workers] if workers else [count for count in (most >> half for half in range(5)) if count]
    return [Split(count, threads or max(1, cores // count)) for count in counts]


def _alone(device: torch.device) -> Split:
    """One trial at a time on the whole machine."""
    return Split(1, available_cores() if device.type == "cpu" else 1)


def _devices(device: torch.device, named: str) -> int:
    """How many devices the workers share out among them."""
    return torch.cuda.device_count() if device.type == "cuda" and not named.startswith("cuda:") else 1


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
    workers_of_a_device = math.ceil(split.workers / _devices(device, named))
    return Groups(largest, speeds, None if free is None else int(MEMORY_SHARE * free / workers_of_a_device))


def measure(
    networks: Collection[str],
    splits: Sequence[Split],
    *,
    device: str,
    precision: str,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[Split, Speeds]:
    """The speeds of these networks under each split, timed where the cache folder does not have them.

    Deeper VGGs are taken from vgg11 by their multiply-accumulates. Times are kept by the split, the device, the
    precision and the version of torch. Under the first split group sizes are tried until one gains nothing; under the
    others, one at a time and the best.
    """
    path = (cache or default_cache()) / "speeds.json"
    everything = _read(path)
    where = resolve_device(device)
    timed = {stand_in(network)[0] for network in networks}
    keys = {split: _key(split, where, precision, devices=_devices(where, device)) for split in splits}
    missing = [
        (split, network) for split, key in keys.items() for network in sorted(timed - set(everything.get(key, {})))
    ]
    if missing:
        say("timing a training step of each network, once on this machine")
        with crew(max(split.workers for split, _ in missing)) as processes:
            for split, network in missing:
                first = everything.get(keys[splits[0]], {}).get(network)
                seconds = _Timing(processes, split, network, device=device, precision=precision)
                everything.setdefault(keys[split], {})[network] = (
                    seconds.ladder() if first is None else seconds.of(first)
                )
        plain = {
            key: {network: {size: astuple(speed) for size, speed in sizes.items()} for network, sizes in entry.items()}
            for key, entry in everything.items()
        }
        with suppress(DiskError):  # a read-only home: measured again next time
            replace_file(path, json.dumps(plain, indent=2).encode())
    return {split: {network: _of(network, everything[key]) for network in networks} for split, key in keys.items()}


def _of(network: str, known: Speeds) -> Mapping[int, Speed]:
    timed, factor = stand_in(network)
    return {size: speed.times(factor) for size, speed in known[timed].items()}


def _key(split: Split, device: torch.device, precision: str, *, devices: int) -> str:
    name = f"{device.type} {device_name(device)}" + (f" x {devices}" if devices > 1 else "")
    by = f"torch {torch.__version__}, kernels {kernels_name(device)}"
    return f"{name}, {split.workers} x {split.threads} threads, {precision}, {by}"


@dataclass(frozen=True)
class _Timing:
    """Times one network under one split."""

    processes: Crew
    split: Split
    network: str
    device: str
    precision: str

    def ladder(self) -> dict[int, Speed]:
        """Larger and larger groups, until the next is no faster, and they are trained as large ones are."""
        found: dict[int, Speed] = {}
        where = resolve_device(self.device)
        least = trained_as_large_from(self.network, threads=self.split.threads, device=where, precision=self.precision)
        for size in GROUP_SIZES:
            found[size] = self._speed(size)
            *_, before, last = [math.inf, *(speed.per_image(TIMED_BATCHES[0]) for speed in found.values())]
            if last * WORTHWHILE_GAIN > before and size >= least:
                break
        return found

    def of(self, first: Mapping[int, Speed]) -> dict[int, Speed]:
        """One at a time, and the size that was the fastest under another split."""
        best = min(first, key=lambda size: first[size].per_image(TIMED_BATCHES[0]))
        return {size: self._speed(size) for size in sorted({1, best})}

    def _speed(self, size: int) -> Speed:
        small, large = (self._seconds(batch, size) / batch / size for batch in TIMED_BATCHES)
        return Speed.between(small, large)

    def _seconds(self, batch: int, size: int) -> float:
        call = {
            "network": self.network,
            "batch": batch,
            "members": size,
            "threads": self.split.threads,
            "precision": self.precision,
        }
        calls = [call | {"device": resolve_device(self.device, worker=k)} for k in range(self.split.workers)]
        return statistics.fmean(self.processes.together(step_seconds, *calls))


def _read(path: Path) -> dict[str, dict[str, dict[int, Speed]]]:
    """The stored times by split, network and group size; none where there is no such file or it is not ours."""
    with suppress(OSError, ValueError, AttributeError, TypeError, OverflowError):
        found = {
            str(key): {
                str(network): {int(size): Speed(float(image), float(step)) for size, (image, step) in sizes.items()}
                for network, sizes in entry.items()
            }
            for key, entry in json.loads(path.read_text()).items()
        }
        speeds = [speed for entry in found.values() for sizes in entry.values() for speed in sizes.values()]
        whole = all(1 in sizes for entry in found.values() for sizes in entry.values())
        if whole and all(math.isfinite(part) and part >= 0 for speed in speeds for part in astuple(speed)):
            return found
    return {}
