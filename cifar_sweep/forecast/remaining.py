"""How long a study will still take, by what its database says of the trials so far."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.config import TrialConfig
from cifar_sweep.forecast.costs import END_SECONDS, Costs, Found, Kind, Pace, kind_of, noted_costs
from cifar_sweep.forecast.course import (
    Course,
    Forecast,
    Standing,
    UnderWay,
    Waiting,
    alike,
    examples,
    forecast,
    kinds_of,
    kinds_of_point,
)
from cifar_sweep.forecast.fates import Fates, Shares
from cifar_sweep.study.record import best_first
from cifar_sweep.study.storage import OPEN, queued_params
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep import space

# A worker between two groups is still one.
BETWEEN_SECONDS = 10.0
# A worker that has been at it for so long was not alone in having just begun.
STARTED_SECONDS = 30.0


@dataclass(frozen=True)
class WorkerGroup:
    """Trials that a worker trained, or trains, together. `owner` is its token."""

    owner: str
    trials: Sequence[FrozenTrial]

    @property
    def running(self) -> list[FrozenTrial]:
        """Those that it still trains."""
        return [trial for trial in self.trials if trial.state is TrialState.RUNNING]

    @property
    def begun(self) -> datetime:
        """When its first trial began."""
        return min(_began(trial) for trial in self.trials)

    @property
    def ended(self) -> datetime | None:
        """When its last trial ended; None while one runs."""
        ends = [trial.datetime_complete for trial in self.trials]
        return None if None in ends else max(end for end in ends if end is not None)

    @property
    def kind(self) -> Kind:
        """What it trains."""
        return kind_of(self.trials[0].user_attrs["config"])

    @property
    def epochs(self) -> list[tuple[int, float]]:
        """Of each epoch so far, the number of trials, and the seconds for all of them."""
        longest = max((curve_of(trial) for trial in self.trials), key=len)
        return [(point["group_size"], point["seconds"] * point["group_size"]) for point in longest]

    @property
    def epoch_seconds(self) -> float:
        """What its epochs took."""
        return math.fsum(seconds for _, seconds in self.epochs)


def groups_of(trials: Sequence[FrozenTrial]) -> list[WorkerGroup]:
    """The groups that the trials were trained in, as far as their workers are known, in the order of their start."""
    by_owner: dict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        owner = trial.user_attrs.get("owner")
        if owner and trial.datetime_start and "config" in trial.user_attrs:
            by_owner[owner["token"]].append(trial)
    groups = [WorkerGroup(owner, group) for owner, its in by_owner.items() for group in _one_after_another(its)]
    return sorted(groups, key=lambda group: group.begun)


def _one_after_another(trials: Sequence[FrozenTrial]) -> list[list[FrozenTrial]]:
    """A worker's trials by group: it takes new ones when all of the last ones have ended."""
    groups: list[list[FrozenTrial]] = []
    for trial in sorted(trials, key=_began):
        if groups and not all(_is_over(other, _began(trial)) for other in groups[-1]):
            groups[-1].append(trial)
        else:
            groups.append([trial])
    return groups


def _is_over(trial: FrozenTrial, at: datetime) -> bool:
    return trial.datetime_complete is not None and trial.datetime_complete <= at


def _began(trial: FrozenTrial) -> datetime:
    assert trial.datetime_start is not None
    return trial.datetime_start


def _ended(trial: FrozenTrial) -> datetime:
    assert trial.datetime_complete is not None
    return trial.datetime_complete


def curve_of(trial: FrozenTrial) -> list[Mapping[str, Any]]:
    """A trial's epochs so far."""
    return list(trial.user_attrs.get("curve", []))


def at_work(trials: Sequence[FrozenTrial], now: datetime) -> set[str]:
    """The tokens of the workers that train, or have just ended a group."""
    return {
        group.owner
        for group in groups_of(trials)
        if group.ended is None or (now - group.ended).total_seconds() < BETWEEN_SECONDS
    }


