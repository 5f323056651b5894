"""Sweeps of other programs: each line is translated, or kept with the reason, and what is written can be run."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.convert.names import parameter_of
from cifar_sweep.convert.reading import read
from cifar_sweep.convert.writing import as_toml
from cifar_sweep.errors import UsageError
from cifar_sweep.sweep.file import load

WANDB = """
program: train.py
method: bayes
name: A CNN
run_cap: 35
metric: {name: val_loss, goal: minimize}
early_terminate: {type: hyperband, min_iter: 3, eta: 2}
parameters:
  num_filters: {values: [32, 64]}
  filter_organisation: {values: [Same, doubled, half]}
  batch_size: {distribution: q_uniform, q: 16, min: 16, max: 70}
  lr: {min: 1e-4, max: 1e-3, distribution: log_uniform_values}
  activation: {values: [ReLU, GELU, Swish, Wobbly]}
  data_aug: {values: [Yes, No]}
  bn: {values: ["Yes", "No"]}
  kernel: {values: [[3, 3, 5], 3]}
  dropout: {distribution: q_uniform, q: 0.1, min: 0, max: 0.3}
  wizardry: {values: [1, 2]}
  wisdom: {lr: [1, 2]}
  epochs: {value: 5}
  optim:
    parameters:
      momentum: {min: 0.0, max: 0.9}
      name: {values: [Adam, SGD]}
"""
PYTHON = """
import os
raise SystemExit("this is never run")
config = {'method': 'grid'}
metric = {'name': 'accuracy', 'goal': 'maximize'}
config['metric'] = metric
more = {'optimizer': {'values': ['adam', 'sgd']}, 'fc_layer_size': {'values': [128, 256]}}
config['parameters'] = more
more.update({'epochs': {'value': 1}, 'wizards': {'values': [hash(k) for k in range(3)]}})
more.update({'weight_decay': {'distribution': 'log_uniform', 'min': math.log(1e-5), 'max': math.log(0.01)}})
"""
NNI: dict[str, Any] = {
    "lr": {"_type": "loguniform", "_value": [0.0001, 0.1]},
    "batch_size": {"_type": "choice", "_value": [16, 32]},
    "epochs": {"_type": "randint", "_value": [5, 11]},
    "conv": {"_type": "choice", "_value": [{"_name": "a"}]},
    "block": {"_type": "layer_choice", "_value": ["a", "b"]},
    "noise": {"_type": "normal", "_value": [0, 1]},
}
HYDRA = """
defaults:
  - override hydra/sweeper: optuna
hydra:
  sweeper:
    sampler: {_target_: optuna.samplers.TPESampler, seed: 123}
    direction: maximize
    n_trials: 20
    params:
      optimizer.lr: tag(log, interval(0.0001, 0.1))
      data.batch_size: choice(32, 64)
      net.kernel_size: range(3, 7, step=2)
      net.num_filters: int(interval(16, 128))
      optimizer.weight_decay: 0.0,1e-4
      net.depth: shuffle(glob(*))
