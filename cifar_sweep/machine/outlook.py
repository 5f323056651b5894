"""What is to be said before a sweep is run: how long it takes, and what of it fits into so many hours."""

import bisect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cifar_sweep.forecast.costs import END_SECONDS, Pace
from cifar_sweep.forecast.expected import possible_shapes
from cifar_sweep.forecast.pruning import looks
from cifar_sweep.forecast.schedule import Forecast, Start, beginning, forecast, shortened
from cifar_sweep.machine.plan import Plan
from cifar_sweep.sweep.sweep import Sweep


@dataclass(frozen=True)
class Outlook:
    """A sweep, not yet run, at a pace of this machine."""

    sweep: Sweep
    plan: Plan
    pace: Pace

    @cached_property
    def unpruned(self) -> Forecast:
        """How the sweep goes if nothing is pruned."""
        return self._forecast(self._start.unpruned())

    @cached_property
    def pruned(self) -> Forecast | None:
        """How it goes with its pruner, as such pruners do; None where it has none, or none that could end a trial."""
        return self._forecast(self._start) if looks(self.sweep, self.longest_epochs) else None

    @property
    def longest_epochs(self) -> int:
        """The most epochs that a trial of it has."""
        shapes = [*possible_shapes(self.sweep), *self._start.shapes.values()]
        return max(shape.epochs for shape in shapes)

    def epochs_that_fit(self, seconds: float) -> int:
        """How many epochs the longest trial may have so that all trials fit unpruned; 0 where not even one does."""
        longest = self.longest_epochs

        def needed(epochs: int) -> float:
            return self._forecast(self._start.unpruned(), share=epochs / longest).likely + END_SECONDS

        return bisect.bisect_right(range(1, longest + 1), seconds, key=needed)

    @cached_property
    def _start(self) -> Start:
        return beginning(self.sweep, workers=self.pace.costs.workers, delay=self.pace.costs.start)

    def _forecast(self, start: Start, *, share: float = 1.0) -> Forecast:
        possible = [shortened(shape, share) for shape in possible_shapes(self.sweep)]
        return forecast(self.sweep, start.shortened(share), self.pace, possible)


def seconds_of(found: Forecast) -> dict[str, float]:
    """The seconds from the command to its end, as plain data: the likely ones, and a range for eight cases of ten."""
    low, high = found.range
    named = {"likely": found.likely, "low": low, "high": high}
    return {name: round(seconds + END_SECONDS, 1) for name, seconds in named.items()}


def as_plain(outlook: Outlook, *, hours: float | None) -> dict[str, Any]:
    """All of it as plain data."""
    plan, pruned = outlook.plan, outlook.pruned
    answer: dict[str, Any] = {
        "sweep": outlook.sweep.name,
        "trials": outlook.sweep.size,
        "plan": {
            "workers": plan.split.workers,
            "threads": plan.split.threads,
            "group": plan.usual,
            "gain": round(plan.gain, 2) if plan.gain else None,
        },
        "pruner": outlook.sweep.pruner.name,
        "seconds_unpruned": seconds_of(outlook.unpruned),
        "seconds_pruned": seconds_of(pruned) if pruned else None,
        "start_seconds": round(outlook.pace.costs.start, 1),
    }
    return answer if hours is None else answer | {"hours": fitting(outlook, hours=hours)}


def fitting(outlook: Outlook, *, hours: float) -> dict[str, Any]:
    """What of the sweep fits into so many hours, as plain data; trials as they are likely to be finished by then."""
    seconds = 3600 * hours - END_SECONDS
    return {
        "hours": hours,
        "trials_unpruned": outlook.unpruned.finished(seconds),
        "trials_pruned": outlook.pruned.finished(seconds) if outlook.pruned else None,
        "epochs": outlook.longest_epochs,
        "epochs_that_fit": outlook.epochs_that_fit(3600 * hours),
    }
