"""A report as text: short Markdown for a pull request, and every trial as CSV."""

import csv
import io
import re
from collections.abc import Iterable

from cifar_sweep.config import Value
from cifar_sweep.figures.importance import Importances
from cifar_sweep.report.facts import Accuracy, Report
from cifar_sweep.report.words import counts_text, furthest_text, hand_card, percent, plain
from cifar_sweep.study.record import TrialRow
from cifar_sweep.words import duration

TOP_TRIALS = 10
_MARKED_UP = re.compile(r"([\\`*_\[\]<>|~&$])")


def markdown(report: Report) -> str:
    """The answer, the best trials, what pruning saved, what mattered, and how to get the numbers again."""
    finished = report.counts["complete"] + report.counts["pruned"]
    counts = counts_text(report)
    lines = [
        f"## Study {_plain(report.name)}",
        "",
        f"{_plain(report.data)}. {finished} of {report.budget} trials{f' ({counts})' if counts else ''}, "
        f"{duration(report.seconds)} of training.",
    ]
    if report.synthetic:
        lines += ["", "**Synthetic images**, drawn by our own code: nothing here says anything about CIFAR-10."]
    if report.shortened:
        lines += ["", f"**Shortened:** {_plain(report.shortened)}."]
    lines += ["", *_answer(report), ""]
    if report.counts["complete"]:
        lines += ["### Best trials", "", *_top(report), ""]
    if report.saved.trials:
        saved = report.saved
        lines += [
            "### Pruning",
            "",
            f"Pruner {report.pruner} stopped {saved.trials} of {len(report.rows)} trials early: {saved.epochs:,} "
            f"epochs were not trained, about {duration(saved.seconds)} of one worker's time at each trial's own pace.",
            "",
        ]
    lines += ["### What matters", "", *_importance(report.importances), ""]
    lines += ["### How to get these numbers again", "", *_again(report)]
    return "\n".join(lines) + "\n"


def _answer(report: Report) -> list[str]:
    best = report.answer
    if best is None:
        return [f"No trial is complete yet. {furthest_text(report)}".rstrip()]
    label = f" ({_plain(best.label)})" if best.label else ""
    params = ", ".join(f"{name} {_plain(plain(best.chosen[name]))}" for name in best.searched if name in best.chosen)
    lines = [
        f"**Trial {best.number}**{label}: {params.replace('_', chr(92) + '_')}"
        if params
        else f"**Trial {best.number}**",
        "",
        *_table(
            ["", "accuracy %", "95 % interval"],
            [
                _accuracy_row("validation (it chose)", best.validation),
                _accuracy_row("test", best.test) if best.test else ["test", "not measured", ""],
            ],
        ),
    ]
    card = hand_card(report)
    if card is not None:
        lines += ["", f"{card.title}: {card.claim:.2f} %. {_plain(card.words)}"]
    if best.test is None and report.closer.missing:
        lines += ["", f"{_plain(report.closer.missing)}"]
    lines += ["", "Intervals are Wilson's, from the number of images: they say nothing of other seeds."]
    if best.repeats:
        seeds = len(best.repeats.numbers)
        spread = f"{percent(best.repeats.mean)} ± {percent(best.repeats.deviation)} %"
        lines[-1] += f" Over {seeds} seeds the validation accuracy is {spread} (mean and standard deviation)."
    return lines


def _accuracy_row(name: str, accuracy: Accuracy) -> list[str]:
    interval = " to ".join(map(percent, accuracy.interval)) if accuracy.interval else ""
    return [name, percent(accuracy.value), interval]


def _top(report: Report) -> list[str]:
    complete = [row for row in report.rows if row.state == "complete"]
    ranked = sorted(complete, key=lambda row: (-(row.value or 0), row.number))[:TOP_TRIALS]
    # What all of them share, or one alone has, is no column.
    names = [name for name in report.parameters if any(name in row.params for row in ranked)]
    head = ["trial", "validation %", "epochs", "time", *map(_plain, names)]
    return _table(
        head,
        [
            [
                str(row.number),
                percent(row.value or 0),
                str(row.epochs_done),
                duration(row.seconds),
                *(_plain(plain(row.params[name])) if name in row.params else "" for name in names),
            ]
            for row in ranked
        ],
    )


def _importance(found: Importances) -> list[str]:
    if not found.shares:
        return [f"There is no importance of parameters: {found.reason}."]
    shares = ", ".join(f"{_plain(name)} {share:.0%}" for name, share in found.shares)
    return [
        f"What sets the best tenth of the {found.trials} complete trials apart from all of them (PED-ANOVA): {shares}."
    ]


def _again(report: Report) -> list[str]:
    again = report.reproduction
    lines = ["```sh", *(f"{command}  # {words}" for command, words in again.commands), "```", ""]
    lines += [f"- {name}: {_plain(fact)}" for name, fact in again.facts.items()]
    if again.file:
        fence = "```" if "```" not in again.sweep else "~" * 8
        lines += ["", f"<details><summary>{_plain(again.file)}</summary>", "", f"{fence}toml"]
        lines += [again.sweep.rstrip("\n"), fence, "", "</details>"]
    return lines


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    cells = [list(head), *map(list, rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]


def _plain(text: str) -> str:
    """A text on one line that Markdown shows as it is."""
    return _MARKED_UP.sub(r"\\\1", " ".join(text.split()))


def trials_csv(report: Report) -> str:
    """A row for each trial: what became of it, and its parameters under their own names. Accuracies are fractions."""
    own = (
        "trial", "state", "value", "epochs_done", "of_epochs", "seconds", "label", "device", "worker", "seed",
        "started", "ended", "reason",
    )  # fmt: skip
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([*own[:6], *report.parameters, *own[6:]])
    writer.writerows(_csv_row(row, report.parameters) for row in report.rows)
    return out.getvalue()


def _csv_row(row: TrialRow, parameters: Iterable[str]) -> list[Value | None]:
    started, ended = (moment.isoformat(timespec="seconds") if moment else None for moment in (row.started, row.ended))
    params = [row.params.get(name) for name in parameters]
    return [
        row.number, row.state, row.value, row.epochs_done, row.epochs, round(row.seconds, 3), *params,
        row.label, row.device, row.worker, row.seed, started, ended, row.reason,
    ]  # fmt: skip
