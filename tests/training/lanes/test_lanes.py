"""Convolutions with the members in the lanes of vectors: against PyTorch's, and against themselves in other groups."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_sweep.config import TrialConfig
from cifar_sweep.machine.timing import smallest_representative_group
from cifar_sweep.training import fuse
from cifar_sweep.training.fuse import Fused, can_fuse
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.lanes import compiled, lanes
from cifar_sweep.training.lanes.lanes import fewest_members, stages_of
from cifar_sweep.training.models import build
from cifar_sweep.training.rows import Masks
from cifar_sweep.training.train import Run

CPU = torch.device("cpu")
BF16 = compiled.has_bf16()
PRECISIONS = ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(not BF16, reason="no such instructions here"))]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def one_thread(session_cache: Path) -> Iterator[None]:
    """What lanes are for."""
    if compiled.kernels(bf16=False) is None:
        pytest.skip("no C compiler here")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def row_of(*layers: nn.Module, features: int, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))


def model(name: str, **params: Any) -> Callable[[int], nn.Module]:
    config = TrialConfig.from_params({"model": name} | params, classes=10, precision="fp32", data_seed=0, seed=0)
    return lambda seed: build(config.shape, seed=seed)


def seeded(make: Callable[[], nn.Sequential]) -> Callable[[int], nn.Module]:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make()

    return made


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "lenet": model("lenet"),
    "convnet, batch norm, reflect": model("convnet", batch_norm=True, padding_mode="reflect", init="xavier"),
    "convnet, leaky": model("convnet", batch_norm=False, activation="leaky_relu"),
    # Channels that fill no word and no tile, a kernel of even size, and windows that do not come out.
    "odd": seeded(
        lambda: row_of(
            nn.Conv2d(3, 5, 2, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(5, 7, 4, bias=False), nn.ReLU(), nn.BatchNorm2d(7), nn.MaxPool2d(2),
            nn.Conv2d(7, 1, 3), nn.MaxPool2d(2), nn.LeakyReLU(0.2), nn.Dropout2d(0.0),
            nn.Conv2d(1, 2, 1), features=8,
        )
    ),
    "norm last": seeded(
        lambda: row_of(
            nn.Conv2d(3, 14, 3), nn.LeakyReLU(), nn.Dropout2d(0.0), nn.BatchNorm2d(14),
            nn.Conv2d(14, 6, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(6), nn.MaxPool2d(2), features=6 * 15 * 15,
        )
    ),
}  # fmt: skip


def fused(name: str, members: int, *, precision: str, rate: float = 0.0, double: bool = False) -> Fused:
    networks = [NETWORKS[name](seed) for seed in range(members)]
    for network in networks:
        assert can_fuse(network)
    masks = [Masks(rate, torch.Generator().manual_seed(k)) for k in range(members)]
    together = Fused(networks, masks, dtype=torch.bfloat16 if precision == "bf16" else None)  # type: ignore[arg-type]
    return together.double() if double else together


def batch(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 32, 32, generator=generator).bfloat16()  # so that all arithmetics get the same
    return images.to(dtype).contiguous(memory_format=torch.channels_last), torch.arange(count) % 4


def step(network: Fused, images: Tensor, labels: Tensor) -> Tensor:
    """The outputs; the gradients are in the network."""
    outputs = network(images)
    losses = functional.cross_entropy(outputs.flatten(0, 1).float(), labels.repeat(len(outputs)), reduction="sum")
    losses.backward()  # type: ignore[no-untyped-call]
    network.gather_gradients()
    return outputs.detach()


def by_torch(name: str, members: int, *, precision: str, rate: float = 0.0, count: int, double: bool = False) -> Any:
    """Outputs, gradients and buffers of the same networks by PyTorch's own convolutions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(compiled.KERNELS, "torch")
        network = fused(name, members, precision=precision, rate=rate, double=double)
        outputs = step(network, *batch(count, torch.float64 if double else DTYPES[precision]))
        assert network.lanes is None
    return outputs, network.gradients, dict(network.named_buffers())


