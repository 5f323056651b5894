"""The pages of `plot` and `compare`: a few figures with facts about them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.errors import StudyError
from cifar_sweep.figures.curve_figures import learning_curves
from cifar_sweep.figures.hand_figures import claimed_against_measured
from cifar_sweep.figures.search_figures import accuracy_by_learning_rate
from cifar_sweep.files import replace_file
from cifar_sweep.hand.rows import HandRow
from cifar_sweep.report import html
from cifar_sweep.study.record import SYNTHETIC_REMARK, is_synthetic
from cifar_sweep.study.study import SweepStudy, data_words


def study_page(path: Path, study: SweepStudy, *, curves: int) -> None:
    """Write the best trials' learning curves, and accuracy by learning rate, as a page. Raises StudyError."""
    trials = [trial for trial in study.trials() if trial.curve]
    if not trials:
        raise StudyError(f"study {study.name!r} has no trial with a finished epoch to draw; run it first.")
    best = study.ranked() or sorted(trials, key=lambda trial: -trial.score)
    shown, data = best[:curves], data_words(study)
    words = f"The {len(shown)} best trials by {study.metric.words}; solid is validation, dashed training."
    figures = [("Learning curves", words, learning_curves(shown, data=data))]
    if "learning_rate" in study.sweep.space:
        words = f"Best {study.metric.words} of each trial; pruned ones at the epoch where they were stopped."
        title = f"{study.metric.words.removeprefix('validation ').capitalize()} by learning rate"
        figures.append((title, words, accuracy_by_learning_rate(trials, data=data)))
    facts = {"data": data, "trials": f"{sum(trial.confirms is None for trial in trials)} of {study.budget}"}
    figure_page(path, figures, title=f"Study {study.name}", facts=facts)


def comparison_page(path: Path, rows: Sequence[HandRow]) -> None:
    """Write what was claimed of each hand run beside what was measured, as a page. Raises DiskError."""
    words = (
        "A line joins the test accuracy on CIFAR-10 that a report claims of a run and the one measured here with the "
        "same settings."
    )
    if any(row.shortened for row in rows):
        words += " Open circles and dotted lines are shortened runs, which no claim can be compared with."
    data = sorted({row.data for row in rows if row.test is not None and row.data})
    facts = {
        "measured on": "; ".join(data) or "nothing yet",
        "device": ", ".join(sorted({row.device for row in rows if row.device})),
        "commit": ", ".join(sorted({row.commit for row in rows if row.commit})),
    }
    figures = [("Claimed and measured", words, claimed_against_measured(rows))]
    remark = f"Caution: {SYNTHETIC_REMARK}." if is_synthetic(data) else ""
    figure_page(path, figures, title="The reports' hand runs", facts=facts, remark=remark)


def figure_page(
    path: Path, figures: Sequence[tuple[str, str, go.Figure]], *, title: str, facts: Mapping[str, str], remark: str = ""
) -> None:
    """Write figures, each with its title and an explanation, as one page.

    `facts` say what the numbers are of, by name, empty ones are left out; `remark` is what a reader must know first.
    Raises DiskError where the file could not be written; what stood there before still stands.
    """
    drawings = {f"figure-{place}": html.drawing(figure) for place, (*_, figure) in enumerate(figures, start=1)}
    titles = [(heading, words) for heading, words, _ in figures]
    page = html.render("figures.html", title=title, figures=titles, drawings=drawings, facts=facts, remark=remark)
    replace_file(path, page)
