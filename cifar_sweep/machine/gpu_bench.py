"""What a training step takes on a GPU by the size of its group, and whether the GPU waits for its host meanwhile."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import one_line
from cifar_sweep.machine.bench import product_rate, training_macs
from cifar_sweep.machine.memory import member_bytes
from cifar_sweep.machine.plan import find_out
from cifar_sweep.machine.processes import process_pool
from cifar_sweep.machine.rehearsal import group_seconds
from cifar_sweep.parameters import Value
from cifar_sweep.training.device import DTYPES, prepare_process, wait_for
from cifar_sweep.training.graph import WARM_UP
from cifar_sweep.training.train import Run

MEMBERS = (1, 4, 16, 64, 256)
SECONDS = 0.4  # of each group, at least
LOOKED_AT = 10  # steps of which each kernel is counted
COPIED_BYTES = 1 << 28


@dataclass(frozen=True)
class Rung:
    """A group of so many members; milliseconds are a step's. None is what this device does not say."""

    members: int
    images_per_second: float = 0.0  # of all members together
    step_ms: float = 0.0
    host_ms: float = 0.0  # that the host is busy with it
    gpu_ms: float | None = None  # that the GPU computes
    kernels: int | None = None  # that are launched for it, one by one or as a graph
    megabytes: float | None = None  # of a member, at the most
    of_reckoned: float | None = None  # that over what `member_bytes` says
    share_of_peak: float = 0.0  # multiply-accumulates over those in products of large matrices
    capture_seconds: float = 0.0  # of the step that becomes a graph
    fault: str = ""  # why there is nothing else: out of memory, or no way to convolve


@dataclass(frozen=True)
class Examined:
    """What a GPU can do, and what groups of some networks make of it."""

    ladders: Mapping[str, Sequence[Rung]]  # by the network and its batch size
    flags: str  # what PyTorch is set to, which decides how fast and how repeatable it is
    clock_megahertz: tuple[str, str]  # before and after
    copied_terabytes: float  # read and written a second where a tensor is copied
    products_teraflops: float  # of large matrices, in the precision of the ladders
    checkpoint_seconds: float  # of a member and epoch


def examine(cases: Sequence[tuple[str, int]], *, device: torch.device, source: str) -> Examined:
    """Measure all that in a process of its own, which has the GPU's memory for itself."""
    with process_pool(1) as pool, tempfile.TemporaryDirectory(prefix="cifar-sweep-") as folder:

        def there(function: Callable[..., Any], **call: Any) -> Any:
            return pool.together(function, call | {"device": device})[0]

        precision = there(find_out, threads=0).precision
        before = clock_megahertz()
        params: list[dict[str, Value]] = [{"model": model, "batch_size": batch, "epochs": 2} for model, batch in cases]
        configs = [
            TrialConfig.from_params(each, classes=10, precision=precision, data_seed=0, seed=0) for each in params
        ]
        ladders = {
            f"{model}, batch {batch}": there(ladder, config=config)
            for (model, batch), config in zip(cases, configs, strict=True)
        }
        return Examined(
            ladders,
            there(flags),
            (before, clock_megahertz()),
            round(there(copied_bytes_per_second) / 1e12, 5),
            round(2 * there(product_rate, precision=precision, threads=0) / 1e12, 2),
            round(there(group_seconds, configs=configs[:1], source=source, folder=folder, threads=0).checkpoint, 5),
        )


def ladder(
    *, config: TrialConfig, device: torch.device, members: Sequence[int] = MEMBERS, seconds: float = SECONDS
) -> list[Rung]:
    """The groups of a network, one after the other, on images that are there. Readies the process for the device."""
    prepare_process(device, threads=0)
    peak = product_rate(precision=config.shape.precision, device=device, threads=0)
    rungs = []
    for count in members:
        try:
            rungs.append(_rung(config, count, device, peak=peak, seconds=seconds))
        except RuntimeError as error:
            rungs.append(Rung(count, fault=one_line(error)))
    return rungs


