"""cifar-sweep: hyperparameter sweeps for CIFAR-sized convolutional networks. From Python, see `cifar_sweep.api`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_sweep.api import Study, Trial, load_study, load_sweep, run_sweep

__all__ = ["Study", "Trial", "load_study", "load_sweep", "run_sweep"]


def __getattr__(name: str) -> Any:
    """What is in `__all__`, loaded when it is asked for: the command line must start without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cifar_sweep import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
