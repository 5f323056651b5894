"""How fast this machine trains a network, by how many trials train at once, and what memory that takes.

A network here is a model, and for the small ones batch norm, which makes a step up to 1.6 times as long: ``cnn3`` and
``cnn3+batch_norm``. In ``cnn1`` and the VGGs batch norm is 5 %. One of a user's own has the hash of its file with it,
``my_module:build@0123456789abcdef``: what was timed of another file is not its time.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from cifar_sweep.config import VGG_MODELS, Shape, TrialConfig, Value, is_own
from cifar_sweep.training.models import build
from cifar_sweep.training.models.own import fingerprint
from cifar_sweep.training.models.summary import macs, summarize

# Batches of which a step is timed; what it takes at any other follows from the two.
TIMED_BATCHES = (16, 128)
MEMORY_FILE = Path("/proc/meminfo")
# A larger group must win by this much: it leaves the search fewer results to learn from at a time.
WORTHWHILE_GAIN = 1.04
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


def config_of(network: str, *, precision: str = "fp32") -> TrialConfig:
    model = network.removesuffix(_BATCH_NORM).partition(_FILE)[0]
    params: dict[str, Value] = {"model": model}
    if model in _SMALL_MODELS:
        params["batch_norm"] = network != model
    return TrialConfig.from_params(params, classes=10, precision=precision, data_seed=0, seed=0)


@cache
def _macs(network: str) -> int:
    return macs(build(config_of(network).shape, seed=0))
