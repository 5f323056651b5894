"""A report as one HTML page. Its words are in `templates/report.html`; this gives its figures, marks and table."""

import math
from collections.abc import Callable
from typing import Any

from cifar_sweep.figures.curve_figures import MOST_CURVES, curves, learning_curves
from cifar_sweep.figures.hand_figures import claimed_against_measured, hand_beside_search
from cifar_sweep.figures.parallel_figures import correlation, correlations_of, parallel
from cifar_sweep.figures.search_figures import importance, learning_rate_by_batch, slices
from cifar_sweep.figures.style import in_percent, shown
from cifar_sweep.figures.timeline import timeline
from cifar_sweep.figures.trial_figures import front, history, pruned_when, seconds_by_trial
from cifar_sweep.parameters import Value
from cifar_sweep.report import html
from cifar_sweep.report.facts import Accuracy, Report
from cifar_sweep.report.html import Drawing, drawing
from cifar_sweep.report.text import HandCard, told
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.sweep.sweep import Range, parts_of
from cifar_sweep.words import plain

CURVES_IN_DETAIL = 3  # with four lines each
HAND_PIXELS = 620  # below that, the names of the best lie on each other
PARALLEL_PIXELS = 700  # below that, axes lie on each other
PAIR_PIXELS = 340  # the height of figures beside each other


def render(report: Report) -> str:
    """The page."""
    facts = told(report)
    marks = _marks(report, facts["hand"])
    return html.render(
        "report.html",
        title=f"Study {report.study.name}",
        drawings=_drawings(report),
        comparable=_comparable(report),
        names=_by_importance(report),
        most_curves=MOST_CURVES,
        marks=marks,
        scale=_scale(marks.values()),
        table=html.in_script(table_of(report)),
        **facts,
    )


def _drawings(report: Report) -> dict[str, Drawing]:
    """Every figure that has something to show; none before a trial has finished an epoch."""
    trials, data = report.trials, report.data
    if not any(trial.curve for trial in trials):
        return {}
    searched = "epochs" in report.study.sweep.space
    drawn = {
        "history-plot": drawing(history(trials)),
        "seconds-plot": drawing(seconds_by_trial(trials, data=data), height=PAIR_PIXELS),
        "curves-plot": drawing(curves(trials, epochs_searched=searched)),
    }
    if report.saved.trials:
        drawn["pruned-plot"] = drawing(pruned_when(trials, epochs_searched=searched), height=PAIR_PIXELS)
    if report.ranked:
        drawn["detail-plot"] = drawing(learning_curves(report.ranked[:CURVES_IN_DETAIL], data=data))
    if any(trial.ended and trial.curve for trial in trials):
        drawn["time-plot"] = drawing(timeline(trials))
    if any(trial.seconds for trial in report.ranked):
        drawn["seconds-front"] = drawing(front(trials))
    return drawn | _beside_hand(report) | (_parameters(report) if _comparable(report) else {})


def _comparable(report: Report) -> bool:
    """Whether there are two trials to compare."""
    return sum(trial.accuracy is not None for trial in report.trials) > 1


def _by_importance(report: Report) -> list[str]:
    """The searched parameters, what matters most first; in their usual order where that is not known."""
    return list(dict.fromkeys([*(name for name, _ in report.importances.shares), *report.parameters]))


def _beside_hand(report: Report) -> dict[str, Drawing]:
    claims = report.by_hand.claims if report.by_hand else ()
    if not claims:
        return {}
    if report.study.sweep.given:
        return {"hand-plot": drawing(claimed_against_measured(claims))}
    figure = hand_beside_search(report.trials, claims, data=report.data)
    return {"hand-plot": drawing(figure, height=400, least_width=HAND_PIXELS)}


