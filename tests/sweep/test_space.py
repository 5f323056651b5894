"""From a sweep's space to Optuna's parameters and back."""

import tomllib
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cifar_sweep.errors import UsageError
from cifar_sweep.report.reproduction import sweep_toml
from cifar_sweep.search.cube import Cube
from cifar_sweep.sweep import space
from cifar_sweep.sweep.file import from_mapping
from cifar_sweep.sweep.grid import grid
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 0.1, "log": True},
    "dropout": {"low": 0, "high": 0.5},
    "batch_size": {"low": 16, "high": 256, "base2": True},
    "epochs": {"low": 5, "high": 20, "step": 5},
    "hidden_units": {"low": 16, "high": 512, "log": True},
    "activation": {"choices": ["relu", "tanh"]},
}


@pytest.fixture
def sweep() -> Sweep:
    return parse({"name": "s", "fixed": {"gamma": 0.5}, "space": SPACE}, where="test")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learning_rate", FloatDistribution(1e-5, 0.1, log=True)),
        ("dropout", FloatDistribution(0.0, 0.5)),
        ("log2_batch_size", IntDistribution(4, 8)),
        ("epochs", IntDistribution(5, 20, step=5)),
        ("hidden_units", IntDistribution(16, 512, log=True)),
        ("activation", CategoricalDistribution(["relu", "tanh"])),
    ],
)
def test_every_kind_of_domain_has_its_distribution(sweep: Sweep, name: str, expected: BaseDistribution) -> None:
    assert suggested(sweep).distributions[name] == expected


