"""What parameters do beside each other: what decides comes first, and valid files are not refused."""

from dataclasses import MISSING, fields
from typing import Any

import pytest

from cifar_sweep.config import Knobs, Shape, TrialConfig
from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import NAMES, PARAMETERS
from cifar_sweep.sweep.grid import grid
from cifar_sweep.sweep.parsing import check_point, parse
from cifar_sweep.sweep.sweep import Sweep

RATE = {"low": 1e-4, "high": 0.1, "log": True}


def sweep(space: dict[str, Any], **tables: Any) -> Sweep:
    fixed = {"model": "cnn"} | tables.pop("fixed", {})
    return parse({"name": "s", "fixed": fixed, "space": space} | tables, where="test")


def config(**params: Any) -> dict[str, Any]:
    made = TrialConfig.from_params({"model": "cnn"} | params, classes=10, precision="fp32", data_seed=0, seed=0)
    return made.complete()


def test_lists_that_say_how_many_layers_there_are_come_before_what_layers_have() -> None:
    space = {"kernel_size_4": {"choices": [1, 3]}, "filters": {"choices": [[4, 4, 4, 4], [8, 8, 8, 8]]}}
    points = grid(sweep(space, sampler="grid", pruner="none"))
    assert len(points) == 4
    assert all("kernel_size_4" in point for point in points)


def test_a_decision_in_cases_comes_before_what_it_decides() -> None:
    cases = [{"only_if": {"optimizer": ["sgd"]}, "choices": ["cosine"]}, {"choices": ["none"]}]
    space = {"cosine_epochs": {"choices": [5, 10]}, "schedule": cases, "optimizer": {"choices": ["sgd", "adam"]}}
    points = grid(sweep(space, sampler="grid", pruner="none"))
    assert sorted(map(len, points)) == [2, 3, 3]


def test_a_case_goes_by_the_default_of_the_model() -> None:
    on = [{"only_if": {"batch_norm": [True]}, "low": 0.001, "high": 0.01}, {"low": 0.1, "high": 0.2}]
    with pytest.raises(UsageError, match="never comes"):  # of a vgg batch norm is on
        sweep({"learning_rate": on}, fixed={"model": "vgg16"})
    chosen = sweep({"learning_rate": on[:1]}, fixed={"model": "vgg16"})
    assert check_point({"learning_rate": 0.005}, chosen, where="x") == {"learning_rate": 0.005}


@pytest.mark.parametrize("name", ["dense_batch_norm", "batch_norm_2"])
def test_batch_norm_of_some_layers_has_a_place_and_a_momentum(name: str) -> None:
    settings = {name: True, "norm_position": "after_activation", "batch_norm_momentum": 0.5}
    sweep({"learning_rate": RATE}, fixed=settings)
    assert config(**settings).items() >= settings.items()


def test_a_point_is_not_asked_for_what_does_nothing_beside_it() -> None:
    cases = [{"only_if": {"momentum": [0.9]}, "choices": [0.1]}, {"choices": [0.2]}]
    space = {
        "optimizer": {"choices": ["sgd", "adam"]}, "momentum": {"choices": [0.0, 0.9]}, "learning_rate": cases,
    }  # fmt: skip
    chosen = sweep(space, sampler="grid", pruner="none")
    assert all(check_point(point, chosen, where="x") for point in grid(chosen))


@pytest.mark.parametrize(
    ("space", "fixed"),
    [
        ({"pooling": {"choices": [["max", "none"], ["max", "max"]]}}, {}),
        ({"kernel_size": {"choices": [2, 3]}}, {"image_size": 8, "conv_layers": 8, "pooling": "none"}),
        ({"stride": {"choices": [[1, 1, 1, 1, 1, 1], [3, 4, 1, 1, 1, 1]]}}, {"pooling": "none"}),
        ({"net.act": {"choices": ["relu", "gelu"]}}, {"model": "my_module:build"}),
        ({"padding": {"choices": ["same", "1", "2"]}}, {"kernel_size": 1}),
    ],
)
def test_a_valid_file_is_not_refused(space: dict[str, Any], fixed: dict[str, Any]) -> None:
    assert sweep(space, fixed=fixed).space


@pytest.mark.parametrize(
    ("space", "fixed", "words"),
    [
        ({"filters": {"choices": [[4, 4], [4, 4, 4]]}, "kernel_size": {"choices": [[3, 3], [3, 3, 3]]}}, {}, "lengths"),
        ({"filters": {"choices": [[4, 4], [4, 4, 4]]}, "conv_layers": {"choices": [2, 3]}}, {}, "lengths"),
        ({"learning_rate": RATE}, {"dense_units": [8] * 17}, "at most 16"),
        ({"learning_rate": RATE}, {"dense_layers": 0, "dense_units": 8}, "dense_units does nothing"),
        ({"learning_rate": RATE}, {"filters": 4096, "filter_growth": "1000"}, "grow beyond 65,536"),
        (
            {"learning_rate": RATE},
            {"padding_mode": "reflect", "kernel_size": 31, "image_size": 8, "pooling": "none"},
            "reflect",
        ),
        ({"learning_rate": RATE}, {"class_weights": "1e999,1"}, "class_weights"),
    ],
)
def test_what_can_never_be_trained_is_refused(space: dict[str, Any], fixed: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sweep(space, fixed=fixed)


def test_a_grid_without_end_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="more than 10,000 points"):
        sweep({"train_images": {"low": 0, "high": 1_000_000_000}}, sampler="grid", pruner="none")


