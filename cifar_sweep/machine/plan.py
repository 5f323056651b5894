"""How to spend a machine on a sweep: how many workers, of how many threads, and how many trials each trains at once.

What that depends on is measured, with all workers at work, once for each network on a machine, and kept in the cache.
"""

import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import torch

from cifar_sweep.config import Shape
from cifar_sweep.forecast.costs import TRAIN_IMAGES, Costs, per_image
from cifar_sweep.forecast.expected import expected_shapes
from cifar_sweep.forecast.schedule import group_sizes
from cifar_sweep.machine.groups import GROUP_SIZES, WORTHWHILE_GAIN, Groups, Speeds, names_of, network_of
from cifar_sweep.machine.memory import free_memory
from cifar_sweep.machine.processes import ask
from cifar_sweep.machine.speeds import Split, costs_of, typical, unpruned_seconds
from cifar_sweep.machine.timing import Timer, devices
from cifar_sweep.sweep.strategy import searches_shape
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.training.device import device_name, prepare_process, resolve_device, resolve_precision
from cifar_sweep.training.lanes import prepare_kernels
from cifar_sweep.training.limits import available_cores, threads_asked

MAX_WORKERS = 16
# What may go to the groups of all workers; the rest is for the images, the libraries and other programs.
MEMORY_SHARE = 0.7
# Of the machine's memory for a worker's libraries and its images: 0.95 GB with CIFAR-10 (on a GPU a guess).
WORKER_BYTES = {"cpu": 1 << 30, "cuda": 3 << 30}
# Where a group's step takes less than so many times as long as one trial's, the GPU waits for the host in both.
HOST_BOUND = 1.5
CPU = torch.device("cpu")
# A sweep that typical speeds have done sooner is run without measuring, which itself takes a good part of that.
SHORT_SECONDS = 120.0


@dataclass(frozen=True)
class Found:
    """What a process finds out about its device."""

    name: str
    precision: str  # the faster one
    why: str  # it is, in words
    free_bytes: int | None  # of its memory, as `free_memory` says


def find_out(*, device: torch.device, threads: int) -> Found:
    """What there is to know of a device for workers of so many `threads`. Readies the process as one of them."""
    prepare_process(device, threads=threads)  # precision is measured so
    precision, why = resolve_precision(device)
    return Found(device_name(device), precision, why, free_memory(device))


@dataclass(frozen=True)
class Plan:
    """How a sweep is to be run. Seconds and costs are None where speeds are not known."""

    split: Split
    groups: Groups
    usual: int  # the group size of most trials
    seconds: float | None = None  # the expected wall seconds of the sweep if nothing is pruned
    gain: float | None = None  # how many times as fast as one trial at a time on the whole machine, where measured
    costs: Costs | None = None  # what the sweep's parts are reckoned to cost
    found: Found | None = field(default=None, compare=False)  # of the device
    bound: str | None = None  # what keeps it from being faster, in words, where that is known

    def __str__(self) -> str:
        workers, size = self.split.workers, self.usual
        shown = f"{workers} worker{'s' * (workers > 1)} x {size} trial{'s' * (size > 1)}"
        return shown + (f", about {self.gain:.2g} times one at a time" if self.gain and self.gain >= 1.05 else "")


@dataclass(frozen=True)
class _Task:
    """What a plan is to be made for: sweeps with the shapes to expect, the device, what was asked for."""

    expected: Sequence[tuple[Sweep, Sequence[tuple[float, Shape]]]]
    where: torch.device
    device: str
    group: int
    train_images: int
    found: Found

    @property
    def shapes(self) -> list[tuple[float, Shape]]:
        return [counted for _, shapes in self.expected for counted in shapes]

    def plan(self, split: Split, speeds: Speeds) -> Plan:
        """The plan under this split; a worker's groups take its part of a device's free memory at most."""
        free = self.found.free_bytes
        free_bytes = None if free is None else int(MEMORY_SHARE * free / math.ceil(split.workers / split.devices))
        groups = Groups(self.group or GROUP_SIZES[-1], {} if self.group else speeds, free_bytes)
        usual = _usual(*self.expected[0], split, groups)
        if not speeds:
            return Plan(split, groups, usual, found=self.found)
        costs = costs_of(self.shapes, split, groups, speeds, self.train_images)
        seconds = math.fsum(unpruned_seconds(sweep, costs) for sweep, _ in self.expected)
        bound = self._bound(split, groups, usual)
        return Plan(split, groups, usual, seconds, costs=costs, found=self.found, bound=bound)

    def _bound(self, split: Split, groups: Groups, usual: int) -> str | None:
        """What bounds the groups that most trials of the first sweep are in, or their speed where nothing does."""
        sweep, shapes = self.expected[0]
        if groups.fixed:
            return None
        fastest = _median_size(replace(groups, free_bytes=None), shapes)
        if (fits := _median_size(groups, shapes)) < fastest:
            return f"memory, which has room for groups of {fits}; {fastest} would be faster"
        if usual < fits:
            if sweep.listed:
                why = "has few points that are alike"
            elif usual >= math.ceil(sweep.size / split.workers):
                why = "has no more trials"
            else:
                why = "learns from trials that have ended (docs/group_search.md)"
            return f"the search, which {why}; groups of {fits} would be faster"
        if self.where.type == "cpu":
            return "the cores"
        shape = next(shape for _, shape in shapes if groups.size(shape) == fits)
        timed = groups.speeds[network_of(shape)]
        step, alone = (size * per_image(timed, shape.batch_size, size) for size in (fits, 1))
        return "the GPU" if fits == 1 or step > HOST_BOUND * alone else "the host, which launches the GPU's work"

    def one_at_a_time(self, split: Split, speeds: Speeds) -> float:
        """Seconds of all trials, one after the other."""
        costs = costs_of(self.shapes, split, Groups(1), speeds, self.train_images)
        return math.fsum(count * costs.alone(shape) for count, shape in self.shapes)

    def rough(self, split: Split, networks: Collection[str]) -> Plan:
        """The plan by typical speeds, where they are known."""
        plan = self.plan(split, (typical(networks) if self.where.type == "cpu" else None) or {})
        return replace(plan, costs=plan.costs.model_copy(update={"rough": True})) if plan.costs else plan


