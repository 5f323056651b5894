"""A study's report: the facts are right, every study has one, hostile texts stay texts, and many trials stay quick."""

import csv
import io
import json
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.config import TrialConfig
from cifar_sweep.exports.classifier import Predictions
from cifar_sweep.figures.search_figures import importances_of
from cifar_sweep.report import mistakes as looking
from cifar_sweep.report.facts import ImageFindings, Mistake, Report, collect, wilson
from cifar_sweep.report.page import render, table_of
from cifar_sweep.report.reproduction import reproduction_of, sweep_toml
from cifar_sweep.report.text import hand_card, markdown, trials_csv
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.record import records
from cifar_sweep.study.storage import open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.file import find, load, names
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.work.submit import facts
from cifar_sweep.work.worker import Job, work
from tests.report.report_studies import made_up, many, study_of, sweep_of
from tests.report.test_plot import figures_of
from tests.test_imports import loaded_by

SOURCE = "synthetic:500"
HOSTILE = "</script><script>alert(1)</script>|`x` <b onclick='y'>\n| & \u2028 *z* [l](http://x)"


def report_of(trials: Sequence[FrozenTrial], *, findings: ImageFindings | None = None, **options: Any) -> Report:
    return collect(study_of(trials, **options), findings=findings or ImageFindings())


# Facts


@pytest.mark.parametrize(
    ("share", "images", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.75, 10_000, 0.7414, 0.7584)],
)
def test_wilson(share: float, images: int, low: float, high: float) -> None:
    assert wilson(share, images) == pytest.approx((low, high), abs=1e-4)


def test_the_answer_is_the_best_complete_trial_with_what_was_chosen() -> None:
    sweep = sweep_of()
    trials = [
        made_up(sweep, 0, accuracy=0.6, label="report A"),
        made_up(sweep, 1, accuracy=0.7, params={"log2_batch_size": 5, "learning_rate": 1e-3}),
        made_up(sweep, 2, TrialState.PRUNED, accuracy=0.9),
    ]
    study = study_of(trials)
    study.record_test([1], 0.65)
    report = collect(study, findings=ImageFindings(test_images=5000))
    assert report.answer is not None
    assert (report.answer.trial.number, report.answer.trial.best.epoch, report.answer.trial.epochs) == (1, 10, 10)
    assert report.answer.validation.value == 0.7
    assert report.answer.validation.images == 10_000
    assert report.answer.test is not None
    assert (report.answer.test.value, report.answer.test.images) == (0.65, 5000)
    assert report.answer.chosen == {
        "model": "cnn3", "epochs": 10, "dropout": 0.2, "learning_rate": 1e-3, "batch_size": 32,
    }  # fmt: skip
    assert set(report.answer.searched) == {"learning_rate", "batch_size"}
    assert report.answer.trial.settings["optimizer"] == "adam"
    counts = {name: count for name, count in report.counts.items() if count}
    assert counts == {"complete": 2, "pruned": 1}
    assert report.seconds == pytest.approx(sum(trial.seconds for trial in report.trials))
    assert (report.saved.trials, report.saved.epochs) == (1, 10 - report.trials[2].epochs_done)
    assert report.trials[0].label == "report A"
    assert report.trials[2].reason == "made up to be pruned"


def test_workers_are_named_in_the_order_of_their_first_trial() -> None:
    trials = [made_up(sweep_of(), number) for number in range(4)]
    trials[2].user_attrs["owner"] = None  # its worker died
    assert [record.worker for record in records(trials)] == ["worker 1", "worker 2", "", "worker 2"]
    trials[3].user_attrs["owner"] = trials[3].user_attrs["owner"] | {"host": "there"}
    assert records(trials)[0].worker == "worker 1 on here"


def test_importance_by_the_parameters_own_names() -> None:
    found = importances_of(records(many(sweep_of(), 100)))
    assert [name for name, _ in found.shares] == ["learning_rate", "batch_size"]
    assert sum(share for _, share in found.shares) == pytest.approx(1)
    assert found.trials == sum(trial.state is TrialState.COMPLETE for trial in many(sweep_of(), 100))


