"""Figures of the reports' hand runs: their claims beside what was measured here, and beside a search.

A claim is a test accuracy on CIFAR-10 that a student wrote down. It never shares a line with validation accuracies.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures.style import (
    CLAIM,
    MEASURED,
    QUIET,
    finish,
    hover_text,
    in_percent,
    trial_words,
    with_accuracy,
)
from cifar_sweep.hand.rows import HandRow
from cifar_sweep.study.record import SYNTHETIC_REMARK, TrialRecord, is_synthetic

MOST_POINTS = 200  # of a line: thousands take a browser seconds
BEST_ROW, COMPLETE_ROW, OTHERS_ROW = "search: best", "search: complete", "search: other, last value"
ALIKE_ROW, DIFFERENT_ROW = "claimed: same network", "claimed: other networks"


def claimed_against_measured(rows: Sequence[HandRow]) -> go.Figure:
    """A line per hand run from the report's claim to the test accuracy measured here; shortened ones are drawn open."""
    shown = [row for row in rows if row.claimed is not None or row.test is not None]
    figure = go.Figure()
    for row in shown:
        if row.claimed is not None and row.test is not None:
            ends = [row.claimed, 100 * row.test]
            line = {"color": QUIET, "width": 1 if row.shortened else 3, "dash": "dot" if row.shortened else "solid"}
            figure.add_scatter(x=ends, y=[_place(row)] * 2, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    claims = [(row, row.claimed) for row in shown if row.claimed is not None]
    measured = [(row, 100 * row.test) for row in shown if row.test is not None]
    _add_runs(figure, "claimed by the report", CLAIM, "diamond", claims)
    _add_runs(figure, "measured here", MEASURED, "circle", [each for each in measured if not each[0].shortened])
    short = [each for each in measured if each[0].shortened]
    _add_runs(figure, "measured here, shortened run", MEASURED, "circle-open", short)
    places = [_place(row) for row in shown]
    figure.update_yaxes(categoryorder="array", categoryarray=places, range=[len(places) - 0.5, -0.5])
    figure.update_xaxes(title="test accuracy, %")
    data = list(dict.fromkeys(row.data for row, _ in measured if row.data))
    title = f"claims are the reports', on CIFAR-10; measured on {', '.join(data) or 'nothing yet'}"
    return finish(figure, title + (f"; {SYNTHETIC_REMARK}" if is_synthetic(data) else ""), height=170 + 24 * len(shown))


def _add_runs(figure: go.Figure, name: str, colour: str, symbol: str, runs: Sequence[tuple[HandRow, float]]) -> None:
    """A marker for each hand run at its accuracy, in percent."""
    if runs:
        figure.add_scatter(
            x=[accuracy for _, accuracy in runs],
            y=[_place(row) for row, _ in runs],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}},
            hoverinfo="text",
            hovertext=[_row_words(row) for row, _ in runs],
        )


def _place(row: HandRow) -> str:
    """The name of a row on the axis, different for each."""
    words = [row.label, row.state if row.trial is None else f"trial {row.trial}", "shortened" if row.shortened else ""]
    return escape(", ".join(word for word in words if word))


def _row_words(row: HandRow) -> str:
    """What a box beside the pointer says of a hand run."""
    return hover_text([
        f"{row.label}: {row.model}, {row.state}",
        "" if row.claimed is None else f"claimed by the report: {row.claimed:.2f} % on CIFAR-10's test images",
        "" if row.test is None else f"measured {100 * row.test:.2f} % on the test images of {row.data}",
        "" if row.difference is None else f"difference {row.difference:+.2f} points",
        f"shortened: {row.shortened}" if row.shortened else "",
        row.note,
    ])  # fmt: skip


def hand_beside_search(trials: Sequence[TrialRecord], claims: Sequence[HandRow], *, data: str) -> go.Figure:
    """The search's validation accuracies on `data`, and on lines of their own what the reports claim."""
    drawn = with_accuracy(trials)
    complete = [trial for trial in drawn if trial.state == "complete"]
    networks = {trial.settings["model"] for trial in drawn}
    claimed = [row for row in claims if row.claimed is not None]
    alike = [row for row in claimed if row.model in networks]
    figure = go.Figure()
    _add_spread(figure, OTHERS_ROW, [trial for trial in drawn if trial.state != "complete"], colour=QUIET)
    _add_spread(figure, COMPLETE_ROW, complete, colour=MEASURED)
    if complete:
        best = max(complete, key=lambda trial: (trial.value or 0, -trial.number))
        text = f"{in_percent(best.value):.2f} %, trial {best.number}  "
        star = {"color": MEASURED, "symbol": "star", "size": 15}
        _add_named(figure, BEST_ROW, [in_percent(best.value)], [text], [trial_words(best)], "middle left", star)
    _add_claims(figure, ALIKE_ROW, alike, symbol="diamond")
    _add_claims(figure, DIFFERENT_ROW, [row for row in claimed if row not in alike], symbol="diamond-open")
    drawn_rows = {trace.name for trace in figure.data}
    rows = [row for row in (DIFFERENT_ROW, ALIKE_ROW, OTHERS_ROW, COMPLETE_ROW, BEST_ROW) if row in drawn_rows]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=rows)
    figure.update_xaxes(title="accuracy, %")
    title = (
        f"search: validation accuracy on {data}; claimed: test accuracy on CIFAR-10, as students' reports state it, "
        f"not measured here{f'; {SYNTHETIC_REMARK}' if is_synthetic([data]) else ''}"
    )
    return finish(figure, title, height=170 + 62 * len(rows), showlegend=False)


def _add_spread(figure: go.Figure, row: str, trials: Sequence[TrialRecord], *, colour: str) -> None:
    """A box with each trial's accuracy in it; of too many trials the box alone."""
    points = {
        "boxpoints": "all",
        "jitter": 0.7,
        "pointpos": 0,
        "marker": {"color": colour, "size": 5, "opacity": 0.6},
        "hoveron": "points",
        "hoverinfo": "text",
        "hovertext": [trial_words(trial) for trial in trials[:MOST_POINTS]],
    }
    if trials:
        figure.add_box(
            x=[in_percent(trial.accuracy) for trial in trials],
            y=[row] * len(trials),
            orientation="h",
            name=row,
            fillcolor="rgba(0,0,0,0)",
            line={"color": colour, "width": 1},
            **points if len(trials) <= MOST_POINTS else {"boxpoints": False, "hoverinfo": "x"},
        )


def _add_claims(figure: go.Figure, row: str, claims: Sequence[HandRow], *, symbol: str) -> None:
    """A marker for each claim; the best one is named."""
    if claims:
        best = max(claims, key=lambda claim: claim.claimed or 0)
        text = [f"{claim.claimed:.2f} %, {escape(claim.label)}" if claim is best else "" for claim in claims]
        look = {"color": CLAIM, "symbol": symbol, "size": 11, "line": {"width": 1.5, "color": CLAIM}}
        words = [_row_words(claim) for claim in claims]
        _add_named(figure, row, [claim.claimed for claim in claims], text, words, "top left", look)


def _add_named(
    figure: go.Figure,
    row: str,
    x: Sequence[float | None],
    text: Sequence[str],
    words: Sequence[str],
    position: str,
    marker: dict[str, Any],
) -> None:
    """Markers on one line, with texts beside them."""
    figure.add_scatter(
        x=x,
        y=[row] * len(x),
        mode="markers+text",
        name=row,
        marker=marker,
        text=text,
        textposition=position,
        cliponaxis=False,
        hoverinfo="text",
        hovertext=words,
    )
