"""Which device trains, in which arithmetic, on how many threads."""

import ctypes
import json
import platform
import statistics
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from cifar_sweep.errors import DeviceError, DiskError
from cifar_sweep.files import default_cache, replace_file
from cifar_sweep.training.limits import available_cores, threads_asked

# Below this one pair of steps is enough: without bf16 instructions it is about 0.1, and seven pairs take five seconds.
HOPELESS_SPEEDUP = 0.5
# bf16 must win by this much: below it, the wider mantissa of float32 is worth more than the time.
WORTHWHILE_SPEEDUP = 1.15


def resolve_device(name: str, *, worker: int = 0) -> torch.device:
    """The device `name`: auto (CUDA if there is one), cpu, cuda (worker k takes GPU k), cuda:N; else DeviceError."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if found else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda" or (name.startswith("cuda:") and name[5:].isdecimal()):
        if not found:
            raise DeviceError(f"device {name!r}: PyTorch sees no CUDA device here; accepted here: auto, cpu.")
        index = worker % found if name == "cuda" else int(name[5:])
        if index < found:
            return torch.device("cuda", index)
        names = ", ".join(f"cuda:{i}" for i in range(found))
        raise DeviceError(f"device {name!r}: PyTorch sees {found} CUDA device(s) here: {names}.")
    raise DeviceError(f"device {name!r} is unknown; accepted: auto, cpu, cuda, cuda:N.")


def prepare_process(device: torch.device, *, threads: int) -> int:
    """Ready this process for training; returns the number of threads in force. 0 `threads` is one per available core.

    On a GPU: convolutions in true float32 where bf16 is not asked for, and by the same algorithm each time. Pooling and
    reflection padding still add up in any order there, so a GPU's numbers repeat nearly, the CPU's exactly.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads or threads_asked() or available_cores())
        _keep_freed_memory()
    else:
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
    return torch.get_num_threads()


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next tensor of that size, instead of giving it back to the kernel.

    By default each activation of 128 KB to 32 MB is mapped, zeroed and unmapped again in every step: a sixth of the
    time at batch 128 (docs/LOG.md, 2026-11-22).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(-3, 32 * 1024 * 1024)  # M_MMAP_THRESHOLD of malloc.h: the most that glibc takes
    library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device's memory is spent; the CPU's allocator says so in a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The device's own name, such as a GPU's or a processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def resolve_precision(device: torch.device, *, cache: Path | None = None) -> tuple[str, float]:
    """``fp32`` or ``bf16``, whichever is faster here, and how many times faster bf16 is: measured once, remembered."""
    key = f"{device.type} {device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    path = (cache or default_cache()) / "precision.json"
    known: dict[str, float] = {}
    with suppress(OSError, ValueError, AttributeError, TypeError):  # none yet, or damaged: then it is measured again
        known = {str(name): float(ratio) for name, ratio in json.loads(path.read_text()).items()}
    if key not in known:
        known[key] = round(_bf16_speedup(device), 2)
        with suppress(DiskError):  # a read-only home: measured again next time
            replace_file(path, json.dumps(known, indent=2).encode())
    return ("bf16" if known[key] >= WORTHWHILE_SPEEDUP else "fp32"), known[key]


def _bf16_speedup(device: torch.device) -> float:
    """Training steps per second in bf16 over those in float32, for a small network; median of interleaved pairs."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolutions = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()
        network = nn.Sequential(*convolutions, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(4096, 10))
        images = torch.rand(64, 3, 32, 32)
    network = network.to(device).to(memory_format=torch.channels_last)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    steps = 4 if device.type == "cuda" else 1  # on the CPU one takes a tenth of a second

    def seconds(bf16: bool) -> float:
        wait_for(device)
        start = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = network(images).float().square().mean()
            network.zero_grad()
            loss.backward()
        wait_for(device)
        return time.perf_counter() - start

    seconds(False), seconds(True)
    first = seconds(False) / seconds(True)
    if first < HOPELESS_SPEEDUP:
        return first
    return statistics.median([first, *(seconds(False) / seconds(True) for _ in range(6))])
