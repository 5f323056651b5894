"""Claimed against measured: every row says what it is, nothing shortened is compared, the test set is read once."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.errors import StudyError
from cifar_sweep.exports import testset
from cifar_sweep.hand import compare as compare_module
from cifar_sweep.hand import rows as hand_runs
from cifar_sweep.hand.compare import SweepRow, as_json, collect, sweep_rows, tables
from cifar_sweep.hand.rows import HandRow, hand_rows
from cifar_sweep.parameters import Value
from cifar_sweep.study import opening
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.storage import open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.file import load
from cifar_sweep.training.images import data as images
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.work.submit import facts
from cifar_sweep.work.worker import Job, work

GIVEN = """
sampler = "given"
pruner = "none"
keep_weights = 9
[fixed]
model = "lenet"
precision = "fp32"
batch_size = 32
[space]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
dropout = { low = 0, high = 0.5 }
epochs = { low = 1, high = 4 }
train_images = { low = 0, high = 400 }
[[enqueue]]
label = "H-2"
claimed = 12.3456
claimed_seconds = 70
note = "the first one"
learning_rate = 1e-3
epochs = 2
[[enqueue]]
label = "H-1"
claimed = 45
learning_rate = 1e-2
epochs = 3
[[enqueue]]
label = "H-3"
learning_rate = 1e-2
epochs = 1
[[ensemble]]
label = "H-ens"
members = ["H-2", "H-3"]
claimed = 86.3
"""
NAME = "synthetic images (500 + 100)"


def train(path: Path, data: ImageData, *, only: str = "", preview: bool = False, **changes: Value) -> SweepStudy:
    sweep = load(path, changes=changes, preview=preview, only=only.split(",") if only else ())
    storage = open_storage("sqlite:///studies.db")
    study = open_or_resume(storage, path.stem, sweep, data=facts(data, source="synthetic:500"))
    work(Job("sqlite:///studies.db", (path.stem,), data="synthetic:500", device="cpu", threads=1))
    return study


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "given.toml"
    path.write_text(GIVEN)
    return path


def train_given(path: Path, data: ImageData) -> SweepStudy:
    """Trial 0 is H-2 whole, trial 1 H-2 shortened, trial 2 H-1 shortened; H-3 is not run."""
    train(path, data, only="H-2")
    return train(path, data, only="H-2,H-1", epochs=1, train_images=120)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, session_cache: Path, small_data: ImageData) -> Path:
    """The folder of `study`, which is trained once."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "given.toml"
    path.write_text(GIVEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIFAR_SWEEP_CACHE", str(session_cache))
        patch.chdir(folder)
        train_given(path, small_data)
    return folder


@pytest.fixture
def study(trained: Path) -> SweepStudy:
    """A copy of what `train_given` makes, to be read; what is trained in addition goes to the original's folder."""
    shutil.copytree(trained, Path(), dirs_exist_ok=True)
    return opening.load(open_storage("sqlite:///studies.db"), "given")


def measured(study: SweepStudy, data: ImageData) -> dict[int, float]:
    place: dict[str, Any] = {"artifacts": open_artifacts("artifacts"), "device": torch.device("cpu")}
    accuracies = {t.number: testset.accuracy_on_test(study, [t], lambda: data, **place) for t in study.trials()}
    return {number: accuracy for number, accuracy in accuracies.items() if accuracy is not None}


@pytest.fixture
def as_if_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims are about CIFAR-10: points are not given for images that were drawn."""
    monkeypatch.setattr(hand_runs, "is_synthetic", lambda _: False)
    for module in (hand_runs, compare_module):
        monkeypatch.setattr(module, "is_about", lambda _: True)


def known(sweep: Path) -> None:
    """Put a sweep's file where it is found by its name."""
    Path("sweeps").mkdir()
    sweep.rename(Path("sweeps", sweep.name))


def text(screen: Callable[[Console], None], *, width: int = 300) -> str:
    out = io.StringIO()
    screen(Console(file=out, width=width, color_system=None))
    return " ".join(out.getvalue().split())


def shown(hand: list[HandRow], sweeps: list[SweepRow]) -> str:
    return text(lambda screen: screen.print(*tables(hand, sweeps)))


@pytest.mark.parametrize("mine", ["image folder mine", "CIFAR-10-of-mine.npz", "synthetic.npz"])
def test_no_claim_stands_beside_a_persons_own_pictures(
    study: SweepStudy, given: Path, small_data: ImageData, mine: str
) -> None:
    measured(study, small_data)
    assert hand_runs.names_claims(study)
    study.data = study.data | {"name": mine}
    assert not hand_runs.names_claims(study)
    rows = [row for row in hand_rows(load(given), study) if row.trial is not None]
    assert rows
    assert all((row.claimed, row.claimed_seconds, row.difference) == (None, None, None) for row in rows)


def test_each_row_on_synthetic_images_is_marked(study: SweepStudy, given: Path) -> None:
    rows = hand_rows(load(given), study)
    real = [replace(row, label="R", data="CIFAR-10 (abc)") for row in rows[:1]]
    words = shown([*rows, *real], [])
    assert "H-2 * lenet" in words
    assert "R lenet" in words
    assert "* synthetic images say nothing about CIFAR-10" in words


@pytest.mark.usefixtures("as_if_real")
def test_a_row_for_each_training_in_the_files_order(study: SweepStudy, given: Path, small_data: ImageData) -> None:
    tests = measured(study, small_data)
    assert sorted(tests) == [0, 1, 2]
    rows = hand_rows(load(given), study)
    assert [(row.label, row.trial, row.state) for row in rows] == [
        ("H-2", 0, "complete"),
        ("H-2", 1, "complete"),
        ("H-1", 2, "complete"),
        ("H-3", None, "not run"),
        ("H-ens", None, "see members"),
    ]
    assert [row.shortened for row in rows] == [
        "",
        "1 of 2 epochs, 120 of 400 images",
        "1 of 3 epochs, 120 of 400 images",
        "",
        "",
    ]
    whole, short, _, bare, ensemble = rows
    assert whole.test == tests[0]
    assert whole.difference == pytest.approx(100 * tests[0] - 12.3456)
    assert (short.test, short.difference) == (tests[1], None)
    assert whole.validation == study.trials()[0].value
    assert whole.seconds == pytest.approx(study.trials()[0].seconds)
    assert (whole.claimed_seconds, whole.epochs, short.epochs, whole.model) == (70, 2, 1, "lenet")
    assert whole.note == "the first one"
    assert whole.data == f"{NAME} ({small_data.fingerprint})"
    assert whole.device == study.trials()[0].device
    assert (bare.claimed, bare.test, bare.difference, bare.data, bare.epochs) == (None, None, None, "", 1)
    assert (ensemble.claimed, ensemble.difference, ensemble.model) == (86.3, None, "H-2 + H-3")


@pytest.mark.slow
@pytest.mark.usefixtures("as_if_real")
def test_an_ensemble_is_of_whole_members(given: Path, small_data: ImageData, cli: Any) -> None:
    study = train_given(given, small_data)

    def row() -> HandRow:
        hand, _ = collect(
            [study],
            hand="given",
            artifacts_of=lambda _: open_artifacts("artifacts"),
            device=torch.device("cpu"),
            images_of=lambda _: small_data,
        )
        return hand[-1]

    known(given)
    # Shortened in its images alone, a run has as many epochs as the whole one.
    train(Path("sweeps/given.toml"), small_data, only="H-2", train_images=120)
    train(Path("sweeps/given.toml"), small_data, only="H-3", train_images=120)
    assert (row().test, row().difference) == (None, None)
    train(Path("sweeps/given.toml"), small_data, only="H-3")
    assert cli("ensemble", "given", "--trials", "0,5", "--out", "both").exit_code == 0
    together = json.loads(Path("both/metrics.json").read_text())["test_accuracy"]
    assert row().test == together
    assert row().difference == pytest.approx(100 * together - 86.3)
    assert row().data == f"{NAME} ({small_data.fingerprint})"


@pytest.mark.slow
def test_no_points_on_images_that_were_drawn(study: SweepStudy, given: Path, small_data: ImageData) -> None:
    measured(study, small_data)
    row = hand_rows(load(given), study)[0]
    assert row.test is not None
    assert row.difference is None


@pytest.mark.slow
def test_without_a_study_and_without_the_number_of_images(study: SweepStudy, given: Path) -> None:
    assert {row.state for row in hand_rows(load(given), None)} == {"not run", "see members"}
    study.data = {name: fact for name, fact in study.data.items() if name != "train_images"}
    assert hand_rows(load(given), study)[1].shortened == "1 of 2 epochs, 120 of all images"


def test_a_run_with_other_settings_is_not_the_claimed_one(given: Path, small_data: ImageData) -> None:
    text = given.read_text()
    given.write_text(text.replace('label = "H-3"', 'label = "H-3"\ndropout = 0.25'))
    study = train(given, small_data, only="H-3")
    given.write_text(text)
    [row] = [row for row in hand_rows(load(given), study) if row.trial == 0]
    assert row.shortened == "dropout 0.25, not 0.0"


def test_a_waiting_trial_has_no_numbers(given: Path, small_data: ImageData) -> None:
    sweep = load(given, changes={"epochs": 1})
    storage = open_storage("sqlite:///studies.db")
    study = open_or_resume(storage, "given", sweep, data=facts(small_data, source="synthetic:500"))
    row = hand_rows(load(given), study)[0]
    assert (row.trial, row.state, row.shortened) == (0, "waiting", "1 of 2 epochs")
    assert (row.validation, row.seconds, row.commit, row.device) == (None, None, None, None)


def test_claims_are_in_no_trial(study: SweepStudy) -> None:
    for trial in study.trials():
        frozen = trial.frozen
        stored = {**frozen.user_attrs, **frozen.system_attrs, **frozen.params, "value": frozen.value}
        stored["steps"] = frozen.intermediate_values
        words = json.dumps(stored)
        assert "0.001" in words or "0.01" in words  # the parameters are seen
        assert "12.3456" not in words
        assert "0.123456" not in words
        assert "claimed" not in words


def test_the_test_set_is_read_once_per_network(study: SweepStudy, small_data: ImageData, reads: list[int]) -> None:
    before = [(trial.value, trial.frozen.user_attrs) for trial in study.trials()]
    assert study.test_accuracy([0]) is None
    first = measured(study, small_data)
    assert reads == [100, 100, 100]
    assert measured(study, small_data) == first
    assert len(reads) == 3
    study.record_test([0], 0.123)
    assert study.test_accuracy([0]) == first[0]
    assert [(trial.value, trial.frozen.user_attrs) for trial in study.trials()] == before


def test_it_is_the_accuracy_of_the_kept_weights(study: SweepStudy, small_data: ImageData, cli: Any) -> None:
    assert cli("export", "given", "--trial", 0, "--out", "here").exit_code == 0
    exported = json.loads(Path("here/metrics.json").read_text())["test_accuracy"]
    assert measured(study, small_data)[0] == pytest.approx(exported, abs=1e-6)


def test_weights_that_are_gone_or_damaged_are_left_out(
    study: SweepStudy, small_data: ImageData, reads: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    gone, damaged, _ = sorted(Path("artifacts").rglob("weights-*"))
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert sorted(measured(study, small_data)) == [2]
    assert len(reads) == 1
    assert "trial 1 of study given has no test accuracy" in caplog.text
    assert "trial 0" not in caplog.text


@pytest.mark.slow
def test_other_data_than_the_studys(study: SweepStudy, reads: list[int]) -> None:
    with pytest.raises(StudyError, match=r"was run on synthetic images \(500 \+ 100\), not on"):
        measured(study, images.load("synthetic:600"))
    assert reads == []


@pytest.mark.usefixtures("as_if_real")
def test_a_sweep_beside_the_best_by_hand(
    study: SweepStudy, given: Path, tiny_sweep: Path, small_data: ImageData
) -> None:
    for number, accuracy in enumerate((0.5, 0.9, 0.95)):
        study.record_test([number], accuracy)
    hand = hand_rows(load(given), study)
    hand.append(HandRow("X-1", "vgg11", claimed=99, validation=0.9, test=0.4, data=hand[0].data))
    hand.append(HandRow("X-2", "lenet", validation=0.9, test=0.8, data="other images (0)"))
    searched = train(tiny_sweep, small_data, trials=2)
    best = searched.ranked()[0]
    searched.record_test([best.number], 0.6)
    [row] = sweep_rows([study, searched], hand)
    assert row.difference is None, "nobody knows how long the sweep was meant to be"
    known(tiny_sweep)
    [row] = sweep_rows([study, searched], hand)
    assert (row.study, row.trial, row.model, row.finished, row.budget) == ("tiny", best.number, "lenet", 2, 2)
    assert (row.validation, row.test, row.shortened, row.epochs) == (best.value, 0.6, "", 3)
    assert row.params.startswith("learning_rate=")
    assert row.claimed_model is not None
    assert (row.claimed_model.label, row.claimed_model.accuracy) == ("H-1", 45)
    assert row.difference == pytest.approx(60 - 45)
    assert row.claimed_all is not None
    assert row.claimed_all.label == "X-1"
    assert row.measured_model is not None
    assert (row.measured_model.label, row.measured_model.accuracy) == ("H-2", 0.5), "not the shortened ones"
    assert row.measured_all is not None
    assert row.measured_all.label == "X-1", "chosen by validation"


PREVIEW = "\n[preview]\ntrials = 1\nepochs = 1\ntrain_images = 100\n"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preview": True}, "preview, 1 of 3 epochs, 100 of 400 images"),
        ({"trials": 1, "epochs": 2}, "2 of 3 epochs"),
        ({"trials": 1, "train_images": 50}, "50 of 400 images"),
    ],
    ids=["preview", "epochs", "images"],
)
def test_a_shortened_sweep(
    settings: dict[str, Any], words: str, tiny_sweep: Path, given: Path, small_data: ImageData
) -> None:
    tiny_sweep.write_text(tiny_sweep.read_text() + PREVIEW)
    searched = train(tiny_sweep, small_data, **settings)
    searched.record_test([0], 0.6)
    known(tiny_sweep)
    [row] = sweep_rows([searched], hand_rows(load(given), None))
    assert row.shortened == words
    assert row.test == 0.6
    assert row.claimed_model is not None
    assert row.difference is None
    assert "(1 of 1 rows shortened)" in shown([], [row])
    assert words in shown([], [row])


