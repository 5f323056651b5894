"""Optimizers of many members: PyTorch's, bit for bit on a CPU, elsewhere in calls that do not grow in number."""

import subprocess
import sys
from itertools import product
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_sweep.config import TrialConfig
from cifar_sweep.training import checkpoint, optim, train
from cifar_sweep.training.checkpoint import StateError
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.optim import Optimizer, build_optimizer
from cifar_sweep.training.rows import Stream
from cifar_sweep.training.train import Run
from tests.training.runs import assert_members_equal, trained

CPU, META = torch.device("cpu"), torch.device("meta")
OPTIMIZERS = tuple(optim.OPTIMIZERS)
FEW = ("sgd", "adam", "rmsprop")  # that differ from each other in what they keep
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS if name not in FEW]
# What differs between members, and is in no `Shape`.
KNOBS: list[dict[str, Any]] = [
    {"learning_rate": 1e-3, "weight_decay": 1e-2, "momentum": 0.9, "dropout": 0.2},
    {"learning_rate": 3e-2, "momentum": 0.5},
    {"learning_rate": 3e-4, "weight_decay": 1e-3, "dropout": 0.5},
]
# And what some optimizers have beside these, for the members after the first.
COEFFICIENTS: list[dict[str, Any]] = [
    {},
    {"beta1": 0.8, "beta2": 0.99, "eps": 1e-3, "alpha": 0.9, "rho": 0.95, "dampening": 0.3},
    {"beta1": 0.95, "beta2": 0.9, "alpha": 0.999, "rho": 0.5, "asgd_decay": 0.01, "asgd_power": 0.5},
]


def config(optimizer: str, *, seed: int = 0, **params: Any) -> TrialConfig:
    small = {"model": "lenet", "optimizer": optimizer, "batch_size": 50, "epochs": 3}
    return TrialConfig.from_params(small | params, classes=10, precision="fp32", data_seed=7, seed=seed)


