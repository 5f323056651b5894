"""Studies that are chosen by something else than accuracy: from the sweep file to the words about the best."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from optuna.study import StudyDirection

from cifar_sweep.curve import EpochResult
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.figures.search_figures import importances_of, learning_rate_by_batch
from cifar_sweep.figures.trial_figures import history
from cifar_sweep.report.facts import ImageFindings, collect
from cifar_sweep.report.page import render
from cifar_sweep.report.text import markdown
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.earlier import earlier_of
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.file import from_mapping
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
SPACE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}, "batch_size": {"low": 16, "high": 64, "base2": True}}
PLAIN: dict[str, Any] = {
    "name": "s", "trials": 4, "sampler": "random", "pruner": "none", "fixed": {"epochs": 3}, "space": SPACE,
}  # fmt: skip


def sweep(**tables: Any) -> Sweep:
    return parse(PLAIN | tables, where="test")


@pytest.fixture
def make(storage: Storage, name: str) -> Callable[..., SweepStudy]:
    return lambda **tables: open_or_resume(storage, name, sweep(**tables), data=DATA)


def trained(study: SweepStudy, claim: Claim, losses: list[float]) -> bool:
    """Three epochs of these losses, of accuracies that rise with them. Whether the pruner let it end."""
    for epoch in range(1, 4):
        curve = [
            EpochResult(k + 1, 1.0, 0.5, loss, 0.6 + loss / 10, 1e-3, 1.0) for k, loss in enumerate(losses[:epoch])
        ]
        study.report(claim, [result.to_dict() for result in curve])
        if epoch < 3 and study.should_prune(claim):
            study.prune(claim, "weak")
            return False
    study.complete(claim, min(losses), best_epoch=1 + losses.index(min(losses)))
    return True


def claimed(study: SweepStudy) -> Claim:
    who = Owner(**asdict(Owner.current()))
    [claim] = study.claim(Worker(who, "cpu", 1, "fp32"))
    return claim


def test_a_metric_that_is_the_default_leaves_a_study_what_it_was() -> None:
    assert sweep().identity() == sweep(metric="accuracy").identity() | {"fixed": {"epochs": 3}}
    assert "metric" not in sweep().model_dump(mode="json")["fixed"]
    assert from_mapping(PLAIN, where="test", changes={"metric": "loss"}) == sweep(metric="loss")


def test_the_lowest_loss_is_the_best(make: Callable[..., SweepStudy], storage: Storage, name: str) -> None:
    study = make(metric="loss")
    assert storage.load(name).direction is StudyDirection.MINIMIZE
    assert storage.load(name).metric_names == ["validation loss"]
    for losses in ([0.9, 0.8, 0.7], [0.9, 0.2, 0.6], [0.5, 0.4, 0.3]):
        trained(study, claimed(study), losses)
    assert [trial.number for trial in study.ranked()] == [1, 2, 0]
    best = study.ranked()[0]
    assert (best.value, best.best and best.best.epoch, best.accuracy) == (0.2, 2, 0.62)
    assert study.summary()["best"]["value"] == 0.2
    assert [trial.number for trial in study.kept()] == [1, 2, 0]
    assert storage.load(name).best_trial.number == 1


def test_the_pruner_stops_high_losses(make: Callable[..., SweepStudy]) -> None:
    study = make(metric="loss", pruner={"name": "median", "startup_trials": 1})
    assert trained(study, claimed(study), [0.5, 0.5, 0.5])
    assert not trained(study, claimed(study), [0.9, 0.9, 0.9])
    assert trained(study, claimed(study), [0.1, 0.1, 0.1])


def test_the_confirmed_one_has_the_lowest_mean(make: Callable[..., SweepStudy]) -> None:
    study = make(metric="loss", confirm=[2, 2], trials=2)
    for loss in (0.5, 0.4):
        trained(study, claimed(study), [loss] * 3)
    fresh = {0: [0.30, 0.31], 1: [0.60, 0.61]}
    while not study.finished():
        claim = claimed(study)
        trained(study, claim, [fresh[claim.before.confirms or 0].pop()] * 3)
    assert study.remarks()["confirmation"]["text"].startswith("trial 0 is confirmed: 0.3050 ± 0.0071 over 2 fresh")


def test_words_and_figures_are_of_the_metric(make: Callable[..., SweepStudy]) -> None:
    study = make(metric="loss")
    for losses in ([0.9, 0.8, 0.7], [0.9, 0.2, 0.6], [0.9, 0.5, 0.6], [0.9, 0.4, 0.3]):
        trained(study, claimed(study), losses)
    figure = history(study.trials())
    assert figure.layout.yaxis.title.text == "validation loss, nats"
    assert [trace.y for trace in figure.data if trace.name == "best so far"] == [(0.7, 0.2, 0.2, 0.2, 0.2)]
    assert learning_rate_by_batch(study.trials(), data="d").data[0].reversescale
    assert importances_of(study.trials()).trials == 4
    report = collect(study, findings=ImageFindings())
    for words in (render(report), markdown(report)):
        assert "chosen by validation loss: 0.2000" in words
        assert "expected on new images" not in words


def test_what_cannot_be_chosen_by_it_is_refused(make: Callable[..., SweepStudy], storage: Storage, name: str) -> None:
    with pytest.raises(UsageError, match="model of strategy 'auto' is of accuracies.*strategy = 'optuna'"):
        parse({"name": "s", "strategy": "auto", "metric": "f1", "space": SPACE}, where="test")
    with pytest.raises(UsageError, match="metric is to be the same for all trials"):
        sweep(space={"metric": {"choices": ["loss", "f1"]}})
    with pytest.raises(UsageError, match="metric = 'val_loss' is not .* one of accuracy, loss, f1, top5"):
        sweep(metric="val_loss")
    with pytest.raises(UsageError, match="of 5 classes the right one is always among five"):
        open_or_resume(storage, name, sweep(metric="top5"), data=DATA | {"classes": 5})
    trained(study := make(), claimed(make()), [0.5] * 3)
    with pytest.raises(StudyError, match="with another fixed"):
        make(metric="loss")
    with pytest.raises(StudyError, match="chosen by accuracy, not by loss; keep that"):
        open_or_resume(storage, name, sweep(metric="loss"), data=DATA, extend=True)
    with pytest.raises(StudyError, match="nothing of it can be used here, it has metric = accuracy"):
        earlier_of(study, sweep(metric="loss"), data=DATA, code={})
