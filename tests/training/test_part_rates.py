"""Parts of a network with learning rates of their own, against parameter groups of PyTorch's."""

from typing import Any

import pytest
import torch

from cifar_sweep.config import TrialConfig
from cifar_sweep.training import optim
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build
from cifar_sweep.training.train import Run

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"model": "lenet", "batch_size": 20, "epochs": 3, "train_images": 60, "learning_rate": 1e-2}


def config(**params: Any) -> TrialConfig:
    return TrialConfig.from_params(SMALL | params, classes=10, precision="fp32", data_seed=0, seed=3)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_a_part_has_the_rate_of_a_parameter_group(
    optimizer: str, at_once: bool, small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "at_once", lambda _: at_once)
    run = Run([config(optimizer=optimizer, head_rate=5e-2, bias_rate=0.5)], small_data, device=CPU)
    network = run.network.networks[0] if hasattr(run.network, "networks") else build(run.shape, seed=0)
    network.load_state_dict(run.network.member_state(0))
    last = [name for name, _ in network.named_parameters()][-1].rpartition(".")[0]
    groups = [
        {"params": [each], "lr": (5e-2 if name.startswith(f"{last}.") else 1e-2) * (0.5 if "bias" in name else 1)}
        for name, each in network.named_parameters()
    ]
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[optimizer]
    theirs = make(groups)  # type: ignore[operator]
    run.start_epoch(1)
    for images, labels in run.batches.train(20, seed=0, epoch=1):
        run.step(images, labels)
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        theirs.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(
            run.network.member_state(0)[name], value, rtol=1e-4, atol=1e-3 if optimizer == "rmsprop" else 2e-6
        )


def test_what_is_held_still_is_the_same_until_then(small_data: ImageData) -> None:
    run = Run([config(freeze_epochs=1), config()], small_data, device=CPU)
    before = {name: value.clone() for name, value in run.network.member_state(0).items()}
    last = run.network.parts[-1].name.rpartition(".")[0]
    run.epoch()
    moved = {name for name, value in run.network.member_state(0).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(f"{last}.")}
    run.epoch()
    assert all(not torch.equal(value, before[name]) for name, value in run.network.member_state(0).items())
