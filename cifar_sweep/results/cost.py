"""What a sweep costs on this machine, before it is run.

A network here is a model, and for the small ones batch norm, which makes a step up to 1.6 times as long: ``cnn3`` and
``cnn3+batch_norm``. In ``cnn1`` and the VGGs batch norm is 5 %.
"""

import json
import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from cifar_sweep.config import PARAMETERS, VGG_MODELS, Shape, TrialConfig, Value
from cifar_sweep.errors import DiskError
from cifar_sweep.files import replace_file
from cifar_sweep.search.sweepfile import Choices, Range, Sweep
from cifar_sweep.training.data import default_cache
from cifar_sweep.training.device import (
    available_cores,
    default_workers,
    device_name,
    prepare_process,
    resolve_device,
    resolve_precision,
)
from cifar_sweep.training.group import Group
from cifar_sweep.training.models import build
from cifar_sweep.training.models.summary import macs

TRAIN_IMAGES = 40_000
VALIDATION_IMAGES = 10_000
VALIDATION_BATCH = 200
# Of a training step's time: mostly 0.25 to 0.5 over all networks, noisily measured on 2 cores.
FORWARD_SHARE = 0.35
DRAWS = 200

_SMALL, _LARGE = 16, 64
_TIMED_SECONDS = 0.15
_BATCH_NORM = "+batch_norm"
_SMALL_MODELS = ("lenet", "convnet", "cnn3")
# All that a trial's time is estimated from.
_DECISIVE = ("model", "batch_norm", "batch_size", "epochs", "train_images")


@dataclass(frozen=True)
class Speed:
    """Training time of one network: `image` seconds for each image, and `step` seconds for each batch."""

    image: float
    step: float

    def per_image(self, batch: int) -> float:
        """Seconds per training image at this batch size."""
        return self.image + self.step / batch

    @classmethod
    def between(cls, small: float, large: float) -> "Speed":
        """From the seconds per image at batches of 16 and 64; exact at 64 where one of the two parts is below 0."""
        step = (small - large) / (1 / _SMALL - 1 / _LARGE)
        step = min(max(step, 0.0), large * _LARGE)
        return cls(large - step / _LARGE, step)

    def times(self, factor: float) -> "Speed":
        """A network that takes `factor` times as long."""
        return Speed(self.image * factor, self.step * factor)


@dataclass(frozen=True)
class Speeds:
    """Training times by network, as `network_of` names them."""

    networks: Mapping[str, Speed]

    def per_image(self, network: str, batch: int) -> float:
        """Seconds per training image.

        Raises:
            KeyError: the network is not among these.
        """
        return self.networks[network].per_image(batch)


def network_of(shape: Shape) -> str:
    """The name of the network whose time stands for this shape's."""
    return shape.model + (_BATCH_NORM if shape.batch_norm and shape.model in _SMALL_MODELS else "")


