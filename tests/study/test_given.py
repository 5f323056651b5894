"""The reports' hand runs, and studies of given points in general."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import UsageError
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.sweep.file import find, load
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.training.models import build

# Every hand run with its figure, from the reports: model, optimizer, learning rate, batch, epochs, claimed accuracy.
HAND: dict[str, tuple[str, str, float, int, int, float | None]] = {
    "A-1": ("convnet", "adam", 1e-3, 64, 40, 68.29),
    "B-001": ("cnn3", "sgd", 1e-3, 16, 3, 30.67),
    "B-002": ("cnn3", "sgd", 1e-3, 16, 100, 64.94),
    "B-003": ("cnn3", "sgd", 1e-4, 16, 30, 29.63),
    "B-004": ("cnn3", "sgd", 1e-5, 16, 37, 10.00),
    "B-005": ("cnn3", "sgd", 5e-5, 16, 6, 10.00),
    "B-006": ("cnn3", "sgd", 1e-3, 16, 80, 62.82),
    "B-007": ("cnn3", "adam", 1e-3, 16, 24, 70.10),
    "B-008": ("cnn3", "adam", 1e-4, 16, 30, 70),
    "B-009": ("cnn3", "adam", 1e-4, 16, 30, 74.96),
    "B-010": ("cnn3", "adam", 0.1, 16, 100, 66.20),
    "B-011": ("cnn3", "adam", 0.01, 16, 300, 75.18),
    "C-1": ("convnet", "adam", 5e-4, 128, 30, None),
    "C-b32": ("convnet", "adam", 5e-4, 32, 30, None),
    "C-b64": ("convnet", "adam", 5e-4, 64, 30, None),
    "C-b256": ("convnet", "adam", 5e-4, 256, 30, None),
    "C-e50": ("convnet", "adam", 5e-4, 128, 50, None),
    "D-1": ("vgg11", "rmsprop", 1.5e-3, 256, 10, None),
    "D-2": ("vgg13", "rmsprop", 1.5e-3, 256, 150, 81.8),
    "D-3": ("vgg16-short", "rmsprop", 1.5e-3, 256, 150, 82.9),
    "D-4": ("vgg13", "adam", 1.5e-3, 256, 300, 79.6),
    "E-1": ("lenet", "sgd", 1e-3, 4, 10, 64.19),
    "E-2": ("vgg16", "sgd", 1e-3, 16, 20, 74.83),
    "E-lr1": ("vgg16", "sgd", 1e-2, 16, 20, 70.99),
    "E-lr2": ("vgg16", "sgd", 1e-3, 16, 20, 73.19),
    "E-lr3": ("vgg16", "sgd", 5e-3, 16, 20, 76.82),
    "E-e50a": ("vgg16", "sgd", 5e-3, 16, 50, 75.94),
    "E-e50b": ("vgg16", "sgd", 1e-3, 16, 50, 76.9),
    "E-e100": ("vgg16", "sgd", 1e-3, 16, 100, 78.4),
}
BESIDES = {"A-e20", "A-e100", "A-1-no-softmax", "C-1-no-softmax"}


def config_of(sweep: Sweep) -> TrialConfig:
    [point] = sweep.enqueue
    params = sweep.fixed | point.params()
    return TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0)


@pytest.mark.parametrize("label", HAND)
def test_every_hand_run_can_be_chosen_and_is_the_reports(label: str) -> None:
    sweep = load(find("reports"), only=[label])
    shape, knobs = config_of(sweep).shape, config_of(sweep).knobs
    model, optimizer, learning_rate, batch_size, epochs, claimed = HAND[label]
    assert (shape.model, shape.optimizer, shape.batch_size, shape.epochs) == (model, optimizer, batch_size, epochs)
    assert knobs.learning_rate == learning_rate
    assert sweep.enqueue[0].claimed == claimed
    assert build(shape, seed=0)[-1] is not None


def test_the_reports_other_settings() -> None:
    whole = {point.label: point.params() for point in load(find("reports")).enqueue}
    for label in ("B-006", "B-007", "B-008", "B-009", "B-010", "B-011"):
        assert whole[label]["gamma"] == (0.1 if label == "B-006" else 0.2)
    assert {label for label, params in whole.items() if params.get("dropout") == 0.2} == {"B-009", "B-010", "B-011"}
    assert {label for label, params in whole.items() if params.get("dropout") == 0.3} == {"D-3", "D-4"}
    assert {label for label, params in whole.items() if params.get("activation") == "leaky_relu"} == {
        "B-008", "B-009", "B-010", "B-011",
    }  # fmt: skip
    softmax = {label for label, params in whole.items() if params.get("softmax")}
    assert softmax == {"A-1", "A-e20", "A-e100", "C-1", "C-b32", "C-b64", "C-b256", "C-e50"}
    assert {label for label, params in whole.items() if params.get("padding_mode") == "reflect"} == {
        "C-1", "C-b32", "C-b64", "C-b256", "C-e50", "C-1-no-softmax",
    }  # fmt: skip
    assert [whole[label]["hidden_units"] for label in ("D-1", "D-2", "D-3", "D-4", "C-1")] == [256, 4000, 500, 500, 80]
    assert {label for label, params in whole.items() if params.get("momentum") == 0.9} == {
        label for label in whole if label.startswith("E-")
    }
    assert set(whole) == set(HAND) | BESIDES


def test_with_and_without_softmax_differ_in_nothing_else() -> None:
    whole = {point.label: point.params() for point in load(find("reports")).enqueue}
    for label in ("A-1", "C-1"):
        assert whole[f"{label}-no-softmax"] == whole[label] | {"softmax": False}


def test_an_ensembles_label_stands_for_its_members() -> None:
    sweep = load(find("reports"), only=["D-ens", "D-2"])
    assert [point.label for point in sweep.enqueue] == ["D-2", "D-3", "D-4"]


def test_an_unknown_id_names_the_known_ones(cli: Any) -> None:
    finished = cli("run", "reports", "--only", "B-001,B-099")
    assert finished.exit_code == 2
    assert "'B-099'; did you mean" in finished.err
    for label in (*HAND, *BESIDES, "D-ens"):
        assert label in finished.err
    assert not Path("studies.db").exists()


def test_shortening_touches_only_what_is_longer() -> None:
    sweep = load(find("reports"), only=["B-001", "B-002"], changes={"epochs": 10, "train_images": 500})
    assert [point.params()["epochs"] for point in sweep.enqueue] == [3, 10]
    assert [point.params()["train_images"] for point in sweep.enqueue] == [500, 500]
    shortened = [point.shortened for point in sweep.enqueue]
    assert shortened == ["500 of all training images", "10 of 100 epochs, 500 of all training images"]
    again = parse(sweep.model_dump(mode="json"), where="again")
    assert again == sweep


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("trials", 3, "sweep 'reports' has given points; choose among them with --only"),
        ("pruner", "median", "accepted: pruner = 'none'"),
        ("train_images", 40001, "outside of its [space]: 0 to 40000"),
        ("softmax", True, "runs its given points as they are; accepted: epochs and train_images"),
    ],
)
def test_what_given_points_refuse(key: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        load(find("reports"), changes={key: value})
    assert words in str(refused.value)


def test_what_given_points_take() -> None:
    whole = load(find("reports"))
    assert load(find("reports"), changes={"epochs": 301}) == whole
    assert load(find("reports"), changes={"precision": "fp32"}).fixed == whole.fixed | {"precision": "fp32"}


def test_points_that_do_not_say_how_long_they_are_cannot_be_shortened(given: Path) -> None:
    given.write_text(
        GIVEN.replace("epochs = { low = 1, high = 3 }\n", "").replace("epochs = 2", "").replace("epochs = 1", "")
    )
    with pytest.raises(UsageError, match="epochs is not in"):
        load(given, changes={"epochs": 1})


GIVEN = """
sampler = "given"
pruner = "none"
[fixed]
model = "lenet"
precision = "fp32"
batch_size = 50
[space]
learning_rate = { low = 1e-5, high = 0.1, log = true }
optimizer = { choices = ["adam", "sgd"] }
momentum = { low = 0.0, high = 0.9 }
epochs = { low = 1, high = 3 }
train_images = { low = 0, high = 1000 }
[[enqueue]]
label = "one"
claimed = 55.5
learning_rate = 3e-3
epochs = 2
[[enqueue]]
label = "two"
learning_rate = 1e-2
optimizer = "sgd"
momentum = 0.9
epochs = 1
[[enqueue]]
label = "the same as two"
learning_rate = 1e-2
optimizer = "sgd"
momentum = 0.9
epochs = 1
"""
RUN = ("run", "given.toml", "--data", "synthetic:500", "--workers", 1, "--threads", 1)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "given.toml"
    path.write_text(GIVEN)
    return path


def trials() -> list[Any]:
    from cifar_sweep.study.opening import load as load_study
    from cifar_sweep.study.storage import open_existing

    return [trial.frozen for trial in load_study(open_existing("sqlite:///studies.db"), "given").trials()]


def test_exactly_the_given_points_are_run_and_nothing_is_sampled(given: Path, cli: Any) -> None:
    finished = cli(*RUN)
    assert finished.exit_code == 0, finished.err
    assert [trial.user_attrs["label"] for trial in trials()] == ["one", "two", "the same as two"]
    assert trials()[0].params == {"learning_rate": 3e-3, "epochs": 2}
    assert trials()[1].params == {"learning_rate": 1e-2, "optimizer": "sgd", "momentum": 0.9, "epochs": 1}
    # One seed for all: the same settings give the same numbers, and two that differ in one setting differ by it alone.
    assert trials()[1].value == trials()[2].value
    assert len({trial.user_attrs["config"]["seed"] for trial in trials()}) == 1
    assert cli(*RUN).exit_code == 0
    assert len(trials()) == 3


@pytest.mark.slow
def test_a_study_grows_by_what_is_asked_for(given: Path, cli: Any) -> None:
    assert cli(*RUN, "--only", "two").exit_code == 0
    assert [trial.user_attrs["label"] for trial in trials()] == ["two"]
    alone = trials()[0].value
    assert cli(*RUN, "--only", "one,two", "--epochs", 1, "--train-images", 200).exit_code == 0
    assert [(trial.user_attrs["label"], trial.params.get("train_images")) for trial in trials()] == [
        ("two", None), ("one", 200), ("two", 200),
    ]  # fmt: skip
    words = "shortened: 1 of 2 epochs, 200 of 400 training images"
    assert words in cli("export", "--trial", 1, "--out", "short").out
    assert [TrialRecord(trial).setting for trial in trials()][:1] == ["two"]
    assert words in TrialRecord(trials()[1]).setting
    assert "shortened: 1 of 2 epochs" in Path("short/MODEL_CARD.md").read_text()
    assert cli(*RUN).exit_code == 0
    assert [trial.user_attrs["label"] for trial in trials()][3:] == ["one", "the same as two"]
    assert trials()[4].value == alone
    [summary] = json.loads(cli("status", "--json").out)["studies"]
    assert summary["budget"] == summary["trials"]["complete"] == 5


@pytest.mark.slow
def test_only_what_is_asked_for_is_run_though_others_wait(given: Path, cli: Any) -> None:
    assert cli(*RUN, "--max-hours", 0).exit_code == 0
    assert [trial.state.name for trial in trials()] == ["WAITING"] * 3
    finished = cli(*RUN, "--only", "two")
    assert "1 of 1 trials finished" in finished.out
    assert [trial.state.name for trial in trials()] == ["WAITING", "COMPLETE", "WAITING"]
    assert cli(*RUN).exit_code == 0
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 3


def test_claims_are_no_results(given: Path, cli: Any) -> None:
    assert cli(*RUN, "--only", "one").exit_code == 0
    [trial] = trials()
    assert not math.isclose(trial.value, 0.555)
    assert 55.5 not in trial.user_attrs.values()
    assert set(trial.intermediate_values) <= {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}


def test_a_failed_point_is_run_again_and_replaced_by_no_other(given: Path, cli: Any, monkeypatch: Any) -> None:
    from cifar_sweep.training.train import Run

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", broken)
        failed = cli(*RUN, "--only", "one")
        assert failed.exit_code == 1
        assert "0 of 1 trials finished: 0 complete, 0 pruned\n1 failed" in failed.out
    assert [trial.state.name for trial in trials()] == ["FAIL"]
    assert cli(*RUN, "--only", "one").exit_code == 0
    assert [(trial.state.name, trial.user_attrs["label"]) for trial in trials()] == [
        ("FAIL", "one"),
        ("COMPLETE", "one"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('pruner = "none"', "", "pruner 'median' would end given points early"),
        ('label = "two"', 'label = "one"', "each with a label of its own"),
        ('label = "two"', "", "each with a label of its own"),
        ('sampler = "given"', 'sampler = "given"\ntrials = 3', "trials does nothing for sampler 'given'"),
        ("claimed = 55.5", 'claimed = "55.5"', "claimed = '55.5' is not accepted; it takes a number"),
        ('label = "two"', 'label = "two"\nwhole = { epochs = 3 }', "not in a file"),
        ("epochs = 2", "epochs = 4", "epochs = 4 is outside of its [space]: 1 to 3"),
    ],
)
def test_a_bad_file_of_given_points(given: Path, old: str, new: str, words: str) -> None:
    given.write_text(GIVEN.replace(old, new, 1))
    with pytest.raises(UsageError) as refused:
        load(given)
    assert words in str(refused.value)
    assert str(refused.value).count("\n") == 0


def test_only_is_for_given_points() -> None:
    with pytest.raises(UsageError, match="'lr_batch' has no given points"):
        load(find("lr_batch"), only=["A-1"])


def test_an_ensemble_is_of_given_points(given: Path) -> None:
    text = '[[ensemble]]\nlabel = "both"\nmembers = ["one", "two"]\n'
    given.write_text(GIVEN + text)
    assert [point.label for point in load(given, only=["both"]).enqueue] == ["one", "two"]
    given.write_text(GIVEN + text.replace('"two"', '"three"'))
    with pytest.raises(UsageError, match="both: there is no point 'three'"):
        load(given)
