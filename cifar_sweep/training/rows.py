"""The parameters of K equal networks as the rows of one matrix: what an optimizer, a checkpoint and `keep` want."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cifar_sweep.training.checkpoint import StateError


@dataclass(frozen=True)
class Masks:
    """A member's dropout: its rate, and the generator that its masks come from and nothing else does."""

    rate: float
    generator: torch.Generator

    def draw(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """A mask of this shape: 0 at the rate, else what keeps the mean. A member without dropout draws nothing."""
        drawn = torch.empty(shape, device=like.device, dtype=like.dtype)
        if self.rate == 0:
            return drawn.fill_(1)
        kept = 1 - self.rate
        return drawn.bernoulli_(kept, generator=self.generator).div_(kept)


def masks_of(layer: nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d, masks: Sequence[Masks]) -> list[Masks]:
    """The members' dropout in a dropout layer: a layer that has a rate of its own keeps it."""
    return [replace(mask, rate=layer.p or mask.rate) for mask in masks]


@dataclass(frozen=True)
class Part:
    """Where a parameter of the plain network lies in a member's row, and the dtype that a step wants it in."""

    name: str
    start: int
    shape: torch.Size
    dtype: torch.dtype | None

    def of(self, rows: Tensor) -> Tensor:
        """The parameter in rows [..., parameters], flat; it shares their memory."""
        return rows[..., self.start : self.start + self.shape.numel()]


class Rows(nn.Module, ABC):
    """K networks of one shape, from images [b, 3, h, w] to outputs [K, b, classes].

    Args:
        networks: plain networks, in order.
        parts: their trained parameters.

    Attributes:
        weights: the members' parameters [K, parameters], each row in the plain network's order.
        gradients: theirs, as `gather_gradients` found them.
    """

    def __init__(self, networks: Sequence[nn.Module], parts: Sequence[Part]) -> None:
        super().__init__()
        names = [part.name for part in parts]
        found = [dict(network.named_parameters()) for network in networks]
        rows = [torch.cat([parameters[name].detach().flatten() for name in names]) for parameters in found]
        self.register_buffer("weights", torch.stack(rows))
        self.register_buffer("gradients", torch.zeros_like(self.weights))
        self.weights: Tensor
        self.gradients: Tensor
        self.parts = list(parts)

    @property
    def size(self) -> int:
        """The number of members."""
        return len(self.weights)

    @abstractmethod
    def gather_gradients(self) -> None:
        """Take the last backward pass's gradients into `gradients`."""

    @abstractmethod
    def member_buffers(self, k: int) -> Mapping[str, Tensor]:
        """What member `k`'s state dict has besides its parameters, in its own memory."""

    def member_state(self, k: int) -> dict[str, Tensor]:
        """Member `k`'s state dict, under the names of the plain network; it shares the memory of the whole."""
        state = {part.name: part.of(self.weights[k]).view(part.shape) for part in self.parts}
        return state | dict(self.member_buffers(k))

    def load_member_state(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Take over member `k`'s state dict.

        Raises:
            StateError: it is not of this network.
        """
        mine = self.member_state(k)
        if mine.keys() != state.keys() or any(mine[name].shape != state[name].shape for name in mine):
            raise StateError("the state is not one of this network")
        for name, value in mine.items():
            value.copy_(state[name])

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone, in this order."""
        kept = list(members)
        self.weights, self.gradients = self.weights[kept], self.gradients[kept]


def parts_of(network: nn.Module, *, dtypes: Mapping[str, torch.dtype | None] | None = None) -> list[Part]:
    """A network's trained parameters in order; `dtypes` are those that a step wants some of them in, by name."""
    parts: list[Part] = []
    start = 0
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parts.append(Part(name, start, parameter.shape, (dtypes or {}).get(name)))
            start += parameter.numel()
    return parts
