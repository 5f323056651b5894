"""Words that are true of a study that came to nothing."""

from typing import Any

import pytest

from cifar_sweep.study import opening
from cifar_sweep.study.claim import Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.record import counts_text, saved_by_pruning
from cifar_sweep.study.selection import packed
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.study.verdict import verdict
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.terminal import status
from cifar_sweep.terminal.status import glance

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10, "train_images": 40_000}
SPACE = {"learning_rate": {"low": 300.0, "high": 1000.0, "log": True}}
ENDS = {
    "all diverged": ["diverged", "diverged"],
    "at chance": [0.1, 0.1],
    "just above chance": [0.1, 0.102],
    "diverged or at chance": ["diverged", 0.1],
    "well above chance": [0.1, 0.2],
    "one diverged": ["diverged", 0.5],
    "all pruned": ["weak", "weak"],
    "under way": ["diverged"],
}
WORDS = {
    "all diverged": "all 2 trials diverged: the loss was no longer a finite number; try lower learning rates",
    "at chance": "no trial is better than guessing, 10.00% of 10 classes; try other learning rates",
    "just above chance": "no trial is better than guessing",
    "diverged or at chance": "no trial is better than guessing, 10.00% of 10 classes; 1 of 2 diverged; try",
}


def study_of(storage: Storage, name: str, ends: list[Any], **attributes: Any) -> SweepStudy:
    plain: dict[str, Any] = {"name": "s", "trials": 2, "sampler": "random", "pruner": "none", "space": SPACE}
    study = open_or_resume(storage, name, parse(plain, where="test"), data=DATA)
    for end in ends:
        [claim] = study.claim(Worker(Owner.current(), "cpu", 1, "fp32"))
        if isinstance(end, float):
            study.complete(claim, end, **attributes)
        elif end == "diverged":
            study.prune(claim, "diverged in epoch 1: the loss is no longer a finite number")
        else:
            study.prune(claim, "among the weaker ones")
    return study


@pytest.mark.parametrize("case", ENDS)
def test_it_says_what_it_came_to(case: str, storage: Storage, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "commit", lambda: "0123456789ab")
    study = study_of(storage, name, ENDS[case])
    said = verdict(study, study.trials())
    assert said.startswith(WORDS[case]) if case in WORDS else said == ""
    assert glance(study)["verdict"] == said
    assert ("learning_rate was" in said) == (case in WORDS)


def test_of_no_best_nothing_is_expected(storage: Storage, name: str) -> None:
    correct = packed([1] + [0] * 9)
    assert not study_of(storage, f"{name}-chance", [0.1, 0.1], correct=correct).remarks()
    assert study_of(storage, name, [0.5, 0.5], correct=correct).remarks()
    assert not status.remarks(glance(study_of(storage, f"{name}-again", [0.1, 0.1], correct=correct)))


def test_diverged_is_not_pruned(storage: Storage, name: str) -> None:
    study = study_of(storage, name, ["diverged", "weak"])
    trials = study.trials()
    assert [trial.state_words for trial in trials] == ["diverged", "pruned"]
    assert counts_text(study.summary()["trials"]) == "1 pruned, 1 diverged"
    assert saved_by_pruning(trials).trials == 1


def test_few_images_of_a_validation_folder_leave_more_to_chance(storage: Storage, name: str) -> None:
    study = study_of(storage, name, [0.1, 0.13])
    assert not verdict(study, study.trials())
    study.data |= {"validation_images": 50}
    assert verdict(study, study.trials())
