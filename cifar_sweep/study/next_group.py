"""Which trials a worker takes next, as pure rules: claiming follows them, and so do forecasts. Loads no storage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cifar_sweep.sweep.strategy import most_new
from cifar_sweep.sweep.sweep import Sweep


@dataclass(frozen=True)
class Waiting:
    """A trial that waits for a worker."""

    number: int  # in the study; -1 of a trial that is not there yet
    # Equal for trials that can be trained together; None where it is not known before the trial is asked for.
    shape: Any = None
    epochs: int = 0  # for how many it was trained
    begun: bool = False  # whether a worker held it before


NEW = Waiting(-1)


@dataclass(frozen=True)
class Queue:
    """Where a study stands when a worker asks for trials."""

    sweep: Sweep  # its size is the budget: never are more trials complete, pruned or running
    finished: int = 0  # complete or pruned
    running: int = 0
    waiting: Sequence[Waiting] = ()  # in any order

    @property
    def room(self) -> int:
        """How many more trials the budget has room for."""
        return max(0, self.sweep.size - self.finished - self.running)

    @property
    def placed(self) -> list[Waiting]:
        """The waiting trials that the budget has room for, in the order in which they are taken.

        Interrupted trials come before points that were never begun; both are ordered by number. The others wait until
        the budget is raised.
        """
        return sorted(self.waiting, key=lambda trial: (not trial.begun, trial.number))[: self.room]

    @property
    def new(self) -> int:
        """How many new trials the budget has room for, beside those that wait; listed points are never new."""
        return 0 if self.sweep.listed else self.room - len(self.placed)

    def first(self) -> Waiting | None:
        """The trial that the next group begins with: one that waits, or `NEW`; None where there is none to take."""
        return next(iter(self.placed), NEW if self.new else None)


class NextGroup(NamedTuple):
    """The trials that a worker takes: `waiting` ones, the group's first included, and so many `new` ones besides."""

    waiting: list[Waiting]
    new: int

    @property
    def size(self) -> int:
        """How many trials the group has."""
        return len(self.waiting) + self.new


def next_group(queue: Queue, first: Waiting, *, size: int, workers: int | None, devices: int = 1) -> NextGroup:
    """The next group of a study: `first`, and of waiting and new trials those of its shape and as many epochs.

    Args:
        queue: where the study stood before `first` was taken.
        first: what `queue.first()` said; its shape may have become known since.
        size: how many trials of its shape are trained together at most.
        workers: how many share the study, for `strategy.most_new`; None where that limits nothing.
        devices: how many they have among them.
    """
    is_new = first.number == NEW.number
    others = [trial for trial in queue.placed if trial.number != first.number and first.shape is not None]
    alike = [trial for trial in others if (trial.shape, trial.epochs) == (first.shape, first.epochs)]
    alike = alike[: max(size - 1, 0)]
    # New trials have no epochs behind them.
    most = 0 if first.epochs else size
    if workers is not None:
        begun = queue.finished + queue.running
        finished = queue.finished
        most = min(most, most_new(queue.sweep, asked=begun, finished=finished, workers=workers, devices=devices))
    new = max(0, min(most - 1 - len(alike), queue.new - is_new))
    return NextGroup(alike, new + 1) if is_new else NextGroup([first, *alike], new)
