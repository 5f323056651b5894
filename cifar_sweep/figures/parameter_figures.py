"""Accuracy by each searched parameter."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.config import PARAMETERS, Value
from cifar_sweep.figures.style import BEST, add_trials, best_of, finish, marker, thinned, with_accuracy
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.words import plain

# Of all parameters together: of more points no single one can be seen, and a browser takes seconds to draw them.
MOST_SLICE_POINTS = 6000
FEW_VALUES = 12  # so few values have room for the trials of each beside each other


def slices(trials: Sequence[TrialRecord], names: Sequence[str], *, logarithmic: Collection[str]) -> list[go.Figure]:
    """For each parameter the validation accuracy of the trials by its value."""
    shown = with_accuracy(trials)
    best = best_of([trial for trial in shown if trial.state == "complete"])
    most = MOST_SLICE_POINTS // max(len(names), 1)
    having = {name: [trial for trial in shown if name in trial.params] for name in names}
    return [_slice(trials, name, best, most, log=name in logarithmic) for name, trials in having.items()]


def _slice(trials: Sequence[TrialRecord], name: str, best: TrialRecord | None, most: int, *, log: bool) -> go.Figure:
    axis = Axis.of(name, [trial.params[name] for trial in trials], log=log)
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

    def layout(self) -> dict[str, Any]:
        """Plotly's settings of the axis."""
        if count := len(self.words):
            ticks = {"tickvals": list(range(count)), "ticktext": list(self.words)}
            return ticks | {"range": [-0.6, count - 0.4], "showgrid": False}
        if self.name == "batch_size" and self.log:
            sizes = [2**k for k in range(math.floor(math.log2(self.low)), math.ceil(math.log2(self.high)) + 1)]
            return {"type": "log", "tickvals": sizes, "ticktext": [str(size) for size in sizes]}
        return {"type": "log", "exponentformat": "power", "dtick": 1} if self.log else {}
