"""Figures over the searched parameters: accuracy by each of them, and all of them at once.

As in `report_figures`, points carry their trial's number, and what many trials would make slow is thinned out evenly.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.config import PARAMETERS, Value
from cifar_sweep.figures.figures import PALETTE, QUIET, finish
from cifar_sweep.figures.trial_figures import BEST, in_percent, marker, thinned, with_accuracy
from cifar_sweep.study.record import TrialRow

MOST_PARALLEL = 300
MOST_PARALLEL_BEST = 60
MOST_SLICE_POINTS = 6000
FEW_VALUES = 12


def slices(
    rows: Sequence[TrialRow], names: Sequence[str], *, logarithmic: Collection[str]
) -> list[tuple[str, go.Figure]]:
    """For each parameter, by name, the validation accuracy of the trials by its value."""
    shown = with_accuracy(rows)
    best = max((row for row in shown if row.state == "complete"), key=lambda row: row.accuracy or 0, default=None)
    most = MOST_SLICE_POINTS // max(len(names), 1)
    found = []
    for name in names:
        members = [row for row in shown if name in row.params]
        axis = Axis.of(name, [row.params[name] for row in members], log=name in logarithmic)
        found.append((name, _slice(members, axis, best, most)))
    return found


def _slice(rows: Sequence[TrialRow], axis: "Axis", best: TrialRow | None, most: int) -> go.Figure:
    name = axis.name
    figure = go.Figure()
    for state in ("pruned", "failed", "running", "complete"):
        members = thinned([row for row in rows if row.state == state], most)
        if members:
            figure.add_scatter(
                x=[axis.beside(row.params[name], row.number) for row in members],
                y=[in_percent(row.accuracy) for row in members],
                mode="markers",
                marker=marker(state, 6) | {"opacity": 0.85},
                customdata=[[row.number, _value_text(row.params[name])] for row in members],
                hovertemplate=f"trial %{{customdata[0]}}, {state}: %{{y:.2f}} %<br>{name} %{{customdata[1]}}"
                "<extra></extra>",
            )  # fmt: skip
    if best is not None and name in best.params:
        figure.add_scatter(
            x=[axis.raw(best.params[name])],
            y=[in_percent(best.accuracy)],
            mode="markers",
            marker={"symbol": "circle-open", "size": 14, "color": BEST, "line": {"width": 2.5}},
            hoverinfo="skip",
        )
    figure.update_xaxes(**axis.layout())
    figure.update_yaxes(ticksuffix=" %")
    return finish(figure, "", height=230).update_layout(showlegend=False)


def _value_text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else escape(str(value))


def _log(number: float, base: int) -> float:
    """Rounded, so that the logarithm of a power is whole."""
    return round(math.log(number, base), 9)


@dataclass(frozen=True)
class Axis:
    """Where a parameter's values stand: on a plain or a logarithmic scale, or as words in a row.

    Attributes:
        name: the parameter's.
        words: the values of a parameter without order; empty where it has one.
        few: whether so many trials share a value that they are drawn beside each other.
        log: whether the scale is logarithmic.
        low: the least value.
        high: the greatest.
    """

    name: str
    words: tuple[str, ...] = ()
    few: bool = False
    log: bool = False
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, name: str, values: Sequence[Value], *, log: bool) -> "Axis":
        """The axis of these values; logarithmic where `log` says so and they have logarithms."""
        if PARAMETERS[name].kind in (str, bool) or not all(isinstance(value, (int, float)) for value in values):
            choices = PARAMETERS[name].choices or (False, True)
            found = {_value_text(value) for value in values}
            known = [_value_text(choice) for choice in choices if _value_text(choice) in found]
            return cls(name, words=tuple(known + sorted(found - set(known))))
        numbers = [float(value) for value in values]
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        distinct = len(set(numbers))
        few = distinct <= FEW_VALUES and len(numbers) >= 3 * distinct
        return cls(name, few=few, log=log and low > 0, low=low, high=high)

    def raw(self, value: Value) -> float:
        """The place of a value on an axis with `layout`."""
        return float(self.words.index(_value_text(value)) if self.words else value)

    def beside(self, value: Value, number: int) -> float:
        """As `raw`; where many trials share a value, a little beside it."""
        place = self.raw(value)
        if not (self.words or self.few):
            return place
        jitter = number * 0.618034 % 1 - 0.5  # the golden ratio: neighbours are far apart
        if self.words:
            return round(place + 0.5 * jitter, 3)
        return place * 2 ** (0.4 * jitter) if self.log else place + 0.03 * (self.high - self.low) * jitter

    def share(self, value: Value) -> float:
        """The place of a value between the least (0) and the greatest (1)."""
        if self.words:
            return (self.raw(value) + 0.5) / len(self.words)
        low, high, place = (math.log(x) if self.log else x for x in (self.low, self.high, float(value)))
        return (place - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Places from 0 to 1 with their words."""
        if self.words:
            return [(self.share(word), word) for word in self.words]
        whole = PARAMETERS[self.name].kind is int
        ends = (self.low, self.high) if self.high > self.low else (self.low,)
        ticks = [(self.share(end), f"{end:.0f}" if whole else f"{end:.2g}") for end in ends]
        base = 2 if self.name == "batch_size" else 10
        if self.log and self.high > self.low:
            powers = (
                float(base) ** k for k in range(math.ceil(_log(self.low, base)), math.floor(_log(self.high, base)) + 1)
            )
            inner = [(self.share(power), f"{power:g}") for power in powers]
            ticks += [(share, text) for share, text in inner if 0.07 < share < 0.93]
        return ticks

    def layout(self) -> dict[str, Any]:
        """Plotly's settings of the axis."""
        if self.words:
            places = list(range(len(self.words)))
            edge = [-0.6, len(self.words) - 0.4]
            return {"tickvals": places, "ticktext": list(self.words), "range": edge, "showgrid": False}
        if self.name == "batch_size" and self.log:
            sizes = [2**k for k in range(math.floor(_log(self.low, 2)), math.ceil(_log(self.high, 2)) + 1)]
            return {"type": "log", "tickvals": sizes, "ticktext": [str(size) for size in sizes]}
        if self.log:
            return {"type": "log", "exponentformat": "power", "dtick": 1}
        return {}


