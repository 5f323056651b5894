"""Everything that a trial can be trained by: fused equals solo, resumed bit for bit, and a NaN stays its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from cifar_sweep.config import TrialConfig
from cifar_sweep.curve import METRICS
from cifar_sweep.training import checkpoint, optim, train
from cifar_sweep.training.apart import Apart
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import Run
from tests.training.runs import assert_members_equal, trained

CPU = torch.device("cpu")
# What a group shares, and what its three members have each for itself.
SETTINGS: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "optimizer": ({"optimizer": "nadam"}, ({"beta1": 0.8}, {"beta2": 0.99}, {"eps": 1e-4})),
    "schedule": (
        {},
        ({"schedule": "cosine"}, {"schedule": "plateau", "plateau_patience": 0}, {"schedule": "onecycle"}),
    ),
    "smoothing": ({}, ({"label_smoothing": 0.1}, {}, {"label_smoothing": 0.3})),
    "focal": ({"loss": "focal", "class_weights": "balanced"}, ({"focal_gamma": 0.5}, {}, {"focal_gamma": 0.0})),
    "mse": ({"loss": "mse"}, ({}, {"label_smoothing": 0.2}, {})),
    "bce": ({"loss": "bce", "class_weights": "1,2,3,4,5,1,2,3,4,5"}, ({}, {"label_smoothing": 0.2}, {})),
    "f1": ({"loss": "f1", "class_weights": "balanced"}, ({}, {"label_smoothing": 0.2}, {})),
    "smaller": (
        {"input_size": 20, "init": "kaiming", "activation": "softplus"},
        ({"repeat": 1}, {"l1": 1e-3}, {"dropout": 0.3}),
    ),
    "colours": (
        {"augmentation": "randaugment", "randaugment_operations": 3, "randaugment_magnitude": 20, "vertical_flip": 0.4,
         "brightness": 0.3, "contrast": 0.2, "saturation": 0.4},
        ({}, {"l1": 1e-3}, {"learning_rate": 1e-2}),
    ),
    "penalties": ({}, ({"l1": 1e-3}, {"gradient_clip": 0.5}, {"gradient_clip": 1e3})),
    "images": (
        {"augmentation": "randaugment", "rotation": 20.0, "color": 0.2, "cutout": 6, "normalize": True},
        ({}, {"l1": 1e-3}, {"learning_rate": 1e-2}),
    ),
    "mixing": ({"mixup": 0.5, "cutmix": 1.0, "flip": 0.3}, ({}, {"label_smoothing": 0.1}, {"learning_rate": 1e-2})),
    "parts": ({"batch_norm": True}, ({"head_rate": 1e-2, "bias_rate": 3.0}, {}, {"freeze_epochs": 1})),
    "averaged": ({"optimizer": "asgd"}, ({"asgd_decay": 0.1}, {"asgd_power": 0.5}, {})),
    "ema": (
        {"batch_norm": True, "batch_norm_momentum": 0.3, "optimizer": "sgd", "momentum": 0.9},
        ({"ema_decay": 0.8}, {}, {"ema_decay": 0.99}),
    ),
}  # fmt: skip


def group(name: str) -> list[TrialConfig]:
    shared, own = SETTINGS[name]
    small = {"model": "lenet", "batch_size": 16, "epochs": 3, "train_images": 64, "validation_images": 40}
    return [
        TrialConfig.from_params(
            small | {"activation": "tanh", "learning_rate": 1e-3 * 3**seed} | shared | each,
            classes=10, precision="fp32", data_seed=7, seed=seed,
        )
        for seed, each in enumerate(own)
    ]  # fmt: skip


@pytest.fixture(params=["rows", "at once"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of an optimizer, on a CPU."""
    if request.param == "at once":
        monkeypatch.setattr(optim, "at_once", lambda _: True)
        monkeypatch.setattr(train, "at_once", lambda _: True)


