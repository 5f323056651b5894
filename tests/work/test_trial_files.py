"""What a checkpoint can be, and what says nothing against it."""

import pytest
import safetensors.torch
import torch

from cifar_sweep.artifacts import DamagedArtifactError, MissingArtifactError
from cifar_sweep.config import TrialConfig
from cifar_sweep.training import checkpoint
from cifar_sweep.training.checkpoint import StateError
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import Run
from cifar_sweep.work.trial_files import restore


def run_of(data: ImageData, model: str = "lenet") -> Run:
    params = {"model": model, "epochs": 2, "train_images": 100}
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0)
    return Run([config], data, device=torch.device("cpu"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("spent"),
    ],
)
@pytest.mark.parametrize("where", ["reading", "restoring"])
def test_spent_memory_is_not_taken_for_a_broken_checkpoint(
    error: Exception, where: str, small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(small_data)
    content = checkpoint.pack(run.state(0))

    def spent(*_: object) -> None:
        raise error

    if where == "reading":
        monkeypatch.setattr(safetensors.torch, "load", spent)
    else:
        monkeypatch.setattr(run.network, "load_member_state", spent)
    with pytest.raises(type(error), match=str(error)[-10:]):
        restore(run, 0, lambda: content)


@pytest.mark.parametrize(
    "content", [b"", b"no tensors", MissingArtifactError(), FileNotFoundError(), DamagedArtifactError("another sum")]
)
def test_what_is_no_checkpoint_cannot_be_restored(content: bytes | Exception, small_data: ImageData) -> None:
    def read() -> bytes:
        if isinstance(content, Exception):
            raise content
        return content

    with pytest.raises(StateError):
        restore(run_of(small_data), 0, read)


def test_a_checkpoint_of_another_network_cannot_be_restored(small_data: ImageData) -> None:
    content = checkpoint.pack(run_of(small_data, "convnet").state(0))
    with pytest.raises(StateError, match="network"):
        restore(run_of(small_data), 0, lambda: content)