def parallel(rows: Sequence[TrialRow], names: Sequence[str], *, logarithmic: Collection[str]) -> go.Figure:
    """A line for each trial through its parameters to its validation accuracy: the best tenth, the others, the best."""
    shown = sorted(with_accuracy(rows), key=lambda row: row.accuracy or 0)
    complete = [row for row in shown if row.state == "complete"]
    top = complete[-max(1, math.ceil(len(complete) / 10)) :]
    numbers = {row.number for row in top}
    others = [row for row in shown if row.number not in numbers]
    axes = {
        name: Axis.of(name, [row.params[name] for row in shown if name in row.params], log=name in logarithmic)
        for name in names
    }
    accuracies = [row.accuracy or 0 for row in shown]
    figure = go.Figure()
    groups: list[tuple[str, Sequence[TrialRow], dict[str, Any], float]] = [
        (
            "others",
            thinned(others, MOST_PARALLEL - min(len(top), MOST_PARALLEL_BEST)),
            {"color": QUIET, "width": 1},
            0.35,
        ),
        ("best tenth", thinned(top[:-1], MOST_PARALLEL_BEST), {"color": PALETTE[0], "width": 1.8}, 0.8),
        ("best", top[-1:], {"color": BEST, "width": 3.5}, 1.0),
    ]
    for name, members, line, opacity in groups:
        if members:
            figure.add_scatter(
                **_polylines(members, axes, low=min(accuracies), high=max(accuracies)),
                mode="lines",
                name=name,
                line=line,
                opacity=opacity,
                hovertemplate="trial %{customdata}<extra></extra>",
            )
    _draw_axes(figure, axes, low=min(accuracies, default=0), high=max(accuracies, default=1))
    return finish(figure, "", height=420).update_layout(margin={"l": 30, "r": 30, "t": 40, "b": 10})


def _polylines(
    rows: Iterable[TrialRow], axes: Mapping[str, Axis], *, low: float, high: float
) -> dict[str, list[float | None]]:
    """One line for each trial, apart by gaps. A parameter that a trial does not have is passed over."""
    x: list[float | None] = []
    y: list[float | None] = []
    numbers: list[float | None] = []
    for row in rows:
        points = [
            (k, axis.share(row.params[name])) for k, (name, axis) in enumerate(axes.items()) if name in row.params
        ]
        points.append((len(axes), ((row.accuracy or 0) - low) / (high - low) if high > low else 0.5))
        x += [*(place for place, _ in points), None]
        y += [*(round(share, 4) for _, share in points), None]
        numbers += [row.number] * len(points) + [None]
    return {"x": x, "y": y, "customdata": numbers}


def _draw_axes(figure: go.Figure, axes: Mapping[str, Axis], *, low: float, high: float) -> None:
    ends = [(0.0, f"{100 * low:.1f} %"), (1.0, f"{100 * high:.1f} %")] if high > low else [(0.5, f"{100 * high:.1f} %")]
    columns = [*((name, axis.ticks()) for name, axis in axes.items()), ("accuracy", ends)]
    for place, (name, ticks) in enumerate(columns):
        figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line={"color": QUIET, "width": 1.5})
        words = escape(name.replace("_", " "))
        figure.add_annotation(x=place, y=1, yshift=26, text=f"<b>{words}</b>", showarrow=False)
        for share, text in ticks:
            shift = {"yshift": 10 if share > 0.5 else -10} if share in (0.0, 1.0) else {"xshift": 5, "xanchor": "left"}
            figure.add_annotation(x=place, y=share, text=escape(text), showarrow=False, font={"size": 11}, **shift)
    figure.update_xaxes(visible=False, range=[-0.45, len(columns) - 0.55], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.08, 1.1], fixedrange=True)
