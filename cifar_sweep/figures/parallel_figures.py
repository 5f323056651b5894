"""Figures over all parameters at once: parallel coordinates, and how each parameter goes with what was chosen by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures import style
from cifar_sweep.figures.search_figures import FEWEST_TRIALS, in_a_row
from cifar_sweep.parameters import Value
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.words import plain

MOST_LINES = 300
BELOW = -0.12  # the height of what is not there
BANDS = (style.QUIET, style.PALETTE[4], style.PALETTE[0], style.BEST)  # colours of the weakest to the best quarter
DECADES = 1.5  # a parameter that spans more of them has a logarithmic axis


def parallel(trials: Sequence[TrialRecord], names: Sequence[str]) -> go.Figure:
    """A line for each trial through its parameters to what it came to, a complete one's best and any other's last.

    A line that passes below an axis, at a dash, is of a trial for which that parameter does nothing. Plain lines:
    plotly's own parallel coordinates need WebGL, which not every browser has.
    """
    drawn = sorted(style.thinned(style.with_accuracy(trials), MOST_LINES), key=lambda trial: trial.score)
    axes = [_axis(name, [trial.params.get(name) for trial in drawn]) for name in names]
    axes.append(_of_numbers([style.shown(trial) or 0.0 for trial in drawn], log=False))
    figure = go.Figure()
    for band, colour in enumerate(BANDS):
        members = range(len(drawn) * band // len(BANDS), len(drawn) * (band + 1) // len(BANDS))
        if members:
            # One trace for all of a band, with gaps between its lines.
            figure.add_scatter(
                x=[x for _ in members for x in (*range(len(axes)), None)],
                y=[y for k in members for y in (*(axis.heights[k] for axis in axes), None)],
                customdata=[drawn[k].number for k in members for _ in range(len(axes) + 1)],
                mode="lines",
                line={"color": colour, "width": 1 + band / 3},
                hoverinfo="text",
                hovertext=[style.trial_words(drawn[k]) for k in members for _ in range(len(axes) + 1)],
                showlegend=False,
            )
    ink = {"showarrow": False, "xanchor": "right", "xshift": -3, "font": {"size": 10}}
    for x, axis in enumerate(axes):
        figure.add_vline(x=x, line={"color": style.QUIET, "width": 1})
        for height, text in axis.ticks.items():
            figure.add_annotation(x=x, y=height, text=escape(text), **ink)
    reached = style.axis(drawn)["yaxis_title"].replace(" ", "<br>", 1)  # a long label would be left out
    labels = [*(escape(name.replace("_", " ")) for name in names), reached]
    figure.update_xaxes(tickvals=list(range(len(axes))), ticktext=labels, range=[-0.4, len(axes) - 0.8], showgrid=False)
    figure.update_yaxes(visible=False, range=[-0.2, 1.06])
    return style.finish(figure, height=430)


@dataclass(frozen=True)
class _Axis:
    heights: Sequence[float]  # of each trial, from 0 to 1; below that where it has no value
    ticks: dict[float, str]


def _axis(name: str, values: Sequence[Value | None]) -> _Axis:
    """Numbers by their size, words and few numbers in a row."""
    there = [value for value in values if value is not None]
    row = in_a_row(name, there)
    if row:
        places = {value: k / max(len(row) - 1, 1) for k, value in enumerate(row)}
        axis = _Axis([places[value] for value in there], {places[value]: plain(value, 3) for value in row})
    else:
        numbers = [float(value) for value in there]
        axis = _of_numbers(numbers, log=min(numbers, default=0) > 0 and max(numbers) / min(numbers) > 10**DECADES)
    found, beside = iter(axis.heights), {BELOW: "-"} if len(there) < len(values) else {}
    return _Axis([BELOW if value is None else next(found) for value in values], beside | axis.ticks)


def _of_numbers(numbers: Sequence[float], *, log: bool) -> _Axis:
    low, high = (end(numbers, default=1.0) for end in (min, max))

    def height(number: float) -> float:
        if high == low:
            return 0.5
        return math.log(number / low) / math.log(high / low) if log else (number - low) / (high - low)

    powers = [10.0**power for power in range(-12, 13)] if log else []
    ticks = [low, *(power for power in powers if 1.5 * low < power < high / 1.5), high]
    ticks = ticks if log else [low + k * (high - low) / 4 for k in range(5)]
    return _Axis([height(number) for number in numbers], {height(number): f"{number:.3g}" for number in ticks})


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
    figure = style.bars(names, [round(share, 3) for share in shares], [f"{share:+.2f}" for share in shares], colours)
    return figure.update_xaxes(range=[-1.15, 1.15])