def seconds_left(
    study: SweepStudy,
    trials: Sequence[FrozenTrial] | None = None,
    *,
    now: datetime | None = None,
    starting: bool = False,
) -> tuple[float, float] | None:
    """A range that holds the remaining time in about eight cases of ten.

    None where nobody works on the study, or where nothing is known of its costs and no epoch has ended yet.

    Args:
        study: the study.
        trials: as its `asked` gives them; asked for if not given.
        now: the time, on the clock of `datetime.now()`.
        starting: its workers are being started now, if none is at work yet.
    """
    outlook = imagined(study, trials, now=now, starting=starting)
    if outlook is None:
        return None
    low, high = outlook.range
    return (0.0, 0.0) if high == 0 else (low + END_SECONDS / 2, high + 1.5 * END_SECONDS)


def imagined(
    study: SweepStudy,
    trials: Sequence[FrozenTrial] | None = None,
    *,
    now: datetime | None = None,
    starting: bool = False,
) -> Forecast | None:
    """How the rest of the study may go; see `seconds_left`."""
    trials = study.asked() if trials is None else trials
    now = now or datetime.now()  # as Optuna writes it
    groups = groups_of(trials)
    stored = noted_costs(study)
    working = at_work(trials, now)
    known = any(group.epochs for group in groups)
    if not _unfinished(study, trials):
        return Forecast([Course([], [])])
    if study.state != OPEN or not (working or starting) or not (known or stored):
        return None
    costs = stored or Costs(largest=_largest(groups), workers=max(len(working), 1))
    pace = Pace(costs, _found(groups, costs, now), _overhead(groups, costs))
    standing = _standing(study, trials, groups, pace, now=now, working=working)
    fates = Fates(study.sweep, _counted(study, trials))
    return forecast(study.sweep, standing, pace=pace, fates=fates, kinds=kinds_of(study.sweep))


def _unfinished(study: SweepStudy, trials: Sequence[FrozenTrial]) -> bool:
    if study.sweep.given:
        return any(not trial.state.is_finished() for trial in trials)
    return len(_finished(trials)) < study.budget


def _finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def _largest(groups: Sequence[WorkerGroup]) -> int:
    return max((size for group in groups for size, _ in group.epochs), default=1)


# What was found so far


def _found(groups: Sequence[WorkerGroup], costs: Costs, now: datetime) -> list[Found]:
    """How long epochs took over what they were reckoned to take; old ones count less, a machine's load changes."""
    timed = [group for group in groups if group.epochs]
    if not timed:
        return []
    half_life = max(60.0, (now - timed[0].begun).total_seconds() / 3)
    found = []
    for group in timed:
        reckoned = math.fsum(costs.epoch(group.kind, size) for size, _ in group.epochs)
        age = (now - (group.ended or now)).total_seconds()
        weight = len(group.epochs) / (len(group.epochs) + 1) * 0.5 ** (max(age, 0.0) / half_life)
        ratio = math.log(max(group.epoch_seconds, 1e-6) / reckoned)
        found.append(Found(group.kind.network, group.kind.batch_size, ratio, weight))
    return found


def _overhead(groups: Sequence[WorkerGroup], costs: Costs) -> float:
    """How many times as long as reckoned that took which is no epoch; a worker's first group also loads libraries."""
    pace = Pace(costs)
    seen: set[str] = set()
    taken = reckoned = 0.0
    for group in groups:
        ended, first = group.ended, group.owner not in seen
        seen.add(group.owner)
        if first or ended is None:
            continue
        more = (ended - group.begun).total_seconds() - group.epoch_seconds
        if more > 0:  # a trial that was interrupted has epochs from before
            taken += more
            reckoned += _besides(pace, group)
    usual = costs.trial + costs.report  # counts like a short trial
    return min(max((taken + usual) / (reckoned + usual), 0.2), 20.0) if reckoned + usual else 1.0


def _besides(pace: Pace, group: WorkerGroup) -> float:
    """What a group is reckoned to take besides its epochs."""
    costs = pace.costs
    return costs.trial * len(group.trials) + math.fsum(costs.between(group.kind, size) for size, _ in group.epochs)


