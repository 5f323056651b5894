"""When a sweep ends: its groups in the order in which they are claimed, spread over the workers.

What is not known beforehand is drawn: which shapes the sampler chooses, how far a trial comes before it is pruned, and
how far off the pace is. The sweep is laid out several times; the times of all layouts are the forecast.
"""

import bisect
import heapq
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cifar_sweep.config import Shape
from cifar_sweep.forecast.costs import Pace
from cifar_sweep.forecast.expected import learns, queued_shapes
from cifar_sweep.forecast.pruning import expected_survival, startup
from cifar_sweep.study.next_group import NEW, Queue, Waiting, next_group
from cifar_sweep.sweep.sweep import Sweep

LAYOUTS = 100
# The more trials, the less their sum is a matter of luck: so many in all layouts together are enough.
_LAID_OUT_TRIALS = 4000
_FEWEST_LAYOUTS = 20
# TPE takes after the best tenth of all trials, which is its own share; here it does so every second time, a guess.
BEST_SHARE = 0.1
_LIKE_THE_BEST = 0.5
# How far off the expected share of pruned epochs is before any trial is pruned, as a standard deviation: a guess.
_PRUNING_DOUBT = 0.3


@dataclass(frozen=True)
class UnderWay:
    """A group that a worker trains: `members` trials with `done` epochs, `since` seconds into the next one."""

    shape: Shape
    members: int
    done: int = 0
    since: float = 0.0


@dataclass(frozen=True)
class Start:
    """Where a sweep stands."""

    waiting: Sequence[Waiting] = ()  # the trials that wait, each with its `Shape`; what a point leaves open is drawn
    finished: int = 0  # trials that are complete or pruned
    complete: int = 0
    under_way: Sequence[UnderWay] = ()  # what is being trained, one group for each worker
    best: Sequence[Shape] = ()  # the shapes of the best trials so far, which the sampler takes for examples
    idle: int = 0  # workers that are there, or will be, and train nothing
    delay: float = 0.0  # seconds until those begin
    strictness: float = 1.0  # how many times as many epochs the pruner saves as `expected_survival` has it
    judged: int = 0  # how many trials that is known from
    asked: int = 0  # trials that there are, in whatever state
    drawn: Mapping[int, Shape] = field(default_factory=dict)  # `drawn_shapes` of those that follow

    def unpruned(self) -> "Start":
        """The same, where every trial is trained to its end."""
        return replace(self, strictness=0.0)

    def shortened(self, share: float) -> "Start":
        """The same, where what waits has this share of its epochs."""
        waiting = [replace(each, shape=shortened(each.shape, share)) for each in self.waiting]
        drawn = {number: shortened(shape, share) for number, shape in self.drawn.items()}
        return replace(self, waiting=waiting, drawn=drawn)


def shortened(shape: Shape, share: float) -> Shape:
    """A shape with this share of its epochs, at least one."""
    return replace(shape, epochs=max(1, round(share * shape.epochs)))


def beginning(sweep: Sweep, *, workers: int, delay: float) -> Start:
    """Where a sweep stands when its command is given; its workers begin after `delay` seconds."""
    waiting = [Waiting(number, shape) for number, shape in enumerate(queued_shapes(sweep))]
    return Start(waiting, idle=workers, delay=delay, asked=len(waiting))


@dataclass(frozen=True)
class Forecast:
    """Layouts of a sweep: of each the seconds until its trials end, in order."""

    layouts: Sequence[Sequence[float]]

    @property
    def _lengths(self) -> list[float]:
        return [max(ends, default=0.0) for ends in self.layouts]

    @property
    def mean(self) -> float:
        """The mean seconds until the last trial's end."""
        return statistics.fmean(self._lengths)

    @property
    def likely(self) -> float:
        """The seconds that are enough in half of the cases."""
        return _quantile(self._lengths, 0.5)

    @property
    def range(self) -> tuple[float, float]:
        """Seconds that hold the end in 19 of 20 cases if all guesses are true: in eight of ten real ones."""
        return _quantile(self._lengths, 0.025), _quantile(self._lengths, 0.975)

    def finished(self, seconds: float) -> int:
        """How many more trials are over by then, in half of the cases."""
        return int(_quantile([bisect.bisect_right(ends, seconds) for ends in self.layouts], 0.5))


def _quantile(numbers: Sequence[float], share: float) -> float:
    return sorted(numbers)[min(int(share * len(numbers)), len(numbers) - 1)]


