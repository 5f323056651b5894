"""Figures of a study's trials: how good they were, how they ended, what they cost."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures import style
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.sweep.strategy import STEPS_OF_A_SCHEDULE
from cifar_sweep.words import duration

MOST_BARS = 200  # thousands take a browser seconds


def history(trials: Sequence[TrialRecord]) -> go.Figure:
    """Validation accuracy by trial, and the best so far among the complete ones, as a step line."""
    figure = go.Figure()
    shown = style.with_accuracy(trials)
    for state in style.STATE_COLOURS:
        members = [trial for trial in shown if trial.state == state]
        name = state if state == "complete" else f"{state}, last value"
        style.add_trials(figure, members, lambda trial: trial.number, name=name, marker=style.marker(state, size=7))
    complete = [trial for trial in shown if trial.state == "complete"]
    if complete:
        best = list(accumulate((trial.accuracy or 0 for trial in complete), max))
        figure.add_scatter(
            x=[*(trial.number for trial in complete), shown[-1].number],
            y=[style.in_percent(value) for value in (*best, best[-1])],
            mode="lines",
            name="best so far",
            line={"shape": "hv", "color": style.BEST, "width": 2.5},
            hoverinfo="skip",
        )
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title="validation accuracy, %")
    return style.finish(figure, height=380)


def pruned_when(trials: Sequence[TrialRecord], *, epochs_searched: bool) -> go.Figure:
    """How many trials were stopped after which epoch; after which tenth of their schedule where epochs are searched."""
    begun = [trial for trial in trials if trial.epochs]
    longest = max((trial.epochs or 1 for trial in begun), default=1)
    whole, step = (100, 100 // STEPS_OF_A_SCHEDULE) if epochs_searched else (longest, 1)
    figure = go.Figure()
    heights: Counter[int] = Counter()
    for name, colour in (("pruned", style.STATE_COLOURS["pruned"]), ("diverged", style.STATE_COLOURS["failed"])):
        stopped = [trial for trial in begun if trial.state == "pruned" and trial.diverged == (name == "diverged")]
        counts = Counter(
            step * (STEPS_OF_A_SCHEDULE * trial.epochs_done // (trial.epochs or 1))
            if epochs_searched
            else trial.epochs_done
            for trial in stopped
        )
        heights += counts
        if counts:
            figure.add_bar(
                x=sorted(counts),
                y=[counts[place] for place in sorted(counts)],
                name=name,
                width=0.85 * step,
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate=f"%{{y}} {name} after %{{x}}{' %' if epochs_searched else ''}<extra></extra>",
            )
    title = "share of their schedule, %" if epochs_searched else "epochs trained"
    figure.update_xaxes(title=title, range=[-0.6 * step, whole + 0.6 * step])  # to the end: how early they were stopped
    most = max(heights.values(), default=0)
    figure.update_yaxes(title="trials stopped", rangemode="tozero", dtick=1 if most < 8 else None)
    return style.finish(figure, height=340, barmode="stack", bargap=0.15)


def seconds_by_trial(trials: Sequence[TrialRecord], *, data: str) -> go.Figure:
    """A bar for each trial: how long it was trained on its device, coloured by how it ended.

    A trial of a group has its share of the group's time. Of many trials, a bar stands for several that followed each
    other, as wide as they are. `data` names the images.
    """
    drawn = [trial for trial in trials if trial.curve]
    numbers = [trial.number for trial in drawn]
    width = math.ceil((max(numbers) + 1 - min(numbers)) / MOST_BARS) if drawn else 1
    bars: dict[tuple[str, int], list[TrialRecord]] = defaultdict(list)
    for trial in drawn:
        bars[trial.state, trial.number // width * width].append(trial)
    unit, factor = style.time_unit(max(map(_seconds, bars.values()), default=0.0))
    figure = go.Figure()
    for state, colour in style.STATE_COLOURS.items():
        own = {place: members for (ended, place), members in bars.items() if ended == state}
        if own:
            figure.add_bar(
                x=[place + (width - 1) / 2 for place in own],
                y=[_seconds(members) / factor for members in own.values()],
                width=0.85 * width,
                name=state,
                marker={"color": colour, "line": {"width": 0}},
                hoverinfo="text",
                hovertext=[_bar_words(members, place, width) for place, members in own.items()],
            )
    figure.update_xaxes(title="trial" if width == 1 else f"trial, {width} to a bar")
    figure.update_yaxes(title=f"training time, {unit}", rangemode="tozero")
    title = f"training on {_devices(drawn) or 'no device yet'}: {duration(_seconds(drawn))} in all; {data}"
    return style.finish(figure, title, height=380, barmode="stack", legend_traceorder="normal")


def _seconds(trials: Sequence[TrialRecord]) -> float:
    return sum(trial.seconds for trial in trials)


def _devices(trials: Sequence[TrialRecord]) -> str:
    return "; ".join(sorted({trial.device or "an unknown device" for trial in trials}))


def _bar_words(trials: Sequence[TrialRecord], place: int, width: int) -> str:
    """What a bar says: of its trial, or of those of several trials that ended alike."""
    first, spent = trials[0], _seconds(trials)
    time = f"{duration(spent)} on {_devices(trials)}"
    if width > 1:
        return style.hover_text([f"{len(trials)} {first.state} of the trials {place} to {place + width - 1}", time])
    pace = f"{first.epochs_done} of {first.epochs} epochs, {spent / first.epochs_done:.3g} s each"
    return style.hover_text([f"{style.trial_name(first)}, {first.state}", time, pace])


def front(trials: Sequence[TrialRecord], *, size: bool) -> go.Figure:
    """Validation accuracy of the complete trials by training time, or by the `size` of their weights.

    A line joins the trials that no other trial beats in both.
    """
    cost = {trial.number: _cost(trial, size) for trial in trials if trial.state == "complete"}
    shown = [trial for trial in trials if cost.get(trial.number)]
    shown.sort(key=lambda trial: (cost[trial.number], -(trial.value or 0)))
    records = accumulate((trial.value or 0 for trial in shown), max, initial=-math.inf)
    best = [trial for trial, before in zip(shown, records, strict=False) if (trial.value or 0) > before]
    figure = go.Figure()
    hover = f"trial %{{customdata}}: %{{y:.2f}} %, %{{x:.4g}} {'MB' if size else 's'}<extra></extra>"
    line = {"shape": "hv", "color": style.BEST, "width": 2}
    for name, members, mode, look in (
        ("complete trials", shown, "markers", {"size": 6, "color": style.STATE_COLOURS["complete"]}),
        ("none is better for less", best, "lines+markers", {"size": 9, "color": style.BEST}),
    ):
        settings = {"name": name, "mode": mode, "marker": look, "line": line, "hovertemplate": hover}
        style.add_trials(figure, members, lambda trial: round(cost[trial.number], 4), **settings)
    figure.update_xaxes(title="weights, MB" if size else "training time, s")
    if shown and cost[shown[-1].number] >= 10 * cost[shown[0].number]:
        figure.update_xaxes(type="log", dtick="D2")
    figure.update_yaxes(title="validation accuracy, %")
    return style.finish(figure, height=360)


def _cost(trial: TrialRecord, size: bool) -> float:
    """Its training time in seconds, or the `size` of its weights in megabytes; 0 where that is not known."""
    if size:
        return trial.weights.size / 1e6 if trial.weights else 0.0
    return trial.seconds
