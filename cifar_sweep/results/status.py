"""Studies at a glance, and how long a study will still take."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from cifar_sweep.search.storage import OPEN
from cifar_sweep.search.study import SweepStudy


def table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """The summaries of several studies for a terminal."""
    view = Table(
        "study",
        "state",
        "complete",
        "pruned",
        "failed",
        "running",
        "waiting",
        "budget",
        "best",
        "with",
        "kept",
        box=None,
    )
    view.columns[0].overflow = "fold"  # a name is needed whole
    for summary in summaries:
        counts = summary["trials"]
        best = summary["best"]
        view.add_row(
            escape(summary["name"]),
            escape(_state_text(summary)),
            *(str(counts[name]) for name in ("complete", "pruned", "failed", "running", "waiting")),
            str(summary["budget"]),
            f"{best['value']:.2%}" if best else "-",
            escape(f"trial {best['number']}: {setting_text(best)}") if best else "-",
            f"{summary['stored_bytes'] / 1e6:,.1f} of {summary['stored_bytes_cap'] / 1e6:,.0f} MB",
        )
    return view


def _state_text(summary: Mapping[str, Any]) -> str:
    priority = f" (priority {summary['priority']})" if summary["priority"] and summary["state"] == OPEN else ""
    reason = f": {summary['reason']}" if summary["reason"] else ""
    return f"{summary['state']}{priority}{reason}"


def setting_text(described: Mapping[str, Any]) -> str:
    """What a trial (see `study.describe`) tried: its parameters; of a given point its label."""
    if "label" not in described:
        return params_text(described["params"])
    shortened = f", shortened: {described['shortened']}" if "shortened" in described else ""
    return f"{described['label']}{shortened}"


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters on one line, floats with three significant digits."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in params.items()
    )


def seconds_spent(trial: FrozenTrial) -> float:
    """Training time of a trial so far, over all its holders, in seconds."""
    return float(sum(point["seconds"] for point in trial.user_attrs.get("curve", [])))


def seconds_left(study: SweepStudy) -> tuple[float, float] | None:
    """A range that holds the remaining time in about eight cases of ten; None before two trials are finished.

    A prediction interval for the sum of the trials to come, taken as independent draws with the mean m and deviation
    s of the n finished ones: r * m plus or minus 1.28 * s * sqrt(r + r * r / n), shared among the running workers.
    """
    trials = study.asked()
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    spent = [seconds_spent(trial) for trial in ended]
    if len(spent) < 2:
        return None
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    mean = statistics.mean(spent)
    begun = sum(min(seconds_spent(trial), mean) for trial in running)
    to_come = max(study.budget - len(ended), 0)
    middle = max(to_come * mean - begun, 0.0)
    spread = 1.28 * statistics.stdev(spent) * math.sqrt(to_come + to_come**2 / len(spent))
    workers = max(len(running), 1)
    return max(middle - spread, 0.0) / workers, (middle + spread) / workers


def duration(seconds: float) -> str:
    """A length of time for people: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
