"""What a person sees while a sweep runs, whoever trains: one live view in a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cifar_sweep.config import decides_shape
from cifar_sweep.database.outage import is_outage
from cifar_sweep.forecast.costs import noted_costs
from cifar_sweep.forecast.time_left import WorkerGroup, at_work, groups_of, seconds_left
from cifar_sweep.pages import rendered
from cifar_sweep.study.record import IMPOSSIBLE, TrialRecord, counts_text, saved_by_pruning
from cifar_sweep.study.storage import HALTED, PAUSED
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.study.winner import ranked
from cifar_sweep.words import duration, params_text, span

REFRESH_SECONDS = 1.0
MOST_WORKERS = 8  # that are shown by a line of their own
BAR_WIDTH = 24
SOON_SECONDS = 300


@contextmanager
def shown(study: SweepStudy, console: Console, *, live: bool = True) -> Iterator[None]:
    """Show the study's progress while the body runs, and its last state when it ends; in lines where not `live`."""
    done = threading.Event()
    view = _LiveView(study, console) if live and console.is_terminal else _Lines(study, console, named=not live)

    def refresh() -> None:
        try:
            view.refresh()
        except Exception as error:  # the workers say what is wrong, and wait or end; the view tries again
            view.miss(error)

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


@contextmanager
def all_shown(studies: Sequence[SweepStudy], console: Console) -> Iterator[None]:
    """Say of each study's trials what they come to, in lines, while the body runs."""
    with ExitStack() as views:
        for study in studies:
            views.enter_context(shown(study, console, live=False))
        yield


class _TimeLeft:
    """The range of the time left, reckoned anew as seldom as it costs little, and counted down in between."""

    def __init__(self, study: SweepStudy) -> None:
        self._study = study
        self._range: tuple[float, float] | None = None
        self._reckoned = self._next = -1.0

    def now(self, trials: Sequence[TrialRecord]) -> tuple[float, float] | None:
        begun = time.monotonic()
        if begun >= self._next:
            self._range = seconds_left(self._study, trials, starting=True)
            self._reckoned = time.monotonic()
            self._next = self._reckoned + max(1.0, 50 * (self._reckoned - begun))  # 2 % of the time
        if self._range is None:
            return None
        passed = time.monotonic() - self._reckoned
        low, high = (max(seconds - passed, 0.0) for seconds in self._range)
        return low, high


class _LiveView:
    """The whole state, drawn again and again in place."""

    def __init__(self, study: SweepStudy, console: Console) -> None:
        self.study = study
        self.live = Live(Text(), console=console, auto_refresh=False, redirect_stdout=False)
        self.left = _TimeLeft(study)
        self.drawn: RenderableType = Text(study.name, style="bold")
        self.seen = time.monotonic()

    def refresh(self) -> None:
        self.drawn, self.seen = self.draw(), time.monotonic()
        self.live.update(self.drawn, refresh=True)

    def miss(self, error: Exception) -> None:
        """Show what was last seen, and say that it is old, where the database does not answer."""
        if is_outage(error):
            since = duration(time.monotonic() - self.seen)
            notice = f"the database has not answered for {since}; trials go on, and are reported when it does"
            self.live.update(Group(self.drawn, Text(notice, style="yellow")), refresh=True)

    def draw(self) -> RenderableType:
        """The view, in at most 80 columns."""
        trials = self.study.asked()
        summary = self.study.summary(trials)
        bar = Table.grid(padding=(0, 1))
        progress = ProgressBar(total=max(summary["budget"], 1), completed=_done(summary), width=BAR_WIDTH)
        others = counts_text(summary["trials"], but=["complete"])
        bar.add_row(progress, f"{_done(summary)} of {summary['budget']} done{'; ' * bool(others)}{others}")
        told = _live_text(self.study, summary, trials, self.left.now(trials))
        lines = [*(line.partition("|")[::2] for line in told.splitlines()), *worker_lines(trials)]
        facts = Table.grid(padding=(0, 1))
        facts.add_column(no_wrap=True, min_width=9, style="cyan")
        facts.add_column()
        facts.add_row("trials", bar)
        for label, line in lines:
            facts.add_row(label, Text(line, overflow="ellipsis", no_wrap=True))
        title = Text.assemble((summary["name"], "bold"), f" on {summary['data']}", overflow="ellipsis", no_wrap=True)
        return Group(title, facts)


