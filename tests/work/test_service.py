"""The service: what is submitted is trained by whoever comes, most urgent first, and can be halted and deleted."""

import io
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.forecast.costs import Costs, noted_costs
from cifar_sweep.machine.groups import Groups
from cifar_sweep.machine.plan import Plan
from cifar_sweep.machine.timing import Split
from cifar_sweep.study.opening import load, open_or_resume, open_studies
from cifar_sweep.study.storage import open_existing
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.work.submit import facts
from cifar_sweep.work.worker import Job, work

URL = "sqlite:///studies.db"
DATA = ("--data", "synthetic:500")
WORKER = ("worker", "--until-idle", "--workers", 1, "--threads", 1)


@pytest.fixture
def tiny_sweep(tiny_sweep: Path) -> Path:
    """Trials of one epoch."""
    tiny_sweep.write_text(tiny_sweep.read_text().replace("epochs = 3", "epochs = 1"))
    return tiny_sweep


def study_named(name: str = "tiny") -> SweepStudy:
    return load(open_existing(URL), name)


def states(name: str = "tiny") -> list[str]:
    return [trial.state for trial in study_named(name).trials()]


@pytest.fixture
def submit(tiny_sweep: Path, cli: Any) -> Callable[..., Any]:
    def submitted(*options: object) -> Any:
        finished = cli("submit", "tiny.toml", *DATA, *options)
        assert finished.exit_code == 0, finished.err
        return finished

    return submitted