def _counted(study: SweepStudy, trials: Sequence[FrozenTrial]) -> Shares:
    """What the pruner has done to those that it looked at."""
    fates = Fates(study.sweep)
    complete = sorted(_ended(trial) for trial in trials if trial.state is TrialState.COMPLETE)
    begins = datetime.max
    if len(complete) >= fates.startup:
        begins = complete[fates.startup - 1] if fates.startup else datetime.min
    first, later, diverged = [0, 0], [0, 0], [0, 0]  # ended, passed
    for trial in trials:
        curve = curve_of(trial)
        if not curve:
            continue
        broken = trial.user_attrs.get("reason", "").startswith("diverged")
        diverged[not broken] += 1
        pruned = trial.state is TrialState.PRUNED
        looks = max(_times_looked_at(trial, fates, begins), int(pruned))
        if looks and not broken:
            at_once = pruned and looks == 1
            first[not at_once] += 1
            if not at_once and fates.has_rungs:
                later[0] += pruned
                later[1] += looks - 1 - pruned
            elif not at_once and trial.state.is_finished():
                later[not pruned] += 1
    return Shares(*((float(ended), float(passed)) for ended, passed in (first, later, diverged)))


def _times_looked_at(trial: FrozenTrial, fates: Fates, begins: datetime) -> int:
    """How often the pruner has looked at a trial since it is at work. An epoch's end is reckoned by what they took."""
    looks = fates.looks(trial.user_attrs["config"]["epochs"])
    ends = accumulate(point["seconds"] * point["group_size"] for point in curve_of(trial))
    return sum(
        epoch in looks and _began(trial) + timedelta(seconds=seconds) >= begins
        for epoch, seconds in enumerate(ends, start=1)
    )


# Where it stands


def _standing(
    study: SweepStudy,
    trials: Sequence[FrozenTrial],
    groups: Sequence[WorkerGroup],
    pace: Pace,
    *,
    now: datetime,
    working: set[str],
) -> Standing:
    costs = pace.costs
    firsts = {group.owner: group for group in reversed(groups)}
    # A worker's first group waits for libraries to be loaded.
    under_way = [
        _under_way(group, pace, now, loading=costs.start / 2 if group is firsts[group.owner] else 0.0)
        for group in groups
        if group.running
    ]
    # Workers begin one after another: until all are there, those are counted that there are to be.
    young = all((now - group.begun).total_seconds() < STARTED_SECONDS for group in groups)
    workers = max(len(working), costs.workers if young else 0, 1)
    finished = _finished(trials)
    return Standing(
        waiting=[_waiting(study, trial) for trial in trials if trial.state is TrialState.WAITING],
        finished=len(finished),
        complete=sum(trial.state is TrialState.COMPLETE for trial in finished),
        under_way=under_way,
        best=[kind_of(trial.user_attrs["config"]) for trial in best_first(finished)[: examples(len(finished))]],
        idle=max(workers - len(under_way), 0),
        delay=costs.start / 2 if young and not under_way else 0.0,
    )


def _under_way(group: WorkerGroup, pace: Pace, now: datetime, *, loading: float) -> UnderWay:
    spent = group.epoch_seconds + pace.overhead * _besides(pace, group) + loading
    since = max((now - group.begun).total_seconds() - spent, 0.0)
    return UnderWay(group.kind, len(group.running), len(group.epochs), since)


def _waiting(study: SweepStudy, trial: FrozenTrial) -> Waiting:
    attributes = trial.user_attrs
    if "config" in attributes:  # it was interrupted
        config = TrialConfig.from_dict(attributes["config"])
        return Waiting([kind_of(attributes["config"])], alike=config.shape, done=len(curve_of(trial)))
    sweep = study.sweep
    if sweep.given:
        params = space.encode(attributes["given"], sweep)
        config = space.to_config(params, sweep, number=0, classes=10, precision="fp32")
        return Waiting([kind_of(config.to_dict())], alike=config.shape)
    queued = queued_params(trial)
    return Waiting(kinds_of_point(sweep, space.decode(queued)), alike=alike(sweep, queued))
