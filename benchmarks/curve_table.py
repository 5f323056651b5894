"""A table of real learning curves, and what a search of it is told and measured by.

The same rules hold for every strategy, ours and the peers':

- A strategy proposes a point of the table's space. It trains the nearest setting that this search has not trained yet
  (`Table.nearest`), so nobody is given a setting twice.
- A setting with several seeds gives one of them, by lot. A diverged curve goes on at the accuracy of chance.
- The strategy's choice at any time is the trial with the best validation accuracy among those trained to their last
  epoch: only they have weights that somebody could take away.
- What counts is the choice's true mean: the mean over its seeds of the best validation accuracy of the whole schedule.
  The best setting is the one with the highest true mean; `noise` is one seed's standard deviation about it.
"""

import gzip
import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

NEAR = 0.10  # settings no further below the best are those that the choice is between: their noise counts
RATE_COUNTS = 4.0  # a rate's whole range is four decades, and so far apart as four other ranges


class Table:
    """The curves of one space.

    Attributes:
        fixed: what is the same for all trials; `space` what is searched, both as in a sweep's file.
        settings: the points that were trained.
        curves: for each setting, its seeds' validation accuracies by epoch.
        epochs: for each setting, how long its whole schedule is.
    """

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.name: str = stored["name"]
        self.fixed: dict[str, Any] = stored["fixed"]
        self.space: dict[str, Any] = stored["space"]
        self.classes: int = stored.get("classes", 10)
        self.rows: dict[int, list[dict[str, Any]]] = {}
        for row in stored["rows"]:
            self.rows.setdefault(row["setting"], []).append(row)
        kept = sorted(self.rows)
        self.settings: list[dict[str, Any]] = [self.rows[k][0]["params"] for k in kept]
        self.epochs = [int(params.get("epochs", self.fixed.get("epochs", 0))) for params in self.settings]
        self.curves = [
            [self._whole(row["validation_accuracy"], epochs) for row in self.rows[k]]
            for k, epochs in zip(kept, self.epochs, strict=True)
        ]
        self.rows = {place: self.rows[k] for place, k in enumerate(kept)}

    def _whole(self, curve: Sequence[float], epochs: int) -> list[float]:
        return [*curve, *[1 / self.classes] * (epochs - len(curve))]

    @classmethod
    def read(cls, path: Path) -> "Table":
        return cls(json.loads(gzip.decompress(path.read_bytes())))

    @cached_property
    def true(self) -> list[float]:
        """Each setting's mean over its seeds of the best validation accuracy."""
        return [statistics.mean(map(max, curves)) for curves in self.curves]

    @property
    def best(self) -> float:
        return max(self.true)

    @cached_property
    def noise(self) -> float:
        """One seed's standard deviation, pooled over the settings near the best that have several."""
        near = [c for c, true in zip(self.curves, self.true, strict=True) if len(c) > 1 and true > self.best - NEAR]
        return math.sqrt(statistics.mean(statistics.variance(map(max, curves)) for curves in near))

    @cached_property
    def _coordinates(self) -> np.ndarray:
        return np.array([self.coordinates(params) for params in self.settings])

    def coordinates(self, params: Mapping[str, Any]) -> list[float]:
        """Where a point lies: each range is 1 long, a rate's 4, and two choices are 1 apart."""
        placed: list[float] = []
        for name, domain in self.space.items():
            value = params.get(name)
            if "choices" in domain and isinstance(domain["choices"][0], (str, bool)):
                placed += [float(value == choice) / math.sqrt(2) for choice in domain["choices"]]
                continue
            if "choices" in domain:
                domain = {"low": min(domain["choices"]), "high": max(domain["choices"]), "log": True}
            scale = math.log if domain.get("log") or domain.get("base2") else float
            low, high = scale(domain["low"]), scale(domain["high"])
            # Momentum does nothing for Adam, whatever was proposed.
            share = 0.5 if value is None or (name == "momentum" and params.get("optimizer") == "adam") else (scale(value) - low) / (high - low)  # fmt: skip
            placed.append(share * (RATE_COUNTS if name == "learning_rate" else 1.0))
        return placed

    def nearest(self, params: Mapping[str, Any], tried: Collection[int], *, held: Collection[str] = ()) -> int | None:
        """The nearest setting not in `tried`, of those equal in the parameters `held`; None where there is none."""
        free = [
            k
            for k, setting in enumerate(self.settings)
            if k not in tried and all(setting.get(name) == params.get(name) for name in held)
        ]
        if not free:
            return None
        distances = np.square(self._coordinates[free] - np.array(self.coordinates(params))).sum(axis=1)
        return free[int(distances.argmin())]


@dataclass
class Search:
    """One search of a table: what it trained, what that cost, and what it would choose.

    A peer calls `begin` for each new trial and `epoch` for each epoch of it, in the order in which it trains them.
    """

    table: Table
    seed: int
    spent: int = 0  # epochs trained
    seconds: float = 0.0  # simulated; only replays with workers and groups set it
    trained: dict[int, int] = field(default_factory=dict)  # epochs, by setting
    chosen: tuple[float, int] | None = None  # the best complete trial's validation accuracy, and its setting
    events: list[tuple[int, float, float]] = field(default_factory=list)  # epochs, seconds, the choice's true mean

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)
        self._curves: dict[int, list[float]] = {}

    def begin(self, params: Mapping[str, Any], *, held: Collection[str] = ()) -> int | None:
        """The setting that a new trial with these parameters trains; None where the table has no more."""
        setting = self.table.nearest(params, self.trained, held=held)
        if setting is not None:
            curves = self.table.curves[setting]
            self._curves[setting] = curves[int(self.generator.integers(len(curves)))]
            self.trained[setting] = 0
        return setting

    def epoch(self, setting: int) -> float:
        """Train a setting for one more epoch: its validation accuracy then."""
        self.spent += 1
        self.trained[setting] += 1
        done, curve = self.trained[setting], self._curves[setting]
        if done == len(curve) and (self.chosen is None or max(curve) > self.chosen[0]):
            self.chosen = max(curve), setting
        if done == len(curve):
            assert self.chosen is not None
            self.events.append((self.spent, self.seconds, self.table.true[self.chosen[1]]))
        return curve[done - 1]

    def is_done(self, setting: int) -> bool:
        """Whether it was trained to its last epoch."""
        return self.trained[setting] == len(self._curves[setting])

    def short(self) -> float:
        """How far the choice's true mean is below the best; infinity before there is a choice."""
        return self.table.best - self.events[-1][2] if self.events else math.inf