@pytest.mark.slow
def test_a_worker_notes_what_a_study_costs_here(submit: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reckoned = Costs(workers=1, fixed=True)
    planned = Plan(Split(1, 1), Groups(1), 1, costs=reckoned)
    monkeypatch.setattr("cifar_sweep.machine.plan.choose", lambda *_, **__: planned)
    submit("--trials", 1)
    assert noted_costs(study_named()) is None
    assert cli(*WORKER).exit_code == 0
    assert noted_costs(study_named()) == reckoned.model_copy(update={"train_images": 400})


@pytest.fixture
def long_sweep(tiny_sweep: Path) -> Path:
    """Trials of 200 epochs: long enough to be hit in the middle."""
    tiny_sweep.write_text(tiny_sweep.read_text().replace("epochs = 1", "epochs = 200"))
    return tiny_sweep


def wait_for(condition: Callable[[], bool], process: Any, *, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def is_running(name: str = "tiny") -> bool:
    trials = study_named(name).trials()
    return any(trial.state == "running" and trial.curve for trial in trials)


def test_what_is_submitted_is_trained_by_a_worker_that_knows_the_database_alone(
    submit: Callable[..., Any], cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = submit("--trials", 3).out
    assert "study tiny: 3 trials on synthetic images" in said
    assert f"checkpoints and weights go to {tmp_path}/artifacts" in said
    assert states() == []
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "tiny.toml").unlink()
    finished = cli(*WORKER, "--storage", f"sqlite:///{tmp_path}/studies.db")
    assert finished.exit_code == 0, finished.err
    assert "working on tiny; plan: 1 worker x 1 trial" in finished.out
    assert "[tiny 3/3] trial 2 complete" in finished.out
    monkeypatch.chdir(tmp_path)
    assert states() == ["complete"] * 3
    assert study_named().state == "finished"
    assert len(list(Path("artifacts").rglob("weights-*"))) == 3
    exported = cli("export", "tiny", "--out", "out")
    assert exported.exit_code == 0, exported.err
    again = cli(*WORKER)
    assert again.exit_code == 0
    assert "working on" not in again.out


def test_the_most_urgent_study_comes_first_then_the_oldest(submit: Callable[..., Any], cli: Any) -> None:
    for name, *priority in (("first",), ("second",), ("urgent", "--priority", 5), ("late", "--priority", -1)):
        submit("--trials", 1, "--study", name, *priority)
    storage = open_existing(URL)
    assert [study.name for study in open_studies(storage)] == ["urgent", "first", "second", "late"]
    assert [study.name for study in open_studies(storage, ["late", "first"])] == ["first", "late"]
    submit("--trials", 1, "--study", "second", "--priority", 7)
    submit("--trials", 1, "--study", "urgent")
    assert [study.name for study in open_studies(storage)] == ["second", "urgent", "first", "late"]
    assert cli(*WORKER, "first").exit_code == 0
    assert [study.name for study in open_studies(storage)] == ["second", "urgent", "late"]
    assert cli(*WORKER).exit_code == 0
    ended = {name: load(storage, name).trials()[0].ended for name in ("second", "urgent", "late")}
    assert sorted(ended, key=lambda name: str(ended[name])) == ["second", "urgent", "late"]


@pytest.mark.slow
def test_a_more_urgent_study_is_taken_before_the_next_trial(submit: Callable[..., Any]) -> None:
    submit("--trials", 2, "--study", "slow")
    submitted: list[str] = []

    def stop() -> bool:
        if not submitted and states("slow"):
            submitted.append("urgent")
            submit("--trials", 1, "--study", "urgent", "--priority", 1)
        return False

    work(Job(URL, threads=1), stop=stop)
    ended = {name: load(open_existing(URL), name).trials()[-1].ended for name in ("slow", "urgent")}
    assert str(ended["urgent"]) < str(ended["slow"])


def test_a_worker_leaves_for_new_plans_when_an_unknown_study_is_to_be_worked_on(submit: Callable[..., Any]) -> None:
    submit("--trials", 1, "--study", "known")
    submit("--trials", 1, "--study", "unknown")
    work(Job(URL, known=("known",), threads=1))
    assert (states("known"), states("unknown")) == (["complete"], [])


@pytest.mark.slow
def test_a_finished_study_that_is_given_more_trials_is_open_again(submit: Callable[..., Any], cli: Any) -> None:
    submit("--trials", 1)
    assert cli(*WORKER).exit_code == 0
    submit("--trials", 2)
    assert study_named().state == "open"
    assert cli(*WORKER).exit_code == 0
    assert states() == ["complete"] * 2


@pytest.mark.slow
def test_a_worker_waits_for_work_and_ends_when_told_to(submit: Callable[..., Any], start: Any) -> None:
    submit("--trials", 1)
    worker = start("worker", "--workers", 1, "--threads", 1)
    wait_for(lambda: study_named().state == "finished", worker)
    submit("--trials", 1, "--study", "next")
    wait_for(lambda: study_named("next").state == "finished", worker)
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=30)
    assert (worker.returncode, err) == (143, "")


@pytest.mark.slow
def test_a_paused_study_rests_and_goes_on_where_it_was(
    long_sweep: Path, submit: Callable[..., Any], cli: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_SWEEP_LEASE_SECONDS", "8")
    submit("--trials", 1)
    worker = start("worker", "--workers", 1, "--threads", 1)
    wait_for(is_running, worker)
    paused = cli("pause", "tiny")
    assert "study tiny is paused: its workers stop within 1 s or so" in paused.out
    wait_for(lambda: states() == ["waiting"], worker, seconds=20)
    before = study_named().trials()[0].curve
    assert 0 < len(before) < 200
    [shown] = json.loads(cli("status", "--json").out)["studies"]
    assert (shown["state"], shown["trials"]["waiting"]) == ("paused", 1)
    time.sleep(1.5)
    assert states() == ["waiting"], "nobody takes it"
    assert cli("resume", "tiny").exit_code == 0
    wait_for(is_running, worker)
    assert cli("cancel", "tiny").exit_code == 0
    wait_for(lambda: states() == ["failed"], worker, seconds=20)
    [trial] = study_named().trials()
    assert trial.reason == "the study was cancelled"
    wait_for(lambda: not list(Path("artifacts").rglob("checkpoint-*")), worker)
    assert trial.curve[: len(before)] == before
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=30)


def test_a_run_of_a_paused_study_opens_it(submit: Callable[..., Any], cli: Any) -> None:
    submit("--trials", 1)
    assert cli("pause", "tiny").exit_code == 0
    finished = cli(*WORKER)
    assert (finished.exit_code, states()) == (0, [])
    assert cli("run", "tiny.toml", *DATA, "--trials", 1, "--workers", 1, "--threads", 1).exit_code == 0
    assert states() == ["complete"]


def test_deleting_asks_and_removes_the_files(submit: Callable[..., Any], cli: Any, monkeypatch: Any) -> None:
    submit("--trials", 1)
    assert cli(*WORKER).exit_code == 0
    submit("--trials", 1, "--study", "other")
    assert cli(*WORKER).exit_code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    refused = cli("delete", "tiny")
    assert refused.exit_code == 2
    assert "study 'tiny' was not deleted; accepted: y at the question, or --yes." in refused.err
    assert states() == ["complete"]
    assert cli("copy", "sqlite:///studies.db", "sqlite:///copy.db", "tiny").exit_code == 0
    assert cli("delete", "tiny", "--yes", "--keep-files", "--storage", "sqlite:///copy.db").exit_code == 0
    assert len(list(Path("artifacts").rglob("weights-*"))) == 2, "the original has its files"
    deleted = cli("delete", "tiny", "--yes")
    assert deleted.exit_code == 0, deleted.err
    assert [study["name"] for study in json.loads(cli("status", "--json").out)["studies"]] == ["other"]
    assert [path.parent.parent.name[:6] for path in Path("artifacts").rglob("weights-*")] == ["other-"]


@pytest.mark.slow
def test_a_study_that_is_being_trained_is_not_deleted(
    long_sweep: Path, submit: Callable[..., Any], cli: Any, start: Any
) -> None:
    submit("--trials", 1)
    worker = start("worker", "--workers", 1, "--threads", 1)
    wait_for(is_running, worker)
    refused = cli("delete", "tiny", "--yes")
    assert refused.exit_code == 1
    assert "1 of its trials are being trained; they stop within 15 s or so: delete it then." in refused.err
    assert study_named().state == "cancelled"
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=30)
    assert cli("delete", "tiny", "--yes").exit_code == 0


