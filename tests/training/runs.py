"""Runs in float64, in which members of a group equal their solo runs but for the last digits."""

from collections.abc import Sequence

import torch
from torch import nn

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.training.fuse import Fused
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build
from cifar_sweep.training.rows import Masks
from cifar_sweep.training.train import Run


def trained(configs: Sequence[TrialConfig], data: ImageData, *, epochs: int = 2) -> Run:
    run = Run(configs, data, device=torch.device("cpu"))
    run.network.double()
    run.prepare_optimizer()
    for _ in range(epochs):
        run.epoch()
    return run


def assert_members_equal(one: Run, k: int, other: Run, j: int, *, atol: float = 1e-9) -> None:
    mine, theirs = one.state(k), other.state(j)
    assert mine.keys() == theirs.keys()
    for name in mine.keys() - {"history"}:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-7, atol=atol, msg=lambda text, n=name: n + text)


def assert_fused_is_plain(
    shape: Shape, *, outputs: tuple[float, float] = (1e-9, 1e-12), gradients: tuple[float, float] = (1e-6, 1e-9)
) -> None:
    """Two members as one network give what each gives alone, forward and backward, and the same running statistics.

    `outputs`, which statistics are as near as, and `gradients` are relative and absolute differences.
    """
    networks = [build(shape, seed=seed).double() for seed in range(2)]
    for layer in (layer for network in networks for layer in network.modules()):
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            # A channel that is alike in all images would else stand at ReLU's kink, on either side by rounding.
            nn.init.normal_(layer.bias)
    fused = Fused(networks, [Masks(0.0, torch.Generator())] * 2)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, shape.image_size, shape.image_size, dtype=torch.float64, generator=generator)
    labels = torch.tensor([1, 2, 3])
    found = fused(images)
    assert found.shape == (2, 3, shape.classes)
    # The sum over members of the mean over the batch: a member's gradient does not depend on how many there are.
    sum(nn.functional.cross_entropy(each, labels) for each in found).backward()  # type: ignore[union-attr]
    fused.gather_gradients()
    (rtol, atol), (gradient_rtol, gradient_atol) = outputs, gradients
    for k, network in enumerate(networks):
        alone = network(images)
        nn.functional.cross_entropy(alone, labels).backward()
        torch.testing.assert_close(found[k], alone, rtol=rtol, atol=atol)
        for part, (name, parameter) in zip(fused.parts, network.named_parameters(), strict=True):
            assert part.name == name
            mine = part.of(fused.gradients[k]).view(part.shape)
            torch.testing.assert_close(mine, parameter.grad, rtol=gradient_rtol, atol=gradient_atol)
        for name, value in fused.member_state(k).items():
            torch.testing.assert_close(value, network.state_dict()[name], rtol=rtol, atol=atol)
