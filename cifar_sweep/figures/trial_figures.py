"""The figures of a report, beyond those of `figures` and `search_figures`.

Points carry their trial's number as ``customdata``: the page leads from a point to its row in the table. What many
trials would make slow is thinned out evenly, and the caption says so.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from cifar_sweep.figures.figures import PALETTE, finish
from cifar_sweep.figures.importance import Importances
from cifar_sweep.figures.search_figures import STATE_COLOURS
from cifar_sweep.study.record import STATE_NAMES, TrialRow
from cifar_sweep.sweep.strategy import STEPS_OF_A_SCHEDULE

COLOURS = {STATE_NAMES[state]: colour for state, colour in STATE_COLOURS.items()}
SYMBOLS = {"complete": "circle", "pruned": "x-thin", "failed": "cross-thin", "running": "triangle-right-open"}
BEST = PALETTE[1]
MOST_CURVES = 50
HIGHLIGHTED_CURVES = 5


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of `rows`, evenly from the first to the last."""
    if len(rows) <= most:
        return list(rows)
    step = (len(rows) - 1) / max(most - 1, 1)
    return [rows[round(place * step)] for place in range(most)]


def in_percent(accuracy: float | None) -> float | None:
    return None if accuracy is None else round(100 * accuracy, 3)


def with_accuracy(rows: Iterable[TrialRow]) -> list[TrialRow]:
    return [row for row in rows if row.accuracy is not None]


def marker(state: str, size: int = 8) -> dict[str, Any]:
    thin = SYMBOLS.get(state, "circle").endswith("-thin")
    return {
        "color": COLOURS[state],
        "symbol": SYMBOLS.get(state, "circle"),
        "size": size,
        "line": {"width": 1.5 if thin else 0, "color": COLOURS[state]},
    }


def history(rows: Sequence[TrialRow]) -> go.Figure:
    """Validation accuracy by trial, and the best so far among the complete ones, as a step line."""
    figure = go.Figure()
    shown = with_accuracy(rows)
    for state in SYMBOLS:
        members = [row for row in shown if row.state == state]
        if members:
            figure.add_scatter(
                x=[row.number for row in members],
                y=[in_percent(row.accuracy) for row in members],
                mode="markers",
                name=state if state == "complete" else f"{state}, last value",
                marker=marker(state, 7),
                customdata=[row.number for row in members],
                hovertemplate="trial %{customdata}: %{y:.2f} %<extra></extra>",
            )
    complete = [row for row in shown if row.state == "complete"]
    if complete:
        best = list(accumulate((row.accuracy or 0 for row in complete), max))
        figure.add_scatter(
            x=[*(row.number for row in complete), shown[-1].number],
            y=[in_percent(value) for value in (*best, best[-1])],
            mode="lines",
            name="best so far",
            line={"shape": "hv", "color": BEST, "width": 2.5},
            hoverinfo="skip",
        )
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title="validation accuracy, %")
    return finish(figure, "", height=380)


