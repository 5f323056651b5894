"""Words that a report's page and its text share."""

from dataclasses import dataclass
from typing import Any

from cifar_sweep.figures.style import best_of, with_accuracy
from cifar_sweep.pages import rendered
from cifar_sweep.report.facts import Report
from cifar_sweep.words import counted, percent


def told(report: Report) -> dict[str, Any]:
    """What both templates are given: the report, and words about it.

    `counts` says how many trials are in each state, where not all are complete. `furthest` is a sentence about the best
    value so far, for a study without a complete trial. `hand` is a `HandCard`.
    """
    counts = {name: count for name, count in report.counts.items() if count}
    in_words = "" if set(counts) <= {"complete"} else ", ".join(f"{count} {name}" for name, count in counts.items())
    return {"report": report, "counts": in_words, "furthest": _furthest_text(report), "hand": hand_card(report)}


def _furthest_text(report: Report) -> str:
    best = best_of(with_accuracy(report.trials))
    if best is None:
        return ""
    reached = f"{percent(best.accuracy or 0)} % after {counted(best.epochs_done, 'epoch')}"
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
