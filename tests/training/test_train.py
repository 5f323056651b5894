"""The invariants of the training loop. Exact where the arithmetic is exact; float32 on the CPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.curve import EpochResult
from cifar_sweep.errors import UsageError
from cifar_sweep.training import checkpoint, train
from cifar_sweep.training.fuse import Fused
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.images.split import split
from cifar_sweep.training.models import build
from cifar_sweep.training.rows import Masks
from cifar_sweep.training.train import EpochInterruptedError, Member, Run

CPU = torch.device("cpu")


def config(**params: Any) -> TrialConfig:
    seed = params.pop("seed", 1)
    small = {"model": "lenet", "batch_size": 32, "epochs": 3, "learning_rate": 1e-3}
    return TrialConfig.from_params(small | params, classes=10, precision="fp32", data_seed=7, seed=seed)


def trained(*configs: TrialConfig, data: ImageData, epochs: int = 2) -> Run:
    run = Run(configs, data, device=CPU)
    for _ in range(epochs):
        run.epoch()
    return run


def without_time(results: list[EpochResult]) -> list[EpochResult]:
    return [replace(result, seconds=0.0) for result in results]


def assert_equal(one: Run, k: int, other: Run, j: int) -> None:
    assert without_time(one.members[k].history) == without_time(other.members[j].history)
    mine, theirs = one.state(k), other.state(j)
    del mine["history"], theirs["history"]
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


VARIANTS = [
    {},
    pytest.param(
        {"model": "cnn3", "batch_norm": True, "dropout": 0.3, "activation": "leaky_relu", "weight_decay": 1e-3},
        marks=pytest.mark.slow,
    ),
    {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.01, "normalize": True},
    {"optimizer": "rmsprop", "model": "convnet", "step_size": 1, "gamma": 0.5},
    pytest.param({"precision": "bf16", "dropout": 0.2}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("params", VARIANTS)
def test_same_seed_same_numbers(params: dict[str, Any], small_data: ImageData) -> None:
    one = trained(config(**params), data=small_data)
    torch.rand(5)  # no global random state matters
    assert_equal(one, 0, trained(config(**params), data=small_data), 0)


def test_another_seed_gives_other_numbers(small_data: ImageData) -> None:
    one, other = (trained(config(seed=seed), data=small_data, epochs=1) for seed in (1, 2))
    assert one.members[0].history[0].train_loss != other.members[0].history[0].train_loss


@pytest.mark.parametrize("params", VARIANTS)
def test_a_restored_run_goes_on_bit_for_bit(params: dict[str, Any], small_data: ImageData) -> None:
    unbroken = trained(config(**params), data=small_data, epochs=3)
    first = trained(config(**params), data=small_data, epochs=2)
    second = Run([config(**params)], small_data, device=CPU)
    second.restore(0, checkpoint.unpack(checkpoint.pack(first.state(0))))
    assert second.epochs_done == 2
    second.epoch()
    assert_equal(second, 0, unbroken, 0)


def test_a_restored_state_of_another_network_is_refused(small_data: ImageData) -> None:
    state = trained(config(), data=small_data, epochs=1).state(0)
    run = Run([config(model="convnet")], small_data, device=CPU)
    before = {name: value.clone() for name, value in run.state(0).items()}
    with pytest.raises(checkpoint.StateError, match="network"):
        run.restore(0, state)
    own = trained(config(model="convnet"), data=small_data, epochs=1).state(0)
    for broken in ("history", "generator"):
        with pytest.raises(checkpoint.StateError):
            run.restore(0, own | {broken: own[broken][:9]})
        with pytest.raises(checkpoint.StateError, match=broken):
            run.restore(0, {name: value for name, value in own.items() if name != broken})
    assert all(torch.equal(value, before[name]) for name, value in run.state(0).items())


def test_a_group_needs_one_shape(small_data: ImageData) -> None:
    with pytest.raises(ValueError, match="one shape"):
        Run([config(), config(batch_size=16)], small_data, device=CPU)


@pytest.mark.slow
def test_training_learns(small_data: ImageData) -> None:
    history = trained(config(model="convnet", epochs=12, batch_size=16), data=small_data, epochs=12).members[0].history
    assert history[-1].train_loss < 0.7 * history[0].train_loss
    assert history[-1].train_accuracy > history[0].train_accuracy
    assert [result.epoch for result in history] == list(range(1, 13))
    assert all(result.seconds > 0 for result in history)


def test_the_first_steps_equal_plain_torch(small_data: ImageData) -> None:
    """Against a loop as anyone would write it: float32, standard memory layout, unfused optimizer."""
    run = Run([config(optimizer="adam", weight_decay=1e-2)], small_data, device=CPU)
    reference = build(run.shape, seed=0)
    reference.load_state_dict({k: v.clone().contiguous() for k, v in run.network.member_state(0).items()})
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3, weight_decay=1e-2, fused=False, foreach=False)
    losses = []
    for images, labels in run.batches.train(32, seed=run.shape.data_seed, epoch=1):
        loss = torch.nn.functional.cross_entropy(reference(images.contiguous()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() * len(labels))
    [result] = run.epoch()
    assert result.train_loss == pytest.approx(sum(losses) / 400, rel=1e-4)
    for name, value in run.network.member_state(0).items():
        torch.testing.assert_close(value.contiguous(), reference.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_step_lr(small_data: ImageData) -> None:
    """The learning rate of each epoch is that of torch's StepLR."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.3)
    run = Run([config(optimizer="sgd", learning_rate=0.1, step_size=2, gamma=0.3)], small_data, device=CPU)
    for _ in range(5):
        [result] = run.epoch()
        assert result.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"])
        assert run.optimizer.rates == [result.learning_rate]
        optimizer.step()
        schedule.step()


