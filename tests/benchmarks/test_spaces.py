"""benchmarks/spaces.py translates definitions; docs/spaces.md has the parameters; the examples are sweeps."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.sweep.file import load

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import parameters_table  # noqa: E402
import spaces  # noqa: E402

EXAMPLES = sorted((ROOT / "sweeps" / "examples").glob("*.toml"))


def definition(*parameters: dict[str, Any], fixed: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    data = {"name": "CIFAR-10", "size": 32, "channels": 3, "classes": 10}
    plain = {"id": "X1", "method": "bayes", "stopping": None, "metric": "accuracy", "trials": 5, "data": data}
    return plain | {"fixed": fixed or {}, "parameters": list(parameters), "beyond": []} | changes


RATE = {"name": "learning_rate", "kind": "range", "low": 1e-4, "high": 0.1, "log": True}


def translated(folder: Path, *parameters: dict[str, Any], **changes: Any) -> dict[str, Any]:
    data, _notes = spaces.sweep_of(definition(*parameters, **changes), folder)
    return data


def test_the_table_is_that_of_the_code() -> None:
    assert parameters_table.table() in (ROOT / "docs" / "spaces.md").read_text()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_a_sweep_and_is_listed(file: Path) -> None:
    assert load(file).description
    assert f"`{file.name}`" in (ROOT / "docs" / "spaces.md").read_text()


def test_layers_have_parameters_of_their_own(tmp_path: Path) -> None:
    layers = {"name": "conv_layers", "kind": "int", "low": 1, "high": 3}
    filters = {"name": "filters", "kind": "int", "low": 4, "high": 64, "log": True, "by_layer": True}
    second = {"name": "dense_dropout", "kind": "range", "low": 0, "high": 0.5, "step": 0.25, "layer": 2}
    space = translated(tmp_path, layers, filters, second)["space"]
    assert {"filters_1", "filters_2", "filters_3", "conv_layers", "dropout_2"} == space.keys()
    assert space["dropout_2"] == {"choices": [0, 0.25, 0.5]}


def test_words_are_ours(tmp_path: Path) -> None:
    growth = {"name": "filter_growth", "kind": "choices", "values": [0.5, 1, 2]}
    on = {"name": "augmentation", "kind": "choices", "values": [True, False]}
    data = translated(tmp_path, growth, on, method="grid", stopping="median", metric="loss", trials=None)
    assert data["space"]["filter_growth"]["choices"] == ["half", "same", "double"]
    assert data["space"]["augmentation"]["choices"] == ["crop", "none"]
    assert (data["sampler"], data["pruner"], data["metric"], "trials" in data) == ("grid", "median", "loss", False)


SEARCHED: list[tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = [
    (  # a range of its own beside each optimizer; the last is for all others
        [
            {"name": "optimizer", "kind": "choices", "values": ["sgd", "adam"]},
            RATE | {"only_if": {"optimizer": ["adam"]}}, RATE | {"high": 1, "only_if": {"optimizer": ["sgd"]}},
        ],
        {},
        {"optimizer": {"choices": ["sgd", "adam"]}, "learning_rate": [
            {"low": 1e-4, "high": 0.1, "log": True, "only_if": {"optimizer": ["adam"]}},
            {"low": 1e-4, "high": 1, "log": True},
        ]},
    ),
    (  # a strength of 0 is off
        [
            {"name": "mixup_on", "kind": "choices", "values": [True, False]},
            {"name": "mixup", "kind": "range", "low": 0.1, "high": 0.4, "only_if": {"mixup_on": [True]}},
        ],
        {}, {"mixup": {"low": 0, "high": 0.4}},
    ),
    ([{"name": "horizontal_flip", "kind": "choices", "values": [True, False]}], {}, {"flip": {"choices": [0.5, 0]}}),
    ([{"name": "autoaugment", "kind": "choices", "values": [True, False]}], {"augmentation": ["crop"]},
     {"augmentation": {"choices": ["crop", "autoaugment"]}}),
    ([{"name": "image_size", "kind": "choices", "values": [24, 32]}], {}, {"input_size": {"choices": [24, 32]}}),
    ([{"name": "class_weights", "kind": "choices", "values": [True, False]}], {},
     {"class_weights": {"choices": ["balanced", "none"]}}),
    ([{"name": "optimizer", "kind": "choices", "values": ["sgd", "momentum", "adam"]}], {},
     {"optimizer": {"choices": ["sgd", "adam"]},
      "momentum": [{"choices": [0.0, 0.9], "only_if": {"optimizer": ["sgd"]}}, {"choices": [0.0]}]}),
    ([{"name": "freeze", "kind": "choices", "values": ["none", "stage2", "all_but_head"]}],
     {"network": "resnet18", "pretrained": True}, {"freeze": {"choices": [0, 2, 100]}}),
    ([{"name": "residual_units", "kind": "int", "low": 1, "high": 4},
      {"name": "filters", "kind": "choices", "values": [4]}], {},
     {"net.residual_units": {"low": 1, "high": 4}, "net.filters": {"choices": [4]}}),
    ([{"name": "rotation", "kind": "range", "low": 0, "high": 0.25, "step": 0.125}], {},
     {"rotation": {"choices": [0.0, 45.0, 90.0]}}),
    (  # a switch, and what it switches
        [
            {"name": "dropout_on", "kind": "choices", "values": [True, False]},
            {"name": "dropout", "kind": "choices", "values": [0.2, 0.5], "only_if": {"dropout_on": [True]}},
        ],
        {}, {"dropout": {"choices": [0.2, 0.5, 0.0]}},
    ),
    (  # beside schedules that both have it
        [
            {"name": "schedule", "kind": "choices", "values": ["step", "exponential"]},
            {"name": "gamma", "kind": "choices", "values": [0.1], "only_if": {"schedule": ["step"]}},
            {"name": "gamma", "kind": "choices", "values": [0.9], "only_if": {"schedule": ["exponential"]}},
        ],
        {},
        {"schedule": {"choices": ["step", "exponential"]},
         "gamma": [{"choices": [0.1], "only_if": {"schedule": ["step"]}}, {"choices": [0.9]}]},
    ),
    ([{"name": "nesterov", "kind": "choices", "values": [False, True]}], {"optimizer": "sgd"},
     {"optimizer": {"choices": ["sgd", "nesterov"]}}),
    ([{"name": "image_size", "kind": "int", "low": 32, "high": 64, "step": 16}], {},
     {"input_size": {"low": 32, "high": 64, "step": 16}}),
    ([{"name": "dropout", "kind": "range", "low": 0, "high": 0.55, "step": 0.2}], {},
     {"dropout": {"choices": [0.0, 0.2, 0.4]}}),
    ([{"name": "seed", "kind": "choices", "values": [1, 2]}], {}, {"repeat": {"choices": [2, 3]}}),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "fixed", "expected"), SEARCHED, ids=lambda each: str(each)[:40])
def test_forms_are_read_by_rules(
    parameters: list[dict[str, Any]], fixed: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    assert translated(tmp_path, *parameters, fixed=fixed)["space"] == expected


def test_ten_layers_are_not_all_pooled(tmp_path: Path) -> None:
    fixed = translated(tmp_path, RATE, fixed={"filters": [8] * 10})["fixed"]
    assert [fixed.get(f"pooling_{layer}", "max") for layer in range(1, 11)].count("max") == 3


def test_what_is_no_definition_is_said_to_be_none(tmp_path: Path) -> None:
    runs, words = spaces.check(definition({"name": "learning_rate", "kind": "range"}), tmp_path, None)
    assert not runs
    assert words == "it is not in the neutral form: KeyError: 'low'"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                "parameters": [
                    {"name": name, "kind": "choices", "values": [0.1, 0.2]} for name in ("dropout", "dense_dropout")
                ]
            },
            "dropout is asked for twice",
        ),
        ({"fixed": {"dropout": 0.3, "dense_dropout": 0.1}}, "dropout is set twice"),
        ({"beyond": ["distillation weight"]}, "distillation weight: nothing here has this meaning"),
        ({"fixed": {"frobnication": 3}}, "frobnication: there is no such parameter"),
        ({"fixed": {"optimizer": "lion"}}, "optimizer: 'lion' is not accepted"),
        ({"fixed": {"conv_layers": 60}}, "at most 16|from 0 to 16"),
    ],
)
def test_what_has_no_meaning_here_is_counted_as_not_run(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(spaces.UntranslatableError, match=words):
        translated(tmp_path, RATE, **changes)


def test_the_last_line_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.json"
    file.write_text(json.dumps([definition(RATE), definition(RATE, id="X2", beyond=["more"])]))
    monkeypatch.setattr(sys, "argv", ["spaces.py", str(file), "--out", str(tmp_path / "out")])
    spaces.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 2 run"
    assert load(tmp_path / "out" / "X1.toml").trials == 5


@pytest.mark.slow
def test_a_definition_is_trained_exported_and_predicted_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.json"
    data = {"name": "MNIST", "size": 28, "channels": 1, "classes": 3}
    file.write_text(json.dumps([definition(RATE, fixed={"filters": [4, 8]}, data=data)]))
    monkeypatch.setattr(sys, "argv", ["spaces.py", str(file), "--train", "--out", str(tmp_path / "out")])
    spaces.main()
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 run"