def test_a_sweep_whose_epochs_were_fixed_is_shortened(tiny_sweep: Path, given: Path, small_data: ImageData) -> None:
    tiny_sweep.write_text(tiny_sweep.read_text().replace("epochs = 3\n", "") + "epochs = { low = 1, high = 9 }\n")
    searched = train(tiny_sweep, small_data, trials=1, epochs=1)
    known(tiny_sweep)
    [row] = sweep_rows([searched], [])
    assert row.shortened == "1 epochs"


def test_a_sweep_before_its_first_trial(tiny_sweep: Path, small_data: ImageData) -> None:
    storage = open_storage("sqlite:///studies.db")
    searched = open_or_resume(storage, "tiny", load(tiny_sweep), data=facts(small_data, source="synthetic:500"))
    [row] = sweep_rows([searched], [])
    assert (row.trial, row.test, row.finished, row.budget, row.claimed_all) == (None, None, 0, 4, None)
    assert "0 of 4" in shown([], [row])


def test_tables_say_what_the_numbers_are(study: SweepStudy, given: Path, small_data: ImageData) -> None:
    study.record_test([0], 0.51239)
    study.record_test([1], 0.9)
    rows = hand_rows(load(given), study)
    words = shown(rows, [])
    assert "(2 of 5 rows shortened)" in words
    assert f"measured on {NAME} ({small_data.fingerprint}), one training per row" in words
    assert "synthetic images say nothing about CIFAR-10" in words
    assert "report's claim %" in words
    assert "12.35" in words
    assert "51.24 -" in words
    assert "1 of 2 epochs, 120 of 400 images" in words
    assert "[bold]X[/]" in shown([HandRow("[bold]X[/]", "lenet")], [])
    whole = shown(hand_rows(load(given), None), [])
    assert "shortened)" not in whole
    assert "nothing is measured yet" in whole


