"""Figures, as plotly draws them: what was claimed and measured, how trials learned, accuracy by learning rate.

Whatever a user may have written (a label, a study's name) is escaped: plotly reads some HTML in its texts.
Colours are Paul Tol's "vibrant" ones, which colour-blind readers can tell apart, on light and on dark ground.
"""

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from cifar_sweep.errors import StudyError
from cifar_sweep.figures.page import write_html
from cifar_sweep.hand.rows import HandRow
from cifar_sweep.study.record import STATE_NAMES, SYNTHETIC_REMARK, accuracy_of, is_synthetic
from cifar_sweep.study.study import SweepStudy, data_words

PALETTE = ("#0077BB", "#EE7733", "#009988", "#EE3377", "#33BBEE", "#CC3311", "#888888", "#AA4499")
CLAIM, MEASURED, QUIET = PALETTE[1], PALETTE[0], PALETTE[6]
_CURVE_SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up")
_STATE_SYMBOLS = {
    TrialState.COMPLETE: "circle",
    TrialState.PRUNED: "x",
    TrialState.RUNNING: "triangle-right-open",
    TrialState.WAITING: "triangle-right-open",
    TrialState.FAIL: "cross-open",
}
_TITLE_COLUMNS = 46  # characters of a title that a phone shows on one line


def claimed_against_measured(rows: Sequence[HandRow]) -> go.Figure:
    """A line per hand run from the report's claim to the test accuracy measured here; shortened ones are drawn open."""
    shown = [row for row in rows if row.claimed is not None or row.test is not None]
    figure = go.Figure()
    for row in shown:
        if row.claimed is not None and row.test is not None:
            ends = [row.claimed, 100 * row.test]
            line = {"color": QUIET, "width": 1 if row.shortened else 3, "dash": "dot" if row.shortened else "solid"}
            figure.add_scatter(x=ends, y=[_place(row)] * 2, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    _add_points(figure, "claimed by the report", CLAIM, "diamond", [row for row in shown if row.claimed is not None])
    measured = [row for row in shown if row.test is not None]
    whole = [row for row in measured if not row.shortened]
    _add_points(figure, "measured here", MEASURED, "circle", whole)
    shortened = [row for row in measured if row.shortened]
    _add_points(figure, "measured here, shortened run", MEASURED, "circle-open", shortened)
    places = [_place(row) for row in shown]
    figure.update_yaxes(categoryorder="array", categoryarray=places, range=[len(places) - 0.5, -0.5], automargin=True)
    figure.update_xaxes(title="test accuracy, %")
    data = list(dict.fromkeys(row.data for row in measured if row.data))
    title = f"claims are the reports', on CIFAR-10; measured on {', '.join(data) or 'nothing yet'}"
    return finish(figure, title + (f"; {SYNTHETIC_REMARK}" if is_synthetic(data) else ""), height=170 + 24 * len(shown))


def _add_points(figure: go.Figure, name: str, colour: str, symbol: str, rows: Sequence[HandRow]) -> None:
    """One marker per row, at its claim or at its measured accuracy, as the name says."""
    if not rows:
        return
    claims = name.startswith("claimed")
    figure.add_scatter(
        x=[row.claimed if claims else 100 * (row.test or 0) for row in rows],
        y=[_place(row) for row in rows],
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}},
        hoverinfo="text",
        hovertext=[_row_words(row) for row in rows],
    )


def _place(row: HandRow) -> str:
    """The name of a row on the axis, different for each."""
    words = [row.label, row.state if row.trial is None else f"trial {row.trial}", "shortened" if row.shortened else ""]
    return escape(", ".join(word for word in words if word))


def _row_words(row: HandRow) -> str:
    lines = [f"{row.label}: {row.model}, {row.state}"]
    if row.claimed is not None:
        lines.append(f"the report's claim {row.claimed:.2f} % on CIFAR-10's test images")
    if row.test is not None:
        lines.append(f"measured {100 * row.test:.2f} % on the test images of {row.data}")
    if row.difference is not None:
        lines.append(f"difference {row.difference:+.2f} points")
    lines += [f"shortened: {row.shortened}"] if row.shortened else []
    return hover_text([*lines, row.note])


