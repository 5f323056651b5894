"""A report as one HTML page. Its words are in `templates/report.html`; this gives its figures, marks and table."""

import math
from collections.abc import Callable
from typing import Any

from cifar_sweep.config import Value
from cifar_sweep.figures.curve_figures import MOST_CURVES
from cifar_sweep.figures.style import in_percent
from cifar_sweep.report import html
from cifar_sweep.report.drawings import by_importance, comparable, drawings_of
from cifar_sweep.report.facts import Accuracy, Report
from cifar_sweep.report.words import HandCard, counts_text, furthest_text, hand_card, plain
from cifar_sweep.study.record import TrialRecord


def render(report: Report) -> str:
    """The page."""
    hand = hand_card(report)
    marks = _marks(report, hand)
    return html.render(
        "report.html",
        title=f"Study {report.study.name}",
        report=report,
        drawings=drawings_of(report),
        comparable=comparable(report),
        names=by_importance(report),
        most_curves=MOST_CURVES,
        counts=counts_text(report),
        furthest=furthest_text(report),
        hand=hand,
        marks=marks,
        scale=_scale(marks.values()),
        hint=_search_hint(report),
        table=html.in_script(table_of(report)),
    )


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
    trials = sorted(report.trials, key=lambda trial: (trial.state != "complete", -(trial.accuracy or 0), trial.number))
    columns: list[dict[str, Any]] = []
    cells: list[list[Value | None]] = []

    def add(key: str, value: Callable[[TrialRecord], Value | None], *, least: int = 0, **look: Any) -> None:
        """Add a column where it has at least so many different values; `look` is what the page's script reads."""
        values = [_cell(value(trial)) for trial in trials]
        if len(set(values) - {None}) >= least:
            columns.append({"key": key, "title": key} | look)
            cells.append(values)

    add("trial", lambda trial: trial.number, figure=True)
    add("state", lambda trial: trial.state)
    add("accuracy", lambda trial: in_percent(trial.accuracy), title="validation %", figure=True, digits=2)
    add("epochs_done", lambda trial: trial.epochs_done, title="epochs", figure=True)
    if "epochs" not in report.parameters:
        add("of_epochs", lambda trial: trial.epochs, title="of", figure=True)
    add("seconds", lambda trial: round(trial.seconds, 1), figure=True, digits=1)
    for name in report.parameters:
        number = bool(_numbers(report, name))
        add(name, lambda trial, name=name: trial.params.get(name), title=name.replace("_", " "), figure=number)  # type: ignore[misc]
    add("label", lambda trial: trial.label, least=1, title="by hand", long=True)
    add("worker", lambda trial: trial.worker, least=2)
    add("device", lambda trial: trial.device, least=2, long=True)
    add("reason", lambda trial: trial.reason, title="why it ended early", long=True)
    return {"columns": columns, "rows": list(zip(*cells, strict=True))}


def _cell(value: Value | None) -> Value | None:
    """A value as the page's script shows it; None where there is none."""
    if isinstance(value, bool):
        return plain(value)
    return html.rounded(value) if isinstance(value, float) else value if value != "" else None


def _numbers(report: Report, name: str) -> list[float]:
    """The values of a parameter, sorted; empty where they are not numbers."""
    values = [trial.params[name] for trial in report.trials if name in trial.params]
    known = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return sorted(known) if len(known) == len(values) else []


def _search_hint(report: Report) -> str:
    """An example of a condition, in this study's own words."""
    known = ((name, _numbers(report, name)) for name in report.parameters)
    name, values = next(((name, values) for name, values in known if values), ("seconds", [100]))
    return f"state=complete {name}<{plain(values[len(values) // 2])}"
