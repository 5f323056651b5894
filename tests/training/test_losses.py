"""Losses are PyTorch's, in float64; a member's does not depend on what the others are trained by."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cifar_sweep.config import TrialConfig
from cifar_sweep.training.losses import Loss, class_weights, losses_of, shares_of

CPU = torch.device("cpu")
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])


def config(**params: Any) -> TrialConfig:
    return TrialConfig.from_params(params, classes=4, precision="fp32", data_seed=0, seed=0)


def batch(members: int = 1, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(members, 7, 4, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.randint(4, (7,), generator=generator)


def focal(logits: Tensor, labels: Tensor, gamma: float, weight: Tensor | None = None) -> Tensor:
    """As Lin et al. write it (arXiv 1708.02002), with a softmax."""
    chosen = functional.softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    each = -((1 - chosen) ** gamma) * chosen.log()
    return each.mean() if weight is None else (weight[labels] * each).sum() / weight[labels].sum()


def one_hot(labels: Tensor) -> Tensor:
    return functional.one_hot(labels, 4).double()


def soft_f1(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 less the mean of the classes' 2 TP / (2 TP + FP + FN), counted in probabilities."""
    found = functional.softmax(logits, dim=1)
    right, false, missed = (found * targets).sum(0), (found * (1 - targets)).sum(0), ((1 - found) * targets).sum(0)
    scores = 2 * right / (2 * right + false + missed)
    return 1 - (scores.mean() if weight is None else (weight * scores).sum() / weight.sum())


EXPECTED = [
    ({"loss": "f1"}, None, lambda x, y: soft_f1(x, one_hot(y))),
    ({"loss": "f1", "label_smoothing": 0.2}, WEIGHTS, lambda x, y: soft_f1(x, 0.8 * one_hot(y) + 0.05, WEIGHTS)),
    ({"label_smoothing": 0.1}, None, lambda x, y: functional.cross_entropy(x, y, label_smoothing=0.1)),
    ({}, WEIGHTS, lambda x, y: functional.cross_entropy(x, y, WEIGHTS.double())),
    (
        {"label_smoothing": 0.2}, WEIGHTS,
        lambda x, y: functional.cross_entropy(x, y, WEIGHTS.double(), label_smoothing=0.2),
    ),
    ({"loss": "focal"}, None, lambda x, y: focal(x, y, 2.0)),
    ({"loss": "focal", "focal_gamma": 0.0}, None, functional.cross_entropy),
    ({"loss": "focal", "focal_gamma": 0.5}, WEIGHTS, lambda x, y: focal(x, y, 0.5, WEIGHTS.double())),
    ({"loss": "mse"}, None, lambda x, y: functional.mse_loss(functional.softmax(x, dim=1), one_hot(y))),
    (
        {"loss": "mse", "label_smoothing": 0.1}, WEIGHTS,
        lambda x, y: (
            (functional.softmax(x, dim=1) - 0.9 * one_hot(y) - 0.025).square().mean(dim=1) * WEIGHTS[y]
        ).sum() / WEIGHTS[y].sum(),
    ),
    ({"loss": "bce"}, None, lambda x, y: functional.binary_cross_entropy_with_logits(x, one_hot(y))),
    (
        {"loss": "bce", "label_smoothing": 0.4}, None,
        lambda x, y: functional.binary_cross_entropy_with_logits(x, 0.6 * one_hot(y) + 0.1),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("params", "weights", "expected"), EXPECTED)
def test_a_loss_is_that_of_pytorch(params: dict[str, Any], weights: Tensor | None, expected: Any) -> None:
    logits, labels = batch()
    ours = Loss([config(**params)], weights, device=CPU)(logits, labels)
    theirs = expected(logits[0], labels)
    torch.testing.assert_close(ours[0], theirs)
    one, other = (torch.autograd.grad(each, logits)[0] for each in (ours.sum(), theirs))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "mse", "bce"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_members_loss_is_its_own(loss: str, weights: Tensor | None) -> None:
    """To the last bit that among copies of it, the plain one of a member without smoothing included."""
    logits, labels = batch(3, dtype=torch.float32)
    with torch.no_grad():
        logits[2] = float("nan")
    configs = [config(loss=loss, label_smoothing=each, focal_gamma=1 + each) for each in (0.0, 0.3, 0.1)]
    together = Loss(configs, weights, device=CPU)(logits, labels)
    together.sum().backward()
    assert logits.grad is not None
    for k in range(2):
        own = logits[k].detach().repeat(3, 1, 1).requires_grad_()
        among_copies = Loss([configs[k]] * 3, weights, device=CPU)(own, labels)
        among_copies.sum().backward()
        assert own.grad is not None
        assert torch.equal(among_copies[k], together[k])
        assert torch.equal(own.grad[k], logits.grad[k])
        assert own.grad.isfinite().all()


def test_shares_of_the_classes() -> None:
    """Images of two classes at once, as mixing gives them."""
    logits, labels = batch()
    shares = 0.3 * shares_of(labels, 4).double() + 0.7 * shares_of(labels.flip(0), 4).double()
    mixed = Loss([config()], None, device=CPU)(logits, shares)
    expected = 0.3 * losses_of(logits, labels).mean() + 0.7 * losses_of(logits, labels.flip(0)).mean()
    torch.testing.assert_close(mixed[0], expected)


def test_a_sure_answer_has_a_slope() -> None:
    logits = torch.tensor([[[200.0, 0.0, 0.0, 0.0]]], requires_grad=True)
    Loss([config(loss="focal", focal_gamma=0.3)], None, device=CPU)(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_balanced_weights_make_every_class_count_the_same() -> None:
    counts = torch.tensor([10, 20, 0, 70])
    weights = class_weights(config(class_weights="balanced").shape, lambda: counts)
    assert weights is not None
    assert (weights * counts).tolist() == [25, 25, 0, 25]
    assert class_weights(config().shape, lambda: counts) is None
    assert class_weights(config(class_weights="1,2,0.5,3").shape, lambda: counts).tolist() == [1, 2, 0.5, 3]  # type: ignore[union-attr]
    own = class_weights(config(class_weights_2=3.0).shape, lambda: counts)
    assert own is not None
    assert own.tolist() == [1, 3, *[1] * (len(own) - 2)]
