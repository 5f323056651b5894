"""Whole sweeps on small data: what is stored, what survives, and what goes on."""

import errno
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cifar_sweep import files
from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.curve import EpochResult
from cifar_sweep.errors import DiskError, SickDeviceError, StudyError, UsageError
from cifar_sweep.machine.groups import Groups
from cifar_sweep.machine.plan import Plan
from cifar_sweep.machine.speeds import Split
from cifar_sweep.study import study as studies
from cifar_sweep.study.claim import TrialLostError, Worker
from cifar_sweep.study.hours import TIME_OVER, Hours
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.storage import open_existing, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.training import checkpoint
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import Run
from cifar_sweep.work import runner, worker
from cifar_sweep.work.submit import check_images, facts
from cifar_sweep.work.worker import Job, run_workers, work

URL = "sqlite:///studies.db"
TINY: dict[str, Any] = {
    "name": "tiny",
    "trials": 3,
    "pruner": "none",
    "fixed": {"model": "lenet", "precision": "fp32", "batch_size": 32, "epochs": 3, "dropout": 0.1},
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
}
ONE_EPOCH = TINY["fixed"] | {"epochs": 1}


def study_of(data: ImageData, **changes: Any) -> SweepStudy:
    return open_or_resume(
        open_storage(URL), "tiny", parse(TINY | changes, where="test"), data=facts(data, source="synthetic:500")
    )


def job(**changes: Any) -> Job:
    return Job(
        **(
            {"storage": URL, "studies": ("tiny",), "data": "synthetic:500", "artifacts": "artifacts", "threads": 1}
            | changes
        )
    )


def states(trials: Sequence[TrialRecord]) -> list[str]:
    return [trial.state for trial in trials]


def weights_of(study: SweepStudy, number: int) -> dict[str, torch.Tensor]:
    """The weights that were kept of a trial; their checksum is verified."""
    stored = study.trials()[number].weights
    return checkpoint.unpack(open_artifacts("artifacts").get(stored))


def numbers_with(kind: str) -> list[int]:
    """The trials that have a file of this kind: weights or checkpoint."""
    return sorted({int(path.parent.name.removeprefix("trial-")) for path in Path("artifacts").rglob(f"{kind}-*")})


def digest(trial: TrialRecord) -> str:
    return str(trial.weights.sha256)


def after(epochs: int) -> Callable[[], bool]:
    """A request to stop that comes in the epoch after so many: an epoch here asks 13 times, once per step."""
    asked = iter(range(10_000))
    return lambda: next(asked) > 13 * epochs + 3


def test_a_sweep_finishes_exactly_its_trials(small_data: ImageData) -> None:
    study = study_of(small_data)
    work(job())
    trials = study.trials()
    assert states(trials) == ["complete"] * 3
    for trial in trials:
        curve = trial.curve
        assert [point.epoch for point in curve] == [1, 2, 3]
        assert trial.value == max(point.validation_accuracy for point in curve)
        assert trial.frozen.intermediate_values == {point.epoch: point.validation_accuracy for point in curve}
        weights_of(study, trial.number)
    assert not list(Path("artifacts").rglob("checkpoint*")), "checkpoints of finished trials are gone"
    work(job())
    assert len(study.trials()) == 3, "a finished study stays as it is"


def test_the_best_without_the_cuts_are_complete_as_they_are_when_the_time_is_over(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = parse(TINY | {"fixed": TINY["fixed"] | {"epochs": 5}}, where="test")
    hours = Hours(1.0, whole.identity(), deadline=time.time() + 3600, uncuts=True)
    known = facts(small_data, source="synthetic:500")
    study = open_or_resume(
        open_storage(URL), "tiny", parse(TINY | {"trials": 1, "confirm": [1, 1]}, where="test"), data=known, hours=hours
    )
    epochs: list[int] = []
    train = Run.epoch

    def counted(run: Run, *rest: Any) -> Any:
        epochs.append(run.shape.epochs)
        return train(run, *rest)

    def now() -> float:
        return math.inf if epochs[-2:] == [5, 5] else 0.0

    monkeypatch.setattr(Run, "epoch", counted)
    for module in (runner, studies):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=now))
    work(job(), stop=lambda: len(epochs) >= 3 and study.trials()[0].state == "complete")
    with study.storage.lock():
        study._read_again()
        study._end_search(study._claiming(Worker(Owner.current(), "cpu", 1, "fp32")), TIME_OVER)
    work(job())
    assert epochs == [3, 3, 3, 5, 5]
    searched, best = study.trials()
    assert (searched.confirms, best.confirms, best.uncut) == (None, 0, {"epochs": 5})
    assert (best.state, best.epochs_done, best.epochs) == ("complete", 2, 5)
    assert study.state == "finished"
    assert study.ranked()[0] == best
    weights_of(study, best.number)
    assert "trial 0 without the cuts of the search: " in study.summary()["confirmation"]["text"]


