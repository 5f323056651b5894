"""Winograd's gradient of a convolution's weights: the numbers of PyTorch's, taken where it pays and nowhere else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_sweep.training import winograd
from cifar_sweep.training.device import KERNELS
from cifar_sweep.training.fuse import Fused
from cifar_sweep.training.lanes import kernels_name
from cifar_sweep.training.rows import Masks

CPU = torch.device("cpu")


@pytest.fixture
def paying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "pays", lambda: True)


def pixels(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return numbers.contiguous(memory_format=torch.channels_last)


def of_pytorch(x: Tensor, gradient: Tensor) -> Tensor:
    weight = x.new_zeros(gradient.shape[1], x.shape[1], 3, 3).requires_grad_()
    [found] = torch.autograd.grad(functional.conv2d(x, weight, padding=1), [weight], [gradient])
    return found


@pytest.mark.parametrize(
    ("images", "inputs", "outputs", "high", "wide"),
    [(3, 32, 5, 2, 2), (1, 40, 64, 8, 6), (70, 64, 32, 4, 4), (9, 33, 32, 32, 32)],
)
def test_it_is_the_gradient(images: int, inputs: int, outputs: int, high: int, wide: int) -> None:
    """The last ones do not fit into one chunk."""
    x = pixels(images, inputs, high, wide, dtype=torch.float64)
    gradient = pixels(images, outputs, high, wide, seed=1, dtype=torch.float64)
    torch.testing.assert_close(winograd.weight_gradient(x, gradient), of_pytorch(x, gradient), rtol=0, atol=1e-11)
    single = winograd.weight_gradient(x.float(), gradient.float())
    greatest = float(of_pytorch(x, gradient).abs().max())
    torch.testing.assert_close(single.double(), of_pytorch(x, gradient), rtol=0, atol=1e-5 * greatest)


def test_a_members_gradient_is_the_same_in_any_place() -> None:
    x, gradient = pixels(8, 96, 4, 4), pixels(8, 48, 4, 4, seed=1)
    alone = winograd.weight_gradient(x[:, 32:64].contiguous(), gradient[:, 16:32].contiguous())
    assert torch.equal(winograd.weight_gradient(x[:, 32:64], gradient[:, 16:32]), alone)


@pytest.mark.parametrize("bias", [False, True])
def test_fused_networks_learn_by_it(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both convolutions the second is wide enough; its first layer's gradient comes through it."""
    found = []
    for pays in (False, True):
        taken: list[bool] = []
        monkeypatch.setattr(winograd, "pays", lambda pays=pays, taken=taken: taken.append(pays) or pays)
        torch.manual_seed(0)
        layers = [
            nn.Sequential(
                nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1, bias=bias), nn.Flatten()
            )
            for _ in range(2)
        ]
        network = Fused(layers, [Masks(0.0, torch.Generator()) for _ in layers])
        network(pixels(6, 3, 8, 8)).square().sum().backward()
        network.gather_gradients()
        assert taken == [pays]
        found.append(network.gradients.clone())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-2)
    assert found[0].abs().max() > 10


@pytest.mark.usefixtures("paying")
def test_it_is_left_alone_where_it_has_no_way_or_nothing_is_learnt() -> None:
    weight = pixels(8, 32, 3, 3).requires_grad_()
    x = pixels(2, 32, 4, 4)
    assert winograd.convolve(x, weight, None, groups=1) is not None
    assert winograd.convolve(pixels(2, 32, 5, 4), weight, None, groups=1) is None
    assert winograd.convolve(x, weight.detach(), None, groups=1) is None
    assert winograd.convolve(x.bfloat16(), weight.bfloat16(), None, groups=1) is None
    assert winograd.convolve(x.double(), weight.double(), None, groups=1) is None
    assert winograd.convolve(pixels(2, 8, 4, 4), pixels(8, 8, 3, 3).requires_grad_(), None, groups=1) is None


@pytest.mark.parametrize(("ratio", "is_faster"), [(1.8, True), (1.05, False)])
def test_whether_it_pays_is_measured_once(
    ratio: float, is_faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(tmp_path))
    ratios = iter([ratio])
    monkeypatch.setattr(winograd, "_speedup", lambda: next(ratios))
    for _ in range(2):
        winograd.pays.cache_clear()
        assert winograd.pays() is is_faster
        assert kernels_name(CPU).endswith(" and winograd") is is_faster
    assert kernels_name(torch.device("cuda")) == "torch"
    winograd.pays.cache_clear()
    monkeypatch.setenv(KERNELS, "torch")
    assert not winograd.pays()
    winograd.pays.cache_clear()


def test_the_two_are_compared_on_this_machine() -> None:
    assert 0.05 < winograd._speedup() < 50