def test_a_study_whose_trials_all_fail_is_paused_and_others_go_on(
    submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from cifar_sweep.training.train import Run

    submit("--study", "bad", "--epochs", 2)
    submit("--study", "good", "--trials", 1, "--epochs", 1)
    epoch = Run.epoch

    def failing(run: Run, *arguments: Any) -> Any:
        if run.shape.epochs == 2:
            raise RuntimeError("no luck")
        return epoch(run, *arguments)

    monkeypatch.setattr(Run, "epoch", failing)
    work(Job(URL, threads=1))
    bad = study_named("bad")
    assert (bad.state, bad.reason) == ("paused", "5 trials in a row failed; the last one: RuntimeError: no luck")
    assert "study 'bad': 5 trials in a row failed" in caplog.text
    assert states("good") == ["complete"]


def test_a_study_whose_images_are_not_here_is_left_to_others(
    submit: Callable[..., Any], cli: Any, small_data: ImageData
) -> None:
    submit("--study", "near", "--trials", 1)
    sweep = study_named("near").sweep
    open_or_resume(open_existing(URL), "far", sweep, data=facts(small_data, source="/nowhere"), priority=1)
    failed = cli(*WORKER)
    assert failed.exit_code == 1
    assert "/nowhere" in failed.err
    assert (states("far"), states("near")) == ([], ["complete"])


@pytest.mark.slow
def test_a_size_cap_on_weights(submit: Callable[..., Any], cli: Any) -> None:
    """Weights of lenet take a quarter of a megabyte: three fit into one."""
    submit("--trials", 6, "--set", "keep_megabytes=1", "--set", "keep_weights=6")
    assert cli(*WORKER).exit_code == 0
    study = study_named()
    sizes = {trial.number: trial.weights.size for trial in study.ranked()}
    kept = [trial.number for trial in study.kept()]
    assert kept == [trial.number for trial in study.ranked()][: len(kept)]
    assert sum(sizes[number] for number in kept) <= 1_000_000 < sum(sizes[n] for n in kept) + max(sizes.values())
    there = sorted(int(path.parent.name[-4:]) for path in Path("artifacts").rglob("weights-*"))
    assert there == sorted(kept)
    [shown] = json.loads(cli("status", "--json").out)["studies"]
    on_disk = sum(path.stat().st_size for path in Path("artifacts").rglob("*") if path.is_file())
    assert (shown["stored_bytes"], shown["stored_bytes_cap"]) == (on_disk, 1_000_000)


def test_nothing_is_made_of_a_submission_that_is_refused(tiny_sweep: Path, cli: Any) -> None:
    for wrong in (("--study", "a/b"), ("--train-images", 401), ("--set", "batch_size=401")):
        assert cli("submit", "tiny.toml", *DATA, *wrong).exit_code == 2
    Path("taken").write_text("a file")
    assert cli("submit", "tiny.toml", *DATA, "--artifacts", "taken").exit_code == 2
    assert not Path("studies.db").exists()


def test_a_password_on_the_command_line_is_refused(cli: Any) -> None:
    for address in ("postgresql://me:secret@host/db", "postgresql://me@host/db?password=secret"):
        for command in (("status", "--storage", address), ("copy", "sqlite:///a.db", address)):
            refused = cli(*command)
            assert refused.exit_code == 2
            assert "a password on the command line is seen in the process list" in refused.err
            assert "secret" not in refused.err


@pytest.mark.slow
def test_a_deleted_study_is_no_other_one_of_its_name(submit: Callable[..., Any], cli: Any) -> None:
    """SQLite gives its keys again."""
    storage = open_existing(URL) if submit("--trials", 1) else None
    assert storage is not None
    assert cli(*WORKER).exit_code == 0
    assert len(load(storage, "tiny").trials()) == 1
    assert cli("delete", "tiny", "--yes").exit_code == 0
    submit("--trials", 1)
    assert not load(storage, "tiny").trials()
    assert not load(storage, "tiny").settle()


def test_a_budget_that_was_raised_meanwhile_counts(submit: Callable[..., Any], cli: Any) -> None:
    submit("--trials", 1)
    before = study_named()
    assert cli(*WORKER).exit_code == 0
    submit("--trials", 3)
    assert not before.settle()
    assert study_named().state == "open"


@pytest.mark.slow
def test_a_service_outlives_a_study_whose_files_cannot_be_kept(
    submit: Callable[..., Any], start: Any, tmp_path: Path
) -> None:
    submit("--trials", 1, "--study", "bad", "--priority", 1, "--artifacts", tmp_path / "no-folder")
    (tmp_path / "no-folder").write_text("a file")
    submit("--trials", 1, "--study", "good")
    worker = start("worker", "--workers", 1, "--threads", 1)
    wait_for(lambda: study_named("good").state == "finished", worker)
    time.sleep(2)
    assert worker.poll() is None, "it waits and tries again"
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=30)
    assert worker.returncode == 143
    assert "no-folder" in err
    assert states("bad") == []