@pytest.mark.parametrize("name", SETTINGS)
def test_members_equal_their_solo_runs(name: str, way: None, small_data: ImageData) -> None:
    configs = group(name)
    together = trained(configs, small_data, epochs=1)
    together.keep([2, 0])
    together.epoch()
    for k, each in enumerate((configs[2], configs[0])):
        alone = trained([each], small_data)
        # A bias in front of batch norm has no gradient but rounding, which Adam makes a step of.
        assert_members_equal(together, k, alone, 0, atol=1e-8 if name == "parts" else 1e-9)
        assert together.members[k].history[-1].learning_rate == alone.members[0].history[-1].learning_rate
        for name_, value in together.member(k).state_dict().items():
            torch.testing.assert_close(value, alone.member(0).state_dict()[name_])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_group_goes_on_bit_for_bit(name: str, way: None, small_data: ImageData) -> None:
    unbroken, first, second = (Run(group(name), small_data, device=CPU) for _ in range(3))
    for run in (unbroken, first):
        run.epoch()
        run.epoch()
    for k in range(3):
        second.restore(k, checkpoint.unpack(checkpoint.pack(first.state(k))))
    for run in (unbroken, second):
        run.epoch()
    for k in range(3):
        mine, theirs = unbroken.state(k), second.state(k)
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"history"}:
            assert torch.equal(mine[key], theirs[key]), key


@pytest.mark.parametrize("name", SETTINGS)
def test_a_member_that_is_nan_leaves_its_siblings_as_they_were(name: str, way: None, small_data: ImageData) -> None:
    calm, broken = (Run(group(name), small_data, device=CPU) for _ in range(2))
    broken.network.weights[1] = float("nan")
    for run in (calm, broken):
        run.epoch()
    assert broken.members[1].history[-1].diverged
    for k in (0, 2):
        mine, theirs = calm.state(k), broken.state(k)
        for key in mine.keys() - {"history"}:
            assert torch.equal(mine[key], theirs[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["loss", "f1", "top5"])
def test_by_any_metric_and_with_patience_a_member_that_is_nan_disturbs_no_other(
    metric: str, small_data: ImageData
) -> None:
    plain = {"model": "lenet", "batch_size": 32, "epochs": 3, "metric": metric, "patience": 1}
    configs = [
        TrialConfig.from_params(plain | rate, classes=10, precision="fp32", data_seed=7, seed=seed)
        for seed, rate in enumerate([{}, {"learning_rate": 1e-2}, {"learning_rate": 1e-12}])
    ]
    calm, broken = (Run(configs, small_data, device=CPU) for _ in range(2))
    for epoch in range(3):
        if epoch == 1:
            broken.network.weights[1] = float("nan")
        for run in (calm, broken):
            run.epoch()
    assert [result.diverged for result in broken.members[1].history] == [False, True, True]
    best = broken.members[1].best_weights
    assert best
    assert all(bool(value.isfinite().all()) for value in best.values()), "those of the epoch before"
    for k in (0, 2):
        mine, theirs = ([replace(each, seconds=0) for each in run.members[k].history] for run in (calm, broken))
        assert mine == theirs
        assert getattr(mine[-1], METRICS[metric].field) is not None
        assert calm.members[k].is_over == broken.members[k].is_over
        assert torch.equal(calm.network.weights[k], broken.network.weights[k])
        assert torch.equal(calm.members[k].correct, broken.members[k].correct)


def test_means_of_networks_one_after_the_other_are_those_of_fused_ones(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, and batch norm's statistics in each network's own buffers."""
    fused = trained(group("ema"), small_data)
    monkeypatch.setattr(train, "can_fuse", lambda _: False)
    apart = trained(group("ema"), small_data)
    assert isinstance(apart.network, Apart)
    apart.keep([2, 0])
    for k, j in ((0, 2), (1, 0)):
        assert_members_equal(apart, k, fused, j)
        assert any(name.startswith("average.1") for name in apart.state(k))
