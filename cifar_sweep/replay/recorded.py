"""A study's own curves as a table, and what another strategy would have cost on them."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cifar_sweep.errors import StudyError
from cifar_sweep.replay.engine import Replay
from cifar_sweep.replay.table import Table
from cifar_sweep.search.cube import Cube
from cifar_sweep.study.record import TrialRecord, count
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep import space
from cifar_sweep.sweep.parsing import parse

DISTANCES = {"2 points": 0.02, "0.5 points": 0.005, "the best itself": 0.0}  # to the best
NEAR = 0.05  # of each range: a proposal no further from the point that stands for it is nearly that point


@dataclass(frozen=True)
class Replayed:
    """What replays of a strategy came to, beside the study itself."""

    points: Mapping[str, int]  # the trained ones, by how they ended
    best: float  # the best complete trial's validation accuracy
    trials: int  # of each replay, as many as the study has
    epochs: tuple[int, Sequence[int]]  # what the study itself trained in all, and what each replay did
    # For each distance to the best, in words, the study's epochs and the replays'; None is never.
    within: dict[str, tuple[int | None, Sequence[int | None]]]
    replays: int
    proposals: int  # of all replays
    near: int  # how many of them a trained point within `NEAR` of each range stood for
    cut: int  # how many replays came to the end of a curve that was pruned
    seconds: float  # of a replay, the median

    def quartiles(self) -> dict[str, list[int | None]]:
        """The lower quartile, the median and the upper one of the replays' epochs; None is never. "in all" are all."""
        return {name: _quartiles(each) for name, (_, each) in (self.within | {"in all": self.epochs}).items()}

    def described(self) -> dict[str, Any]:
        """The same as plain data."""
        plain, quartiles = asdict(self), self.quartiles()
        known = plain.pop("within") | {"in all": plain["epochs"]}
        plain["epochs"] = {
            name: {"study": own, "replays": each, "quartiles": quartiles[name]} for name, (own, each) in known.items()
        }
        return plain


def _quartiles(epochs: Sequence[int | None]) -> list[int | None]:
    reached = sorted(math.inf if each is None else each for each in epochs)
    places = (reached[round(share * (len(reached) - 1))] for share in (0.25, 0.5, 0.75))
    return [None if each == math.inf else int(each) for each in places]


def replay_study(study: SweepStudy, strategy: Mapping[str, Any], *, replays: int) -> Replayed:
    """Let another strategy search the study's own curves; `strategy` has keys of a sweep file, such as `sampler`.

    Raises StudyError where the study has too little to replay, UsageError where its space does not take the pruner.
    """
    trials = _usable(study)
    table = _table(study, trials)
    plain = study.sweep.model_dump(mode="json", include={"name", "trials", "fixed", "space"})
    sweep = parse(plain | dict(strategy), where=f"study {study.name!r}")
    found, took = [], []
    for seed in range(replays):
        started = time.perf_counter()
        found.append(Replay(table, sweep, seed=seed))
        found[-1].run()
        took.append(time.perf_counter() - started)
    cube = Cube(sweep)
    stood = [
        np.abs(np.subtract(cube.shares(point), cube.shares(table.settings[setting]))).max()
        for replay in found
        for point, setting in zip(replay.search.points, replay.search.settings, strict=True)
    ]
    own = _own_events(trials)
    return Replayed(
        points={state: count(trials, state) for state in ("complete", "pruned")},
        best=table.best,
        trials=sweep.trials,
        epochs=(sum(trial.epochs_done for trial in trials), [replay.search.spent for replay in found]),
        within={
            name: (_first(own, table.best - near), [_first(each.search.events, table.best - near) for each in found])
            for name, near in DISTANCES.items()
        },
        replays=replays,
        proposals=len(stood),
        near=sum(float(distance) <= NEAR for distance in stood),
        cut=sum(replay.is_cut for replay in found),
        seconds=statistics.median(took),
    )


def _usable(study: SweepStudy) -> list[TrialRecord]:
    """The finished trials that could be of the space as it is now, in the order in which they ended."""
    if study.sweep.given:
        raise StudyError(
            f"study {study.name!r} has given points, which no strategy chose; accepted: a sweep that searches."
        )
    if study.sweep.metric != "accuracy":
        raise StudyError(
            f"study {study.name!r} was chosen by {study.metric.words}; a replay takes one of metric = 'accuracy'."
        )
    there = [
        trial
        for trial in study.trials()
        if trial.state in ("complete", "pruned")
        and trial.curve
        and trial.config
        and not space.point_at(trial.config, study.sweep)[1]
    ]
    if count(there, "complete") < 2:
        raise StudyError(
            f"study {study.name!r}: a replay needs the curves of two complete trials of its space at least."
        )
    return sorted(there, key=lambda trial: (trial.ended is None, trial.ended, trial.number))


def _table(study: SweepStudy, trials: Sequence[TrialRecord]) -> Table:
    rows = [
        {
            "setting": setting,
            "params": dict(trial.params) | {"epochs": trial.epochs},
            "validation_accuracy": _accuracies(trial),
            "pruned": trial.state == "pruned" and not trial.diverged,
        }
        for setting, trial in enumerate(trials)
    ]
    plain = study.sweep.model_dump(mode="json", include={"name", "fixed", "space"}, exclude_none=True)
    return Table(plain | {"classes": study.data["classes"], "rows": rows})


def _accuracies(trial: TrialRecord) -> list[float]:
    """By epoch; what ran out of patience would have stayed as it was."""
    known = [point.validation_accuracy for point in trial.curve]
    return known + known[-1:] * (trial.epochs_left if trial.state == "complete" else 0)


def _own_events(trials: Sequence[TrialRecord]) -> list[tuple[int, float, float]]:
    """After each complete trial of the study itself: the epochs so far, 0, and the best accuracy so far."""
    events, spent, best = [], 0, 0.0
    for trial in trials:
        spent += trial.epochs_done
        if trial.state == "complete":
            best = max(best, trial.value or 0.0)
            events.append((spent, 0.0, best))
    return events


def _first(events: Sequence[tuple[int, float, float]], least: float) -> int | None:
    """The epochs after which the choice was first so good."""
    return next((spent for spent, _, true in events if true >= least - 1e-9), None)
