"""Timing steps of a network on this machine, with all workers at work."""

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cifar_sweep.files import alone
from cifar_sweep.forecast.costs import CHANGED, Speed
from cifar_sweep.machine.groups import GROUP_SIZES, WORTHWHILE_GAIN, Speeds, changing, config_of, stand_in
from cifar_sweep.machine.processes import ProcessPool, process_pool
from cifar_sweep.machine.speeds import (
    TIMED_BATCHES,
    Split,
    read_speeds,
    speed_between,
    speeds_file,
    speeds_of,
    write_speeds,
)
from cifar_sweep.training.augmentation import augmented
from cifar_sweep.training.batches import CHUNK_PIXELS
from cifar_sweep.training.device import DTYPES, device_name, prepare_process, resolve_device, wait_for
from cifar_sweep.training.fuse import can_fuse
from cifar_sweep.training.graph import WARM_UP, is_replayed
from cifar_sweep.training.lanes import fewest_members, kernels, kernels_name, lane_count, stages_of
from cifar_sweep.training.models import build
from cifar_sweep.training.train import Run

_TIMED_SECONDS = 0.15
# The share of a step's time that its thread was at work, where others left it its core; else the time is not kept.
_ALONE = 0.9


class Timing(NamedTuple):
    """The least time of a step, and whether other programs left the process its core meanwhile."""

    seconds: float
    is_alone: bool = True


def step_seconds(
    network: str, *, batch: int, members: int, threads: int, device: torch.device, precision: str
) -> Timing:
    """The least time of a group's training step on random images, the first ones left out. Sets the threads.

    Or that of changing a batch, where `network` is what is done to images.
    """
    prepare_process(device, threads=threads)
    if network.startswith(CHANGED):
        return _change_seconds(network, batch=batch, device=device)
    config = config_of(network, precision=precision)
    run, side = Run([config] * members, None, device=device), config.shape.image_size
    run.start_epoch(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, side, side, generator=generator).to(device, DTYPES[precision])
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=generator).to(device)
    for _ in range(1 + (WARM_UP + 1) * is_replayed(device)):
        run.step(images, labels)
    return _least_seconds(lambda: run.step(images, labels), device)


def _least_seconds(step: Callable[[], object], device: torch.device) -> Timing:
    taken: list[tuple[float, float]] = []  # of each step the time, and that of its thread at work
    while len(taken) < 2 or math.fsum(each for each, _ in taken) < _TIMED_SECONDS:
        wait_for(device)
        start, used = time.perf_counter(), time.thread_time()
        step()
        wait_for(device)
        taken.append((time.perf_counter() - start, time.thread_time() - used))
    least, at_work = min(taken)
    return Timing(least, device.type != "cpu" or at_work > _ALONE * least)


