"""Figures over all parameters at once: parallel coordinates, and how each parameter goes with what was chosen by."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures import style
from cifar_sweep.figures.search_figures import FEWEST_TRIALS, SCALE, in_a_row
from cifar_sweep.parameters import Value
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.words import plain

MOST_LINES = 500
DECADES = 1.5  # a parameter that spans more of them has a logarithmic axis


def parallel(trials: Sequence[TrialRecord], names: Sequence[str]) -> go.Figure:
    """A line for each trial through its parameters to what it came to, a complete one's best and any other's last.

    A line that passes below an axis, at a dash, is of a trial for which that parameter does nothing.
    """
    drawn = style.thinned(style.with_accuracy(trials), MOST_LINES)
    metric, reached = style.metric_of(drawn), [style.shown(trial) for trial in drawn]
    figure = go.Figure()
    if drawn:
        axes = [_axis(name, [trial.params.get(name) for trial in drawn]) for name in names]
        last = {"label": style.axis(drawn)["yaxis_title"], "values": reached}
        line = {"color": reached, "colorscale": list(SCALE[2:]), "reversescale": metric.lowest}
        figure.add_parcoords(dimensions=[*axes, last], line=line, labelangle=-20, labelside="bottom")
    figure = style.finish(figure, height=430)
    return figure.update_layout(margin={"l": 60, "r": 60, "t": 40, "b": 90})


def _axis(name: str, values: Sequence[Value | None]) -> dict[str, Any]:
    """A dimension of parallel coordinates: numbers by their size, words and few numbers in a row."""
    there = [value for value in values if value is not None]
    row = in_a_row(name, there)
    log = not row and min(there, default=0) > 0 and math.log10(max(there) / min(there)) > DECADES  # type: ignore[operator]

    def place(value: Value) -> float:
        return float(row.index(value)) if row else math.log10(value) if log else float(value)  # type: ignore[arg-type]

    places = [place(value) for value in there]
    low, high = min(places, default=0.0), max(places, default=1.0)
    ticks = {place(value): plain(value, 3) for value in row}
    if log:
        ticks = {float(power): f"{10.0**power:g}" for power in range(math.ceil(low), math.floor(high) + 1)}
    elif not row:
        ticks = {float(at): f"{at:.3g}" for at in np.linspace(low, high, 5)}
    beside = low - 0.12 * ((high - low) or 1.0)
    if len(there) < len(values):
        ticks = {beside: "-"} | ticks
    found = iter(places)
    return {
        "label": escape(name.replace("_", " ")),
        "values": [beside if value is None else next(found) for value in values],
        "tickvals": list(ticks),
        "ticktext": [escape(text) for text in ticks.values()],
    }


def correlations_of(trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Spearman's rank correlation of each parameter with what complete trials came to; of words, of each for itself.

    Fresh seeds are left out, and what fewer than `FEWEST_TRIALS` trials have, or all have alike.
    """
    complete = [trial for trial in trials if trial.state == "complete" and trial.confirms is None]
    columns: dict[str, dict[int, float]] = {}
    for trial in complete:
        for name, value in trial.params.items():
            columns.setdefault(f"{name} = {value}" if isinstance(value, str) else name, {})[trial.number] = float(
                isinstance(value, str) or value
            )
    for trial in complete:  # where a word is another one
        for column, name in ((column, column.partition(" = ")[0]) for column in columns if " = " in column):
            if name in trial.params:
                columns[column].setdefault(trial.number, 0.0)
    reached = {trial.number: float(trial.value or 0.0) for trial in complete}
    return _ranked({name: each for name, each in columns.items() if len(each) >= FEWEST_TRIALS}, reached)


def _ranked(columns: Mapping[str, Mapping[int, float]], reached: Mapping[int, float]) -> dict[str, float]:
    """The correlations of the ranks of these columns, by trial, with those of what was reached, the strongest first."""
    found: dict[str, float] = {}
    for name, values in columns.items():
        both = {"one": values, "other": {number: reached[number] for number in values}}
        ranks = pd.DataFrame(both).astype(float).rank()
        if (ranks.std() > 0).all():
            found[name] = float(np.corrcoef(ranks["one"], ranks["other"])[0, 1])
    return dict(sorted(found.items(), key=lambda entry: -abs(entry[1])))


def correlation(found: Mapping[str, float]) -> go.Figure:
    """A bar for each parameter, the strongest on top: to the right what rises with it."""
    names, shares = list(found)[::-1], list(found.values())[::-1]
    colours = [style.PALETTE[0] if share > 0 else style.PALETTE[1] for share in shares]
    figure = go.Figure()
    figure.add_bar(
        x=[round(share, 3) for share in shares],
        y=[escape(name) for name in names],
        orientation="h",
        text=[f"{share:+.2f}" for share in shares],
        textposition="outside",
        cliponaxis=False,
        marker_color=colours,
        hoverinfo="skip",
    )
    figure.update_xaxes(range=[-1.15, 1.15])
    return style.finish(figure, height=110 + 32 * len(names), bargap=0.45)
