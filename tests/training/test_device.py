"""Devices: which there is, what it can do, and when it can do no more. Of a GPU by what PyTorch is made to say."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_sweep.errors import DeviceError
from cifar_sweep.training import device
from cifar_sweep.training.device import (
    is_out_of_memory,
    is_sick,
    prepare_process,
    resolve_device,
    resolve_precision,
)

CPU, SECOND_GPU = torch.device("cpu"), torch.device("cuda", 1)
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What CUDA is asked to do, on a machine with two GPUs that are not there."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda *asked: calls.append(("device", *asked)))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *asked: calls.append(("memory", *asked)))
    return calls


def test_a_worker_of_the_second_gpu_uses_nothing_of_the_first(called: list[tuple[Any, ...]]) -> None:
    prepare_process(SECOND_GPU, threads=0, share=0.25)
    assert called == [("device", SECOND_GPU), ("memory", 0.25, SECOND_GPU)]


@pytest.mark.parametrize(
    ("capability", "precision", "why"), [((9, 0), "bf16", "9.0 has bf16"), ((7, 5), "fp32", "7.5 has no bf16")]
)
def test_a_gpu_trains_in_what_its_tensor_cores_have(
    capability: tuple[int, int], precision: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was timed or noted of it: a network that is small enough to be timed times launches."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path))
    note = tmp_path / "ratios.json"
    note.write_text(f'{{"bf16, cuda a GPU, one thread, torch {torch.__version__}": 1.1}}')
    assert resolve_precision(SECOND_GPU) == (precision, f"compute capability {why}")


def test_the_precision_of_a_cpu_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path))
    ratios = iter([1.3])
    monkeypatch.setattr(device, "_bf16_speedup", lambda: next(ratios))
    for _ in range(2):
        assert resolve_precision(CPU) == ("bf16", "bf16 is 1.3 times as fast here")


def test_of_processes_that_start_at_once_one_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path))
    ratios = iter([1.3, 0.1])

    def measured() -> float:
        time.sleep(0.2)
        return next(ratios)

    monkeypatch.setattr(device, "_bf16_speedup", measured)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(resolve_precision, [CPU, CPU]))
    assert found == [("bf16", "bf16 is 1.3 times as fast here")] * 2


def test_what_works_beside_it_does_not_make_bf16_look_slow() -> None:
    slowed = iter([0.1, 0.1, 1, 10, 3, 1, 1, 0.5] + [1, 3] * 9)  # to warm up; seconds of float32, bf16 and so on
    assert device.least_ratio(lambda _: next(slowed)) == 2
    taken: list[bool] = []
    assert device.least_ratio(lambda bf16: taken.append(bf16) or (10 if bf16 else 1)) == 0.1
    assert len(taken) == 2 + 4, "two pairs tell"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_spent_memory_is_known_by_all_its_names(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [torch.AcceleratorError(ILLEGAL), RuntimeError("shapes cannot be multiplied")])
def test_what_is_wrong_otherwise_is_not_spent_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_device_is_sick_when_it_only_answers_with_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(asked: torch.device) -> None:
        if asked == SECOND_GPU:
            raise torch.AcceleratorError(ILLEGAL)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert [is_sick(each) for each in (CPU, torch.device("cuda", 0), SECOND_GPU)] == [False, False, True]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (AssertionError("Torch not compiled with CUDA enabled"), "(Torch not compiled with CUDA enabled)"),
        (
            RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update."),
            "(The NVIDIA driver on your system is too old (found version 11040))",
        ),
        (None, "(CUDA_VISIBLE_DEVICES shows it none)"),
    ],
)
def test_why_there_is_no_gpu_is_said(error: Exception | None, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        if error:
            raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(DeviceError) as raised:
        resolve_device("cuda:0")
    assert str(raised.value) == f"device 'cuda:0': PyTorch sees no CUDA device here {why}; accepted here: auto, cpu."
