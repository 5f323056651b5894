"""How fast this machine trains a network, by how many trials train at once, and what memory that takes.

A network here is a model, and for the small ones batch norm, which makes a step up to 1.6 times as long: ``cnn3`` and
``cnn3+batch_norm``. In ``cnn1`` and the VGGs batch norm is 5 %. One of a user's own has the hash of its file with it,
``my_module:build@0123456789abcdef``: what was timed of another file is not its time.
"""

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count, islice
from pathlib import Path

import torch

from cifar_sweep.config import VGG_MODELS, Shape, TrialConfig, Value, is_own
from cifar_sweep.files import replace_file
from cifar_sweep.own_model import fingerprint
from cifar_sweep.training import checkpoint, data
from cifar_sweep.training.compiled import kernels
from cifar_sweep.training.device import prepare_process
from cifar_sweep.training.evaluate import evaluate
from cifar_sweep.training.fuse import can_fuse
from cifar_sweep.training.group import Group
from cifar_sweep.training.lanes import fewest_members, stages_of
from cifar_sweep.training.models import build
from cifar_sweep.training.models.summary import macs, summarize
from cifar_sweep.training.rows import parts_of
from cifar_sweep.training.train import Run

# Batches of which a step is timed; what it takes at any other follows from the two.
TIMED_BATCHES = (16, 128)
_TIMED_SECONDS = 0.15
MEAN_SECONDS = 0.4
MOST_TIMES = 100
VALIDATION_BATCHES = 3
MEMORY_FILE = Path("/proc/meminfo")
# A larger group must win by this much: it leaves the search fewer results to learn from at a time.
WORTHWHILE_GAIN = 1.04
# The least group that fills the lanes of a vector.
_FULL_GROUP = 8

_BATCH_NORM = "+batch_norm"
_FILE = "@"
_SMALL_MODELS = ("lenet", "convnet", "cnn3")


@dataclass(frozen=True)
class Speed:
    """Training time per member of a group: `image` seconds for each image, and `step` seconds for each batch."""

    image: float
    step: float

    def per_image(self, batch: int) -> float:
        """Seconds per training image at this batch size."""
        return self.image + self.step / batch

    @classmethod
    def between(cls, small: float, large: float) -> "Speed":
        """From the seconds per image at `TIMED_BATCHES`; exact at the larger where one of the parts is below 0."""
        fewer, more = TIMED_BATCHES
        step = (small - large) / (1 / fewer - 1 / more)
        step = min(max(step, 0.0), large * more)
        return cls(large - step / more, step)

    def times(self, factor: float) -> "Speed":
        """A network that takes `factor` times as long."""
        return Speed(self.image * factor, self.step * factor)


