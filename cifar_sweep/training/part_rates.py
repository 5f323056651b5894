"""Learning rates of parts of a network: of its last layer, of biases, and of what is held still for some epochs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cifar_sweep.config import Knobs
from cifar_sweep.training.rows import Part


class PartRates:
    """Which share of its step each parameter of each member takes, as if it had a learning rate of its own.

    An optimizer's step is the learning rate times something, so that a share of the step is that of the rate; averaged
    SGD's rate is the one that it has shrunk.
    """

    def __init__(self, knobs: Sequence[Knobs], parts: Sequence[Part], weights: Tensor) -> None:
        self._knobs, self._parts, self._weights = knobs, parts, weights
        self._head = parts[-1].name.rpartition(".")[0]
        asked = (each.head_rate or each.bias_rate != 1 or each.freeze_epochs for each in knobs)
        self._shares = torch.ones_like(weights) if any(asked) else None

    def set_epoch(self, epoch: int) -> None:
        """Take up the shares of this epoch; the first is 1."""
        if self._shares is None:
            return
        for row, knobs in zip(self._shares, self._knobs, strict=True):  # in place: a captured step reads them there
            for part in self._parts:
                part.of(row).fill_(self._share(knobs, part, epoch))

    def _share(self, knobs: Knobs, part: Part, epoch: int) -> float:
        is_head = part.name.rpartition(".")[0] == self._head
        if epoch <= knobs.freeze_epochs and not is_head:
            return 0.0
        of_head = knobs.head_rate / knobs.learning_rate if is_head and knobs.head_rate else 1.0
        return of_head * (knobs.bias_rate if part.name.endswith("bias") else 1.0)

    def before(self) -> Tensor | None:
        """The parameters before a step; None where all take it whole."""
        return None if self._shares is None else self._weights.clone()

    def after(self, before: Tensor | None) -> None:
        """Have each parameter take its share of the step that was just made."""
        if before is not None and self._shares is not None:
            torch.lerp(before, self._weights, self._shares, out=self._weights)
