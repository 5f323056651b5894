"""Steps that are captured once and replayed: the same numbers, and no step too many. What records them is no GPU."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cifar_sweep.config import TrialConfig
from cifar_sweep.training import checkpoint, graph, optim, train
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import Run

CPU = torch.device("cpu")
OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.last = nn.Linear(3072, classes)

    def forward(self, x):
        return self.last(x.flatten(1))

def build(shape):
    return Net(shape.classes)
"""


class Recording(TorchDispatchMode):
    """As a CUDA graph does it: the calls of a step on the memory that they had, and nothing of its Python."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Gpu:
    """What the fake GPU was asked for."""

    def __init__(self) -> None:
        self.captures = self.replays = self.aside = 0
        self.fails: Exception | None = None

    def step_aside(self, step: graph.Step, images: Tensor, labels: Tensor) -> None:
        self.aside += 1
        step(images, labels)

    def capture(self, step: graph.Step, images: Tensor, labels: Tensor) -> Callable[[], None]:
        if self.fails:
            raise self.fails
        self.captures += 1
        recording, fresh = Recording(), True
        with recording:
            step(images, labels)

        def launch() -> None:
            nonlocal fresh
            self.replays += 1
            if not fresh:  # the first batch is computed already, where a GPU only records
                recording.replay()
            fresh = False

        return launch


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    fake = Gpu()
    monkeypatch.setattr(optim, "at_once", lambda _: True)
    monkeypatch.setattr(train, "at_once", lambda _: True)
    monkeypatch.setattr(train, "is_replayed", lambda _: True)
    monkeypatch.setattr(graph, "aside", fake.step_aside)
    monkeypatch.setattr(graph, "capture", fake.capture)
    monkeypatch.setenv("CIFAR_SWEEP_KERNELS", "torch")
    return fake


def configs(count: int = 3, **params: Any) -> list[TrialConfig]:
    small = {"model": "lenet", "batch_size": 16, "epochs": 5, "train_images": 100, "dropout": 0.3}
    small |= {"gamma": 0.5, "step_size": 1}  # each epoch has a learning rate of its own
    return [
        TrialConfig.from_params(
            small | {"learning_rate": 1e-3 * (1 + seed)} | params,
            classes=10, precision="fp32", data_seed=7, seed=seed,
        )
        for seed in range(count)
    ]  # fmt: skip


def through(chosen: list[TrialConfig], data: ImageData) -> Run:
    """Two epochs of all, one of two of them, and one more after a checkpoint."""
    run = Run(chosen, data, device=CPU)
    run.epoch()
    run.epoch()
    run.keep([2, 0])
    run.epoch()
    again = Run([member.config for member in run.members], data, device=CPU)
    for k in range(2):
        again.restore(k, checkpoint.unpack(checkpoint.pack(run.state(k))))
    again.epoch()
    return again


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("network", [{"model": "lenet"}, {"model": "convnet", "batch_norm": True}], ids=str)
def test_replayed_steps_are_the_steps(
    network: dict[str, Any], optimizer: str, gpu: Gpu, small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = configs(**network, optimizer=optimizer, weight_decay=1e-3)
    replayed = through(chosen, small_data)
    # Six whole batches an epoch and one of four images; a graph for each group.
    assert (gpu.captures, gpu.aside) == (3, 9)
    assert gpu.replays == 12 - 3 + 2 * (6 - 3)
    monkeypatch.setattr(train, "is_replayed", lambda _: False)
    plain = through(chosen, small_data)
    for k in range(2):
        mine, theirs = replayed.state(k), plain.state(k)
        for name in mine.keys() - {"history"}:
            assert torch.equal(mine[name], theirs[name]), name
    assert gpu.captures == 3


def test_a_step_that_cannot_be_captured_is_taken_as_it_is(
    gpu: Gpu, small_data: ImageData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.fails = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")
    slower = through(configs(), small_data)
    assert caplog.text.count("kernel by kernel") == 3
    monkeypatch.setattr(train, "is_replayed", lambda _: False)
    assert torch.equal(slower.network.weights, through(configs(), small_data).network.weights)


def test_spent_memory_and_a_sick_device_are_not_hidden(
    gpu: Gpu, small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.fails = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        through(configs(), small_data)
    gpu.fails = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(graph, "is_sick", lambda _: True)
    with pytest.raises(torch.AcceleratorError):
        through(configs(), small_data)


def test_a_run_that_is_dropped_is_freed_at_once(gpu: Gpu, small_data: ImageData) -> None:
    """Else the next group would find the memory of this one taken."""
    gc.disable()
    try:
        run = Run(configs(), small_data, device=CPU)
        run.epoch()
        dropped = weakref.ref(run)
        del run
        assert dropped() is None
    finally:
        gc.enable()


def test_code_of_a_users_own_is_not_replayed(
    gpu: Gpu, small_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_of_graph.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    Run(configs(1, model="own_of_graph:build"), small_data, device=CPU).epoch()
    assert gpu.aside == 0
