"""What a person sees while a sweep runs: one live view in a terminal, plain lines elsewhere.

Everything comes from the database, so that the view is right whoever trains.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cifar_sweep.results.status import duration, seconds_left, seconds_spent, setting_text
from cifar_sweep.search.study import STATE_NAMES, SweepStudy, describe

REFRESH_SECONDS = 1.0


@contextmanager
def shown(study: SweepStudy, console: Console, *, live: bool = True) -> Iterator[None]:
    """Show the study's progress while the body runs, and its last state when it ends; in lines where not `live`."""
    done = threading.Event()
    view = _LiveView(study, console) if live and console.is_terminal else _Lines(study, console, named=not live)

    def refresh() -> None:
        with suppress(Exception):  # a busy or absent database: the workers say so, the view tries again
            view.refresh()

    def refresh_on() -> None:
        while not done.wait(REFRESH_SECONDS):
            refresh()

    thread = threading.Thread(target=refresh_on, name="progress", daemon=True)
    with view.live:
        refresh()
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            refresh()


class _LiveView:
    """The whole state, drawn again and again in place."""

    def __init__(self, study: SweepStudy, console: Console) -> None:
        self.study = study
        self.live = Live(Text(), console=console, auto_refresh=False, redirect_stdout=False)

    def refresh(self) -> None:
        self.live.update(self._draw(), refresh=True)

    def _draw(self) -> RenderableType:
        trials = self.study.asked()
        summary = self.study.summary(trials)
        counts = summary["trials"]
        done = counts["complete"] + counts["pruned"]
        facts = Table.grid(padding=(0, 2))
        facts.add_row("", ProgressBar(total=summary["budget"], completed=done, width=60))
        facts.add_row("trials", f"{done} of {summary['budget']} done, {_counts_text(counts)}")
        facts.add_row("best", Text(_best_text(summary["best"])))
        for trial in trials:
            if trial.state is TrialState.RUNNING:
                facts.add_row("running", Text(_running_text(trial)))
        facts.add_row("time left", _left_text(self.study))
        return Group(Text.assemble((summary["name"], "bold"), f" on {summary['data']}"), facts)


class _Lines:
    """A line for each trial that ends."""

    def __init__(self, study: SweepStudy, console: Console, *, named: bool) -> None:
        self.study = study
        self.console = console
        self.prefix = f"{study.name} " if named else ""
        self.live = _nothing()
        self.said: set[int] | None = None

    def refresh(self) -> None:
        trials = self.study.trials()
        if self.said is None:  # what was finished before
            self.said = {trial.number for trial in trials if trial.state.is_finished()}
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self.said:
                self.console.print(self._line(trial), markup=False, highlight=False, soft_wrap=True)
                self.said.add(trial.number)

    def _line(self, trial: FrozenTrial) -> str:
        summary = self.study.summary(self.study.asked())
        done = summary["trials"]["complete"] + summary["trials"]["pruned"]
        value = f" {trial.value:.2%}" if trial.value is not None else ""
        reason = f" ({trial.user_attrs['reason']})" if "reason" in trial.user_attrs else ""
        return (
            f"[{self.prefix}{done}/{summary['budget']}] trial {trial.number} {STATE_NAMES[trial.state]}{value} "
            f"{setting_text(describe(trial))} in {duration(seconds_spent(trial))}{reason}; "
            f"best {_best_text(summary['best'])}; time left {_left_text(self.study)}"
        )


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in ("pruned", "failed", "running", "waiting"))


def _best_text(best: dict[str, Any] | None) -> str:
    if best is None:
        return "none yet"
    return f"{best['value']:.2%} validation accuracy, trial {best['number']}: {setting_text(best)}"


def _running_text(trial: FrozenTrial) -> str:
    curve = trial.user_attrs.get("curve", [])
    epochs = trial.user_attrs.get("config", {}).get("epochs", "?")
    accuracy = f", {curve[-1]['validation_accuracy']:.2%}" if curve else ""
    params = setting_text(describe(trial))
    since = duration(seconds_spent(trial))
    return f"trial {trial.number}, epoch {len(curve)} of {epochs}{accuracy}, {since}: {params}"


def _left_text(study: SweepStudy) -> str:
    left = seconds_left(study)
    return "known after two trials" if left is None else f"{duration(left[0])} to {duration(left[1])}"
