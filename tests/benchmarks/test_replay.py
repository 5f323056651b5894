"""Replays on a made-up table: the product's own code searches it, and what it trains is counted right."""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import replay

EPOCHS = 6
RATES = [10 ** (-5 + k / 4) for k in range(17)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Seventeen rates by two batch sizes, two seeds each; the best is in the middle, at the smaller batch size."""
    rows = []
    for setting, (size, k) in enumerate((size, k) for size in (16, 32) for k in range(len(RATES))):
        top = 0.7 - 0.06 * abs(k - 8) - (0.05 if size == 32 else 0.0)
        for seed in (0, 1):
            curve = [max(0.1, (top + 0.004 * seed) * (1 - 0.5 / epoch)) for epoch in range(1, EPOCHS + 1)]
            params = {"learning_rate": RATES[k], "batch_size": size}
            rows.append({"setting": setting, "seed": seed, "params": params, "validation_accuracy": curve})
    space = {
        "learning_rate": {"low": 1e-5, "high": 0.1, "log": True},
        "batch_size": {"low": 16, "high": 32, "base2": True},
    }
    fixed = {"model": "convnet", "epochs": EPOCHS}
    path = tmp_path / "made-up.json.gz"
    path.write_bytes(
        gzip.compress(json.dumps({"name": "made-up", "fixed": fixed, "space": space, "rows": rows}).encode())
    )
    return path


def options(table: Path, **changes: Any) -> argparse.Namespace:
    usual = {
        "table": table,
        "speeds": replay.SPEEDS,
        "workers": 1,
        "group": 1,
        "most_epochs": 600,
        "near": 0.005,
    }
    return argparse.Namespace(**usual | changes)


@pytest.mark.parametrize("strategy", ["auto", "random", "tpe_median"])
@pytest.mark.parametrize(("workers", "group"), [(1, 1), (2, 4)])
def test_a_search_finds_the_best_setting_and_counts_what_it_trains(
    table: Path, strategy: str, workers: int, group: int
) -> None:
    found = replay.replay(3, options=options(table, workers=workers, group=group), strategy=strategy)
    spent, seconds, true = found["events"][-1]
    assert spent <= found["spent"]
    assert seconds > 0
    assert true > 0.6, "near the best, which has 0.64"
    assert [event[0] for event in found["events"]] == sorted(event[0] for event in found["events"])
    assert found["spent"] >= EPOCHS * len(found["events"])


def test_a_replay_is_the_same_each_time(table: Path) -> None:
    first, second = (replay.replay(1, options=options(table, most_epochs=60), strategy="auto") for _ in range(2))
    assert first["events"] == second["events"]


def test_two_workers_and_groups_take_less_time_for_as_many_epochs(table: Path) -> None:
    alone = replay.replay(0, options=options(table, most_epochs=240), strategy="random")
    together = replay.replay(0, options=options(table, most_epochs=240, workers=2, group=8), strategy="random")
    pace = [found["events"][-1][1] / found["events"][-1][0] for found in (alone, together)]
    assert pace[1] < 0.5 * pace[0]


def test_our_strategy_leaves_trials_frozen_and_random_does_not(table: Path) -> None:
    auto = replay.replay(0, options=options(table, most_epochs=90), strategy="auto")
    random = replay.replay(0, options=options(table, most_epochs=90), strategy="random")
    assert len(random["events"]) == len(random["trained"]) == 90 / EPOCHS
    assert len(auto["trained"]) > len(auto["events"])
    assert sum(epochs for _, epochs in auto["trained"]) == auto["spent"]


def test_trials_that_were_not_finished_are_counted_by_length() -> None:
    rows = [
        {"setting": k, "seed": 0, "params": {"epochs": epochs}, "validation_accuracy": [0.1 * k] * epochs}
        for k, epochs in enumerate((2, 4, 2, 4, 2, 4))
    ]
    table = replay.Table({"name": "t", "fixed": {}, "space": {"epochs": {"choices": [2, 4]}}, "rows": rows})
    said = replay.unfinished_by_length(table, [{"trained": [(4, 1), (4, 2), (5, 4), (0, 1)]}])
    assert said == [
        "not trained to the end, worst third: 2 epochs 100% of 1",
        "not trained to the end, middle third: ",
        "not trained to the end, best third: 2 epochs 50% of 2, 4 epochs 0% of 1",
    ]