def test_importance_says_why_there_is_none() -> None:
    sweep = sweep_of()
    few = importances_of(records([made_up(sweep, number) for number in range(9)]))
    assert (few.shares, few.reason) == ((), "there are 9 complete trials, and it takes 10")
    alone = sweep_of(space={"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}})
    assert "fewer than two" in importances_of(records([made_up(alone, number) for number in range(20)])).reason
    same = importances_of(records([made_up(sweep, number, accuracy=0.5) for number in range(20)]))
    assert "same accuracy" in same.reason


@pytest.mark.slow
def test_importance_of_conditional_parameters() -> None:
    found = importances_of(records(many(load(find("full")), 150)))
    assert {"hidden_units", "momentum", "learning_rate"} <= {name for name, _ in found.shares}


# The best by hand


@pytest.mark.slow
def test_beside_the_reports_best() -> None:
    sweep = load(find("lr_batch"))
    trials = [made_up(sweep, 0, accuracy=0.76)]
    study = study_of(trials, sweep=sweep, name="lr_batch")
    study.record_test([0], 0.755)
    report = collect(study, findings=ImageFindings())
    assert report.by_hand is not None
    assert report.by_hand.search is not None
    claim = report.by_hand.search.claimed_model
    assert claim is not None
    assert (claim.label, claim.accuracy) == ("B-011", 75.18)
    card = hand_card(report)
    assert card is not None
    assert card.claim == 75.18
    assert "not measured here" in card.words
    assert "The test accuracy is 0.32 points above the claim." in card.words
    page, text = render(report), markdown(report)
    assert "Reports&#39; best by hand" in page
    assert "0.32 points above" in page
    assert "0.32 points above" in text


def test_a_shortened_sweep_is_not_compared() -> None:
    sweep = load(find("lr_batch"), changes={"epochs": 3})
    study = study_of([made_up(sweep, 0, accuracy=0.76)], sweep=sweep, name="lr_batch")
    study.record_test([0], 0.755)
    report = collect(study, findings=ImageFindings())
    assert report.shortened == "3 of 30 epochs"
    card = hand_card(report)
    assert card is not None
    assert "points" not in card.words
    assert "not compared" in card.words
    assert "<strong>Shortened:</strong> 3 of 30 epochs" in render(report)


def test_a_shortened_hand_run_is_called_so_on_synthetic_images_too() -> None:
    sweep = load(find("reports"), only=["C-1"], changes={"epochs": 3})
    [point] = sweep.enqueue
    trial = made_up(sweep, 0, accuracy=0.7, label=point.label, given=point.params())
    config = TrialConfig.from_params(sweep.fixed | point.params(), classes=10, precision="fp32", data_seed=0, seed=0)
    trial.user_attrs["config"] |= config.to_dict()
    study = study_of([trial], sweep=sweep, name="reports")
    study.data = study.data | {"name": "synthetic images (500 + 100)"}
    report = collect(study, findings=ImageFindings())
    assert report.by_hand is None
    assert report.shortened.startswith("3 of ")


def test_of_no_best_none_is_called_so_or_exported() -> None:
    sweep = sweep_of(trials=2)
    diverged = made_up(sweep, 1, TrialState.PRUNED, epochs_done=0, reason="diverged in epoch 1: the loss")
    study = study_of([made_up(sweep, 0, accuracy=0.1), diverged], sweep=sweep)
    report = collect(study, findings=ImageFindings())
    assert report.verdict.startswith("no trial is better than guessing")
    for written in (render(report), markdown(report)):
        assert "cifar-sweep export" not in written
        assert "Best config" not in written
        assert "The highest" in written
    assert [row["state"] for row in csv.DictReader(io.StringIO(trials_csv(report)))] == ["complete", "diverged"]
    better = study_of([made_up(sweep, 0, accuracy=0.7), diverged], sweep=sweep, name="better")
    assert "cifar-sweep export better" in markdown(collect(better, findings=ImageFindings()))


def test_synthetic_images_are_called_so_and_compared_with_nothing() -> None:
    study = study_of([made_up(sweep_of(), 0)])
    study.data = study.data | {"name": "synthetic images (500 + 100)"}
    report = collect(study, findings=ImageFindings())
    page, text = render(report), markdown(report)
    assert (report.by_hand, hand_card(report)) == (None, None)
    for written in (page, text):
        assert "Synthetic images" in written
        assert "best by hand" not in written
        assert "B-011" not in written


@pytest.mark.slow
def test_given_runs_beside_their_own_claims() -> None:
    sweep = load(find("reports"), only=["B-009", "C-1"])
    points = {point.label: point.params() for point in sweep.enqueue}
    trials = []
    for number, (label, given) in enumerate(points.items()):
        trial = made_up(sweep, number, accuracy=0.7 - 0.1 * number, label=label, given=given, shortened="")
        config = TrialConfig.from_params(
            sweep.fixed | given, classes=10, precision="fp32", data_seed=0, seed=0
        ).to_dict()
        trial.user_attrs["config"] |= config
        trial.user_attrs["environment"] |= {"commit": None}
        trials.append(trial)
    study = study_of(trials, sweep=sweep, name="reports")
    study.record_test([0], 0.69)
    report = collect(study, findings=ImageFindings())
    assert report.study.sweep.given
    assert report.by_hand is not None
    assert report.by_hand.run is not None
    assert report.by_hand.run.label == "B-009"
    card = hand_card(report)
    assert card is not None
    assert (card.title, card.claim) == ("Its report claims", 74.96)
    assert report.answer is not None
    assert "epochs" in report.answer.searched
    page = render(report)
    assert "Claimed and measured" in page
    assert "A point by hand: B-009." in page
    assert "chosen by hand" in report.importances.reason
    assert "(B-009)" in markdown(report)
    assert trials_csv(report).splitlines()[1].count("B-009") == 1


# Every study has a report


def only(state: TrialState, count: int) -> Callable[[Sweep], list[FrozenTrial]]:
    return lambda sweep: [made_up(sweep, number, state) for number in range(count)]


STUDIES: dict[str, tuple[dict[str, Any], Callable[[Sweep], list[FrozenTrial]], str]] = {
    "nothing": ({}, lambda _: [], "No trial has finished an epoch yet"),
    "one": ({}, only(TrialState.COMPLETE, 1), "One trial has nothing beside it"),
    "failed": ({}, only(TrialState.FAIL, 3), "No trial is complete yet"),
    "pruned": ({}, only(TrialState.PRUNED, 4), "The best value so far is that of trial"),
    "running": ({}, only(TrialState.RUNNING, 2), "No trial that was trained has ended yet"),
    "no epoch": ({}, lambda sweep: [made_up(sweep, 0, TrialState.FAIL, epochs_done=0)], "nothing to draw"),
    "alike": ({}, lambda sweep: [made_up(sweep, n, accuracy=0.5) for n in range(12)], "same accuracy"),
    "nothing searched": ({"space": {}}, only(TrialState.COMPLETE, 2), "Study mine"),
    "without a pruner": ({"pruner": "none"}, only(TrialState.COMPLETE, 3), "The sweep has no pruner."),
}


@pytest.mark.parametrize("kind", STUDIES)
def test_every_study_has_a_report(kind: str) -> None:
    changes, make, words = STUDIES[kind]
    sweep = sweep_of(**changes)
    trials = make(sweep)
    report = report_of(trials, sweep=sweep)
    page, text, table = render(report), markdown(report), trials_csv(report)
    assert words in page
    assert len(table.splitlines()) == 1 + len(trials)
    assert text.startswith("## Study mine\n")
    assert ("No trial is complete yet" in text) == (not report.counts["complete"])
    figures_of(page)
    # Each place for a figure has its figure, and each link in the page leads somewhere.
    ids = re.findall(r' id="([\w-]+)"', page.partition('<script type="text/plain"')[0])
    assert len(ids) == len(set(ids))
    assert {f"figure-{place}" for place in re.findall(r'class="plot" id="([\w-]+)"', page)} <= set(ids)
    assert set(re.findall(r'href="#([\w-]+)"', page)) <= set(ids)


@pytest.mark.slow
def test_conditional_parameters() -> None:
    sweep = load(find("full"))
    report = report_of(many(sweep, 120), sweep=sweep, name="full")
    page = render(report)
    rows = list(csv.DictReader(io.StringIO(trials_csv(report))))
    assert {row["momentum"] == "" for row in rows if row["optimizer"] == "adam"} == {True}
    assert {row["momentum"] == "" for row in rows if row["optimizer"] == "sgd"} == {False}
    figures = figures_of(page)
    assert len([name for name in figures if name.startswith("slice-")]) == len(report.parameters) == 16
    assert figures["pruned-plot"]["layout"]["xaxis"]["title"]["text"] == "share of their schedule, %"


def test_headings_are_in_order_and_figures_have_words() -> None:
    page = render(report_of(many(sweep_of(), 40)))
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    plots = re.findall(r'<div class="plot"[^>]*>', page)
    assert len(plots) > 8
    assert all('role="img" aria-label="' in plot for plot in plots)
    assert re.findall(r"<img(?![^>]* alt=)", page) == []


# Hostile texts


def hostile_report() -> Report:
    sweep = sweep_of(description=HOSTILE)
    trials = [made_up(sweep, n, accuracy=0.5 + n / 100, label=HOSTILE) for n in range(12)]
    trials += [
        made_up(sweep, 12, TrialState.FAIL, reason=HOSTILE),
        made_up(sweep, 13, TrialState.PRUNED, reason=HOSTILE),
    ]
    for trial in trials:
        trial.user_attrs["environment"] |= {"device": HOSTILE, "commit": HOSTILE}
    trials[1].user_attrs["owner"] = trials[1].user_attrs["owner"] | {"host": HOSTILE}
    study = study_of(trials, sweep=sweep)
    study.data = study.data | {"name": HOSTILE}
    picture = Mistake(HOSTILE, HOSTILE, 0.9, "data:image/png;base64,AA==")
    findings = ImageFindings(
        missing=HOSTILE, classes=(HOSTILE, "cat"), confusion=((3, 1), (0, 4)), mistakes=(picture,), validation_images=8
    )
    return collect(study, findings=findings)


def test_a_page_escapes_what_users_wrote() -> None:
    page = render(hostile_report())
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<b onclick" not in page
    assert page.count("<script") == page.count("</script>")
    texts = json.dumps(figures_of(page))
    assert "alert(1)" in texts
    # Plotly reads some HTML in its texts: what is a tag there must be one of ours.
    assert set(re.findall(r"<(/?\w+)", texts)) <= {"br", "b", "/b", "extra", "/extra"}
    [rows] = re.findall(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)
    assert HOSTILE in {cell for row in json.loads(rows)["rows"] for cell in row}, "the table's script has it as it is"


def test_markdown_and_csv_hold_hostile_texts() -> None:
    report = hostile_report()
    text = markdown(report)
    unfenced = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert re.search(r"(?<!\\)<(?!/?(details|summary)>)", unfenced) is None
    assert "](" not in unfenced.replace("\\](", "")
    [head, _, *rows] = (
        [line for line in text.splitlines() if line.startswith("| trial")][:1]
        + [""]
        + [line for line in text.splitlines() if re.match(r"\| \d", line)]
    )
    columns = len(re.findall(r"(?<!\\)\|", head))
    assert rows
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {columns}
    table = list(csv.DictReader(io.StringIO(trials_csv(report), newline="")))
    assert len(table) == 14
    assert table[12]["reason"] == table[0]["label"] == HOSTILE


# Text


def test_markdown_is_short_and_says_all() -> None:
    study = study_of(many(sweep_of(), 100))
    best = study.ranked()[0]
    study.record_test([best.number], 0.7)
    report = collect(study, findings=ImageFindings(test_images=10_000))
    text = markdown(report)
    assert f"**Trial {best.number}**: " in text
    assert "| test | 70.00 | 69.09 to 70.89 |" in text
    assert "they say nothing of other seeds" in text
    assert len([line for line in text.splitlines() if re.match(r"\| \d", line)]) == 10
    assert f"stopped {report.saved.trials} of 100 trials early" in text
    assert "apart from all of them (PED-ANOVA): learning\\_rate" in text
    assert f"cifar-sweep export mine --trial {best.number}" in text
    assert "fingerprint 0123456789abcdef" in text


def test_csv_has_a_row_for_each_trial() -> None:
    sweep = sweep_of()
    trials = [
        made_up(sweep, 0, accuracy=0.625, params={"log2_batch_size": 7, "learning_rate": 0.001}, label="a, b"),
        made_up(sweep, 1, TrialState.PRUNED, epochs_done=2),
        made_up(sweep, 2, TrialState.RUNNING),
    ]
    complete, pruned, running = csv.DictReader(io.StringIO(trials_csv(report_of(trials)), newline=""))
    assert (complete["trial"], complete["state"], complete["value"]) == ("0", "complete", "0.625")
    assert (complete["batch_size"], complete["learning_rate"], complete["label"]) == ("128", "0.001", "a, b")
    assert (complete["epochs_done"], complete["of_epochs"], complete["device"]) == ("10", "10", "cpu (a test)")
    assert (complete["started"], complete["worker"]) == ("2026-01-01T12:00:00", "worker 1")
    assert (pruned["state"], pruned["epochs_done"], pruned["reason"]) == ("pruned", "2", "made up to be pruned")
    assert (running["state"], running["value"], running["ended"]) == ("running", "", "")


def test_the_table_begins_with_the_best() -> None:
    table = table_of(report_of(many(sweep_of(), 30)))
    keys = [column["key"] for column in table["columns"]]
    rows = [dict(zip(keys, row, strict=True)) for row in table["rows"]]
    complete = [row["accuracy"] for row in rows if row["state"] == "complete"]
    assert [row["state"] for row in rows][: len(complete)] == ["complete"] * len(complete)
    assert complete == sorted(complete, reverse=True)
    assert {"learning_rate", "batch_size", "worker", "reason"} <= set(keys)
    assert "device" not in keys, "all of one device: no column"


# How to get the numbers again


@pytest.mark.parametrize("name", names())
def test_a_sweep_as_a_file_is_the_sweep(name: str) -> None:
    sweep = load(find(name))
    assert parse({"name": name} | tomllib.loads(sweep_toml(sweep)), where="again") == sweep


def test_a_hostile_sweep_as_a_file_is_the_sweep() -> None:
    sweep = sweep_of(
        description=HOSTILE + "\x7f\x01\"'\\",
        sampler={"name": "tpe", "startup_trials": 3},
        pruner={"name": "asha", "reduction_factor": 4},
        enqueue=[{"label": HOSTILE, "learning_rate": 1e-3}],
        preview={"trials": 2, "epochs": 1},
    )
    assert parse({"name": "mine"} | tomllib.loads(sweep_toml(sweep)), where="again") == sweep


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ({}, "cifar-sweep run lr_batch"),
        ({"changes": {"trials": 7}}, "cifar-sweep run lr_batch --trials=7"),
        ({"changes": {"seed": 3}}, "cifar-sweep run lr_batch --seed=3"),
        ({"preview": True}, "cifar-sweep run lr_batch --preview"),
        ({"changes": {"epochs": 2}}, "cifar-sweep run lr_batch.toml"),
    ],
    ids=["whole", "trials", "seed", "preview", "other"],
)
def test_the_command_that_runs_a_sweep_again(options: dict[str, Any], command: str, cli: Any) -> None:
    study = study_of([], sweep=load(find("lr_batch"), **options), name="lr_batch")
    found = reproduction_of(study, None)
    assert found.commands[0][0] == command
    assert bool(found.file) == command.endswith(".toml")


