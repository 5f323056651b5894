"""The live view, the plain lines and the table of studies say what the database holds, and fit where they stand."""

import io
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from cifar_sweep.config import TrialConfig
from cifar_sweep.curve import EpochResult
from cifar_sweep.errors import StorageBusyError
from cifar_sweep.forecast.costs import Costs, note_costs
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.record import TrialRecord, records
from cifar_sweep.study.storage import CANCELLED, PAUSED, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.terminal import progress
from cifar_sweep.terminal.status import glance, table
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.words import duration, params_text, span
from cifar_sweep.work.submit import facts
from cifar_sweep.work.worker import Job, work

TINY: dict[str, Any] = {
    "name": "tiny",
    "trials": 4,
    "pruner": "none",
    "fixed": {"model": "lenet", "precision": "fp32", "batch_size": 64, "epochs": 2},
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
}
RUNNING, COMPLETE, PRUNED, FAIL = TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
Open = Callable[..., SweepStudy]


@pytest.fixture
def opened(small_data: ImageData) -> Open:
    def made(name: str = "tiny", **keys: Any) -> SweepStudy:
        storage = open_storage("sqlite:///studies.db")
        sweep = parse(TINY | {"name": name} | keys, where="test")
        return open_or_resume(storage, name, sweep, data=facts(small_data, source="synthetic:500"))

    return made


@pytest.fixture
def study(opened: Open) -> SweepStudy:
    return opened()


def go_on(study: SweepStudy) -> None:
    work(Job("sqlite:///studies.db", (study.name,), data="synthetic:500", threads=1))


def console(*, terminal: bool, width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def text(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def trial(
    number: int,
    state: TrialState,
    *,
    owner: str = "a",
    host: str = "here",
    accuracies: tuple[float, ...] = (),
    begun: float = 100,
    ended: float = 10,
    together: int = 1,
    epochs: int = 30,
    seconds: float = 2.0,
    **attributes: Any,
) -> TrialRecord:
    """A trial that began and ended so many seconds ago."""
    params = {"model": "cnn3", "batch_size": 64, "epochs": epochs}
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0)
    curve = [
        EpochResult(epoch, 1.0, 0.5, 1.0, accuracy, 1e-3, seconds, group_size=together).to_dict()
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]
    known = {"config": config.to_dict(), "curve": curve, "owner": asdict(Owner(host, 1, "", owner, ""))}
    value = accuracies[-1] if state in (COMPLETE, PRUNED) else None
    rate = optuna.distributions.FloatDistribution(1e-5, 0.1, log=True)
    size = optuna.distributions.IntDistribution(4, 8)
    made = optuna.create_trial(
        state=state, value=value, user_attrs=known | attributes,
        params={"learning_rate": 1.23456789e-3, "log2_batch_size": 6},
        distributions={"learning_rate": rate, "log2_batch_size": size},
    )  # fmt: skip
    made.number = number
    made.datetime_start = datetime.now() - timedelta(seconds=begun)
    made.datetime_complete = datetime.now() - timedelta(seconds=ended) if state.is_finished() else None
    return TrialRecord(made)


def drawn(
    study: SweepStudy, trials: list[TrialRecord], monkeypatch: pytest.MonkeyPatch, *, width: int = 80
) -> list[str]:
    """The lines of the live view if these were the study's trials."""
    named = records([trial.frozen for trial in trials])
    monkeypatch.setattr(SweepStudy, "asked", lambda self: named)
    monkeypatch.setattr(study.storage, "orphans", lambda _: [])  # these workers are no processes
    screen = console(terminal=True, width=width)
    screen.print(progress._LiveView(study, screen).draw())
    return [line.rstrip() for line in text(screen).splitlines()]


def line_of(lines: list[str], label: str) -> str:
    [line] = [line for line in lines if line.startswith(label)]
    return line


@pytest.mark.slow
def test_plain_lines_name_each_trial_once(study: SweepStudy) -> None:
    screen = console(terminal=False)
    with progress.shown(study, screen):
        go_on(study)
    lines = text(screen).splitlines()
    assert len(lines) == 4
    for number, line in enumerate(sorted(lines, key=lambda line: line.split("trial ")[1])):
        assert f"trial {number} complete" in line
        assert "learning_rate=" in line
        assert "; best " in line
        assert len(line) < 140
    with progress.shown(study, screen):
        pass
    assert len(text(screen).splitlines()) == 4, "trials of an earlier run are not told again"


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (trial(3, COMPLETE, accuracies=(0.5, 0.61), epochs=2), "trial 3 complete 61.00% in 4 s"),
        (trial(3, PRUNED, accuracies=(0.5, 0.2), reason="weak"), "trial 3 pruned 20.00% after 2 of 30 epochs in 4 s"),
        (trial(3, FAIL, reason="out of luck"), "trial 3 failed after 0 of 30 epochs in 0 s (out of luck)"),
    ],
)
def test_a_plain_line_says_what_became_of_a_trial(
    study: SweepStudy, ended: TrialRecord, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SweepStudy, "asked", lambda self: [ended])
    line = progress._Lines(study, console(terminal=False), named=True)._line(ended)
    done = int(ended.state != "failed")
    assert line.startswith(f"[tiny {done}/4] {words}, learning_rate=0.00123 batch_size=64")


