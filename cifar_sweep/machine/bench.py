"""How fast this machine trains, against the loop that the reports wrote: whole machine against whole machine.

All sides take turns in one run, without validation. Ours is what a sweep does: workers that each train a group. Plain
is a DataLoader over PIL images, ToTensor, float32 and ``.item()`` in each step. It trains one trial at a time, on all
cores, and in processes that share the machine: two on a CPU; on a GPU as many as are fastest, and there it is also
measured on images that are on the GPU already.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifar_sweep.config import TrialConfig
from cifar_sweep.machine.plan import Plan, choose
from cifar_sweep.machine.processes import ProcessPool, process_pool
from cifar_sweep.parameters import Value
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.training.device import DTYPES, prepare_process, resolve_device, wait_for
from cifar_sweep.training.images import data
from cifar_sweep.training.limits import available_cores
from cifar_sweep.training.models import build
from cifar_sweep.training.models.summary import macs
from cifar_sweep.training.train import Run

CASES = (("convnet", 16), ("convnet", 128), ("cnn3", 16), ("vgg11", 64))
SECONDS = 1.5
Step = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Row:
    """One network at one batch size; rates in training images per second, medians over the turns."""

    model: str
    batch_size: int
    images_per_second: float
    plain_images_per_second: float
    shared_plain_images_per_second: float  # in `processes` that share the machine
    ratio: float  # ours over plain, the median of the turns' ratios
    ratio_to_shared: float
    spread: tuple[float, float]  # the lowest and the highest ratio
    spread_to_shared: tuple[float, float]
    share_of_peak: float  # our multiply-accumulates over the machine's in matrix products of the same precision
    precision: str
    plan: str
    turns: int
    processes: int = 2
    resident_plain_images_per_second: float | None = None  # one trial at a time on images that are on the GPU


def plain_rate(
    *, config: TrialConfig, source: str, device: torch.device, threads: int, seconds: float, resident: bool = False
) -> float:
    """Images per second of the plain loop. Sets the threads and nothing else, as a plain script would.

    `resident` images are tensors on the device from the start, and come in the same order in each epoch.
    """
    torch.set_num_threads(threads)
    images = data.load(source)
    batch = config.shape.batch_size
    loader: Iterable[Sequence[torch.Tensor]]
    if resident:
        there = (images.train_images.permute(0, 3, 1, 2) / 255, images.train_labels)
        loader = list(zip(*(torch.split(each.to(device), batch) for each in there), strict=True))
    else:
        pictures = PilImages(images.train_images, images.train_labels)
        loader = DataLoader(pictures, batch_size=batch, shuffle=True)
    training = PlainTraining(config, device=device)
    return _rate(training.step, itertools.chain.from_iterable(itertools.repeat(loader)), seconds=seconds)


def our_rate(
    *, config: TrialConfig, members: int, source: str, device: torch.device, threads: int, seconds: float
) -> float:
    """Images per second of the project's loop, summed over the members of a group."""
    prepare_process(device, threads=threads)
    run = Run([config] * members, data.load(source), device=device)
    run.start_epoch(1)
    epochs = (run.batches.train(config.shape.batch_size, seed=0, epoch=epoch) for epoch in itertools.count(1))
    wait = partial(wait_for, device)
    return members * _rate(run.step, itertools.chain.from_iterable(epochs), seconds=seconds, wait=wait)


def _rate(
    step: Step, batches: Iterator[Sequence[torch.Tensor]], *, seconds: float, wait: Callable[[], None] = lambda: None
) -> float:
    """Images per second, after two steps to warm up."""
    for images, labels in itertools.islice(batches, 2):
        step(images, labels)
    wait()
    started = time.perf_counter()
    seen = 0
    for images, labels in batches:
        step(images, labels)
        seen += len(labels)
        if time.perf_counter() - started > seconds:
            break
    wait()
    return seen / (time.perf_counter() - started)


def product_rate(*, precision: str, device: torch.device, threads: int) -> float:
    """Multiply-accumulates per second in products of matrices of 1024 x 1024: the best of several."""
    prepare_process(device, threads=threads)
    side = 1024 if device.type == "cpu" else 8192
    one, other = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))

    def seconds() -> float:
        start = time.perf_counter()
        (one @ other)[0, 0].item()
        return time.perf_counter() - start

    return side**3 / min(seconds() for _ in range(12))


def measure(
    cases: Sequence[tuple[str, int]], *, device: str, source: str, turns: int, say: Callable[[str], None]
) -> Iterator[Row]:
    """A row for each network and batch size. `say` gets a line where something has to be timed first."""
    plans = [choose([many_trials(*case)], device=device, say=say, always=True) for case in cases]
    where = resolve_device(device)
    shared = (2,) if where.type == "cpu" else tuple(2**k for k in range(1, 5) if 2**k <= max(available_cores(), 2))
    with process_pool(max(plan.split.workers for plan in plans)) as ours, process_pool(shared[-1]) as plain:
        for (model, batch), plan in zip(cases, plans, strict=True):
            yield _row(model, batch, plan, ours, plain, device=device, source=source, turns=turns, shared=shared)


def many_trials(model: str, batch: int) -> Sweep:
    """A sweep that lets every worker train as large a group as it likes."""
    rate = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    fixed = {"model": model, "batch_size": batch}
    sweep = {"name": "bench", "trials": 1000, "sampler": "random", "pruner": "none", "fixed": fixed, "space": rate}
    return parse(sweep, where="bench")