def test_the_weights_of_the_best_epoch_are_kept_of_equals_the_first() -> None:
    member = Member(config(), device=CPU)
    for epoch, accuracy in enumerate([0.2, 0.5, 0.4, 0.5], start=1):
        figures = dict.fromkeys(["train_loss", "train_accuracy", "validation_loss", "learning_rate", "seconds"], 1.0)
        result = EpochResult(epoch, validation_accuracy=accuracy, **figures)
        member.note(result, {"weight": torch.tensor(epoch)}, torch.tensor([epoch]))
    assert member.best_weights == {"weight": torch.tensor(2)}
    assert member.correct.tolist() == [2]


def test_the_best_validation_epoch_is_kept(small_data: ImageData) -> None:
    run = Run([config(optimizer="sgd", learning_rate=0.05, momentum=0.9, batch_size=16)], small_data, device=CPU)
    seen: list[tuple[float, dict[str, torch.Tensor]]] = []
    for _ in range(6):
        [result] = run.epoch()
        weights = {name: value.clone() for name, value in run.network.member_state(0).items()}
        seen.append((result.validation_accuracy, weights))
    accuracy, weights = max(seen, key=lambda item: item[0])
    kept = run.member(0)
    for name, value in kept.state_dict().items():
        assert torch.equal(value, weights[name]), name
    right = [kept.eval()(images).argmax(dim=1) == labels for images, labels in run.batches.validation()]
    assert torch.cat(right).float().mean().item() == pytest.approx(accuracy)
    assert run.members[0].correct.tolist() == torch.cat(right).int().tolist()


def test_a_member_loads_into_the_plain_network(small_data: ImageData) -> None:
    run = trained(config(model="cnn3", batch_norm=True, dropout=0.3), data=small_data, epochs=1)
    build(run.shape, seed=3).load_state_dict(run.member(0).state_dict())
    assert "Fused" not in repr(run.member(0))


def test_no_weights_before_an_epoch(small_data: ImageData) -> None:
    with pytest.raises(ValueError, match="no epoch"):
        Run([config()], small_data, device=CPU).member(0)


def test_a_stop_ends_the_epoch_in_its_middle(small_data: ImageData) -> None:
    asked = iter([False, False, True])
    run = Run([config()], small_data, device=CPU)
    with pytest.raises(EpochInterruptedError):
        run.epoch(lambda: next(asked))
    assert run.epochs_done == 0


def test_a_batch_larger_than_the_training_images_is_refused(small_data: ImageData) -> None:
    with pytest.raises(UsageError, match=r"batch_size = 401.*400"):
        Run([config(batch_size=401)], small_data, device=CPU)


def test_dropout_drops_at_its_rate_and_not_in_evaluation(small_data: ImageData) -> None:
    run = Run([config(model="cnn3", dropout=0.4)], small_data, device=CPU)
    layer = run.network.layers["2"]
    ones = torch.ones(64, 50, 8, 8)
    layer.train()
    dropped = layer(ones)
    share = (dropped[:, :, 0, 0] == 0).float().mean().item()
    assert share == pytest.approx(0.4, abs=0.03)
    assert torch.equal(dropped, dropped[:, :, :1, :1].expand_as(dropped)), "whole channels"
    assert dropped.max().item() == pytest.approx(1 / 0.6)
    layer.eval()
    assert layer(ones) is ones


