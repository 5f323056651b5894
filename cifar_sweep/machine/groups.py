"""How many trials a worker trains at once, by how fast this machine trains a network. Loads no torch of itself.

A network here is a model, and for the small ones batch norm, which makes a step up to 1.6 times as long: ``cnn3`` and
``cnn3+batch_norm``. In ``cnn1`` and the VGGs batch norm is 5 %. One of a user's own has the hash of its file with it,
``my_module:build@0123456789abcdef``: what was timed of another file is not its time. Of images that are not 32x32 the
size comes last: ``cnn3 64px``.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.forecast.costs import CHANGED, CNN, Speed, change_name, magnitude, network_name, per_image
from cifar_sweep.layers import macs_of
from cifar_sweep.parameters import OWN, Value, is_own

Speeds = Mapping[str, Mapping[int, Speed]]
GROUP_SIZES = (1, 2, 4, 8, 16, 32)
# A larger group must win by this much: it leaves the search fewer results to learn from at a time.
WORTHWHILE_GAIN = 1.04
_BATCH_NORM = "+batch_norm"
_FILE = "@"
_SMALL_MODELS = ("lenet", "convnet", "cnn3")
# Multiply-accumulates of an image; the deeper VGGs are not timed.
VGG_MACS = {
    "vgg11": 153_025_416, "vgg13": 228_522_888, "vgg16": 313_457_544, "vgg19": 398_392_200,
    "vgg16-short": 266_271_624, "vgg19-short": 351_206_280,
}  # fmt: skip


@dataclass(frozen=True)
class Groups:
    """How many trials of a shape a worker trains at once.

    `speeds` are those of one worker while all of them work. A network that is not there is trained one at a time;
    without any, all are trained in groups of `largest`.
    """

    largest: int
    speeds: Speeds = field(default_factory=dict)
    free_bytes: int | None = None  # what one worker's groups may take of the device's memory, as far as that is known

    @property
    def fixed(self) -> bool:
        """Whether the size was asked for, and not chosen by speed."""
        return not self.speeds

    def size(self, shape: Shape) -> int:
        """The group size for this shape: of those in `speeds`, the smallest that is about as fast as any."""
        largest = self.largest
        if self.free_bytes is not None:
            from cifar_sweep.machine.memory import member_bytes  # loads torch

            largest = max(1, min(largest, self.free_bytes // member_bytes(shape)))
        known = self.speeds.get(network_of(shape))
        if known is None:
            return largest if self.fixed else 1
        sizes = [*sorted(size for size in known if size < largest), largest]
        times = [per_image(known, shape.batch_size, size) for size in sizes]
        return next(size for size, time in zip(sizes, times, strict=True) if time <= WORTHWHILE_GAIN * min(times))


ONE_AT_A_TIME = Groups(1)


def network_of(shape: Shape) -> str:
    """The name of the network whose time stands for this shape's."""
    shape = shape.seen
    size = "" if shape.image_size == 32 else f" {shape.image_size}px"
    if is_own(shape.model):
        from cifar_sweep.training.models.own import fingerprint  # loads torch

        return f"{network_name(shape)}{_FILE}{fingerprint(shape.model)}{size}"
    if shape.model == "cnn":
        return magnitude(shape) + size
    return shape.model + (_BATCH_NORM if shape.batch_norm and shape.model in _SMALL_MODELS else "") + size


def config_of(network: str, *, precision: str = "fp32") -> TrialConfig:
    """The config of a trial that is timed for this network."""
    network, _, size = network.partition(" ")
    model, _, own = network.removesuffix(_BATCH_NORM).partition(_FILE)[0].partition("?")
    params: dict[str, Value] = {"model": model, "image_size": int(size.removesuffix("px") or 32)}
    params |= {f"{OWN}{name}": value for name, value in json.loads(own or "{}").items()}
    if found := CNN.fullmatch(network):
        kind = found["kind"]
        params |= {"model": "cnn", "batch_norm": _BATCH_NORM in kind, "pooling": "avg" if "~~" in kind else "max"}
        params["filters"] = _filters(params, float(found["size"]))
    if model in _SMALL_MODELS:
        params["batch_norm"] = network != model
    return TrialConfig.from_params(params, classes=10, precision=precision, data_seed=0, seed=0)


def _filters(params: Mapping[str, Value], magnitude: float) -> int:
    """How many filters bring a cnn nearest to this magnitude, which grows with them."""

    def found(filters: int) -> float:
        return _doublings(params, filters)

    larger = bisect_left(_TIMED_FILTERS, magnitude, key=found)
    return min(_TIMED_FILTERS[max(larger - 1, 0) : larger + 1], key=lambda filters: abs(found(filters) - magnitude))


def _doublings(params: Mapping[str, Value], filters: int) -> float:
    """Half the factors of two in the multiply-accumulates of a cnn with so many filters."""
    unset: dict[str, Any] = {"classes": 10, "precision": "fp32", "data_seed": 0, "seed": 0}
    return 2 * math.log2(macs_of(TrialConfig.from_params({**params, "filters": filters}, **unset).shape.values))


# How strong a change is where it is timed, which makes no difference.
_STRENGTHS: dict[str, Value] = {
    "flip": 0.5, "shift": 0.1, "rotation": 15.0, "zoom": 0.1, "color": 0.2, "cutout": 8, "mixup": 0.4, "cutmix": 1.0,
}  # fmt: skip


def changing(name: str) -> Shape:
    """A shape whose images are changed as `change_name` says; ValueError for another name."""
    if not name.startswith(CHANGED):
        raise ValueError(f"{name} is no change of images")
    named, _, size = name.removeprefix(CHANGED).partition(" ")
    params: dict[str, Value] = {"image_size": int(size.removesuffix("px") or 32)}
    for part in named.split("+"):
        # `color` is a set, and a strength, which take as long.
        params |= {part: _STRENGTHS[part]} if part in _STRENGTHS else {"augmentation": part}
    return TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0).shape


def names_of(shape: Shape) -> set[str]:
    """What has to be timed for this shape: its network, and what is done to its images."""
    return {network_of(shape), change_name(shape)} - {""}


_TIMED_FILTERS = range(1, 1025)  # of a cnn that is timed
_LARGEST_TIMED = 52  # half doublings, 67 million: a step of a larger one takes seconds
_TIMED_MAGNITUDES = 4  # every so many of a cnn: other ones take as long as their multiply-accumulates say


def stand_in(network: str) -> tuple[str, float]:
    """The network that is timed for this one, and how many times as long this one takes.

    Deeper VGGs are not timed, nor is each size of a cnn.
    """
    name, space, size = network.partition(" ")
    if found := CNN.fullmatch(name):
        asked = int(found["size"])
        timed = min(_TIMED_MAGNITUDES * round(asked / _TIMED_MAGNITUDES), _LARGEST_TIMED)
        return f"{found['kind']}{timed}{space}{size}", 2 ** ((asked - timed) / 2)
    if name not in VGG_MACS:
        return network, 1.0
    return f"vgg11{space}{size}", VGG_MACS[name] / VGG_MACS["vgg11"]
