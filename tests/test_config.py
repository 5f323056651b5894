"""Parameters, their ranges, and the frozen config that is made of them."""

import dataclasses
from typing import Any

import pytest

from cifar_sweep.config import Knobs, Shape, TrialConfig, derive_seed
from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import MODEL_NAMES, MODEL_TRAITS, NAMES, PARAMETERS, check_parameter

NOT_MODEL_PARAMETERS = {"classes": 10, "data_seed": 1, "seed": 2}


def config(**params: Any) -> TrialConfig:
    return TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=1, seed=2)


def refusal(**params: Any) -> str:
    with pytest.raises(UsageError) as refused:
        config(**params)
    return str(refused.value)


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_model_alone_gets_its_own_defaults(model: str) -> None:
    has, own = MODEL_TRAITS[model]
    values = config(model=model).to_dict()
    assert {name: values[name] for name in own} == own
    plain = (has & set(NAMES)) - own.keys() - {"model", "precision"}
    usual = {name: PARAMETERS[name].default for name in plain}
    assert usual | values == values | {name: usual[name] for name in plain - values.keys()}
    assert values["model"] == model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("lenet", {"hidden_units": 84, "batch_norm": False, "norm_position": "before_activation"}),
        ("convnet", {"hidden_units": 84, "batch_norm": True, "norm_position": "before_activation"}),
        ("cnn3", {"hidden_units": 100, "batch_norm": False, "norm_position": "after_activation"}),
        ("cnn1", {"hidden_units": 0, "batch_norm": False}),
        ("vgg16", {"hidden_units": 500, "batch_norm": True}),
        ("vgg19-short", {"hidden_units": 500, "batch_norm": True}),
    ],
)
def test_the_defaults_of_a_model_are_those_of_its_report(model: str, expected: dict[str, Any]) -> None:
    values = config(model=model).to_dict()
    assert {name: values[name] for name in expected} == expected


def test_nothing_given_is_the_default_model() -> None:
    assert config() == config(model="cnn3", optimizer="adam", learning_rate=1e-3, batch_size=64, epochs=30)


def test_the_default_of_every_parameter_is_in_its_own_range() -> None:
    for parameter in PARAMETERS.values():
        assert parameter.check(parameter.default) == parameter.default


def test_given_values_win_over_the_defaults_of_the_model() -> None:
    shape = config(model="vgg16", hidden_units=64, batch_norm=False).shape
    assert (shape.hidden_units, shape.batch_norm) == (64, False)


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [("cnn1", "hidden_units", 7), ("lenet", "padding_mode", "reflect"), ("vgg11", "padding_mode", "reflect")],
)
def test_a_parameter_that_the_model_lacks_changes_nothing(model: str, name: str, value: Any) -> None:
    assert config(model=model, **{name: value}) == config(model=model)
    assert config(model="convnet", **{name: value}) != config(model="convnet")


def test_adam_has_no_momentum_and_the_others_have() -> None:
    assert config(optimizer="adam", momentum=0.9) == config(optimizer="adam")
    assert config(optimizer="sgd", momentum=0.9).knobs.momentum == 0.9
    assert config(optimizer="rmsprop", momentum=0.9).knobs.momentum == 0.9


def test_the_place_of_no_batch_norm_makes_no_difference() -> None:
    before, after = ({"batch_norm": False, "norm_position": f"{place}_activation"} for place in ("before", "after"))
    assert config(model="lenet", **before) == config(model="lenet", **after)
    before, after = (values | {"batch_norm": True} for values in (before, after))
    assert config(model="lenet", **before) != config(model="lenet", **after)


@pytest.mark.parametrize(
    ("asked", "resolved"), [({}, "bf16"), ({"precision": "auto"}, "bf16"), ({"precision": "fp32"}, "fp32")]
)
def test_automatic_precision_is_the_one_of_the_device(asked: dict[str, str], resolved: str) -> None:
    made = TrialConfig.from_params(asked, classes=10, precision="bf16", data_seed=1, seed=2)
    assert made.shape.precision == resolved


def test_classes_and_seeds_are_taken_over() -> None:
    made = TrialConfig.from_params({}, classes=43, precision="fp32", data_seed=11, seed=12)
    assert (made.shape.classes, made.shape.data_seed, made.knobs.seed) == (43, 11, 12)


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_config_survives_plain_data(model: str) -> None:
    made = config(model=model, learning_rate=3e-4, epochs=7)
    assert TrialConfig.from_dict(made.to_dict()) == made


