"""Figures of a study's trials: how good they were, how they ended, what they cost."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures import style
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.sweep.strategy import STEPS_OF_A_SCHEDULE
from cifar_sweep.words import duration


def history(trials: Sequence[TrialRecord]) -> go.Figure:
    """How good each trial is, and the best so far among the complete ones, as a step line."""
    figure = go.Figure()
    shown = style.with_accuracy(trials)
    for state in style.STATE_COLOURS:
        members = [trial for trial in shown if trial.state == state]
        name = state if state == "complete" else f"{state}, last value"
        style.add_trials(figure, members, lambda trial: trial.number, name=name, marker=style.marker(state, size=7))
    complete = [trial for trial in shown if trial.state == "complete"]
    if complete:
        best = list(accumulate(complete, _better))
        figure.add_scatter(
            x=[*(trial.number for trial in complete), shown[-1].number],
            y=[style.shown(trial) for trial in (*best, best[-1])],
            mode="lines",
            name="best so far",
            line={"shape": "hv", "color": style.BEST, "width": 2.5},
            hoverinfo="skip",
        )
    return style.finish(figure, height=380, xaxis_title="trial", **style.axis(shown))


def _better(one: TrialRecord, other: TrialRecord) -> TrialRecord:
    return other if other.score > one.score else one


def pruned_when(trials: Sequence[TrialRecord], *, epochs_searched: bool) -> go.Figure:
    """How many trials were stopped after which epoch; after which tenth of their schedule where epochs are searched."""
    begun = [trial for trial in trials if trial.epochs]
    longest = max((trial.epochs or 1 for trial in begun), default=1)
    whole, step = (100, 100 // STEPS_OF_A_SCHEDULE) if epochs_searched else (longest, 1)
    figure = go.Figure()
    heights: Counter[int] = Counter()
    for name, colour in (("pruned", style.STATE_COLOURS["pruned"]), ("diverged", style.STATE_COLOURS["failed"])):
        stopped = [trial for trial in begun if trial.state == "pruned" and trial.diverged == (name == "diverged")]
        if epochs_searched:
            counts = Counter(step * (STEPS_OF_A_SCHEDULE * t.epochs_done // (t.epochs or 1)) for t in stopped)
        else:
            counts = Counter(trial.epochs_done for trial in stopped)
        heights += counts
        if counts:
            figure.add_bar(
                x=sorted(counts),
                y=[counts[place] for place in sorted(counts)],
                name=name,
                width=0.85 * step,
                marker_color=colour,
                hovertemplate=f"%{{y}} {name} after %{{x}}{' %' if epochs_searched else ''}<extra></extra>",
            )
    title = "share of their schedule, %" if epochs_searched else "epochs trained"
    figure.update_xaxes(title=title, range=[-0.6 * step, whole + 0.6 * step])  # to the end: how early they were stopped
    most = max(heights.values(), default=0)
    figure.update_yaxes(title="trials stopped", rangemode="tozero", dtick=1 if most < 8 else None)
    return style.finish(figure, height=340, barmode="stack", bargap=0.15)


def seconds_by_trial(trials: Sequence[TrialRecord], *, data: str) -> go.Figure:
    """A bar for each trial: how long it was trained on its device, coloured by how it ended.

    A trial of a group has its share of the group's time. `data` names the images.
    """
    drawn = [trial for trial in trials if trial.curve]
    unit, factor = style.time_unit(max((trial.seconds for trial in drawn), default=0.0))
    figure = go.Figure()
    for state, colour in style.STATE_COLOURS.items():
        if own := [trial for trial in drawn if trial.state == state]:
            figure.add_bar(
                x=[trial.number for trial in own],
                y=[trial.seconds / factor for trial in own],
                width=0.85,
                name=state,
                marker_color=colour,
                hoverinfo="text",
                hovertext=[_time_words(trial) for trial in own],
            )
    figure.update_yaxes(title=f"training time, {unit}", rangemode="tozero")
    devices = "; ".join(sorted({trial.device or "an unknown device" for trial in drawn})) or "no device yet"
    title = f"training on {devices}: {duration(sum(trial.seconds for trial in drawn))} in all; {data}"
    return style.finish(figure, title, height=380, xaxis_title="trial", barmode="stack", legend_traceorder="normal")


def _time_words(trial: TrialRecord) -> str:
    time = f"{duration(trial.seconds)} on {trial.device or 'an unknown device'}"
    pace = f"{trial.epochs_done} of {trial.epochs} epochs, {trial.seconds / trial.epochs_done:.3g} s each"
    return style.hover_text([f"{style.trial_name(trial)}, {trial.state_words}", time, pace])


def front(trials: Sequence[TrialRecord]) -> go.Figure:
    """How good the complete trials are by training time; a line joins those that none beats in both."""
    shown = [trial for trial in trials if trial.state == "complete" and trial.seconds]
    shown.sort(key=lambda trial: (trial.seconds, -trial.score))
    records = accumulate((trial.score for trial in shown), max, initial=-math.inf)
    best = [trial for trial, before in zip(shown, records, strict=False) if trial.score > before]
    figure = go.Figure()
    hover = style.hover(shown, ", %{x:.4g} s")
    line = {"shape": "hv", "color": style.BEST, "width": 2}
    for name, members, mode, look in (
        ("complete trials", shown, "markers", {"size": 6, "color": style.STATE_COLOURS["complete"]}),
        ("none is better for less", best, "lines+markers", {"size": 9, "color": style.BEST}),
    ):
        settings = {"name": name, "mode": mode, "marker": look, "line": line, "hovertemplate": hover}
        style.add_trials(figure, members, lambda trial: round(trial.seconds, 4), **settings)
    if shown and shown[-1].seconds >= 10 * shown[0].seconds:
        figure.update_xaxes(type="log", dtick="D2")
    return style.finish(figure, height=360, xaxis_title="training time, s", **style.axis(shown))
