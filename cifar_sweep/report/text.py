"""A report as text: words that its page says, too, short Markdown for a pull request, and every trial as CSV."""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cifar_sweep.figures.style import best_of, with_accuracy, with_unit
from cifar_sweep.pages import rendered
from cifar_sweep.parameters import Value
from cifar_sweep.report.facts import Report
from cifar_sweep.study.claiming import given_among
from cifar_sweep.study.record import TrialRecord, counts_text
from cifar_sweep.words import counted

TOP_TRIALS = 10


def told(report: Report) -> dict[str, Any]:
    """What both templates are given: the report, and words about it.

    `counts` says how many trials are in each state, where not all are complete. `furthest` is a sentence about the best
    value so far, for a study without a complete trial. `past` says what it knew of another study, and how it was
    extended. `hand` is a `HandCard`.
    """
    in_words = counts_text(report.counts) if counts_text(report.counts, but=["complete"]) else ""
    if given := given_among(report.trials, report.study.sweep):
        in_words = f"{in_words}{'; ' * bool(in_words)}{given} of the finished given, the others searched"
    notes = [f"On {each['at'][:10]} the study was extended: {each['words']}" for each in report.study.changes]
    if report.answer and (remark := report.study.remark(report.answer.trial)):
        notes.append(f"{remark[0].upper()}{remark[1:]}: it is not the same as a trial of the space as it is now.")
    past = " ".join(filter(None, [_begun_with_text(report), *notes]))
    words = {"counts": in_words, "furthest": _furthest_text(report), "past": past}
    return words | {"report": report, "hand": hand_card(report)}


def _begun_with_text(report: Report) -> str:
    if not (known := report.study.begun_with()):
        return ""
    words = f"It began with {counted(known['trials'], 'trial')} of {', '.join(known['studies'])}, not counted here."
    if best := known["best"]:
        reached = f"{report.study.metric.number(best['value'])}{report.study.metric.unit} on the validation images"
        words += f" The best of them is trial {best['number']} of {best['study']}: {reached}; its weights are there."
    return words


def _furthest_text(report: Report) -> str:
    best = best_of(with_accuracy(report.trials))
    if best is None:
        return ""
    reached = f"{with_unit(best)} after {counted(best.epochs_done, 'epoch')}"
    return f"The best value so far is that of trial {best.number}, {best.state}: {reached}."


@dataclass(frozen=True)
class HandCard:
    """The reports' best beside the answer: a claimed test accuracy, in percent."""

    title: str
    claim: float
    words: str


def hand_card(report: Report) -> HandCard | None:
    """What the reports claim, and how far the best trial is from it; None on synthetic images, or without a claim."""
    hand = report.by_hand
    if hand is None or report.answer is None:
        return None
    if hand.run is not None:
        title, claim = "Its report claims", hand.run.claimed
    else:
        best = hand.search and (hand.search.claimed_model or hand.search.claimed_all)
        title = f"Reports' best by hand, with {'this' if hand.search and hand.search.claimed_model else 'any'} network"
        claim = best.accuracy if best else None
    words = rendered("report", "hand.txt", run=hand.run, search=hand.search)
    return None if claim is None else HandCard(title, claim, " ".join(words.split()))


def markdown(report: Report) -> str:
    """The answer, the best trials, what pruning saved, what mattered, and how to get the numbers again."""
    top = report.ranked[:TOP_TRIALS]
    names = [name for name in report.parameters if any(name in trial.params for trial in top)]
    return rendered("report", "report.md", **told(report), top=top, names=names)


BEFORE: Mapping[str, Callable[[TrialRecord], Value | None]] = {
    "trial": lambda trial: trial.number,
    "state": lambda trial: "diverged" if trial.diverged else trial.state,
    "value": lambda trial: trial.value,
    "epochs_done": lambda trial: trial.epochs_done,
    "of_epochs": lambda trial: trial.epochs,
    "seconds": lambda trial: round(trial.seconds, 3),
}
AFTER: Mapping[str, Callable[[TrialRecord], Value | None]] = {
    "label": lambda trial: trial.label,
    "confirms": lambda trial: trial.confirms,
    "device": lambda trial: trial.device,
    "worker": lambda trial: trial.worker,
    "seed": lambda trial: trial.settings.get("seed"),
    "started": lambda trial: trial.started.isoformat(timespec="seconds") if trial.started else None,
    "ended": lambda trial: trial.ended.isoformat(timespec="seconds") if trial.ended else None,
    "reason": lambda trial: trial.reason,
}


def trials_csv(report: Report) -> str:
    """A row for each trial: what became of it, and its parameters under their own names. Accuracies are fractions."""
    params = {name: lambda trial, name=name: trial.params.get(name) for name in report.parameters}
    columns = {**BEFORE, **params, **AFTER}
    out = io.StringIO(newline="")
    rows = ([value(trial) for value in columns.values()] for trial in report.trials)
    csv.writer(out).writerows([columns, *rows])
    return out.getvalue()