class HostReads(TorchDispatchMode):
    """Counts the reads that make the host wait for the device, such as ``.item()``."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def host_reads(data: ImageData, *, batch_size: int, read_each_step: bool = False) -> int:
    run = Run([config(batch_size=batch_size, dropout=0.2)], data, device=CPU)
    if read_each_step:
        step = run.step
        run.step = lambda *batch: (step(*batch), run.network.weights.sum().item())  # type: ignore[assignment]
    with HostReads() as reads:
        run.epoch()
    return reads.count


def test_host_reads_do_not_grow_with_the_number_of_steps(small_data: ImageData) -> None:
    assert host_reads(small_data, batch_size=4) == host_reads(small_data, batch_size=100)


def test_the_count_of_host_reads_can_grow(small_data: ImageData) -> None:
    few, many = (host_reads(small_data, batch_size=size, read_each_step=True) for size in (100, 4))
    assert many - few == 96


def fake_cuda_loss(data: ImageData, **params: Any) -> torch.Tensor:
    """One forward pass and loss with everything on a CUDA device that is not there."""
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

    def build_real(shape: Shape, *, seed: int, code: str | None = None, begin: bool = False) -> torch.nn.Module:
        with unset_fake_temporarily():
            return build(shape, seed=seed, code=code, begin=begin)

    def fuse_real(networks: list[torch.nn.Sequential], masks: list[Masks], **options: Any) -> Fused:
        with unset_fake_temporarily():
            return fused(networks, masks, **options)

    fused = train.Fused
    parts = split(data.train_labels)
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(ImageData, "divide", lambda *_, **__: parts)  # it reads the labels, which fakes do not have
        patch.setattr(train, "Fused", fuse_real)
        patch.setattr(train, "is_replayed", lambda _: False)
        patch.setattr(train, "build", build_real)  # a real parameter becomes a fake one only by being replaced
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        device = torch.device("cuda")
        fake = replace(
            data, **{name: torch.empty_like(getattr(data, name)) for name in ("train_images", "test_images")}
        )
        run = Run([config(**params, seed=seed) for seed in range(2)], fake, device=device)
        images, labels = next(iter(run.batches.train(32, seed=0, epoch=1)))
        assert images.device.type == "cuda"
        losses, logits = run.losses(images, labels)
        assert logits.shape == (2, 32, 10)
        return losses


@pytest.mark.parametrize("model", ["lenet", "convnet", "cnn3", "vgg11"])
def test_nothing_stays_on_the_cpu(model: str, small_data: ImageData) -> None:
    loss = fake_cuda_loss(small_data, model=model, normalize=True, batch_norm=True, dropout=0.2)
    assert loss.device.type == "cuda"


def test_the_fake_device_catches_a_tensor_on_the_cpu(small_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    class Behind(Fused):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images + torch.ones(images.shape))

    monkeypatch.setattr(train, "Fused", Behind)
    with pytest.raises(RuntimeError, match="device"):
        fake_cuda_loss(small_data)


def test_the_dropout_of_a_trial_comes_from_its_own_seed(small_data: ImageData) -> None:
    run = Run([config(dropout=0.5, seed=seed) for seed in (1, 2, 1)], small_data, device=torch.device("cpu"))
    first, second, like_the_first = (run.state(k)["generator"] for k in range(3))
    assert torch.equal(first, like_the_first)
    assert not torch.equal(first, second)


def test_a_trial_of_another_kind_of_device_goes_on_with_other_masks(
    small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = config(dropout=0.3)
    of_a_cpu = trained(dropping, data=small_data, epochs=1).state(0)
    monkeypatch.setattr(train, "at_once", lambda _: True)
    of_a_gpu = trained(dropping, data=small_data, epochs=1).state(0)

    def gone_on(state: dict[str, torch.Tensor]) -> Run:
        run = Run([dropping], small_data, device=CPU)
        run.restore(0, checkpoint.unpack(checkpoint.pack(state)))
        assert run.epoch()[0].epoch == 2
        return run

    assert not torch.equal(gone_on(of_a_cpu).network.weights, gone_on(of_a_gpu).network.weights)
    monkeypatch.undo()
    on_a_cpu = gone_on(of_a_gpu)
    assert_equal(on_a_cpu, 0, gone_on(of_a_gpu), 0)
    assert not torch.equal(on_a_cpu.network.weights, gone_on(of_a_cpu).network.weights)


def test_a_sick_device_is_not_taken_for_a_broken_state(small_data: ImageData) -> None:
    class Sick:
        def __len__(self) -> int:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    run = trained(config(), data=small_data, epochs=1)
    with pytest.raises(torch.AcceleratorError):
        run.restore(0, run.state(0) | {"generator": Sick()})
