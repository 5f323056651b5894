"""Figures over the searched parameters: accuracy by each of them, and all of them at once.

What many trials would make slow is thinned out evenly.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.config import PARAMETERS, Value
from cifar_sweep.figures.style import BEST, MEASURED, QUIET, add_trials, best_of, finish, marker, thinned, with_accuracy
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.words import plain

# Of more lines or points no single one can be seen, and a browser takes seconds to draw them.
MOST_PARALLEL = 300
MOST_PARALLEL_BEST = 60
MOST_SLICE_POINTS = 6000  # of all parameters together
FEW_VALUES = 12  # so few values have room for the trials of each beside each other


def slices(trials: Sequence[TrialRecord], names: Sequence[str], *, logarithmic: Collection[str]) -> list[go.Figure]:
    """For each parameter the validation accuracy of the trials by its value."""
    shown = with_accuracy(trials)
    best = best_of([trial for trial in shown if trial.state == "complete"])
    most = MOST_SLICE_POINTS // max(len(names), 1)
    axes = _axes(shown, names, logarithmic).values()
    return [_slice([trial for trial in shown if axis.name in trial.params], axis, best, most) for axis in axes]


def _axes(trials: Sequence[TrialRecord], names: Sequence[str], logarithmic: Collection[str]) -> dict[str, "Axis"]:
    """Each parameter's axis, by name."""
    values = {name: [trial.params[name] for trial in trials if name in trial.params] for name in names}
    return {name: Axis.of(name, values[name], log=name in logarithmic) for name in names}


def _slice(trials: Sequence[TrialRecord], axis: "Axis", best: TrialRecord | None, most: int) -> go.Figure:
    name = axis.name
    figure = go.Figure()
    for state in ("pruned", "failed", "running", "waiting", "complete"):
        members = thinned([trial for trial in trials if trial.state == state], most)
        add_trials(
            figure,
            members,
            lambda trial: axis.beside(trial.params[name], trial.number),
            marker=marker(state, size=6) | {"opacity": 0.85},
            text=[_value_text(trial.params[name]) for trial in members],
            hovertemplate=f"trial %{{customdata}}, {state}: %{{y:.2f}} %<br>{name} %{{text}}<extra></extra>",
        )
    ring = {"symbol": "circle-open", "size": 14, "color": BEST, "line": {"width": 2.5}}
    at_best = [best] if best is not None and name in best.params else []
    add_trials(
        figure, at_best, lambda trial: axis.raw(trial.params[name]), marker=ring, hovertemplate=None, hoverinfo="skip"
    )
    figure.update_xaxes(**axis.layout()).update_yaxes(ticksuffix=" %")
    return finish(figure, height=230, showlegend=False)


def _value_text(value: Value) -> str:
    return escape(plain(value, 3))


@dataclass(frozen=True)
class Axis:
    """Where a parameter's values stand: on a plain or a logarithmic scale, or as words in a row."""

    name: str
    words: tuple[str, ...] = ()  # the values of a parameter without order; empty where it has one
    few: bool = False  # whether so many trials share a value that they are drawn beside each other
    log: bool = False  # whether the scale is logarithmic
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, name: str, values: Sequence[Value], *, log: bool) -> "Axis":
        """The axis of these values; logarithmic where `log` says so and they have logarithms."""
        if PARAMETERS[name].kind in (str, bool) or not all(isinstance(value, (int, float)) for value in values):
            found = {_value_text(value) for value in values}
            known = [_value_text(choice) for choice in PARAMETERS[name].choices or (False, True)]
            return cls(name, words=(*(word for word in known if word in found), *sorted(found - set(known))))
        numbers = [float(value) for value in values]
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        distinct = len(set(numbers))
        few = distinct <= FEW_VALUES and len(numbers) >= 3 * distinct
        return cls(name, few=few, log=log and low > 0, low=low, high=high)

    def raw(self, value: Value) -> float:
        """The place of a value on an axis with `layout`."""
        return float(self.words.index(_value_text(value)) if self.words else value)

    def beside(self, value: Value, number: int) -> float:
        """As `raw`; where many trials share a value, a little beside it, by the trial's number."""
        place = self.raw(value)
        jitter = number * 0.618034 % 1 - 0.5  # the golden ratio: neighbours are far apart
        if self.words:
            return round(place + 0.5 * jitter, 3)
        if not self.few:
            return place
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
        form = ".0f" if PARAMETERS[self.name].kind is int else ".2g"
        ticks = [(self.share(end), f"{end:{form}}") for end in dict.fromkeys((self.low, self.high))]
        if self.log:
            base = 2 if self.name == "batch_size" else 10
            first, last = (round(math.log(end, base), 9) for end in (self.low, self.high))  # whole where it is a power
            powers = [float(base) ** k for k in range(math.ceil(first), math.floor(last) + 1)]
            ticks += [(self.share(power), f"{power:g}") for power in powers if 0.07 < self.share(power) < 0.93]
        return ticks if self.high > self.low else ticks[:1]

    def layout(self) -> dict[str, Any]:
        """Plotly's settings of the axis."""
        if count := len(self.words):
            ticks = {"tickvals": list(range(count)), "ticktext": list(self.words)}
            return ticks | {"range": [-0.6, count - 0.4], "showgrid": False}
        if self.name == "batch_size" and self.log:
            sizes = [2**k for k in range(math.floor(math.log2(self.low)), math.ceil(math.log2(self.high)) + 1)]
            return {"type": "log", "tickvals": sizes, "ticktext": [str(size) for size in sizes]}
        return {"type": "log", "exponentformat": "power", "dtick": 1} if self.log else {}


