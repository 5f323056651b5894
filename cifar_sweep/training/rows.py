"""The parameters of K equal networks as the rows of one matrix: what an optimizer, a checkpoint and `keep` want."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

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
    """Where a parameter of the plain network lies in a member's row."""

    name: str
    start: int
    shape: torch.Size

    def of(self, rows: Tensor) -> Tensor:
        """The parameter in rows [..., parameters], flat; it shares their memory."""
        return rows[..., self.start : self.start + self.shape.numel()]

    def whole(self, row: Tensor) -> Tensor:
        """The parameter in a member's row [parameters], in its own shape; it shares the row's memory."""
        return self.of(row).view(self.shape)


class Rows(nn.Module, ABC):
    """K plain networks of one shape, in order, from images [b, 3, h, w] to outputs [K, b, classes]."""

    parts: list[Part]  # their trained parameters, in the plain network's order
    weights: Tensor  # the members' parameters [K, parameters], each row in this order
    gradients: Tensor  # theirs, as `gather_gradients` found them

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = parts_of(networks[0])
        found = [dict(network.named_parameters()) for network in networks]
        rows = [torch.cat([parameters[part.name].detach().flatten() for part in self.parts]) for parameters in found]
        self.register_buffer("weights", torch.stack(rows))
        self.register_buffer("gradients", torch.zeros_like(self.weights))

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
        return {part.name: part.whole(self.weights[k]) for part in self.parts} | dict(self.member_buffers(k))

    def load_member_state(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Take over member `k`'s state dict; StateError if it is not of this network."""
        mine = self.member_state(k)
        if mine.keys() != state.keys() or any(mine[name].shape != state[name].shape for name in mine):
            raise StateError("the state is not one of this network")
        for name, value in mine.items():
            value.copy_(state[name])

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone, in this order."""
        self.weights, self.gradients = self.weights[list(members)], self.gradients[list(members)]


def parts_of(network: nn.Module) -> list[Part]:
    """A network's trained parameters in order."""
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    starts = accumulate((parameter.numel() for _, parameter in trained), initial=0)
    return [Part(name, start, parameter.shape) for (name, parameter), start in zip(trained, starts, strict=False)]
