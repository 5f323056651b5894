"""What works on this machine, and what does not."""

import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.errors import CifarSweepError
from cifar_sweep.study.opening import load_all
from cifar_sweep.study.provenance import versions
from cifar_sweep.study.storage import open_storage
from cifar_sweep.training.device import available_cores, device_name, resolve_device, resolve_precision
from cifar_sweep.training.images import data as images
from cifar_sweep.training.lanes import kernels, kernels_name, obstacle

LOW_DISK_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: what was looked at, whether it is well, and what was found."""

    subject: str
    well: bool
    found: str


def examine(*, storage: str, data: str, artifacts: str) -> list[Finding]:
    """Look at everything that a run needs. Downloads nothing and makes no database."""
    found = versions()
    device = resolve_device("auto")
    count, unit = (torch.cuda.device_count(), "GPU(s)") if device.type == "cuda" else (available_cores(), "core(s)")
    precision, ratio = resolve_precision(device)
    return [
        Finding("Python", sys.version_info >= (3, 11), f"{platform.python_version()}; 3.11 or newer is needed"),
        Finding("torch", True, ", ".join(f"{name} {found[name]}" for name in ("torch", "torchvision", "optuna"))),
        Finding("device", True, f"{device.type}: {device_name(device)}, {count} {unit}"),
        Finding("bf16", True, f"trains {ratio:.1f} times as fast as float32 here; precision auto is {precision}"),
        Finding("kernels", True, _kernels(device, precision)),
        _data(data),
        _storage(storage),
        _artifacts(artifacts),
    ]


def _kernels(device: torch.device, precision: str) -> str:
    if device.type != "cpu":
        return "PyTorch's, on a GPU"
    there = kernels(bf16=precision == "bf16")
    found = f"{kernels_name(device)} for this processor" if there else f"PyTorch's: {obstacle() or 'see the warning'}"
    return f"{found}; compiled ones train groups of small networks faster"


def _data(source: str) -> Finding:
    if source == "auto":
        found = images.find_on_disk()
        if found is None:
            note = "CIFAR-10 is not on this disk; a run downloads it, --data names a folder, --preview needs none"
            return Finding("data", True, note)
        source = found
    try:
        data = images.load(source)
    except CifarSweepError as error:
        return Finding("data", False, str(error))
    counts = f"{len(data.train_labels):,} + {len(data.test_labels):,} images, {len(data.classes)} classes"
    return Finding("data", True, f"{data.name}: {counts}, fingerprint {data.fingerprint}")


def _storage(url: str) -> Finding:
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return Finding("storage", True, f"{url}: not there yet; the first run makes it")
    try:
        storage = open_storage(url)
        found = f"{storage.shown}: {len(load_all(storage))} studies"
    except CifarSweepError as error:
        return Finding("storage", False, str(error))
    storage.close()
    return Finding("storage", True, found)


def _artifacts(address: str) -> Finding:
    artifacts = open_artifacts(address).root
    if artifacts is None:
        return Finding("files", True, f"{address}: not looked at")
    folder = artifacts.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 1024**3:.1f} GiB free for weights and checkpoints in {artifacts}; 2 GiB or more is comfortable"
    return Finding("disk", free >= LOW_DISK_BYTES, found)
