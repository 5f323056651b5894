"""Figures of learning curves: a few trials in detail, and a study's trials together."""

import math
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from cifar_sweep.figures import style
from cifar_sweep.study.record import TrialRecord

MOST_CURVES = 50  # more lines hide each other, and make the page slow
HIGHLIGHTED = (style.BEST, *(style.PALETTE[k] for k in (0, 2, 3, 7)))  # the colours of the best trials, in their order
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up")


def learning_curves(trials: Sequence[TrialRecord], *, data: str) -> go.Figure:
    """Loss and accuracy by epoch, a colour per trial: training dashed, validation solid. `data` names the images."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    drawn = [trial for trial in trials if trial.curve]
    for place, trial in enumerate(drawn):
        for part in ("train", "validation"):
            figure.add_trace(_line(trial, part, "loss", place=place), row=1, col=1)
            figure.add_trace(_line(trial, part, "accuracy", place=place), row=2, col=1)
    axes = {"yaxis_title": "loss, nats", "yaxis2_title": "accuracy, %", "xaxis2_title": "epoch"}
    title = f"{data}: training images dashed, validation images solid"
    return style.finish(figure, title, height=560 + 12 * len(drawn), **axes)


def _line(trial: TrialRecord, part: str, quantity: str, *, place: int) -> go.Scatter:
    factor, unit = (100, "%") if quantity == "accuracy" else (1, "nats")
    values = [factor * getattr(result, f"{part}_{quantity}") for result in trial.curve]
    return go.Scatter(
        x=[result.epoch for result in trial.curve],
        # Where a training diverged there is a gap: JSON has no word for what is not a number.
        y=[value if math.isfinite(value) else None for value in values],
        mode="lines+markers",  # one epoch alone is no line
        name=escape(style.trial_name(trial)),
        legendgroup=str(trial.number),
        showlegend=(part, quantity) == ("validation", "accuracy"),
        line={"color": style.PALETTE[place % len(style.PALETTE)], "dash": "dash" if part == "train" else "solid"},
        marker={"symbol": SYMBOLS[place // len(style.PALETTE) % len(SYMBOLS)], "size": 5},
        hovertemplate=f"%{{fullData.name}}, epoch %{{x}}: {part} {quantity} %{{y:.4g}} {unit}<extra></extra>",
    )


def curves(trials: Sequence[TrialRecord], *, epochs_searched: bool) -> go.Figure:
    """What trials are chosen by, by epoch: the best trials in colours, others and pruned ones behind them.

    By share of the schedule where epochs are searched. At most `MOST_CURVES` lines.
    """
    drawn = [trial for trial in trials if trial.curve]
    complete = sorted((trial for trial in drawn if trial.state == "complete"), key=lambda trial: -trial.score)
    pruned = [trial for trial in drawn if trial.state == "pruned"]
    best, others = complete[: len(HIGHLIGHTED)], complete[len(HIGHLIGHTED) :]
    room = MOST_CURVES - len(best)
    behind = {
        "pruned": style.thinned(pruned, max(room - len(others), room // 2)),
        "complete": style.thinned(others, max(room - len(pruned), room // 2)),
    }
    figure = go.Figure()
    for state, members in behind.items():
        line = {"color": style.STATE_COLOURS[state], "width": 1}
        name = "pruned" if state == "pruned" else "other complete"
        _add_lines(figure, members, epochs_searched, name=name, line=line, opacity=0.7, marker={"size": 3})
    for place, trial in reversed(list(enumerate(best))):  # the best one last, so that its line lies above the others
        line = {"color": HIGHLIGHTED[place], "width": 2.5}
        name = f"trial {trial.number}"
        _add_lines(figure, [trial], epochs_searched, name=name, line=line, marker={"size": 4}, legendrank=900 + place)
    figure.update_xaxes(title="share of the schedule, %" if epochs_searched else "epoch", rangemode="tozero")
    return style.finish(figure, height=440, **style.axis(drawn))


def _add_lines(figure: go.Figure, trials: Sequence[TrialRecord], epochs_searched: bool, **settings: object) -> None:
    """The curves as one trace, with gaps between them. Markers: a curve of one epoch is no line."""
    x: list[float | None] = []
    y: list[float | None] = []
    numbers: list[int | None] = []
    metric = style.metric_of(trials)
    for trial in trials:
        factor = 100 / (trial.epochs or 1) if epochs_searched else 1
        x += [*(round(factor * result.epoch, 1) for result in trial.curve), None]
        y += [*(style.in_unit(getattr(result, metric.field), metric) for result in trial.curve), None]
        numbers += [trial.number] * len(trial.curve) + [None]
    if x:
        look = {"mode": "lines+markers", "hovertemplate": style.hover(trials)} | settings
        figure.add_scatter(x=x, y=y, customdata=numbers, **look)
