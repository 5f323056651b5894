"""The figures of a report, beyond those of `figures` and `search_figures`.

Points carry their trial's number as ``customdata``: the page leads from a point to its row in the table. What many
trials would make slow is thinned out evenly, and the caption says so.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from cifar_sweep.config import PARAMETERS, Value
from cifar_sweep.results.figures import PALETTE, QUIET, finish
from cifar_sweep.results.report import Importances, TrialRow
from cifar_sweep.results.search_figures import STATE_COLOURS
from cifar_sweep.search.strategy import STEPS_OF_A_SCHEDULE
from cifar_sweep.search.study import STATE_NAMES

COLOURS = {STATE_NAMES[state]: colour for state, colour in STATE_COLOURS.items()}
SYMBOLS = {"complete": "circle", "pruned": "x-thin", "failed": "cross-thin", "running": "triangle-right-open"}
BEST = PALETTE[1]
MOST_CURVES = 50
HIGHLIGHTED_CURVES = 5
MOST_PARALLEL = 300
MOST_SLICE_POINTS = 6000
FEW_VALUES = 12
LANE_PIXELS = (6, 22)  # the height of a line of the timeline: at least, at most
MOST_LANES_PIXELS = 520


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of `rows`, evenly from the first to the last."""
    if len(rows) <= most:
        return list(rows)
    step = (len(rows) - 1) / max(most - 1, 1)
    return [rows[round(place * step)] for place in range(most)]


def _percent(accuracy: float | None) -> float | None:
    return None if accuracy is None else round(100 * accuracy, 3)


def _with_accuracy(rows: Iterable[TrialRow]) -> list[TrialRow]:
    return [row for row in rows if row.accuracy is not None]