def learning_curves(trials: Sequence[FrozenTrial], *, data: str) -> go.Figure:
    """Loss and accuracy by epoch, a colour per trial: training dashed, validation solid. `data` names the images."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    drawn = [trial for trial in trials if trial.user_attrs.get("curve")]
    for place, trial in enumerate(drawn):
        for part in ("train", "validation"):
            figure.add_trace(_curve(trial, part, "loss", place=place), row=1, col=1)
            figure.add_trace(_curve(trial, part, "accuracy", place=place), row=2, col=1)
    figure.update_yaxes(title="loss, nats", row=1, col=1)
    figure.update_yaxes(title="accuracy, %", row=2, col=1)
    figure.update_xaxes(title="epoch", row=2, col=1)
    title = f"{data}: training images dashed, validation images solid"
    return finish(figure, title, height=560 + 12 * len(drawn))


def _curve(trial: FrozenTrial, part: str, quantity: str, *, place: int) -> go.Scatter:
    """One line of `learning_curves`; `place` gives the trial its colour and, when those are used up, its marker."""
    factor, unit = (100, "%") if quantity == "accuracy" else (1, "nats")
    epochs = [(point["epoch"], factor * point[f"{part}_{quantity}"]) for point in trial.user_attrs["curve"]]
    return go.Scatter(
        x=[epoch for epoch, _ in epochs],
        # Where a training diverged there is a gap: JSON has no word for what is not a number.
        y=[value if math.isfinite(value) else None for _, value in epochs],
        mode="lines+markers",  # one epoch alone is no line
        name=escape(trial_name(trial)),
        legendgroup=str(trial.number),
        showlegend=(part, quantity) == ("validation", "accuracy"),
        line={"color": PALETTE[place % len(PALETTE)], "dash": "dash" if part == "train" else "solid", "width": 2},
        marker={"symbol": _CURVE_SYMBOLS[place // len(PALETTE) % len(_CURVE_SYMBOLS)], "size": 5},
        hoverinfo="text",
        hovertext=[
            escape(f"{trial_name(trial)}, epoch {epoch}: {part} {quantity} {y:.4g} {unit}") for epoch, y in epochs
        ],
    )


def accuracy_by_learning_rate(trials: Sequence[FrozenTrial], *, data: str) -> go.Figure:
    """Validation accuracy by learning rate: a complete trial's best, any other's last. `data` names the images.

    The symbol says how a trial ended, the colour its batch size where that varies, a ring that it is a point by hand.
    """
    drawn = [trial for trial in trials if "config" in trial.user_attrs and accuracy_of(trial) is not None]
    sizes = sorted({trial.user_attrs["config"]["batch_size"] for trial in drawn})
    groups: dict[tuple[int, TrialState], list[FrozenTrial]] = defaultdict(list)
    for trial in drawn:
        groups[trial.user_attrs["config"]["batch_size"], trial.state].append(trial)
    figure = go.Figure()
    for (size, state), members in sorted(groups.items(), key=lambda group: (group[0][0], group[0][1].value)):
        words = STATE_NAMES[state] + ("" if state is TrialState.COMPLETE else ", last value")
        figure.add_scatter(
            **_positions(members),
            mode="markers",
            name=f"batch size {size}, {words}" if len(sizes) > 1 else words,
            marker={"color": PALETTE[sizes.index(size) % len(PALETTE)], "symbol": _STATE_SYMBOLS[state], "size": 10},
            hoverinfo="text",
            hovertext=[_trial_words(trial) for trial in members],
        )
    by_hand = [trial for trial in drawn if trial.user_attrs.get("label")]
    if by_hand:
        figure.add_scatter(
            **_positions(by_hand),
            mode="markers+text",
            name="point by hand",
            marker={"color": QUIET, "symbol": "circle-open", "size": 18, "line": {"width": 2}},
            text=[escape(trial.user_attrs["label"]) for trial in by_hand],
            textposition="top center",
            cliponaxis=False,
            hoverinfo="skip",
        )
    figure.update_xaxes(title="learning rate", type="log", exponentformat="power")
    figure.update_yaxes(title="validation accuracy, %")
    return finish(figure, f"{data}: validation images", height=520)


def _positions(trials: Iterable[FrozenTrial]) -> dict[str, list[float]]:
    accuracies = [(trial, accuracy_of(trial)) for trial in trials]
    return {
        "x": [trial.user_attrs["config"]["learning_rate"] for trial, _ in accuracies],
        "y": [100 * accuracy for _, accuracy in accuracies if accuracy is not None],
    }


def _trial_words(trial: FrozenTrial) -> str:
    config = trial.user_attrs["config"]
    return hover_text(
        [
            f"{trial_name(trial)}, {STATE_NAMES[trial.state]}: {config['model']}",
            f"learning rate {config['learning_rate']:.3g}, batch size {config['batch_size']}",
            f"validation accuracy {100 * (accuracy_of(trial) or 0):.2f} %",
            f"after {len(trial.user_attrs.get('curve', []))} of {config['epochs']} epochs",
        ]
    )


def trial_name(trial: FrozenTrial) -> str:
    label, shortened = trial.user_attrs.get("label"), trial.user_attrs.get("shortened")
    return (
        f"trial {trial.number}" + (f", {label}" if label else "") + (f" (shortened: {shortened})" if shortened else "")
    )


def hover_text(words: Iterable[str]) -> str:
    """Escaped text on several lines, for a box beside the pointer."""
    wrapped = (textwrap.wrap(text, 60) if len(text) > 60 else [text] for text in words if text)  # to wrap takes long
    return "<br>".join(escape(line) for lines in wrapped for line in lines)


def finish(figure: go.Figure, title: str, *, height: int) -> go.Figure:
    """The look that all figures share. Grounds are clear and inks are neutral: the page's light or dark shows."""
    lines = textwrap.wrap(title, _TITLE_COLUMNS)
    axis = {"gridcolor": "rgba(128,128,128,0.3)", "zeroline": False, "linecolor": QUIET, "automargin": True}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    words: dict[str, Any] = {"text": "<br>".join(map(escape, lines)), "font": {"size": 13}}
    # From the top down: else many lines hang over what is drawn.
    words |= {"x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 12}}
    return figure.update_layout(
        title=words,
        height=height + 18 * len(lines),
        margin={"l": 10, "r": 10, "t": 24 + 18 * len(lines), "b": 10},
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "xanchor": "left", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "color": "#777777"},
        template="none",
    )


