"""What is to be said before a sweep is run: how long it takes, and what of it fits into so many hours."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cifar_sweep.forecast.costs import END_SECONDS, Kind, Pace
from cifar_sweep.forecast.course import Forecast, Standing, forecast, kinds_of
from cifar_sweep.forecast.fates import Fates
from cifar_sweep.machine.plan import Plan, beginning
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
        return self._forecast(pruned=False)

    @cached_property
    def pruned(self) -> Forecast | None:
        """How it goes with its pruner, as such pruners do; None where it has none, or none that could end a trial."""
        fates = Fates(self.sweep)
        looks = any(fates.looks(epochs) for epochs in {kind.epochs for kind in self._kinds})
        return self._forecast(pruned=True) if looks else None

    @property
    def expected(self) -> Forecast:
        """How it goes as it is."""
        return self.pruned or self.unpruned

    def epochs_that_fit(self, seconds: float) -> float | None:
        """Of each trial's epochs, the share with which all trials fit unpruned; None where not even one epoch does."""
        longest = max(kind.epochs for kind in self._kinds)
        fits, shares = None, [epochs / longest for epochs in range(1, longest + 1)]
        low, high = 0, len(shares)
        while low < high:  # the more epochs, the longer
            middle = (low + high) // 2
            if self._forecast(pruned=False, share=shares[middle]).quantile(0.5) + END_SECONDS <= seconds:
                fits, low = shares[middle], middle + 1
            else:
                high = middle
        return fits

    @property
    def longest_epochs(self) -> int:
        """The most epochs that a trial of it has."""
        return max(kind.epochs for kind in self._kinds)

    @cached_property
    def _start(self) -> Standing:
        return beginning(self.sweep, self.pace.costs)

    @cached_property
    def _kinds(self) -> Sequence[Kind]:
        return [*kinds_of(self.sweep), *(kind for waiting in self._start.waiting for kind in waiting.kinds)]

    def _forecast(self, *, pruned: bool, share: float = 1.0) -> Forecast:
        fates = Fates(self.sweep) if pruned else Fates(self.sweep).without_pruner()
        waiting = [replace(each, kinds=_shortened(each.kinds, share)) for each in self._start.waiting]
        standing = replace(self._start, waiting=waiting)
        kinds = _shortened(kinds_of(self.sweep), share)
        return forecast(self.sweep, standing, pace=self.pace, fates=fates, kinds=kinds)


def _shortened(kinds: Sequence[Kind], share: float) -> list[Kind]:
    return [kind._replace(epochs=max(1, round(share * kind.epochs))) for kind in kinds]


def seconds_of(found: Forecast) -> dict[str, float]:
    """The seconds from the command to its end, as plain data: the likely ones, and a range for eight cases of ten."""
    low, high = found.range
    named = {"likely": found.quantile(0.5), "low": low, "high": high}
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
    if hours is not None:
        answer["hours"] = fitting(outlook, hours=hours)
    return answer


def fitting(outlook: Outlook, *, hours: float) -> dict[str, Any]:
    """What of the sweep fits into so many hours, as plain data; trials as they are likely to be finished by then."""
    seconds = 3600 * hours - END_SECONDS
    share = outlook.epochs_that_fit(3600 * hours)
    longest = outlook.longest_epochs
    return {
        "hours": hours,
        "trials_unpruned": outlook.unpruned.finished(seconds, 0.5),
        "trials_pruned": outlook.pruned.finished(seconds, 0.5) if outlook.pruned else None,
        "epochs": longest,
        "epochs_that_fit": max(1, round(share * longest)) if share else 0,
    }