def pruned_when(trials: Sequence[FrozenTrial], *, epochs_searched: bool) -> go.Figure:
    """How many trials were stopped after which epoch; after which tenth of their schedule where epochs are searched."""
    stopped: dict[str, Counter[int]] = {"pruned": Counter(), "diverged": Counter()}
    for trial in trials:
        if STATE_NAMES[trial.state] == "pruned" and "config" in trial.user_attrs:
            diverged = str(trial.user_attrs.get("reason", "")).startswith("diverged")
            stopped["diverged" if diverged else "pruned"][_stopped_at(trial, epochs_searched)] += 1
    figure = go.Figure()
    for name, colour in (("pruned", COLOURS["pruned"]), ("diverged", COLOURS["failed"])):
        if counts := stopped[name]:
            places = sorted(counts)
            figure.add_bar(
                x=places,
                y=[counts[place] for place in places],
                name=name,
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate=f"%{{y}} {name} after %{{x}}{' %' if epochs_searched else ''}<extra></extra>",
            )
    figure.update_layout(barmode="stack", bargap=0.15)
    longest = max(
        (int(trial.user_attrs["config"]["epochs"]) for trial in trials if "config" in trial.user_attrs), default=1
    )
    whole, step = (100, 100 // STEPS_OF_A_SCHEDULE) if epochs_searched else (longest, 1)
    figure.update_traces(width=0.85 * step)
    title = "share of their schedule, %" if epochs_searched else "epochs trained"
    figure.update_xaxes(title=title, range=[-0.6 * step, whole + 0.6 * step])  # to the end: how early they were stopped
    most = max((stopped["pruned"] + stopped["diverged"]).values(), default=0)
    figure.update_yaxes(title="trials stopped", rangemode="tozero", dtick=1 if most < 8 else None)
    return finish(figure, "", height=340)


def _stopped_at(trial: FrozenTrial, epochs_searched: bool) -> int:
    done = len(trial.user_attrs.get("curve", []))
    if not epochs_searched:
        return done
    share = STEPS_OF_A_SCHEDULE * done / int(trial.user_attrs["config"]["epochs"])
    return 100 // STEPS_OF_A_SCHEDULE * math.floor(share)


def importance(found: Importances) -> go.Figure:
    """A bar for each parameter."""
    names = [escape(name) for name, _ in found.shares][::-1]
    shares = [share for _, share in found.shares][::-1]
    figure = go.Figure()
    figure.add_bar(
        x=[round(share, 4) for share in shares],
        y=names,
        orientation="h",
        text=[f"{share:.0%}" for share in shares],
        textposition="outside",
        cliponaxis=False,
        marker={"color": PALETTE[0], "line": {"width": 0}},
        hoverinfo="skip",
    )
    figure.update_layout(bargap=0.45)
    figure.update_xaxes(tickformat=".0%", rangemode="tozero", range=[0, 1.15 * max(shares, default=1)])
    return finish(figure, "", height=110 + 32 * len(names))


def curves(trials: Sequence[FrozenTrial], *, epochs_searched: bool) -> go.Figure:
    """Validation accuracy by epoch: the best trials, each in its colour, and others and pruned ones behind them.

    By share of the schedule where epochs are searched. At most `MOST_CURVES` lines.
    """
    drawn = [trial for trial in trials if trial.user_attrs.get("curve")]
    ended = {name: [trial for trial in drawn if STATE_NAMES[trial.state] == name] for name in ("complete", "pruned")}
    complete = sorted(ended["complete"], key=lambda trial: -(trial.value or 0))
    best, others = complete[:HIGHLIGHTED_CURVES], complete[HIGHLIGHTED_CURVES:]
    room = MOST_CURVES - len(best)
    behind = [
        ("pruned", thinned(ended["pruned"], max(room - len(others), room // 2))),
        ("complete", thinned(others, max(room - len(ended["pruned"]), room // 2))),
    ]
    figure = go.Figure()
    for name, members in behind:
        if members:
            words = name if name == "pruned" else "other complete"
            lines = _curve_lines(members, epochs_searched)
            # A trial that was stopped after its first epoch is a point.
            figure.add_scatter(
                **lines, mode="lines+markers", name=words, line={"color": COLOURS[name], "width": 1}, opacity=0.7,
                marker={"size": 3}, hovertemplate="trial %{customdata}: %{y:.2f} %<extra></extra>",
            )  # fmt: skip
    for place, trial in reversed(list(enumerate(best))):  # the best one last: it lies on the others
        colour = (BEST, PALETTE[0], PALETTE[2], PALETTE[3], PALETTE[7])[place]
        figure.add_scatter(
            **_curve_lines([trial], epochs_searched),
            mode="lines+markers",
            name=f"trial {trial.number}",
            legendrank=900 + place,
            line={"color": colour, "width": 2.5},
            marker={"size": 4},
            hovertemplate="trial %{customdata}: %{y:.2f} %<extra></extra>",
        )
    figure.update_xaxes(title="share of the schedule, %" if epochs_searched else "epoch", rangemode="tozero")
    figure.update_yaxes(title="validation accuracy, %")
    return finish(figure, "", height=440)


def _curve_lines(trials: Iterable[FrozenTrial], epochs_searched: bool) -> dict[str, list[float | None]]:
    x: list[float | None] = []
    y: list[float | None] = []
    numbers: list[float | None] = []
    for trial in trials:
        curve = trial.user_attrs["curve"]
        factor = 100 / int(trial.user_attrs["config"]["epochs"]) if epochs_searched else 1
        x += [*(round(factor * point["epoch"], 1) for point in curve), None]
        y += [*(in_percent(point["validation_accuracy"]) for point in curve), None]
        numbers += [trial.number] * len(curve) + [None]
    return {"x": x, "y": y, "customdata": numbers}


def front(rows: Sequence[TrialRow], *, size: bool) -> go.Figure:
    """Validation accuracy of the complete trials by training time, or by `size` of their weights, with the best ones:
    those that no other trial beats in both.
    """
    cost = {row.number: _cost(row, size) for row in rows if row.state == "complete"}
    shown = sorted((row for row in rows if cost.get(row.number)), key=lambda row: (cost[row.number], -(row.value or 0)))
    best = pareto([(cost[row.number], row.value or 0) for row in shown])
    figure = go.Figure()
    unit = "MB" if size else "s"
    for name, members in (("complete", shown), ("front", [shown[place] for place in best])):
        figure.add_scatter(
            x=[round(cost[row.number], 4) for row in members],
            y=[in_percent(row.value) for row in members],
            mode="lines+markers" if name == "front" else "markers",
            name="none is better for less" if name == "front" else "complete trials",
            line={"shape": "hv", "color": BEST, "width": 2},
            marker={"size": 9 if name == "front" else 6, "color": BEST if name == "front" else COLOURS["complete"]},
            customdata=[row.number for row in members],
            hovertemplate=f"trial %{{customdata}}: %{{y:.2f}} %, %{{x:.4g}} {unit}<extra></extra>",
        )
    costs = [cost[row.number] for row in shown]
    log = bool(costs) and costs[-1] / costs[0] >= 10
    figure.update_xaxes(
        title="weights, MB" if size else "training time, s", **({"type": "log", "dtick": "D2"} if log else {})
    )
    figure.update_yaxes(title="validation accuracy, %")
    return finish(figure, "", height=360)


def _cost(row: TrialRow, size: bool) -> float:
    return (row.weights_bytes or 0) / 1e6 if size else row.seconds


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points, sorted by cost, that are better than every cheaper one."""
    best = -math.inf
    places = []
    for place, (_, value) in enumerate(points):
        if value > best:
            best = value
            places.append(place)
    return places
