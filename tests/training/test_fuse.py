"""The invariants of fused training: in float64 where sums come in another order, else bit for bit."""

import subprocess
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from cifar_sweep.config import TrialConfig
from cifar_sweep.parameters import MODEL_NAMES
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.checkpoint import StateError
from cifar_sweep.training.fuse import Fused, FusedConv2d
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build
from cifar_sweep.training.rows import Masks
from cifar_sweep.training.train import Run
from tests.training.runs import assert_fused_is_plain

CPU = torch.device("cpu")
# What differs between members, and nothing that is in `Shape`.
KNOBS: list[dict[str, Any]] = [
    {"learning_rate": 1e-3, "dropout": 0.2, "weight_decay": 1e-3, "gamma": 0.5, "step_size": 1},
    {"learning_rate": 3e-3, "dropout": 0.0},
    {"learning_rate": 3e-4, "dropout": 0.5, "gamma": 0.1, "step_size": 1, "momentum": 0.5},
]
OPTIMIZERS = ("sgd", "adam", "rmsprop")


def config(model: str = "convnet", *, seed: int = 0, precision: str = "fp32", **params: Any) -> TrialConfig:
    small = {"model": model, "batch_size": 50, "epochs": 3, "train_images": 100, "activation": "tanh"}
    return TrialConfig.from_params(small | params, classes=10, precision=precision, data_seed=7, seed=seed)


def group(model: str, **params: Any) -> list[TrialConfig]:
    return [config(model, seed=seed, **(knobs | params)) for seed, knobs in enumerate(KNOBS)]


def in_double(configs: list[TrialConfig], data: ImageData) -> Run:
    """A run whose arithmetic is float64 throughout, so that the order of a sum shows in the last digits alone."""
    run = Run(configs, data, device=CPU)
    shape = run.shape
    run.batches = Batches(
        data, device=CPU, train_images=shape.train_images, normalize=shape.normalize, dtype=torch.float64
    )
    run.network.double()
    run.prepare_optimizer()
    return run


def assert_close(one: Run, k: int, other: Run, j: int) -> None:
    # A bias before batch norm has no gradient but for rounding, which RMSprop divides by its own size.
    absolute = 1e-6 if one.shape.optimizer == "rmsprop" and one.shape.batch_norm else 1e-9
    mine, theirs = one.state(k), other.state(j)
    assert mine.keys() == theirs.keys()
    del mine["history"], theirs["history"]
    for name, value in mine.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=1e-7, atol=absolute, msg=lambda text, name=name: name + text
        )
    for result, expected in zip(one.members[k].history, other.members[j].history, strict=True):
        assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
        assert result.validation_accuracy == expected.validation_accuracy
        assert result.learning_rate == expected.learning_rate


# The large ones have no layer that the small ones have not, and take long in float64.
FEW: dict[str, Any] = {"train_images": 12, "batch_size": 6}
SOLO = [*product(["lenet"], [True], OPTIMIZERS), ("lenet", False, "adam"), ("convnet", True, "adam")]
SOLO_SLOW = [
    *product(["lenet"], [False], ["sgd", "rmsprop"]),
    *product(["convnet"], [True], ["sgd", "rmsprop"]),
    *product(["convnet"], [False], OPTIMIZERS),
    ("cnn3", True, "adam"),
    ("vgg11", True, "adam"),
]


def slow(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("model", "batch_norm", "optimizer"), SOLO + slow(SOLO_SLOW))
def test_members_equal_their_solo_runs(model: str, batch_norm: bool, optimizer: str, small_data: ImageData) -> None:
    few, epochs = (FEW, 1) if model == "vgg11" else ({}, 2)
    configs = group(model, batch_norm=batch_norm, optimizer=optimizer, **few)
    together = in_double(configs, small_data)
    for _ in range(epochs):
        together.epoch()
    for k, each in enumerate(configs):
        alone = in_double([each], small_data)
        for _ in range(epochs):
            alone.epoch()
        assert_close(together, k, alone, 0)


@pytest.mark.parametrize(
    ("model", "batch_norm"),
    [
        *product(["lenet", "convnet", "cnn3"], [False, True]),
        *slow(product(MODEL_NAMES[3:], [True])),
        *slow([("vgg11", False)]),
    ],
)
def test_outputs_and_gradients_equal_the_plain_networks(model: str, batch_norm: bool) -> None:
    shape = config(model, batch_norm=batch_norm, hidden_units=12, init="xavier").shape
    assert_fused_is_plain(shape)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_keep_equals_never_having_had_the_others(optimizer: str, small_data: ImageData) -> None:
    configs = group("convnet", batch_norm=True, optimizer=optimizer)
    together = in_double(configs, small_data)
    together.epoch()
    together.keep([2, 0])
    assert len(together.epoch()) == 2
    together.keep([1])
    together.epoch()
    alone = in_double([configs[0]], small_data)
    for _ in range(3):
        alone.epoch()
    assert_close(together, 0, alone, 0)