def test_a_metric_beside_a_broken_table_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="fixed = 3 is not accepted"):
        parse({"name": "s", "metric": "loss", "fixed": 3}, where="test")


def test_what_a_config_leaves_out_are_the_defaults_of_the_parameters() -> None:
    own = {field.name: field.default for part in (Shape, Knobs) for field in fields(part) if field.name in NAMES}
    later = {name: default for name, default in own.items() if default is not MISSING}
    assert len(later) > 50
    assert later == {name: PARAMETERS[name].default for name in later}


def searched(fixed: dict[str, Any], name: str, *choices: Any) -> Sweep:
    return parse({"name": "s", "fixed": fixed, "space": {name: {"choices": list(choices)}}}, where="test")


NO_POOLING = {"model": "cnn", "pooling": "none"}
NO_MIX = "mix_probability does nothing where all trials have mixup = 0.0, cutmix = 0.0; it belongs to others"


@pytest.mark.parametrize(
    ("fixed", "name", "choices", "words"),
    [
        (NO_POOLING, "pool_size", [2, 3], "pool_size does nothing where all trials have pooling = 'none'"),
        (NO_POOLING, "pool_size_2", [2, 3], "pool_size_2 does nothing where all trials have pooling = 'none'"),
        ({"model": "cnn", "pooling": ["max", "none"]}, "pool_size_2", [2, 3], "pool_size_2 does nothing where all"),
        ({"model": "cnn", "pooling_2": "none"}, "pool_size_2", [2, 3], "pool_size_2 does nothing where all trials"),
        ({}, "mix_probability", [0.5, 1.0], NO_MIX),
        ({"mixup": 0.0}, "mix_probability", [0.5, 1.0], NO_MIX),
        ({"optimizer": "sgd"}, "dampening", [0.1, 0.2], "dampening does nothing where all trials have momentum = 0.0"),
        ({"model": "cnn"}, "dropout_place", ["conv", "both"], "dropout_place does nothing where all trials have"),
        ({"model": "cnn", "padding": "valid"}, "padding_mode", ["zeros", "reflect"], "padding_mode does nothing where"),
        ({"model": "cnn", "conv_layers": 1}, "filter_growth", ["same", "half"], "filter_growth does nothing where all"),
        ({"model": "cnn", "conv_layers": 0}, "kernel_size", [3, 5], "kernel_size does nothing where all trials"),
        ({"model": "cnn"}, "filters_5", [8, 16], "filters_5 does nothing for conv_layers = 3; it belongs to 5, 6"),
        ({"model": "cnn", "filters": [8, 16]}, "kernel_size_3", [3, 5], "kernel_size_3 does nothing for conv"),
        ({"model": "cnn", "dense_units": [8, 16]}, "dropout_3", [0.1, 0.2], "dropout_3 does nothing for dense"),
        (
            {"model": "cnn", "batch_norm_2": False}, "norm_position", ["before_activation", "after_activation"],
            "norm_position does nothing for batch_norm = false, false; it belongs to true",
        ),
    ],
)  # fmt: skip
def test_what_does_nothing_in_any_trial_is_refused(
    fixed: dict[str, Any], name: str, choices: list[Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        searched(fixed, name, *choices)


@pytest.mark.parametrize(
    ("fixed", "name", "choices"),
    [
        (NO_POOLING | {"pooling_2": "avg"}, "pool_size", [2, 3]),
        (NO_POOLING | {"pooling_2": "avg"}, "pool_size_2", [2, 3]),
        ({"model": "cnn", "pooling": ["max", "none"]}, "pool_size", [2, 3]),
        ({"cutmix": 0.5}, "mix_probability", [0.5, 1.0]),
        ({"optimizer": "sgd", "momentum": 0.9}, "dampening", [0.1, 0.2]),
        ({"model": "cnn", "dropout_1": 0.2}, "dropout_place", ["conv", "both"]),
        ({"model": "cnn", "kernel_size_2": 3, "kernel_size": 1}, "padding", ["same", "valid"]),
        ({"model": "cnn", "filters": [8, 16, 8, 16, 8]}, "kernel_size_5", [3, 5]),
        ({"model": "cnn", "batch_norm_2": True}, "norm_position", ["before_activation", "after_activation"]),
        ({"model": "convnet"}, "norm_position", ["before_activation", "after_activation"]),
    ],
)
def test_what_does_something_in_some_trial_is_accepted(fixed: dict[str, Any], name: str, choices: list[Any]) -> None:
    assert searched(fixed, name, *choices).space


def test_a_length_of_some_lists_alone_leaves_the_other_layers_accepted() -> None:
    space = {"filters": {"choices": [[8, 16], 8]}, "kernel_size_3": {"choices": [3, 5]}}
    assert parse({"name": "s", "fixed": {"model": "cnn"}, "space": space}, where="test").space