def suggested(sweep: Sweep, *, named: list[str] | None = None, **point: Any) -> optuna.Trial:
    """A trial with these Optuna parameters given and the others sampled."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(point)
    trial = study.ask()
    space.suggest(trial, sweep, named=named)
    return trial


def test_the_whole_space_is_suggested_and_nothing_else(sweep: Sweep) -> None:
    assert set(space.decode(suggested(sweep).params)) == set(SPACE)


def test_only_what_a_given_point_names_is_suggested(sweep: Sweep) -> None:
    assert suggested(sweep, named=["dropout"], dropout=0.25).params == {"dropout": 0.25}


CONDITIONAL = {
    "momentum": {"low": 0, "high": 0.9},
    "hidden_units": {"low": 16, "high": 512},
    "norm_position": {"choices": ["before_activation", "after_activation"]},
    "batch_norm": {"choices": [False, True]},
    "optimizer": {"choices": ["sgd", "adam"]},
    "model": {"choices": ["cnn1", "vgg11"]},
}


@pytest.mark.parametrize(
    ("model", "optimizer", "batch_norm", "others"),
    [
        ("cnn1", "adam", False, set()),
        ("cnn1", "sgd", False, {"momentum"}),
        ("cnn1", "adam", True, {"norm_position"}),
        ("vgg11", "sgd", True, {"momentum", "norm_position", "hidden_units"}),
    ],
)
def test_a_parameter_that_would_do_nothing_is_not_suggested(
    model: str, optimizer: str, batch_norm: bool, others: set[str]
) -> None:
    sweep = parse({"name": "s", "space": CONDITIONAL}, where="test")
    trial = suggested(sweep, model=model, optimizer=optimizer, batch_norm=batch_norm)
    assert set(trial.params) - {"model", "optimizer", "batch_norm"} == others


def test_a_point_is_encoded_without_what_does_nothing_in_it() -> None:
    sweep = parse({"name": "s", "space": CONDITIONAL}, where="test")
    point = {"model": "cnn1", "optimizer": "adam", "hidden_units": 20, "momentum": 0.5}
    assert space.encode(point, sweep) == {"model": "cnn1", "optimizer": "adam"}


@pytest.mark.parametrize(("batch", "exponent"), [(16, 4), (32, 5), (256, 8), (64.0, 6)])
def test_a_power_of_two_is_stored_as_its_exponent(sweep: Sweep, batch: float, exponent: int) -> None:
    assert space.encode({"batch_size": batch}, sweep) == {"log2_batch_size": exponent}
    assert space.decode({"log2_batch_size": exponent}) == {"batch_size": batch}


def test_a_point_of_the_space_survives_encoding(sweep: Sweep) -> None:
    point = {"learning_rate": 1e-3, "batch_size": 128, "epochs": 10, "activation": "tanh"}
    assert space.decode(space.encode(point, sweep)) == point


def test_what_is_not_searched_is_not_encoded(sweep: Sweep) -> None:
    assert space.encode({"gamma": 0.5, "learning_rate": 0.01}, sweep) == {"learning_rate": 0.01}


@pytest.mark.parametrize("exponent", range(4, 9))
def test_every_exponent_of_the_distribution_is_a_batch_size_of_the_space(sweep: Sweep, exponent: int) -> None:
    assert 16 <= space.decode({"log2_batch_size": exponent})["batch_size"] <= 256  # type: ignore[operator]


def config(sweep: Sweep, number: int, **params: Any) -> Any:
    return space.to_config(params, sweep, number=number, classes=10, precision="fp32")


def test_a_config_holds_the_trial_parameters_and_the_fixed_ones(sweep: Sweep) -> None:
    made = config(sweep, 0, learning_rate=0.01, log2_batch_size=7)
    assert (made.knobs.learning_rate, made.shape.batch_size, made.knobs.gamma) == (0.01, 128, 0.5)


def test_trials_share_the_order_of_the_data_and_have_seeds_of_their_own(sweep: Sweep) -> None:
    configs = [config(sweep, number, learning_rate=0.01) for number in range(50)]
    assert len({made.shape.data_seed for made in configs}) == 1
    assert len({made.knobs.seed for made in configs}) == 50
    assert configs[3] == config(sweep, 3, learning_rate=0.01)


def test_trials_of_one_repeat_have_one_seed(sweep: Sweep) -> None:
    numbered = enumerate((1, 1, 2, 0, 0))
    seeds = [config(sweep, number, repeat=repeat).knobs.seed for number, repeat in numbered]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 4


def test_another_sweep_seed_changes_both_seeds(sweep: Sweep) -> None:
    first, second = (config(sweep.model_copy(update={"seed": seed}), 0) for seed in (0, 1))
    assert first.shape.data_seed != second.shape.data_seed
    assert first.knobs.seed != second.knobs.seed


def test_a_later_parameter_at_its_default_is_a_setting_like_any_other() -> None:
    """What is stored leaves it out; a trial's point does not."""
    space_of = {"filters": {"choices": [16, 32]}}
    searched = parse({"name": "s", "fixed": {"model": "cnn"}, "space": space_of}, where="test")
    made = config(searched, 0, filters=32)
    assert "filters" not in made.to_dict()
    assert space.point_at(made, searched) == ({"filters": 32}, {})
    other = parse({"name": "s", "fixed": {"model": "cnn", "filters": 16}}, where="test")
    assert space.point_at(made, other) == ({}, {"filters": 32})


RATES: list[dict[str, Any]] = [
    {"only_if": {"optimizer": ["sgd"]}, "low": 0.01, "high": 1.0, "log": True},
    {"only_if": {"optimizer": ["adam", "rmsprop"]}, "choices": [0.001, 0.01]},
]
RANGE = {"low": 0.1, "high": 1}


def rate_by(cases: list[dict[str, Any]]) -> dict[str, Any]:
    return {"learning_rate": cases}


OPTIMIZERS = {"choices": ["sgd", "adam", "rmsprop"]}


def by_case(**tables: Any) -> Sweep:
    return parse({"name": "s", "space": {"learning_rate": RATES, "optimizer": OPTIMIZERS}} | tables, where="test")