def estimates(sweeps: Mapping[str, Sweep], *, say: Callable[[str], None]) -> dict[str, float]:
    """Wall seconds that each sweep takes on this machine with its default workers, if no trial is pruned.

    Sets this process's threads as a worker's are. `say` gets one sentence where steps have to be timed first, which
    happens once on a machine; only the networks that these sweeps train are timed.
    """
    if not sweeps:
        return {}
    device = resolve_device("auto")
    workers = default_workers("auto")
    threads = prepare_process(device, threads=max(1, available_cores() // workers))
    precision, _ = resolve_precision(device)
    expected = {name: _expected(sweep) for name, sweep in sweeps.items()}
    networks = {network_of(shape) for trials in expected.values() for _, shape in trials}
    speeds = measure_speeds(
        networks, device=device, precision=precision, threads=threads, cache=default_cache(), say=say
    )
    return {name: _seconds(expected[name], speeds) / min(workers, sweep.size) for name, sweep in sweeps.items()}


def seconds_of(sweep: Sweep, speeds: Speeds) -> float:
    """Expected training seconds of all its trials on one worker, if none is pruned.

    On CIFAR-10, in the precision of `speeds` throughout: the sum over given points; otherwise each point tried first
    as itself, and the other trials at the mean over random draws from the space.
    """
    return _seconds(_expected(sweep), speeds)


def _seconds(trials: Sequence[tuple[float, Shape]], speeds: Speeds) -> float:
    return math.fsum(count * _trial_seconds(shape, speeds) for count, shape in trials)


def _trial_seconds(shape: Shape, speeds: Speeds) -> float:
    network = network_of(shape)
    training = (shape.train_images or TRAIN_IMAGES) * speeds.per_image(network, shape.batch_size)
    validation = VALIDATION_IMAGES * FORWARD_SHARE * speeds.per_image(network, VALIDATION_BATCH)
    return shape.epochs * (training + validation)


def _expected(sweep: Sweep) -> list[tuple[float, Shape]]:
    """How many trials of each shape to expect; the counts add up to the sweep's number of trials."""
    if sweep.given:
        return [(1.0, _shape(sweep.fixed | point.params())) for point in sweep.enqueue]
    firsts: list[dict[str, Value]] = []
    for point in sweep.enqueue:
        chosen = {name: value for name, value in point.params().items() if name in sweep.space}
        if chosen and chosen not in firsts:  # the study queues no point twice
            firsts.append(chosen)
    firsts = firsts[: sweep.trials]
    generator = random.Random(0)  # noqa: S311 - no secret
    space = {name: domain for name, domain in sweep.space.items() if name in _DECISIVE}
    draws = [sweep.fixed | draw(space, generator) for _ in range(DRAWS if space else 1)]
    expected: list[tuple[float, Shape]] = []
    for first in firsts:
        few = draws if space.keys() - first else draws[:1]  # nothing that decides is open: all draws are alike
        expected += [(1 / len(few), _shape(values | first)) for values in few]
    left = sweep.trials - len(firsts)
    return expected + ([(left / len(draws), _shape(values)) for values in draws] if left else [])


def _shape(params: Mapping[str, Value]) -> Shape:
    return TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0).shape


def draw(space: Mapping[str, Range | Choices], generator: random.Random) -> dict[str, Value]:
    """A random point of `space`, as the random sampler would take it."""
    return {name: _draw(domain, PARAMETERS[name].kind, generator) for name, domain in space.items()}


def _draw(domain: Range | Choices, kind: type, generator: random.Random) -> Value:
    if isinstance(domain, Choices):
        return generator.choice(domain.choices)
    low, high = domain.low, domain.high
    if domain.base2:
        return int(2 ** generator.randint(int(math.log2(low)), int(math.log2(high))))
    if kind is not int:
        if domain.log:
            return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)
        return generator.uniform(low, high)
    if domain.log:  # as Optuna does it: each whole number by the logarithmic width of its surroundings
        value = math.exp(generator.uniform(math.log(low - 0.5), math.log(high + 0.5)))
        return min(max(round(value), int(low)), int(high))
    step = domain.step or 1
    return int(low) + step * generator.randint(0, int(high - low) // step)


def measure_speeds(
    networks: Collection[str],
    *,
    device: torch.device,
    precision: str,
    threads: int,
    cache: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Speeds:
    """The training times of these networks, timed where the cache folder does not have them.

    Deeper VGGs are taken from vgg11 by their multiply-accumulates. `threads` is the number in force in this process;
    times are kept by it, the device, the precision and the version of torch.
    """
    path = cache / "speeds.json"
    everything = _read(path)
    key = f"{device.type} {device_name(device)}, {threads} threads, {precision}, torch {torch.__version__}"
    known = everything.setdefault(key, {})
    missing = sorted(set(networks) - set(known))
    to_time = sorted({_stand_in(network) for network in missing} - set(known))
    if to_time:
        say("timing a training step of each network, once on this machine")
    for network in to_time:
        known[network] = _measure(network, device=device, precision=precision)
    for network in missing:
        if network not in known:
            stand_in = _stand_in(network)
            known[network] = known[stand_in].times(_macs(network) / _macs(stand_in))
    if missing:
        plain = {key: {name: astuple(speed) for name, speed in entry.items()} for key, entry in everything.items()}
        with suppress(DiskError):  # a read-only home: measured again next time
            replace_file(path, json.dumps(plain, indent=2).encode())
    return Speeds({network: known[network] for network in networks})


def _stand_in(network: str) -> str:
    """The network that is timed for this one."""
    return "vgg11" if network in VGG_MODELS else network


def _read(path: Path) -> dict[str, dict[str, Speed]]:
    """The stored times by machine and network; none where there is no such file or it is not ours."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        found = {
            str(key): {str(name): Speed(float(image), float(step)) for name, (image, step) in entry.items()}
            for key, entry in json.loads(path.read_text()).items()
        }
        parts = [part for entry in found.values() for speed in entry.values() for part in astuple(speed)]
        if all(math.isfinite(part) and part >= 0 for part in parts):
            return found
    return {}


def _config(network: str, *, precision: str = "fp32") -> TrialConfig:
    model = network.removesuffix(_BATCH_NORM)
    params: dict[str, Value] = {"model": model}
    if model in _SMALL_MODELS:
        params["batch_norm"] = network != model
    return TrialConfig.from_params(params, classes=10, precision=precision, data_seed=0, seed=0)


def _macs(network: str) -> int:
    return macs(build(_config(network).shape, seed=0))


def _measure(network: str, *, device: torch.device, precision: str) -> Speed:
    group = Group([_config(network, precision=precision)], device=device)
    group.start_epoch(1)
    small, large = (_step_seconds(group, batch=batch) / batch for batch in (_SMALL, _LARGE))
    return Speed.between(small, large)


def _step_seconds(group: Group, *, batch: int) -> float:
    """The least time of a training step on random images, after one to warm up: the others were disturbed more."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if group.shape.precision == "bf16" else torch.float32
    images = torch.rand(batch, 3, 32, 32, generator=generator).to(group.device, dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=generator).to(group.device)
    group.step(images, labels)
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < _TIMED_SECONDS:
        _wait_for(group.device)
        start = time.perf_counter()
        group.step(images, labels)
        _wait_for(group.device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
