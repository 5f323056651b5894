"""What a search is asked, and what it answers. Loads no tensor: the study's column knows it."""

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cifar_sweep.parameters import Value

GRANTS = (1 / 12, 1 / 3, 1)  # the shares of its schedule until which a trial is trained, one after the other


@dataclass(frozen=True)
class Course:
    """A trial as the search sees it."""

    number: int
    params: Mapping[str, Value]  # its point of the space
    settings: Mapping[str, Value]  # these and what is fixed
    shape: Hashable  # what trials must share to be trained as a group
    epochs: int  # of its whole schedule
    accuracies: Sequence[float]  # of validation so far, by epoch
    frozen: bool = False  # it waits for its next grant
    complete: bool = False  # it was trained to its end

    @property
    def done(self) -> int:
        """How many epochs it was trained for."""
        return len(self.accuracies)


@dataclass(frozen=True)
class Hope:
    """What is expected of a trial."""

    accuracy: float  # its best one at its end
    deviation: float  # one standard deviation of that
    beats: float  # the chance to beat the best complete trial
    is_best: float  # the chance to be the best of all trials there are


FURTHER = 10  # trials that would go on or begin
WORTHWHILE = 0.3  # of one seed's noise: what they have to be expected to gain (docs/search.md)


@dataclass(frozen=True)
class Gain:
    """What so many more trials are expected to add to the best complete one, beside one seed's standard deviation."""

    expected: float
    noise: float

    @property
    def is_worthwhile(self) -> bool:
        """Whether it would be seen at all beside the luck of a seed."""
        return self.expected > WORTHWHILE * self.noise

    def __str__(self) -> str:
        gained, noise = (f"{100 * share:.1f}" for share in (self.expected, self.noise))
        return f"{FURTHER} more trials are expected to gain {gained} points; one seed's noise is {noise}"


@dataclass(frozen=True)
class Choice:
    """What to do next: give trials up, and train frozen ones or new points."""

    thawed: Sequence[int] = ()
    new: Sequence[Mapping[str, Value]] = ()
    pruned: Mapping[int, str] = field(default_factory=dict)  # trials to give up, each with its reason
    hopes: Mapping[int, Hope] = field(default_factory=dict)  # of each trial that has begun
    gain: Gain | None = None  # None where too little is known to say it
    made_of: int = 0  # how many trials had begun when it was made


InTime = Callable[[Any, int], int]  # of a shape, and of epochs done: how many trials still end in time


def in_time_always(_shape: Any, _done: int) -> int:
    """There is time for any number of trials."""
    return sys.maxsize


@dataclass(frozen=True)
class Situation:
    """What a choice is made of."""

    courses: Sequence[Course]  # all trials that have begun
    size: Callable[[Any], int]  # how many trials of a shape a group has at most
    room: int  # how many new trials there may be
    shape_of: Callable[[Mapping[str, Value]], Any]  # of a point
    seed: int  # decides all that is drawn
    in_time: InTime = in_time_always


Choose = Callable[[Situation], Choice]


def grant_end(done: int, epochs: int) -> int:
    """The epoch until which a trial of so many epochs is trained next, after `done` of them."""
    return next((end for share in GRANTS if (end := max(1, round(share * epochs))) > done), epochs)