def _row(
    model: str,
    batch: int,
    plan: Plan,
    ours: ProcessPool,
    plain: ProcessPool,
    *,
    device: str,
    source: str,
    turns: int,
    shared: Sequence[int],
) -> Row:
    workers, threads = plan.split.workers, plan.split.threads
    places = [resolve_device(device, worker=k) for k in range(max(workers, *shared))]
    on_cpu = places[0].type == "cpu"
    cores = available_cores() if on_cpu else 1
    assert plan.found is not None
    params: dict[str, Value] = {"model": model, "batch_size": batch}
    config, slow = (
        TrialConfig.from_params(params, classes=10, precision=precision, data_seed=0, seed=0)
        for precision in (plan.found.precision, "fp32")
    )
    size = plan.groups.size(config.shape)
    timed = {"source": source, "seconds": SECONDS}

    def total(pool: ProcessPool, count: int, rate: Callable[..., float], **call: Any) -> float:
        return float(sum(pool.together(rate, *(call | {"device": each} for each in places[:count]))))

    def in_processes(count: int) -> float:
        return total(plain, count, plain_rate, config=slow, threads=max(1, cores // count), **timed)

    def turn(processes: int) -> tuple[float, ...]:
        return (
            total(ours, workers, our_rate, config=config, members=size, threads=threads, **timed),
            total(plain, 1, plain_rate, config=slow, threads=cores, **timed),
            in_processes(processes),
            *([] if on_cpu else [total(plain, 1, plain_rate, config=slow, threads=cores, resident=True, **timed)]),
        )

    processes = max(shared, key=in_processes) if len(shared) > 1 else shared[0]
    turn(processes)  # warms all up
    taken = [turn(processes) for _ in range(turns)]
    peak = total(ours, workers, product_rate, precision=config.shape.precision, threads=threads)
    rates = [statistics.median(side) for side in zip(*taken, strict=True)]
    (ratio, spread), (to_shared, spread_to_shared) = (_ratios(taken, side) for side in (1, 2))
    share = round(rates[0] * training_macs(config) / peak, 3)
    shown = f"{workers} worker(s) x {threads} thread(s) x {size} trial(s)"
    return Row(
        model, batch, round(rates[0]), round(rates[1]), round(rates[2]), ratio, to_shared, spread, spread_to_shared,
        share, config.shape.precision, shown, turns, processes, None if on_cpu else round(rates[3]),
    )  # fmt: skip


def _ratios(taken: Sequence[tuple[float, ...]], side: int) -> tuple[float, tuple[float, float]]:
    ratios = [turn[0] / turn[side] for turn in taken]
    return round(statistics.median(ratios), 2), (round(min(ratios), 2), round(max(ratios), 2))


def training_macs(config: TrialConfig) -> int:
    """Multiply-accumulates of a training step for one image: forward, and twice that backward, but for the pixels."""
    network = build(config.shape, seed=0)
    first = next(network.children())
    assert isinstance(first, nn.Conv2d)
    side = 32 + 2 * int(first.padding[0]) - int(first.kernel_size[0]) + 1
    return 3 * macs(network) - first.weight.numel() * side**2


class PilImages(Dataset[tuple[torch.Tensor, int]]):
    """Images as torchvision's CIFAR10 hands them out: a PIL image made from an array, then ToTensor."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        self.pixels = pixels.numpy()
        self.labels = labels.tolist()
        self.transform = transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class PlainTraining:
    """One trial as the reports train it: the network in float32, Adam, and ``.item()`` in each step."""

    def __init__(self, config: TrialConfig, *, device: torch.device) -> None:
        self.device = device
        self.network = build(config.shape, seed=0).to(device).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.knobs.learning_rate)
        self.criterion = nn.CrossEntropyLoss()
        self.loss = 0.0  # the sum of the images' losses so far
        self.right = 0.0  # how many images were named right so far

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Train on one batch."""
        inputs, labels = inputs.to(self.device), labels.to(self.device)
        self.optimizer.zero_grad()
        outputs = self.network(inputs)
        loss = self.criterion(outputs, labels)
        loss.backward()
        self.optimizer.step()
        self.loss += loss.item() * len(labels)
        self.right += (outputs.argmax(dim=1) == labels).sum().item()


def table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    several = " or ".join(sorted({str(row.processes) for row in rows}, key=int))
    on_gpu = [row for row in rows if row.resident_plain_images_per_second is not None]
    plain = (
        "images/s",
        "plain",
        "times",
        f"plain, {several} processes",
        "times",
        *(["plain, images there"] if on_gpu else []),
    )
    view = Table("network", "batch", *plain, "of the peak", "plan", box=None)
    for row in rows:
        view.add_row(
            row.model,
            str(row.batch_size),
            f"{row.images_per_second:,}",
            f"{row.plain_images_per_second:,}",
            "{} ({} to {})".format(row.ratio, *row.spread),
            f"{row.shared_plain_images_per_second:,}",
            "{} ({} to {})".format(row.ratio_to_shared, *row.spread_to_shared),
            *([f"{row.resident_plain_images_per_second:,}"] if row in on_gpu else []),
            f"{row.share_of_peak:.0%}",
            f"{row.plan}, {row.precision}",
        )
    return view