def test_what_came_later_is_stored_only_where_it_is_not_the_default() -> None:
    made = config(model="lenet", label_smoothing=0.1, schedule="step")
    assert made.to_dict().keys() - config(model="lenet").to_dict().keys() == {"label_smoothing"}
    assert made.complete()["schedule"] == "step"
    assert made.complete()["eps"] == 0
    assert made.complete().items() >= made.to_dict().items()


@pytest.mark.parametrize(
    ("params", "name", "expected"),
    [
        ({"optimizer": "nesterov"}, "momentum", 0.9),
        ({"optimizer": "nesterov", "momentum": 0.0}, "momentum", 0.0),
        ({"optimizer": "sgd"}, "momentum", 0.0),
        ({"schedule": "exponential"}, "gamma", 0.95),
        ({"schedule": "multistep"}, "gamma", 0.1),
        ({"schedule": "exponential", "gamma": 1.0}, "gamma", 1.0),
        ({"schedule": "cosine", "gamma": 0.5}, "gamma", 1.0),
        ({"schedule": "onecycle", "warmup_epochs": 3}, "warmup_epochs", 0),
        ({"optimizer": "adagrad", "beta1": 0.5, "eps": 0.1}, "beta1", 0.9),
        ({"optimizer": "adagrad", "beta1": 0.5, "eps": 0.1}, "eps", 0.1),
        ({"optimizer": "nadam", "amsgrad": True}, "amsgrad", False),
        ({"loss": "mse", "focal_gamma": 5.0, "softmax": True}, "focal_gamma", 2.0),
        ({"loss": "mse", "focal_gamma": 5.0, "softmax": True}, "softmax", False),
        ({"model": "cnn3", "batch_norm_momentum": 0.5}, "batch_norm_momentum", 0.1),
        ({"model": "vgg11", "batch_norm_momentum": 0.5}, "batch_norm_momentum", 0.5),
        ({"class_weights": [1, 2.5]}, "class_weights", "1,2.5"),
        ({"schedule": "multistep", "milestones": [3, 9]}, "milestones", "3,9"),
    ],
)
def test_what_is_usual_beside_other_values(params: dict[str, Any], name: str, expected: Any) -> None:
    assert config(**params).complete()[name] == expected


def test_a_config_is_frozen_and_can_be_a_key() -> None:
    made = config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.shape.epochs = 3  # type: ignore[misc]
    assert {made: 1}[config()] == 1


def test_every_parameter_has_exactly_one_place_in_a_config() -> None:
    places = [field.name for part in (Shape, Knobs) for field in dataclasses.fields(part)]
    assert sorted(places) == sorted([*NAMES, *NOT_MODEL_PARAMETERS, "more", "more"])


