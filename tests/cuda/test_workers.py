"""Workers on a GPU: the command keeps off it, a worker that it fails comes back, and what cannot be is said."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_sweep.errors import DeviceError
from cifar_sweep.study.opening import load
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.storage import open_existing
from cifar_sweep.training.device import resolve_device

SWEEP = """
trials = 6
pruner = "none"

[fixed]
model = "{model}"
batch_size = 32
epochs = 2

[space]
learning_rate = {{ low = 1e-4, high = 1e-2, log = true }}
"""
# The first time its backward pass runs, an index is out of range, on the device.
SICK = """
from pathlib import Path

import torch
from torch import nn


class Sick(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.last = nn.Linear(3072, classes)

    def forward(self, x):
        if x.is_cuda and not Path("{mark}").exists():
            Path("{mark}").touch()
            torch.zeros(4, device=x.device)[torch.full((9,), 99, device=x.device)]
        return self.last(x.flatten(1))


def build(shape):
    return Sick(shape.classes)
"""
SCRIPT = """
import sys, torch
from cifar_sweep import run_sweep

study = run_sweep("small.toml", data="synthetic:500", device="cuda", workers=int(sys.argv[1]), progress=False)
print(study)
print("asked CUDA:", torch.cuda.is_initialized())
"""


def trials(name: str = "small") -> list[TrialRecord]:
    return load(open_existing("sqlite:///studies.db"), name).trials()


def python(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if key != "CIFAR_SWEEP_WORKERS"} | variables
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_command_itself_takes_nothing_of_the_gpu(workers: str, gpu: torch.device) -> None:
    Path("small.toml").write_text(SWEEP.format(model="lenet"))
    finished = python("-c", SCRIPT, workers)
    assert finished.returncode == 0, finished.stderr
    assert "asked CUDA: False" in finished.stdout
    assert [trial.state for trial in trials()] == ["complete"] * 6


def test_a_gpu_that_fails_costs_no_trial(gpu: torch.device, tmp_path: Path) -> None:
    Path("sick.py").write_text(SICK.format(mark=tmp_path / "was-sick"))
    Path("small.toml").write_text(SWEEP.format(model="sick:build"))
    run = "-m", "cifar_sweep", "run", "small.toml", "--data", "synthetic:500", "--device", "cuda", "--workers", "1"
    finished = python(*run, CIFAR_SWEEP_GROUP="1")
    assert finished.returncode == 0, finished.stderr
    assert "It is started again." in finished.stderr
    assert [trial.state for trial in trials()] == ["complete"] * 6
    assert sorted(trial.deaths for trial in trials()) == [0, 0, 0, 0, 0, 1]


def test_a_gpu_that_is_not_there_is_said(gpu: torch.device) -> None:
    count = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=rf"PyTorch sees {count} CUDA device"):
        resolve_device(f"cuda:{count}")
    Path("small.toml").write_text(SWEEP.format(model="lenet"))
    run = "-m", "cifar_sweep", "run", "small.toml", "--data", "synthetic:500", "--device", "cuda"
    finished = python(*run, CUDA_VISIBLE_DEVICES="")
    assert finished.returncode == 1
    assert "PyTorch sees no CUDA device here (" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_doctor_knows_the_gpu(gpu: torch.device, cli: Any) -> None:
    said = cli("doctor", "--data", "synthetic:500").out
    assert torch.cuda.get_device_name(gpu) in said
    assert "compute capability" in said
    for word in ("GiB", "driver", "CUDA", "cuDNN"):
        assert word in said


def test_a_worker_of_the_second_gpu_takes_nothing_of_the_first(gpu: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU here")
    script = """
import torch
from cifar_sweep.training.device import prepare_process
second = torch.device("cuda", 1)
prepare_process(second, threads=0)
torch.ones(9, device="cuda").sum().item()
print(torch.cuda.memory_allocated(0), torch.cuda.memory_allocated(1) > 0, torch.cuda.current_device())
"""
    assert python("-c", script).stdout.split() == ["0", "True", "1"]