"""
RATE = {"low": 1e-3, "high": 0.1, "log": True}
LOG = "method: random\nparameters:\n  lr: {distribution: log_uniform, min: %s, max: %s}\n"


def converted(
    tmp_path: Path, name: str, text: str, log_ends: str | None = None
) -> tuple[dict[str, Any], str, list[str]]:
    """The written file as tables, which can be run; its comments; and the questions that are left."""
    source, written = tmp_path / name, tmp_path / "written.toml"
    source.write_text(text)
    done = as_toml(read(source), source=name, log_ends=log_ends)
    written.write_text(done.text)
    assert load(written).size
    comments = "\n".join(line for line in done.text.splitlines() if line.startswith("#"))
    return tomllib.loads(done.text), comments, done.questions


def test_a_sweep_of_wandb(tmp_path: Path) -> None:
    found, comments, questions = converted(tmp_path, "a.yaml", WANDB)
    assert found == {
        "description": "A CNN",
        "sampler": "tpe",
        "trials": 35,
        "metric": "loss",
        "pruner": {"name": "hyperband", "min_steps": 3, "reduction_factor": 2},
        "fixed": {"model": "cnn", "epochs": 5},
        "space": {
            "filters": {"choices": [32, 64]},
            "filter_growth": {"choices": ["same", "double", "half"]},
            "batch_size": {"low": 16, "high": 64, "step": 16},
            "learning_rate": {"low": 1e-4, "high": 1e-3, "log": True},
            "activation": {"choices": ["relu", "gelu", "silu"]},
            "augmentation": {"choices": ["crop", "none"]},
            "batch_norm": {"choices": [True, False]},
            "kernel_size": {"choices": [[3, 3, 5], 3]},
            "dropout": {"choices": [0.0, 0.1, 0.2, 0.3]},
            "momentum": {"low": 0.0, "high": 0.9},
            "optimizer": {"choices": ["adam", "sgd"]},
        },
    }
    assert not questions
    for words in (
        "wizardry: {",
        "there is no such parameter",
        "left out: it has neither value, values nor both ends",
        "a value is left out: 'wobbly'",
        "program: train.py: not",
    ):
        assert words in comments


def test_a_dict_in_a_python_file_is_read_and_never_run(tmp_path: Path) -> None:
    found, comments, _ = converted(tmp_path, "a.py", PYTHON)
    assert found["sampler"] == "random"
    assert "method grid: [space]: weight_decay: a grid tries each value" in comments
    assert found["space"].pop("weight_decay") == {
        "low": pytest.approx(1e-5), "high": pytest.approx(0.01), "log": True,
    }  # fmt: skip
    assert found["space"] == {"optimizer": {"choices": ["adam", "sgd"]}, "dense_units": {"choices": [128, 256]}}
    assert "[hash(k) for k in range(3)]" in comments
    assert "it is computed by the program, which is not run here" in comments


def test_a_grid_stays_a_grid(tmp_path: Path) -> None:
    text = "method: grid\nparameters:\n  lr: {values: [0.1, 0.01]}\n  batch_size: {values: [16, 32]}\n"
    found, _, _ = converted(tmp_path, "a.yaml", text)
    assert (found["sampler"], found["pruner"]) == ("grid", "none")
    assert load(tmp_path / "written.toml").size == 4


def test_words_of_courses(tmp_path: Path) -> None:
    text = """
