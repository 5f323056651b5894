"""Figures about a search: where in the space it was good, hand runs beside it, and what each trial cost.

As in `figures`, users' text is escaped, and the colours are Paul Tol's.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.figures.figures import CLAIM, MEASURED, PALETTE, QUIET, finish, hover_text, trial_name
from cifar_sweep.hand.rows import HandRow
from cifar_sweep.study.record import STATE_NAMES, SYNTHETIC_REMARK, accuracy_of, is_synthetic, seconds_spent
from cifar_sweep.words import duration

BINS_PER_DECADE = 3
MOST_BATCH_ROWS = 12
MOST_MARKS = 200  # of one kind in a figure: thousands take a browser seconds
# Paul Tol's "iridescent", every third step: it grows darker evenly, for readers of every colour vision.
SCALE = (
    "#FEFBE9", "#F5F3C1", "#DDECBF", "#C2E3D2", "#A8D8DC", "#8DCBE4",
    "#7BBCE7", "#88A5DD", "#9B8AC4", "#9A709E", "#805770", "#46353A",
)  # fmt: skip
STATE_COLOURS = {
    TrialState.COMPLETE: MEASURED,
    TrialState.PRUNED: PALETTE[4],
    TrialState.FAIL: PALETTE[5],
    TrialState.RUNNING: PALETTE[2],
    TrialState.WAITING: QUIET,
}
_ROW_BEST, _ROW_COMPLETE, _ROW_OTHERS = "search: best", "search: complete", "search: other, last value"
_ROW_CLAIMED, _ROW_CLAIMED_ELSE = "claimed: same network", "claimed: other networks"


def learning_rate_by_batch(trials: Sequence[FrozenTrial], *, data: str) -> go.Figure:
    """The best validation accuracy in each cell of learning rate (thirds of a decade) by batch size.

    A complete trial counts with its best epoch, any other with its last; what the cell holds is in its hover text.
    """
    drawn = [trial for trial in trials if "config" in trial.user_attrs and accuracy_of(trial) is not None]
    figure = go.Figure()
    if drawn:
        names = _batch_names([_config(trial)["batch_size"] for trial in drawn])
        cells: dict[tuple[str, int], list[FrozenTrial]] = defaultdict(list)
        for trial in drawn:
            cells[names[_config(trial)["batch_size"]], _bin(_config(trial)["learning_rate"])].append(trial)
        rows = list(dict.fromkeys(names[size] for size in sorted(names)))
        bins = range(min(place for _, place in cells), max(place for _, place in cells) + 1)
        figure.add_heatmap(
            # One edge more than there are cells: on a logarithmic axis the middles alone would not do.
            x=[_edge(place) for place in (*bins, bins[-1] + 1)],
            y=rows,
            z=[[_best_percent(cells.get((row, place), ())) for place in bins] for row in rows],
            hovertext=[[_cell_words(cells.get((row, place), ()), row, place) for place in bins] for row in rows],
            hoverinfo="text",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            colorscale=list(SCALE),
            colorbar={"title": {"text": "%"}, "thickness": 12, "outlinewidth": 0},
        )
        figure.update_yaxes(type="category", categoryorder="array", categoryarray=rows)
    figure.update_xaxes(title="learning rate", type="log", exponentformat="power")
    figure.update_yaxes(title="batch size")
    rows_drawn = len(figure.data[0].y) if drawn else 0
    return finish(figure, f"{data}: best validation accuracy in each cell", height=230 + 34 * rows_drawn)


def _config(trial: FrozenTrial) -> Mapping[str, Any]:
    config: Mapping[str, Any] = trial.user_attrs["config"]
    return config


def _bin(learning_rate: float) -> int:
    """The cell of a learning rate. Powers of ten are in the middle of theirs."""
    return round(BINS_PER_DECADE * math.log10(learning_rate))


def _edge(place: int) -> float:
    """The lower end of a cell."""
    return float(10 ** ((place - 0.5) / BINS_PER_DECADE))


def _batch_names(sizes: Iterable[int]) -> dict[int, str]:
    """The name of each batch size's row: itself, or the nearest power of two where there are too many."""
    distinct = sorted(set(sizes))
    if len(distinct) <= MOST_BATCH_ROWS:
        return {size: str(size) for size in distinct}
    return {size: f"about {2 ** round(math.log2(size))}" for size in distinct}


