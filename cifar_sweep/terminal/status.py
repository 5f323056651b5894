"""Studies at a glance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from cifar_sweep.curve import METRICS
from cifar_sweep.forecast.time_left import at_work, seconds_left
from cifar_sweep.study.record import IMPOSSIBLE, counts_text, is_synthetic, saved_by_pruning
from cifar_sweep.study.storage import OPEN
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.study.verdict import verdict
from cifar_sweep.words import duration, span

MOST_STOPPED = 5  # trials whose reasons are told


def glance(study: SweepStudy) -> dict[str, Any]:
    """A study's summary, and what is reckoned besides: time left, what pruning has saved, who is at work."""
    summary, trials = study.summary(), study.trials()
    stopped = {trial.number: trial.reason for trial in trials if trial.state in ("pruned", IMPOSSIBLE)}
    saved = saved_by_pruning(trials)
    left = seconds_left(study)
    return summary | {
        "verdict": verdict(study, trials),
        "workers": len(at_work(trials, datetime.now())) if summary["trials"]["running"] else 0,
        "seconds_left": [round(seconds, 1) for seconds in left] if left else None,
        "expected": study.expected(trials),
        "stopped": stopped,
        "gain": asdict(gain) | {"text": str(gain)} if (gain := study.gain) else None,
        "hopes": {number: asdict(hope) for number, hope in study.hopes.items()},
        "saved_by_pruning": asdict(saved) | {"seconds": round(saved.seconds, 1)},
    }


def table(glances: Sequence[Mapping[str, Any]]) -> Table:
    """Several studies, a line for each, in 100 columns."""
    name = Column("study", overflow="fold")  # it is needed whole
    view = Table(name, "state", "trials", "best", "time left", "pruning saved", "kept", box=None, padding=(0, 2, 0, 0))
    for each in glances:
        saved, counts = each["saved_by_pruning"], each["trials"]
        priority = f" (priority {each['priority']})" if each["priority"] and each["state"] == OPEN else ""
        reason = f": {each['reason']}" if each["reason"] else ""
        done = f"{counts['complete'] + counts['pruned']}/{each['budget']}"
        parts = [counts_text(counts, but=["complete", "pruned", "waiting"])]
        if known := each["earlier"]:
            parts.append(f"{known['trials']} known from {', '.join(known['studies'])}")
        others = ", ".join(filter(None, parts))
        view.add_row(
            escape(each["name"]) + (" *" if is_synthetic([each["data"]]) else ""),
            escape(f"{each['state']}{priority}{reason}"),
            f"{done} ({others})" if others else done,
            _best_text(each),
            _left_text(each),
            f"{saved['epochs']} epochs, {duration(saved['seconds'])}" if saved["epochs"] else "-",
            f"{each['stored_bytes'] / 1e6:,.1f} MB",
        )
    if any(is_synthetic([each["data"]]) for each in glances):
        view.caption = "* on synthetic images"
    return view


def _best_text(each: Mapping[str, Any]) -> str:
    best = each["best"]
    if not best or each["verdict"]:
        return "-"
    return f"{METRICS[each['metric']].text(best['value'])}{' (earlier space)' if 'remark' in best else ''}"


def remarks(each: Mapping[str, Any]) -> list[str]:
    """What a study's line has no room for: how good its best trial really is, and why the latest were stopped."""
    told = [found["text"] for found in (each["expected"], each["confirmation"]) if found and not each["verdict"]]
    return told + [f"trial {number}: {reason}" for number, reason in list(each["stopped"].items())[-MOST_STOPPED:]]


def _left_text(each: Mapping[str, Any]) -> str:
    if each["seconds_left"]:
        low, high = each["seconds_left"]
        return span(low, high) if high else "-"
    return "not known yet" if each["workers"] else "-"