def test_what_a_number_depends_on() -> None:
    study = study_of([made_up(sweep_of(), 0)], name="other", source="/home/me/pictures")
    found = reproduction_of(study, study.ranked()[0])
    commands = [command for command, _ in found.commands]
    assert commands == [
        "cifar-sweep run mine.toml --study other --data FOLDER",
        "cifar-sweep export other --trial 0",
        "cifar-sweep train exports/other-0",
    ]
    assert "me/pictures" not in render(collect(study, findings=ImageFindings()))
    assert found.facts["data"] == "CIFAR-10, fingerprint 0123456789abcdef"
    assert found.facts["commit"] == "abc123"
    assert found.facts["device"] == "cpu (a test)"
    assert "torch 2.14.1" in found.facts["versions"]
    seed = study.ranked()[0].settings["seed"]
    assert f"best trial {seed}" in found.facts["seeds"]


# Images


@pytest.fixture
def trained(tiny_sweep: Path, small_data: ImageData) -> SweepStudy:
    """A study of two trials on 500 synthetic images."""
    sweep = load(tiny_sweep, changes={"trials": 2, "epochs": 1})
    study = open_or_resume(open_storage("sqlite:///studies.db"), "tiny", sweep, data=facts(small_data, source=SOURCE))
    work(Job("sqlite:///studies.db", ("tiny",), data=SOURCE, device="cpu", threads=1))
    return study


