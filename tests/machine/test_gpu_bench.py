"""What `bench` says of a GPU. Its measurements run on the CPU here; what only a GPU says is made up."""

import json
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from cifar_sweep.config import TrialConfig
from cifar_sweep.machine import bench, gpu_bench
from cifar_sweep.machine.gpu_bench import Examined, Rung, clock_megahertz, examine, ladder
from cifar_sweep.terminal import doctor
from cifar_sweep.training import device, lanes

CPU = torch.device("cpu")


class Here:
    """A process pool whose calls are made in this process."""

    def together(self, function: Callable[..., Any], *calls: dict[str, Any]) -> list[Any]:
        return [function(**call) for call in calls]


def config(**params: Any) -> TrialConfig:
    return TrialConfig.from_params(
        {"model": "lenet", "batch_size": 16} | params, classes=10, precision="fp32", data_seed=0, seed=0
    )


def test_a_rung_is_what_steps_of_so_many_members_take() -> None:
    one, four = ladder(config=config(), device=CPU, members=(1, 4), seconds=0.05)
    for rung in (one, four):
        assert rung.images_per_second == pytest.approx(1000 * 16 * rung.members / rung.step_ms, rel=0.01)
        assert 0 < rung.host_ms <= rung.step_ms
        assert (rung.gpu_ms, rung.kernels, rung.megabytes, rung.of_reckoned) == (None, None, None, None)
        assert 0 < rung.share_of_peak < 1.5
    assert (one.members, four.members) == (1, 4)


def test_a_group_that_does_not_fit_is_said_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = gpu_bench.group_step

    def step(config: TrialConfig, members: int, device: torch.device) -> Any:
        if members == 2:
            raise RuntimeError("out of memory\nand more words")
        return usual(config, members, device)

    monkeypatch.setattr(gpu_bench, "group_step", step)
    rungs = ladder(config=config(), device=CPU, members=(1, 2, 3), seconds=0.01)
    assert [rung.fault for rung in rungs] == ["", "RuntimeError: out of memory", ""]
    assert rungs[2].images_per_second > 0


@pytest.mark.slow
def test_all_of_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_bench, "process_pool", lambda _size: nullcontext(Here()))
    monkeypatch.setattr(ladder, "__kwdefaults__", {"members": (1, 2), "seconds": 0.01})
    monkeypatch.setattr(gpu_bench, "COPIED_BYTES", 1 << 20)
    found = examine([("lenet", 16), ("lenet", 64)], device=CPU, source="synthetic:500")
    assert list(found.ladders) == ["lenet, batch 16", "lenet, batch 64"]
    assert all(len(rungs) == 2 for rungs in found.ladders.values())
    assert found.copied_terabytes > 0
    assert found.products_teraflops > 0
    assert 0 < found.checkpoint_seconds < 1
    assert "deterministic" in found.flags


def test_the_clock_is_unknown_where_nobody_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert clock_megahertz() == "unknown"
    done = subprocess.CompletedProcess([], 0, stdout="1980\n1755\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert clock_megahertz() == "1980"


def test_bench_on_a_gpu_says_what_it_does_and_who_waits(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = bench.Row(
        "lenet", 16, 90_000, 1000, 6000, 90.0, 15.0, (80.0, 95.0), (14.0, 16.0), 0.12, "bf16", "4 x 1 x 64", 5, 8, 2500
    )
    rung = Rung(64, 90_000.0, 11.4, 0.21, 11.2, 143, 5.5, 0.9, 0.31, 1.25)
    found = Examined(
        {"lenet, batch 16": [rung, Rung(256, fault="out of memory")]}, "tf32 False", ("1980", "1755"), 4.1, 700.5, 0.002
    )
    monkeypatch.setattr(bench, "measure", lambda cases, **_: [row, replace(row, processes=4)])
    monkeypatch.setattr(gpu_bench, "examine", lambda cases, **_: found)
    monkeypatch.setattr(device, "resolve_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(device, "device_name", lambda _: "a GPU")
    monkeypatch.setattr(lanes, "kernels_name", lambda _: "torch")
    monkeypatch.setattr(doctor, "gpus", lambda _: "1 GPU(s), 139.0 GiB")
    asked = ("bench", "--model", "lenet", "--data", "synthetic:500", "--device", "cuda")
    shown = cli(*asked)
    assert shown.exit_code == 0, shown.err
    words = " ".join(shown.out.split())
    for told in (
        "plain, 4 or 8 processes", "2,500", "1 GPU(s), 139.0 GiB; tf32 False; clock 1980 MHz before, 1755 after",
        "copies 4.1 TB/s", "bf16 with 700.5 TFLOP/s", "a checkpoint takes 2 ms a member and epoch",
        "64 90,000 11.4 0.21 11.2 143 5.5 0.9 31% 1.25", "256 out of memory",
    ):  # fmt: skip
        assert told in words
    gpu = json.loads(cli(*asked, "--json").out)["gpu"]
    assert gpu["ladders"]["lenet, batch 16"][0]["kernels"] == 143
