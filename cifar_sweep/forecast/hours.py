"""What so many hours buy, and what still ends in time.

Before a search: how long its trials may be, on how many images, how many there are, and how many are confirmed. While
it runs: how many trials of a shape a group may have, so that they, or the best of them, still come to their end.
"""

import math
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, cached_property
from statistics import median
from typing import TYPE_CHECKING

from cifar_sweep.config import Shape
from cifar_sweep.errors import UsageError
from cifar_sweep.forecast.costs import END_SECONDS, Costs, Pace, network_name, noted_costs
from cifar_sweep.forecast.expected import expected_shapes
from cifar_sweep.forecast.pruning import expected_survival
from cifar_sweep.parameters import Value
from cifar_sweep.search.choice import InTime, grant_end, in_time_always
from cifar_sweep.study.hours import CUT, CUTS, UNCUT, changed
from cifar_sweep.study.winner import FIRST_SEEDS
from cifar_sweep.sweep.file import cut, longest
from cifar_sweep.sweep.grid import grid
from cifar_sweep.sweep.strategy import searches_shape
from cifar_sweep.sweep.sweep import Sweep

if TYPE_CHECKING:
    from cifar_sweep.study.record import TrialRecord
    from cifar_sweep.study.study import SweepStudy

ENOUGH = 30  # trials: where they do not fit, epochs and images are cut; two random starts of strategy auto
FEWEST = 8  # where these do not fit either, cuts go below what says much of whole trainings
# The fewest training images and epochs of a trial, for either number.
FLOORS = {ENOUGH: (2500, 4), FEWEST: (500, 1)}
# How many of the best are trained again, under how many seeds: the first for which this share of the time is enough.
CONFIRMED = UNCUT[:4]
CONFIRMED_SHARE = 0.3
UNCUT_SHARE = 0.5  # the same where a search was cut: the best without the cuts, `UNCUT`
SAFETY = 1.15  # a shared machine differs by as much from one minute to the next
UNCUT_SAFETY = 1.05  # the same in the end, where a trial that is late is complete as it is
NONE_COMPLETE = 2.0  # the same for trials that begin while none is complete, beside others that have begun
SIZES = (32, 16, 8, 4, 2, 1)
ALIKE = 4  # trials of a group where the shape is searched, on average
LATEST = 8  # epochs of a network at a batch size tell how fast it is now


@dataclass(frozen=True)
class HourPlan:
    """A sweep cut to so many hours.

    Attributes:
        sweep: with what is cut, which its description says, and as many trials as are likely to fit.
        trials: how many these are.
        reserve: seconds that are left to the confirmation.
        uncuts: whether that trains the best without the cuts.
    """

    hours: float
    sweep: Sweep
    trials: int
    reserve: float
    uncuts: bool = False


def plan_hours(sweep: Sweep, costs: Costs, hours: float, *, spent: float = 0.0) -> HourPlan:
    """What so many hours buy of a sweep; `spent` are the seconds of them that have passed.

    Whole trials, where `ENOUGH` of them fit; else epochs and images are cut by one share, down to the floors, and then
    there are fewer trials. Raises UsageError where not even one of the shortest would come to its end.
    """
    pace, before = Pace(costs), spent + costs.start + END_SECONDS
    found = None
    for enough, (images, epochs) in FLOORS.items():
        wanted = sweep.size if sweep.given else min(enough, _most_trials(sweep))
        floors = {"images": costs.train_images, "least_images": images, "least_epochs": epochs}

        @cache
        def made(share: float, floors: dict[str, int] = floors) -> HourPlan:
            short, left = cut(sweep, share, **floors), max(3600 * hours - before, 0.0)
            return _plan_of(short, _uncut(short, sweep) if share < 1 else None, pace, hours, left)

        def fitting(share: float) -> int:
            plan = made(share)
            return plan.trials if sweep.given or plan.sweep.confirm else 0

        # The largest share of which enough trials fit beside their confirmation, or the smallest.
        found = made(CUTS[bisect_left(CUTS[:-1], wanted, key=fitting)])
        if found.trials >= (wanted if sweep.given else min(FEWEST, wanted)):
            break
    assert found is not None
    if not found.trials:
        needed = (before + 2 * ExpectedTrials(found.sweep, pace).seconds) / 3600
        raise UsageError(
            f"--hours {hours:g}: no trial of {sweep.name!r} would come to its end, even if cut to the shortest; "
            f"accepted: from about {math.ceil(100 * needed) / 100:g}."
        )
    if words := shortened(sweep, found.sweep, images=costs.train_images):
        described = f"{sweep.description}; cut to {hours:g} h: {words}".removeprefix("; ")
        return replace(found, sweep=found.sweep.model_copy(update={"description": described}))
    return found