def test_a_report_of_a_real_run(trained: SweepStudy, cli: Any, reads: list[int]) -> None:
    best = trained.ranked()[0].number
    assert trained.test_accuracy([best]) is None
    finished = cli("report", "--device", "cpu")
    assert (finished.exit_code, finished.out.strip()) == (0, "written: tiny-report.html")
    page = Path("tiny-report.html").read_text()
    assert reads == [100]
    known = trained.test_accuracy([best])
    assert known is not None
    assert f"{100 * known:.2f}<small> %</small>" in page
    assert "from 100 test images" in page
    assert "from 100 validation images" in page
    assert page.count("data:image/png;base64,") > 5
    assert page.count('<tr><th scope="row">') == 10
    assert cli("report", "--out", "again.html").exit_code == 0
    assert reads == [100], "what is remembered is not read again"
    exported = cli("export", "--trial", best, "--out", "here")
    assert exported.exit_code == 0
    assert json.loads(Path("here/metrics.json").read_text())["test_accuracy"] == pytest.approx(known, abs=1e-6)


def test_the_confusion_matrix_is_of_all_validation_images(trained: SweepStudy, small_data: ImageData) -> None:
    best = trained.ranked()[0]
    findings = looking.look_at_images(
        trained, best, lambda: small_data, artifacts=open_artifacts("artifacts"), device=torch.device("cpu")
    )
    assert findings.missing == ""
    assert sum(map(sum, findings.confusion)) == findings.validation_images == 100
    right = sum(row[label] for label, row in enumerate(findings.confusion))
    assert right / 100 == pytest.approx(best.value, abs=0.02)
    assert [sum(row) for row in findings.confusion] == [10] * 10
    confused = findings.most_confused()
    assert sum(count for _, _, count, _ in confused) <= 100 - right
    assert confused[0][2] / confused[0][3] == max(
        count / 10 for label, row in enumerate(findings.confusion) for taken, count in enumerate(row) if taken != label
    )