def forecast(sweep: Sweep, start: Start, pace: Pace, shapes: Sequence[Shape], *, layouts: int = LAYOUTS) -> Forecast:
    """Lay out the rest of a sweep at this pace, so often at most; `shapes` are what the sampler may choose from."""
    enough = max(_LAID_OUT_TRIALS // max(sweep.size - start.finished, 1), _FEWEST_LAYOUTS)
    return Forecast([_Layout(sweep, start, pace, shapes, seed).run() for seed in range(min(layouts, enough))])


class _Layout:
    def __init__(self, sweep: Sweep, start: Start, pace: Pace, shapes: Sequence[Shape], seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._sweep, self._start, self._pace, self._shapes = sweep, start, pace, shapes
        self._slowness = math.exp(self._random.gauss(0.0, pace.doubt))
        doubt = _PRUNING_DOUBT / math.sqrt(1 + start.judged / 4) if start.strictness else 0.0
        self._strictness = max(start.strictness + self._random.gauss(0.0, doubt), 0.0)
        self._favourite = self._random.choice(start.best or shapes or [None])
        self._survival: dict[int, list[float]] = {}
        self._waiting, self._finished, self._complete = list(start.waiting), start.finished, start.complete
        self._running, self._asked = 0, start.asked
        # When each worker is free again, and how many trials have ended then; of them so many are complete.
        self._workers: list[tuple[float, int, int]] = [(start.delay, 0, 0)] * start.idle
        self._ends: list[float] = []

    def run(self) -> list[float]:
        """The seconds until each trial's end, in order."""
        for group in self._start.under_way:
            # An epoch that takes longer than expected is about to end.
            since = min(group.since, 0.95 * self._slowness * self._pace.epoch(group.shape, group.members))
            self._train(-since, group)
        heapq.heapify(self._workers)
        while self._workers:
            now, ended, complete = heapq.heappop(self._workers)
            self._running -= ended
            self._finished += ended
            self._complete += complete
            queue = Queue(self._sweep, self._finished, self._running, self._waiting)
            if (first := queue.first()) is not None:
                claimed = self._next_group(queue, first)
                begin = self._slowness * self._pace.factor * self._pace.costs.trial * claimed.members
                self._train(now + begin, claimed)
        return sorted(self._ends)

    def _next_group(self, queue: Queue, first: Waiting) -> UnderWay:
        costs = self._pace.costs
        shape = first.shape or self._drawn() or self._sampled()
        workers = None if costs.fixed else costs.workers
        taken = next_group(queue, first, size=costs.size(shape), workers=workers, devices=costs.devices)
        self._asked += taken.new
        gone = {trial.number for trial in taken.waiting}
        self._waiting = [trial for trial in self._waiting if trial.number not in gone]
        return UnderWay(shape, taken.size, first.epochs)

    @property
    def _learns(self) -> bool:
        return learns(self._sweep, self._finished)

    def _drawn(self) -> Shape | None:
        """The shape of the next new trial, where its seed alone decides it. One that is impossible is passed over."""
        while not self._learns and (shape := self._start.drawn.get(self._asked)):
            if not shape.fault:
                return shape
            self._asked += 1
        return None

    def _sampled(self) -> Shape:
        if self._learns and self._favourite and self._random.random() < _LIKE_THE_BEST:
            return self._favourite
        return self._random.choice(self._shapes)

    def _train(self, at: float, group: UnderWay) -> None:
        epoch, shape = group.done, group.shape
        lengths = sorted(self._length(shape.epochs, group.done) for _ in range(group.members))
        for k, length in enumerate(lengths):
            at += self._slowness * (length - epoch) * self._pace.epoch(shape, group.members - k)
            epoch = length
            self._ends.append(max(at, 0.0))
        self._running += group.members
        heapq.heappush(self._workers, (max(at, 0.0), group.members, lengths.count(shape.epochs)))

    def _length(self, epochs: int, done: int) -> int:
        if not self._strictness or self._complete < startup(self._sweep):
            return epochs
        if epochs not in self._survival:
            expected = expected_survival(self._sweep, epochs)
            self._survival[epochs] = [max(1 - self._strictness * (1 - share), 0.0) for share in expected]
        survival = self._survival[epochs]
        drawn = self._random.random() * survival[min(done, epochs - 1)]
        return max(done + 1, sum(share > drawn for share in survival))


def group_sizes(sweep: Sweep, *, workers: int, devices: int = 1, largest: int) -> list[int]:
    """The sizes of the groups of new trials that a sweep is trained in, if workers keep step and nothing is pruned."""
    sizes: list[int] = []
    queue = Queue(sweep)
    while queue.new:
        for _ in range(workers):
            if queue.new:
                sizes.append(next_group(queue, NEW, size=largest, workers=workers, devices=devices).size)
                queue = replace(queue, running=queue.running + sizes[-1])
        queue = Queue(sweep, finished=queue.finished + queue.running)
    return sizes
