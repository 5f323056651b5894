"""Training on a GPU: right, apart from each other, repeatable, without waiting, and in the memory that is reckoned."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cifar_sweep.config import TrialConfig
from cifar_sweep.machine.gpu_bench import ladder
from cifar_sweep.machine.memory import member_bytes
from cifar_sweep.training import checkpoint, train
from cifar_sweep.training.apart import Apart
from cifar_sweep.training.augmentation import augmented
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.device import is_out_of_memory, prepare_process, wait_for
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import Run

CPU = torch.device("cpu")
NETWORKS = [
    {"model": model, "batch_norm": norm} for model in ("lenet", "convnet", "cnn3") for norm in (False, True)
] + [{"model": "cnn1"}, {"model": "vgg11"}]
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "adam", "weight_decay": 1e-3},
    {"optimizer": "rmsprop", "learning_rate": 1e-4},  # its first steps are ten times the rate
]
OWN = """
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.1))
        self.last = nn.Linear(512, classes)

    def forward(self, x):
        return self.last(self.layers(x))


def apart(shape):
    return Net(shape.classes)


def fused(shape):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, shape.classes)
    )
"""


@pytest.fixture(autouse=True)
def prepared(gpu: torch.device) -> None:
    prepare_process(gpu, threads=0)


def configs(members: int, *, precision: str = "fp32", **params: Any) -> list[TrialConfig]:
    small: dict[str, Any] = {"model": "convnet", "batch_size": 16, "epochs": 3, "train_images": 320}
    return [
        TrialConfig.from_params(
            small | {"learning_rate": 1e-3 * (1 + seed % 4), "dropout": 0.0} | params,
            classes=10, precision=precision, data_seed=7, seed=seed,
        )
        for seed in range(members)
    ]  # fmt: skip


def batches(count: int, *, size: int = 16, precision: str = "fp32") -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return [
        (
            torch.rand(size, 3, 32, 32, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last),
            torch.randint(10, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def stepped(
    chosen: Sequence[TrialConfig], device: torch.device, *, steps: int = 5, double: bool = False, spoilt: bool = False
) -> Run:
    run = Run(chosen, None, device=device)
    if double:
        run.network.double()
        run.prepare_optimizer()
    if spoilt:
        run.network.weights[0].fill_(float("nan"))
    run.start_epoch(1)
    for images, labels in batches(steps, precision=run.shape.precision):
        run.step((images.double() if double else images).to(device), labels.to(device))
    return run


def losses(run: Run) -> torch.Tensor:
    [(images, labels)] = batches(1, precision=run.shape.precision)
    images = images.to(run.network.weights.dtype) if run.shape.precision == "fp32" else images
    with torch.no_grad():
        return run.losses(images.to(run.device), labels.to(run.device))[0].double().cpu()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: each["optimizer"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda each: "+".join(map(str, each.values())))
def test_five_steps_are_those_of_the_cpu_in_double_precision(
    network: dict[str, Any], optimizer: dict[str, Any], gpu: torch.device
) -> None:
    chosen = configs(2, **network, **optimizer)
    exact, single = stepped(chosen, CPU, double=True), stepped(chosen, gpu)
    torch.testing.assert_close(losses(single), losses(exact), rtol=2e-3, atol=1e-4)
    half = stepped([*configs(2, precision="bf16", **network, **optimizer)], gpu)
    torch.testing.assert_close(losses(half), losses(exact), rtol=0.1, atol=0.1)


OTHERS: list[dict[str, Any]] = [
    {"optimizer": "nesterov", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.9, "dampening": 0.3},
    {"optimizer": "adamw", "weight_decay": 1e-2, "amsgrad": True},
    *({"optimizer": optimizer} for optimizer in ("nadam", "adamax", "adagrad", "adadelta")),
    {"loss": "focal", "label_smoothing": 0.1, "class_weights": "1,2,3,4,5,1,2,3,4,5"},
    {"loss": "bce", "l1": 1e-4, "gradient_clip": 0.1, "ema_decay": 0.9},
]


@pytest.mark.parametrize("settings", OTHERS, ids=lambda each: "+".join(map(str, each.values())))
def test_what_else_there_is_to_train_by(settings: dict[str, Any], gpu: torch.device) -> None:
    chosen = configs(2, model="lenet", batch_norm=True, **settings)
    exact, single = stepped(chosen, CPU, double=True), stepped(chosen, gpu)
    torch.testing.assert_close(losses(single), losses(exact), rtol=2e-3, atol=1e-4)


def test_changed_images_are_those_of_the_cpu(gpu: torch.device, small_data: ImageData) -> None:
    shape = configs(1, augmentation="autoaugment", rotation=20.0, color=0.2, cutout=6, cutmix=1.0)[0].shape
    for (images, labels), (same, same_labels) in zip(
        *(
            Batches(small_data, device=device).train(32, seed=7, epoch=1, change=augmented(shape, 1))
            for device in (CPU, gpu)
        ),
        strict=True,
    ):
        torch.testing.assert_close(same_labels.cpu(), labels)
        off = (same.cpu() - images).abs() > 0.02  # a byte may be rounded to the next
        assert off.float().mean().item() < 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_learns(precision: str, gpu: torch.device, small_data: ImageData) -> None:
    run = Run(configs(4, precision=precision, epochs=20), small_data, device=gpu)
    for _ in range(12):
        results = run.epoch()
    for k, result in enumerate(results):
        assert result.train_loss < 0.8 * run.members[k].history[0].train_loss


@pytest.mark.parametrize("members", [3, 16])
def test_members_equal_their_solo_runs(members: int, gpu: torch.device) -> None:
    chosen = configs(members, batch_norm=True, dropout=0.2)
    together = losses(stepped(chosen, gpu))
    for k in (0, 1, members - 1):
        torch.testing.assert_close(together[k : k + 1], losses(stepped([chosen[k]], gpu)), rtol=2e-3, atol=1e-4)


def test_those_who_stay_are_as_if_they_had_been_alone(gpu: torch.device, small_data: ImageData) -> None:
    chosen = configs(3, dropout=0.3)
    together, alone = Run(chosen, small_data, device=gpu), Run(chosen[2:], small_data, device=gpu)
    for run in (together, alone):
        run.epoch()
        run.keep([len(run.members) - 1])
        run.epoch()
    one, other = (run.members[0].history[-1].train_loss for run in (together, alone))
    assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", NETWORKS[:6], ids=lambda each: "+".join(map(str, each.values())))
def test_a_member_that_is_no_number_leaves_the_others_bit_for_bit(
    network: dict[str, Any], precision: str, gpu: torch.device
) -> None:
    chosen = configs(5, precision=precision, dropout=0.1, **network)
    sound, spoilt = stepped(chosen, gpu), stepped(chosen, gpu, spoilt=True)
    assert not spoilt.network.weights[0].isfinite().any()
    assert torch.equal(sound.network.weights[1:], spoilt.network.weights[1:])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda each: "+".join(map(str, each.values())))
def test_two_runs_agree_bit_for_bit(network: dict[str, Any], precision: str, gpu: torch.device) -> None:
    chosen = configs(2, precision=precision, dropout=0.1, **network)
    assert torch.equal(stepped(chosen, gpu).network.weights, stepped(chosen, gpu).network.weights)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: each["optimizer"])
def test_a_restored_run_goes_on_bit_for_bit(
    optimizer: dict[str, Any], gpu: torch.device, small_data: ImageData
) -> None:
    chosen = configs(1, dropout=0.3, batch_norm=True, **optimizer)
    unbroken, first = (Run(chosen, small_data, device=gpu) for _ in range(2))
    unbroken.epoch()
    unbroken.epoch()
    first.epoch()
    stored = checkpoint.pack(first.state(0))
    second, on_a_cpu = Run(chosen, small_data, device=gpu), Run(chosen, small_data, device=CPU)
    second.restore(0, checkpoint.unpack(stored))
    second.epoch()
    assert torch.equal(second.network.weights, unbroken.network.weights)
    on_a_cpu.restore(0, checkpoint.unpack(stored))
    on_a_cpu.epoch()
    second.restore(0, checkpoint.unpack(checkpoint.pack(on_a_cpu.state(0))))
    assert second.epoch()[0].epoch == 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["apart", "fused"])
def test_a_network_of_ones_own_with_dropout_of_its_own(
    name: str, precision: str, gpu: torch.device, small_data: ImageData, tmp_path: Path
) -> None:
    module = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(OWN)
    run = Run(configs(2, model=f"{module}:{name}", precision=precision), small_data, device=gpu)
    assert isinstance(run.network, Apart) == (name == "apart")
    for _ in range(3):
        results = run.epoch()
    assert all(result.train_loss < run.members[k].history[0].train_loss for k, result in enumerate(results))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_device(precision: str, gpu: torch.device) -> None:
    run = stepped(configs(3, precision=precision, dropout=0.2, batch_norm=True), gpu)
    there = [(images.to(gpu), labels.to(gpu)) for images, labels in batches(20, precision=precision)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in there:
            run.step(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: each["optimizer"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_steps_are_the_steps(
    precision: str,
    optimizer: dict[str, Any],
    gpu: torch.device,
    small_data: ImageData,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also with a last batch of another size, and of those who stay."""
    small = {"model": "lenet", "dropout": 0.2, "batch_norm": True, "train_images": 330, "gamma": 0.5, "step_size": 1}

    def weights() -> torch.Tensor:
        run = Run(configs(4, precision=precision, **small, **optimizer), small_data, device=gpu)
        run.epoch()
        run.keep([3, 1])
        run.epoch()
        return run.network.weights

    replayed = weights()
    assert not caplog.text, "no graph"
    monkeypatch.setattr(train, "is_replayed", lambda _: False)
    torch.testing.assert_close(replayed, weights(), rtol=1e-4, atol=1e-6)


