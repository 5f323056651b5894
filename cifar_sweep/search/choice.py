"""What a search is asked, and what it answers. Loads no tensor: the study's column knows it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cifar_sweep.config import Value

GRANTS = (1 / 12, 1 / 3, 1)  # the shares of its schedule until which a trial is trained, one after the other


@dataclass(frozen=True)
class Course:
    """A trial as the search sees it.

    Attributes:
        params: its point of the space.
        settings: these and what is fixed.
        shape: what trials must share to be trained as a group.
        epochs: the length of its whole schedule.
        accuracies: its validation accuracies so far, by epoch.
        frozen: whether it waits for its next grant.
        complete: whether it was trained to its end.
    """

    number: int
    params: Mapping[str, Value]
    settings: Mapping[str, Value]
    shape: Hashable
    epochs: int
    accuracies: Sequence[float]
    frozen: bool = False
    complete: bool = False

    @property
    def done(self) -> int:
        """How many epochs it was trained for."""
        return len(self.accuracies)


@dataclass(frozen=True)
class Hope:
    """What is expected of a trial: its best accuracy at its end, one standard deviation, and two chances.

    `beats` is the chance to beat the best complete trial, `is_best` that to be the best of all trials there are.
    """

    accuracy: float
    deviation: float
    beats: float
    is_best: float


@dataclass(frozen=True)
class Choice:
    """What to do next: give up the trials in `pruned`, each with its reason, and train `thawed` ones or `new` points.

    `hopes` is what is expected of each trial that has begun; there were `made_of` of them when it was made.
    """

    thawed: Sequence[int] = ()
    new: Sequence[Mapping[str, Value]] = ()
    pruned: Mapping[int, str] = field(default_factory=dict)
    hopes: Mapping[int, Hope] = field(default_factory=dict)
    made_of: int = 0


@dataclass(frozen=True)
class Situation:
    """What a choice is made of.

    Attributes:
        courses: all trials that have begun.
        size: how many trials of a shape a group has at most.
        room: how many new trials there may be.
        shape_of: the shape of a point.
        seed: decides all that is drawn.
    """

    courses: Sequence[Course]
    size: Callable[[Any], int]
    room: int
    shape_of: Callable[[Mapping[str, Value]], Hashable]
    seed: int


Choose = Callable[[Situation], Choice]


def grant_end(done: int, epochs: int) -> int:
    """The epoch until which a trial of so many epochs is trained next, after `done` of them."""
    return next((end for share in GRANTS if (end := max(1, round(share * epochs))) > done), epochs)
