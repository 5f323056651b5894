"""The two parts of a step, the group size that they lead to, and the memory that a member takes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.forecast.costs import Speed, change_name
from cifar_sweep.machine import memory
from cifar_sweep.machine.groups import (
    ONE_AT_A_TIME,
    VGG_MACS,
    Groups,
    changing,
    config_of,
    names_of,
    network_of,
    stand_in,
)
from cifar_sweep.machine.memory import free_memory, member_bytes
from cifar_sweep.machine.speeds import typical
from cifar_sweep.machine.timing import step_seconds
from cifar_sweep.training.batches import EVALUATION_BATCH
from cifar_sweep.training.images import data
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build
from cifar_sweep.training.models.summary import macs
from cifar_sweep.training.train import Run
from cifar_sweep.training_parameters import AUGMENTATION_NAMES

CPU = torch.device("cpu")


def config(model: str = "lenet", **params: Any) -> TrialConfig:
    return TrialConfig.from_params({"model": model} | params, classes=10, precision="fp32", data_seed=0, seed=0)


def shape(model: str = "lenet", **params: Any) -> Shape:
    return config(model, **params).shape


def groups(largest: int, milliseconds: dict[int, float], *, free_bytes: int | None = None) -> Groups:
    """LeNet's, by the time of an image at each group size."""
    speeds = {"lenet": {size: Speed(each / 1000, 0.0) for size, each in milliseconds.items()}}
    return Groups(largest, speeds, free_bytes)


def test_batch_norm_is_timed_apart_in_small_networks() -> None:
    assert network_of(shape("cnn3")) == "cnn3"
    assert network_of(shape("cnn3", batch_norm=True)) == "cnn3+batch_norm"
    assert network_of(shape("vgg16", batch_norm=True)) == network_of(shape("vgg16", batch_norm=False)) == "vgg16"


def test_images_of_another_size_are_timed_apart() -> None:
    for name in ("cnn3+batch_norm 64px", "vgg11 48px"):
        assert network_of(config_of(name).shape) == name
        assert typical([name]) is None
    assert stand_in("vgg16 64px") == ("vgg11 64px", VGG_MACS["vgg16"] / VGG_MACS["vgg11"])


@pytest.mark.parametrize("network", VGG_MACS)
def test_deeper_vggs_stand_in_the_ratio_of_their_multiplications(network: str) -> None:
    assert VGG_MACS[network] == macs(build(config_of(network).shape, seed=0))
    assert stand_in(network) == ("vgg11", VGG_MACS[network] / VGG_MACS["vgg11"])


def test_other_networks_are_timed_themselves() -> None:
    assert [stand_in(network) for network in ("cnn1", "cnn3+batch_norm")] == [("cnn1", 1.0), ("cnn3+batch_norm", 1.0)]


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ({1: 10, 2: 8, 4: 6, 8: 7}, 4),
        ({1: 10, 2: 9.7, 4: 9.65, 8: 9.65}, 1),  # no more than 4 % are to be had
        ({1: 10, 2: 6.2, 4: 6.0, 8: 6.1}, 2),
        ({1: 10, 2: 9.9, 4: 6}, 4),  # what gains nothing on the way there does not end it
        ({1: 10, 2: 12}, 1),
        ({1: 10}, 1),
    ],
)
def test_the_smallest_group_that_is_about_the_fastest(milliseconds: dict[int, float], expected: int) -> None:
    assert groups(16, milliseconds).size(shape()) == expected


def test_no_group_is_larger_than_the_largest() -> None:
    halved = {1: 16.0, 2: 8.0, 4: 4.0, 8: 2.0}
    assert [groups(largest, halved).size(shape()) for largest in (1, 2, 3, 4, 7, 8, 100)] == [1, 2, 3, 4, 7, 8, 8]
    assert ONE_AT_A_TIME.size(shape()) == 1


@pytest.mark.parametrize(
    ("network", "timed", "factor"),
    [
        ("cnn~41", "cnn~40", 2**0.5),
        ("cnn+batch_norm~~46 64px", "cnn+batch_norm~~48 64px", 0.5),
        ("cnn~60", "cnn~52", 16),
    ],
)  # fmt: skip
def test_a_cnn_is_timed_by_few_sizes(network: str, timed: str, factor: float) -> None:
    assert stand_in(network) == (timed, pytest.approx(factor))
    shape = config_of(timed).shape
    assert network_of(shape) == timed
    assert shape.image_size == (64 if "64px" in timed else 32)


def test_a_network_of_unknown_speed_is_trained_alone() -> None:
    known = groups(6, {1: 2, 2: 1})
    assert known.size(shape("cnn3")) == 1
    assert known.size(shape("lenet", batch_norm=True)) == 1
    assert known.size(shape("lenet")) > 1
    assert Groups(6).size(shape("cnn3")) == 6, "where nothing was measured, so many were asked for"


def test_small_batches_are_trained_in_larger_groups() -> None:
    known = Groups(4, {"lenet": {1: Speed(image=0.0010, step=0.10), 4: Speed(image=0.0012, step=0.01)}})
    assert known.size(shape(batch_size=16)) == 4
    assert known.size(shape(batch_size=1024)) == 1


