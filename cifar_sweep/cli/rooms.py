"""The modules that commands call: each is loaded when a command first uses it, as `rooms.opening.load(...)`.

So `cifar-sweep --help` loads neither torch nor Optuna.
"""

# ruff: noqa: F401
# mypy: implicit-reexport

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_sweep.convert import reading, writing
    from cifar_sweep.dashboard import server
    from cifar_sweep.database import outage
    from cifar_sweep.exports import exported, onnx, pictures, trained, write
    from cifar_sweep.forecast import costs, expected, hours, pruning
    from cifar_sweep.hand import compare
    from cifar_sweep.machine import bench, gpu_bench, outlook, plan, processes, rehearsal, speeds
    from cifar_sweep.replay import recorded
    from cifar_sweep.report import facts, mistakes, page, plot, text
    from cifar_sweep.study import claiming, copying, files, opening, provenance, storage, study, verdict, winner
    from cifar_sweep.sweep import file, parsing, sweep
    from cifar_sweep.terminal import doctor, model, progress, status
    from cifar_sweep.training import device, lanes, limits
    from cifar_sweep.training.images import data
    from cifar_sweep.work import ray, ray_cluster, retrain, submit, worker

_MODULES = {
    "convert": "reading writing",
    "dashboard": "server",
    "database": "outage",
    "exports": "exported onnx pictures trained write",
    "forecast": "costs expected hours pruning",
    "hand": "compare",
    "machine": "bench gpu_bench outlook plan processes rehearsal speeds",
    "replay": "recorded",
    "report": "facts mistakes page plot text",
    "study": "claiming copying files opening provenance storage study verdict winner",
    "sweep": "file parsing sweep",
    "terminal": "doctor model progress status",
    "training": "device lanes limits",
    "training.images": "data",
    "work": "ray ray_cluster retrain submit worker",
}
_PLACES = {name: f"cifar_sweep.{room}.{name}" for room, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(_PLACES[name])
