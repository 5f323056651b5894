"""Figures of curves, hand runs and learning rates show the rows and trials they are given."""

import json
import math
from datetime import datetime
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.config import TrialConfig
from cifar_sweep.figures.curve_figures import learning_curves
from cifar_sweep.figures.hand_figures import claimed_against_measured
from cifar_sweep.figures.search_figures import accuracy_by_learning_rate
from cifar_sweep.hand.rows import HandRow
from cifar_sweep.study.record import records

DATA = "synthetic images (500 + 100) (0123456789abcdef)"
HOSTILE = "</script><script>alert(1)</script><b onclick='x'>&\u2028"
ROWS = [
    HandRow("B-1", "cnn3", claimed=70.0, trial=0, state="complete", test=0.65, difference=-5.0, data=DATA),
    HandRow("B-1", "cnn3", claimed=70.0, trial=1, state="complete", test=0.4, shortened="3 of 30 epochs", data=DATA),
    HandRow("B-2", "cnn3", claimed=50.0),
    HandRow("B-3", "cnn3", trial=2, state="complete", test=0.6, data=DATA),
    HandRow("B-4", "cnn3"),
]


def trial(number: int, state: TrialState, accuracies: list[float], *, batch_size: int = 32, **more: Any) -> FrozenTrial:
    curve = [
        {"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": accuracy / 2, "validation_loss": 2 / epoch}
        | {"validation_accuracy": accuracy, "learning_rate": 1e-3, "seconds": 1.0}
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]
    params = {"model": "lenet", "learning_rate": 10.0 ** -(number % 9 + 1), "batch_size": batch_size, "epochs": 4}
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=number).to_dict()
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=max(accuracies) if state is TrialState.COMPLETE else None,
        datetime_start=datetime(2026, 1, 1),
        datetime_complete=datetime(2026, 1, 1) if state.is_finished() else None,
        params={},
        distributions={},
        user_attrs={"config": config, "curve": curve} | more,
        system_attrs={},
        intermediate_values={},
    )


TRIALS = records([
    trial(0, TrialState.COMPLETE, [0.5, 0.7, 0.6], label="A-1"),
    trial(1, TrialState.PRUNED, [0.4, 0.2], batch_size=64),
    trial(2, TrialState.RUNNING, [0.3]),
    trial(3, TrialState.WAITING, []),
])  # fmt: skip


def named(figure: go.Figure, name: str) -> Any:
    [found] = [trace for trace in figure.data if trace.name == name]
    return found


def test_claims_and_measurements_by_row() -> None:
    figure = claimed_against_measured(ROWS)
    claims, whole = named(figure, "claimed by the report"), named(figure, "measured here")
    short = named(figure, "measured here, shortened run")
    assert dict(zip(claims.y, claims.x, strict=True)) == {
        "B-1, trial 0": 70,
        "B-1, trial 1, shortened": 70,
        "B-2, not run": 50,
    }
    assert dict(zip(whole.y, whole.x, strict=True)) == {"B-1, trial 0": 65, "B-3, trial 2": 60}
    assert dict(zip(short.y, short.x, strict=True)) == {"B-1, trial 1, shortened": 40}
    assert (whole.marker.symbol, short.marker.symbol) == ("circle", "circle-open")
    assert "3 of 30 epochs" in short.hovertext[0]
    assert "-5.00 points" in whole.hovertext[0]
    lines = [list(trace.x) for trace in figure.data if trace.mode == "lines"]
    assert lines == [[70, 65], [70, 40]]
    assert list(figure.layout.yaxis.categoryarray) == [
        "B-1, trial 0", "B-1, trial 1, shortened", "B-2, not run", "B-3, trial 2",
    ]  # fmt: skip
    title = figure.layout.title.text.replace("<br>", " ")
    assert f"measured on {DATA}" in title
    assert "synthetic images say nothing about CIFAR-10" in title


def test_nothing_measured_yet() -> None:
    title = claimed_against_measured(ROWS[2:3]).layout.title.text.replace("<br>", " ")
    assert "measured on nothing yet" in title
    assert "synthetic" not in title


def test_learning_curves_by_trial() -> None:
    figure = learning_curves(TRIALS, data=DATA)
    first = [trace for trace in figure.data if trace.name == "trial 0, A-1"]
    assert sorted((trace.line.dash, trace.yaxis) for trace in first) == [
        ("dash", "y"), ("dash", "y2"), ("solid", "y"), ("solid", "y2"),
    ]  # fmt: skip
    [validation] = [trace for trace in first if trace.line.dash == "solid" and trace.yaxis == "y2"]
    assert list(validation.x) == [1, 2, 3]
    assert list(validation.y) == [50, 70, 60]
    assert {trace.line.color for trace in first} == {validation.line.color}
    assert len({trace.line.color for trace in figure.data}) == 3
    assert sum(bool(trace.showlegend) for trace in figure.data) == 3, "one entry per trial that has a curve"
    assert DATA in figure.layout.title.text.replace("<br>", " ")


def test_a_trial_that_diverged_leaves_a_gap() -> None:
    broken = trial(0, TrialState.PRUNED, [0.3, 0.1])
    broken.user_attrs["curve"][1]["train_loss"] = math.nan
    figure = learning_curves(records([broken]), data=DATA)
    assert [1, None] in [list(trace.y) for trace in figure.data]
    json.loads(figure.to_json(), parse_constant=pytest.fail)


def test_many_trials_are_told_apart() -> None:
    figure = learning_curves(records([trial(number, TrialState.COMPLETE, [0.5]) for number in range(40)]), data=DATA)
    looks = {(trace.name, trace.line.color, trace.marker.symbol) for trace in figure.data}
    assert len(looks) == len({look[1:] for look in looks}) == 40


def test_accuracy_by_learning_rate_and_batch_size() -> None:
    figure = accuracy_by_learning_rate(TRIALS, data=DATA)
    complete, pruned = named(figure, "batch size 32, complete"), named(figure, "batch size 64, pruned, last value")
    running = named(figure, "batch size 32, running, last value")
    assert [(list(trace.x), list(trace.y)) for trace in (complete, pruned, running)] == [
        ([0.1], [70]), ([0.01], [20]), ([0.001], [30]),
    ]  # fmt: skip
    assert complete.marker.color == running.marker.color != pruned.marker.color
    assert len({trace.marker.symbol for trace in (complete, pruned, running)}) == 3
    assert list(named(figure, "point by hand").text) == ["A-1"]
    assert figure.layout.xaxis.type == "log"
    assert DATA in figure.layout.title.text.replace("<br>", " ")
    alone = accuracy_by_learning_rate(TRIALS[:1], data=DATA)
    assert alone.data[0].name == "complete", "no batch size where all are the same"


def test_no_trial_at_all() -> None:
    assert len(claimed_against_measured([]).data) == 0
    assert len(learning_curves([], data=DATA).data) == 0
    assert len(accuracy_by_learning_rate([], data=DATA).data) == 0