config = {
    "method": "bayes",
    "early_terminate": {"type": "hyperband", "max_iter": 27, "s": 2, "eta": 3},
    "parameters": {
        "optimizer": {"values": ["sgd", "nesterov-sgd", "adam"]},
        "use_autoaugment": {"values": [True, False]},
        "n_filters": {"values": [[32, 32], [32, 64]]},
        "dense_layer.size": {"value": 128},
        "fc.name": {"value": 3},
    },
}"""
    found, comments, _ = converted(tmp_path, "a.py", text)
    assert found["pruner"] == {"name": "hyperband", "min_steps": 3, "reduction_factor": 3}
    assert found["space"] == {
        "optimizer": {"choices": ["sgd", "nesterov", "adam"]},
        "augmentation": {"choices": ["autoaugment", "none"]},
        "filters": {"choices": [[32, 32], [32, 64]]},
    }
    assert "use_autoaugment: what it does is the program's own; autoaugment is taken" in comments
    assert "how many trials there are is not said" in comments


def test_a_search_space_of_nni(tmp_path: Path) -> None:
    found, comments, _ = converted(tmp_path, "a.json", json.dumps(NNI))
    assert found["space"] == {
        "learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
        "batch_size": {"choices": [16, 32]},
        "epochs": {"low": 5, "high": 10},  # its upper end is not included
    }
    assert "conv: {" in comments
    assert "its choices have parameters of their own" in comments
    assert "a distribution without ends (normal)" in comments
    assert "left out: not known here (layer_choice)" in comments


def test_a_sweep_of_hydra(tmp_path: Path) -> None:
    found, comments, _ = converted(tmp_path, "a.yaml", HYDRA)
    assert (found["sampler"], found["trials"], found["seed"]) == ("tpe", 20, 123)
    assert found["space"] == {
        "learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
        "batch_size": {"choices": [32, 64]},
        "kernel_size": {"low": 3, "high": 7, "step": 2},
        "filters": {"low": 16, "high": 128},
        "weight_decay": {"choices": [0.0, 1e-4]},
    }
    assert "net.depth" in comments


@pytest.mark.parametrize(
    ("ends", "log_ends", "expected"),
    [
        (("0.0001", "0.1"), None, None),
        (("0.0001", "0.1"), "values", (1e-4, 0.1)),
        (("0.0001", "0.1"), "exponents", (1.0001, 1.1052)),
        (("-9.2103", "-2.3026"), None, (1e-4, 0.1)),  # what has no logarithm can only be an exponent
        (("-9.2103", "-2.3026"), "values", (1e-4, 0.1)),
    ],
)
def test_ends_of_a_log_range_that_may_mean_two_things_are_asked(
    tmp_path: Path, ends: tuple[str, str], log_ends: str | None, expected: tuple[float, float] | None
) -> None:
    found, comments, questions = converted(tmp_path, "a.yaml", LOG % ends, log_ends)
    if expected is None:
        assert (questions, found.get("space")) == (["lr"], None)
        assert "values: learning_rate = { low = 0.0001, high = 0.1, log = true }" in comments
        assert "exponents: learning_rate = { low = 1.0, high = 1.105, log = true }" in comments
    else:
        rate = found["space"]["learning_rate"]
        assert (rate["low"], rate["high"]) == pytest.approx(expected, rel=1e-3)
        assert questions == []


@pytest.mark.parametrize(
    "text",
    [
        "parameters: {lr: {value: 1e400}}",
        "parameters: [1]",
        "a: b",
        "",
        "{",
        "[1, 2]",
        "- a",
        "!!python/object:os.x {}",
    ],
)
def test_what_is_no_sweep_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"a\.yaml: .*accepted: a W&B sweep"):
        read(tmp_path / "a.yaml")


def test_the_command_writes_the_file_and_ends_with_what_is_asked(tmp_path: Path, cli: Any) -> None:
    source = tmp_path / "m4.yaml"
    source.write_text(LOG % ("0.0001", "0.1"))
    result = cli("convert", source, "--out", tmp_path / "m4.toml")
    assert result.exit_code == 1
    assert "the log range of lr may be given by values or by exponents" in result.err
    assert cli("convert", source, "--out", tmp_path / "m4.toml", "--log-ends", "values").exit_code == 0
    assert load(tmp_path / "m4.toml").space.keys() == {"learning_rate"}


def test_a_file_that_is_there_is_not_written_over(cli: Callable[..., Any], isolated: Path) -> None:
    Path("sweep.yaml").write_text("method: random\nparameters:\n  lr:\n    values: [0.1, 0.01]\n")
    Path("sweep.toml").write_text("mine")
    refused = cli("convert", "sweep.yaml")
    assert refused.exit_code
    assert "sweep.toml is there already; name another file with --out" in refused.err
    assert Path("sweep.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("numKernels", "filters"), ("num_kernels_layer1", "filters_1"),
        ("filterOrganisation", "filter_growth"),
        ("activation_type", "activation"), ("convKernelSize", "kernel_size"), ("isDataAug", "augmentation"),
        ("apply_batch_normalization", "batch_norm"), ("no_bn", None),
        ("numberOfDenseLayer", "dense_layers"), ("neurons_in_fc", "dense_units"), ("lin2_size", "dense_units_2"),
        ("dropout_keep_prob", None), ("drop_out_rate", "dropout"),
        ("optimizer._target_", "optimizer"), ("momentum_2", None),
    ],
)  # fmt: skip
def test_names_that_people_give(name: str, ours: str | None) -> None:
    assert parameter_of(name) == ours


def test_layers_are_counted_as_the_program_counts_them(tmp_path: Path) -> None:
    text = "parameters:\n" + "".join(f"  conv{layer}_filters: {{values: [8, 16]}}\n" for layer in (0, 1, 2))
    found, comments, _ = converted(tmp_path, "a.yaml", text)
    assert found["space"].keys() == {"filters_1", "filters_2", "filters_3"}
    assert found["fixed"] == {"model": "cnn", "conv_layers": 3}
    assert "conv_layers is not said: as many are taken as have parameters of their own" in comments


def test_what_values_are_called(tmp_path: Path) -> None:
    text = """
parameters:
  optimizer: {values: [torch.optim.Adam, torch.optim.SGD]}
  dropout: {values: [None, 0.25, "0.5"]}
  weight_decay: {values: ["1e-4", 1e-3]}
  batch_size: {values: ["32", 64.0]}
  use_bn: {values: ["true", "False"]}
