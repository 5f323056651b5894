"""Which device trains, in which arithmetic, on how many threads."""

import ctypes
import json
import math
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from cifar_sweep.errors import DeviceError, DiskError, one_line
from cifar_sweep.files import alone, default_cache, replace_file
from cifar_sweep.training.limits import available_cores, threads_asked

# The CPU's allocator; what CUDA loads and makes besides tensors; its libraries.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip
KERNELS = "CIFAR_SWEEP_KERNELS"  # torch: none of ours; avx2: as on a processor that has no more
# By what `precision` of a shape says.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The first compute capability whose tensor cores multiply bf16.
BF16_CAPABILITY = (8, 0)
# Below this few pairs of steps are enough: without bf16 instructions it is about 0.1, and seven take five seconds.
HOPELESS_SPEEDUP, LEAST_PAIRS, PAIRS = 0.5, 2, 7
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
            why = f"PyTorch sees no CUDA device here ({_why_no_cuda()})"
            raise DeviceError(f"device {name!r}: {why}; accepted here: auto, cpu.")
        index = worker % found if name == "cuda" else int(name[5:])
        if index < found:
            return torch.device("cuda", index)
        names = ", ".join(f"cuda:{i}" for i in range(found))
        raise DeviceError(f"device {name!r}: PyTorch sees {found} CUDA device(s) here: {names}.")
    raise DeviceError(f"device {name!r} is unknown; accepted: auto, cpu, cuda, cuda:N.")


def _why_no_cuda() -> str:
    """Why there is no CUDA device: a PyTorch without it, a driver that is missing or too old, a hidden GPU."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return one_line(error).partition(": ")[2].partition(". ")[0]
    return "CUDA_VISIBLE_DEVICES shows it none"


def prepare_process(device: torch.device, *, threads: int, share: float = 1.0) -> int:
    """Ready this process for training; returns the number of threads in force. 0 `threads` is one per available core.

    On a GPU: convolutions in true float32 where bf16 is not asked for, and by the same algorithm each time. Pooling and
    reflection padding still add up in any order there, so a GPU's numbers repeat nearly, the CPU's exactly. Of its
    memory the process takes a `share` at most, so that others on it find theirs.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads or threads_asked() or available_cores())
        _keep_freed_memory()
    else:
        torch.cuda.set_device(device)  # what names no device would go to the first GPU, and make a context there
        torch.cuda.set_per_process_memory_fraction(share, device)
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
    """Whether a device's memory is spent; all but PyTorch's allocator for GPUs say so in a RuntimeError's words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in OUT_OF_MEMORY)


def is_sick(device: torch.device) -> bool:
    """Whether this process can compute nothing more on the device: after some of CUDA's errors every call fails."""
    try:
        wait_for(device)
    except RuntimeError:
        return True
    return False


def at_once(device: torch.device) -> bool:
    """Whether members take their steps, and draw their masks, all in one call, as fast as launches go.

    A CPU takes them one after the other, faster: it reads a member from its caches (docs/LOG.md, 2026-11-30).
    """
    return device.type != "cpu"


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


def resolve_precision(device: torch.device) -> tuple[str, str]:
    """``fp32`` or ``bf16``, whichever is faster here, and why in words.

    A GPU is asked for its tensor cores: a network small enough to be timed would time its launches. On a CPU it is
    measured once, and remembered in the cache folder.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        faster, has = ("bf16", "has") if capability >= BF16_CAPABILITY else ("fp32", "has no")
        return faster, f"compute capability {capability[0]}.{capability[1]} {has} bf16"
    ratio = measured_once("bf16", _bf16_speedup)
    return ("bf16" if ratio >= WORTHWHILE_SPEEDUP else "fp32"), f"bf16 is {ratio:.1f} times as fast here"


def measured_once(what: str, measure: Callable[[], float]) -> float:
    """How many times as fast `what` is on one thread of this machine's CPU, as the cache folder remembers."""
    key = f"{what}, cpu {device_name(torch.device('cpu'))}, one thread, torch {torch.__version__}"
    path = default_cache() / "ratios.json"
    known = _noted(path)
    if key not in known:
        with alone(path):  # of processes that start at once one measures
            known = _noted(path)
            if key not in known:
                known[key] = round(_on_one_thread(measure), 2)
                with suppress(DiskError):  # a read-only home: measured again next time
                    replace_file(path, json.dumps(known, indent=2).encode())
    return known[key]


def _noted(path: Path) -> dict[str, float]:
    """The ratios that were measured; none where there is no such file yet, or a damaged one."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        return {str(name): float(ratio) for name, ratio in json.loads(path.read_text()).items()}
    return {}


def _bf16_speedup() -> float:
    """Training steps per second in bf16 over those in float32 on the CPU, for a small network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolutions = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()
        network = nn.Sequential(*convolutions, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(4096, 10))
        images = torch.rand(64, 3, 32, 32)
    network = network.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)

    def seconds(bf16: bool) -> float:
        start = time.thread_time()  # of this thread alone, whoever else is at work
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = network(images).float().square().mean()
        network.zero_grad()
        loss.backward()
        return time.thread_time() - start

    return least_ratio(seconds)


def _on_one_thread(measure: Callable[[], float]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several that wait for each other tell of who works beside them
    try:
        return measure()
    finally:
        torch.set_num_threads(threads)


def least_ratio(seconds: Callable[[bool], float]) -> float:
    """The least seconds without something over those with it: who works beside it makes steps slower, never faster."""
    least = [math.inf, math.inf]
    seconds(False), seconds(True)
    for pair in range(1, PAIRS + 1):
        least = [min(known, seconds(tried)) for known, tried in zip(least, (False, True), strict=True)]
        if pair >= LEAST_PAIRS and least[0] / least[1] < HOPELESS_SPEEDUP:
            break
    return least[0] / least[1]