def test_a_range_of_its_own_under_a_condition_has_a_name_of_its_own_in_optuna() -> None:
    searched = by_case()
    sgd, adam = "learning_rate[optimizer=sgd]", "learning_rate[optimizer=adam,rmsprop]"
    found = space.distributions(searched)
    assert (found[sgd], found[adam]) == (FloatDistribution(0.01, 1, log=True), CategoricalDistribution([0.001, 0.01]))
    for point in ({"optimizer": "sgd", sgd: 0.5}, {"optimizer": "rmsprop", adam: 0.01}):
        trial = suggested(searched, **point)
        assert trial.params == point
        known = space.decode(point)
        assert known == {"optimizer": point["optimizer"], "learning_rate": list(point.values())[1]}
        assert space.encode(known, searched) == point
        made = config(searched, 0, **point)
        assert made.knobs.learning_rate == known["learning_rate"]
        assert space.point_at(made, searched) == (known, {})
    outside = config(searched, 0, optimizer="adam", **{sgd: 0.5})
    assert space.point_at(outside, searched) == ({"optimizer": "adam"}, {"learning_rate": 0.5})


def test_cases_are_points_of_a_grid_and_of_a_cube() -> None:
    rates = [{"only_if": {"optimizer": ["sgd"]}, "choices": [1.0]}, {"choices": [0.001, 0.01]}]
    searched = by_case(sampler="grid", space={"learning_rate": rates, "optimizer": OPTIMIZERS})
    points = {(point["optimizer"], point["learning_rate"]) for point in grid(searched)}
    assert points == {("sgd", 1.0), *((name, rate) for name in ("adam", "rmsprop") for rate in (0.001, 0.01))}
    cube = Cube(by_case())
    for point in ({"learning_rate": 0.1, "optimizer": "sgd"}, {"learning_rate": 0.01, "optimizer": "adam"}):
        assert cube.params(cube.shares(point)) == {name: pytest.approx(value) for name, value in point.items()}


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (
            {"space": rate_by(RATES[:1]) | {"optimizer": OPTIMIZERS}},
            "no case for optimizer = 'adam'; one without",
        ),
        ({"space": rate_by(RATES), "fixed": {"optimizer": "adam"}}, "its case optimizer=sgd never comes; take it away"),
        ({"space": {"batch_size": [{"choices": [1]}]}}, "batch_size decides which trials are trained together"),
        ({"space": rate_by([RATES[0] | {"only_if": {"optimizer": ["sgdm"]}}])}, "only_if: optimizer = 'sgdm' is not"),
        (
            {"space": rate_by([RANGE | {"only_if": {"gamma": [1]}}]) | {"gamma": RANGE}},
            "gamma: it is to have choices",
        ),
        ({"enqueue": [{"learning_rate": 0.001}]}, "learning_rate = 0.001 depends on optimizer; give that, too"),
        ({"enqueue": [{"learning_rate": 0.001, "optimizer": "sgd"}]}, "is outside of its .*: 0.01 to 1.0"),
        ({"space": rate_by([RANGE | {"onlyif": {}}])}, "there is no key 'onlyif'; did you mean only_if"),
    ],
)
def test_cases_that_cannot_be(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        by_case(**tables)


def test_the_point_of_a_trial_names_defaults_too() -> None:
    choices = {"optimizer": {"choices": ["adam", "sgd"]}, "eps": {"choices": [0.0, 1e-6]}}
    chosen = parse({"name": "s", "space": choices}, where="test")
    made = space.to_config({"optimizer": "adam", "eps": 0.0}, chosen, number=0, classes=10, precision="fp32")
    assert space.point_at(made, chosen) == ({"optimizer": "adam", "eps": 0.0}, {})


def test_cases_are_the_same_when_they_are_written_and_read_again() -> None:
    searched = by_case(metric="loss")
    assert parse(searched.model_dump(mode="json"), where="test") == searched
    assert parse(tomllib.loads(sweep_toml(searched)) | {"name": "s"}, where="test") == searched
    fixed = from_mapping(searched.model_dump(mode="json", exclude_none=True), where="s", changes={"optimizer": "adam"})
    assert fixed.fixed == {"metric": "loss", "optimizer": "adam"}
    assert set(space.distributions(fixed)) == {"learning_rate[optimizer=adam,rmsprop]"}
