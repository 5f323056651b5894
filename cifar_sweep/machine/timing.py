"""Timing steps of a network on this machine, and keeping what was measured in the cache."""

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path

import torch

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import DiskError
from cifar_sweep.files import default_cache, replace_file
from cifar_sweep.machine.groups import TIMED_BATCHES, WORTHWHILE_GAIN, Speed, config_of, stand_in
from cifar_sweep.machine.processes import Crew, crew
from cifar_sweep.training import checkpoint
from cifar_sweep.training.device import device_name, prepare_process, resolve_device
from cifar_sweep.training.evaluate import evaluate
from cifar_sweep.training.fuse import can_fuse
from cifar_sweep.training.images import data
from cifar_sweep.training.lanes import fewest_members, kernels, kernels_name, stages_of
from cifar_sweep.training.models import build
from cifar_sweep.training.train import Run

_TIMED_SECONDS = 0.15
MEAN_SECONDS = 0.4
MOST_TIMES = 100
VALIDATION_BATCHES = 3
# The least group that fills the lanes of a vector.
_FULL_GROUP = 8
GROUP_SIZES = (1, 2, 4, 8, 16, 32)
Speeds = Mapping[str, Mapping[int, Speed]]


def step_seconds(
    network: str, *, batch: int, members: int, threads: int, device: torch.device, precision: str
) -> float:
    """The least time of a training step of a group, on random images, after one to warm up.

    Sets this process's threads.
    """
    prepare_process(device, threads=threads)
    config = config_of(network, precision=precision)
    run = Run([config] * members, None, device=device)
    run.start_epoch(1)
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    images = torch.rand(batch, 3, 32, 32, generator=generator).to(device, dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=generator).to(device)
    run.step(images, labels)
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < _TIMED_SECONDS:
        _wait_for(device)
        start = time.perf_counter()
        run.step(images, labels)
        _wait_for(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def trained_as_large_from(network: str, *, threads: int, device: torch.device, precision: str) -> int:
    """The least size of a group that is trained as all larger ones are: smaller ones do not tell how fast those are."""
    if device.type != "cpu" or threads > 1 or kernels(bf16=precision == "bf16") is None:
        return 1
    plain = build(config_of(network, precision=precision).shape, seed=0)
    stages = stages_of(plain) if can_fuse(plain) else None
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return _FULL_GROUP if fewest_members(stages, dtype) else 1


@dataclass(frozen=True)
class GroupSeconds:
    """Wall seconds of a group: to `begin` it; for an image of one member in training and when it is `validated`; to
    keep one member's `checkpoint`."""

    begin: float
    image: float
    validated: float
    checkpoint: float


def group_seconds(
    configs: Sequence[TrialConfig], *, source: str, folder: str, threads: int, device: torch.device
) -> GroupSeconds:
    """Time a group on the images of `source`, all of it as a sweep does it, with a checkpoint in `folder`.

    Sets this process's threads.
    """
    prepare_process(device, threads=threads)
    images = data.load(source)
    start = time.perf_counter()
    run = Run(configs, images, device=device)
    run.start_epoch(1)
    step = _steps(run)
    step()
    begin = time.perf_counter() - start
    size, validation = run.shape.batch_size * len(configs), run.batches.validation()
    image = _mean_seconds(step, device) / size
    evaluation = partial(evaluate, run.network, precision=run.shape.precision, device=device)
    first = list(islice(validation, 1))
    evaluation(first)
    few = list(islice(validation, VALIDATION_BATCHES)) or first
    validated = _mean_seconds(lambda: evaluation(few), device) / len(configs) / sum(len(labels) for _, labels in few)
    run.members[0].best_weights = run.network.member_state(0)  # as after an epoch
    path = Path(folder) / f"{os.getpid()}.safetensors"
    kept = _mean_seconds(lambda: replace_file(path, checkpoint.pack(run.state(0))), device)
    path.unlink()
    return GroupSeconds(max(begin - image * size, 0.0), image, validated, kept)


def _steps(run: Run) -> Callable[[], None]:
    """Does one training step after another, through as many epochs as it takes."""

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for epoch in count(1):
            yield from run.batches.train(run.shape.batch_size, seed=run.shape.data_seed, epoch=epoch)

    stream = batches()
    return lambda: run.step(*next(stream))


def _mean_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The mean time of `work`, over a while."""
    taken: list[float] = []
    while sum(taken) < MEAN_SECONDS and len(taken) < MOST_TIMES:
        _wait_for(device)
        start = time.perf_counter()
        work()
        _wait_for(device)
        taken.append(time.perf_counter() - start)
    return sum(taken) / len(taken)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Split:
    """A machine shared out: `workers` processes of `threads` threads each (on a GPU, where threads do not count, 1)."""

    workers: int
    threads: int


def devices(device: torch.device, named: str) -> int:
    """How many devices the workers share out among them."""
    return torch.cuda.device_count() if device.type == "cuda" and not named.startswith("cuda:") else 1


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
    keys = {split: _key(split, where, precision, devices=devices(where, device)) for split in splits}
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
