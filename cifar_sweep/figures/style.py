"""The look that all figures share: colours, markers, axes, and the words beside the pointer.

Colours are Paul Tol's "vibrant" ones, which colour-blind readers can tell apart, on light and on dark ground.
Points carry their trial's number as ``customdata``: a report leads from a point to its row in the table.
Users' own texts (a label, a study's name) are escaped: plotly reads some HTML in its texts.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, TypeVar

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.curve import METRICS, Metric
from cifar_sweep.study.record import TrialRecord

PALETTE = ("#0077BB", "#EE7733", "#009988", "#EE3377", "#33BBEE", "#CC3311", "#888888", "#AA4499")
MEASURED, BEST, CLAIM, QUIET = PALETTE[0], PALETTE[1], PALETTE[1], PALETTE[6]
STATE_COLOURS = {
    "complete": MEASURED, "pruned": PALETTE[4], "failed": PALETTE[5], "running": PALETTE[2], "waiting": QUIET,
    "outside": QUIET, "impossible": QUIET,
}  # fmt: skip
STATE_SYMBOLS = {"complete": "circle", "pruned": "x-thin", "failed": "cross-thin"}
TITLE_COLUMNS = 46  # characters of a title that a phone shows on one line
# An axis that several figures have; `finish` takes it.
LEARNING_RATE = {"xaxis_title": "learning rate", "xaxis_type": "log", "xaxis_exponentformat": "power"}

T = TypeVar("T")


def bars(
    names: Sequence[str], lengths: Sequence[float], texts: Sequence[str], colours: str | Sequence[str] = MEASURED
) -> go.Figure:
    """A bar for each name, the last one on top, with its text at its end."""
    figure = go.Figure()
    figure.add_bar(
        x=lengths, y=[escape(name) for name in names], orientation="h", text=texts, textposition="outside",
        cliponaxis=False, marker_color=colours, hoverinfo="skip",
    )  # fmt: skip
    return finish(figure, height=110 + 32 * len(names), bargap=0.45)


def finish(figure: go.Figure, title: str = "", *, height: int, **layout: Any) -> go.Figure:
    """Give a figure the common look. Grounds are clear and inks neutral, so that it fits a light and a dark page."""
    lines = textwrap.wrap(title, TITLE_COLUMNS)
    axis = {"gridcolor": "rgba(128,128,128,0.3)", "zeroline": False, "linecolor": QUIET, "automargin": True}
    figure.update_xaxes(**axis).update_yaxes(**axis)
    common = {
        # The title hangs from the top: otherwise many lines of it cover the drawing.
        "title": {
            "text": "<br>".join(map(escape, lines)), "font": {"size": 13}, "x": 0, "xref": "container",
            "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 12},
        },
        "height": height + 18 * len(lines),
        "margin": {"l": 10, "r": 10, "t": 24 + 18 * len(lines), "b": 10},
        "legend": {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "xanchor": "left", "x": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "color": "#777777"},
        "template": "none",
    }  # fmt: skip
    return figure.update_layout(**common | layout)


def hover_text(words: Iterable[str]) -> str:
    """Escaped text on several lines, for a box beside the pointer."""
    wrapped = (textwrap.wrap(text, 60) if len(text) > 60 else [text] for text in words if text)  # wrapping is slow
    return "<br>".join(escape(line) for lines in wrapped for line in lines)


def trial_name(trial: TrialRecord) -> str:
    """A trial's number, its label, and in what it was shortened."""
    label = f", {trial.label}" if trial.label else ""
    return f"trial {trial.number}{label}" + (f" (shortened: {trial.shortened})" if trial.shortened else "")


def trial_words(trial: TrialRecord) -> str:
    """What a box beside the pointer says of a trial that has finished an epoch."""
    last = "" if trial.state == "complete" else ", its last value"
    settings = trial.settings
    return hover_text([
        f"{trial_name(trial)}, {trial.state_words}: {settings['model']}",
        f"{trial.metric.words} {with_unit(trial)}{last}",
        f"learning rate {settings['learning_rate']:.3g}, batch size {settings['batch_size']}",
        f"after {trial.epochs_done} of {trial.epochs} epochs",
    ])  # fmt: skip


def in_percent(accuracy: float | None) -> float | None:
    """A fraction in percent, with as many digits as anybody sees."""
    return None if accuracy is None else round(100 * accuracy, 3)


def metric_of(trials: Iterable[TrialRecord]) -> Metric:
    """What these trials are chosen by."""
    return next((trial.metric for trial in trials if trial.config), METRICS["accuracy"])


def shown(trial: TrialRecord) -> float | None:
    """How good a trial is, as figures show it: in percent, or a loss in nats."""
    return in_unit(trial.reached, trial.metric)


def in_unit(value: float | None, metric: Metric) -> float | None:
    """A value in percent, or a loss in nats, with as many digits as anybody sees; None where it is not finite."""
    if not metric.lowest:
        return in_percent(value)
    return None if value is None or not math.isfinite(value) else round(value, 5)


def with_unit(trial: TrialRecord) -> str:
    """How good a trial is, in words."""
    return trial.metric.number(trial.reached or 0.0) + trial.metric.unit


def axis(trials: Iterable[TrialRecord]) -> dict[str, str]:
    """The axis of what these trials are chosen by; `finish` takes it."""
    metric = metric_of(trials)
    return {"yaxis_title": f"{metric.words}, {'nats' if metric.lowest else '%'}"}


def hover(trials: Iterable[TrialRecord], more: str = "", *, name: str = "trial %{customdata}") -> str:
    """What stands beside the pointer at a point of these trials."""
    lowest = metric_of(trials).lowest
    return f"{name}: %{{y:{'.4f' if lowest else '.2f'}}}{'' if lowest else ' %'}{more}<extra></extra>"


def with_accuracy(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials that a figure of how good they are can show."""
    return [trial for trial in trials if trial.settings and trial.reached is not None]


def best_of(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """The best trial, a complete one before any other, of equals the earlier one."""
    return max(trials, key=lambda trial: (trial.state == "complete", trial.score, -trial.number), default=None)


def marker(state: str, *, size: int, colour: str = "") -> dict[str, Any]:
    """The marker of a trial by how it ended; `colour` in place of the state's own."""
    colour, symbol = colour or STATE_COLOURS[state], STATE_SYMBOLS.get(state, "triangle-right-open")
    line = {"width": 0 if symbol == "circle" else 1.5, "color": colour}
    return {"color": colour, "symbol": symbol, "size": size, "line": line}


def add_trials(
    figure: go.Figure, trials: Sequence[TrialRecord], x: Callable[[TrialRecord], Any], **settings: Any
) -> None:
    """Draw how good each trial is over `x`; `settings` are those of plotly's scatter."""
    if trials:
        points = {
            "x": [x(trial) for trial in trials],
            "y": [shown(trial) for trial in trials],
            "customdata": [trial.number for trial in trials],
            "mode": "markers",
            "hovertemplate": hover(trials),
        }
        figure.add_scatter(**points | settings)


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly from the first to the last."""
    if len(items) <= most:
        return list(items)
    step = (len(items) - 1) / max(most - 1, 1)
    return [items[round(place * step)] for place in range(most)]


def time_unit(longest: float) -> tuple[str, int]:
    """The unit for times up to so many seconds, and its length in seconds."""
    return ("h", 3600) if longest >= 5400 else ("min", 60) if longest >= 90 else ("s", 1)
