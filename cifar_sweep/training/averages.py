"""Running means of the members' weights, and of what batch norm keeps: what is validated where a member has them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cifar_sweep.training.checkpoint import StateError
from cifar_sweep.training.rows import Rows


class Averages:
    """As torch.optim.swa_utils has them: the first step's weights, from then on a mean that keeps `decays` of itself.

    A member of decay 0 has its weights as they are. `begun` is whether a step was taken.
    """

    def __init__(self, network: Rows, decays: Sequence[float]) -> None:
        self._live = [(slice(None), network.weights), *network.statistics()]
        self._means = [live.clone() for _, live in self._live]
        moves = 1 - torch.tensor(decays, dtype=torch.float64, device=network.weights.device)
        self._moves = [moves[members].to(live.dtype).view(-1, *[1] * (live.dim() - 1)) for members, live in self._live]
        self.begun = False

    @torch.no_grad()
    def step(self) -> None:
        """Take the weights after another step into the means."""
        for (_, live), mean, move in zip(self._live, self._means, self._moves, strict=True):
            if self.begun:
                mean.lerp_(live, move)
            else:
                mean.copy_(live)
        self.begun = True

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Meanwhile the network has the means in place of its weights, in the same memory."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for (_, live), mean in zip(self._live, self._means, strict=True):
            kept = live.clone()
            live.copy_(mean)
            mean.copy_(kept)

    def member_state(self, k: int) -> dict[str, Tensor]:
        """Member `k`'s means, in the memory of the whole."""
        found = [
            mean[k - (members.start or 0)]
            for (members, _), mean in zip(self._live, self._means, strict=True)
            if members.start in (None, k)
        ]
        return {str(at): mean for at, mean in enumerate(found)}

    def check(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Raise StateError where `state` cannot be member `k`'s."""
        mine = self.member_state(k)
        if any(name not in state or state[name].shape != mine[name].shape for name in mine):
            raise StateError("the mean of the weights is not one of this network")

    def load_member_state(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Take over a state of member `k` that `check` accepts."""
        for name, mean in self.member_state(k).items():
            mean.copy_(state[name])
