"""Words that a report's page and its text share, and the templates that both are written with."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from cifar_sweep.config import Value
from cifar_sweep.files import replace_file
from cifar_sweep.report.facts import Report
from cifar_sweep.words import duration

_MARKED_UP = re.compile(r"([\\`*_\[\]<>|~&$])")


@cache
def templates() -> Environment:
    """The report's templates. Values are escaped in HTML; Markdown has the filter `md` for others' texts."""
    environment = Environment(
        loader=PackageLoader("cifar_sweep.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent, "duration": duration, "plain": plain, "counted": counted, "md": escaped,
        "date": "{:%Y-%m-%d %H:%M}".format,
    }  # fmt: skip
    return environment


def escaped(text: str) -> str:
    """A text on one line that Markdown shows as it is."""
    return _MARKED_UP.sub(r"\\\1", " ".join(text.split()))


def percent(share: float) -> str:
    """A fraction in percent, without the sign."""
    return f"{100 * share:.2f}"


def plain(value: Value) -> str:
    """A parameter's value for people."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def counted(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def furthest_text(report: Report) -> str:
    """A sentence about the best value so far, for a study without a complete trial; empty where there is no value."""
    known = [(trial.accuracy, -trial.number, trial) for trial in report.trials if trial.accuracy is not None]
    if not known:
        return ""
    accuracy, _, best = max(known)
    reached = f"{percent(accuracy)} % after {counted(best.epochs_done, 'epoch')}"
    return f"The best value so far is that of trial {best.number}, {best.state}: {reached}."


def counts_text(report: Report) -> str:
    """How many trials are in each state; empty where all are complete."""
    counts = {name: count for name, count in report.counts.items() if count}
    return "" if set(counts) <= {"complete"} else ", ".join(f"{count} {name}" for name, count in counts.items())


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
    words = templates().get_template("hand.txt").render(run=hand.run, search=hand.search)
    return None if claim is None else HandCard(title, claim, " ".join(words.split()))


def write(path: Path, text: str) -> None:
    """Write a report. Raises DiskError as `replace_file` does."""
    replace_file(path, text.encode(errors="replace"))