def group_step(config: TrialConfig, members: int, device: torch.device) -> tuple[Run, Callable[[], None]]:
    """A group, and a step of it on random images."""
    run = Run([config] * members, None, device=device)
    run.start_epoch(1)
    batch, side = config.shape.batch_size, config.shape.image_size
    images = torch.rand(batch, 3, side, side).to(device, DTYPES[config.shape.precision])
    labels = torch.randint(config.shape.classes, (batch,)).to(device)
    return run, partial(run.step, images.contiguous(memory_format=torch.channels_last), labels)


def milliseconds(step: Callable[[], None], device: torch.device, *, seconds: float) -> tuple[float, float]:
    """Of a step, and of the host in it; steps follow each other without a wait."""
    wait_for(device)
    calls = 5
    while True:
        started = time.perf_counter()
        for _ in range(calls):
            step()
        host = time.perf_counter() - started
        wait_for(device)
        taken = time.perf_counter() - started
        if taken >= seconds:
            return 1e3 * taken / calls, 1e3 * host / calls
        calls *= 3


def _rung(config: TrialConfig, members: int, device: torch.device, *, peak: float, seconds: float) -> Rung:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    run, step = group_step(config, members, device)
    for _ in range(WARM_UP):
        step()
    wait_for(device)
    started = time.perf_counter()
    step()
    wait_for(device)
    captured = time.perf_counter() - started
    taken, host = milliseconds(step, device, seconds=seconds)
    rate = 1e3 * members * config.shape.batch_size / taken
    gpu_ms, kernels = _kernels(step, device) if on_gpu else (None, None)
    most = torch.cuda.max_memory_allocated(device) / members if on_gpu else None
    return Rung(
        members, round(rate), round(taken, 3), round(host, 3), gpu_ms, kernels, most and round(most / 1e6, 1),
        most and round(most / member_bytes(run.shape), 2), round(rate * training_macs(config) / peak, 3),
        round(captured, 2),
    )  # fmt: skip


def _kernels(step: Callable[[], None], device: torch.device) -> tuple[float, int]:
    """The milliseconds that the GPU computes in a step, and how many kernels do so."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(LOOKED_AT):
            step()
        wait_for(device)
    on_device = [event for event in seen.events() or [] if event.device_type.name == "CUDA"]
    microseconds = sum(event.self_device_time_total for event in on_device)
    return round(microseconds / 1e3 / LOOKED_AT, 3), round(len(on_device) / LOOKED_AT)


def copied_bytes_per_second(*, device: torch.device) -> float:
    """Bytes a second that are read and written where a tensor is copied on the device: the best of several."""
    prepare_process(device, threads=0)
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def seconds() -> float:
        wait_for(device)
        start = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        return time.perf_counter() - start

    return 2 * COPIED_BYTES / min(seconds() for _ in range(10))


def clock_megahertz() -> str:
    """At what rate the GPU's cores work now, as NVIDIA's own command says it."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    return "unknown"


def flags(*, device: torch.device) -> str:
    """What PyTorch is set to for the device."""
    prepare_process(device, threads=0)
    found = torch.backends.cudnn
    return f"tf32 {found.allow_tf32}, deterministic {found.deterministic}, benchmark {found.benchmark}"


def table(rungs: Sequence[Rung]) -> Table:
    """The rungs for a terminal."""
    view = Table(
        "members", "images/s", "step ms", "host ms", "GPU ms", "kernels", "MB a member", "over reckoned",
        "of the peak", "capture s", box=None,
    )  # fmt: skip
    for rung in rungs:
        view.add_row(*_cells(rung))
    return view


def _cells(rung: Rung) -> Iterator[str]:
    yield str(rung.members)
    if rung.fault:
        yield rung.fault
        return
    yield f"{rung.images_per_second:,.0f}"
    for number in (rung.step_ms, rung.host_ms, rung.gpu_ms, rung.kernels, rung.megabytes, rung.of_reckoned):
        yield "-" if number is None else f"{number:g}"
    yield f"{rung.share_of_peak:.0%}"
    yield f"{rung.capture_seconds:g}"