@pytest.mark.slow
def test_json_reads_back(study: SweepStudy, given: Path, tiny_sweep: Path, small_data: ImageData) -> None:
    study.record_test([0], 0.5)
    hand = hand_rows(load(given), study)
    plain = as_json(hand, sweep_rows([train(tiny_sweep, small_data, trials=1)], hand))
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["hand"][0]["claimed"] == 12.3456
    assert plain["hand"][0]["test"] == 0.5
    assert plain["sweeps"][0]["claimed_model"] == {"label": "H-1", "accuracy": 45}


@pytest.mark.usefixtures("as_if_real")
def test_the_command_shows_runs_ensembles_and_sweeps(
    given: Path, tiny_sweep: Path, small_data: ImageData, reads: list[int], cli: Any
) -> None:
    train(given, small_data)
    train(tiny_sweep, small_data, trials=2)
    known(given)
    compared = json.loads(cli("compare", "--study", "given", "--json").out)
    rows = {row["label"]: row for row in compared["hand"]}
    assert set(rows) == {"H-1", "H-2", "H-3", "H-ens"}
    assert rows["H-2"]["difference"] == pytest.approx(100 * rows["H-2"]["test"] - 12.3456)
    assert rows["H-ens"]["difference"] == pytest.approx(100 * rows["H-ens"]["test"] - 86.3)
    [row] = compared["sweeps"]
    assert row["study"] == "tiny"
    assert row["claimed_model"] == {"label": "H-1", "accuracy": 45}
    assert reads == [100] * 5  # three runs, their ensemble, the best of the sweep
    assert json.loads(cli("compare", "--study", "given", "--json").out) == compared
    assert len(reads) == 5
    shown = cli("compare", "--study", "given", "--figure", "out.html")
    assert "H-ens" in shown.out
    assert "written: out.html" in shown.out
    assert "Claimed and measured" in Path("out.html").read_text()


@pytest.mark.usefixtures("study")
def test_the_command_on_other_studies_and_other_data(
    tiny_sweep: Path, given: Path, small_data: ImageData, cli: Any
) -> None:
    known(given)
    finished = cli("compare", "--study", "given", "--data", "synthetic:600", "--json")
    assert finished.exit_code == 0
    assert all(row["test"] is None for row in json.loads(finished.out)["hand"])
    missing = cli("compare", "--study", "lr_batch")
    assert missing.exit_code == 2
    assert "no such study or sweep of given runs" in missing.err
    none = cli("compare", "--json")
    assert {row["state"] for row in json.loads(none.out)["hand"]} == {"not run", "see members"}
    train(tiny_sweep, small_data, trials=1)
    searched = cli("compare", "--study", "tiny")
    assert searched.exit_code == 2
    assert "study 'tiny' searches" in searched.err
