"""A table of real learning curves, and what a search of it is told and measured by.

The same rules hold for every strategy, ours and the peers':

- A strategy proposes any point of the table's space. What it trains is the nearest setting of the table: of those with
  the same shape (optimizer, batch norm, batch size, epochs) and not trained in this search, the one with the nearest
  learning rate and other numbers; where all of a shape were trained, the nearest one again. The strategy is told which
  one it was: otherwise it would learn from results of parameters that were never trained, and train a setting that it
  likes again and again, until a lucky seed comes.
- A setting with several seeds gives one of them, by lot. A diverged curve goes on at the accuracy of chance.
- The strategy's choice at any time is the trial with the best validation accuracy among those trained to their last
  epoch: only they have weights that somebody could take away.
- A curve that was pruned ends where it ends: what trains it further is told that this is its end, and it is no choice.
- What counts is the choice's true mean: the mean over its seeds of the best validation accuracy of the whole schedule.
  The best setting is the one with the highest true mean.
"""

import math
import statistics
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cifar_sweep.search.cube import Cube, Shares
from cifar_sweep.sweep.sweep import Sweep

EXACT = ("optimizer", "batch_norm", "batch_size", "epochs")  # a point's setting has the same
RATE_COUNTS = 4.0  # a rate's whole range is four decades, and counts as four other ranges


class Table:
    """The curves of one space; `stored` has `fixed` and `space` as a sweep's file has them."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.name: str = stored["name"]
        self.fixed: dict[str, Any] = stored["fixed"]
        self.space: dict[str, Any] = stored["space"]
        self.classes: int = stored.get("classes", 10)
        self._cube = Cube(Sweep(name=self.name, fixed=self.fixed, space=self.space))
        names = [self._cube.names[k] for k in self._cube.columns]
        self._weights = np.where(np.array(names) == "learning_rate", RATE_COUNTS, 1.0)
        rows: dict[int, list[dict[str, Any]]] = {}
        for row in stored["rows"]:
            rows.setdefault(row["setting"], []).append(row)
        self.rows = [rows[setting] for setting in sorted(rows)]
        # The points that were trained.
        self.settings: list[dict[str, Any]] = [seeds[0]["params"] for seeds in self.rows]
        # How long each one's whole schedule is, and its seeds' validation accuracies by epoch.
        self.epochs = [int(params.get("epochs", self.fixed.get("epochs", 0))) for params in self.settings]
        self.curves = [
            [self._whole(row, epochs) for row in seeds] for seeds, epochs in zip(self.rows, self.epochs, strict=True)
        ]
        self._coordinates = self.coordinates(self.settings)
        self._by_shape: dict[tuple[Any, ...], list[int]] = {}
        for k, setting in enumerate(self.settings):
            self._by_shape.setdefault(self._shape(setting), []).append(k)
        # Those whose curves were pruned and not diverged: they cannot be continued.
        self.ended = {k for k, seeds in enumerate(self.rows) if any(row.get("pruned") for row in seeds)}

    def _shape(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(params.get(name) for name in EXACT if name in self.space)

    def _whole(self, row: Mapping[str, Any], epochs: int) -> list[float]:
        curve: list[float] = row["validation_accuracy"]
        if row.get("pruned"):
            return curve
        return [*curve, *[1 / self.classes] * (epochs - len(curve))]

    @cached_property
    def true(self) -> list[float]:
        """Each setting's mean over its seeds of the best validation accuracy."""
        return [statistics.mean(map(max, curves)) for curves in self.curves]

    @property
    def best(self) -> float:
        return max(true for k, true in enumerate(self.true) if k not in self.ended)

    def coordinates(self, points: Iterable[Mapping[str, Any]]) -> Shares:
        """Where points lie [points, features]: as a model sees them, but a rate counts more."""
        return self._cube.features(np.array([self._cube.shares(point) for point in points])) * self._weights

    def nearest(self, params: Mapping[str, Any], *, but: Container[int] = ()) -> int:
        """The setting that stands for this point, none of `but` unless these are all that there are of its shape.

        Where the table has none of its shape, one of any.
        """
        there = self._by_shape.get(self._shape(params)) or list(range(len(self.settings)))
        alike = [k for k in there if k not in but] or there
        distances = np.square(self._coordinates[alike] - self.coordinates([params])).sum(axis=1)
        return alike[int(distances.argmin())]


@dataclass
class Search:
    """One search of a table: what it trained, what that cost, and what it would choose.

    A strategy calls `begin` for each new trial and `epoch` for each epoch of it, in the order in which it trains them.
    """

    table: Table
    seed: int
    settings: list[int] = field(default_factory=list)  # that each trial trains; trials are numbered from 0
    points: list[Mapping[str, Any]] = field(default_factory=list)  # what each trial was proposed to be
    trained: list[int] = field(default_factory=list)  # the epochs of each trial
    spent: int = 0  # epochs in all
    seconds: float = 0.0  # simulated; set by who reckons time
    chosen: tuple[float, int] | None = None  # the best complete trial's validation accuracy, and the trial
    # After each complete trial the epochs and seconds so far, and the choice's true mean.
    events: list[tuple[int, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)
        self._curves: list[list[float]] = []

    def begin(self, params: Mapping[str, Any]) -> int:
        """The number of a new trial at these parameters."""
        setting = self.table.nearest(params, but=set(self.settings))
        curves = self.table.curves[setting]
        self._curves.append(curves[int(self._generator.integers(len(curves)))])
        self.settings.append(setting)
        self.points.append(params)
        self.trained.append(0)
        return len(self.trained) - 1

    def params(self, trial: int) -> Mapping[str, Any]:
        """The parameters of the setting that it trains."""
        return self.table.settings[self.settings[trial]]

    def epochs(self, trial: int) -> int:
        """How long the trial's whole schedule is."""
        return self.table.epochs[self.settings[trial]]

    def is_cut(self, trial: int) -> bool:
        """Whether its curve ends here, before its schedule does."""
        return self.trained[trial] == len(self._curves[trial]) < self.epochs(trial)

    def epoch(self, trial: int) -> float:
        """Train a trial for one more epoch: its validation accuracy then."""
        self.spent += 1
        self.trained[trial] += 1
        done, curve = self.trained[trial], self._curves[trial]
        if done == self.epochs(trial):
            if self.chosen is None or max(curve) > self.chosen[0]:
                self.chosen = max(curve), trial
            self.events.append((self.spent, self.seconds, self.table.true[self.settings[self.chosen[1]]]))
        return curve[done - 1]

    def short(self) -> float:
        """How far the choice's true mean is below the best; infinity before there is a choice."""
        return self.table.best - self.events[-1][2] if self.events else math.inf
