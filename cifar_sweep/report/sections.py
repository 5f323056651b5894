"""The parts of a report's page between the answer and the table: which figures, beside which words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures import trial_figures as figures
from cifar_sweep.figures.figures import claimed_against_measured, learning_curves
from cifar_sweep.figures.page import in_script
from cifar_sweep.figures.parameter_figures import parallel, slices
from cifar_sweep.figures.search_figures import hand_beside_search, learning_rate_by_batch, seconds_by_trial
from cifar_sweep.figures.timeline import spans_of, timeline
from cifar_sweep.report.facts import Report
from cifar_sweep.report.words import counted
from cifar_sweep.words import duration

CURVES_IN_DETAIL = 3
AXIS_PIXELS = 88  # of the parallel coordinates: below that, names lie on each other
GROUP_WORDS = "A trial of a group has its share of the group's time."
HAND_PIXELS = 620
PAIR_PIXELS = 340  # the height of figures beside each other
SIGNIFICANT_DIGITS = 6


@dataclass(frozen=True)
class Drawing:
    """A figure with its words. `json` can stand in a script; `least_width` is where it begins to scroll sideways."""

    id: str
    title: str
    caption: str
    height: int
    json: str
    least_width: int = 0
    wide: bool = False


@dataclass(frozen=True)
class Row:
    """Figures beside each other, as the style sheet's `layout` says."""

    drawings: Sequence[Drawing]
    layout: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page. `tiles` are numbers with their names."""

    id: str
    title: str
    words: str = ""
    tiles: Sequence[tuple[str, str]] = ()
    rows: Sequence[Row] = field(default_factory=list)


def sections_of(report: Report) -> list[Section]:
    """The parts between the answer and the table. What has nothing to draw says why, or is left out."""
    if not any(row.epochs_done for row in report.rows):
        return [Section("history", "History", "No trial has finished an epoch yet, so there is nothing to draw.")]
    return [
        _history(report),
        _pruning(report),
        _importance(report),
        _curves(report),
        _time(report),
        Section("mistakes", "What the best network gets wrong"),
        _cost(report),
    ]


def _history(report: Report) -> Section:
    rows = [Row([_drawing(
        "history-plot", "Validation accuracy by trial", "A complete trial's best epoch; of any other, its last.",
        figures.history(report.rows),
    )])]  # fmt: skip
    if report.by_hand is not None and report.by_hand.claims:
        rows.append(Row([_beside_hand(report)]))
    how = "the sweep's own points, as they are" if report.given else f"chosen by sampler {report.sampler}"
    return Section("history", "How the search went", f"{counted(len(report.rows), 'trial')}, {how}.", rows=rows)


def _beside_hand(report: Report) -> Drawing:
    assert report.by_hand is not None
    claims = report.by_hand.claims
    if report.given:
        caption = (
            "A line joins what a report says of a run and what the same settings came to here, on test images; what is "
            "open and dotted was shortened, and is not compared."
        )
        return _drawing("hand-plot", "Claimed and measured", caption, claimed_against_measured(claims))
    caption = (
        f"Two different things. Above, validation accuracies on {report.data}; below, test accuracies on CIFAR-10 as "
        "students' reports state them, none of which was measured here."
    )
    figure = hand_beside_search(report.trials, claims, data=report.data).update_layout(height=400)
    title = "The search, and what the reports claim by hand"
    return _drawing("hand-plot", title, caption, figure, least_width=HAND_PIXELS)


def _pruning(report: Report) -> Section:
    saved = report.saved
    title = "What was stopped early"
    bars = seconds_by_trial(report.trials, data=report.data).update_layout(height=PAIR_PIXELS)
    # Of one width: left alone, the bars of a trace are as wide as its trials lie apart.
    bars.update_traces(width=0.85, selector={"type": "bar"})
    times = _drawing("seconds-plot", "Training time by trial", GROUP_WORDS, bars)
    if not saved.trials:
        none = "The sweep has no pruner." if report.pruner == "none" else f"Pruner {report.pruner} stopped no trial."
        return Section("pruning", "How long trials took", none, rows=[Row([times])])
    whole = saved.seconds + report.seconds
    tiles = [
        ("trials stopped early", f"{saved.trials} of {len(report.rows)}"),
        ("epochs not trained", f"{saved.epochs:,}"),
        ("time that this saved", duration(saved.seconds)),
        ("of the time without pruning", f"{saved.seconds / whole:.0%}" if whole else "-"),
    ]
    words = (
        f"Pruner {report.pruner} stops a trial that is weak beside the others at the same "
        f"{'share of its schedule' if report.epochs_searched else 'epoch'}. The time is one worker's, as if each trial "
        "had gone on at its own pace."
    )
    caption = "By share of a trial's own schedule." if report.epochs_searched else "By the epochs they were trained."
    stopped = _drawing(
        "pruned-plot",
        "When trials were stopped",
        caption,
        figures.pruned_when(report.trials, epochs_searched=report.epochs_searched).update_layout(height=PAIR_PIXELS),
    )
    return Section("pruning", title, words, tiles, [Row([stopped, times], "pair")])


def _importance(report: Report) -> Section:
    found = report.importances
    top = max(2, math.ceil(found.trials / 10))
    words = (
        f"Importance answers one question: which parameters set the best {top} of the {found.trials} complete trials "
        f"apart from all {found.trials} (PED-ANOVA)? It says nothing of pruned trials, or of values that nobody tried."
        if found.shares
        else f"There is no importance of parameters: {found.reason}."
    )
    if found.shares and found.trials < 30:
        words += " So few trials give a hint, no more."
    if sum(row.accuracy is not None for row in report.rows) < 2:
        return Section("importance", "What matters", f"{words} One trial has nothing beside it to compare it with.")
    names = _by_importance(report)
    height = max(PAIR_PIXELS, 110 + 32 * len(found.shares))
    pair = []
    if found.shares:
        bars = figures.importance(found).update_layout(height=height)
        pair.append(_drawing("importance-plot", "Importance", "The shares add up to 100 %.", bars))
    if {"learning_rate", "batch_size"} <= set(names):
        caption = "The best validation accuracy in each cell; empty where nothing was tried."
        heat = learning_rate_by_batch(report.trials, data=report.data)
        heat.update_layout(height=height).update_xaxes(dtick=1)
        pair.append(_drawing("heat-plot", "Learning rate by batch size", caption, heat))
    rows = [Row(pair, "pair narrow-first" if len(pair) == 2 else "")] if pair else []
    each = [
        _drawing(f"slice-{k}", name.replace("_", " "), "", figure)
        for k, (name, figure) in enumerate(slices(report.rows, names, logarithmic=report.logarithmic))
    ]
    rows += [Row(each, "slices")] if each else []
    if len(report.parameters) > 1:
        tenth = ", the rest of the best tenth in blue" if report.counts["complete"] > 10 else ""
        caption = f"A line is a trial: the best one in orange{tenth}, some of the others in grey."
        width = AXIS_PIXELS * (len(names) + 1)
        lines = parallel(
            report.rows, names[::-1], logarithmic=report.logarithmic
        )  # what matters most stands beside the accuracy
        rows.append(
            Row([_drawing("parallel-plot", "All parameters at once", caption, lines, least_width=width, top=40)])
        )
    return Section("importance", "What matters", words, rows=rows)


def _by_importance(report: Report) -> list[str]:
    """The searched parameters, what matters most first; in their usual order where that is not known."""
    known = [name for name, _ in report.importances.shares]
    return known + [name for name in report.parameters if name not in known]


def _curves(report: Report) -> Section:
    ranked = sorted(
        (trial for trial in report.trials if trial.state.name == "COMPLETE"),
        key=lambda trial: (-(trial.value or 0), trial.number),
    )
    drawn = sum(bool(row.epochs_done) for row in report.rows)
    caption = f"The {figures.HIGHLIGHTED_CURVES} best in colours, the others and the pruned ones behind them"
    caption += f"; {figures.MOST_CURVES} of {drawn} trials." if drawn > figures.MOST_CURVES else "."
    every = figures.curves(report.trials, epochs_searched=report.epochs_searched)
    rows = [Row([_drawing("curves-plot", "Validation accuracy while training", caption, every)])]
    if ranked:
        best = ranked[:CURVES_IN_DETAIL]
        caption = "Training images dashed, with dropout on where there is any; validation images solid."
        detail = learning_curves(best, data=report.data)
        title = "Loss and accuracy of the best" + (f" {len(best)}" if len(best) > 1 else "")
        rows.append(Row([_drawing("detail-plot", title, caption, detail)]))
    return Section("curves", "How the trials learned", rows=rows)


def _time(report: Report) -> Section:
    if not spans_of(report.rows):
        return Section("time", "Who trained what when", "No trial that was trained has ended yet.")
    caption = (
        "The trials that have ended: a block for each worker, a line for each trial that it trained at once. One that "
        "was interrupted is shown from when it was last taken up; a dotted line stands for a long pause."
    )
    plot = _drawing("time-plot", "Workers", caption, timeline(report.rows))
    return Section("time", "Who trained what when", rows=[Row([plot])])


def _cost(report: Report) -> Section:
    complete = [row for row in report.rows if row.state == "complete" and row.seconds]
    title = "Accuracy against time and size"
    if not complete:
        return Section("cost", title, "No trial is complete yet.")
    time = _drawing("seconds-front", "By training time", GROUP_WORDS, figures.front(complete, size=False))
    sizes = {row.weights_bytes for row in complete if row.weights_bytes}
    if len(sizes) < 2:
        words = f"All networks are of one size: {sizes.pop() / 1e6:.3g} MB of weights." if sizes else ""
        return Section("cost", title, words, rows=[Row([time])])
    caption = "The size of the weights' file: four bytes for each parameter."
    size = _drawing("size-front", "By size", caption, figures.front(complete, size=True))
    return Section("cost", title, rows=[Row([time, size], "pair")])


def _drawing(id_: str, title: str, caption: str, figure: go.Figure, *, least_width: int = 0, top: int = 10) -> Drawing:
    """A figure for the page: without its title, which `title` and `caption` say, and with its numbers rounded."""
    plain_figure = figure.to_dict()
    layout = plain_figure["layout"]
    layout.pop("title", None)
    layout["margin"]["t"] = top
    layout["autosize"] = True
    height = int(layout.pop("height", 400))
    return Drawing(id_, title, caption, height, in_script(_rounded(plain_figure)), least_width)


def _rounded(value: Any) -> Any:
    """Plain data with floats of as many digits as anybody sees."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value