def comparison_page(path: Path, rows: Sequence[HandRow]) -> None:
    """Write `claimed_against_measured` as a page. Raises DiskError as `write_html` does."""
    explanation = "A line joins what a report says of a run and what the same settings came to here."
    if any(row.shortened for row in rows):
        explanation += " Open circles and dotted lines are shortened runs, which no claim can be compared with."
    devices = sorted({row.device for row in rows if row.device})
    commits = sorted({row.commit for row in rows if row.commit})
    facts = {"device": ", ".join(devices), "commit": ", ".join(commits)}
    figure = claimed_against_measured(rows)
    write_html(path, [("Claimed and measured", explanation, figure)], title="The reports' hand runs", facts=facts)


def study_page(path: Path, study: SweepStudy, *, curves: int) -> None:
    """Write the learning curves of the `curves` best trials, and accuracy by learning rate, as a page.

    Raises:
        StudyError: no trial has finished an epoch.
        DiskError: the file could not be written.
    """
    trials = [trial for trial in study.trials() if trial.user_attrs.get("curve")]
    if not trials:
        raise StudyError(f"study {study.name!r} has no trial with a finished epoch to draw; run it first.")
    ended = study.ranked() or sorted(trials, key=lambda trial: -(accuracy_of(trial) or 0))
    data = data_words(study)
    figures = [
        (
            "Learning curves",
            f"The {min(curves, len(ended))} best trials by validation accuracy; solid is validation, dashed training.",
            learning_curves(ended[:curves], data=data),
        )
    ]
    if "learning_rate" in study.sweep.space:
        explanation = "Best validation accuracy of each trial; pruned ones at the epoch where they were stopped."
        figures.append(("Accuracy by learning rate", explanation, accuracy_by_learning_rate(trials, data=data)))
    facts = {"data": data, "trials": f"{len(trials)} of {study.budget}"}
    write_html(path, figures, title=f"Study {study.name}", facts=facts)