def test_weights_are_on_disk_before_the_trial_is_told(small_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[bool] = []
    complete = SweepStudy.complete

    def watched(study: SweepStudy, claim: Any, value: float, **attributes: Any) -> None:
        there.append(claim.number in numbers_with("weights"))
        complete(study, claim, value, **attributes)

    monkeypatch.setattr(SweepStudy, "complete", watched)
    study_of(small_data, trials=1)
    work(job())
    assert there == [True]


@pytest.mark.slow
def test_weights_of_the_best_trials_alone_are_kept(small_data: ImageData) -> None:
    study = study_of(small_data, keep_weights=2, trials=4, fixed=ONE_EPOCH)
    work(job())
    kept = {trial.number for trial in study.ranked()[:2]}
    assert set(numbers_with("weights")) == kept


def test_an_interrupted_trial_goes_on_and_ends_as_an_unbroken_one(small_data: ImageData) -> None:
    study = study_of(small_data, trials=1)
    work(job(), stop=after(epochs=2))
    [trial] = study.trials()
    assert trial.state == "waiting"
    before = trial.curve
    assert len(before) == 2
    assert {state: count for state, count in study.summary()["trials"].items() if count} == {"waiting": 1}
    work(job())
    [trial] = study.trials()
    assert trial.state == "complete"
    assert trial.curve[:2] == before, "even their seconds: they were not trained again"
    assert_as_unbroken(study, trial, small_data)


def assert_as_unbroken(study: SweepStudy, trial: TrialRecord, data: ImageData) -> None:
    """The trial's curve and kept weights equal those of its config trained in one go."""
    from cifar_sweep.training.device import resolve_device

    config = trial.config
    unbroken = Run([config], data, device=resolve_device("cpu"))
    for _ in range(config.shape.epochs):
        unbroken.epoch()
    losses = [point.train_loss for point in trial.curve]
    assert losses == [result.train_loss for result in unbroken.members[0].history]
    kept = weights_of(study, trial.number)
    for name, value in unbroken.member(0).state_dict().items():
        assert kept[name].equal(value), name


def test_an_epoch_that_was_not_reported_yet_is_trained_again(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the checkpoint of epoch 2 and its report: the next holder goes on from what was reported."""
    study = study_of(small_data, trials=1)
    report = SweepStudy.report

    def killed(study: SweepStudy, claim: Any, curve: Any, checkpoints: Any) -> None:
        if len(curve) == 2:
            raise KeyboardInterrupt
        report(study, claim, curve, checkpoints)

    monkeypatch.setattr(SweepStudy, "report", killed)
    with pytest.raises(KeyboardInterrupt):
        work(job())
    monkeypatch.setattr(SweepStudy, "report", report)
    trained: list[int] = []
    epoch = Run.epoch

    def counted(run: Run, *arguments: Any) -> list[EpochResult]:
        trained.append(run.epochs_done + 1)
        return epoch(run, *arguments)

    monkeypatch.setattr(Run, "epoch", counted)
    monkeypatch.setattr("cifar_sweep.study.owner.Owner.is_dead", lambda _: True)
    work(job())
    assert trained == [2, 3]
    assert numbers_with("checkpoint") == [], "not even those that nobody knew of"
    assert list(study.trials()[0].frozen.intermediate_values) == [1, 2, 3]


def test_a_damaged_checkpoint_restarts_the_trial(small_data: ImageData, caplog: pytest.LogCaptureFixture) -> None:
    study = study_of(small_data, trials=1)
    work(job(), stop=after(epochs=2))
    for saved in Path("artifacts").rglob("checkpoint-*"):
        saved.write_bytes(saved.read_bytes()[:1000])
    work(job())
    assert "its checkpoint of epoch 2 is not usable" in caplog.text
    assert "its checkpoint of epoch 1 is not usable" in caplog.text
    assert "trial 0 starts again from its first epoch" in caplog.text
    assert_as_unbroken(study, study.trials()[0], small_data)


def test_a_trial_that_raises_fails_and_the_sweep_goes_on(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = Run.epoch
    calls = iter(range(100))

    def sometimes(run: Run, *arguments: Any) -> list[EpochResult]:
        if next(calls) == 0:
            raise ValueError("no luck")
        return epoch(run, *arguments)

    monkeypatch.setattr(Run, "epoch", sometimes)
    study = study_of(small_data)
    work(job())
    assert states(study.trials()) == ["failed"] + ["complete"] * 3
    assert study.trials()[0].reason == "ValueError: no luck"


def test_a_sweep_whose_trials_all_fail_ends(small_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(run: Run, *arguments: Any) -> list[EpochResult]:
        raise RuntimeError("no luck")

    monkeypatch.setattr(Run, "epoch", always)
    study = study_of(small_data)
    with pytest.raises(StudyError, match=r"5 trials in a row failed; the last one: RuntimeError: no luck"):
        work(job())
    assert states(study.trials()) == ["failed"] * 5


def diverge(monkeypatch: pytest.MonkeyPatch, *, in_epoch: int) -> None:
    """Every trial's weights become NaN before this epoch."""
    epoch = Run.epoch

    def diverging(run: Run, *arguments: Any) -> list[EpochResult]:
        if run.epochs_done == in_epoch - 1:
            run.network.weights.fill_(float("nan"))
        return epoch(run, *arguments)

    monkeypatch.setattr(Run, "epoch", diverging)


@pytest.mark.slow
def test_a_diverged_trial_is_told_with_its_last_finite_accuracy(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch, in_epoch=3)
    study = study_of(small_data, trials=1)
    work(job())
    [trial] = study.trials()
    assert trial.state == "pruned"
    assert trial.reason.startswith("diverged in epoch 3")
    assert trial.value == trial.curve[1].validation_accuracy
    assert trial.value is not None
    assert trial.value == trial.value


def test_a_trial_that_diverges_at_once_counts_and_has_a_reason(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch, in_epoch=1)
    study = study_of(small_data, trials=2)
    work(job())
    assert states(study.trials()) == ["pruned"] * 2
    assert all(trial.reason.startswith("diverged in epoch 1") for trial in study.trials())
    assert study.finished()
    assert study.summary()["best"] is None


@pytest.mark.slow
def test_weak_trials_are_pruned_and_say_why(small_data: ImageData) -> None:
    points = [{"learning_rate": rate} for rate in (3e-3, 2e-3, 1e-4, 1.1e-4, 1.2e-4)]
    study = study_of(
        small_data,
        trials=5,
        enqueue=points,
        pruner={"name": "median", "startup_trials": 2},
        fixed=TINY["fixed"] | {"epochs": 8, "batch_size": 16},
    )
    work(job())
    pruned = [trial for trial in study.trials() if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        assert trial.reason.startswith("median pruner: validation accuracy")
        assert len(trial.curve) < 8
        assert trial.number not in numbers_with("weights")
        assert trial.number not in numbers_with("checkpoint")
    assert study.finished()


@pytest.mark.slow
def test_searched_epochs_report_tenths(small_data: ImageData) -> None:
    fixed = {name: value for name, value in TINY["fixed"].items() if name != "epochs"}
    space = TINY["space"] | {"epochs": {"choices": [2, 5]}}
    study = study_of(small_data, fixed=fixed, space=space, trials=2, enqueue=[{"epochs": 2}, {"epochs": 5}])
    work(job())
    assert [list(trial.frozen.intermediate_values) for trial in study.trials()] == [[5, 10], [2, 4, 6, 8, 10]]


@pytest.mark.slow
def test_a_full_disk_gives_the_trial_back(small_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(small_data)
    replace = os.replace
    calls = iter(range(100))

    def full_after_five(*arguments: Any) -> None:
        if next(calls) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full_after_five)
        with pytest.raises(DiskError, match="No space left on device"):
            work(job())
    assert states(study.trials()) == ["complete", "waiting"]
    assert not list(Path("artifacts").rglob("*.tmp")), "nothing half written"
    work(job())
    assert states(study.trials()) == ["complete"] * 3


def test_artifacts_that_cannot_be_are_no_fault_of_the_trial(small_data: ImageData) -> None:
    study = study_of(small_data)
    Path("artifacts").write_text("a file where a folder is needed")
    with pytest.raises(UsageError, match="'artifacts' is no folder"):
        work(job())
    assert not study.trials()


@pytest.mark.slow
def test_a_trial_may_die_often_as_long_as_it_gets_on(small_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(small_data, trials=1, fixed=TINY["fixed"] | {"epochs": 8})
    release = SweepStudy.release
    monkeypatch.setattr("cifar_sweep.study.owner.Owner.is_dead", lambda _: True)
    for _ in range(6):
        with monkeypatch.context() as patch:
            patch.setattr(SweepStudy, "release", lambda *_: True)  # as if killed
            work(job(), stop=after(epochs=1))
        assert study.trials()[0].state == "running"
    assert SweepStudy.release is release
    work(job())
    assert states(study.trials()) == ["complete"]
    assert study.trials()[0].deaths == 1


@pytest.mark.slow
def test_points_added_to_the_file_later_are_tried(small_data: ImageData) -> None:
    study_of(small_data, fixed=ONE_EPOCH, enqueue=[{"learning_rate": 1e-3}])
    study = study_of(small_data, fixed=ONE_EPOCH, enqueue=[{"learning_rate": 1e-3}, {"learning_rate": 2e-3}])
    work(job())
    assert [trial.params["learning_rate"] for trial in study.trials()][:2] == [1e-3, 2e-3]
    assert len(study.trials()) == 3


def test_the_deadline_ends_the_work(small_data: ImageData) -> None:
    study = study_of(small_data)
    work(job(deadline=time.time() - 1))
    assert not study.trials()


def test_other_data_is_refused(small_data: ImageData) -> None:
    study_of(small_data)
    with pytest.raises(StudyError, match="run on synthetic images"):
        work(job(data="synthetic:200"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fixed": {"batch_size": 500}}, r"batch_size = 500: more than the 400 training images"),
        ({"fixed": {"batch_size": 64, "train_images": 32}}, r"batch_size = 64: more than the 32"),
        ({"fixed": {"class_weights": [1, 2]}}, r"class_weights = 1,2 .* one for each of the 10 classes"),
        ({"fixed": {"validation_images": 101}}, r"validation_images = 101 .* 100 images"),
        ({"fixed": {"train_images": 401}}, r"train_images = 401: synthetic images .* has 400 training images"),
        ({"space": {"batch_size": {"low": 256, "high": 512, "base2": True}}, "fixed": {}}, r"batch_size = 512"),
        ({"fixed": {"train_images": 50}}, r"batch_size = 64: more than the 50"),
        (
            {"space": {"train_images": {"low": 10, "high": 100}}, "fixed": {"batch_size": 16}},
            r"batch_size = 16: more than the 10 training images",
        ),
        ({"space": {"train_images": {"low": 100, "high": 500}}, "fixed": {}}, r"train_images = 500"),
        ({"fixed": {"model": "cnn3", "batch_norm": True, "batch_size": 1}}, r"batch_size = 1: batch norm"),
        ({"space": {"batch_size": {"choices": [16, 401]}}, "fixed": {}}, r"batch_size = 401"),
        (
            {"sampler": "given", "pruner": "none", "fixed": {"batch_size": 500}, "enqueue": [{"label": "a"}]},
            r"batch_size = 500: more than the 400",
        ),
    ],
)
def test_too_few_images_are_refused_before_the_study_is_made(
    changes: dict[str, Any], message: str, small_data: ImageData
) -> None:
    with pytest.raises(UsageError, match=message):
        check_images(parse(TINY | changes, where="test"), small_data)


# --- Groups ----------------------------------------------------------------------------------------------------------

TOGETHER = Groups(4)


def group_sizes(trial: TrialRecord) -> list[int]:
    return [result.group_size for result in trial.curve]


def test_trials_of_a_group_are_trials_like_any_others(small_data: ImageData) -> None:
    study = study_of(small_data, trials=6, keep_weights=6, fixed=TINY["fixed"] | {"epochs": 2})
    work(job(groups=TOGETHER))
    trials = study.trials()
    assert states(trials) == ["complete"] * 6
    assert [group_sizes(trial) for trial in trials] == [[4, 4]] * 4 + [[2, 2]] * 2
    assert len({trial.params["learning_rate"] for trial in trials}) == 6
    assert len({trial.config.knobs.seed for trial in trials}) == 6
    for trial in trials:
        curve = trial.curve
        assert trial.value == max(point.validation_accuracy for point in curve)
        assert trial.frozen.intermediate_values == {point.epoch: point.validation_accuracy for point in curve}
        weights_of(study, trial.number)
    assert not list(Path("artifacts").rglob("checkpoint*"))


@pytest.mark.slow
def test_a_trial_does_not_depend_on_the_group_it_was_trained_in(small_data: ImageData) -> None:
    curves = []
    for groups in (Groups(1), TOGETHER):
        study = open_or_resume(
            open_storage(URL),
            f"largest-{groups.largest}",
            parse(TINY | {"trials": 4, "sampler": "random"}, where="test"),
            data=facts(small_data, source="synthetic:500"),
        )
        work(job(studies=(study.name,), groups=groups))
        curves.append([[point.train_loss for point in trial.curve] for trial in study.trials()])
    alone, together = curves
    assert alone == [pytest.approx(curve, rel=1e-4) for curve in together]


@pytest.mark.slow
def test_shapes_are_not_mixed_in_a_group(small_data: ImageData) -> None:
    study = study_of(
        small_data,
        trials=8,
        space=TINY["space"] | {"batch_size": {"low": 32, "high": 128, "base2": True}},
        fixed=({name: value for name, value in TINY["fixed"].items() if name != "batch_size"} | {"epochs": 1}),
    )
    work(job(groups=TOGETHER))
    trials = study.trials()
    assert states(trials) == ["complete"] * 8
    assert [trial.params["batch_size"] for trial in trials[:4]] == [trials[0].params["batch_size"]] * 4
    assert all(group_sizes(trial) == [4] for trial in trials)


@pytest.mark.slow
def test_given_points_of_one_shape_are_trained_together(small_data: ImageData) -> None:
    rates = [(1e-3, 32), (1e-3, 64), (2e-3, 32), (2e-3, 64), (3e-3, 32)]
    points = [{"label": str(k), "learning_rate": rate, "batch_size": size} for k, (rate, size) in enumerate(rates)]
    space = TINY["space"] | {"batch_size": {"choices": [32, 64]}}
    fixed = {name: value for name, value in ONE_EPOCH.items() if name != "batch_size"}
    study = study_of(small_data, sampler="given", space=space, fixed=fixed, enqueue=points)
    work(job(groups=TOGETHER))
    assert [group_sizes(trial)[0] for trial in study.trials()] == [3, 2, 3, 2, 3]
    assert states(study.trials()) == ["complete"] * 5


@pytest.mark.slow
def test_the_budget_has_room_for_the_points_that_wait(small_data: ImageData) -> None:
    points = [{"learning_rate": 1e-3, "batch_size": 32}, {"learning_rate": 1e-3, "batch_size": 64}]
    space = TINY["space"] | {"batch_size": {"choices": [32, 64]}}
    fixed = {name: value for name, value in ONE_EPOCH.items() if name != "batch_size"}
    study = study_of(small_data, trials=4, space=space, fixed=fixed, enqueue=points)
    work(job(groups=TOGETHER))
    assert states(study.trials()) == ["complete"] * 4
    assert [trial.params["batch_size"] for trial in study.trials()] == [32, 64, 32, 32]


@pytest.mark.slow
def test_an_interrupted_group_goes_on_together_and_ends_as_an_unbroken_one(small_data: ImageData) -> None:
    study = study_of(small_data, trials=4)
    work(job(groups=TOGETHER), stop=after(epochs=2))
    assert states(study.trials()) == ["waiting"] * 4
    work(job(groups=TOGETHER))
    assert states(study.trials()) == ["complete"] * 4
    assert [group_sizes(trial) for trial in study.trials()] == [[4, 4, 4]] * 4
    whole = open_or_resume(
        open_storage(URL),
        "whole",
        parse(TINY | {"trials": 4}, where="test"),
        data=facts(small_data, source="synthetic:500"),
    )
    work(job(studies=("whole",), groups=TOGETHER))
    for one, other in zip(study.trials(), whole.trials(), strict=True):
        assert digest(one) == digest(other)


@pytest.mark.slow
def test_trials_at_different_epochs_are_not_trained_together(small_data: ImageData) -> None:
    study = study_of(small_data, trials=1)
    work(job(), stop=after(epochs=2))
    study = study_of(small_data, trials=4)
    work(job(groups=TOGETHER))
    assert states(study.trials()) == ["complete"] * 4
    assert [group_sizes(trial) for trial in study.trials()] == [[1, 1, 1]] + [[3, 3, 3]] * 3


@pytest.mark.slow
def test_one_damaged_checkpoint_of_a_group_restarts_that_trial_alone(
    small_data: ImageData, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(small_data, trials=4)
    work(job(groups=TOGETHER), stop=after(epochs=2))
    for saved in Path("artifacts").rglob("trial-0002/checkpoint-*"):
        saved.write_bytes(saved.read_bytes()[:1000])
    work(job(groups=TOGETHER))
    assert states(study.trials()) == ["complete"] * 4
    assert "trial 2 starts again from its first epoch" in caplog.text
    assert [group_sizes(trial) for trial in study.trials()] == [[4, 4, 3], [4, 4, 3], [1, 1, 1], [4, 4, 3]]


def test_pruned_members_leave_the_group(small_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[int] = []

    def should_prune(study: SweepStudy, claim: Any) -> bool:
        reported.append(sum(len(trial.frozen.intermediate_values) for trial in study.trials()))
        return claim.number in (0, 2)

    monkeypatch.setattr(SweepStudy, "should_prune", should_prune)
    study = study_of(small_data, trials=4)
    work(job(groups=TOGETHER))
    assert states(study.trials()) == ["pruned", "complete"] * 2
    assert [group_sizes(trial) for trial in study.trials()] == [[4], [4, 2, 2]] * 2
    assert reported[:4] == [4] * 4, "all have reported before one is judged"
    assert numbers_with("weights") == [1, 3]
    assert not list(Path("artifacts").rglob("checkpoint*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{}, *({"metric": metric, "patience": 1} for metric in ("loss", "f1", "top5"))], ids=str
)
def test_a_diverged_member_leaves_the_others_alone(
    more: dict[str, Any], small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = Run.epoch

    def diverging(run: Run, *arguments: Any) -> list[EpochResult]:
        if run.epochs_done == 1 and len(run.members) == 4:
            run.network.weights[1].fill_(float("nan"))
        return epoch(run, *arguments)

    monkeypatch.setattr(Run, "epoch", diverging)
    study = study_of(small_data, trials=4, fixed=TINY["fixed"] | more)
    work(job(groups=TOGETHER))
    assert states(study.trials()) == ["complete", "pruned"] + ["complete"] * 2
    assert study.trials()[1].reason.startswith("diverged in epoch 2")
    assert all(math.isfinite(trial.value) for trial in study.trials())


@pytest.mark.slow
def test_a_group_too_large_for_memory_is_made_smaller(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    epoch = Run.epoch

    def full(run: Run, *arguments: Any) -> list[EpochResult]:
        if len(run.members) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory")
        return epoch(run, *arguments)

    monkeypatch.setattr(Run, "epoch", full)
    study = study_of(small_data, trials=5, fixed=ONE_EPOCH)
    work(job(groups=Groups(5)))
    assert states(study.trials()) == ["complete"] * 5
    assert [group_sizes(trial)[0] for trial in study.trials()] == [2, 2, 2, 2, 1]
    assert "5 trials at once do not fit into memory; going on with half as many" in caplog.text


def test_a_trial_that_finds_no_memory_once_is_as_any_other(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others that share the device had it."""
    monkeypatch.setattr(worker, "MEMORY_SECONDS", 0)
    epoch, short = Run.epoch, iter([False, True, False, True])

    def sometimes(run: Run, *arguments: Any) -> list[EpochResult]:
        if next(short, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return epoch(run, *arguments)

    monkeypatch.setattr(Run, "epoch", sometimes)
    study = study_of(small_data, fixed=ONE_EPOCH)
    work(job())
    assert states(study.trials()) == ["complete"] * 3


@pytest.mark.parametrize("size", [1, 2])
def test_a_sick_device_costs_no_trial(size: int, small_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch, calls = Run.epoch, iter(range(100))

    def illegal(run: Run, *arguments: Any) -> list[EpochResult]:
        if next(calls) == 1:
            monkeypatch.setattr(runner, "is_sick", lambda device: True)
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors")
        return epoch(run, *arguments)

    monkeypatch.setattr(Run, "epoch", illegal)
    study = study_of(small_data, trials=size, fixed=TINY["fixed"] | {"epochs": 2})
    with pytest.raises(SickDeviceError, match=r"^cpu: AcceleratorError: CUDA error: an illegal .*d\.$"):
        work(job(groups=Groups(size)))
    assert states(study.trials()) == ["waiting"] * size
    assert [(trial.epochs_done, trial.deaths, trial.owner) for trial in study.trials()] == [(1, 1, None)] * size
    assert study.state == "open"
    monkeypatch.setattr(runner, "is_sick", lambda device: False)
    work(job(groups=Groups(size)))
    assert states(study.trials()) == ["complete"] * size


@pytest.mark.parametrize(("workers", "gpus", "share"), [(1, 1, 1.0), (4, 1, 0.25), (5, 2, 1 / 3)])
def test_workers_of_gpus_are_processes_of_their_own_and_share_the_memory(
    workers: int, gpus: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alone, too: where its GPU is sick, a new process takes its place."""
    started: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(worker, "run_in_processes", lambda jobs, stop: started.extend(jobs))
    run_workers(job(device="cuda"), Plan(Split(workers, 1, gpus), Groups(2), 2), stop=lambda: False)
    assert [each.args[0].worker for each in started] == list(range(workers))
    assert {(each.args[0].share, each.args[0].devices) for each in started} == {(share, gpus)}


def test_a_trial_that_makes_its_device_sick_each_time_fails(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = Run.epoch

    def illegal(run: Run, *arguments: Any) -> list[EpochResult]:
        if run.members[0].config.knobs.seed == first:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return epoch(run, *arguments)

    study = study_of(small_data, trials=2, fixed=ONE_EPOCH)
    work(job(), stop=lambda: bool(study.trials()))
    first = study.trials()[0].config.knobs.seed
    monkeypatch.setattr(Run, "epoch", illegal)
    monkeypatch.setattr(runner, "is_sick", lambda device: True)
    for _ in range(4):
        with pytest.raises(SickDeviceError):
            work(job())
    assert states(study.trials()) == ["failed"]
    assert study.trials()[0].reason.startswith("its worker died 4 times without finishing epoch 1")
    work(job())
    assert states(study.trials()) == ["failed", "complete", "complete"]


@pytest.mark.slow
def test_a_group_that_raises_costs_one_trial(small_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = Run.epoch
    calls = iter(range(100))

    def once(run: Run, *arguments: Any) -> list[EpochResult]:
        if next(calls) == 1:
            raise RuntimeError("no luck")
        return epoch(run, *arguments)

    monkeypatch.setattr(Run, "epoch", once)
    study = study_of(small_data, trials=4, fixed=TINY["fixed"] | {"epochs": 2})
    work(job(groups=TOGETHER))
    assert states(study.trials()) == ["failed"] + ["complete"] * 4
    assert study.trials()[0].reason == "RuntimeError: no luck"


def test_what_has_ended_is_not_blamed_for_another_member(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch, report = Run.epoch, SweepStudy.report

    def diverging(run: Run, *arguments: Any) -> list[EpochResult]:
        if len(run.members) == 4:
            run.network.weights[0].fill_(float("nan"))
        return epoch(run, *arguments)

    def failing(study: SweepStudy, claim: Any, curve: Any, checkpoints: Any) -> None:
        if claim.number == 1:
            raise RuntimeError("no luck")
        report(study, claim, curve, checkpoints)

    monkeypatch.setattr(Run, "epoch", diverging)
    monkeypatch.setattr(SweepStudy, "report", failing)
    study = study_of(small_data, trials=4, fixed=ONE_EPOCH)
    work(job(groups=TOGETHER))
    assert states(study.trials()) == ["pruned", "failed"] + ["complete"] * 3


@pytest.mark.parametrize("size", [1, 4])
def test_memory_that_is_spent_while_a_checkpoint_is_restored_restarts_no_trial(
    size: int, small_data: ImageData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a group, less of it is tried; a trial alone is tried once more, and then has failed."""
    monkeypatch.setattr(worker, "MEMORY_SECONDS", 0)
    study = study_of(small_data, trials=size)
    work(job(groups=Groups(size)), stop=after(epochs=2))
    restore = Run.restore

    def full(run: Run, *arguments: Any) -> None:
        if len(run.members) == size:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory")
        restore(run, *arguments)

    monkeypatch.setattr(Run, "restore", full)
    work(job(groups=Groups(size)))
    assert "starts again" not in caplog.text
    if size == 1:
        assert states(study.trials()) == ["failed", "complete"]
        assert "not enough memory" in study.trials()[0].reason
        assert caplog.text.count("a trial does not fit into the memory that is left") == 1
    else:
        assert "4 trials at once do not fit into memory" in caplog.text
        assert [group_sizes(trial) for trial in study.trials()] == [[4, 4, 2]] * 4


@pytest.mark.slow
def test_a_member_that_another_worker_took_is_dropped(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(small_data, trials=4)
    report = SweepStudy.report

    def reported(study: SweepStudy, claim: Any, curve: Any, checkpoints: Any) -> None:
        if claim.number == 2 and len(curve) == 3:
            raise TrialLostError("trial 2 was taken up by another worker")
        report(study, claim, curve, checkpoints)

    monkeypatch.setattr(SweepStudy, "report", reported)
    work(job(groups=TOGETHER), stop=lambda: "complete" in states(study.trials()))
    assert "trial 2 was taken up by another worker" in caplog.text
    assert states(study.trials()) == ["complete"] * 2 + ["running", "complete"]
    assert [group_sizes(trial) for trial in study.trials()] == [[4, 4, 4], [4, 4, 4], [4, 4], [4, 4, 4]]
    assert numbers_with("checkpoint") == [2], "it is another's now"


# --- Processes -------------------------------------------------------------------------------------------------------

COMMAND = ("run", "tiny.toml", "--data", "synthetic:500", "--workers", 1, "--threads", 1)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", *, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def running_curve(minimum: int) -> Callable[[], bool]:
    """Whether some trial is in the middle of its epochs, at `minimum` or later."""

    def check() -> bool:
        if not Path("studies.db").exists():
            return False
        try:
            trials = load(open_existing(URL), "tiny").trials()
        except StudyError:
            return False
        return any(trial.state == "running" and len(trial.curve) >= minimum for trial in trials)

    return check


@pytest.fixture
def long_sweep(tiny_sweep: Path) -> Path:
    """Trials of 15 epochs: long enough to be hit in the middle."""
    tiny_sweep.write_text(tiny_sweep.read_text().replace("epochs = 3", "epochs = 15"))
    return tiny_sweep


def test_killed_and_gone_on_with(tiny_sweep: Path, start: Any, small_data: ImageData) -> None:
    tiny_sweep.write_text(tiny_sweep.read_text().replace("epochs = 3", "epochs = 50"))
    process = start(*COMMAND, "--trials", 1)
    wait_for(running_curve(2), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    study = load(open_existing(URL), "tiny")
    [killed] = study.trials()
    assert killed.state == "running"
    work(job(), stop=lambda: study.trials()[0].epochs_done >= killed.epochs_done + 2)
    [trial] = study.trials()
    assert (trial.state, trial.deaths) == ("waiting", 1)
    assert trial.curve[: killed.epochs_done] == killed.curve, "not trained again"
    unbroken = Run([trial.config], small_data, device=torch.device("cpu"))
    assert [unbroken.epoch()[0].train_loss for _ in trial.curve] == [point.train_loss for point in trial.curve]


@pytest.mark.slow
def test_killed_and_run_again(long_sweep: Path, start: Any, small_data: ImageData) -> None:
    command = (*COMMAND, "--workers", 2, "--trials", 2)
    first = start(*command)
    wait_for(running_curve(5), first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    study = load(open_existing(URL), "tiny")
    time.sleep(1)  # workers notice that their parent is gone
    running = [trial for trial in study.trials() if trial.state == "running"]
    cut = {trial.number: trial.curve for trial in running}  # one may be in its first epoch
    assert cut
    second = start(*command)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert states(study.trials()) == ["complete"] * 2
    for number, curve in cut.items():
        assert study.trials()[number].curve[: len(curve)] == curve, "not trained again"
        assert study.trials()[number].deaths == 1
        torch.set_num_threads(1)
        assert_as_unbroken(study, study.trials()[number], small_data)


@pytest.mark.parametrize(
    ("workers", "number"),
    [
        (1, signal.SIGINT),
        pytest.param(2, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_whole_group_ends_cleanly(
    workers: int, number: signal.Signals, long_sweep: Path, start: Any
) -> None:
    """As a terminal sends Ctrl-C, and `timeout` SIGTERM: to the workers, too."""
    process = start(*COMMAND, "--workers", workers)
    wait_for(running_curve(3), process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "the same command goes on" in out
    assert "Traceback" not in out + err
    study = load(open_existing(URL), "tiny")
    assert "running" not in states(study.trials())
    assert "waiting" in states(study.trials())
    assert all(not trial.deaths for trial in study.trials())


@pytest.mark.slow
def test_two_runs_at_once_share_the_trials(tiny_sweep: Path, start: Any) -> None:
    tiny_sweep.write_text(tiny_sweep.read_text().replace("trials = 4", "trials = 12"))
    processes = [start(*COMMAND) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "12 of 12 trials finished" in out
        assert err == ""
    trials = load(open_existing(URL), "tiny").trials()
    assert states(trials) == ["complete"] * 12
    assert len({trial.owner.token for trial in trials}) == 2, "both worked"
    assert len({trial.params["learning_rate"] for trial in trials}) == 12
    for trial in trials:
        assert [point.epoch for point in trial.curve] == [1, 2, 3]


@pytest.mark.slow
def test_status_during_and_after(tiny_sweep: Path, cli: Any) -> None:
    assert cli(*COMMAND).exit_code == 0
    [study] = json.loads(cli("status", "--json").out)["studies"]
    assert study["name"] == "tiny"
    assert study["trials"]["complete"] == sum(study["trials"].values()) == 4
    assert study["budget"] == 4
    assert 0 < study["best"]["value"] <= 1
    assert set(study["best"]["params"]) == {"learning_rate"}


@pytest.mark.slow
def test_a_trial_without_a_better_epoch_is_complete_before_its_last_one(small_data: ImageData) -> None:
    """In a group, and interrupted: what is told is what the curve of a patient trial says."""
    curves: dict[int, list[list[float]]] = {}
    for patience in (0, 1):
        fixed = TINY["fixed"] | {"epochs": 6, "patience": patience}
        name, sweep = f"patience-{patience}", parse(TINY | {"sampler": "random", "fixed": fixed}, where="test")
        facts_of_data = facts(small_data, source="synthetic:500")
        study = open_or_resume(open_storage(URL), name, sweep, data=facts_of_data)
        if patience:
            work(job(studies=(name,), groups=TOGETHER), stop=after(epochs=2))
        work(job(studies=(name,), groups=TOGETHER))
        assert states(study.trials()) == ["complete"] * 3
        curves[patience] = [[point.validation_accuracy for point in trial.curve] for trial in study.trials()]
        assert [trial.value for trial in study.trials()] == [max(curve) for curve in curves[patience]]
    for whole, short in zip(curves[0], curves[1], strict=True):
        assert short == pytest.approx(whole[: len(short)], abs=0.02)
        best = short.index(max(short))
        assert len(short) == min(best + 2, 6)
    assert min(map(len, curves[1])) < 6
