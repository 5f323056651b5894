"""What works on this machine, and what does not."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.errors import CifarSweepError, StorageMissingError
from cifar_sweep.study.opening import load_all
from cifar_sweep.study.provenance import versions
from cifar_sweep.study.storage import open_existing, open_storage
from cifar_sweep.training.device import device_name, resolve_device, resolve_precision
from cifar_sweep.training.images import data as images
from cifar_sweep.training.lanes import kernels, kernels_name, obstacle
from cifar_sweep.training.limits import available_cores, memory

LOW_DISK_BYTES = 2 * 1024**3
NVIDIA = Path("/proc/driver/nvidia/version")
Finding = tuple[str, bool, str]  # what was looked at, whether it is well, and what was found


def examine(*, storage: str, data: str, artifacts: str, skip_damaged: bool = False) -> list[Finding]:
    """Look at everything that a run needs. Downloads nothing and makes no database."""
    found = versions()
    device = resolve_device("auto")
    has = gpus(device) if device.type == "cuda" else f"{available_cores()} core(s){_limit()}"
    precision, why = resolve_precision(device)
    return [
        ("Python", sys.version_info >= (3, 11), f"{platform.python_version()}; 3.11 or newer is needed"),
        ("torch", True, ", ".join(f"{name} {found[name]}" for name in ("torch", "torchvision", "optuna"))),
        ("device", True, f"{device.type}: {device_name(device)}, {has}"),
        ("bf16", True, f"{why}; precision auto is {precision}"),
        ("kernels", True, _kernels(device, precision)),
        *_looked_at("data", lambda: _data(data, skip_damaged)),
        *_looked_at("storage", lambda: [_storage(storage)]),
        *_looked_at("files", lambda: [_artifacts(artifacts)]),
    ]


def _looked_at(subject: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except (OSError, CifarSweepError) as error:
        return [(subject, False, str(error))]


def gpus(device: torch.device) -> str:
    """How many there are, this one's memory, and the versions of what makes it work."""
    gibibytes = torch.cuda.get_device_properties(device).total_memory / 1024**3
    found = torch.backends.cudnn
    cudnn = found.version() if found.is_available() else "missing"  # type: ignore[no-untyped-call]
    parts = "driver " + _driver(), f"CUDA {torch.version.cuda}", f"cuDNN {cudnn}"
    return f"{torch.cuda.device_count()} GPU(s), {gibibytes:.1f} GiB; " + ", ".join(parts)


def _driver() -> str:
    """The version of NVIDIA's driver, as the kernel says it."""
    with suppress(OSError):
        found = re.search(r"\d+\.\d+(\.\d+)?", NVIDIA.read_text())
        if found:
            return found[0]
    return "of unknown version"


def _limit() -> str:
    left = memory()
    return "" if left is None else f", {left / 1024**3:.1f} GiB left of the memory that this process is limited to"


def _kernels(device: torch.device, precision: str) -> str:
    if device.type != "cpu":
        return "PyTorch's, on a GPU"
    there = kernels(bf16=precision == "bf16")
    found = f"{kernels_name(device)} for this processor" if there else f"PyTorch's: {obstacle() or 'see the warning'}"
    return f"{found}; compiled ones train groups of small networks faster"


def _data(source: str, skip_damaged: bool) -> list[Finding]:
    if images.find_on_disk(source) is None:
        what = "CIFAR-10" if source == "auto" else source
        note = f"{what} is not on this disk; a run downloads it, --data names a folder, --preview needs none"
        return [("data", True, note)]
    data = images.load(source, skip_damaged=skip_damaged, may_download=False)
    found = f"{data.counted}, fingerprint {data.fingerprint}"
    return [("data", True, each) for each in (found, *data.notes)]


def _storage(url: str) -> Finding:
    try:
        with closing(open_existing(url)) as storage:
            there = load_all(storage)
            only = "" if storage.writable else ", which may only be looked at here: a run has to write"
            found = f"{storage.shown}: {len(there)} {'study' if len(there) == 1 else 'studies'}{only}"
            return "storage", storage.writable, found
    except StorageMissingError as error:
        path = Path(url.removeprefix("sqlite:///"))
        if url.startswith("sqlite:///"):  # whether one can be made there
            with TemporaryDirectory(dir=path.parent) as folder:
                open_storage(f"sqlite:///{folder}/{path.name}").close()
        return "storage", True, f"{str(error).partition(';')[0]}; the first run makes it"


def _artifacts(address: str) -> Finding:
    folder = open_artifacts(address).root
    if folder is None:
        return "files", True, f"{address}: not looked at"
    there = next(there for there in (folder, *folder.parents) if there.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return "disk", False, f"{there}: no file can be written here; --artifacts names another folder"
    free = shutil.disk_usage(there).free
    found = f"{free / 1024**3:.1f} GiB free for weights and checkpoints in {folder}; 2 GiB or more is comfortable"
    return "disk", free >= LOW_DISK_BYTES, found