@pytest.mark.parametrize("count", [1, 5, 6])
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_is_as_near_to_the_truth_as_pytorch_is(name: str, count: int) -> None:
    members = 9  # two tiles, the second with one
    network = fused(name, members, precision="fp32")
    outputs = step(network, *batch(count, torch.float32))
    assert network.lanes is not None
    truth, gradients, buffers = by_torch(name, members, precision="fp32", count=count, double=True)
    usual, usual_gradients, _ = by_torch(name, members, precision="fp32", count=count)

    def error(found: Tensor, true: Tensor) -> Tensor:
        return (found.double() - true).norm(dim=-1) / true.norm(dim=-1).clamp(min=1e-12)

    assert (error(outputs, truth).mean(dim=1) <= 3 * error(usual, truth).mean(dim=1) + 1e-4).all()
    # A rounding may make another value the greatest of a window, which moves a gradient to its neighbour.
    wrong, usually_wrong = error(network.gradients, gradients), error(usual_gradients, gradients)
    assert wrong.median() <= 3 * usually_wrong.median() + 1e-6
    assert wrong.max() < 0.02
    for buffer, value in network.named_buffers():
        if "running" in buffer or "tracked" in buffer:
            torch.testing.assert_close(value, buffers[buffer].to(value.dtype), rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not BF16, reason="no such instructions here")
@pytest.mark.parametrize("count", [5, 6])  # images are taken in pairs
@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_is_as_near_to_the_truth_as_pytorch_is(name: str, count: int) -> None:
    network = fused(name, 8, precision="bf16")
    outputs = step(network, *batch(count, torch.bfloat16))
    assert network.lanes is not None
    truth, gradients, _ = by_torch(name, 8, precision="fp32", count=count, double=True)
    usual, usual_gradients, _ = by_torch(name, 8, precision="bf16", count=count)

    def error(found: Tensor, true: Tensor) -> float:
        return float((found.double() - true).norm() / true.norm())

    assert error(outputs, truth) <= 1.5 * error(usual, truth)
    assert error(network.gradients, gradients) <= 1.5 * error(usual_gradients, gradients)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_of_equals_the_first_of_a_window_has_the_gradient(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole numbers, of which many are equal and none is rounded: the same gradients as PyTorch's in float32."""

    def gradients(dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        networks = [
            row_of(
                nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),
                nn.Conv2d(4, 6, 3), nn.MaxPool2d(2), nn.LeakyReLU(0.5), features=6 * 7 * 7,
            )
            for _ in range(8)
        ]  # fmt: skip
        for weights in [weights for network in networks for weights in network.parameters()]:
            chosen = torch.randint(-3, 4, weights.shape, generator=generator)
            weights.data = (chosen.sign() * (chosen.abs() == 3)).float()
        masks = [Masks(0.0, torch.Generator()) for _ in networks]
        network = Fused(networks, masks, dtype=dtype)
        images = torch.randint(2, (4, 3, 32, 32), generator=generator).to(dtype)
        network(images.contiguous(memory_format=torch.channels_last)).sum().backward()  # type: ignore[no-untyped-call]
        network.gather_gradients()
        assert (network.lanes is None) == (compiled.kernels(bf16=False) is None)
        return network.gradients[:, : network.parts[-2].start]  # without the linear layer's

    found = gradients(DTYPES[precision])
    monkeypatch.setenv(compiled.KERNELS, "torch")
    assert found.equal(gradients(torch.float32))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dropout_of_whole_channels_is_that_of_pytorch(precision: str) -> None:
    for name in ("odd", "norm last"):
        network = fused(name, 8, precision=precision, rate=0.4)
        outputs = step(network, *batch(6, DTYPES[precision]))
        usual, gradients, _ = by_torch(name, 8, precision=precision, rate=0.4, count=6)
        undropped, _, _ = by_torch(name, 8, precision=precision, count=6)
        near = 0.05 if precision == "bf16" else 1e-3
        assert (outputs - usual).norm() < near * usual.norm()
        assert (outputs - undropped).norm() > 0.1 * usual.norm()
        assert (network.gradients - gradients).norm() < 4 * near * gradients.norm()


def configs(members: int, *, precision: str, name: str = "convnet", **params: Any) -> list[TrialConfig]:
    """Trials that differ in all that trials of a group may."""
    shape = {"model": name, "batch_size": 30, "epochs": 3, "train_images": 100, "batch_norm": True} | params
    return [
        TrialConfig.from_params(
            shape | {"learning_rate": 1e-3 * (k + 1), "dropout": 0.1 * (k % 3), "momentum": 0.5 + 0.05 * (k % 5)},
            classes=10, precision=precision, data_seed=7, seed=k,
        )
        for k in range(members)
    ]  # fmt: skip


def trained(chosen: list[TrialConfig], data: ImageData) -> Run:
    run = Run(chosen, data, device=CPU)
    run.epoch()
    assert run.network.lanes is not None
    return run


def assert_same(one: Run, k: int, other: Run, j: int) -> None:
    mine, theirs = one.state(k), other.state(j)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]) or name == "history", name
    assert one.members[k].history[-1].train_loss == other.members[j].history[-1].train_loss
    assert one.members[k].history[-1].validation_accuracy == other.members[j].history[-1].validation_accuracy


