"""A report as one HTML page, whole in itself: it opens offline, in light and dark, on a phone.

The page is `templates/report.html`. Figures lie in it as JSON and are drawn when they come near the screen; the table
is drawn by `templates/report.js` from the rows. Text is escaped by Jinja, and within scripts by `page.in_script`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from cifar_sweep.figures.page import in_script
from cifar_sweep.report.facts import Accuracy, Closer, Report
from cifar_sweep.report.sections import SIGNIFICANT_DIGITS, sections_of
from cifar_sweep.report.words import counts_text, date, furthest_text, hand_card, percent, plain
from cifar_sweep.study.record import TrialRow
from cifar_sweep.version import __version__
from cifar_sweep.words import duration

MOST_CONFUSED = 10
SECTIONS = {
    "answer": "Answer", "history": "History", "pruning": "Pruning", "importance": "What matters", "curves": "Curves",
    "time": "Workers", "mistakes": "Mistakes", "cost": "Cost", "trials": "Trials", "again": "Reproduce",
}  # fmt: skip


def render(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("cifar_sweep.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "duration": duration, "plain": plain, "date": date}
    bodies = sections_of(report)
    marks, scale = _marks(report)
    shown = {section.id for section in bodies} | {"answer", "trials", "again"}
    return environment.get_template("report.html").render(
        report=report,
        version=__version__,
        written=datetime.now(UTC),
        sections=[(id_, title) for id_, title in SECTIONS.items() if id_ in shown],
        bodies=bodies,
        finished=report.counts["complete"] + report.counts["pruned"],
        counts=counts_text(report),
        furthest=furthest_text(report),
        hand=hand_card(report),
        marks=marks,
        scale=scale,
        confusion=_confusion_cells(report.closer),
        confused=most_confused(report.closer),
        hint=_search_hint(report),
        table=in_script(table_of(report)),
        css=_packaged("report.css"),
        script=_packaged("report.js"),
        # Its few other characters would make a browser hold all of it in two bytes a character: slower to read.
        plotly=get_plotlyjs().encode("ascii", "backslashreplace").decode(),
    )


def _packaged(name: str) -> str:
    return files("cifar_sweep.report").joinpath("templates", name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Mark:
    """An accuracy on the line of `spread`, in percent; places and width in percent of the line."""

    name: str
    value: str
    words: str
    place: float
    low: float | None
    width: float
    claim: bool


def _marks(report: Report) -> tuple[list[Mark], tuple[str, str]]:
    """The accuracies beside each other, with their intervals, and the line's two ends in percent."""
    if report.answer is None:
        return [], ("", "")
    known: list[tuple[str, Accuracy, bool]] = [("validation", report.answer.validation, False)]
    if report.answer.test:
        known.append(("test", report.answer.test, False))
    card = hand_card(report)
    if card is not None and not report.shortened:
        known.append(("claimed", Accuracy(card.claim / 100), True))
    ends = [end for _, accuracy, _ in known for end in (accuracy.interval or (accuracy.value, accuracy.value))]
    low, high = math.floor(100 * min(ends) - 0.5), math.ceil(100 * max(ends) + 0.5)

    def place(share: float) -> float:
        return round(100 * (100 * share - low) / (high - low), 2)

    marks = []
    for name, accuracy, claim in known:
        words = f"{percent(accuracy.value)} %"
        start, end = accuracy.interval or (accuracy.value, accuracy.value)
        if accuracy.interval:
            words += f", {percent(start)} to {percent(end)} %"
        left = place(start) if accuracy.interval else None
        marks.append(
            Mark(
                name,
                percent(accuracy.value),
                words,
                place(accuracy.value),
                left,
                round(place(end) - place(start), 2),
                claim,
            )
        )
    return marks, (str(low), str(high))


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix; `strength` is the share of its row, made visible."""

    count: int
    right: bool
    strength: float


def _confusion_cells(closer: Closer) -> list[list[Cell]]:
    cells = []
    for label, row in enumerate(closer.confusion):
        whole = max(sum(row), 1)
        # Mistakes are a small part of a row each: their own scale shows which are many.
        shares = [(count / whole) * (0.55 if place == label else 2.2) for place, count in enumerate(row)]
        cells.append([
            Cell(count, place == label, round(min(share, 0.75), 3))
            for place, (count, share) in enumerate(zip(row, shares, strict=True))
        ])  # fmt: skip
    return cells


@dataclass(frozen=True)
class Confused:
    """How many images of one class were taken for another."""

    right: str
    taken_for: str
    count: int
    images: int

    @property
    def share(self) -> float:
        """Of all images of the class."""
        return self.count / self.images


def most_confused(closer: Closer) -> list[Confused]:
    """The pairs of classes that were mistaken most often, as shares of the right class."""
    found = [
        Confused(closer.classes[right], closer.classes[taken], count, sum(row))
        for right, row in enumerate(closer.confusion)
        for taken, count in enumerate(row)
        if right != taken and count
    ]
    return sorted(found, key=lambda each: -each.share)[:MOST_CONFUSED]


def table_of(report: Report) -> dict[str, Any]:
    """The table's columns and rows for the page: the complete trials first, the best at the top, then the others."""
    several = {name: len({getattr(row, name) for row in report.rows} - {""}) for name in ("device", "worker", "label")}
    columns: list[dict[str, Any]] = [
        {"key": "trial", "title": "trial", "figure": True},
        {"key": "state", "title": "state"},
        {"key": "accuracy", "title": "validation %", "figure": True, "digits": 2},
        {"key": "epochs_done", "title": "epochs", "figure": True},
        *([{"key": "of_epochs", "title": "of", "figure": True}] if "epochs" not in report.parameters else []),
        {"key": "seconds", "title": "seconds", "figure": True, "digits": 1},
        *(
            {"key": name, "title": name.replace("_", " "), "figure": _is_number(report.rows, name)}
            for name in report.parameters
        ),
        *([{"key": "label", "title": "by hand", "long": True}] if several["label"] else []),
        *([{"key": "worker", "title": "worker"}] if several["worker"] > 1 else []),
        *([{"key": "device", "title": "device", "long": True}] if several["device"] > 1 else []),
        {"key": "reason", "title": "why it ended early", "long": True},
    ]
    keys = [column["key"] for column in columns]
    ranked = sorted(report.rows, key=lambda row: (row.state != "complete", -(row.accuracy or 0), row.number))
    return {"columns": columns, "rows": [[_cell(row, key) for key in keys] for row in ranked]}


def _is_number(rows: Sequence[TrialRow], name: str) -> bool:
    values = [row.params[name] for row in rows if name in row.params]
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _cell(row: TrialRow, key: str) -> str | int | float | None:
    own: dict[str, str | int | float | None] = {
        "trial": row.number,
        "state": row.state,
        "accuracy": None if row.accuracy is None else round(100 * row.accuracy, 3),
        "epochs_done": row.epochs_done,
        "of_epochs": row.epochs,
        "seconds": round(row.seconds, 1),
        "label": row.label,
        "worker": row.worker,
        "device": row.device,
        "reason": row.reason,
    }
    if key in own:
        return own[key] if own[key] != "" else None
    value = row.params.get(key)
    if isinstance(value, bool):
        return plain(value)
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def _search_hint(report: Report) -> str:
    """An example of a condition, in this study's own words."""
    numbers = [name for name in report.parameters if _is_number(report.rows, name)]
    values = [row.params[numbers[0]] for row in report.rows if numbers and numbers[0] in row.params]
    first = f"{numbers[0]}<{plain(sorted(values, key=float)[len(values) // 2])}" if values else "seconds<100"
    return f"state=complete {first}"