class _Lines:
    """A line for each trial that ends."""

    def __init__(self, study: SweepStudy, console: Console, *, named: bool) -> None:
        self.study = study
        self.console = console
        self.prefix = f"{study.name} " if named else ""
        self.live = nullcontext()
        self.said: set[int] | None = None
        self.left = _TimeLeft(study)

    def refresh(self) -> None:
        trials = self.study.trials()
        if self.said is None:  # what was finished before
            self.said = {trial.number for trial in trials if trial.is_finished}
        for trial in trials:
            if trial.is_finished and trial.number not in self.said:
                self.console.print(self._line(trial), markup=False, highlight=False, soft_wrap=True)
                self.said.add(trial.number)

    def miss(self, error: Exception) -> None:
        """The workers say so, in lines."""

    def _line(self, trial: TrialRecord) -> str:
        trials = self.study.asked()
        summary = self.study.summary(trials)
        leads = summary["best"]
        best = f"best {self.study.metric.text(leads['value'])} (trial {leads['number']})" if leads else ""
        left = self.left.now(trials)
        parts = [_ended_text(trial), best, f"{span(*left)} left" if left and left[1] else ""]
        done = f"{_done(summary)}/{summary['budget']}"
        if (found := summary["confirmation"]) and trial.confirms is not None:
            done = f"confirming {found['done']}/{found['begun']}"
        return f"[{self.prefix}{done}] {'; '.join(part for part in parts if part)}"


def _ended_text(trial: TrialRecord) -> str:
    value = f" {trial.metric.text(trial.value)}" if trial.value is not None else ""
    short = f" after {trial.epochs_done} of {trial.epochs} epochs" if trial.epochs_left else ""
    reason = f" ({trial.reason})" if trial.state in ("failed", IMPOSSIBLE) and trial.reason else ""
    as_one = f"trial {trial.confirms} without the cuts" if trial.uncut else f"confirms trial {trial.confirms}"
    name = f"trial {trial.number}" + ("" if trial.confirms is None else f" ({as_one})")
    words = f"{name} {trial.state_words}{value}{short} in {duration(trial.seconds)}{reason}"
    return ", ".join(filter(None, (words, trial.setting)))


def _done(summary: dict[str, Any]) -> int:
    return int(summary["trials"]["complete"] + summary["trials"]["pruned"])


def _live_text(
    study: SweepStudy, summary: dict[str, Any], trials: Sequence[TrialRecord], left: tuple[float, float] | None
) -> str:
    """Time left, the best trial, and what pruning saved, each line after its label and a bar."""
    now = datetime.now()
    costs = noted_costs(study)
    best = next(iter(ranked(trials)), None)
    return rendered(
        "terminal",
        "live.txt",
        **summary,
        by=study.metric,
        halted=HALTED,
        paused=PAUSED,
        done=_done(summary),
        ended=study.finished(trials),
        left=left,
        soon=SOON_SECONDS,
        clock=[f"{now + timedelta(seconds=seconds):%H:%M}" for seconds in left or ()],
        idle=(costs.workers if costs else 0) - len(at_work(trials, now)),
        setting=best.setting if best else "",
        ago=(now - best.ended).total_seconds() if best and best.ended else None,
        saved=saved_by_pruning(trials),
        span=span,
    )


def worker_lines(trials: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    """A line for each worker that trains, with its number in the order of their first trials, and its group."""
    running = [group for group in groups_of(trials) if group.running]
    running.sort(key=lambda group: (len(group.trials[0].worker), group.trials[0].worker))
    rest = running[MOST_WORKERS:]
    others = ("others", f"{len(rest)} workers with {sum(len(group.running) for group in rest)} trials")
    return [*map(_worker_line, running[:MOST_WORKERS]), *([others] if rest else [])]


def _worker_line(group: WorkerGroup) -> tuple[str, str]:
    """What a worker does: its trials, how far they are, the best of them, since when, what they have in common."""
    worker, on, host = group.trials[0].worker.partition(" on ")
    running = group.running
    metric = running[0].metric
    reached = [getattr(trial.best, metric.field) for trial in running if trial.best]
    best = f", best {metric.text(max(reached, key=metric.score), digits=1)}" if reached else ""
    since = duration((datetime.now() - group.begun).total_seconds())
    epochs = f"epoch {min(running[0].epochs_done + 1, group.shape.epochs)} of {group.shape.epochs}"
    numbers, common = f"trial {running[0].number}", running[0].setting
    if len(running) > 1:
        first, last = (end(trial.number for trial in running) for end in (min, max))
        numbers = f"{len(running)} of " * (last - first >= len(running)) + f"trials {first}-{last}"
        shape = {name: value for name, value in running[0].params.items() if decides_shape(name, value)}
        common = params_text(shape) or "of one shape"  # what decided that they are trained together
    return worker, f"{numbers}: {epochs}{best}, {since}{on}{host}; {common}"
