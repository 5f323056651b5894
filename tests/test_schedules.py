"""Schedules are PyTorch's, stepped once an epoch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as plain
from torch.optim.lr_scheduler import LRScheduler

from cifar_sweep.schedules import learning_rate_at

RATE, EPOCHS = 0.03, 24
Scheduler = Callable[[torch.optim.Optimizer, int], LRScheduler]

CASES: dict[str, tuple[dict[str, Any], Scheduler]] = {
    "none": ({}, lambda o, n: plain.ConstantLR(o, 1.0)),
    "step": ({"step_size": 5, "gamma": 0.3}, lambda o, n: plain.StepLR(o, 5, 0.3)),
    "exponential": ({"gamma": 0.8}, lambda o, n: plain.ExponentialLR(o, 0.8)),
    "multistep": (
        {"milestones": "9,15", "gamma": 0.2},
        lambda o, n: plain.MultiStepLR(o, [9 - (EPOCHS - n), 15 - (EPOCHS - n)], 0.2),
    ),
    "polynomial": ({"polynomial_power": 1.7}, lambda o, n: plain.PolynomialLR(o, n, 1.7)),
    "polynomial to a rate": (
        {"polynomial_power": 1.0, "lowest_rate": 1e-3},
        lambda o, n: plain.LinearLR(o, 1.0, 1e-3 / RATE, n),
    ),
    "cosine": ({}, lambda o, n: plain.CosineAnnealingLR(o, n)),
    "cosine of 7": (
        {"cosine_epochs": 7, "lowest_rate": 1e-3}, lambda o, n: plain.CosineAnnealingLR(o, 7, 1e-3),
    ),
    "warm_restarts": (
        {"restart_epochs": 3, "restart_factor": 2, "lowest_rate": 1e-4},
        lambda o, n: plain.CosineAnnealingWarmRestarts(o, 3, 2, 1e-4),
    ),
    "warm_restarts alike": ({"restart_epochs": 5}, lambda o, n: plain.CosineAnnealingWarmRestarts(o, 5)),
}  # fmt: skip


def settings(schedule: str, **more: Any) -> dict[str, Any]:
    return {"schedule": schedule.split()[0], "learning_rate": RATE, "epochs": EPOCHS, **more}


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


def rates(made: torch.optim.Optimizer, scheduler: LRScheduler, epochs: int = EPOCHS) -> list[float]:
    """The rate of each epoch."""
    found = []
    for _ in range(epochs):
        found.append(made.param_groups[0]["lr"])
        made.step()
        scheduler.step()
    return found


@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step")  # of PyTorch's own SequentialLR
@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("name", CASES)
def test_a_schedule_is_that_of_pytorch(name: str, warmup: int) -> None:
    params, make = CASES[name]
    made = optimizer()
    after = make(made, EPOCHS - warmup)
    if warmup:
        grows = plain.LinearLR(made, 1 / (warmup + 1), 1.0, warmup)
        after = plain.SequentialLR(made, [grows, after], [warmup])
    ours = settings(name, warmup_epochs=warmup, **params)
    assert [learning_rate_at(epoch, ours) for epoch in range(1, EPOCHS + 1)] == pytest.approx(rates(made, after))


@pytest.mark.parametrize(("epochs", "peak"), [(24, 0.3), (10, 0.5), (5, 0.9), (3, 0.3), (1, 0.3)])
def test_one_cycle(epochs: int, peak: float) -> None:
    made = optimizer()
    theirs = plain.OneCycleLR(
        made, RATE, total_steps=epochs, pct_start=peak, div_factor=10, final_div_factor=100, cycle_momentum=False
    )
    params = {"onecycle_peak": peak, "onecycle_start": 10.0, "onecycle_end": 100.0, "warmup_epochs": 2}
    ours = settings("onecycle", **params) | {"epochs": epochs}
    found = [learning_rate_at(epoch, ours) for epoch in range(1, epochs + 1)]
    assert found[:-1] == pytest.approx(rates(made, theirs, epochs - 1))
    assert found[-1] == pytest.approx(made.param_groups[0]["lr"])


def test_one_cycle_may_begin_at_its_peak() -> None:
    ours = settings("onecycle", onecycle_peak=0.5) | {"epochs": 2}
    assert [learning_rate_at(epoch, ours) for epoch in (1, 2)] == pytest.approx([RATE, RATE / 25e4])


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_plateau_is_that_of_pytorch(warmup: int) -> None:
    generator = torch.Generator().manual_seed(0)
    losses = (1 / torch.arange(1, 40) ** 0.2 + 0.1 * torch.rand(39, generator=generator)).tolist()
    made = optimizer()
    theirs = plain.ReduceLROnPlateau(made, factor=0.5, patience=2, min_lr=2e-3)
    ours = settings("plateau", plateau_factor=0.5, plateau_patience=2, lowest_rate=2e-3, warmup_epochs=warmup)
    seen = set()
    for epoch in range(warmup + 1, 39):
        rate = made.param_groups[0]["lr"]
        assert learning_rate_at(epoch, ours, losses[: epoch - 1]) == pytest.approx(rate)
        seen.add(rate)
        theirs.step(losses[epoch - 1])
    assert len(seen) > 3


def test_milestones_that_are_not_given_are_half_and_three_quarters() -> None:
    ours = settings("multistep", gamma=0.1)
    found = [learning_rate_at(epoch, ours) for epoch in (12, 13, 18, 19)]
    assert found == pytest.approx([RATE, RATE / 10, RATE / 10, RATE / 100])


@pytest.mark.parametrize(
    ("params", "mode"),
    [
        ({"cycle_up": 4, "cycle_down": 3, "lowest_rate": 1e-3, "cycle_mode": "triangular2"}, "triangular2"),
        ({"cycle_up": 5}, "triangular"),
    ],
)
def test_cycles(params: dict[str, Any], mode: str) -> None:
    made, lowest = optimizer(), params.get("lowest_rate", 0.0)
    up, down = params["cycle_up"], params.get("cycle_down")
    theirs = plain.CyclicLR(made, lowest, RATE, up, down, mode=mode, cycle_momentum=False)  # type: ignore[arg-type]
    found = [learning_rate_at(epoch, settings("cyclic", **params)) for epoch in range(1, EPOCHS + 1)]
    assert found == pytest.approx(rates(made, theirs), abs=1e-12)
    grown = [learning_rate_at(epoch, settings("cyclic", warmup_epochs=2, **params)) for epoch in range(3, EPOCHS + 1)]
    assert grown == found[:-2]
