"""A worker, and a trial that it holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from cifar_sweep.config import TrialConfig
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.record import TrialRecord


class TrialLostError(Exception):
    """Another worker has taken this trial up, after the lease of this one ran out."""


@dataclass(frozen=True)
class Worker:
    """Who trains, and on what, groups by which kernels: stored with each trial."""

    owner: Owner
    device: str
    threads: int
    precision: str
    kernels: str = "torch"


@dataclass(frozen=True)
class Claim:
    """A trial that this process holds."""

    trial: optuna.Trial
    trial_id: int  # its key in the database
    owner: Owner  # this process
    config: TrialConfig  # what it trains
    before: TrialRecord  # as it was when it was claimed
    curve: list[Mapping[str, Any]]  # the epochs that the database has of it
    reported: set[int]  # the steps that Optuna has of it
    until: int  # the epoch after which it is frozen, or complete

    @property
    def number(self) -> int:
        """The trial's number in its study."""
        return self.before.number
