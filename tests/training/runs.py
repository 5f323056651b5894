"""Runs in float64, in which members of a group equal their solo runs but for the last digits."""

from collections.abc import Sequence

import torch

from cifar_sweep.config import TrialConfig
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import Run


def trained(configs: Sequence[TrialConfig], data: ImageData, *, epochs: int = 2) -> Run:
    run = Run(configs, data, device=torch.device("cpu"))
    run.network.double()
    run.prepare_optimizer()
    for _ in range(epochs):
        run.epoch()
    return run


def assert_members_equal(one: Run, k: int, other: Run, j: int) -> None:
    mine, theirs = one.state(k), other.state(j)
    assert mine.keys() == theirs.keys()
    for name in mine.keys() - {"history"}:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-7, atol=1e-9, msg=lambda text, n=name: n + text)