def test_the_live_view_of_a_running_and_of_a_finished_study(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    complete = SweepStudy.complete

    def watched(self: SweepStudy, *arguments: Any, **attributes: Any) -> None:
        screen = console(terminal=True)
        screen.print(progress._LiveView(study, screen).draw())
        seen.append(text(screen).splitlines())
        complete(self, *arguments, **attributes)

    monkeypatch.setattr(SweepStudy, "complete", watched)
    screen = console(terminal=True)
    with progress.shown(study, screen):
        go_on(study)
    assert "0 of 4 done; 1 running" in line_of(seen[0], "trials")
    assert "none yet" in line_of(seen[0], "best")
    assert "trial 0: epoch 2 of 2, best " in line_of(seen[0], "worker 1")
    assert " s" in line_of(seen[0], "time left")
    assert "2 of 4 done" in line_of(seen[2], "trials")
    assert "validation accuracy, trial " in line_of(seen[2], "best")
    last = text(screen).splitlines()
    assert any("4 of 4 done" in line for line in last)
    assert "worker" not in last[-1]


def test_eight_workers_of_sixteen_trials_fit_into_80_columns(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened("a-study-of-a-rather-long-name-that-somebody-gave-it", trials=400)
    trials = [
        trial(16 * worker + k, RUNNING, owner=f"w{worker}", accuracies=(0.4, 0.5 + k / 100), together=16, begun=1000)
        for worker in range(8)
        for k in range(16)
    ]
    trials.append(trial(128, COMPLETE, owner="w9", accuracies=(0.6,) * 30, begun=900, ended=120))
    lines = drawn(study, trials, monkeypatch)
    assert max(map(len, lines)) <= 80
    assert len(lines) == 5 + 8
    assert line_of(lines, "trials").endswith("1 of 400 done; 128 running")
    assert line_of(lines, "worker 3").split()[2:] == (
        ["trials", "32-47:", "epoch", "3", "of", "30,", "best", "65.0%,", "17", "min;", "batch_size=64"]
    )
    assert "60.00% validation accuracy, trial 128, 2 min ago" in line_of(lines, "best")


def test_more_workers_than_lines(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [trial(k, RUNNING, owner=f"w{k // 2}") for k in range(24)]
    lines = drawn(study, trials, monkeypatch)
    assert sum(line.startswith("worker") for line in lines) == progress.MOST_WORKERS
    assert line_of(lines, "others").split()[1:] == ["4", "workers", "with", "8", "trials"]


def test_workers_of_several_machines_are_told_apart(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(study, [trial(0, RUNNING), trial(1, RUNNING, owner="b", host="there")], monkeypatch, width=120)
    assert "on here" in line_of(lines, "worker 1")
    assert "on there" in line_of(lines, "worker 2")


def test_what_pruning_saved_is_said(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = [trial(k, PRUNED, accuracies=(0.1, 0.2), seconds=3.0) for k in range(2)]
    assert line_of(drawn(study, pruned, monkeypatch), "pruning").split()[1:] == (
        ["2", "trials", "ended", "early:", "56", "epochs,", "3", "min", "of", "a", "worker", "saved"]
    )
    assert not [
        line for line in drawn(study, [trial(0, COMPLETE, accuracies=(0.5,))], monkeypatch) if "pruning" in line
    ]


def test_a_study_that_does_not_go_on_says_why(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [trial(0, COMPLETE, accuracies=(0.5,) * 30)]
    study.set_state(PAUSED, reason="five trials failed")
    assert "the study is paused; `cifar-sweep resume` goes on (five trials failed)" in " ".join(
        line_of(drawn(study, some, monkeypatch, width=120), "time left").split()
    )
    study.set_state(CANCELLED)
    assert "the study is cancelled" in line_of(drawn(study, some, monkeypatch), "time left")


def test_workers_that_start_and_workers_that_wait(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "workers are starting" in line_of(drawn(study, [], monkeypatch), "time left")
    note_costs(study, Costs(workers=3))
    last = [trial(k, COMPLETE, accuracies=(0.5,) * 30, begun=300, ended=60) for k in range(3)]
    last.append(trial(3, RUNNING, owner="b", accuracies=(0.5,) * 9))
    assert "; 2 workers wait for the others" in line_of(drawn(study, last, monkeypatch), "time left")
    more = [*last[1:], trial(4, RUNNING, owner="c", accuracies=(0.5,) * 9)]
    assert "; 1 worker waits for the others" in line_of(drawn(study, more, monkeypatch), "time left")


def test_a_database_that_does_not_answer_leaves_the_last_view_and_a_notice(study: SweepStudy) -> None:
    screen = console(terminal=True)
    view = progress._LiveView(study, screen)
    with view.live:
        view.refresh()
        view.miss(StorageBusyError("busy"))
    shown = [line for line in text(screen).splitlines() if line.strip()]
    assert any("0 of 4 done" in line for line in shown[-8:])
    assert "the database has not answered for 0 s" in text(screen)
    calm = console(terminal=True)
    progress._LiveView(study, calm).miss(ValueError("a mistake of ours"))
    assert "database" not in text(calm)


@pytest.mark.slow
def test_a_refresh_that_fails_does_not_end_the_view(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    missed: list[Exception] = []
    monkeypatch.setattr(SweepStudy, "asked", lambda self: 1 / 0)
    monkeypatch.setattr(progress._LiveView, "miss", lambda self, error: missed.append(error))
    with progress.shown(study, console(terminal=True)):
        pass
    assert len(missed) == 2
    assert isinstance(missed[0], ZeroDivisionError)


def test_the_range_is_reckoned_seldom_and_counted_down(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    reckoned: list[float] = []

    def reckon(*_: object, **__: object) -> tuple[float, float]:
        reckoned.append(clock[0])
        clock[0] += 0.1  # that is how long it takes
        return 50.0, 80.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "seconds_left", reckon)
    left = progress._TimeLeft(study)
    assert left.now([]) == (50.0, 80.0)
    clock[0] += 3
    assert left.now([]) == (pytest.approx(47.0), pytest.approx(77.0))
    clock[0] += 3
    assert left.now([]) == (50.0, 80.0)
    assert len(reckoned) == 2


def test_the_table_of_studies_has_a_line_for_each_in_100_columns(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = opened("first", trials=40), opened("second")
    trials = [trial(k, COMPLETE, accuracies=(0.7,) * 30, begun=400, ended=200) for k in range(3)]
    trials += [trial(3, PRUNED, accuracies=(0.2,)), trial(4, FAIL), trial(5, RUNNING, owner="b", accuracies=(0.2,))]
    monkeypatch.setattr(SweepStudy, "trials", lambda self: trials if self.name == "first" else [])
    monkeypatch.setattr(type(first.storage), "orphans", lambda *_: [])
    rows = [glance(first), glance(second)]
    assert rows[0]["workers"] == 1
    assert rows[0]["saved_by_pruning"] == {"trials": 1, "epochs": 29, "seconds": 58.0, "frozen": 0}
    assert 0 < rows[0]["seconds_left"][0] < rows[0]["seconds_left"][1]
    assert (rows[1]["workers"], rows[1]["seconds_left"]) == (0, None)
    screen = console(terminal=False, width=100)
    screen.print(table(rows))
    lines = text(screen).splitlines()
    assert len(lines) == 4
    assert "4/40 (1 failed, 1 running)  70.00%" in lines[1]
    assert "29 epochs, 58 s" in lines[1]
    assert lines[2].split() == ["second", "*", "open", "0/4", "-", "-", "-", "0.0", "MB"]


def test_words_for_numbers() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 100, 5399, 9000)] == ["0 s", "60 s", "2 min", "90 min", "2.5 h"]
    assert params_text({"learning_rate": 0.00123456, "batch_size": 32}) == "learning_rate=0.00123 batch_size=32"
    assert [span(*pair) for pair in ((40, 50), (40.1, 40.2), (50, 200), (720, 1020), (4000, 9000))] == [
        "40 to 50 s",
        "about 40 s",
        "50 s to 3 min",
        "12 to 17 min",
        "67 min to 2.5 h",
    ]