@pytest.mark.parametrize(("precision", "sizes"), [(PRECISIONS[1], (5, 8, 11)), ("fp32", (7, 9))])
def test_what_is_convolved_depends_neither_on_the_group_nor_on_the_place(
    precision: Any, sizes: tuple[int, ...]
) -> None:
    if not isinstance(precision, str):
        if not BF16:
            pytest.skip("no such instructions here")
        [precision] = precision.values
    whole = fused("convnet, batch norm, reflect", max(sizes), precision=precision)
    features: dict[int, Tensor] = {}
    images, labels = batch(6, DTYPES[precision])
    flat = [layer for layer in whole.layers.values() if isinstance(layer, fuse.FusedFlatten)]
    assert len(flat) == 1
    step(whole, images, labels)
    for size in sizes:
        part = fused("convnet, batch norm, reflect", max(sizes), precision=precision)
        part.keep(list(range(max(sizes) - size, max(sizes))))
        step(part, images, labels)
        assert part.lanes is not None
        features[size] = part.lanes.forward(images, part.weights, part.gradients, part.layers, training=True).detach()
    for size in sizes:
        assert torch.equal(features[size], features[max(sizes)][-size:])


@pytest.mark.skipif(not BF16, reason="no such instructions here")
@pytest.mark.slow
def test_wider_vectors_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly: compilers may round otherwise."""
    found = []
    for width in (8, 16):
        for module in (compiled, lanes):
            monkeypatch.setattr(module, "lane_count", lambda _members, width=width: width)
        network = fused("convnet, batch norm, reflect", 18, precision="bf16")
        found.append(step(network, *batch(6, torch.bfloat16)))
        assert network.lanes is not None
        assert [tile.members for tile in network.lanes.tiles] == {8: [8, 8, 2], 16: [16, 2]}[width]
    assert (found[0] - found[1]).norm() < 0.01 * found[0].norm()


@pytest.mark.skipif("avx2" not in compiled.processor(), reason="another kind of processor")
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_registers_give_the_same(
    name: str, other_compiler: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a processor with AVX2 alone works on at once is less, in the same order; compilers may round otherwise."""
    found = []
    for held in ("", "avx2"):
        monkeypatch.setenv(compiled.KERNELS, held)
        other_compiler("")
        network = fused(name, 9, precision="fp32")
        found.append((step(network, *batch(5, torch.float32)), network.gradients))
        assert network.lanes is not None
    for natively, held_back in zip(*found, strict=True):
        assert (natively - held_back).norm() < 0.01 * natively.norm()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_members_that_are_nan_leave_their_siblings_as_they_were(precision: str, small_data: ImageData) -> None:
    chosen = configs(8, precision=precision)
    calm, broken = (Run(chosen, small_data, device=CPU) for _ in range(2))
    for lost in (0, 3, 7):
        for value in broken.network.member_state(lost).values():
            if value.is_floating_point():
                value.fill_(float("nan"))
    for run in (calm, broken):
        run.epoch()
    assert [k for k in range(8) if broken.members[k].history[-1].diverged] == [0, 3, 7]
    for k in (1, 2, 4, 5, 6):
        assert_same(calm, k, broken, k)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_restored_group_goes_on_bit_for_bit(precision: str, small_data: ImageData) -> None:
    chosen = configs(8, precision=precision)
    unbroken, first, second = (Run(chosen, small_data, device=CPU) for _ in range(3))
    for run in (unbroken, first):
        run.epoch()
    for k in range(8):
        second.restore(k, {name: value.clone() for name, value in first.state(k).items()})
    for run in (unbroken, second):
        run.epoch()
    for k in range(8):
        assert_same(unbroken, k, second, k)


