"""A trial's learning curve: what each epoch came to, and which epoch is its best. Standard library only."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochResult:
    """One epoch of one trial. Losses in nats, accuracies as fractions; the first epoch is 1.

    Train figures are averages over the epoch's batches while the weights moved, dropout on; validation figures are
    those of the weights after the epoch. `seconds` is this trial's share of its group's time; `group_size` is how many
    trained together, and `group_place` this one's place among them, from 0: kernels may round by both.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float
    group_size: int = 1
    group_place: int = 0

    @property
    def diverged(self) -> bool:
        """Whether a loss is no longer a finite number."""
        return not (math.isfinite(self.train_loss) and math.isfinite(self.validation_loss))


def best_epoch(curve: Iterable[EpochResult]) -> EpochResult | None:
    """The epoch of the best validation accuracy, of equals the first; None where no epoch had a finite loss."""
    finite = (result for result in curve if not result.diverged)
    return max(finite, key=lambda result: (result.validation_accuracy, -result.epoch), default=None)