def parallel(trials: Sequence[TrialRecord], names: Sequence[str], *, logarithmic: Collection[str]) -> go.Figure:
    """A line for each trial through its parameters to its validation accuracy: the best tenth, the others, the best."""
    shown = sorted(with_accuracy(trials), key=lambda trial: trial.accuracy or 0)
    complete = [trial for trial in shown if trial.state == "complete"]
    top = complete[-max(1, math.ceil(len(complete) / 10)) :]
    numbers = {trial.number for trial in top}
    others = [trial for trial in shown if trial.number not in numbers]
    axes = _axes(shown, names, logarithmic)
    ends = (shown[0].accuracy or 0, shown[-1].accuracy or 0) if shown else (0.0, 1.0)
    room = MOST_PARALLEL - min(len(top), MOST_PARALLEL_BEST)
    figure = go.Figure()
    for name, members, line, opacity in (
        ("others", thinned(others, room), {"color": QUIET, "width": 1}, 0.35),
        ("best tenth", thinned(top[:-1], MOST_PARALLEL_BEST), {"color": MEASURED, "width": 1.8}, 0.8),
        ("best", top[-1:], {"color": BEST, "width": 3.5}, 1.0),
    ):
        if members:
            hover = "trial %{customdata}<extra></extra>"
            lines = _polylines(members, axes, ends)
            figure.add_scatter(**lines, mode="lines", name=name, line=line, opacity=opacity, hovertemplate=hover)
    _draw_axes(figure, axes, ends)
    return finish(figure, height=420, margin={"l": 30, "r": 30, "t": 40, "b": 10})


def _polylines(
    trials: Iterable[TrialRecord], axes: Mapping[str, Axis], ends: tuple[float, float]
) -> dict[str, list[float | None]]:
    """One line for each trial, with gaps between them. A parameter that a trial does not have is passed over."""
    low, high = ends
    points: list[tuple[float | None, float | None, float | None]] = []
    for trial in trials:
        own = [(k, axis) for k, axis in enumerate(axes.values()) if axis.name in trial.params]
        points += [(k, round(axis.share(trial.params[axis.name]), 4), trial.number) for k, axis in own]
        share = ((trial.accuracy or 0) - low) / (high - low) if high > low else 0.5
        points += [(len(axes), round(share, 4), trial.number), (None, None, None)]
    x, y, numbers = map(list, zip(*points, strict=True))
    return {"x": x, "y": y, "customdata": numbers}


def _draw_axes(figure: go.Figure, axes: Mapping[str, Axis], ends: tuple[float, float]) -> None:
    low, high = (f"{100 * end:.1f} %" for end in ends)
    accuracies = [(0.0, low), (1.0, high)] if ends[1] > ends[0] else [(0.5, high)]
    columns = [*((name, axis.ticks()) for name, axis in axes.items()), ("accuracy", accuracies)]
    for place, (name, ticks) in enumerate(columns):
        figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line={"color": QUIET, "width": 1.5})
        words = escape(name.replace("_", " "))
        figure.add_annotation(x=place, y=1, yshift=26, text=f"<b>{words}</b>", showarrow=False)
        for share, text in ticks:
            shift = {"yshift": 10 if share > 0.5 else -10} if share in (0.0, 1.0) else {"xshift": 5, "xanchor": "left"}
            figure.add_annotation(x=place, y=share, text=escape(text), showarrow=False, font={"size": 11}, **shift)
    figure.update_xaxes(visible=False, range=[-0.45, len(columns) - 0.55], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.08, 1.1], fixedrange=True)