def test_the_most_certain_mistakes_first_and_few_of_a_pair() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.05, 0.95], [0.1, 0.9], [0.6, 0.4]])
    labels = torch.tensor([0, 0, 0, 0, 0, 1])
    found = Predictions(probabilities[None], labels)
    images = torch.zeros(6, 32, 32, 3, dtype=torch.uint8)
    shown = looking.certain_mistakes(found, images, classes=("a", "b"))
    assert [(each.right, each.taken_for, round(each.probability, 2)) for each in shown] == [
        ("a", "b", 0.95), ("a", "b", 0.9), ("a", "b", 0.8), ("b", "a", 0.6),
    ]  # fmt: skip
    assert shown[0].picture.startswith("data:image/png;base64,iVBOR")


def test_samples_are_the_first_of_each_class_right_or_wrong() -> None:
    labels = torch.tensor([0] * 5 + [1] * 2)
    found = Predictions(torch.tensor([[0.9, 0.1]] * 7)[None], labels)
    shown = looking.samples(found, torch.zeros(7, 8, 8, 3, dtype=torch.uint8), classes=("a", "b"))
    assert [(each.right, each.taken_for) for each in shown] == [("a", "a")] * 3 + [("b", "a")] * 2


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        ([nn.Conv2d(3, 70, 5), nn.Conv2d(70, 8, 3)], 64),
        ([nn.Linear(4, 4), nn.Conv2d(1, 4, 3)], 4),
        ([nn.Conv2d(3, 4, 1)], 0),  # one pixel is no picture
        ([nn.Linear(4, 3)], 0),
    ],
)
def test_the_filters_of_the_first_convolution_are_pictures(layers: list[nn.Module], count: int) -> None:
    shown = looking.first_filters(nn.Sequential(*layers))
    assert len(shown) == count
    assert all(each.startswith("data:image/png;base64,iVBOR") for each in shown)