@dataclass(frozen=True)
class Groups:
    """How many trials of a shape a worker trains at once.

    Attributes:
        largest: never more.
        speeds: by network, and by group size, the speed of one worker while all of them work. A network that is not
            there is trained one at a time; without any, all are trained in groups of `largest`.
        free_bytes: what one worker's groups may take of the device's memory; None where that is not known.
    """

    largest: int
    speeds: Mapping[str, Mapping[int, Speed]] = field(default_factory=dict)
    free_bytes: int | None = None

    @property
    def fixed(self) -> bool:
        """Whether the size was asked for, and not chosen by speed."""
        return not self.speeds

    def size(self, shape: Shape) -> int:
        """The group size for this shape: of those in `speeds`, the smallest that is about as fast as any."""
        largest = self.largest
        if self.free_bytes is not None:
            largest = max(1, min(largest, self.free_bytes // member_bytes(shape)))
        known = self.speeds.get(network_of(shape))
        if known is None:
            return largest if self.fixed else 1
        sizes = [*sorted(size for size in known if size < largest), largest]
        least = min(self.per_image(shape, size) for size in sizes)
        return next(size for size in sizes if self.per_image(shape, size) <= WORTHWHILE_GAIN * least)

    def per_image(self, shape: Shape, size: int) -> float:
        """Seconds per training image of a member of a group of this size; between two that were timed, in proportion.

        Raises:
            KeyError: the network is not in `speeds`.
        """
        known = {timed: speed.per_image(shape.batch_size) for timed, speed in self.speeds[network_of(shape)].items()}
        below = max((timed for timed in known if timed <= size), default=min(known))
        above = min((timed for timed in known if timed >= size), default=max(known))
        share = (size - below) / (above - below) if above > below else 0.0
        return known[below] + share * (known[above] - known[below])


ONE_AT_A_TIME = Groups(1)


def network_of(shape: Shape) -> str:
    """The name of the network whose time stands for this shape's."""
    if is_own(shape.model):
        return f"{shape.model}{_FILE}{fingerprint(shape.model)}"
    return shape.model + (_BATCH_NORM if shape.batch_norm and shape.model in _SMALL_MODELS else "")


def stand_in(network: str) -> tuple[str, float]:
    """The network that is timed for this one, and how many times as long this one takes: deeper VGGs are not timed."""
    if network not in VGG_MODELS or network == "vgg11":
        return network, 1.0
    return "vgg11", _macs(network) / _macs("vgg11")


def member_bytes(shape: Shape) -> int:
    """About the memory that one trial of this shape takes in training, besides the images.

    Parameters, their gradients, two moments and the best ones so far in float32, and two copies in a step; of each
    layer's output what is kept for the backward pass, its gradient, and what a layer works in.
    """
    parameters, outputs = _sizes(replace(shape, batch_size=1, epochs=1, train_images=0, data_seed=0))
    return 28 * parameters + shape.batch_size * outputs * (5 if shape.precision == "bf16" else 10)


@cache
def _sizes(shape: Shape) -> tuple[int, int]:
    """How many parameters a network has, and how many numbers its layers give for an image."""
    rows = summarize(build(shape, seed=0))
    return sum(row.parameters for row in rows), sum(math.prod(row.output_shape) for row in rows)


def free_memory(device: torch.device) -> int | None:
    """Bytes of the device's memory that nobody uses; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        # What a program can have: free pages, and those that only hold files.
        found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMORY_FILE.read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def step_seconds(
    network: str, *, batch: int, members: int, threads: int, device: torch.device, precision: str
) -> float:
    """The least time of a training step of a group, on random images, after one to warm up.

    Sets this process's threads.
    """
    prepare_process(device, threads=threads)
    config = _config(network, precision=precision)
    group = Group([config] * members, device=device)
    group.start_epoch(1)
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    images = torch.rand(batch, 3, 32, 32, generator=generator).to(device, dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=generator).to(device)
    group.step(images, labels)
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < _TIMED_SECONDS:
        _wait_for(device)
        start = time.perf_counter()
        group.step(images, labels)
        _wait_for(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def trained_as_large_from(network: str, *, threads: int, device: torch.device, precision: str) -> int:
    """The least size of a group that is trained as all larger ones are: smaller ones do not tell how fast those are."""
    if device.type != "cpu" or threads > 1 or kernels(bf16=precision == "bf16") is None:
        return 1
    plain = build(_config(network, precision=precision).shape, seed=0)
    stages = stages_of(plain, parts_of(plain)) if can_fuse(plain) else None
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return _FULL_GROUP if stages and fewest_members(stages, dtype) else 1


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
    run.group.start_epoch(1)
    step = _steps(run)
    step()
    begin = time.perf_counter() - start
    size, validation = run.shape.batch_size * len(configs), run.batches.validation()
    image = _mean_seconds(step, device) / size
    evaluation = partial(evaluate, run.group.network, precision=run.shape.precision, device=device)
    first = list(islice(validation, 1))
    evaluation(first)
    few = list(islice(validation, VALIDATION_BATCHES)) or first
    validated = _mean_seconds(lambda: evaluation(few), device) / len(configs) / sum(len(labels) for _, labels in few)
    run.members[0].best_weights = run.group.network.member_state(0)  # as after an epoch
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
    return lambda: run.group.step(*next(stream))


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


def _config(network: str, *, precision: str = "fp32") -> TrialConfig:
    model = network.removesuffix(_BATCH_NORM).partition(_FILE)[0]
    params: dict[str, Value] = {"model": model}
    if model in _SMALL_MODELS:
        params["batch_norm"] = network != model
    return TrialConfig.from_params(params, classes=10, precision=precision, data_seed=0, seed=0)


@cache
def _macs(network: str) -> int:
    return macs(build(_config(network).shape, seed=0))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
