"""What to train next: which frozen trials go on, which are given up, or which points are new.

Each trial is trained in grants of a few epochs and frozen in between. A model of all curves says what each trial, and
each point that was never trained, would come to. One sample of its posterior has a best one of the frozen trials and of
the most promising new points: that one is trained next (Thompson sampling), together with as many of its shape as a
group has lanes for. A trial that hardly could beat the best complete one any more is pruned, and says so.

What each rule is worth is measured in docs/search.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_sweep.config import decides_shape
from cifar_sweep.layers import SHRINKS
from cifar_sweep.parameters import PARAMETERS, Value, base_of, known_beside
from cifar_sweep.schedules import PARTS, learning_rate_at
from cifar_sweep.search.choice import FURTHER, Choice, Course, Gain, Hope, Situation, in_time_always
from cifar_sweep.search.cube import Cube, Shares
from cifar_sweep.search.curve_model import EXACT, CurveModel, Places, factor_of
from cifar_sweep.sweep.sweep import Sweep, values_of

STARTUP = 16  # trials at random points before the model is asked
AT_RANDOM = 0.25  # the share of choices that are random points all the same: a model can be wrong
POINTS = 150  # random points of the space that compete to be new trials
NEAR_POINTS = 30  # points around each of the best trials that compete, too
BEST = 3  # so many of them
DRAWS = 50  # of a random point, where time is short for some
PROMISING = 40  # new points, of which further trials would be
STARTED = 8  # trials, before it is said what further ones would gain
RIVALS = 1  # new points that compete with the frozen trials: the most promising ones
START_ALIKE = 2  # trials of one shape in the first groups, where the shape is searched
HOPELESS = 0.03  # a trial whose chance to beat the best complete one is smaller is pruned
DOUBT = 2.0  # deviations: a trial that is expected further below the one of its group that was chosen does not join it
SAMPLES = 400
FIT_GROWTH = 1.15  # the model is fitted again when there are so many times as many observations
SMALLEST_SHARE = 1e-6  # of a learning rate; schedules may end at 0
# The parameters that decide when a trial ends, and how far it has decayed.
# With these searched, some networks may leave nothing of their images.
_MAY_LEAVE_NOTHING = (*SHRINKS, "filters", "filter_growth", "conv_dropout", "model", "input_size")
SCHEDULE = ("epochs", "learning_rate", *PARTS)


class Chooser:
    """Chooses for one sweep. Between choices it keeps its model's fit, which saves time."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._cube = Cube(sweep)
        self._shape_columns = [
            k for k, name in enumerate(self._cube.names) if decides_shape(name, *values_of(sweep, name))
        ]
        self._model = CurveModel(self._cube.columns)
        self._fitted_on = 0
        self._may_fail = any(base_of(name) in _MAY_LEAVE_NOTHING for name in sweep.space)

    def choose(self, now: Situation) -> Choice:
        """The next group."""
        courses, room, seed = now.courses, now.room, now.seed
        generator = np.random.default_rng(seed)
        known = [course for course in courses if course.accuracies]
        if not known or (room and (len(courses) < STARTUP or generator.random() < AT_RANDOM)):
            for drawn in (each for _ in range(DRAWS) for each in self._timely(self._cube.uniform(1, generator), now)):
                return Choice(new=self._group(drawn, lambda count: self._cube.uniform(count, generator), now))
            if not known:
                return Choice()
        self._learn(known, seed)
        frozen = [course for course in known if course.frozen]
        trials = frozen + [course for course in known if not course.frozen]
        points = self._timely(self._points(known, generator), now) if room else self._cube.uniform(0, generator)
        mean, covariance = self._model.posterior(self._ends(trials, points))
        samples = _samples(mean, covariance, seed)
        ends, news = samples[:, : len(trials)], samples[:, len(trials) :]
        hopes = self._hopes(trials, mean, covariance, ends)
        pruned = self._pruned(frozen, known, hopes)
        # What the new points would add to the best of all trials, on average.
        promise = (news - ends.amax(dim=1, keepdim=True)).clamp_min(0).mean(dim=0)
        promising = promise.argsort(descending=True).tolist()
        gain = self._gain(frozen, [course for course in known if course.complete], points[promising[:PROMISING]], seed)
        rivals = promising[:RIVALS]
        options = [
            k
            for k, course in enumerate(frozen)
            if course.number not in pruned and now.in_time(course.shape, course.done)
        ]
        options += [len(trials) + k for k in rivals]
        if not options:
            return Choice(pruned=pruned, hopes=hopes, gain=gain)
        first = _first(options, mean, samples[0], frozen=len(frozen), is_early=not any(each.complete for each in known))
        if first < len(trials):
            course = frozen[first]
            alike = [
                each
                for each in (frozen[k] for k in options if k < len(trials))
                if (each.shape, each.done) == (course.shape, course.done) and _may_beat(hopes, each, course)
            ]
            alike.sort(key=lambda each: (each is not course, -hopes[each.number].beats, each.number))
            most = min(now.size(course.shape), now.in_time(course.shape, course.done))
            thawed = [each.number for each in alike[:most]]
            return Choice(thawed, pruned=pruned, hopes=hopes, gain=gain)

        def mates(count: int) -> Shares:
            around = self._held(self._points(known, generator), points[first - len(trials)])
            draws = _samples(*self._model.posterior(self._ends([], around)), seed + 1)[:count]
            best: Shares = around[draws.argmax(dim=1).numpy()]
            return best

        new = self._group(points[first - len(trials)], mates, now)
        return Choice(new=new, pruned=pruned, hopes=hopes, gain=gain)

    def _group(self, first: Shares, mates: Callable[[int], Shares], now: Situation) -> list[dict[str, Value]]:
        """A new point, and as many of its shape as the group has room for.

        Where the shape is searched, all of a group have one, and learn nothing of the others: they are no more than
        half of all trials until then (docs/group_search.md).
        """
        point = self._cube.params(first.tolist())
        shape = now.shape_of(point)
        most = min(now.size(shape), now.room, now.in_time(shape, 0))
        if self._shape_columns:
            most = min(most, max(START_ALIKE, len(now.courses) // 2))
        others = self._held(mates(most - 1), first) if most > 1 else self._cube.uniform(0, np.random.default_rng())
        return [point, *(self._cube.params(other.tolist()) for other in others)]

    def _timely(self, points: Shares, now: Situation) -> Shares:
        """Those of the points that can be trained, and to their end in time."""
        if now.in_time is in_time_always and not self._may_fail:
            return points
        shapes = [now.shape_of(self._cube.params(each)) for each in points.tolist()]
        timely = [not (self._may_fail and shape.fault) and bool(now.in_time(shape, 0)) for shape in shapes]
        kept: Shares = points[np.array(timely, dtype=bool)]
        return kept

    def _held(self, points: Shares, like: Shares) -> Shares:
        """The points, with what decides the shape as another one has it."""
        held = points.copy()
        held[:, self._shape_columns] = like[self._shape_columns]
        return held

    def _learn(self, known: Sequence[Course], seed: int) -> None:
        rows = [(course, epoch) for course in known for epoch in told(course.done)]
        places = self._places([self._cube.shares(course.params) for course, _ in rows], rows)
        values = [max(course.accuracies[:epoch]) for course, epoch in rows]
        if len(values) >= self._fitted_on * FIT_GROWTH:
            self._model.fit(places, values, generator=torch.Generator().manual_seed(seed))
            self._fitted_on = len(values)
        self._model.know(places, values)

    def _places(self, shares: Sequence[Sequence[float]], rows: Sequence[tuple[Course, int]]) -> Places:
        decays = [decay(course.settings, epoch) for course, epoch in rows]
        features = self._cube.features(np.array(shares))
        return Places.of(features, [epoch for _, epoch in rows], decays, [course.number for course, _ in rows])

    def _points(self, known: Sequence[Course], generator: np.random.Generator) -> Shares:
        best = sorted(known, key=lambda course: -max(course.accuracies))[:BEST]
        around = [self._cube.near(self._cube.shares(course.params), NEAR_POINTS, generator) for course in best]
        return np.concatenate([self._cube.uniform(POINTS, generator), *around])

    def _ends(self, trials: Sequence[Course], points: Shares) -> Places:
        """Each trial's and each point's last epoch; a point is a trial of its own."""
        rows = [(course, course.epochs) for course in trials]
        for k, point in enumerate(points.tolist()):
            settings = self._sweep.fixed | self._cube.some(point, SCHEDULE)
            epochs = int(settings.get("epochs", PARAMETERS["epochs"].default))
            rows.append((Course(-1 - k, {}, settings, None, epochs, ()), epochs))
        return self._places([*(self._cube.shares(course.params) for course in trials), *points.tolist()], rows)

    def _gain(self, frozen: Sequence[Course], complete: Sequence[Course], points: Shares, seed: int) -> Gain | None:
        """What the most promising further trials would add to the best complete one, the luck of seeds left out.

        All stand for their parameters under a fresh seed, whose own part of the variance is taken away: the best of
        several lucky seeds is no gain. This is expected improvement, against the noise that there is (Nguyen et al.
        2017, "Regret for expected improvement over the best-observed value and stopping condition"; Makarova et al.
        2022, arXiv 2104.08166, compare a bound on the regret with it).
        """
        if not complete or len(frozen) + len(complete) < STARTED or not len(points) + len(frozen):
            return None
        fresh = [replace(course, number=-1000 - k) for k, course in enumerate([*complete, *frozen])]
        mean, covariance = self._model.posterior(self._ends(fresh, points))
        luck = self._model.seed_variance
        covariance = covariance - luck * torch.eye(len(mean), dtype=EXACT)
        best = int(mean[: len(complete)].argmax())
        samples = _samples(mean, covariance, seed)
        added = (samples[:, len(complete) :] - samples[:, best, None]).clamp_min(0)
        further = added.mean(dim=0).argsort(descending=True)[:FURTHER]
        return Gain(float(added[:, further].amax(dim=1).mean()), math.sqrt(luck + self._model.noise**2))

    @staticmethod
    def _hopes(trials: Sequence[Course], mean: Tensor, covariance: Tensor, ends: Tensor) -> dict[int, Hope]:
        complete = [k for k, course in enumerate(trials) if course.complete]
        bar = ends[:, complete].amax(dim=1) if complete else torch.full((len(ends),), -math.inf, dtype=EXACT)
        winners = torch.bincount(ends.argmax(dim=1), minlength=len(trials)) / len(ends)
        beats = (ends > bar[:, None]).double().mean(dim=0)
        deviations = covariance.diagonal().clamp_min(0).sqrt()
        return {
            course.number: Hope(*(float(each[k]) for each in (mean, deviations, beats, winners)))
            for k, course in enumerate(trials)
        }

    def _pruned(self, frozen: Sequence[Course], known: Sequence[Course], hopes: Mapping[int, Hope]) -> dict[int, str]:
        """The trials to be given up, each with its reason."""
        complete = [course for course in known if course.complete]
        if not complete:
            return {}
        best = max(complete, key=lambda course: max(course.accuracies))
        beaten = f"trial {best.number} ({100 * max(best.accuracies):.1f} ± {100 * self._model.noise:.1f} %)"
        return {
            course.number: f"stopped after epoch {course.done}: {100 * chance:.0f} % chance to beat {beaten}"
            for course in frozen
            if (chance := hopes[course.number].beats) < HOPELESS
        }


def _first(options: Sequence[int], mean: Tensor, sample: Tensor, *, frozen: int, is_early: bool) -> int:
    """The option to be trained next, of which the `frozen` first ones are begun.

    Until a trial is complete, `is_early`, the most promising of the begun ones goes on: so there soon is a result, and
    a bar for the others. Then a sample decides.
    """
    if is_early and (begun := [k for k in options if k < frozen]):
        return max(begun, key=lambda k: float(mean[k]))
    return max(options, key=lambda k: float(sample[k]))


def _may_beat(hopes: Mapping[int, Hope], one: Course, other: Course) -> bool:
    """Whether a trial may well end better than another is expected to; a lane that it would fill is not for nothing."""
    hope = hopes[one.number]
    return one is other or hope.accuracy + DOUBT * hope.deviation > hopes[other.number].accuracy


def told(done: int) -> list[int]:
    """The epochs of a curve that the model is told: the first ones, fewer and fewer later, and the last one."""
    epochs = {round(2 ** (k / 2)) for k in range(2 * max(done, 1).bit_length())}
    return sorted({epoch for epoch in epochs if epoch < done} | {done})


def decay(settings: Mapping[str, Any], epoch: int) -> float:
    """How many factors of ten the schedule has taken from the learning rate in this epoch, as far as it is known."""
    whole = known_beside(settings, SCHEDULE)
    if whole["schedule"] == "step" and not whole["warmup_epochs"]:
        return (epoch - 1) // int(whole["step_size"]) * -math.log10(float(whole["gamma"]))
    share = learning_rate_at(epoch, whole) / float(whole["learning_rate"])
    return -math.log10(max(share, SMALLEST_SHARE))


def _samples(mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Draws from the posterior [samples, n]."""
    normal = torch.randn(SAMPLES, len(mean), generator=torch.Generator().manual_seed(seed), dtype=EXACT)
    return mean + normal @ factor_of(covariance).T
