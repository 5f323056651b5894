"""How long a study will still take, by what its database says of the trials so far."""

import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from cifar_sweep.config import Shape
from cifar_sweep.errors import UsageError
from cifar_sweep.forecast.costs import END_SECONDS, Costs, Pace, noted_costs
from cifar_sweep.forecast.expected import draw, drawn_shapes, possible_shapes, shape_of
from cifar_sweep.forecast.pruning import expected_survival, startup
from cifar_sweep.forecast.schedule import BEST_SHARE, Forecast, Start, UnderWay, forecast
from cifar_sweep.study.claiming import is_searched, queue_of, stage
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.storage import OPEN
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.study.winner import ranked
from cifar_sweep.sweep.space import decode
from cifar_sweep.sweep.sweep import Sweep

# A worker between two groups is still one.
BETWEEN_SECONDS = 10.0
# A worker that has been at it for so long was not alone in having just begun.
STARTED_SECONDS = 30.0
# How far costs are off before groups have told it, as a standard deviation of a logarithm: where steps were timed, and
# where nothing was. Both are guesses.
TIMED_DOUBT = 0.15
ROUGH_DOUBT = 0.5
# From one hour to the next a shared machine differs by as much.
_LEAST_DOUBT = 0.05
# A machine's load changes: only so many of the latest groups tell how fast it is.
_LATEST_GROUPS = 16
# How many trials the guess of what the pruner saves counts like.
_GUESSED_TRIALS = 4
Trials = Sequence[TrialRecord]


@dataclass(frozen=True)
class WorkerGroup:
    """Trials that a worker trained, or trains, together."""

    owner: str  # the worker's token
    trials: Trials  # in the order of their start
    is_first: bool  # whether it is the worker's first group, which also waits for libraries to be loaded

    @property
    def running(self) -> list[TrialRecord]:
        """Those that it still trains."""
        return [trial for trial in self.trials if trial.state == "running"]

    @property
    def begun(self) -> datetime:
        """When its first trial began."""
        return min(trial.started for trial in self.trials if trial.started)

    @property
    def ended(self) -> datetime | None:
        """When its last trial ended; None while one runs."""
        ends = [trial.ended for trial in self.trials if trial.ended]
        return max(ends) if len(ends) == len(self.trials) else None

    @property
    def shape(self) -> Shape:
        """What it trains."""
        config = self.trials[0].config
        assert config is not None
        return config.shape

    @property
    def epochs(self) -> list[tuple[int, float]]:
        """Of each epoch so far, the number of trials, and the seconds for all of them."""
        longest = max((trial.curve for trial in self.trials), key=len)
        return [(result.group_size, result.seconds * result.group_size) for result in longest]

    @property
    def epoch_seconds(self) -> float:
        """What its epochs took."""
        return math.fsum(seconds for _, seconds in self.epochs)


def groups_of(trials: Trials) -> list[WorkerGroup]:
    """The groups that the trials were trained in, as far as their workers are known, in the order of their start."""
    by_owner: dict[str, list[list[TrialRecord]]] = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: trial.started or datetime.min):
        if trial.owner and trial.started and trial.config:
            own = by_owner[trial.owner.token]
            # A worker takes new trials when all of its last ones have ended.
            if own and any(other.ended is None or other.ended > trial.started for other in own[-1]):
                own[-1].append(trial)
            else:
                own.append([trial])
    groups = [
        WorkerGroup(owner, group, is_first=not k) for owner, own in by_owner.items() for k, group in enumerate(own)
    ]
    return sorted(groups, key=lambda group: group.begun)


def at_work(trials: Trials, now: datetime) -> set[str]:
    """The tokens of the workers that train, or have just ended a group."""
    return {
        group.owner
        for group in groups_of(trials)
        if group.ended is None or (now - group.ended).total_seconds() < BETWEEN_SECONDS
    }


def seconds_left(
    study: SweepStudy, trials: Trials | None = None, *, now: datetime | None = None, starting: bool = False
) -> tuple[float, float] | None:
    """A range that holds the remaining time of the search, or of its confirmation, in about eight cases of ten.

    None where nobody works on the study, or where nothing is known of its costs and no epoch has ended yet. `trials`
    are the records that its budget counts, `now` is the time on the clock of `datetime.now()`, and `starting` says that
    its workers are being started now, if none is at work yet.
    """
    found = forecast_rest(study, trials, now=now, starting=starting)
    if found is None:
        return None
    low, high = found.range
    if high == 0:
        return 0.0, 0.0
    hours = study.hours
    most = max(hours.deadline - time.time(), 0.0) if hours and hours.deadline else math.inf
    return min(low + END_SECONDS / 2, most), min(high + 1.5 * END_SECONDS, most)


def forecast_rest(
    study: SweepStudy, trials: Trials | None = None, *, now: datetime | None = None, starting: bool = False
) -> Forecast | None:
    """How the rest of the study may go; None, and with the arguments, as in `seconds_left`."""
    sweep, trials = stage(study.asked() if trials is None else trials, study.under_way())
    now = now or datetime.now()  # as Optuna writes it
    groups = groups_of(trials)
    noted, working = noted_costs(study), at_work(trials, now)
    sizes = [size for group in groups for size, _ in group.epochs]
    if is_searched(trials, sweep):
        return Forecast([[]])
    if study.state != OPEN or not (working or starting) or not (sizes or noted):
        return None
    costs = noted or Costs(largest=max(sizes), workers=max(len(working), 1), rough=True)
    pace = pace_of(groups, costs)
    return forecast(sweep, _start(sweep, trials, groups, pace, now), pace, possible_shapes(sweep))


