"""Figures of the reports' hand runs: their claims beside what was measured here, and beside a search.

A claim is a test accuracy on CIFAR-10 that a student wrote down. It never shares a line with validation accuracies.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures import style
from cifar_sweep.hand.rows import HandRow
from cifar_sweep.study.record import SYNTHETIC_REMARK, TrialRecord, is_synthetic

MOST_POINTS = 200  # of a line: thousands take a browser seconds
# The lines of `hand_beside_search`, from the top down.
BEST, COMPLETE, OTHERS = "search: best", "search: complete", "search: other, last value"
ALIKE, DIFFERENT = "claimed: same network", "claimed: other networks"
LINES = (BEST, COMPLETE, OTHERS, ALIKE, DIFFERENT)


def claimed_against_measured(rows: Sequence[HandRow]) -> go.Figure:
    """A line per hand run from the report's claim to the test accuracy measured here; shortened ones are drawn open."""
    shown = [row for row in rows if row.claimed is not None or row.test is not None]
    figure = go.Figure()
    for row in shown:
        if row.claimed is not None and row.test is not None:
            ends, (width, dash) = [row.claimed, 100 * row.test], (1, "dot") if row.shortened else (3, "solid")
            line = {"color": style.QUIET, "width": width, "dash": dash}
            figure.add_scatter(x=ends, y=[_place(row)] * 2, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    claims = [(row, row.claimed) for row in shown if row.claimed is not None]
    measured = [(row, 100 * row.test) for row in shown if row.test is not None]
    for name, colour, symbol, runs in (
        ("claimed by the report", style.CLAIM, "diamond", claims),
        ("measured here", style.MEASURED, "circle", [run for run in measured if not run[0].shortened]),
        ("measured here, shortened run", style.MEASURED, "circle-open", [run for run in measured if run[0].shortened]),
    ):
        points = [(accuracy, _place(row), _row_words(row)) for row, accuracy in runs]
        _add_marks(figure, name, points, colour, symbol)
    places = [_place(row) for row in shown]
    figure.update_yaxes(categoryorder="array", categoryarray=places, range=[len(places) - 0.5, -0.5])
    data = list(dict.fromkeys(row.data for row, _ in measured if row.data))
    title = f"claims are the reports', on CIFAR-10; measured on {', '.join(data) or 'nothing yet'}{_remark(data)}"
    return style.finish(figure, title, height=170 + 24 * len(shown), xaxis_title="test accuracy, %")


def _place(row: HandRow) -> str:
    """The name of a row on the axis, different for each."""
    words = [row.label, row.state if row.trial is None else f"trial {row.trial}", "shortened" if row.shortened else ""]
    return escape(", ".join(word for word in words if word))


def _row_words(row: HandRow) -> str:
    return style.hover_text([
        f"{row.label}: {row.model}, {row.state}",
        "" if row.claimed is None else f"claimed by the report: {row.claimed:.2f} % on CIFAR-10's test images",
        "" if row.test is None else f"measured {100 * row.test:.2f} % on the test images of {row.data}",
        "" if row.difference is None else f"difference {row.difference:+.2f} points",
        f"shortened: {row.shortened}" if row.shortened else "",
        row.note,
    ])  # fmt: skip


def _remark(data: Sequence[str]) -> str:
    return f"; {SYNTHETIC_REMARK}" if is_synthetic(data) else ""


def _add_marks(
    figure: go.Figure, name: str, points: Sequence[tuple[float, str, str]], colour: str, symbol: str, **settings: Any
) -> None:
    """Markers at accuracies in percent, on lines, with words beside the pointer; `settings` are plotly's scatter's."""
    if points:
        x, y, words = map(list, zip(*points, strict=True))
        look = {"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}}
        marks = {"mode": "markers", "marker": look, "hoverinfo": "text", "hovertext": words, "cliponaxis": False}
        figure.add_scatter(x=x, y=y, name=name, **marks | settings)


def hand_beside_search(trials: Sequence[TrialRecord], claims: Sequence[HandRow], *, data: str) -> go.Figure:
    """The search's validation accuracies on `data`, and on lines of their own what the reports claim."""
    drawn = style.with_accuracy(trials)
    complete = [trial for trial in drawn if trial.state == "complete"]
    networks = {trial.settings["model"] for trial in drawn}
    claimed = [row for row in claims if row.claimed is not None]
    figure = go.Figure()
    _add_spread(figure, OTHERS, [trial for trial in drawn if trial.state != "complete"], colour=style.QUIET)
    _add_spread(figure, COMPLETE, complete, colour=style.MEASURED)
    if best := style.best_of(complete):
        accuracy = 100 * (best.accuracy or 0)
        text = [f"{accuracy:.2f} %, trial {best.number}  "]
        named = {"mode": "markers+text", "text": text, "textposition": "middle left"}
        _add_marks(figure, BEST, [(accuracy, BEST, style.trial_words(best))], style.MEASURED, "star", **named)
    _add_claims(figure, ALIKE, [row for row in claimed if row.model in networks], "diamond")
    _add_claims(figure, DIFFERENT, [row for row in claimed if row.model not in networks], "diamond-open")
    lines = [line for line in LINES if any(trace.name == line for trace in figure.data)]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=lines[::-1])
    title = (
        f"search: validation accuracy on {data}; claimed: test accuracy on CIFAR-10, as students' reports state it, "
        f"not measured here{_remark([data])}"
    )
    return style.finish(figure, title, height=170 + 62 * len(lines), showlegend=False, xaxis_title="accuracy, %")


def _add_spread(figure: go.Figure, name: str, trials: Sequence[TrialRecord], *, colour: str) -> None:
    """A box with each trial's accuracy in it; of too many trials the box alone."""
    points = {"boxpoints": "all", "jitter": 0.7, "pointpos": 0, "hoveron": "points", "hoverinfo": "text"}
    if trials:
        figure.add_box(
            x=[style.in_percent(trial.accuracy) for trial in trials],
            y=[name] * len(trials),
            orientation="h",
            name=name,
            fillcolor="rgba(0,0,0,0)",
            line={"color": colour, "width": 1},
            marker={"color": colour, "size": 5, "opacity": 0.6},
            hovertext=[style.trial_words(trial) for trial in trials[:MOST_POINTS]],
            **points if len(trials) <= MOST_POINTS else {"boxpoints": False, "hoverinfo": "x"},
        )


def _add_claims(figure: go.Figure, name: str, claims: Sequence[HandRow], symbol: str) -> None:
    best = max(claims, key=lambda claim: claim.claimed or 0, default=None)
    text = [f"{claim.claimed:.2f} %, {escape(claim.label)}" if claim is best else "" for claim in claims]
    named = {"mode": "markers+text", "text": text, "textposition": "top left"}
    points = [(claim.claimed or 0, name, _row_words(claim)) for claim in claims]
    _add_marks(figure, name, points, style.CLAIM, symbol, **named)
