"""A learning curve, and its best epoch."""

import math

import pytest

from cifar_sweep.curve import EpochResult, best_epoch


def result(epoch: int, accuracy: float, *, loss: float = 1.0) -> EpochResult:
    return EpochResult(
        epoch, train_loss=loss, train_accuracy=0.5, validation_loss=1.0, validation_accuracy=accuracy,
        learning_rate=0.1, seconds=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(("accuracies", "best"), [((0.2, 0.5, 0.4), 2), ((0.5, 0.5, 0.4), 1), ((0.1, 0.2, 0.3), 3)])
def test_the_best_epoch_is_the_first_of_the_highest_accuracy(accuracies: tuple[float, ...], best: int) -> None:
    found = best_epoch(result(epoch, accuracy) for epoch, accuracy in enumerate(accuracies, start=1))
    assert found is not None
    assert found.epoch == best


def test_an_epoch_whose_loss_is_no_number_is_never_the_best() -> None:
    found = best_epoch([result(1, 0.2), result(2, 0.9, loss=math.nan)])
    assert found is not None
    assert found.epoch == 1
    assert best_epoch([result(1, 0.9, loss=math.inf)]) is None
    assert best_epoch([]) is None
