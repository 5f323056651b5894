"""How long a sweep takes: it is run in imagination, many times over, and the times are counted.

Each time it is drawn which trials come, at which pace the machine trains them and which of them the pruner ends; the
workers take them in groups as `SweepStudy.claim` hands them out. The last worker's end is the sweep's.
"""

import bisect
import heapq
import math
import random
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field

from cifar_sweep.config import Value
from cifar_sweep.forecast.costs import Drawn, Kind, Pace, kind_of
from cifar_sweep.forecast.expected import completed, drawn, first_points, shape_of
from cifar_sweep.forecast.fates import Fate, Fates
from cifar_sweep.sweep import space, strategy
from cifar_sweep.sweep.sweep import Sweep

DRAWS = 200
# So many trials in all draws together are enough: the more trials, the less their sum is a matter of luck.
_DRAWN_TRIALS = 8000
_FEWEST_DRAWS = 40
# Deviation of one group's time from another's of the same kind.
STRAY = 0.02
# TPE takes what is like the best tenth of all trials (its own share); so many of those count like the whole space, and
# so often it is the next batch size instead. Both are what predicted best what TPE chose in searches with stub trials.
_BEST_SHARE = 0.1
_OPEN_MINDED = 3
_NEXT = 0.3


@dataclass(frozen=True)
class Waiting:
    """A trial that waits: the kinds of which it may be; `alike` and `done` tell with which others it can be trained."""

    kinds: Sequence[Kind]
    alike: Hashable = None
    done: int = 0


@dataclass(frozen=True)
class UnderWay:
    """A group that a worker trains: `members` trials with `done` epochs, `since` seconds into the next one."""

    kind: Kind
    members: int
    done: int = 0
    since: float = 0.0


@dataclass(frozen=True)
class Standing:
    """Where a sweep stands.

    Attributes:
        waiting: the trials that wait, in order.
        finished: trials that are complete or pruned; of them `complete`.
        under_way: what is being trained, one group for each worker.
        best: the kinds of the best trials so far, as many as the sampler takes for examples.
        idle: workers that are there, or will be, and train nothing.
        delay: seconds until those begin.
    """

    waiting: Sequence[Waiting] = ()
    finished: int = 0
    complete: int = 0
    under_way: Sequence[UnderWay] = ()
    best: Sequence[Kind] = ()
    idle: int = 0
    delay: float = 0.0


@dataclass(frozen=True)
class Group:
    """A group of an imagined sweep."""

    kind: Kind
    members: int
    seconds: float


@dataclass(frozen=True)
class Course:
    """One way that a sweep may go: when its trials end, in order, and in which groups they were trained."""

    ends: Sequence[float]
    groups: Sequence[Group]

    @property
    def seconds(self) -> float:
        """Until the last trial ends."""
        return self.ends[-1] if self.ends else 0.0


@dataclass(frozen=True)
class Forecast:
    """Ways that a sweep may go, the shortest first."""

    courses: Sequence[Course]

    def quantile(self, share: float) -> float:
        """The seconds that are enough in this share of the cases."""
        return _quantile([course.seconds for course in self.courses], share)

    @property
    def range(self) -> tuple[float, float]:
        """Seconds that hold the end in 19 of 20 cases, if all that is assumed is true: eight of ten real ones."""
        return self.quantile(0.025), self.quantile(0.975)

    def finished(self, seconds: float, share: float) -> int:
        """How many more trials are over by then, at least, in this share of the cases."""
        counts = sorted(bisect.bisect_right(course.ends, seconds) for course in self.courses)
        return int(_quantile(counts, 1 - share))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def queue_of(sweep: Sweep) -> list[Waiting]:
    """The trials that wait when a study of `sweep` is made."""
    if sweep.given:
        kinds = [kind_of(asdict(shape_of(sweep.fixed | point.params(), "fp32"))) for point in sweep.enqueue]
        return [Waiting([kind], alike=_given(sweep, k)) for k, kind in enumerate(kinds)]
    return [
        Waiting(kinds_of_point(sweep, first), alike=alike(sweep, space.encode(first, sweep)))
        for first in first_points(sweep)
    ]


def kinds_of_point(sweep: Sweep, params: Mapping[str, Value]) -> list[Kind]:
    """The kinds of which a point of the space may become a trial: what it leaves open is drawn."""
    few = completed(sweep, params, drawn(sweep))
    return [kind_of(asdict(shape_of(values, "fp32"))) for values in few]


def alike(sweep: Sweep, params: Mapping[str, Value]) -> Hashable:
    """What queued trials have in common that can be trained together; None where a point leaves part of it open."""
    known = space.shape_params(params)
    searched = {name for name in sweep.space if name in strategy.SHAPE_PARAMETERS}
    if {name.removeprefix(space.EXPONENT) for name in known} != searched:
        return None
    return frozenset(known.items())


def _given(sweep: Sweep, k: int) -> Hashable:
    return shape_of(sweep.fixed | sweep.enqueue[k].params(), "fp32")


def kinds_of(sweep: Sweep) -> list[Kind]:
    """The kinds of trial that the sampler may choose, at random; none where all are given."""
    return [] if sweep.given else [kind_of(asdict(shape_of(values, "fp32"))) for values in drawn(sweep)]