def _best(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """The trial of the best accuracy, a complete one before any other."""
    return max(
        trials,
        key=lambda trial: (trial.state is TrialState.COMPLETE, accuracy_of(trial) or 0, -trial.number),
        default=None,
    )


def _best_percent(trials: Sequence[FrozenTrial]) -> float | None:
    best = _best(trials)
    return None if best is None else 100 * (accuracy_of(best) or 0)


def _cell_words(trials: Sequence[FrozenTrial], row: str, place: int) -> str:
    best = _best(trials)
    if best is None:
        return ""
    counts = {name: sum(trial.state is state for trial in trials) for state, name in STATE_NAMES.items()}
    last = "" if best.state is TrialState.COMPLETE else f", {STATE_NAMES[best.state]}: its last value"
    return hover_text(
        [
            f"learning rate {_edge(place):.2g} to {_edge(place + 1):.2g}, batch size {row}",
            f"best {_best_percent(trials):.2f} %, {trial_name(best)}{last}",
            f"learning rate {_config(best)['learning_rate']:.3g}, batch size {_config(best)['batch_size']}",
            f"{len(trials)} trials: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count),
        ]
    )


def hand_beside_search(trials: Sequence[FrozenTrial], claims: Sequence[HandRow], *, data: str) -> go.Figure:
    """The search's validation accuracies, and below them what the reports claim of their hand runs.

    The two are never on one line: a claim is a test accuracy that a student wrote down, on CIFAR-10; the search's own
    values are validation accuracies on `data`.
    """
    drawn = [trial for trial in trials if "config" in trial.user_attrs and accuracy_of(trial) is not None]
    complete = [trial for trial in drawn if trial.state is TrialState.COMPLETE]
    others = [trial for trial in drawn if trial.state is not TrialState.COMPLETE]
    networks = {_config(trial)["model"] for trial in drawn}
    claimed = [row for row in claims if row.claimed is not None]
    alike = [row for row in claimed if row.model in networks]
    figure = go.Figure()
    _add_spread(figure, _ROW_OTHERS, others, colour=QUIET)
    _add_spread(figure, _ROW_COMPLETE, complete, colour=MEASURED)
    if complete:
        best = max(complete, key=lambda trial: (trial.value or 0, -trial.number))
        _add_best(figure, best)
    _add_claims(figure, _ROW_CLAIMED, alike, symbol="diamond")
    _add_claims(figure, _ROW_CLAIMED_ELSE, [row for row in claimed if row not in alike], symbol="diamond-open")
    rows = [
        row
        for row in (_ROW_BEST, _ROW_COMPLETE, _ROW_OTHERS, _ROW_CLAIMED, _ROW_CLAIMED_ELSE)
        if any(row in (trace.y or ()) for trace in figure.data)
    ]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=rows[::-1])
    figure.update_xaxes(title="accuracy, %")
    title = (
        f"search: validation accuracy on {data}; claimed: test accuracy on CIFAR-10, as students' reports state it, "
        "not measured here"
    )
    title += f"; {SYNTHETIC_REMARK}" if is_synthetic([data]) else ""
    return finish(figure, title, height=170 + 62 * len(rows)).update_layout(showlegend=False)


def _add_spread(figure: go.Figure, row: str, trials: Sequence[FrozenTrial], *, colour: str) -> None:
    """A box with each trial's accuracy in it."""
    if not trials:
        return
    figure.add_box(
        x=[100 * (accuracy_of(trial) or 0) for trial in trials],
        y=[row] * len(trials),
        orientation="h",
        name=row,
        fillcolor="rgba(0,0,0,0)",
        line={"color": colour, "width": 1},
        **_points(trials, colour) if len(trials) <= MOST_MARKS else {"boxpoints": False, "hoverinfo": "x"},
    )


def _points(trials: Sequence[FrozenTrial], colour: str) -> dict[str, Any]:
    """Each trial as a point in its box."""
    return {
        "boxpoints": "all",
        "jitter": 0.7,
        "pointpos": 0,
        "marker": {"color": colour, "size": 5, "opacity": 0.6},
        "hoveron": "points",
        "hoverinfo": "text",
        "hovertext": [_search_words(trial) for trial in trials],
    }


def _add_best(figure: go.Figure, best: FrozenTrial) -> None:
    figure.add_scatter(
        x=[100 * (best.value or 0)],
        y=[_ROW_BEST],
        mode="markers+text",
        name=_ROW_BEST,
        marker={"color": MEASURED, "symbol": "star", "size": 15},
        text=[f"{100 * (best.value or 0):.2f} %, trial {best.number}  "],
        textposition="middle left",
        cliponaxis=False,
        hoverinfo="text",
        hovertext=[_search_words(best)],
    )


