"""Learning rates by epoch: each schedule is PyTorch's of that name, stepped once an epoch. Standard library only."""

import math
from collections.abc import Callable, Mapping, Sequence

from cifar_sweep.parameters import PARAMETERS, Value

WORTHWHILE = 1e-4  # of a loss: by how much it must fall, or it is on a plateau
LEAST_CHANGE = 1e-8  # of a rate on a plateau


# The parameters that say how the learning rate goes.
PARTS = (
    "schedule", "step_size", "gamma", "milestones", "cosine_epochs", "restart_epochs", "restart_factor",
    "lowest_rate", "onecycle_peak", "onecycle_start", "onecycle_end", "polynomial_power", "plateau_factor",
    "plateau_patience", "warmup_epochs", "cycle_up", "cycle_down", "cycle_mode",
)  # fmt: skip
_USUAL = {name: PARAMETERS[name].default for name in (*PARTS, "learning_rate", "epochs")}


def learning_rate_at(epoch: int, settings: Mapping[str, Value], losses: Sequence[float] = ()) -> float:
    """The learning rate of `epoch` (the first is 1) of a trial; a setting that is missing has its default.

    In the warm-up it grows linearly; then the schedule begins, as long as the epochs that are left. `losses` are the
    validation losses of the epochs before, which `plateau` goes by.
    """
    values = _USUAL | dict(settings)
    schedule = str(values["schedule"])
    warmup = int(values["warmup_epochs"]) if schedule != "onecycle" else 0  # which has its own
    if epoch <= warmup:
        return float(values["learning_rate"]) * epoch / (warmup + 1)
    if schedule == "plateau":
        return _plateau(values, losses[warmup : epoch - 1])
    length = int(values["epochs"]) - warmup
    return _SCHEDULES[schedule](values, epoch - 1 - warmup, max(length, 1))


def _plateau(values: Mapping[str, Value], losses: Sequence[float]) -> float:
    rate, least = float(values["learning_rate"]), float(values["lowest_rate"])
    best, since = math.inf, 0
    for loss in losses:
        best, since = (loss, 0) if loss < best * (1 - WORTHWHILE) else (best, since + 1)
        if since > int(values["plateau_patience"]):
            lower = max(rate * float(values["plateau_factor"]), least)
            rate, since = (lower if rate - lower > LEAST_CHANGE else rate), 0
    return rate


# Each of a trial's settings, the epochs since its beginning, and its whole length.
_Schedule = Callable[[Mapping[str, Value], int, int], float]


def _times(factor: _Schedule) -> _Schedule:
    """The learning rate times a factor."""
    return lambda values, done, length: float(values["learning_rate"]) * factor(values, done, length)


def _between(high: float, low: float, share: float) -> float:
    """From `high` to `low` along half a cosine."""
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


def _cosine(values: Mapping[str, Value], done: int, length: int) -> float:
    share = done / (int(values["cosine_epochs"]) or length)
    return _between(float(values["learning_rate"]), float(values["lowest_rate"]), share)


def _warm_restarts(values: Mapping[str, Value], done: int, _length: int) -> float:
    cycle = int(values["restart_epochs"])
    while done >= cycle:
        done, cycle = done - cycle, cycle * int(values["restart_factor"])
    return _between(float(values["learning_rate"]), float(values["lowest_rate"]), done / cycle)


def _onecycle(values: Mapping[str, Value], done: int, length: int) -> float:
    rate = float(values["learning_rate"])
    first = rate / float(values["onecycle_start"])
    top = float(values["onecycle_peak"]) * length - 1
    if done <= top:
        return _between(first, rate, done / top if top else 1.0)
    return _between(rate, first / float(values["onecycle_end"]), (done - top) / (length - 1 - top))


def _multistep(values: Mapping[str, Value], done: int, _length: int) -> float:
    """By epochs of the trial, the warm-up among them."""
    text, epochs = str(values["milestones"]), int(values["epochs"])
    milestones = [epochs / 2, epochs * 3 / 4] if text == "0" else [int(part) for part in text.split(",")]
    done += int(values["warmup_epochs"])
    return float(values["gamma"]) ** sum(done >= milestone for milestone in milestones)


def _polynomial(values: Mapping[str, Value], done: int, length: int) -> float:
    """PyTorch's ends at 0."""
    rate, least = float(values["learning_rate"]), float(values["lowest_rate"])
    return least + (rate - least) * float(max(1 - done / length, 0.0) ** float(values["polynomial_power"]))


def _cyclic(values: Mapping[str, Value], done: int, _length: int) -> float:
    rate, least = float(values["learning_rate"]), float(values["lowest_rate"])
    up, down = int(values["cycle_up"]), int(values["cycle_down"]) or int(values["cycle_up"])
    cycle, place = divmod(done, up + down)
    share = place / up if place <= up else 1 - (place - up) / down
    return least + (rate - least) * share * (0.5**cycle if values["cycle_mode"] == "triangular2" else 1)


_SCHEDULES: dict[str, _Schedule] = {
    "none": _times(lambda _values, _done, _length: 1.0),
    "step": _times(lambda values, done, _length: float(values["gamma"]) ** (done // int(values["step_size"]))),
    "exponential": _times(lambda values, done, _length: float(values["gamma"]) ** done),
    "multistep": _times(_multistep),
    "polynomial": _polynomial,
    "cyclic": _cyclic,
    "cosine": _cosine,
    "warm_restarts": _warm_restarts,
    "onecycle": _onecycle,
}