@pytest.mark.parametrize("timed", [{}, {1: 16.0, 8: 2.0}])
def test_memory_limits_the_group(timed: dict[int, float]) -> None:
    each = member_bytes(shape())

    def size(free: int) -> int:
        known = groups(8, timed, free_bytes=free) if timed else Groups(8, free_bytes=free)
        return known.size(shape())

    assert [size(free) for free in (0, each, 3 * each - 1, 3 * each, 8 * each, 99 * each)] == [1, 1, 2, 3, 8, 8]


def parameters(of: Shape) -> int:
    return sum(parameter.numel() for parameter in build(of, seed=0).parameters())


def test_a_member_takes_more_memory_for_more_images_and_more_parameters() -> None:
    assert member_bytes(shape(batch_size=128)) > 1.5 * member_bytes(shape(batch_size=64))
    narrow, wide = shape(hidden_units=100), shape(hidden_units=5000)
    # Each with its gradient, two moments and its best value so far.
    assert member_bytes(wide) - member_bytes(narrow) > 5 * 4 * (parameters(wide) - parameters(narrow))
    assert member_bytes(shape(precision="bf16")) < member_bytes(shape(precision="fp32"))


def peak_bytes(each: TrialConfig, *, members: int, trace: Path, images: ImageData | None = None) -> int:
    """The most that PyTorch had allocated at a time in the first steps of a group, or in an epoch on images."""
    dtype = torch.bfloat16 if each.shape.precision == "bf16" else torch.float32
    pixels = torch.rand(each.shape.batch_size, 3, 32, 32).to(dtype)
    labels = torch.zeros(each.shape.batch_size, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run = Run([each] * members, images, device=CPU)
        run.start_epoch(1)
        for _ in range(2):
            run.step(pixels, labels)
        if images:
            run.epoch()
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    totals = [event["args"]["Total Allocated"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(totals) - totals[0]


@pytest.mark.parametrize(
    "params",
    [
        {"model": "lenet", "batch_size": 16, "hidden_units": 5000},
        {"model": "lenet", "batch_size": 128, "precision": "bf16"},
        {"model": "cnn3", "batch_size": 32, "batch_norm": True, "dropout": 0.3},
    ],
)
def test_a_real_group_takes_no_more_memory_than_is_reckoned_with(params: dict[str, Any], tmp_path: Path) -> None:
    each = config(**params)
    taken = peak_bytes(each, members=2, trace=tmp_path / "trace.json") / 2
    assert taken < member_bytes(each.shape) < 4 * taken


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_takes_no_more_memory_than_is_reckoned_with(precision: str, tmp_path: Path) -> None:
    """Its batches are larger than small ones of training, and it comes at the end of an epoch."""
    each = config("convnet", batch_size=2, train_images=4, validation_images=EVALUATION_BATCH, precision=precision)
    images = data.load("synthetic:1000")
    taken = peak_bytes(each, members=4, trace=tmp_path / "trace.json", images=images) / 4
    assert taken < member_bytes(each.shape) < 4 * taken


def test_the_memory_that_nobody_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {gpu: (3000, 4000)}[device])
    assert free_memory(gpu) == 3000
    file = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMORY_FILE", file)
    assert free_memory(CPU) is None
    file.write_text("MemTotal: 90 kB\nMemFree:  3 kB\nMemAvailable:     20 kB\n")
    assert free_memory(CPU) == 20 * 1024
    file.write_text("MemTotal: 90 kB\n")
    assert free_memory(CPU) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_of_the_group_is_what_is_timed(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    slept = iter([0.001, 0.12, 0.02, 0.12])  # the first is not counted

    def step(self: Run, images: torch.Tensor, labels: torch.Tensor) -> None:
        assert self.network.training
        assert len(self.members) == 3
        assert self.shape == shape("cnn3", batch_norm=True, precision=precision)
        assert images.shape == (20, 3, 32, 32)
        assert images.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        assert labels.shape == (20,)
        time.sleep(next(slept))

    monkeypatch.setattr(Run, "step", step)
    call: dict[str, Any] = {"batch": 20, "members": 3, "threads": 2, "device": CPU, "precision": precision}
    timing = step_seconds("cnn3+batch_norm", **call)
    assert 0.02 <= timing.seconds < 0.08
    assert not timing.is_alone, "who sleeps does not work"
    assert torch.get_num_threads() == 2


def test_what_is_done_to_images_is_timed_by_itself() -> None:
    changed = shape("vgg11", augmentation="crop", rotation=1.0, mixup=0.1, mix_probability=0.5)
    name = "images: crop+rotation+mixup"
    assert names_of(changed) == {"vgg11", name}
    assert change_name(changing(name)) == name
    rough = typical([name, "lenet"])
    assert rough is not None
    assert rough.keys() == {name, "lenet"}
    for each in (*AUGMENTATION_NAMES[1:], "shift", "zoom", "cutout", "cutmix"):
        assert typical([f"images: {each}"]), each
    timing = step_seconds(name, batch=64, members=1, threads=1, device=CPU, precision="bf16")
    assert 1e-6 < timing.seconds < 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_real_step_takes_time(precision: str) -> None:
    timing = step_seconds("lenet", batch=16, members=2, threads=1, device=CPU, precision=precision)
    assert 1e-5 < timing.seconds < 1
