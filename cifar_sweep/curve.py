"""A trial's learning curve: what each epoch came to, and which epoch is its best. Standard library only."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EpochResult:
    """One epoch of one trial. Losses in nats, accuracies as fractions; the first epoch is 1.

    Train figures are averages over the epoch's batches while the weights moved, dropout on; validation figures are
    those of the weights after the epoch. `seconds` is this trial's share of its group's time; `group_size` is how many
    trained together, and `group_place` this one's place among them, from 0: kernels may round by both. The last two
    figures, fractions, are there where trials are chosen by them.
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
    validation_f1: float | None = None  # the mean of the classes' own
    validation_top5: float | None = None  # how often the right class is among the five most probable ones

    @property
    def diverged(self) -> bool:
        """Whether a loss is no longer a finite number."""
        return not (math.isfinite(self.train_loss) and math.isfinite(self.validation_loss))

    def to_dict(self) -> dict[str, Any]:
        """What it has, as plain data."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Metric:
    """What trials are chosen by."""

    field: str  # of an `EpochResult`
    words: str
    lowest: bool = False  # whether the lowest is the best; it is a loss then, else a fraction

    def score(self, value: float | None) -> float:
        """A number that is higher the better `value` is; of None the lowest."""
        return -math.inf if value is None else -value if self.lowest else value

    @property
    def unit(self) -> str:
        """What stands after a number."""
        return "" if self.lowest else " %"

    def number(self, value: float, digits: int = 2) -> str:
        """A value in its unit: ``87.21``; of a loss ``0.4321``, whatever the digits."""
        return f"{value:.4f}" if self.lowest else f"{100 * value:.{digits}f}"

    def text(self, value: float, digits: int = 2) -> str:
        """A value in few letters: ``87.21%``."""
        return self.number(value, digits) + self.unit.strip()


METRICS = {
    "accuracy": Metric("validation_accuracy", "validation accuracy"),
    "loss": Metric("validation_loss", "validation loss", lowest=True),
    "f1": Metric("validation_f1", "validation F1"),
    "top5": Metric("validation_top5", "validation top-5 accuracy"),
}


def best_epoch(curve: Iterable[EpochResult], metric: str = "accuracy") -> EpochResult | None:
    """The best epoch by one of `METRICS`, of equals the first; None where no epoch had a finite loss."""
    by = METRICS[metric]
    finite = (result for result in curve if not result.diverged)
    return max(finite, key=lambda result: (by.score(getattr(result, by.field)), -result.epoch), default=None)