@pytest.mark.slow
def test_missing_weights_are_said_in_a_sentence(trained: SweepStudy, cli: Any, reads: list[int]) -> None:
    for path in Path("artifacts").rglob("weights-*"):
        path.unlink()
    assert cli("report", "--device", "cpu").exit_code == 0
    page = Path("tiny-report.html").read_text()
    best = trained.ranked()[0].number
    assert "not measured" in page
    assert f"Trial {best} is without test accuracy and confusion matrix: " in page
    assert "there are no weights of trial" in page
    assert reads == []
    text = cli("report", "--format", "md", "--out", "-").out
    assert f"Trial {best} is without test accuracy: " in text


def test_missing_images_are_said_in_a_sentence(trained: SweepStudy, cli: Any) -> None:
    assert cli("report", "--device", "cpu", "--data", "nowhere").exit_code == 0
    page = Path("tiny-report.html").read_text()
    assert "is without test accuracy and confusion matrix: " in page
    assert "nowhere" in page
    assert cli("report", "--data", "synthetic:600", "--out", "other.html").exit_code == 0
    assert "was run on synthetic images (500 + 100), not on" in Path("other.html").read_text()


# The command


def test_formats_and_standard_output(cli: Any) -> None:
    study_of(many(sweep_of(), 5), stored=True)
    assert cli("report", "--format", "csv").exit_code == 0
    assert Path("mine-report.csv").read_bytes().startswith(b"trial,state,value,epochs_done,of_epochs,seconds,")
    assert cli("report", "mine", "--format", "md", "--no-images", "--out", "deep/er.md").exit_code == 0
    assert Path("deep/er.md").read_text().startswith("## Study mine")
    said = cli("report", "--format", "csv", "--out", "-")
    assert said.out.encode() == Path("mine-report.csv").read_bytes()
    assert cli("report", "--format", "pdf").exit_code == 2
    assert cli("report", "none").exit_code == 1