def _parameters(report: Report) -> dict[str, Drawing]:
    names, shares = _by_importance(report), report.importances.shares
    parts = {name: parts_of(domain) for name, domain in report.study.sweep.space.items()}
    scales = {name: [isinstance(each, Range) and (each.log or each.base2) for each in parts[name]] for name in parts}
    logarithmic = {name for name, each in scales.items() if all(each)}
    height = max(PAIR_PIXELS, 110 + 32 * len(shares))
    drawn = {"importance-plot": drawing(importance(report.importances), height=height)} if shares else {}
    if {"learning_rate", "batch_size"} <= set(names):
        heat = learning_rate_by_batch(report.trials, data=report.data).update_xaxes(dtick=1)
        drawn["heat-plot"] = drawing(heat, height=height)
    drawn["parallel-plot"] = drawing(parallel(report.trials, names), least_width=PARALLEL_PIXELS)
    if found := correlations_of(report.trials):
        drawn["correlation-plot"] = drawing(correlation(found))
    each = slices(report.trials, names, logarithmic=logarithmic)
    drawn |= {f"slice-{k}": drawing(figure) for k, figure in enumerate(each)}
    return drawn


def _marks(report: Report, hand: HandCard | None) -> dict[str, Accuracy]:
    """The accuracies that stand beside each other, by name."""
    if report.answer is None:
        return {}
    marks = {"validation": report.answer.validation, "test": report.answer.test}
    if hand is not None and not report.shortened:
        marks["claimed"] = Accuracy(hand.claim / 100)
    return {name: accuracy for name, accuracy in marks.items() if accuracy}


def _scale(marks: Any) -> tuple[int, int]:
    """The ends, in percent, of a line that has all accuracies and their intervals on it."""
    ends = [100 * end for mark in marks for end in (mark.interval or [mark.value])]
    return (math.floor(min(ends) - 0.5), math.ceil(max(ends) + 0.5)) if ends else (0, 100)


def table_of(report: Report) -> dict[str, Any]:
    """The table's columns and rows for the page: the complete trials first, the best at the top, then the others."""
    trials = sorted(report.trials, key=lambda trial: (trial.state != "complete", -trial.score, trial.number))
    columns: list[dict[str, Any]] = []
    cells: list[list[Value | None]] = []

    def add(key: str, value: Callable[[TrialRecord], Value | None], *, least: int = 0, **look: Any) -> None:
        """Add a column where it has at least so many different values; `look` is what the page's script reads."""
        values = [_cell(value(trial)) for trial in trials]
        if len(set(values) - {None}) >= least:
            columns.append({"key": key, "title": key} | look)
            cells.append(values)

    add("trial", lambda trial: trial.number, figure=True)
    add("state", lambda trial: trial.state_words)
    add("accuracy", lambda trial: in_percent(trial.accuracy), title="validation %", figure=True, digits=2)
    if (metric := report.study.metric).field != "validation_accuracy":
        add("value", shown, title=metric.words, figure=True, digits=4)
    add("epochs_done", lambda trial: trial.epochs_done, title="epochs", figure=True)
    if "epochs" not in report.parameters:
        add("of_epochs", lambda trial: trial.epochs, title="of", figure=True)
    add("seconds", lambda trial: round(trial.seconds, 1), figure=True, digits=1)
    for name in report.parameters:
        number = all(type(trial.params[name]) in (int, float) for trial in trials if name in trial.params)
        add(name, lambda trial, name=name: trial.params.get(name), title=name.replace("_", " "), figure=number)  # type: ignore[misc]
    add("label", lambda trial: trial.label, least=1, title="by hand", long=True)
    add("confirms", lambda trial: trial.confirms, least=1, figure=True)
    add("worker", lambda trial: trial.worker, least=2)
    add("device", lambda trial: trial.device, least=2, long=True)
    add("reason", lambda trial: trial.reason, title="why it ended early", long=True)
    return {"columns": columns, "rows": list(zip(*cells, strict=True))}


def _cell(value: Value | None) -> Value | None:
    """A value as the page's script shows it; None where there is none."""
    if isinstance(value, bool):
        return plain(value)
    return html.rounded(value) if isinstance(value, float) else value if value != "" else None