def plain(config: TrialConfig, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    """PyTorch's own, as anyone would make it."""
    knobs, name = config.knobs, config.shape.optimizer
    settings: dict[str, Any] = {"lr": knobs.learning_rate, "weight_decay": knobs.weight_decay}
    if name in ("sgd", "nesterov", "rmsprop"):
        settings |= {"momentum": knobs.momentum}
    if knobs.eps and name not in ("sgd", "nesterov", "asgd"):
        settings |= {"eps": knobs.eps}
    if name in ("adam", "adamw", "nadam", "adamax"):
        settings |= {"betas": (knobs.beta1, knobs.beta2)}
    if name in ("adam", "adamw"):
        settings |= {"amsgrad": config.shape.amsgrad}
    if name in ("sgd", "adam", "adamw", "adagrad"):
        settings |= {"fused": True}
    match name:
        case "sgd":
            return torch.optim.SGD([parameter], **settings, dampening=knobs.dampening)
        case "nesterov":  # without momentum it is none, which PyTorch refuses
            return torch.optim.SGD([parameter], **settings, nesterov=knobs.momentum > 0, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop([parameter], **settings, alpha=knobs.alpha)
        case "asgd":
            coefficients = {"lambd": knobs.asgd_decay, "alpha": knobs.asgd_power}
            return torch.optim.ASGD([parameter], **settings, **coefficients)
        case "adadelta":
            return torch.optim.Adadelta([parameter], **settings, rho=knobs.rho)
    names = {"adam": "Adam", "adamw": "AdamW", "nadam": "NAdam", "adamax": "Adamax", "adagrad": "Adagrad"}
    made: torch.optim.Optimizer = getattr(torch.optim, names[name])([parameter], **settings)
    return made


@pytest.fixture(params=["at once", "one after the other"])
def exact(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways on a CPU, and whether the way is exact."""
    monkeypatch.setattr(optim, "at_once", lambda _: request.param == "at once")
    return request.param != "at once"


CASES = [*((name, {}) for name in OPTIMIZERS), ("adam", {"amsgrad": True}), ("adamw", {"amsgrad": True})]


@pytest.mark.parametrize("coefficients", [COEFFICIENTS, [COEFFICIENTS[1]] * 3, [{}] * 3], ids=["own", "other", "usual"])
@pytest.mark.parametrize(("optimizer", "params"), CASES)
def test_each_member_takes_the_steps_of_pytorch(
    optimizer: str, params: dict[str, Any], coefficients: list[dict[str, Any]], exact: bool
) -> None:
    """Float64, 100 steps of changing rates; one member begins anew after 30 of them, and one leaves after 60."""
    generator = torch.Generator().manual_seed(0)
    configs = [config(optimizer, **params, **knobs, **own) for knobs, own in zip(KNOBS, coefficients, strict=True)]
    weights = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    gradients = torch.zeros_like(weights)
    ours = build_optimizer(configs, weights, gradients)
    parameters = [torch.nn.Parameter(row.clone()) for row in weights]
    theirs = [plain(*each) for each in zip(configs, parameters, strict=True)]
    members = [0, 1, 2]
    for step in range(100):
        if step == 30:
            weights[1] = torch.randn(40, generator=generator, dtype=torch.float64)
            parameters[1] = torch.nn.Parameter(weights[1].clone())
            theirs[1] = plain(configs[1], parameters[1])
            ours.load_member_state(1, {})
        if step == 60:
            members = [2, 0]
            weights, gradients = weights[members], gradients[members]
            kept, ours = ours, build_optimizer([configs[k] for k in members], weights, gradients)
            for place, k in enumerate(members):
                ours.load_member_state(place, kept.member_state(k))
        rates = [configs[k].knobs.learning_rate / (1 + step // 10) for k in members]
        ours.set_rates(rates)
        gradients.copy_(torch.randn(gradients.shape, generator=generator, dtype=torch.float64))
        ours.step()
        for place, k in enumerate(members):
            parameters[k].grad = gradients[place].clone()
            theirs[k].param_groups[0]["lr"] = rates[place]
            theirs[k].step()
            assert_near(weights[place], parameters[k].detach(), exact=exact)
    for place, k in enumerate(members):
        stored = {name: value for name, value in theirs[k].state[parameters[k]].items() if value is not None}
        mine = ours.member_state(place)
        assert mine.keys() - {"step"} == stored.keys() - {"step"}  # with dampening we count steps
        for name, value in stored.items():
            assert_near(mine[name], value, exact=exact)


def assert_near(one: torch.Tensor, other: torch.Tensor, *, exact: bool) -> None:
    if exact:
        assert torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_was_stored_of_pytorchs_own_goes_on(optimizer: str, exact: bool) -> None:
    each = config(optimizer, **KNOBS[0])
    gradients = torch.randn(20, 1, 9, generator=torch.Generator().manual_seed(0))
    parameter = torch.nn.Parameter(torch.ones(9))
    theirs = plain(each, parameter)
    for gradient in gradients[:10]:
        parameter.grad = gradient[0]
        theirs.step()
    stored = {name: value.clone() for name, value in theirs.state[parameter].items()}
    weights, now = parameter.detach().clone()[None], torch.zeros(1, 9)
    ours = build_optimizer([each], weights, now)
    ours.check(0, stored)
    ours.load_member_state(0, stored)
    for gradient in gradients[10:]:
        parameter.grad = gradient[0]
        theirs.step()
        now.copy_(gradient)
        ours.step()
    torch.testing.assert_close(weights[0], parameter.detach(), rtol=0 if exact else 1e-5, atol=0 if exact else 1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_another_networks_state_is_refused(optimizer: str) -> None:
    ours: list[Optimizer] = [
        build_optimizer([config(optimizer, momentum=0.9)], torch.zeros(1, size), torch.zeros(1, size))
        for size in (4, 5)
    ]
    state = ours[0].member_state(0)
    for wrong in (state, {name: value for name, value in state.items() if name == "step"} or {"step": torch.ones(())}):
        with pytest.raises(StateError, match="optimizer"):
            ours[1].check(0, wrong)


def test_a_nan_of_one_member_stays_its_own(exact: bool) -> None:
    for optimizer in OPTIMIZERS:
        runs = []
        for bad in (0.0, float("nan")):
            weights, gradients = torch.ones(2, 6), torch.ones(2, 6)
            gradients[0] = bad
            ours = build_optimizer([config(optimizer, weight_decay=0.1)] * 2, weights, gradients)
            for _ in range(3):
                ours.step()
            runs.append(weights[1])
        assert torch.equal(*runs)
        assert runs[0].isfinite().all()


# How many calls a step takes


class Calls(TorchDispatchMode):
    """Counts what PyTorch is asked to compute."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def calls(members: int, **params: Any) -> int:
    """Of the second training step of a group, on a device that computes nothing and holds nothing of the CPU.

    Nothing may come from the host then: a captured step would be left with what it was.
    """
    configs = [config(seed=at, **params, **KNOBS[at % 3], **COEFFICIENTS[at % 3]) for at in range(members)]
    run = Run(configs, None, device=META)
    images, labels = torch.empty(8, 3, 32, 32, device=META), torch.empty(8, dtype=torch.long, device=META)
    run.start_epoch(1)
    run.step(images, labels)
    with Calls() as counted, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tensor", None)
        run.step(images, labels)
    return counted.count


LARGE = [("vgg11", optimizer) for optimizer in FEW]


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        *(("lenet", optimizer) for optimizer in OPTIMIZERS),
        *product(("convnet", "cnn1", "cnn3"), FEW),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in LARGE),
    ],
)
def test_the_calls_of_a_step_do_not_grow_with_the_members(model: str, optimizer: str) -> None:
    few, many = (calls(members, model=model, optimizer=optimizer, batch_norm=True) for members in (3, 5))
    assert few == many


