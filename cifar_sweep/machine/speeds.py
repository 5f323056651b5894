"""Speeds that were timed on this machine before, and typical ones where nothing was. Loads no torch of itself."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cifar_sweep.config import Shape
from cifar_sweep.errors import DiskError
from cifar_sweep.files import default_cache, replace_file
from cifar_sweep.forecast.costs import (
    CHANGED,
    TRAIN_IMAGES,
    Costs,
    NetworkCosts,
    Pace,
    Speed,
    change_name,
    network_name,
)
from cifar_sweep.forecast.expected import expected_shapes, possible_shapes
from cifar_sweep.forecast.schedule import beginning, forecast
from cifar_sweep.machine.groups import GROUP_SIZES, Groups, Speeds, names_of, network_of, stand_in
from cifar_sweep.parameters import is_own
from cifar_sweep.sweep.sweep import Sweep

# Batches of which a step is timed; what it takes at any other follows from the two.
TIMED_BATCHES = (16, 128)
# The mean over so many layouts tells one plan from another; of long sweeps over as many as have so many trials.
_LAYOUTS = 20
_LAID_OUT_TRIALS = 1000


@dataclass(frozen=True)
class Split:
    """A machine shared out: `workers` processes of `threads` threads each (on a GPU, where threads do not count, 1)."""

    workers: int
    threads: int
    devices: int = 1  # that the workers share out among them: a machine's GPUs, or its cores as one


def speed_between(small: float, large: float) -> Speed:
    """From the seconds per image at `TIMED_BATCHES`; exact at the larger where one of the parts is below 0."""
    fewer, more = TIMED_BATCHES
    step = (small - large) / (1 / fewer - 1 / more)
    step = min(max(step, 0.0), large * more)
    return Speed(large - step / more, step)


# Microseconds of a training image by the group's size, at the two of `TIMED_BATCHES` (of vgg11 at 16 and 64): one core
# of an AMD EPYC with AVX-512, in float32 (docs/LOG.md, 2026-11-30).
_MICROSECONDS = {
    "lenet": {1: (266, 157), 8: (97, 60)},
    "lenet+batch_norm": {1: (373, 183), 8: (97, 77)},
    "convnet": {1: (385, 194), 8: (118, 83)},
    "convnet+batch_norm": {1: (415, 269), 8: (123, 100)},
    "cnn3": {1: (958, 946), 8: (1115, 1511)},
    "cnn3+batch_norm": {1: (1580, 1344), 8: (2015, 1906)},
    "cnn1": {1: (23779, 27797)},
    "vgg11": {1: (18474, 12521)},
}
_CNN_MICROSECONDS = 1e-4  # of a multiply-accumulate, about what cnn3 and vgg11 take
# Microseconds of an image, in the same way (docs/LOG.md, 2026-11-30).
_CHANGE_MICROSECONDS = {
    "flip": 16, "crop": 23, "affine": 27, "shift": 27, "rotation": 27, "zoom": 27, "color": 23, "autoaugment": 43,
    "randaugment": 46, "trivialaugment": 56, "cutout": 8, "mixup": 3, "cutmix": 3,
}  # fmt: skip
# By how much an ordinary processor, with AVX2 alone, is slower (docs/LOG.md, 2026-11-30).
_ORDINARY = 1.6
TYPICAL: Speeds = {
    network: {size: speed_between(*(_ORDINARY * each / 1e6 for each in pair)) for size, pair in sizes.items()}
    for network, sizes in _MICROSECONDS.items()
}
_STORED = TypeAdapter(dict[str, dict[str, dict[int, Speed]]])


def speeds_file() -> Path:
    """Where they are kept."""
    return default_cache() / "speeds.json"


def read_speeds() -> dict[str, dict[str, dict[int, Speed]]]:
    """The speeds timed before by key, network and group size; none where there is no file of them or it is not ours."""
    with suppress(OSError, ValidationError):
        found = _STORED.validate_json(speeds_file().read_bytes())
        if all(1 in sizes for entry in found.values() for sizes in entry.values()):
            return found
    return {}


def write_speeds(everything: Mapping[str, Speeds]) -> None:
    """Store speeds as `read_speeds` reads them."""
    with suppress(DiskError):  # a read-only home: measured again next time
        replace_file(speeds_file(), json.dumps(everything, indent=2).encode())


def speeds_of(networks: Iterable[str], timed: Speeds) -> Speeds:
    """The speeds of these networks; one that was not timed takes those of its stand-in."""
    found = {}
    for network in networks:
        name, factor = stand_in(network)
        found[network] = {size: Speed(*(factor * part for part in speed)) for size, speed in timed[name].items()}
    return found


def costs_of(
    expected: Sequence[tuple[float, Shape]], split: Split, groups: Groups, speeds: Speeds, train_images: int
) -> Costs:
    """What the parts of sweeps of these shapes cost under this split, in these groups, at these speeds."""
    shapes: dict[str, dict[int, Shape]] = defaultdict(dict)
    for _, shape in expected:
        shapes[network_name(shape)].setdefault(shape.batch_size, shape)
    networks = {}
    for name, by_batch in shapes.items():
        timed = speeds[network_of(next(iter(by_batch.values())))]
        networks[name] = NetworkCosts(
            image={size: speed.image for size, speed in timed.items()},
            step={size: speed.step for size, speed in timed.items()},
            sizes={batch: groups.size(shape) for batch, shape in by_batch.items()},
        )
    changed = {change_name(shape) for _, shape in expected} - {""}
    changes = {name: speeds[name][1].per_image(TIMED_BATCHES[1]) for name in changed if name in speeds}
    return Costs(
        networks=networks, changes=changes, workers=split.workers, devices=split.devices, fixed=groups.fixed,
        train_images=train_images,
    )  # fmt: skip


def unpruned_seconds(sweep: Sweep, costs: Costs) -> float:
    """The expected wall seconds of a sweep of which nothing is pruned."""
    start = beginning(sweep, workers=costs.workers, delay=costs.start).unpruned()
    layouts = max(min(_LAYOUTS, _LAID_OUT_TRIALS // sweep.size), 2)
    return forecast(sweep, start, Pace(costs, doubt=0.0), possible_shapes(sweep), layouts=layouts).mean


def typical(networks: Iterable[str]) -> Speeds | None:
    """The typical speeds of these networks and changes; None where one is a user's own, of which nothing is known."""
    changes = {name for name in networks if name.startswith(CHANGED)}
    known = {name: {1: Speed(_ORDINARY * _change_microseconds(name) / 1e6, 0.0)} for name in changes}
    networks = set(networks) - changes
    by_size = {network for network in networks if network.startswith("cnn") and "~" in network}
    known |= {network: _typical_cnn(network) for network in by_size}
    networks -= by_size
    if not all(stand_in(network)[0] in TYPICAL for network in networks):
        return None
    return {**speeds_of(networks, TYPICAL), **known}