def _add_claims(figure: go.Figure, row: str, claims: Sequence[HandRow], *, symbol: str) -> None:
    """A marker for each claim; the best one is named."""
    if not claims:
        return
    best = max(claims, key=lambda claim: claim.claimed or 0)
    figure.add_scatter(
        x=[claim.claimed for claim in claims],
        y=[row] * len(claims),
        mode="markers+text",
        name=row,
        marker={"color": CLAIM, "symbol": symbol, "size": 11, "line": {"width": 1.5, "color": CLAIM}},
        text=[f"{claim.claimed:.2f} %, {escape(claim.label)}" if claim is best else "" for claim in claims],
        textposition="top left",
        cliponaxis=False,
        hoverinfo="text",
        hovertext=[_claim_words(claim) for claim in claims],
    )


def _search_words(trial: FrozenTrial) -> str:
    config = _config(trial)
    last = "" if trial.state is TrialState.COMPLETE else ", its last value"
    return hover_text(
        [
            f"{trial_name(trial)}, {STATE_NAMES[trial.state]}: {config['model']}",
            f"validation accuracy {100 * (accuracy_of(trial) or 0):.2f} %{last}",
            f"learning rate {config['learning_rate']:.3g}, batch size {config['batch_size']}",
        ]
    )


def _claim_words(claim: HandRow) -> str:
    words = [f"{claim.label}: {claim.model}", f"claimed by the report: {claim.claimed:.2f} % on CIFAR-10's test images"]
    return hover_text([*words, claim.note])


def seconds_by_trial(trials: Sequence[FrozenTrial], *, data: str) -> go.Figure:
    """A bar for each trial: how long it was trained on its device, coloured by how it ended.

    A trial of a group has its share of the group's time. Of many trials, a bar stands for several that followed each
    other, as wide as they are. `data` names the images.
    """
    drawn = [trial for trial in trials if trial.user_attrs.get("curve")]
    numbers = [trial.number for trial in drawn]
    width = math.ceil((max(numbers) + 1 - min(numbers)) / MOST_MARKS) if drawn else 1
    bars: dict[TrialState, dict[int, list[FrozenTrial]]] = {state: defaultdict(list) for state in STATE_COLOURS}
    for trial in drawn:
        bars[trial.state][trial.number // width * width].append(trial)
    heights = [sum(map(seconds_spent, members)) for places in bars.values() for members in places.values()]
    unit, factor = _unit(max(heights, default=0.0))
    figure = go.Figure()
    for state, colour in STATE_COLOURS.items():
        if bars[state]:
            figure.add_bar(
                x=[place + (width - 1) / 2 for place in bars[state]],
                y=[sum(map(seconds_spent, members)) / factor for members in bars[state].values()],
                width=0.85 * width,
                name=STATE_NAMES[state],
                marker={"color": colour, "line": {"width": 0}},
                hoverinfo="text",
                hovertext=[_time_words(members, place, width) for place, members in bars[state].items()],
            )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="trial" if width == 1 else f"trial, {width} to a bar")
    figure.update_yaxes(title=f"training time, {unit}", rangemode="tozero")
    devices = sorted({_device(trial) for trial in drawn})
    total = duration(sum(map(seconds_spent, drawn)))
    title = f"training on {'; '.join(devices) or 'no device yet'}: {total} in all; {data}"
    return finish(figure, title, height=380).update_layout(legend={"traceorder": "normal"})


def _unit(longest: float) -> tuple[str, int]:
    """The unit for times up to so many seconds, and its length."""
    return ("h", 3600) if longest >= 5400 else ("min", 60) if longest >= 90 else ("s", 1)


def _device(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("environment", {}).get("device", "an unknown device"))


def _time_words(trials: Sequence[FrozenTrial], place: int, width: int) -> str:
    """What a bar says: of its trial, or of those of several trials that ended alike."""
    spent, state = sum(map(seconds_spent, trials)), STATE_NAMES[trials[0].state]
    devices = ", ".join(sorted({_device(trial) for trial in trials}))
    if width > 1:
        name = f"{len(trials)} {state} of the trials {place} to {place + width - 1}"
        return hover_text([name, f"{duration(spent)} on {devices}"])
    curve = trials[0].user_attrs["curve"]
    epochs = trials[0].user_attrs.get("config", {}).get("epochs", "?")
    pace = f"{len(curve)} of {epochs} epochs, {spent / len(curve):.3g} s each"
    return hover_text([f"{trial_name(trials[0])}, {state}", f"{duration(spent)} on {devices}", pace])