def test_a_replayed_step_is_faster(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds() -> float:
        run = stepped(configs(1, precision="bf16", batch_norm=True), gpu, steps=8)
        there = [(images.to(gpu), labels.to(gpu)) for images, labels in batches(50, precision="bf16")]
        wait_for(gpu)
        begun = time.perf_counter()
        for batch in there:
            run.step(*batch)
        wait_for(gpu)
        return time.perf_counter() - begun

    replayed = seconds()
    monkeypatch.setattr(train, "is_replayed", lambda _: False)
    assert replayed < seconds()


def kernels(members: int, gpu: torch.device) -> int:
    """How many kernels a training step of the group launches."""
    run = stepped(configs(members, precision="bf16", batch_norm=True, dropout=0.2), gpu)
    [(images, labels)] = batches(1, precision="bf16")
    images, labels = images.to(gpu), labels.to(gpu)
    wait_for(gpu)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run.step(images, labels)
        wait_for(gpu)
    return sum(event.count for event in profiler.key_averages() if event.self_device_time_total > 0)


def test_a_step_launches_as_many_kernels_for_many_members_as_for_few(gpu: torch.device) -> None:
    few, many = kernels(16, gpu), kernels(64, gpu)
    assert 0 < few < 300
    assert many <= 1.1 * few


@pytest.mark.parametrize("members", [1, 8])
@pytest.mark.parametrize("batch_size", [16, 256])
@pytest.mark.parametrize("model", ["lenet", "convnet", "cnn3", "cnn1"])
def test_an_epoch_takes_the_memory_that_is_reckoned(
    model: str, batch_size: int, members: int, gpu: torch.device, small_data: ImageData
) -> None:
    chosen = configs(members, model=model, batch_size=batch_size, precision="bf16")
    Run(chosen[:1], small_data, device=gpu).epoch()  # the libraries have their own
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(gpu)
    torch.cuda.reset_peak_memory_stats(gpu)
    run = Run(chosen, small_data, device=gpu)
    run.epoch()
    images = sum(each.numel() for each in (small_data.train_images, small_data.train_labels)) + 2048 * 3072 * 8
    taken = torch.cuda.max_memory_allocated(gpu) - before - images
    assert taken < 1.2 * members * member_bytes(run.shape) + 64 * 2**20


def test_bench_counts_the_kernels_of_a_replayed_step(gpu: torch.device) -> None:
    [chosen] = configs(1, precision="bf16")
    one, many = ladder(config=chosen, device=gpu, members=(1, 32), seconds=0.2)
    for rung in (one, many):
        assert not rung.fault
        assert rung.kernels
        assert rung.gpu_ms
        assert 0 < rung.gpu_ms < 1.5 * rung.step_ms, "kernels of one stream follow each other"
        assert rung.megabytes
    assert many.kernels <= 1.5 * one.kernels


def test_groups_in_turn_leave_nothing_behind(gpu: torch.device, small_data: ImageData) -> None:
    left = []
    for _ in range(3):
        Run(configs(4, batch_norm=True, dropout=0.2), small_data, device=gpu).epoch()
        left.append(torch.cuda.memory_allocated(gpu))
    assert left[2] <= left[0]


@pytest.mark.parametrize(
    "params",
    [
        {"model": "cnn3", "padding_mode": "reflect"},
        {"normalize": True},
        {"batch_size": 1},
        {"batch_size": 11, "train_images": 45},  # the last batch is of one
        {"batch_size": 400, "train_images": 400},
    ],
    ids=str,
)
def test_odd_shapes(params: dict[str, Any], gpu: torch.device, small_data: ImageData) -> None:
    for precision in ("fp32", "bf16"):
        run = Run(configs(2, precision=precision, **{"train_images": 64} | params), small_data, device=gpu)
        assert all(not result.diverged for result in run.epoch())


def test_a_trained_network_is_as_accurate_on_a_cpu(gpu: torch.device, small_data: ImageData) -> None:
    run = Run(configs(2, batch_norm=True), small_data, device=gpu)
    [first, _] = run.epoch()
    network = run.member(0).eval()
    right = [network(images.cpu()).argmax(dim=1) == labels.cpu() for images, labels in run.batches.validation()]
    assert torch.cat(right).float().mean().item() == pytest.approx(first.validation_accuracy, abs=0.02)


def test_spent_memory_is_known_as_such_and_ends_nothing(gpu: torch.device) -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**45, dtype=torch.uint8, device=gpu)
    assert is_out_of_memory(raised.value)
    assert torch.ones(3, device=gpu).sum().item() == 3
