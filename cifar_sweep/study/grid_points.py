"""The points of a grid in its study: which were tried, and which are queued."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna

from cifar_sweep.parameters import Value
from cifar_sweep.study.record import TrialRecord, count, records
from cifar_sweep.study.storage import Storage
from cifar_sweep.sweep import space
from cifar_sweep.sweep.grid import grid
from cifar_sweep.sweep.sweep import Sweep


@dataclass(frozen=True)
class GridPoints:
    """Where a study stands in a grid. A point of which each trial has failed counts as untried."""

    points: int
    finished: int  # points with a trial that is complete or pruned
    known: int  # points with any trial, one that waits among them
    untried: Sequence[Mapping[str, Value]]  # the other points, in the grid's order
    strays: Sequence[TrialRecord]  # trials that wait, were never begun and are no points of it
    others: int  # trials that were begun and are not its points, or are the second of one

    @classmethod
    def of(cls, trials: Sequence[TrialRecord], sweep: Sweep, *, extended: bool) -> "GridPoints":
        """Of a study with these trials; `extended` says that some of them may be of an earlier sweep."""
        points = {frozenset(point.items()): point for point in grid(sweep)}
        trials = [each for each in trials if each.state != "failed" and each.confirms is None and not each.earlier]
        there = {trial.number: _point(trial, sweep, extended=extended) for trial in trials}
        known = points.keys() & there.values()
        fresh = [trial for trial in trials if trial.state == "waiting" and trial.config is None]
        begun = [there[trial.number] for trial in trials if trial.config is not None]
        finished = {there[trial.number] for trial in trials if count([trial], "complete", "pruned")}
        return cls(
            points=len(points),
            finished=len(finished & points.keys()),
            known=len(known),
            untried=[point for key, point in points.items() if key not in known],
            strays=[trial for trial in fresh if there[trial.number] not in points],
            others=len(begun) - len(points.keys() & set(begun)),
        )


def _point(trial: TrialRecord, sweep: Sweep, *, extended: bool) -> frozenset[tuple[str, Value]] | None:
    """The point that a trial is of, or is to be of; None where it has settings that the sweep has not."""
    if trial.config is None or not extended:
        params = trial.queued if trial.state == "waiting" else trial.frozen.params
        return frozenset(space.decode(params).items())
    point, different = space.point_at(trial.config, sweep)
    return None if different else frozenset(point.items())


def queue_grid(storage: Storage, study: optuna.Study, sweep: Sweep) -> Sweep:
    """Queue the first points of a grid, in so many hours all of them, as far as they are not there or have failed.

    Returns the sweep with room for these beside trials of the study that are not its points. To be called under the
    lock.
    """
    trials = records(study.get_trials(deepcopy=False))
    found = GridPoints.of(trials, sweep, extended=bool(study.user_attrs.get("changes")))
    whole = "hours" in study.user_attrs
    room = found.points if whole else max(sweep.trials - found.known, 0)
    storage.enqueue(study, [space.encode(point, sweep) for point in found.untried[:room]])
    wanted = sweep.trials if whole else found.others + max(sweep.trials, found.finished)
    return sweep.model_copy(update={"trials": wanted})
