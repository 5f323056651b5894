"""A report as text: short Markdown for a pull request, and every trial as CSV."""

import csv
import io
from collections.abc import Callable, Mapping
from datetime import datetime

from cifar_sweep.config import Value
from cifar_sweep.pages import rendered
from cifar_sweep.report.facts import Report
from cifar_sweep.report.words import told
from cifar_sweep.study.record import TrialRecord

TOP_TRIALS = 10


def markdown(report: Report) -> str:
    """The answer, the best trials, what pruning saved, what mattered, and how to get the numbers again."""
    top = report.ranked[:TOP_TRIALS]
    names = [name for name in report.parameters if any(name in trial.params for trial in top)]
    return rendered("report", "report.md", **told(report), top=top, names=names)


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None


BEFORE: Mapping[str, Callable[[TrialRecord], Value | None]] = {
    "trial": lambda trial: trial.number,
    "state": lambda trial: trial.state,
    "value": lambda trial: trial.value,
    "epochs_done": lambda trial: trial.epochs_done,
    "of_epochs": lambda trial: trial.epochs,
    "seconds": lambda trial: round(trial.seconds, 3),
}
AFTER: Mapping[str, Callable[[TrialRecord], Value | None]] = {
    "label": lambda trial: trial.label,
    "device": lambda trial: trial.device,
    "worker": lambda trial: trial.worker,
    "seed": lambda trial: trial.settings.get("seed"),
    "started": lambda trial: _moment(trial.started),
    "ended": lambda trial: _moment(trial.ended),
    "reason": lambda trial: trial.reason,
}


def trials_csv(report: Report) -> str:
    """A row for each trial: what became of it, and its parameters under their own names. Accuracies are fractions."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([*BEFORE, *report.parameters, *AFTER])
    for trial in report.trials:
        params = [trial.params.get(name) for name in report.parameters]
        before, after = ([value(trial) for value in columns.values()] for columns in (BEFORE, AFTER))
        writer.writerow([*before, *params, *after])
    return out.getvalue()