def forecast(
    sweep: Sweep, standing: Standing, *, pace: Pace, fates: Fates, kinds: Sequence[Kind], draws: int = DRAWS
) -> Forecast:
    """Imagine the rest of a sweep.

    Args:
        sweep: what is trained.
        standing: where it stands.
        pace: how fast.
        fates: what becomes of its trials.
        kinds: as `kinds_of` gives them.
        draws: how often, at most; 1 is the most likely pace.
    """
    ahead = max(sweep.size - standing.finished, 1)
    times = max(min(draws, _DRAWN_TRIALS // ahead), min(draws, _FEWEST_DRAWS))
    there = frozenset(kinds)
    courses = []
    for seed in range(times):
        generator = random.Random(seed)  # noqa: S311 - no secret
        speed = pace.drawn(generator) if draws > 1 else pace.usual()
        courses.append(_Course(sweep, standing, speed, fates.drawn(generator), kinds, there, generator).run())
    return Forecast(sorted(courses, key=lambda course: course.seconds))


def examples(finished: int) -> int:
    """How many of so many finished trials TPE takes for examples."""
    return math.ceil(_BEST_SHARE * finished)


@dataclass
class _Course:
    """One imagined sweep, as it goes."""

    sweep: Sweep
    standing: Standing
    speed: Drawn
    fate: Fate
    kinds: Sequence[Kind]
    there: Set[Kind]
    generator: random.Random
    ends: list[float] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def run(self) -> Course:
        standing = self.standing
        self.waiting = list(standing.waiting)
        self.finished = standing.finished
        self.under_way = sum(group.members for group in standing.under_way)
        self.best = list(standing.best)
        self.complete: list[float] = []
        self.turns: list[tuple[float, int]] = []
        for group in standing.under_way:
            begun = -min(group.since, 0.95 * self.speed.epoch(group.kind, group.members))
            self._train(begun, group)
        self.turns += [(standing.delay, 0)] * standing.idle
        heapq.heapify(self.turns)
        while self.turns:
            now, members = heapq.heappop(self.turns)
            self.finished += members
            self.under_way -= members
            claimed = self._claim()
            if claimed is not None:
                self.under_way += claimed.members - 1  # the first one is counted
                self._train(now + self.speed.begin(claimed.members), claimed)
        return Course(sorted(self.ends), self.groups)

    def _claim(self) -> UnderWay | None:
        """The next group, as `SweepStudy.claim` makes it; None where nothing is left."""
        sweep = self.sweep
        room = sweep.size - self.finished - self.under_way
        if not self.waiting if sweep.given else room <= 0:
            return None
        first = self.waiting.pop(0) if self.waiting else None
        kind = self.generator.choice(first.kinds) if first else self._choose()
        self.under_way += 1
        size = self.speed.pace.costs.size(kind)
        members = 1 + self._take_alike(first, size - 1)
        if not sweep.given:
            room = sweep.size - self.finished - self.under_way - (members - 1) - len(self.waiting)
            new = max(min(size, self._most_new()) - members, 0)
            new = max(min(new, room), 0)
            members += new
        return UnderWay(kind, members, first.done if first else 0)

    def _take_alike(self, first: Waiting | None, most: int) -> int:
        if first is None or first.alike is None:
            return 0
        found = [each for each in self.waiting if (each.alike, each.done) == (first.alike, first.done)][:most]
        for each in found:
            self.waiting.remove(each)
        return len(found)

    def _most_new(self) -> int:
        costs = self.speed.pace.costs
        if costs.fixed:
            return self.sweep.size
        asked = self.finished + self.under_way - 1
        return strategy.most_new(self.sweep, asked=asked, finished=self.finished, workers=costs.workers)

    def _choose(self) -> Kind:
        """What the sampler chooses: at random, or what is like the best trials; which of those to come are is drawn."""
        settings = self.sweep.sampler
        if settings.name == "tpe" and self.finished >= settings.startup_trials:
            while len(self.best) < examples(self.finished):
                self.best.append(self.generator.choice([*self.best, self.generator.choice(self.kinds)]))
            at = self.generator.random() * (len(self.best) + _OPEN_MINDED)
            if at < len(self.best):
                kind = self.best[int(at)]
                near = self._near(kind)
                return self.generator.choice(near) if near and self.generator.random() < _NEXT else kind
        return self.generator.choice(self.kinds)

    def _near(self, kind: Kind) -> list[Kind]:
        """The kinds that differ from this one in the batch size alone, by a factor of two."""
        half, odd = divmod(kind.batch_size, 2)
        sizes = [2 * kind.batch_size] if odd else [half, 2 * kind.batch_size]
        return [other for other in (kind._replace(batch_size=size) for size in sizes) if other in self.there]

    def _train(self, now: float, group: UnderWay) -> None:
        """Train a group to the end of its last trial, from `now` on."""
        each = self.speed.epoch(group.kind, group.members)
        looks = self.fate.fates.looks(group.kind.epochs)
        # The first epoch at whose end the pruner may end something.
        active = group.done + (self._pruning_begins() - now) / each
        lengths = sorted(
            self.fate.length(group.kind, looks, done=group.done, active=active) for _ in range(group.members)
        )
        at, epoch, luck = now, group.done, self._luck()
        for k, length in enumerate(lengths):
            at += luck * (length - epoch) * self.speed.epoch(group.kind, group.members - k)
            epoch = length
            self.ends.append(max(at, 0.0))
            if length == group.kind.epochs:
                bisect.insort(self.complete, at)
        self.groups.append(Group(group.kind, group.members, at - now))
        heapq.heappush(self.turns, (max(at, 0.0), group.members))

    def _luck(self) -> float:
        """Of two groups that begin together, either may be the first to end, and find more or fewer finished trials."""
        return math.exp(self.generator.gauss(0.0, STRAY)) if self.speed.is_drawn else 1.0

    def _pruning_begins(self) -> float:
        """When enough trials are complete for the pruner, as far as it is known."""
        missing = self.fate.fates.startup - self.standing.complete
        if missing <= 0:
            return -math.inf
        return self.complete[missing - 1] if missing <= len(self.complete) else math.inf