def shortened(whole: Sweep, short: Sweep, *, images: int) -> str:
    """In what a sweep was cut, in words, as in "12 of 30 epochs"; empty where it is whole."""
    all_there_are = {"train_images": images, "validation_images": images // 4}
    parts = []
    for name, noun in CUT.items():
        before, now = (longest(sweep, name) or all_there_are.get(name, 0) for sweep in (whole, short))
        parts += [f"{now:,} of {before:,} {noun}"] if now < before else []
    return ", ".join(parts)


def uncut(study: "SweepStudy", trial: "TrialRecord") -> tuple[dict[str, Value], float]:
    """What a trial would have been set to, had its sweep not been cut to so many hours, where that is something else;
    and about the seconds that it takes to train alone so. Nothing where nothing was cut.
    """
    if study.hours is None or trial.config is None:
        return {}, 0.0
    found, costs = study.hours.uncut(trial.config), noted_costs(study)
    shape = changed(trial.config, found).shape
    return found, costs.epoch(shape, 1) * shape.epochs if costs else 0.0


def _uncut(short: Sweep, whole: Sweep) -> Sweep:
    """A sweep that was cut, with what it fixes as before."""
    fixed = {name: value for name, value in short.fixed.items() if name not in CUT or name in whole.space}
    usual = {name: value for name, value in whole.fixed.items() if name in CUT}
    return short.model_copy(update={"fixed": fixed | usual})


def _plan_of(sweep: Sweep, uncut: Sweep | None, pace: Pace, hours: float, left: float) -> HourPlan:
    """The plan for trials of this length; `uncut` is what the best of them are trained as in the end, if cut."""
    expected = ExpectedTrials(sweep, pace)
    if sweep.given:
        return HourPlan(hours, sweep, min(expected.fit(left), sweep.size), 0.0)
    pairs, share, last = (UNCUT, UNCUT_SHARE, UNCUT[-1]) if uncut else (CONFIRMED, CONFIRMED_SHARE, None)
    most, repeated = share * left, ExpectedTrials(uncut, pace) if uncut else expected
    needed = {pair: SAFETY * repeated.confirming(*pair) for pair in pairs}
    confirm = next((pair for pair in pairs if needed[pair] <= most), last)
    trials = min(expected.fit(left - most), _most_trials(sweep))
    planned = sweep.model_copy(update={"trials": max(trials, 1), "confirm": confirm})
    return HourPlan(hours, planned, trials, min(needed[confirm], most) if confirm else 0.0, uncut is not None)


def _most_trials(sweep: Sweep) -> int:
    """How many trials there can be: of a grid as many as it has points."""
    return len(grid(sweep)) if sweep.sampler.name == "grid" else sys.maxsize


@dataclass(frozen=True)
class ExpectedTrials:
    """What the trials of a sweep cost at this pace, on average over the shapes that are to be expected."""

    sweep: Sweep
    pace: Pace

    @cached_property
    def _shares(self) -> Mapping[Shape, float]:
        shares: dict[Shape, float] = defaultdict(float)
        for count, shape in expected_shapes(self.sweep, precision="fp32"):
            shares[shape] += count / self.sweep.size
        return shares

    def whole(self, members: int) -> float:
        """Seconds of a group of so many trials, each trained to its end."""
        return math.fsum(
            share * shape.epochs * self.pace.epoch(shape, members) for shape, share in self._shares.items()
        )

    @cached_property
    def seconds(self) -> float:
        """A worker's seconds for a trial, as far as it is likely to be trained, in groups as they are likely to be."""
        most = ALIKE if searches_shape(self.sweep) else SIZES[0]
        lengths = {shape.epochs for shape in self._shares}
        trained = {epochs: math.fsum(expected_survival(self.sweep, epochs)) for epochs in lengths}
        total = self.pace.factor * self.pace.costs.trial
        for shape, share in self._shares.items():
            size = min(self.pace.costs.size(shape), most)
            total += share * trained[shape.epochs] * self.pace.epoch(shape, size) / size
        return max(total, 1e-9)

    def confirming(self, trials: int, seeds: int) -> float:
        """Seconds until so many trials are confirmed: in two rounds, and in full groups where all have one shape."""
        total = 0.0
        for each in filter(None, (min(seeds, FIRST_SEEDS), max(seeds - FIRST_SEEDS, 0))):
            size = each if searches_shape(self.sweep) else min(trials * each, ALIKE * 2)
            groups = math.ceil(trials * each / size)
            total += math.ceil(groups / self.pace.costs.workers) * self.whole(size)
        return total

    def fit(self, seconds: float) -> int:
        """How many are likely to end in so many seconds, pruned ones among them."""
        return int(max(seconds, 0.0) * self.pace.costs.workers / self.seconds)


class Speeds:
    """Seconds of a group's epoch, by what epochs took in this study so far, and where none did by its costs."""

    def __init__(self, trials: "Sequence[TrialRecord]", costs: Costs) -> None:
        self.costs = costs
        ratios: dict[tuple[str, int], list[float]] = defaultdict(list)
        for trial in sorted(trials, key=lambda trial: trial.started or datetime.min):
            if trial.config is None:
                continue
            shape = trial.config.shape
            for result in trial.curve:
                reckoned = costs.epoch(shape, result.group_size) / result.group_size
                ratios[network_name(shape), shape.batch_size].append(result.seconds / reckoned)
        self._ratios = {key: median(found[-LATEST:]) for key, found in ratios.items()}

    @property
    def factor(self) -> float:
        """How many times as long an epoch takes as it was reckoned to."""
        return median(self._ratios.values()) if self._ratios else 1.0

    def epoch(self, shape: Shape, members: int) -> float:
        """Wall seconds of an epoch of a group of so many trials, with its reports."""
        ratio = self._ratios.get((network_name(shape), shape.batch_size), self.factor)
        return ratio * self.costs.epoch(shape, members) + max(ratio, 1.0) * self.costs.between(shape, members)


def in_time(study: "SweepStudy", *, now: float | None = None) -> InTime:
    """How many trials of a shape that has so many epochs behind it may be trained now, so that it ends in time.

    Of strategy auto these are all of a group to the end of their grant, and then the best quarter of them to their own
    end; of others, and in a confirmation, all to their end. A study without a deadline has time for any number.
    """
    end = study.search_end()
    if end is None:
        return in_time_always
    left = end - (time.time() if now is None else now)
    trials = study.trials()
    speeds = Speeds(trials, noted_costs(study) or Costs())
    by_grants = study.sweep.strategy == "auto" and not study.over
    # One complete trial is worth more than one more that begins.
    unsure = any(trial.is_frozen for trial in trials) and not any(trial.state == "complete" for trial in trials)
    safety = UNCUT_SAFETY if study.over and study.hours and study.hours.uncuts else SAFETY

    def most(shape: Shape, done: int) -> int:
        rest = shape.epochs - done
        granted = grant_end(done, shape.epochs) - done if by_grants else rest
        for size in SIZES:
            seconds = granted * speeds.epoch(shape, size) + (rest - granted) * speeds.epoch(shape, math.ceil(size / 4))
            seconds += size * speeds.costs.trial * max(speeds.factor, 1.0)
            if (NONE_COMPLETE if unsure and not done else safety) * seconds <= left:
                return size
        return 0

    return most


def replan(study: "SweepStudy", *, now: float | None = None) -> int | None:
    """How many trials the study is now likely to have in its time; None where it has no deadline."""
    end = study.search_end()
    if end is None or study.sweep.given or study.over:
        return None
    trials = study.trials()
    begun = sum(trial.config is not None and trial.state != "failed" for trial in trials)
    costs = noted_costs(study) or Costs()
    pace = Pace(costs, Speeds(trials, costs).factor)
    more = ExpectedTrials(study.sweep, pace).fit(end - (time.time() if now is None else now))
    return min(begun + more, _most_trials(study.sweep))
