"""All parameters at once: lines through axes, and rank correlations."""

from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, create_trial

from cifar_sweep.figures.parallel_figures import correlation, correlations_of, parallel
from cifar_sweep.study.record import TrialRecord, records
from cifar_sweep.sweep import space
from cifar_sweep.sweep.parsing import parse

SWEEP = parse(
    {
        "name": "s",
        "sampler": "random",
        "space": {
            "learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
            "optimizer": {"choices": ["sgd", "adam"]},
            "momentum": {"low": 0.0, "high": 0.9},
            "batch_size": {"low": 16, "high": 64, "base2": True},
        },
    },
    where="test",
)


def trial(number: int, **params: Any) -> FrozenTrial:
    """One whose accuracy rises with its learning rate."""
    sampled = optuna.trial.FixedTrial(params)
    space.suggest(sampled, SWEEP)
    value = 0.5 + params["learning_rate"]
    config = space.to_config(params, SWEEP, number=number, classes=10, precision="fp32").to_dict()
    owner = {"host": "h", "pid": 1, "started": "", "token": "t", "system": ""}
    return create_trial(
        value=value,
        params=sampled.params,
        distributions=sampled.distributions,
        user_attrs={"config": config, "curve": [], "owner": owner},
    )


@pytest.fixture
def trials() -> list[TrialRecord]:
    found = []
    for k in range(24):
        rate, size = 10 ** (-4 + k / 8), 4 + k % 3
        words = {"optimizer": "adam"} if k % 2 else {"optimizer": "sgd", "momentum": 0.9 - k / 30}
        found.append(trial(k, learning_rate=rate, log2_batch_size=size, **words))
        found[-1].number = k
    return records(found)


def test_an_axis_for_each_parameter_and_one_for_what_was_reached(trials: list[TrialRecord]) -> None:
    figure = parallel(trials, list(SWEEP.space))
    axes = {each["label"]: each for each in figure.data[0].dimensions}
    assert list(axes) == ["learning rate", "optimizer", "momentum", "batch size", "validation accuracy, %"]
    assert axes["learning rate"]["values"] == pytest.approx([-4 + k / 8 for k in range(24)])
    assert axes["learning rate"]["ticktext"] == ("0.0001", "0.001", "0.01")
    assert axes["optimizer"]["ticktext"] == ("sgd", "adam")
    assert axes["batch size"]["ticktext"] == ("16", "32", "64")
    momentum = axes["momentum"]
    assert momentum["ticktext"][0] == "-"
    assert {momentum["values"][k] for k in range(1, 24, 2)} == {momentum["tickvals"][0]}, "adam has none"
    assert momentum["values"][0] == pytest.approx(0.9)
    assert axes["validation accuracy, %"]["values"] == figure.data[0].line.color


def test_correlations_are_of_ranks_and_of_words_each(trials: list[TrialRecord]) -> None:
    found = correlations_of(trials)
    assert found["learning_rate"] == pytest.approx(1)
    assert found["momentum"] == pytest.approx(-1)
    assert found["optimizer = sgd"] == pytest.approx(-found["optimizer = adam"])
    assert abs(found["batch_size"]) < 0.2
    assert list(found)[-1] in ("batch_size", "optimizer = sgd", "optimizer = adam")
    assert list(correlation(found).data[0].y)[::-1] == list(found)
    assert correlations_of(trials[:5]) == {}