def test_what_else_a_trial_is_trained_by_acts_in_lanes(small_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"augmentation": "crop", "mixup": 0.4, "ema_decay": 0.7, "label_smoothing": 0.1, "gradient_clip": 1.0}
    chosen = configs(8, precision="fp32", batch_norm_momentum=0.4, optimizer="sgd", **changes)
    found = trained(chosen, small_data)
    monkeypatch.setenv(compiled.KERNELS, "torch")
    usual = Run(chosen, small_data, device=CPU)
    usual.epoch()
    assert usual.network.lanes is None
    for k in range(8):
        mine, theirs = found.state(k), usual.state(k)
        means = [name for name in mine if name.startswith(("average.", "network."))]
        assert "average.0" in means
        for name in means:
            assert (mine[name] - theirs[name]).float().norm() <= 1e-5 + 1e-3 * theirs[name].float().norm(), name


def test_a_group_that_shrinks_goes_on_with_pytorch(small_data: ImageData) -> None:
    run = trained(configs(8, precision="fp32"), small_data)
    run.keep([0, 1, 4])
    run.epoch()
    assert run.network.lanes is None
    alone = Run(configs(8, precision="fp32")[4:5], small_data, device=CPU)
    alone.epoch()
    alone.epoch()
    mine, its = run.members[2].history[-1], alone.members[0].history[-1]
    assert mine.train_loss == pytest.approx(its.train_loss, rel=0.02)


@pytest.mark.parametrize(("name", "rate"), [("convnet, batch norm, reflect", 0.0), ("norm last", 0.4)])
def test_evaluation_is_that_of_pytorch_however_many_images_come(
    name: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fused(name, 8, precision="fp32", rate=rate)
    step(network, *batch(6, torch.float32))
    network.eval()
    images, _ = batch(50, torch.float32)
    with torch.no_grad():
        found = network(images)
        one_by_one = torch.cat([network(image[None]) for image in images], dim=1)
        monkeypatch.setenv(compiled.KERNELS, "torch")
        network.lanes = None  # what was offered is offered again
        usual = network(images)
    torch.testing.assert_close(found, one_by_one, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, usual, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not BF16, reason="no such instructions here")
def test_images_padded_by_reflection_are_validated_as_they_are_trained() -> None:
    """Under autocast, which validation has, PyTorch pads them into float32."""
    network = fused("convnet, batch norm, reflect", 8, precision="bf16")
    step(network, *batch(6, torch.bfloat16))
    network.eval()
    images, _ = batch(50, torch.bfloat16)
    with torch.no_grad():
        usual = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(images)
    assert network.lanes is not None
    assert torch.equal(found, usual)


def test_a_pixel_that_is_nan_is_seen_to_the_end() -> None:
    layers = nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.ReLU()
    networks = [row_of(*layers, features=4 * 16 * 16)] * 8
    network = Fused(networks, [Masks(0.0, torch.Generator())] * 8).eval()
    images, _ = batch(6, torch.float32)
    images[2, 1, 3, 3] = float("nan")
    with torch.no_grad():
        found = network(images)
    assert network.lanes is not None
    assert found[:, 2].isnan().all()
    assert not found[:, [0, 1, 3, 4, 5]].isnan().any()


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU()],
        [nn.Conv2d(3, 8, 3, dilation=2), nn.ReLU()],
        [nn.Conv2d(3, 8, (3, 5)), nn.ReLU()],
        [nn.Conv2d(3, 8, 3, padding=3), nn.ReLU()],
        [nn.Conv2d(3, 8, 3), nn.Tanh()],
        [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3)],
        [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)],
        [nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8)],
        [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout()],
        [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")],
        [nn.Conv2d(4, 8, 3), nn.ReLU()],
        [nn.Conv2d(3, 3, 1) for _ in range(9)],
    ],
)
def test_what_lanes_have_no_way_for_is_left_to_pytorch(layers: list[nn.Module]) -> None:
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10))
    assert can_fuse(network)
    assert stages_of(network) is None


