"""A worker, and a trial that it holds."""

from dataclasses import dataclass
from typing import Any

import optuna

from cifar_sweep.config import TrialConfig
from cifar_sweep.study.owner import Owner


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
    """A trial that this process holds. `reported` are the steps that Optuna has of it."""

    trial: optuna.Trial
    trial_id: int
    owner: Owner
    config: TrialConfig
    reported: set[int]

    @property
    def number(self) -> int:
        """The trial's number in its study."""
        return self.trial.number

    @property
    def epochs_done(self) -> int:
        """How many epochs were reported before it was claimed."""
        return len(self.trial.user_attrs.get("curve", []))

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """The checkpoints that were reported with them, as `SweepStudy.report` was given them."""
        return list(self.trial.user_attrs.get("checkpoints", []))