def _marker(state: str, size: int = 8) -> dict[str, Any]:
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
    shown = _with_accuracy(rows)
    for state in SYMBOLS:
        members = [row for row in shown if row.state == state]
        if members:
            figure.add_scatter(
                x=[row.number for row in members],
                y=[_percent(row.accuracy) for row in members],
                mode="markers",
                name=state if state == "complete" else f"{state}, last value",
                marker=_marker(state, 7),
                customdata=[row.number for row in members],
                hovertemplate="trial %{customdata}: %{y:.2f} %<extra></extra>",
            )
    complete = [row for row in shown if row.state == "complete"]
    if complete:
        best = list(accumulate((row.accuracy or 0 for row in complete), max))
        figure.add_scatter(
            x=[*(row.number for row in complete), shown[-1].number],
            y=[_percent(value) for value in (*best, best[-1])],
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
    figure.update_yaxes(title="trials stopped", rangemode="tozero")
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


def slices(
    rows: Sequence[TrialRow], names: Sequence[str], *, logarithmic: Collection[str]
) -> list[tuple[str, go.Figure]]:
    """For each parameter, by name, the validation accuracy of the trials by its value."""
    shown = _with_accuracy(rows)
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
                y=[_percent(row.accuracy) for row in members],
                mode="markers",
                marker=_marker(state, 6) | {"opacity": 0.85},
                customdata=[[row.number, _value_text(row.params[name])] for row in members],
                hovertemplate=f"trial %{{customdata[0]}}, {state}: %{{y:.2f}} %<br>{name} %{{customdata[1]}}"
                "<extra></extra>",
            )  # fmt: skip
    if best is not None and name in best.params:
        figure.add_scatter(
            x=[axis.raw(best.params[name])],
            y=[_percent(best.accuracy)],
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
        few: whether there are so few values that trials of one stand beside each other.
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
        few = len(set(numbers)) <= FEW_VALUES
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
    shown = sorted(_with_accuracy(rows), key=lambda row: row.accuracy or 0)
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
        ("others", thinned(others, MOST_PARALLEL - min(len(top), 60)), {"color": QUIET, "width": 1}, 0.35),
        ("best tenth", thinned(top, 60), {"color": PALETTE[0], "width": 1.8}, 0.8),
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
        y += [*(_percent(point["validation_accuracy"]) for point in curve), None]
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
            y=[_percent(row.value) for row in members],
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


def timeline(rows: Sequence[TrialRow]) -> go.Figure:
    """Which worker had which trial when: a block of lines for each worker, as many as it trained at once.

    Long stretches in which nothing ran are cut out, at the dotted lines. A trial that was interrupted is shown from
    when it was last taken up.
    """
    spans = spans_of(rows)
    cut, cuts = without_pauses([(start, end) for _, start, end in spans])
    longest = max((end for _, end in cut), default=0.0)
    unit, factor = next((u, f) for u, f, least in (("h", 3600, 5400), ("min", 60, 90), ("s", 1, 0)) if longest >= least)
    placed = [(row, start / factor, end / factor) for (row, _, _), (start, end) in zip(spans, cut, strict=True)]
    workers: dict[str, list[tuple[TrialRow, float, float]]] = defaultdict(list)
    for entry in placed:
        workers[entry[0].worker or "unknown worker"].append(entry)
    figure = go.Figure()
    names: list[tuple[float, str]] = []
    drawn: dict[str, list[tuple[TrialRow, float, float, int]]] = defaultdict(list)
    lane = 0
    for worker, entries in sorted(workers.items(), key=lambda item: item[1][0][1]):
        lanes = lanes_of([(start, end) for _, start, end in entries])
        for (row, start, end), own in zip(entries, lanes, strict=True):
            drawn[row.state].append((row, start, end, lane + own))
        names.append((lane + max(lanes) / 2, worker))
        lane += max(lanes) + 2  # a line stays empty between workers
    for state, bars in drawn.items():
        _add_spans(figure, state, bars)
    for place in cuts:
        figure.add_vline(x=place / factor, line={"color": QUIET, "width": 1, "dash": "dot"})
    figure.update_layout(barmode="overlay", bargap=0.12)
    figure.update_xaxes(title=f"time since the first trial, {unit}", rangemode="tozero")
    figure.update_yaxes(
        tickvals=[place for place, _ in names],
        ticktext=[escape(name) for _, name in names],
        range=[lane - 0.5, -0.8],
        showgrid=False,
    )
    least, most = LANE_PIXELS
    return finish(figure, "", height=round(110 + min(MOST_LANES_PIXELS, max(least * lane, min(most * lane, 300)))))


def _add_spans(figure: go.Figure, state: str, bars: Sequence[tuple[TrialRow, float, float, int]]) -> None:
    figure.add_bar(
        orientation="h",
        base=[round(start, 3) for _, start, _, _ in bars],
        x=[round(end - start, 3) for _, start, end, _ in bars],
        y=[lane for *_, lane in bars],
        name=state,
        marker={"color": COLOURS[state], "line": {"width": 0}},
        customdata=[[row.number, f"{row.seconds:.0f}", escape(row.device)] for row, *_ in bars],
        hovertemplate=f"trial %{{customdata[0]}}, {state}<br>%{{customdata[1]}} s of training on %{{customdata[2]}}"
        "<extra></extra>",
    )


def spans_of(rows: Iterable[TrialRow]) -> list[tuple[TrialRow, float, float]]:
    """The trials that have ended, with their seconds since the first one began, in order of their beginning."""
    ended = [(row, row.started, row.ended) for row in rows if row.started and row.ended and row.epochs_done]
    zero = min((started for _, started, _ in ended), default=None)
    spans = [
        (row, (started - zero).total_seconds(), (done - zero).total_seconds()) for row, started, done in ended if zero
    ]
    return sorted(spans, key=lambda span: (span[1], span[0].number))


def without_pauses(
    spans: Sequence[tuple[float, float]],
) -> tuple[list[tuple[float, float]], list[float]]:
    """The spans, in order of their beginning, with long pauses between them shortened, and where those were.

    A pause is long that takes more than a tenth of the time in which anything ran.
    """
    pauses: list[tuple[float, float]] = []
    reached = 0.0
    for start, end in spans:
        if start > reached:
            pauses.append((reached, start))
        reached = max(reached, end)
    busy = reached - sum(end - start for start, end in pauses)
    long = [(start, end) for start, end in pauses if end - start > busy / 10]
    kept = busy / 50

    def moved(time: float) -> float:
        return time - sum(end - start - kept for start, end in long if end <= time)

    return [(moved(start), moved(end)) for start, end in spans], [moved(end) - kept / 2 for _, end in long]


def lanes_of(spans: Sequence[tuple[float, float]]) -> list[int]:
    """A line for each span, in order of their beginning, so that those of one line do not overlap; as few as can be."""
    free_at: list[float] = []
    lanes = []
    for start, end in spans:
        lane = next((k for k, free in enumerate(free_at) if free <= start + 1e-9), len(free_at))
        free_at[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes
