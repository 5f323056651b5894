"""All parameters at once: lines through axes, and rank correlations."""

from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, create_trial

from cifar_sweep.figures.parallel_figures import BELOW, correlation, correlations_of, parallel
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
    labels = ("learning rate", "optimizer", "momentum", "batch size", "validation<br>accuracy, %")
    assert figure.layout.xaxis.ticktext == labels
    lines = {trace.customdata[at]: trace.y[at : at + 5] for trace in figure.data for at in range(0, len(trace.y), 6)}
    assert sorted(lines) == list(range(24))
    for k in range(24):
        rate, optimizer, momentum, size, reached = lines[k]
        assert rate == pytest.approx(k / 23)  # by its logarithm
        assert (optimizer, size) == (k % 2, k % 3 / 2)
        assert momentum == BELOW if k % 2 else momentum == pytest.approx(1 - k / 22)
        assert reached == pytest.approx((10 ** (k / 8) - 1) / (10 ** (23 / 8) - 1), abs=1e-3)
    ticks = {(note.x, note.text) for note in figure.layout.annotations}
    assert {(0, "0.001"), (1, "sgd"), (1, "adam"), (2, "-"), (3, "16"), (3, "64")} <= ticks
    assert figure.data[-1].customdata[-1] == 23, "the best one lies above the others"
    assert not parallel([], ["learning_rate"]).data


def test_correlations_are_of_ranks_and_of_words_each(trials: list[TrialRecord]) -> None:
    found = correlations_of(trials)
    assert found["learning_rate"] == pytest.approx(1)
    assert found["momentum"] == pytest.approx(-1)
    assert found["optimizer = sgd"] == pytest.approx(-found["optimizer = adam"])
    assert abs(found["batch_size"]) < 0.2
    assert list(found)[-1] in ("batch_size", "optimizer = sgd", "optimizer = adam")
    assert list(correlation(found).data[0].y)[::-1] == list(found)
    assert correlations_of(trials[:5]) == {}
