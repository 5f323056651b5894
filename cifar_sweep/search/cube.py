"""A sweep's space as a unit cube: a point is a share of each parameter's range, and features are what a model sees."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_sweep.parameters import Value, applies
from cifar_sweep.sweep.sweep import Cases, Choices, Range, Sweep, domain_beside, is_whole

Shares = npt.NDArray[np.float64]  # [points, parameters], each in [0, 1)
NEARBY = 0.1  # the standard deviation of a nearby point's share
CHANGED = 0.15  # how often a nearby point has another one of some choices
APART = math.sqrt(0.5)  # two choices are 1 apart


class Cube:
    """The space of a sweep. `names` are its parameters, in order; `columns` says of each feature whose it is."""

    def __init__(self, sweep: Sweep) -> None:
        self._fixed = sweep.fixed
        self._domains = sweep.space
        self.names = list(sweep.space)
        self._order = sorted(range(len(self.names)), key=lambda k: isinstance(self._domains[self.names[k]], Cases))
        self._any_cases = any(isinstance(domain, Cases) for domain in sweep.space.values())
        self.columns = [k for k, name in enumerate(self.names) for _ in range(self._width(name))]

    def _width(self, name: str) -> int:
        domain = self._domains[name]
        return len(domain.choices) if isinstance(domain, Choices) and not _is_numeric(domain) else 1

    def shares(self, params: Mapping[str, Value]) -> list[float]:
        """Where a point lies. What does nothing beside the rest, or is not given, lies in the middle."""
        settings = self._fixed | dict(params)
        used = {name: value for name, value in params.items() if applies(name, settings)}
        return [
            share_of(domain_beside(domain, settings), used[name]) if name in used else 0.5
            for name, domain in self._domains.items()
        ]

    def params(self, shares: Sequence[float]) -> dict[str, Value]:
        """The point at these shares, without parameters that do nothing beside the rest."""
        point = self.some(shares, self.names)
        return {name: value for name, value in point.items() if applies(name, self._fixed | point)}

    def some(self, shares: Sequence[float], names: Sequence[str]) -> dict[str, Value]:
        """What these parameters are at these shares, as far as they are searched."""
        point: dict[str, Value] = {}
        for k in self._order:
            name, domain = self.names[k], self._domains[self.names[k]]
            if name in names or self._any_cases:
                domain = domain_beside(domain, self._fixed | point)
                point[name] = value_at(domain, shares[k], whole=is_whole(name, domain))
        return {name: point[name] for name in self.names if name in names}

    def features(self, shares: Shares) -> Shares:
        """What a model sees of these points [points, features]: a share, or one column for each unordered choice."""
        columns: list[Any] = []
        for k, (name, domain) in enumerate(self._domains.items()):
            if isinstance(domain, Choices) and self._width(name) > 1:
                chosen = np.minimum((shares[:, k] * len(domain.choices)).astype(int), len(domain.choices) - 1)
                columns += [(chosen == place) * APART for place in range(len(domain.choices))]
            else:
                columns.append(shares[:, k])
        return np.stack(columns, axis=1) if columns else np.empty((len(shares), 0))

    def uniform(self, count: int, generator: np.random.Generator) -> Shares:
        """Random points of the whole space."""
        return generator.random((count, len(self.names)))

    def near(self, shares: Sequence[float], count: int, generator: np.random.Generator) -> Shares:
        """Random points around one."""
        around = np.array(shares) + NEARBY * generator.normal(size=(count, len(self.names)))
        around = np.clip(around, 0, 1 - 1e-9)
        unordered = [k for k, name in enumerate(self.names) if isinstance(self._domains[name], Choices)]
        around[:, unordered] = np.array(shares)[unordered]
        changed = generator.random(around.shape) < CHANGED
        changed[:, [k for k in range(len(self.names)) if k not in unordered]] = False
        return np.where(changed, generator.random(around.shape), around)


def _is_numeric(domain: Choices) -> bool:
    return all(isinstance(choice, (int, float)) and not isinstance(choice, bool) for choice in domain.choices)


def _in_order(domain: Choices) -> list[Value]:
    """The choices, numbers by their size."""
    return sorted(domain.choices) if _is_numeric(domain) else domain.choices


def share_of(domain: Range | Choices, value: Value) -> float:
    """Where `value` lies in `domain`, from 0 to 1: of steps and choices the middle of its own part."""
    if isinstance(domain, Choices):
        choices = _in_order(domain)
        return (choices.index(value) + 0.5) / len(choices)
    low, high, at = (_scaled(domain, each) for each in (domain.low, domain.high, float(value)))
    if domain.base2:
        return (at - low + 0.5) / (high - low + 1)
    return min(max((at - low) / (high - low), 0.0), 1 - 1e-9) if high > low else 0.5


def value_at(domain: Range | Choices, share: float, *, whole: bool) -> Value:
    """The value of `domain` at this share; `whole` where it must be a whole number."""
    if isinstance(domain, Choices):
        choices = _in_order(domain)
        return choices[min(int(share * len(choices)), len(choices) - 1)]
    low, high = _scaled(domain, domain.low), _scaled(domain, domain.high)
    if domain.base2:
        return int(2 ** (int(low) + int(share * (high - low + 1))))
    value = low + share * (high - low)
    value = math.exp(value) if domain.log else value
    if domain.step:
        return int(domain.low) + domain.step * round((value - domain.low) / domain.step)
    return (
        min(max(round(value), int(domain.low)), int(domain.high)) if whole else min(max(value, domain.low), domain.high)
    )


def _scaled(domain: Range, value: float) -> float:
    return math.log2(value) if domain.base2 else math.log(value) if domain.log else float(value)