"""
    found, comments, _ = converted(tmp_path, "a.yaml", text)
    assert found["space"] == {
        "optimizer": {"choices": ["adam", "sgd"]},
        "dropout": {"choices": [0.0, 0.25, 0.5]},
        "weight_decay": {"choices": [1e-4, 1e-3]},
        "batch_size": {"choices": [32, 64]},
        "batch_norm": {"choices": [True, False]},
    }
    assert "left out" not in comments


@pytest.mark.slow
def test_networks_of_torchvision_by_their_names(tmp_path: Path) -> None:
    found, comments, _ = converted(tmp_path, "a.yaml", "parameters:\n  model_name: {values: [resnet18, VGG-11]}\n")
    assert found["space"] == {"model": {"choices": ["torchvision:resnet18", "vgg11"]}}
    assert "the program's own" not in comments


@pytest.mark.parametrize(
    ("spec", "domain", "said"),
    [
        ("epochs: {distribution: int_uniform, min: 5, max: 9}", {"low": 5, "high": 9}, ""),
        ("rotation: {min: 5, max: 8}", {"choices": [5.0, 6.0, 7.0, 8.0]}, ""),  # ends that are whole: so are values
        ("lr: {distribution: inv_log_uniform, min: 2.302585, max: 6.907755}", RATE, ""),
        ("lr: {distribution: inv_log_uniform_values, min: 0.001, max: 0.1}", RATE, ""),
        ("lr: {distribution: q_log_uniform_values, min: 0.001, max: 0.1, q: 0.01}", RATE, "its steps of 0.01"),
        ("momentum: {min: 0, max: 1.0}", {"low": 0.0, "high": 0.999}, "1 is not accepted: high = 0.999 is taken"),
    ],
)  # fmt: skip
def test_ranges_of_wandb(tmp_path: Path, spec: str, domain: dict[str, Any], said: str) -> None:
    found, comments, _ = converted(tmp_path, "a.yaml", f"method: random\nparameters:\n  {spec}\n", "exponents")
    (taken,) = found["space"].values()
    assert taken == {key: pytest.approx(value, rel=1e-5) for key, value in domain.items()}
    assert said in comments
    assert said or "not kept" not in comments


def test_what_a_sweep_leaves_unsaid_is_taken_and_said(tmp_path: Path) -> None:
    text = """
metric: {name: val_error, goal: minimize}
parameters:
  seed: {value: 7}
  momentum: {values: [0.5, 0.9]}
  conv_layers: {values: [3, 4]}
  stride: {value: 2}
  data_augmentation: {values: ["Yes", "No"]}
  model: {values: [mine]}
"""
    found, comments, _ = converted(tmp_path, "a.yaml", text)
    assert found["seed"] == 7
    assert "metric" not in found  # accuracy is the same trials in the same order
    assert "goal minimize" not in comments
    assert found["fixed"] == {"model": "cnn", "optimizer": "sgd", "stride": 2, "image_size": 64}
    assert found["space"].keys() == {"momentum", "conv_layers", "augmentation"}
    for words in (
        'optimizer is not said: "sgd" is taken',
        "image_size is not said: 64 is taken",
        "data_augmentation: what it does is the program's own; crop is taken",
        'model: {"values": ["mine"]}: left out',
    ):
        assert words in comments


def test_a_direction_alone_is_that_of_the_metric(tmp_path: Path) -> None:
    space = {"searchSpace": {"lr": {"_type": "choice", "_value": [0.1, 0.01]}}, "maxTrialNumber": 9}
    around = {"tuner": {"name": "TPE", "classArgs": {"optimize_mode": "minimize"}}, "trialConcurrency": 2}
    found, comments, _ = converted(tmp_path, "a.json", json.dumps({**space, **around}))
    assert (found["metric"], found["trials"], found["sampler"]) == ("loss", 9, "tpe")
    assert "it is made small there" in comments
    assert "trialConcurrency: 2" in comments


def test_what_a_hydra_sweep_says_beside_its_ranges(tmp_path: Path) -> None:
    text = """
defaults:
  - override hydra/sweeper: optuna
  - override hydra/sweeper/sampler: random
optimized_metric: val/loss_best
trainer: {deterministic: true}
hydra:
  sweeper:
    direction: minimize
    n_trials: 12
    sampler: {seed: 3, constant_liar: true}
    params: {lr: "choice(0.1, 0.01)"}
"""
    found, comments, _ = converted(tmp_path, "a.yaml", text)
    assert (found["sampler"], found["metric"], found["seed"], found["trials"]) == ("random", "loss", 3, 12)
    assert 'trainer: {"deterministic": true}' in comments.replace("'", '"').replace("True", "true")
    assert "constant_liar" in comments
    usual = text.replace("sampler: random", "sampler: tpe").replace("constant_liar: true", "n_startup_trials: 4")
    assert converted(tmp_path, "a.yaml", usual)[0]["sampler"] == {"name": "tpe", "startup_trials": 4}


def test_height_and_width_that_are_alike_are_one_number(tmp_path: Path) -> None:
    text = """
method: random
parameters:
  kernel_size: {values: ["3x3", "(5, 5)", [7, 7], [3, 5]]}
  pool_size: {value: [2, 2]}
  stride: {values: [[[1, 1], [2, 2]], 1]}
  filters: {values: [[16, 16], [32, 32]]}