def test_many_channels_and_few_members_are_left_to_pytorch() -> None:
    def fewest(channels: int, dtype: torch.dtype) -> int | None:
        network = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Flatten(), nn.Linear(channels * 900, 10))
        stages = stages_of(network)
        assert stages
        return fewest_members(stages, dtype)

    assert [fewest(channels, torch.bfloat16) for channels in (16, 64, 65)] == [5, 7, None]
    assert [fewest(channels, torch.float32) for channels in (16, 64, 65)] == [5, 7, None]
    assert fewest(16, torch.float64) is None


@pytest.mark.parametrize(
    ("network", "threads", "device", "size"),
    [
        ("convnet+batch_norm", 1, "cpu", compiled.lane_count(9)),  # larger groups have as many to a vector
        ("cnn3", 1, "cpu", compiled.lane_count(9)),
        ("convnet", 2, "cpu", 1),
        ("lenet", 1, "cuda", 1),
        ("vgg11", 1, "cpu", 1),
    ],
)
def test_from_which_size_on_groups_are_alike(network: str, threads: int, device: str, size: int) -> None:
    where = torch.device(device)
    assert smallest_representative_group(network, threads=threads, device=where, precision="fp32") == size


@pytest.fixture
def other_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Has another compiler be looked for, with nothing compiled yet."""
    remembered = (compiled.compiler, compiled.identity, compiled.library)
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path / "cache"))

    def use(compiler: str) -> None:
        monkeypatch.setenv("CC", compiler)
        for each in remembered:
            each.cache_clear()

    yield use
    monkeypatch.undo()
    for each in remembered:
        each.cache_clear()


def trains_with_pytorch() -> bool:
    network = fused("lenet", 8, precision="fp32")
    return bool(step(network, *batch(4, torch.float32)).isfinite().all()) and network.lanes is None


def test_without_a_compiler_pytorch_trains(
    other_compiler: Callable[[str], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for named in ("no-such-compiler", "false", "no-such-wrapper gcc", "gcc '"):
        other_compiler(named)
        assert compiled.kernels_name(CPU) == "torch"
        assert compiled.obstacle() == f"CC is {named!r}, which is no C compiler here"
    assert trains_with_pytorch()
    assert caplog.text == ""
    monkeypatch.setattr(compiled, "_COMPILERS", ())
    for none in ("", "  "):
        other_compiler(none)
        assert compiled.obstacle() == "there is no C compiler (gcc or clang)"


def test_a_compiler_may_be_a_command_of_several_words(other_compiler: Callable[[str], None], tmp_path: Path) -> None:
    other_compiler("cc")
    plain = compiled.identity()
    other_compiler("env cc -DNOTHING")
    assert compiled.obstacle() == ""
    assert compiled.identity() not in (None, plain), "its options are a part of what is made"
    compiled.build(tmp_path / "made.so", 8, 1)
    assert (tmp_path / "made.so").exists()


def test_a_compiler_that_fails_is_named_and_not_asked_again(
    tmp_path: Path, other_compiler: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    asked, broken = tmp_path / "asked", tmp_path / "broken-cc"
    asks = f"[ $1 = --version ] && echo 1 && exit\necho x >> {asked}\necho no header >&2\nexit 1"
    broken.write_text(f"#!/bin/sh\n{asks}\n")
    broken.chmod(0o755)
    caplog.set_level(logging.INFO)
    named = "compiling kernels for this machine, once", "no compiled kernels, PyTorch's are used: no header"
    for said in (named, ("no compiled kernels, as the compiler failed before: no header",)):
        other_compiler(str(broken))
        caplog.clear()
        assert trains_with_pytorch()
        assert tuple(record.getMessage() for record in caplog.records if "cifar" in record.name) == said
        assert compiled.kernels_name(CPU) == "torch"
    assert compiled.obstacle() == "the C compiler failed: no header"
    assert asked.read_text() == "x\n"


def test_the_kernels_are_compiled_once_and_named_by_all_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(compiled, "build", lambda path, lanes, pack: made.append(path))
    assert compiled.library(tmp_path, 8, 1) is None  # what was to be made is not there
    assert compiled.library(tmp_path, 8, 1) is None
    assert len(made) == 1  # a process asks once
    assert "no compiled kernels" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "kernels", lambda **_: None)  # as in a cache that runs no programs
        assert compiled.kernels_name(CPU) == "torch", "what does not load is not named"
        patch.setattr(compiled, "kernels", lambda **_: object())
        assert compiled.kernels_name(CPU).startswith("compiled ")
    assert compiled.kernels_name(torch.device("cuda")) == "torch"
    monkeypatch.setenv(compiled.KERNELS, "torch")
    assert compiled.kernels_name(CPU) == "torch"
    assert compiled.kernels(bf16=False) is None


def test_a_library_whose_structures_are_not_ours_is_not_used(
    tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    [made] = (session_cache / "kernels").glob(f"lanes-8-fp32-{compiled.identity()}.so")
    for name in ("Stage", "Net.stage", "Call.masks"):
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        (folder / made.name).write_bytes(made.read_bytes())
        assert compiled.library(folder, 8, 1) is not None
        compiled.library.cache_clear()
        ours = compiled.layout()
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "layout", lambda ours=ours, name=name: ours | {name: ours[name] + 4})
            assert compiled.library(folder, 8, 1) is None
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"lays out {name} otherwise" in caplog.text
        caplog.clear()
    compiled.library.cache_clear()


def test_a_library_that_others_could_have_put_there_is_not_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, session_cache: Path
) -> None:
    [library] = (session_cache / "kernels").glob("lanes-8-fp32-*.so")
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o700)
    (folder / library.name).write_bytes(library.read_bytes())
    assert compiled.library(folder, 8, 1) is not None
    compiled.library.cache_clear()
    folder.chmod(0o777)
    assert compiled.library(folder, 8, 1) is None
    assert "other users can write there" in caplog.text


@pytest.mark.parametrize(
    ("processor", "widest"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t: avx512f avx512_bf16 avx512bw avx512vl", 8),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nflags\t: avx512f avx512_bf16 avx512bw avx512vl", 16),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nflags\t: avx512f avx512_bf16 avx512bw avx512vl", 16),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nflags\t: avx2", 8),
        ("arm64 arm", 8),
    ],
)
def test_how_wide_a_processor_works(processor: str, widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "processor", lambda: processor)
    monkeypatch.delenv(compiled.KERNELS, raising=False)
    assert [compiled.lane_count(members) for members in (5, 8, 9, 40)] == [8, 8, widest, widest]
    assert compiled.has_bf16() == ("avx512_bf16" in processor)
    monkeypatch.setenv(compiled.KERNELS, "avx2")
    assert (compiled.lane_count(40), compiled.has_bf16()) == (8, False)


def test_each_user_of_a_shared_cache_has_kernels_of_their_own(
    other_compiler: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other_compiler("")
    (tmp_path / "cache" / "kernels").mkdir(parents=True)
    assert compiled._folder() == tmp_path / "cache" / "kernels"
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert compiled._folder() == tmp_path / "cache" / f"kernels-{other}"
