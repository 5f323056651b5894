"""The live view and the plain lines say what the database holds."""

import io
from typing import Any

import pytest
from rich.console import Console

from cifar_sweep.results import progress
from cifar_sweep.results.status import duration, params_text, seconds_left, table
from cifar_sweep.search.opening import open_or_resume
from cifar_sweep.search.storage import open_storage
from cifar_sweep.search.study import SweepStudy
from cifar_sweep.search.sweepfile import parse
from cifar_sweep.service import Job, facts, work
from cifar_sweep.training.data import ImageData

TINY: dict[str, Any] = {
    "name": "tiny",
    "trials": 4,
    "pruner": "none",
    "fixed": {"model": "lenet", "precision": "fp32", "batch_size": 64, "epochs": 2},
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
}


@pytest.fixture
def study(small_data: ImageData) -> SweepStudy:
    storage = open_storage("sqlite:///studies.db")
    return open_or_resume(storage, "tiny", parse(TINY, where="test"), data=facts(small_data, source="synthetic:500"))


def go_on(study: SweepStudy, *, steps: int = 10_000) -> None:
    """Train until so many steps were asked about; 7 steps are an epoch."""
    asked = iter(range(100_000))
    job = Job("sqlite:///studies.db", (study.name,), data="synthetic:500", threads=1)
    work(job, stop=lambda: next(asked) > steps)


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def text(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_plain_lines_name_each_trial_once(study: SweepStudy) -> None:
    screen = console(terminal=False)
    with progress.shown(study, screen):
        go_on(study)
    lines = text(screen).splitlines()
    assert len(lines) == 4
    for number, line in enumerate(sorted(lines, key=lambda line: line.split("trial ")[1])):
        assert f"trial {number} complete" in line
        assert "learning_rate=" in line
        assert "best " in line
    with progress.shown(study, screen):
        pass
    assert len(text(screen).splitlines()) == 4, "trials of an earlier run are not told again"


def test_the_live_view_of_a_running_and_of_a_finished_study(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    complete = SweepStudy.complete

    def watched(self: SweepStudy, *arguments: Any, **attributes: Any) -> None:
        screen = console(terminal=True)
        screen.print(progress._LiveView(study, screen)._draw())
        seen.append(text(screen))
        complete(self, *arguments, **attributes)

    monkeypatch.setattr(SweepStudy, "complete", watched)
    screen = console(terminal=True)
    with progress.shown(study, screen):
        go_on(study)
    assert "0 of 4 done" in seen[0]
    assert "none yet" in seen[0]
    assert "trial 0, epoch 2 of 2" in seen[0]
    assert "known after two trials" in seen[0]
    assert "2 of 4 done" in seen[2]
    assert " s to " in seen[2]
    assert "4 of 4 done, 0 pruned, 0 failed, 0 running, 0 waiting" in text(screen)


def test_the_range_of_the_time_left(study: SweepStudy) -> None:
    assert seconds_left(study) is None
    go_on(study)
    assert seconds_left(study) == (0.0, 0.0)


def test_the_range_narrows_with_equal_trials(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on(study)
    monkeypatch.setattr(SweepStudy, "budget", 14)
    monkeypatch.setattr("cifar_sweep.results.status.seconds_spent", lambda trial: 6.0)
    assert seconds_left(study) == (60.0, 60.0)
    monkeypatch.setattr("cifar_sweep.results.status.seconds_spent", lambda trial: 3.0 + 2 * trial.number)
    low, high = seconds_left(study) or (0, 0)
    assert low < 60 < high
    assert high - low == pytest.approx(2 * 1.28 * 2.582 * (10 + 25) ** 0.5, rel=1e-3)


def test_the_table_of_studies(study: SweepStudy) -> None:
    screen = console(terminal=False)
    screen.print(table([study.summary()]))
    assert "tiny" in text(screen)
    assert "4" in text(screen)


def test_words_for_numbers() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 100, 5399, 9000)] == ["0 s", "60 s", "2 min", "90 min", "2.5 h"]
    assert params_text({"learning_rate": 0.00123456, "batch_size": 32}) == "learning_rate=0.00123 batch_size=32"