@pytest.mark.slow
def test_without_images_no_torch_is_loaded() -> None:
    study_of(many(sweep_of(), 5), stored=True)
    run = "try:\n    main(['report', '--no-images', '--out', 'a.html'])\nexcept SystemExit: pass"
    assert loaded_by(f"from cifar_sweep.cli import main\n{run}", "torch", "optuna") == {"optuna"}
    page = Path("a.html").read_text()
    assert "The images were left out of this report." in page
    assert "this report was written without images" in page


def test_a_report_does_not_need_the_reports_sweep() -> None:
    Path("sweeps").mkdir()
    Path("sweeps/reports.toml").write_text("no sweep at all")  # a user's own file goes before the shipped one
    report = report_of([made_up(sweep_of(), 0)])
    assert report.by_hand is None
    assert "best by hand" not in render(report)


# Many trials


@pytest.mark.slow
def test_a_report_of_2000_trials_is_small_and_soon_written() -> None:
    sweep = sweep_of(trials=2000, fixed={"model": "cnn3", "epochs": 30})
    study = study_of(many(sweep, 2000), sweep=sweep)
    start = time.process_time()
    page = render(collect(study, findings=ImageFindings()))
    assert time.process_time() - start < 10
    assert len(page.encode()) < 8_000_000
    figures = figures_of(page)
    assert sum(len(trace["x"]) for trace in figures["curves-plot"]["data"]) <= 50 * 31
    assert sum(len(trace.get("x", ())) for trace in figures["slice-0"]["data"]) <= 6001
    assert '"trial":1999' not in page
    [rows] = re.findall(r'id="rows">(.*?)</script>', page, re.DOTALL)
    assert len(json.loads(rows)["rows"]) == 2000


@pytest.mark.slow
def test_the_wheel_has_the_pages_files(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    folder = root / "cifar_sweep/report/templates"
    needed = {f"cifar_sweep/report/templates/{path.name}" for path in folder.iterdir()}
    assert len(needed) > 5
    assert needed <= set(zipfile.ZipFile(wheel).namelist())
