"""What to train next: which frozen trials go on, which are given up, or which points are new.

Each trial is trained in grants of a few epochs and frozen in between. A model of all curves says what each trial, and
each point that was never trained, would come to. One sample of its posterior has a best trial or point: that one is
trained next (Thompson sampling), together with as many of its shape as a group has lanes for. A trial that hardly
could beat the best one any more is pruned, and says so.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_sweep.config import PARAMETERS, Value
from cifar_sweep.search.cube import Cube, Shares
from cifar_sweep.search.curve_model import EXACT, CurveModel, Places
from cifar_sweep.sweep.sweep import Sweep

STARTUP = 8  # trials at random points before the model is asked
GRANTS = 6  # a whole schedule is so many grants
POINTS = 150  # random points of the space that compete with the trials
NEAR_POINTS = 30  # points around each of the best trials that compete, too
BEST = 3  # so many of them
HOPELESS = 0.03  # a trial whose chance to beat the best complete one is smaller is pruned
SAMPLES = 400
RIVALS = 1
FIT_GROWTH = 1.15  # the model is fitted again when there are so many times as many observations


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
    """What to do: give up `pruned`, and train `thawed` trials, or `new` points, until this epoch."""

    thawed: Sequence[int] = ()
    new: Sequence[Mapping[str, Value]] = ()
    pruned: Mapping[int, str] = field(default_factory=dict)
    hopes: Mapping[int, Hope] = field(default_factory=dict)


def grant_end(done: int, epochs: int) -> int:
    """The epoch until which a trial of so many epochs is trained next, after `done` of them."""
    grant = max(1, math.ceil(epochs / GRANTS))
    return min(epochs, (done // grant + 1) * grant)


class Chooser:
    """Chooses for one sweep. It keeps its model between choices, to save time: what it chooses stays as random."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._cube = Cube(sweep)
        self._model = CurveModel(self._cube.columns)
        self._fitted_on = 0
        self._shares: dict[int, list[float]] = {}

    def choose(
        self,
        courses: Sequence[Course],
        *,
        size: Callable[[Hashable], int],
        room: int,
        shape_of: Callable[[Mapping[str, Value]], Hashable],
        seed: int,
    ) -> Choice:
        """The next group.

        Args:
            courses: all trials that have begun.
            size: how many trials of a shape a group has at most.
            room: how many new trials there may be.
            shape_of: the shape of a point.
            seed: decides all that is drawn.
        """
        generator = np.random.default_rng(seed)
        known = [course for course in courses if course.accuracies]
        if len(courses) < STARTUP and room or not known:
            return Choice(new=self._drawn_alike(generator, size, room, shape_of))
        self._learn(known, seed)
        frozen = [course for course in known if course.frozen]
        points = self._points(known, generator) if room else np.empty((0, len(self._cube.names)))
        others = [course for course in known if not course.frozen]
        trials = frozen + others
        places = self._ends(trials, points)
        mean, covariance = self._model.posterior(places)
        samples = _samples(mean, covariance, seed)
        hopes = self._hopes(trials, mean, covariance, samples)
        pruned = {c.number: self._reason(c, hopes[c.number], known) for c in frozen if self._hopeless(c, hopes, known)}
        goes_on = [c.number not in pruned for c in frozen] + [False] * len(others) + [True] * len(points)
        if not any(goes_on):
            return Choice(pruned=pruned, hopes=hopes)
        if len(points) > RIVALS:
            gains = (samples[:, len(trials) :] - samples[:, : len(trials)].amax(dim=1, keepdim=True)).clamp_min(0).mean(dim=0)
            for k in gains.argsort(descending=True)[RIVALS:].tolist():
                goes_on[len(trials) + k] = False
        draw = samples[0].masked_fill(~torch.tensor(goes_on), -math.inf)
        first = int(draw.argmax())
        if first < len(frozen):
            alike = [k for k, c in enumerate(frozen) if goes_on[k] and (c.shape, c.done) == (frozen[first].shape, frozen[first].done)]
            # The others of the group by their chance to be the best.
            alike.sort(key=lambda k: (k != first, -hopes[frozen[k].number].beats, frozen[k].number))
            return Choice([frozen[k].number for k in alike[: size(frozen[first].shape)]], pruned=pruned, hopes=hopes)
        chosen = points[first - len(trials)]
        shape = shape_of(self._cube.params(chosen))
        new = self._mates(chosen, min(size(shape), room), trials, generator, seed)
        return Choice(new=new, pruned=pruned, hopes=hopes)

    def _drawn_alike(
        self, generator: np.random.Generator, size: Callable[[Hashable], int], room: int, shape_of: Callable[[Mapping[str, Value]], Hashable]
    ) -> list[dict[str, Value]]:
        """Random points of one shape."""
        first = self._cube.uniform(1, generator)
        count = max(1, min(size(shape_of(self._cube.params(first[0]))), room))
        points = np.concatenate([first, self._cube.uniform(count - 1, generator)])
        return [self._cube.params(point) for point in self._held(points, first[0])]

    def _held(self, points: Shares, like: Shares) -> Shares:
        """The points with those shares that decide the shape as another one has them."""
        from cifar_sweep.sweep.strategy import SHAPE_PARAMETERS

        columns = [k for k, name in enumerate(self._cube.names) if name in SHAPE_PARAMETERS]
        held = points.copy()
        held[:, columns] = like[columns]
        return held

    def _share(self, course: Course) -> list[float]:
        if course.number not in self._shares:
            self._shares[course.number] = self._cube.shares(course.params)
        return self._shares[course.number]

    def _learn(self, known: Sequence[Course], seed: int) -> None:
        rows = [(course, epoch) for course in known for epoch in told(course.done)]
        places = self._places([(self._share(c), e, decay(c.settings, e), c.number) for c, e in rows])
        values = [max(c.accuracies[:e]) for c, e in rows]
        if len(values) >= self._fitted_on * FIT_GROWTH:
            self._model.fit(places, values, generator=torch.Generator().manual_seed(seed))
            self._fitted_on = len(values)
        self._model.know(places, values)

    def _places(self, rows: Sequence[tuple[Sequence[float], int, float, int]]) -> Places:
        shares, epochs, decays, trials = zip(*rows, strict=True)
        return Places.of(self._cube.features(np.array(shares)).tolist(), epochs, decays, trials)

    def _points(self, known: Sequence[Course], generator: np.random.Generator) -> Shares:
        best = sorted(known, key=lambda course: -max(course.accuracies))[:BEST]
        around = [self._cube.near(self._share(course), NEAR_POINTS, generator) for course in best]
        return np.concatenate([self._cube.uniform(POINTS, generator), *around])

    def _ends(self, trials: Sequence[Course], points: Shares) -> Places:
        """Each trial's and each point's last epoch; a point is a trial of its own."""
        rows = [(self._share(c), c.epochs, decay(c.settings, c.epochs), c.number) for c in trials]
        for k, point in enumerate(points):
            settings = self._sweep.fixed | self._cube.some(point, ("epochs", "step_size", "gamma"))
            epochs = int(settings.get("epochs", PARAMETERS["epochs"].default))
            rows.append((point.tolist(), epochs, decay(settings, epochs), -1 - k))
        return self._places(rows)

    def _mates(self, first: Shares, count: int, trials: Sequence[Course], generator: np.random.Generator, seed: int) -> list[dict[str, Value]]:
        """A point, and others of its shape: each the best one of another sample."""
        chosen = [first]
        if count > 1:
            points = self._held(self._points([c for c in trials], generator), first)
            samples = _samples(*self._model.posterior(self._ends([], points)), seed + 1)
            taken: set[int] = set()
            for sample in samples[: count - 1]:
                order = sample.argsort(descending=True).tolist()
                taken.add(next(k for k in order if k not in taken))
            chosen += [points[k] for k in sorted(taken)]
        return [self._cube.params(point) for point in chosen]

    def _hopes(self, trials: Sequence[Course], mean: Tensor, covariance: Tensor, samples: Tensor) -> dict[int, Hope]:
        ends = samples[:, : len(trials)]
        complete = [k for k, course in enumerate(trials) if course.complete]
        bar = ends[:, complete].amax(dim=1) if complete else torch.full((len(ends),), -math.inf, dtype=EXACT)
        winners = torch.bincount(ends.argmax(dim=1), minlength=len(trials)) / len(ends)
        beats = (ends > bar[:, None]).double().mean(dim=0)
        deviations = covariance.diagonal().clamp_min(0).sqrt()
        return {
            course.number: Hope(float(mean[k]), float(deviations[k]), float(beats[k]), float(winners[k]))
            for k, course in enumerate(trials)
        }

    def _hopeless(self, course: Course, hopes: Mapping[int, Hope], known: Sequence[Course]) -> bool:
        return any(other.complete for other in known) and hopes[course.number].beats < HOPELESS

    def _reason(self, course: Course, hope: Hope, known: Sequence[Course]) -> str:
        best = max((other for other in known if other.complete), key=lambda other: max(other.accuracies))
        return (
            f"stopped after epoch {course.done}: {hope.beats:.0%} chance to beat trial {best.number} "
            f"({max(best.accuracies):.1%} ± {self._model.noise:.1%})"
        )


def told(done: int) -> list[int]:
    """The epochs of a curve that the model is told: the first ones, fewer and fewer later, and the last one."""
    epochs = {round(2 ** (k / 2)) for k in range(2 * max(done, 1).bit_length())}
    return sorted({epoch for epoch in epochs if epoch < done} | {done})


def decay(settings: Mapping[str, Any], epoch: int) -> float:
    """How many factors of ten StepLR has taken from the learning rate in this epoch."""
    step, gamma = (settings.get(name, PARAMETERS[name].default) for name in ("step_size", "gamma"))
    return (epoch - 1) // int(step) * -math.log10(float(gamma))


def _samples(mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Draws from the posterior [samples, n]."""
    count = len(mean)
    jitter = 1e-6 * covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(count, dtype=EXACT)
    factor = torch.linalg.cholesky(covariance + jitter)
    normal = torch.randn(SAMPLES, count, generator=torch.Generator().manual_seed(seed), dtype=EXACT)
    return mean + normal @ factor.T