def _typical_cnn(network: str) -> dict[int, Speed]:
    """By its multiply-accumulates, as the others have them; of many in a group a step is nearly nothing."""
    each = _CNN_MICROSECONDS * 2 ** (int(network.partition(" ")[0].rpartition("~")[2]) / 2)
    sizes = {1: (each + 150, each + 60), 8: (each + 30, each + 25)}
    return {size: speed_between(*(_ORDINARY * us / 1e6 for us in pair)) for size, pair in sizes.items()}


def _change_microseconds(name: str) -> float:
    named = name.removeprefix(CHANGED).partition(" ")[0].split("+")
    return math.fsum(_CHANGE_MICROSECONDS[part] for part in named)


def rough_costs(sweep: Sweep, *, train_images: int = TRAIN_IMAGES) -> tuple[Costs, float] | None:
    """About what a sweep costs, without timing anything, and the wall seconds if nothing is pruned.

    By the fastest split that was timed on this machine before, or by typical speeds on two cores. None where the sweep
    trains a network of a user's own, or of images of another size than 32x32, and it was not timed.
    """
    expected = expected_shapes(sweep, precision="fp32")
    if any(is_own(shape.model) for _, shape in expected):
        return None
    networks = set[str]().union(*(names_of(shape) for _, shape in expected))
    found: dict[Split, Speeds] = {}
    for key, entry in read_speeds().items():
        split = re.search(r", (\d+) x (\d+) threads, ", key)
        if split and all(stand_in(network)[0] in entry for network in networks):
            found[Split(int(split[1]), int(split[2]))] = speeds_of(networks, entry)
    usual = typical(networks)
    if not found and usual is not None:
        found = {Split(2, 1): usual}
    costs = [
        costs_of(expected, split, Groups(GROUP_SIZES[-1], speeds), speeds, train_images)
        for split, speeds in found.items()
    ]
    return min(((each, unpruned_seconds(sweep, each)) for each in costs), key=lambda pair: pair[1], default=None)