def test_nor_do_those_of_penalties_losses_and_means() -> None:
    own = {"l1": 1e-4, "gradient_clip": 1.0, "ema_decay": 0.9, "label_smoothing": 0.1, "loss": "focal"}
    assert calls(3, optimizer="adam", batch_norm=True) < calls(3, optimizer="adam", batch_norm=True, **own)
    assert calls(3, optimizer="adam", **own) == calls(5, optimizer="adam", **own)


def test_the_count_of_calls_can_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Optimizer, "step", lambda ours: [row.mul_(0.9) for row in ours.weights])
    assert calls(5, optimizer="adam") > calls(3, optimizer="adam")


# Members that draw and step at once


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "at_once", lambda _: True)
    monkeypatch.setattr(train, "at_once", lambda _: True)
    monkeypatch.setenv("CIFAR_SWEEP_KERNELS", "torch")


@pytest.mark.parametrize("optimizer", [*FEW, *OTHERS])
def test_members_at_once_equal_their_solo_runs(optimizer: str, as_on_a_gpu: None, small_data: ImageData) -> None:
    pairs = zip(KNOBS, COEFFICIENTS, strict=True)
    configs = [config(optimizer, train_images=100, seed=at, **knobs, **own) for at, (knobs, own) in enumerate(pairs)]
    together = trained(configs, small_data, epochs=1)
    for k, each in enumerate(configs):
        assert_members_equal(together, k, trained([each], small_data, epochs=1), 0)
    together.keep([2, 0])
    together.epoch()
    assert_members_equal(together, 0, trained([configs[2]], small_data, epochs=2), 0)
    again = trained(configs[:1], small_data, epochs=0)
    again.restore(0, checkpoint.unpack(checkpoint.pack(trained(configs[:1], small_data, epochs=1).state(0))))
    again.epoch()
    assert_members_equal(together, 1, again, 0)


def test_the_numbers_are_those_of_splitmix64() -> None:
    """As its authors' program gives them for the seed 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    stream = Stream(CPU)
    stream.seed([5, 1234567])
    drawn = torch.cat([stream.draw(2), stream.draw(3)], dim=1)
    assert drawn[1].tolist() == [number >> 40 for number in known]
    assert drawn[0].tolist() != drawn[1].tolist()


def test_masks_of_a_stream_drop_at_each_members_rate() -> None:
    stream = Stream(CPU)
    stream.seed([1, 2, 3])
    masks = stream.masks(torch.tensor([[0.0], [0.3], [0.5]]), [100, 400], like=torch.empty(0))
    assert masks.shape == (3, 100, 400)
    for mask, rate in zip(masks, (0.0, 0.3, 0.5), strict=True):
        assert (mask == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
        assert mask.mean().item() == pytest.approx(1, abs=0.01)
    assert not torch.equal(masks[1], stream.masks(0.3, [100, 400], like=masks)[1])


@pytest.mark.slow
def test_a_step_does_not_load_pytorchs_compiler() -> None:
    """It takes longer than all else that a worker does before its first trial."""
    script = """
import sys, torch
from cifar_sweep.config import TrialConfig
from cifar_sweep.training.train import Run

for optimizer in sys.argv[1:]:
    params = {"model": "lenet", "batch_size": 8, "optimizer": optimizer}
    config = TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=0, seed=0)
    run = Run([config], None, device=torch.device("cpu"))
    run.start_epoch(1)
    run.step(torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.long))
    if "torch._dynamo" in sys.modules:
        sys.exit(optimizer)
"""
    assert subprocess.run([sys.executable, "-c", script, *OPTIMIZERS]).returncode == 0