def _finished(trials: Trials) -> list[TrialRecord]:
    return [trial for trial in trials if trial.state in ("complete", "pruned")]


def pace_of(groups: Sequence[WorkerGroup], costs: Costs) -> Pace:
    """The costs, corrected by the median of what groups took over what they were reckoned to take."""
    ratios = [_ratio(group, costs) for group in groups if group.epochs][-_LATEST_GROUPS:]
    factor = statistics.median(ratios) if ratios else 1.0
    prior = ROUGH_DOUBT if costs.rough and len(ratios) < 2 else TIMED_DOUBT
    squares = math.fsum(math.log(ratio / factor) ** 2 for ratio in ratios)
    spread = math.sqrt((prior**2 + squares) / (1 + len(ratios)))
    # Part of it does not average out: other trials than these are to come, and a machine is busy for a while.
    return Pace(costs, factor, max(spread * math.sqrt(0.4 + 1 / (1 + len(ratios))), _LEAST_DOUBT))


def _ratio(group: WorkerGroup, costs: Costs) -> float:
    """What a group took over what it was reckoned to take."""
    reckoned = [costs.epoch(group.shape, size) for size, _ in group.epochs]
    if not group.ended or group.is_first:  # by its usual epoch: a worker's first ones also make the processor ready
        shares = [seconds / known for (_, seconds), known in zip(group.epochs, reckoned, strict=True)]
        return max(statistics.median(shares), 1e-6)
    # A trial that was interrupted has epochs from before.
    wall = max(group.epoch_seconds, (group.ended - group.begun).total_seconds())
    return max(wall, 1e-6) / (math.fsum(reckoned) + _besides(group, costs))


def _besides(group: WorkerGroup, costs: Costs) -> float:
    """What a group is reckoned to take besides its epochs."""
    return costs.trial * len(group.trials) + math.fsum(costs.between(group.shape, size) for size, _ in group.epochs)


def _start(sweep: Sweep, trials: Trials, groups: Sequence[WorkerGroup], pace: Pace, now: datetime) -> Start:
    # Workers begin one after another: until all are there, those are counted that there are to be.
    young = all((now - group.begun).total_seconds() < STARTED_SECONDS for group in groups)
    workers = max(len(at_work(trials, now)), pace.costs.workers if young else 0, 1)
    under_way = [_under_way(group, pace, now) for group in groups if group.running]
    finished, complete = _finished(trials), ranked(trials)
    best = complete[: math.ceil(BEST_SHARE * len(finished))]
    strictness, judged = _strictness(sweep, groups, complete)
    generator, asked = random.Random(0), 1 + max((trial.number for trial in trials), default=-1)  # noqa: S311 - no secret
    return Start(
        queue_of(trials, sweep, shape_of=partial(_waiting_shape, sweep, generator)).waiting,
        len(finished), len(complete), under_way, [trial.config.shape for trial in best if trial.config],
        idle=max(workers - len(under_way), 0), delay=pace.costs.start / 2 if young and not under_way else 0.0,
        strictness=strictness, judged=judged, asked=asked, drawn=drawn_shapes(sweep, asked, len(finished)),
    )  # fmt: skip


def _under_way(group: WorkerGroup, pace: Pace, now: datetime) -> UnderWay:
    spent = group.epoch_seconds + pace.factor * _besides(group, pace.costs)
    spent += pace.costs.start / 2 if group.is_first else 0.0
    since = max((now - group.begun).total_seconds() - spent, 0.0)
    return UnderWay(group.shape, len(group.running), len(group.epochs), since)


def _strictness(sweep: Sweep, groups: Sequence[WorkerGroup], complete: Trials) -> tuple[float, int]:
    """What the pruner saved over what it was expected to save, and by how many trials that is known.

    The guess counts like `_GUESSED_TRIALS` trials. Only groups count that began after the first trials were complete,
    and that have ended: of those under way, the trials that were pruned would be seen before the others.
    """
    if sweep.pruner.name == "none":
        return 0.0, 0
    ends, first = sorted(trial.ended for trial in complete if trial.ended), startup(sweep)
    saved = expected = 0.0
    judged = 0
    for group in groups:
        if group.ended and sum(end <= group.begun for end in ends) >= first:
            guess = 1 - statistics.fmean(expected_survival(sweep, group.shape.epochs))
            saved += math.fsum(trial.epochs_left / group.shape.epochs for trial in group.trials)
            expected += guess * len(group.trials)
            judged += len(group.trials)
    if not expected:
        return 1.0, 0
    weight = _GUESSED_TRIALS * expected / judged
    return (saved + weight) / (expected + weight), judged


def _waiting_shape(sweep: Sweep, generator: random.Random, trial: TrialRecord) -> Shape:
    """The shape of a waiting trial: of an interrupted one its own; what a point leaves open is drawn."""
    if trial.config:
        return trial.config.shape
    drawn = draw(sweep, generator)
    try:
        known = dict(trial.params) if sweep.given else drawn | decode(trial.queued) | (trial.uncut or {})
        return shape_of(sweep.fixed | known)
    except (UsageError, TypeError):  # somebody queued what does not fit; a worker will say so
        return shape_of(sweep.fixed | drawn)