def _change_seconds(name: str, *, batch: int, device: torch.device) -> Timing:
    """Many images are changed at once, whatever the batch."""
    shape = changing(name)
    change, side = augmented(shape, 1), shape.image_size
    assert change is not None
    count = max(batch, CHUNK_PIXELS // side**2)
    images = torch.randint(256, (count, side, side, 3), dtype=torch.uint8).to(device)
    labels = torch.zeros(count, dtype=torch.long, device=device)

    def step() -> None:
        pixels = change.cut(change.coloured(change.moved(images).permute(0, 3, 1, 2) / 255))
        for part, classes in zip(torch.split(pixels, batch), torch.split(labels, batch), strict=True):
            change.mixed(part, classes)

    step()
    seconds, is_alone = _least_seconds(step, device)
    return Timing(seconds * batch / count, is_alone)


def smallest_representative_group(network: str, *, threads: int, device: torch.device, precision: str) -> int:
    """The smallest group that fills a vector of the compiled kernels as larger ones do; 1 where none uses them."""
    if device.type != "cpu" or threads > 1 or kernels(bf16=precision == "bf16") is None:
        return 1
    plain = build(config_of(network, precision=precision).shape, seed=0)
    stages = stages_of(plain) if can_fuse(plain) else None
    return lane_count(GROUP_SIZES[-1]) if fewest_members(stages, DTYPES[precision]) else 1


def devices(device: torch.device, named: str) -> int:
    """How many devices the workers share out among them."""
    return torch.cuda.device_count() if device.type == "cuda" and not named.startswith("cuda:") else 1


@dataclass
class _Processes:
    """Those that time; `are_alone` until other programs are at work, too."""

    pool: ProcessPool
    are_alone: bool = True


@dataclass(frozen=True)
class Timer:
    """Times networks and keeps what it finds in the cache folder, by split, device, precision and version of torch."""

    device: str  # as it was named: auto, cpu, cuda or cuda:N
    precision: str  # fp32 or bf16
    name: str | None = None  # the device's, as `device_name` gives it; None: this process may ask

    def missing(self, networks: Collection[str], splits: Sequence[Split]) -> list[tuple[Split, str]]:
        """What `measure` would have to time. Deeper VGGs are taken from vgg11 by their multiply-accumulates."""
        return self._missing(read_speeds(), networks, splits)

    def _missing(
        self, everything: Mapping[str, Speeds], networks: Collection[str], splits: Sequence[Split]
    ) -> list[tuple[Split, str]]:
        timed = {stand_in(network)[0] for network in networks}
        return [(split, each) for split in splits for each in sorted(timed - set(everything.get(self._key(split), {})))]

    def measure(
        self,
        networks: Collection[str],
        splits: Sequence[Split],
        *,
        say: Callable[[str], None] = lambda _: None,
        seconds: float = math.inf,
    ) -> dict[Split, Speeds]:
        """The speeds of these networks under each split, timed where the cache folder does not have them.

        Under the first split group sizes are tried until one gains nothing; under the others one at a time and the
        best. `say` gets a sentence where something has to be timed. After so many `seconds` nothing more is begun, and
        if something is missing then, nothing is returned. Of processes that start at once one measures, with nobody
        beside it, and the others wait for what it finds. What was timed while other programs were at work is not kept.
        """
        until = time.monotonic() + seconds
        everything = read_speeds()
        if missing := self._missing(everything, networks, splits):
            say("timing a training step of each network, once on this machine")
            with alone(speeds_file(), seconds):
                everything = read_speeds()
                missing = self._missing(everything, networks, splits)
                passing: list[tuple[Split, str]] = []
                with process_pool(max((split.workers for split, _ in missing), default=0)) as pool:
                    for split, network in missing:
                        if time.monotonic() > until:
                            break
                        timing = _Processes(pool)
                        first = everything.get(self._key(splits[0]), {}).get(network)
                        sizes = (
                            self._best(timing, split, network, first) if first else self._ladder(timing, split, network)
                        )
                        everything.setdefault(self._key(split), {})[network] = sizes
                        passing += [] if timing.are_alone else [(split, network)]
                    else:
                        missing = []
                self._store(everything, but=passing)
                if passing:
                    say("other programs were at work meanwhile; these times are not kept")
        return {} if missing else {split: speeds_of(networks, everything[self._key(split)]) for split in splits}

    def _store(self, everything: Mapping[str, Speeds], *, but: Sequence[tuple[Split, str]]) -> None:
        left_out = {(self._key(split), network) for split, network in but}
        kept = {
            key: {network: sizes for network, sizes in timed.items() if (key, network) not in left_out}
            for key, timed in everything.items()
        }
        write_speeds(kept)

    def _key(self, split: Split) -> str:
        where = resolve_device(self.device)
        many = devices(where, self.device)
        name = f"{where.type} {self.name or device_name(where)}" + (f" x {many}" if many > 1 else "")
        by = f"torch {torch.__version__}, kernels {kernels_name(where)}"
        return f"{name}, {split.workers} x {split.threads} threads, {self.precision}, {by}"

    def _ladder(self, timing: _Processes, split: Split, network: str) -> dict[int, Speed]:
        """Larger and larger groups, until the next is no faster, and they are trained as large ones are."""
        found: dict[int, Speed] = {}
        where, before = resolve_device(self.device), math.inf
        if network.startswith(CHANGED):  # for all members at once
            return {1: self._speed(timing, split, network, 1)}
        least = smallest_representative_group(network, threads=split.threads, device=where, precision=self.precision)
        for size in GROUP_SIZES:
            found[size] = self._speed(timing, split, network, size)
            now = found[size].per_image(TIMED_BATCHES[0])
            if now * WORTHWHILE_GAIN > before and size >= least:
                break
            before = now
        return found

    def _best(self, timing: _Processes, split: Split, network: str, first: Mapping[int, Speed]) -> dict[int, Speed]:
        """One at a time, and the size that was the fastest under another split."""
        best = min(first, key=lambda size: first[size].per_image(TIMED_BATCHES[0]))
        return {size: self._speed(timing, split, network, size) for size in sorted({1, best})}

    def _speed(self, timing: _Processes, split: Split, network: str, size: int) -> Speed:
        """The speed of a member, as the mean over workers that all train such a group."""
        call = {"network": network, "members": size, "threads": split.threads, "precision": self.precision}
        places = [resolve_device(self.device, worker=k) for k in range(split.workers)]
        each_image = []
        for batch in TIMED_BATCHES:
            timed = timing.pool.together(step_seconds, *(call | {"batch": batch, "device": place} for place in places))
            timing.are_alone &= all(each.is_alone for each in timed)
            each_image.append(statistics.fmean(each.seconds for each in timed) / batch / size)
        return speed_between(*each_image)