"""
    found, comments, _ = converted(tmp_path, "a.yaml", text)
    assert found["space"]["kernel_size"] == {"choices": [3, 5, 7, [3, 5]]}
    assert found["space"]["filters"] == {"choices": [[16, 16], [32, 32]]}  # of layers there is no height
    assert found["fixed"]["pool_size"] == 2
    assert found["space"]["stride"] == {"choices": [[1, 2], 1]}
    assert "pool_size: two alike are taken for the height and width in all layers" in comments


def test_what_stands_deeper_is_named_too(tmp_path: Path) -> None:
    text = "metric: {name: val_acc, goal: maximize, target: 0.9}\nparameters: {lr: {values: [0.1, 0.2]}}\n"
    assert "metric.target: 0.9: there is nothing of this kind here" in converted(tmp_path, "a.yaml", text)[1]
    text = """
defaults: [_self_, override hydra/sweeper: optuna, override /model: small]
hydra:
  mode: MULTIRUN
  sweeper: {n_trials: "7", direction: [minimize, maximize], params: {lr: "choice(0.1, 0.01)"}}
"""
    found, comments, _ = converted(tmp_path, "a.yaml", text)
    assert found["trials"] == 7
    assert "hydra.mode: MULTIRUN: not needed here" in comments
    assert "direction: ['minimize', 'maximize']: there is nothing of this kind here" in comments
    assert "defaults: [{'override /model': 'small'}]: there is nothing of this kind here" in comments


@pytest.mark.parametrize(
    ("above", "spec", "said"),
    [
        ("run_cap: -1", "lr: {values: [0.1, 0.2]}", "-1 trials are none: trials = 50"),
        ("run_cap: 3", "lr: {distribution: q_uniform, min: 0.1, max: 0.2, q: few}", "its step 'few' is no number"),
    ],
)
def test_what_is_no_number_is_said(tmp_path: Path, above: str, spec: str, said: str) -> None:
    text = f"method: random\n{above}\nparameters:\n  bs: {{values: [8, 16]}}\n  {spec}\n"
    assert said in converted(tmp_path, "a.yaml", text)[1]


@pytest.mark.parametrize(
    ("words", "domain"),
    [
        ("range(16,100,32)", {"low": 16, "high": 80, "step": 32}),
        ("range(stop=65,start=16,step=16)", {"low": 16, "high": 64, "step": 16}),
        ("range(4)", {"low": 1, "high": 3}),
    ],
)
def test_hydras_own_range_ends_before_its_stop(tmp_path: Path, words: str, domain: dict[str, Any]) -> None:
    text = f'hydra: {{sweeper: {{params: {{batch_size: "{words}"}}}}}}'
    space = converted(tmp_path, "a.yaml", text)[0]["space"]["batch_size"]
    assert {name: value for name, value in space.items() if not (name == "step" and value == 1)} == domain


def test_of_a_range_with_a_step_multiples_are_drawn(tmp_path: Path) -> None:
    spec = "{distribution: q_uniform, min: 0.05, max: 0.5, q: 0.1}"
    text = f"method: random\nparameters: {{dropout: {spec}, seed: {{values: [0, 1]}}, num_dense: {{values: [1, 2]}}}}"
    space = converted(tmp_path, "a.yaml", text)[0]["space"]
    assert space["dropout"] == {"choices": [0.1, 0.2, 0.3, 0.4, 0.5]}
    assert space["repeat"] == {"choices": [1, 2]}, "0 would be a seed of each trial's own"
    assert space["dense_layers"] == {"choices": [1, 2]}


@pytest.mark.parametrize("text", ["[]", '{"cells": ["x"]}', "7"])
def test_a_notebook_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(UsageError, match="it has no cells, as a notebook has"):
        read(tmp_path / "a.ipynb")


def test_an_entry_of_a_list_is_changed_as_the_program_changes_it(tmp_path: Path) -> None:
    text = 'sweep = {"method": "random", "parameters": {"batch_size": {"values": [16, 32]}}}\n'
    text += 'sweep["parameters"]["batch_size"]["values"][0] = 128\n'
    assert converted(tmp_path, "a.py", text)[0]["space"]["batch_size"] == {"choices": [128, 32]}


def test_a_list_that_grows_without_end_is_not_made(tmp_path: Path) -> None:
    text = "a = [1] * 900\n" + "a = a * 900\n" * 9 + "b = [1]\n" + "b = b + b\n" * 40
    text += (
        'sweep = {"method": "random", "parameters": {"epochs": {"values": a}, "batch_size": {"values": [16, 32]}}}\n'
    )
    found, comments, _ = converted(tmp_path, "a.py", text)
    assert found["space"].keys() == {"batch_size"}
    assert "epochs" in comments