def choose(
    sweeps: Sequence[Sweep],
    *,
    device: str = "auto",
    workers: int = 0,
    threads: int = 0,
    group: int = 0,
    say: Callable[[str], None] = lambda _: None,
    always: bool = False,
    train_images: int = TRAIN_IMAGES,
    seconds: float = math.inf,
) -> Plan:
    """The plan for these sweeps, run one after the other on this machine.

    Of `workers`, the `threads` of each on the CPU, and the trials at once in each of them (`group`), what is 0 is
    chosen. `say` gets one sentence where networks have to be timed first, which happens once on a machine. Where there
    is nothing to choose or little time to win, only `always` measures. Where so many `seconds` are not enough to
    measure, typical speeds are taken. Raises DeviceError if there is no such device here.
    """
    where = resolve_device(device)
    threads = threads or threads_asked()
    trials = sum(sweep.size for sweep in sweeps)
    splits = _splits(where, named=device, workers=workers, threads=threads, trials=trials)
    is_given = trials == 1 or bool(group and len(splits) == 1)
    found = ask(find_out, device=where, threads=splits[0].threads)
    expected = [(sweep, expected_shapes(sweep, precision=found.precision)) for sweep in sweeps]
    task = _Task(expected, where, device, group, train_images, found)
    if is_given and not always:
        return task.plan(splits[0], {})
    alone = Split(1, available_cores() if where.type == "cpu" else 1)  # one trial at a time on the whole machine
    timer, considered = Timer(device, found.precision, found.name), [*splits, alone]
    networks = set[str]().union(*(names_of(shape) for _, shape in task.shapes))
    if not always and timer.missing(networks, considered):
        rough = task.rough(splits[0], networks)
        if (rough.seconds or math.inf) <= SHORT_SECONDS:
            return rough
    if where.type == "cpu":
        prepare_kernels(bf16=found.precision == "bf16")  # while the measuring processes start
    measured = timer.measure(networks, considered, say=say, seconds=seconds)
    if not measured:
        return task.rough(splits[0], networks)
    plans = [task.plan(split, measured[split]) for split in splits]
    least = min(plan.seconds or math.inf for plan in plans)
    # Threads that wait for each other lose many times as much to a busy program as workers of one thread do.
    best = next(plan for plan in plans if (plan.seconds or math.inf) <= WORTHWHILE_GAIN * least)
    # On all cores, or on fewer where that is faster: beside a busy program, threads wait for each other.
    usual = min(task.one_at_a_time(split, speeds) for split, speeds in measured.items())
    start = best.costs.start * len(task.expected) if best.costs else 0.0
    return replace(best, gain=usual / ((best.seconds or math.inf) - start))


def _splits(device: torch.device, *, named: str, workers: int, threads: int, trials: int) -> list[Split]:
    """The splits to choose from, the one whose workers get in each other's way least first."""
    cores = available_cores()
    most = min(cores, MAX_WORKERS, trials, max(1, (free_memory(CPU) or sys.maxsize) // WORKER_BYTES[device.type]))
    if device.type == "cuda":
        gpus = devices(device, named)
        counts = [workers] if workers else sorted({min(each * gpus, most) for each in (1, 2, 4)})
        return [Split(count, 1, min(gpus, count)) for count in counts]
    counts = [workers] if workers else [count for count in (most >> half for half in range(5)) if count]
    return [Split(count, threads or max(1, cores // count)) for count in counts]


def _median_size(groups: Groups, expected: Sequence[tuple[float, Shape]]) -> int:
    return statistics.median_low(groups.size(shape) for _, shape in expected)


def _usual(sweep: Sweep, expected: Sequence[tuple[float, Shape]], split: Split, groups: Groups) -> int:
    """The size of the group that the median trial is in."""
    if sweep.listed:  # these points are trained with those alone that are alike
        alike = Counter(shape for _, shape in expected)
        return statistics.median_low(min(groups.size(shape), alike[shape]) for _, shape in expected)
    largest = _median_size(groups, expected)
    if groups.fixed or (sweep.strategy == "auto" and not searches_shape(sweep)):  # which fills its groups
        return min(largest, sweep.size)
    sizes = group_sizes(sweep, workers=split.workers, devices=split.devices, largest=largest)
    return statistics.median_low(size for size in sizes for _ in range(size))
