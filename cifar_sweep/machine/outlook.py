"""What is to be said before a sweep is run: how long it takes, and what of it fits into so many hours."""

import bisect
from dataclasses import asdict, replace
from typing import Any

from cifar_sweep.forecast.costs import END_SECONDS, Pace
from cifar_sweep.forecast.expected import drawn_shapes, possible_shapes
from cifar_sweep.forecast.hours import ExpectedTrials
from cifar_sweep.forecast.pruning import looks, never_prunes
from cifar_sweep.forecast.schedule import Forecast, beginning, forecast, shortened
from cifar_sweep.machine.plan import Plan
from cifar_sweep.sweep.sweep import Sweep


def look_ahead(sweep: Sweep, plan: Plan, pace: Pace, *, hours: float | None = None) -> dict[str, Any]:
    """How a sweep that was not yet run will go at this pace of this machine, as plain data.

    ``epochs`` are the longest trial's, ``seconds_pruned`` is None where no pruner could end a trial. Seconds are of the
    search; ``seconds_confirmation`` come after them, and are None where nothing is confirmed. With `hours` also
    ``hours``: how many trials are likely to be finished by then, and ``epochs_that_fit``, the epochs that the longest
    trial may have so that all trials fit unpruned, 0 where not even one does.
    """
    start = beginning(sweep, workers=pace.costs.workers, delay=pace.costs.start)
    start = replace(start, drawn=drawn_shapes(sweep, start.asked))
    possible = possible_shapes(sweep)
    longest = max(shape.epochs for shape in [*possible, *(trial.shape for trial in start.waiting)])
    unpruned = forecast(sweep, start.unpruned(), pace, possible)
    pruned = forecast(sweep, start, pace, possible) if looks(sweep, longest) else None
    confirmation = ExpectedTrials(sweep, pace).confirming(*sweep.confirm) if sweep.confirm else None
    answer = {
        "sweep": sweep.name,
        "trials": sweep.size,
        "epochs": longest,
        "plan": {
            **asdict(plan.split),
            "group": plan.usual,
            "gain": round(plan.gain, 2) if plan.gain else None,
            "bound": plan.bound,
        },
        "pruner": sweep.pruner.name,
        "unpruned": never_prunes(sweep),
        "seconds_unpruned": _seconds(unpruned),
        "seconds_pruned": _seconds(pruned) if pruned else None,
        "seconds_confirmation": None if confirmation is None else round(confirmation, 1),
        "start_seconds": round(pace.costs.start, 1),
    }
    if hours is None:
        return answer

    def needed(epochs: int) -> float:
        fewer = [shortened(shape, epochs / longest) for shape in possible]
        return forecast(sweep, start.unpruned().shortened(epochs / longest), pace, fewer).likely

    seconds = 3600 * hours - END_SECONDS
    fits = {
        "hours": hours,
        "trials_unpruned": unpruned.finished(seconds),
        "trials_pruned": pruned.finished(seconds) if pruned else None,
        "epochs": longest,
        "epochs_that_fit": bisect.bisect_right(range(1, longest + 1), seconds, key=needed),
    }
    return answer | {"hours": fits}


def _seconds(found: Forecast) -> dict[str, float]:
    """The seconds from the command to its end: the likely ones, and a range for eight cases of ten."""
    named = zip(("likely", "low", "high"), (found.likely, *found.range), strict=True)
    return {name: round(seconds + END_SECONDS, 1) for name, seconds in named}