BAD_VALUES = [
    ("model", "resnet", "one of lenet, convnet, cnn3, cnn1, cnn, vgg11"),
    ("model", 3, "one of lenet"),
    ("activation", "swish", "one of relu, leaky_relu, sigmoid, tanh, elu"),
    ("norm_position", "before", "one of before_activation, after_activation"),
    ("padding_mode", "wrap", "one of zeros, reflect"),
    ("init", "he", "one of default, xavier"),
    ("optimizer", "lion", "one of sgd, nesterov, adam, adamw"),
    ("class_weights", "even", "one of none, balanced, or numbers, or a list of these, one a class"),
    ("milestones", "late", "a whole number from 0 to 100000, or a list of these, one a decay"),
    ("precision", "fp16", "one of auto, fp32, bf16"),
    ("batch_norm", 1, "true or false"),
    ("batch_norm", "yes", "true or false"),
    ("softmax", 0, "true or false"),
    ("normalize", "no", "true or false"),
    ("hidden_units", 0, "a whole number from 1 to 65536"),
    ("hidden_units", 65537, "a whole number from 1 to 65536"),
    ("batch_size", 0, "a whole number from 1 to 65536"),
    ("batch_size", 65537, "a whole number from 1 to 65536"),
    ("batch_size", 32.5, "a whole number from 1 to 65536"),
    ("batch_size", True, "a whole number from 1 to 65536"),
    ("batch_size", "32", "a whole number from 1 to 65536"),
    ("batch_size", float("inf"), "a whole number from 1 to 65536"),
    ("batch_size", float("nan"), "a whole number from 1 to 65536"),
    ("epochs", 0, "a whole number from 1 to 100000"),
    ("epochs", 100_001, "a whole number from 1 to 100000"),
    ("train_images", -1, "a whole number of at least 0"),
    ("train_images", float("inf"), "a whole number of at least 0"),
    ("validation_images", -1, "a whole number of at least 0"),
    ("image_size", 7, "a whole number from 8 to 512"),
    ("image_size", "32", "a whole number from 8 to 512"),
    ("learning_rate", 0, "a number from 1e-12 to 1000"),
    ("learning_rate", 1001, "a number from 1e-12 to 1000"),
    ("learning_rate", 10**400, "a number from 1e-12 to 1000"),
    ("learning_rate", float("nan"), "a number from 1e-12 to 1000"),
    ("learning_rate", "fast", "a number from 1e-12 to 1000"),
    ("momentum", -0.1, "a number from 0 to below 1"),
    ("momentum", 1, "a number from 0 to below 1"),
    ("weight_decay", -1e-9, "a number from 0 to 1000"),
    ("weight_decay", 1000.5, "a number from 0 to 1000"),
    ("dropout", -0.1, "a number from 0 to below 1"),
    ("dropout", 1.0, "a number from 0 to below 1"),
    ("step_size", 0, "a whole number from 1 to 100000"),
    ("step_size", 100_001, "a whole number from 1 to 100000"),
    ("gamma", 0, "a number from 1e-06 to 1"),
    ("gamma", 1.1, "a number from 1e-06 to 1"),
]


@pytest.mark.parametrize(("name", "value", "accepted"), BAD_VALUES)
def test_a_value_out_of_range_is_refused_with_the_range(name: str, value: Any, accepted: str) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"trial parameters: {name} = {value!r} is not accepted; it takes {accepted}")
    assert message.endswith(".")


@pytest.mark.parametrize("name", sorted(PARAMETERS.keys() - {name for name, _, _ in BAD_VALUES}))
def test_what_is_no_value_at_all_is_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} = None is not accepted; it takes (one of|true|a number|a whole)"):
        check_parameter(name, None, where="x")


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 1), ("batch_size", 65536), ("dropout", 0), ("dropout", 0.999), ("gamma", 1e-6), ("gamma", 1)],
)
def test_the_ends_of_a_range_belong_to_it(name: str, value: float) -> None:
    assert config(**{name: value}).to_dict()[name] == value


@pytest.mark.parametrize(("name", "given", "kept"), [("batch_size", 32.0, 32), ("learning_rate", 1, 1.0)])
def test_a_number_is_kept_in_the_type_of_its_parameter(name: str, given: float, kept: float) -> None:
    value = config(**{name: given}).to_dict()[name]
    assert (value, type(value)) == (kept, type(kept))


def test_an_unknown_parameter_is_refused_with_the_nearest() -> None:
    assert "there is no parameter 'learning_rte'; did you mean learning_rate? " in refusal(learning_rte=0.1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"learning_rte": 1}, "there is no value 'learning_rte'; did you mean learning_rate? "),
        ({"gamma": None}, "gamma is missing"),
        ({"gamma": 2.0}, "gamma = 2.0 is not accepted; it takes a number from 1e-06 to 1"),
    ],
)
def test_a_damaged_stored_config_is_refused(change: dict[str, Any], expected: str) -> None:
    values = {name: value for name, value in (config().to_dict() | change).items() if value is not None}
    with pytest.raises(UsageError, match="trial config") as refused:
        TrialConfig.from_dict(values)
    assert expected in str(refused.value)


def test_derived_seeds_are_the_same_for_ever() -> None:
    assert derive_seed(0, "data") == 4_120_022_293
    assert derive_seed(0, "trial", 7) == 3_757_817_929


def test_derived_seeds_are_spread_over_32_bits() -> None:
    seeds = {derive_seed(sweep, "trial", number) for sweep in range(20) for number in range(100)}
    assert len(seeds) == 2000
    assert min(seeds) < 2**32 / 100
    assert 2**32 * 0.99 < max(seeds) < 2**32


def test_the_parts_of_a_seed_path_do_not_run_together() -> None:
    assert derive_seed(1, 23) != derive_seed(12, 3)
