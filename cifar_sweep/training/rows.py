"""The parameters of K equal networks as the rows of one matrix: what an optimizer, a checkpoint and `keep` want."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from cifar_sweep.config import derive_seed
from cifar_sweep.training.checkpoint import StateError


class Stream:
    """Random numbers of K members on a device, by calls whose number does not grow with K, nor depends on the host.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), on PyTorch's signed integers. Each member's numbers follow from its
    seed alone, and from how many were drawn since.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.keys = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.drawn = torch.zeros(1, dtype=torch.int64, device=device)
        self._first, self._calls = 0, 0

    def seed(self, seeds: Sequence[int]) -> None:
        """Begin a stream for each of these seeds of 63 bits."""
        self._first, self._calls = seeds[0], 0
        keys = torch.tensor(seeds, dtype=torch.int64, device=self.device)[:, None]
        if keys.shape != self.keys.shape:
            self.keys = torch.empty_like(keys)
        self.keys.copy_(keys)  # in place: a captured step reads them there
        self.drawn.zero_()

    def next_seed(self) -> int:
        """A seed for what a network draws by itself in its next call; it is of one member, and waits for no device."""
        self._calls += 1
        return derive_seed(self._first, "call", self._calls)

    def draw(self, count: int) -> Tensor:
        """So many whole numbers from 0 to 2**24 - 1 for each member [K, count]."""
        places = torch.arange(1, count + 1, device=self.device).add_(self.drawn)
        self.drawn.add_(count)
        z = self.keys + places * -0x61C8864680B583EB
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            z.bitwise_xor_((z >> shift).bitwise_and_((1 << 64 - shift) - 1)).mul_(factor)
        z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))
        return z.bitwise_right_shift_(40).bitwise_and_((1 << 24) - 1)

    def masks(self, rates: float | Tensor, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """A mask of this shape for each member [K, ...]: 0 at its rate (one, or [K, 1]), else what keeps the mean."""
        kept = self.draw(math.prod(shape)) >= rates * (1 << 24)
        return (kept / (1 - rates)).to(like.dtype).view(-1, *shape)


@dataclass(frozen=True)
class Masks:
    """A member's dropout: its rate, and what its masks come from and nothing else does. On a GPU members share it."""

    rate: float
    generator: torch.Generator | Stream
    at: Callable[[str], float] = lambda _place: 0.0  # the rate of a layer with a place of its own

    def draw(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """A mask of this shape: 0 at the rate, else what keeps the mean. A member without dropout draws nothing."""
        if isinstance(self.generator, Stream):
            return self.generator.masks(self.rate, shape, like=like)[0]
        drawn = torch.empty(shape, device=like.device, dtype=like.dtype)
        if self.rate == 0:
            return drawn.fill_(1)
        kept = 1 - self.rate
        return drawn.bernoulli_(kept, generator=self.generator).div_(kept)


def masks_of(layer: nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d, masks: Sequence[Masks]) -> list[Masks]:
    """The members' dropout in a dropout layer: a layer that has a rate of its own keeps it.

    Of several in a network each may have a place, whose rate it then has.
    """
    place = getattr(layer, "place", "")
    return [replace(mask, rate=layer.p or (mask.at(place) if place else mask.rate)) for mask in masks]


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
    handed: list[tuple[Tensor, Tensor]]  # of each parameter in the last step: where its gradient belongs, and it

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.handed = []
        self.parts = parts_of(networks[0])
        found = [dict(network.named_parameters()) for network in networks]
        rows = [torch.cat([parameters[part.name].detach().flatten() for part in self.parts]) for parameters in found]
        self.register_buffer("weights", torch.stack(rows))
        self.register_buffer("gradients", torch.zeros_like(self.weights))

    def gather_gradients(self) -> None:
        """Take the last backward pass's gradients into `gradients`; a parameter that was not used has none."""
        for place, parameter in self.handed:
            if parameter.grad is None:
                place.zero_()
            else:
                place.copy_(parameter.grad.reshape(place.shape))
        self.handed = []

    @abstractmethod
    def member_buffers(self, k: int) -> Mapping[str, Tensor]:
        """What member `k`'s state dict has besides its parameters, in its own memory."""

    @abstractmethod
    def statistics(self) -> list[tuple[slice, Tensor]]:
        """What the networks keep besides parameters: each tensor with the members that it is of, who lie in front."""

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