@pytest.mark.parametrize(
    ("model", "precision"),
    [*product(["lenet", "convnet"], ["fp32", "bf16"]), *slow([("cnn3", "fp32"), ("cnn3", "bf16"), ("vgg11", "bf16")])],
)
def test_a_member_that_is_nan_leaves_its_siblings_as_they_were(
    model: str, precision: str, small_data: ImageData
) -> None:
    few, epochs = (FEW, 1) if model == "vgg11" else ({}, 2)
    configs = group(model, batch_norm=model != "lenet", precision=precision, **few)
    calm, broken = (Run(configs, small_data, device=CPU) for _ in range(2))
    for value in broken.network.member_state(1).values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    for run in (calm, broken):
        for _ in range(epochs):
            run.epoch()
    assert broken.members[1].history[-1].diverged
    assert not calm.members[1].history[-1].diverged
    for k in (0, 2):
        mine, theirs = calm.state(k), broken.state(k)
        del mine["history"], theirs["history"]
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_member_splits_off_into_the_plain_network(model: str) -> None:
    shape = config(model, hidden_units=12).shape
    networks = [build(shape, seed=seed) for seed in range(3)]
    fused = Fused(networks, [Masks(0.0, torch.Generator())] * 3)
    fused.keep([2, 1])
    for k, network in enumerate((networks[2], networks[1])):
        plain = build(shape, seed=9)
        plain.load_state_dict(fused.member_state(k))
        assert type(plain) is nn.Sequential
        assert plain.state_dict().keys() == network.state_dict().keys()
        for name, value in network.state_dict().items():
            assert torch.equal(plain.state_dict()[name], value)


def test_the_same_group_twice_is_the_same_to_the_last_bit(small_data: ImageData) -> None:
    states = []
    for _ in range(2):
        run = Run(group("cnn3", batch_norm=True, precision="bf16"), small_data, device=CPU)
        run.epoch()
        torch.rand(3)  # no global random state matters
        states.append({(k, name): value for k in range(3) for name, value in run.state(k).items()})
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]) or name[1] == "history", name


def test_a_restored_group_goes_on_bit_for_bit(small_data: ImageData) -> None:
    configs = group("convnet", optimizer="sgd")
    unbroken, first, second = (Run(configs, small_data, device=CPU) for _ in range(3))
    for run in (unbroken, first):
        run.epoch()
    for k in range(3):
        second.restore(k, {name: value.clone() for name, value in first.state(k).items()})
    for run in (unbroken, second):
        run.epoch()
    for k in range(3):
        for name, value in unbroken.state(k).items():
            assert torch.equal(value, second.state(k)[name]) or name == "history", name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_copies_of_a_member_stand_in_for_its_siblings(precision: str, small_data: ImageData) -> None:
    """What the others are changes no bit: so a trial of a group is trained again among copies of itself."""
    together = Run(group("convnet", precision=precision), small_data, device=CPU)
    copies = Run([together.members[2].config] * 3, small_data, device=CPU)
    for run in (together, copies):
        run.epoch()
        run.epoch()
    assert torch.equal(together.network.weights[2], copies.network.weights[2])


MEMORY = """
import sys, torch
from cifar_sweep.config import TrialConfig
from cifar_sweep.training.device import prepare_process
from cifar_sweep.training.train import Run
prepare_process(torch.device("cpu"), threads=1)
def peak_kilobytes():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])
def train(model, batch, members):
    params = {"model": model, "batch_size": batch, "batch_norm": True}
    each = TrialConfig.from_params(params, classes=10, precision="bf16", data_seed=0, seed=0)
    run = Run([each] * members, None, device=torch.device("cpu"))
    run.start_epoch(1)
    images = torch.rand(batch, 3, 32, 32).bfloat16().contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        run.step(images, torch.zeros(batch, dtype=torch.long))
train("lenet", 16, 1)
before = peak_kilobytes()
train("convnet", 256, int(sys.argv[1]))
print(peak_kilobytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.slow
def test_members_take_the_memory_of_as_many_trials() -> None:
    one, eight = (
        int(subprocess.run([sys.executable, "-c", MEMORY, members], capture_output=True, text=True, check=True).stdout)
        for members in ("1", "8")
    )
    assert one > 10_000, "kilobytes"
    assert eight < 1.2 * 8 * one


def test_the_time_of_a_group_is_shared_among_its_members(small_data: ImageData) -> None:
    import time

    run = Run(group("lenet"), small_data, device=CPU)
    started = time.perf_counter()
    results = run.epoch()
    wall = time.perf_counter() - started
    assert 0 < sum(result.seconds for result in results) <= wall


def test_a_state_of_another_network_is_refused() -> None:
    fused = Fused([build(config("lenet").shape, seed=0)], [Masks(0.0, torch.Generator())])
    with pytest.raises(StateError, match="not one of this network"):
        fused.load_member_state(0, build(config("convnet").shape, seed=0).state_dict())


def test_padding_by_reflection_keeps_the_order_in_which_convolutions_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's gives the other one."""
    layers = [nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect") for _ in range(2)]
    pad, orders = functional.pad, []
    monkeypatch.setattr(functional, "pad", lambda *args, **options: pad(*args, **options).contiguous())
    convolve = functional.conv2d
    monkeypatch.setattr(
        functional,
        "conv2d",
        lambda x, *rest, **options: (
            orders.append(x.is_contiguous(memory_format=torch.channels_last)),
            convolve(x, *rest, **options),
        )[1],
    )
    images = torch.rand(5, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    FusedConv2d(layers, [])(images, weight=torch.cat([layer.weight for layer in layers]))
    assert orders == [True]
