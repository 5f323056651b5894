"""A sweep of another program as it was read: what is searched, in one form for all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Value = Any


@dataclass(frozen=True)
class Asked:
    """A parameter as another program has it: `values`, or a range from `low` to `high`; neither with a `reason`."""

    name: str
    text: str  # as it stood there, on one line
    values: Sequence[Value] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    exponents: float = 0.0  # the ends may be meant as exponents of this base; 0 where they are what they are
    unclear: bool = False  # whether nothing tells which of the two is meant
    reason: str = ""  # why it cannot be had
    note: str = ""  # what is not kept

    def with_ends(self, meant: str) -> "Asked":
        """The same with its ends taken as `values` or as `exponents`."""
        if not self.exponents or meant == "values" or self.low is None or self.high is None:
            return replace(self, exponents=0.0, unclear=False)
        try:
            low, high = (float(f"{math.pow(self.exponents, end):.12g}") for end in (self.low, self.high))
        except OverflowError:  # as exponents the ends are no numbers: they were meant as values
            return replace(self, exponents=0.0, unclear=False)
        return replace(self, low=min(low, high), high=max(low, high), exponents=0.0, unclear=False)


@dataclass(frozen=True)
class Foreign:
    """A whole sweep of another program."""

    tool: str
    asked: Sequence[Asked]
    method: str = ""
    trials: int | None = None
    seed: int | None = None
    startup: int | None = None  # trials by chance first
    metric: str = ""
    goal: str = ""
    description: str = ""
    stopping: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)  # what else stood there, by its key
