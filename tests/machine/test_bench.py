"""The ratios that `bench` measures, and what they are measured by."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from cifar_sweep.config import TrialConfig
from cifar_sweep.machine import bench, timing
from cifar_sweep.machine.bench import our_rate, plain_rate, product_rate, training_macs

CPU = torch.device("cpu")


def config(model: str = "lenet", **params: Any) -> TrialConfig:
    return TrialConfig.from_params({"model": model, **params}, classes=10, precision="fp32", data_seed=0, seed=0)


def test_rates_are_images_per_second() -> None:
    shared = {"config": config(batch_size=32), "source": "synthetic:500", "device": CPU, "threads": 1, "seconds": 0.05}
    assert 50 < plain_rate(**shared) < 1e5
    assert 50 < plain_rate(**shared, resident=True) < 1e6
    assert 50 < our_rate(**shared, members=3) < 1e6


def test_the_rate_of_a_group_is_that_of_all_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_rate", lambda step, batches, seconds, wait: 100.0)
    shared = {"config": config(), "source": "synthetic:500", "device": CPU, "threads": 1, "seconds": 0.05}
    assert our_rate(**shared, members=3) == 300.0


@pytest.mark.slow
def test_the_plain_loop_learns() -> None:
    """A straw man would be easy to beat: this is the same network, on the same images, and it trains."""
    losses: list[float] = []

    def steps(step: Any, batches: Any, seconds: float) -> float:
        for _, (images, labels) in zip(range(300), batches, strict=False):
            step(images, labels)
        losses.append(step.__self__.loss / 16)
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_rate", steps)
        torch.manual_seed(0)
        plain_rate(config=config("convnet", batch_size=16), source="synthetic:500", device=CPU, threads=1, seconds=1)
    assert losses[0] / 300 < 2.2  # log(10) is 2.30


def test_multiply_accumulates_of_a_step() -> None:
    first, second, hidden = 25 * 3 * 6 * 28**2, 25 * 6 * 16 * 10**2, 400 * 120 + 120 * 84 + 84 * 10
    assert training_macs(config("lenet")) == 2 * first + 3 * (second + hidden)


def test_products_are_fast() -> None:
    assert product_rate(precision="fp32", device=CPU, threads=1) > 1e8


def test_bench_gives_the_same_rows_as_a_table_and_as_json(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = bench.Row("lenet", 16, 900, 100, 150, 9.0, 6.0, (8.0, 9.5), (5.0, 6.5), 0.12, "bf16", "2 x 1 x 8", 5)
    monkeypatch.setattr(bench, "measure", lambda cases, **_: [row])
    shown = cli("bench", "--model", "lenet", "--data", "synthetic:500")
    assert shown.exit_code == 0
    assert "9.0 (8.0 to 9.5)" in shown.out
    assert "12%" in shown.out
    found = json.loads(cli("bench", "--model", "lenet", "--data", "synthetic:500", "--json").out)
    [plain] = found["rows"]
    assert plain["images_per_second"] == 900
    assert plain["plain_images_per_second"] == 100
    assert plain["ratio"] == 9.0
    assert {"device", "versions", "commit", "data"} <= found.keys()
    assert found["gpu"] is None


def test_an_unknown_network_is_refused(cli: Any) -> None:
    refused = cli("bench", "--model", "resnet")
    assert refused.exit_code == 2
    assert "--model: model = 'resnet' is not accepted" in refused.err


class Here:
    """A process pool whose calls are made in this process, one after the other."""

    def together(self, function: Callable[..., Any], *calls: dict[str, Any]) -> list[Any]:
        return [function(**call) for call in calls]


@pytest.mark.slow
def test_bench_measures(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it once; with processes it is among the README's commands."""
    monkeypatch.setattr(bench, "SECONDS", 0.05)
    for module in (bench, timing):
        monkeypatch.setattr(module, "process_pool", lambda _size: nullcontext(Here()))
        monkeypatch.setattr(timing, "GROUP_SIZES", (1, 2))
    finished = cli("bench", "--model", "lenet", "--turns", 1, "--data", "synthetic:500", "--json")
    assert finished.exit_code == 0, finished.err
    [row] = json.loads(finished.out)["rows"]
    assert row["images_per_second"] > 0
    assert row["plan"].endswith("trial(s)")
    assert row["spread"] == [row["ratio"]] * 2
