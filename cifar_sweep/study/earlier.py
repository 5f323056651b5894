"""Starting a study with what another one knows: its trials that this one could have had itself."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from cifar_sweep.errors import StudyError
from cifar_sweep.parameters import Value
from cifar_sweep.study.record import TrialRecord, records
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep import space, strategy
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.words import counted

STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}


@dataclass(frozen=True)
class Earlier:
    """What a sweep takes over from another study."""

    source: SweepStudy
    # The points of its trials that could be of this sweep, with all settings the same, by their numbers.
    known: Mapping[int, Mapping[str, Value]]
    words: str  # what is taken over, in a sentence

    def add_to(self, study: optuna.Study, sweep: Sweep) -> None:
        """Give a study the trials that it does not have yet; to be called under the database's lock."""
        there = [trial.earlier for trial in records(study.get_trials(deepcopy=False))]
        for trial in self.source.trials():
            origin = {"study": self.source.name, "uid": self.source.uid, "number": trial.number}
            if trial.number in self.known and origin not in there:
                study.add_trial(_copied(trial, self.known[trial.number], sweep, origin))


def earlier_of(source: SweepStudy, sweep: Sweep, *, data: Mapping[str, Any], code: Mapping[str, str]) -> Earlier:
    """What a sweep on this data, with these fingerprints of users' own models, takes over from another study.

    Raises StudyError where that is nothing, or the other study was run on other data.
    """
    where = f"--from {source.name}"
    if sweep.listed:
        words = "a grid" if not sweep.given else "a sweep of given points"
        raise StudyError(f"{where}: {words} searches nothing; accepted for sweeps whose sampler does.")
    source.check_data(name=str(data["name"]), fingerprint=str(data["fingerprint"]))
    finished = [trial for trial in source.trials() if trial.state in STATES and trial.curve]
    known, others = dict[int, dict[str, Value]](), defaultdict[str, list[Value]](list)
    for trial in finished:
        assert trial.config is not None  # it has a curve
        own = trial.config.shape.own_file
        point, different = space.point_at(trial.config, sweep)
        if source.code.get(own) != code.get(own):
            different["another file for model"] = own
        for name, value in different.items():
            others[name].append(value)
        if not different:
            known[trial.number] = point
    there = ", ".join(f"{name} = {_some(values)}" for name, values in others.items()) or "no finished trial"
    if not known:
        trials = "accepted: a study with trials that this sweep could have"
        raise StudyError(f"{where}: nothing of it can be used here, it has {there}; {trials}.")
    words = f"study {source.name!r}: {len(known)} of {len(finished)} finished trials are known from the start"
    return Earlier(source, known, words + (f"; others have {there}" if others else ""))


def _some(values: Sequence[Value]) -> str:
    """The first of these values in words, and how many others there are."""
    others = len(set(values)) - 1
    return f"{values[0]}" + (f" and {counted(others, 'other value')}" if others else "")


def _copied(trial: TrialRecord, point: Mapping[str, Value], sweep: Sweep, origin: Mapping[str, Any]) -> FrozenTrial:
    """A finished trial as Optuna takes it up into the study of a sweep, at this point of it; without its weights."""
    assert trial.config is not None
    sampled = FixedTrial(space.encode(point, sweep))
    space.suggest(sampled, sweep)
    steps: dict[int, float] = {}
    for result in trial.curve:
        step = strategy.step_of(result.epoch, epochs=trial.config.shape.epochs, searched="epochs" in sweep.space)
        steps |= {} if step is None else {step: getattr(result, trial.metric.field)}
    curve = [result.to_dict() for result in trial.curve]
    attributes = {"config": trial.config.to_dict(), "curve": curve, "earlier": dict(origin)}
    copied = create_trial(
        state=STATES[trial.state],
        value=trial.value,
        params=sampled.params,
        distributions=sampled.distributions,
        user_attrs=attributes | ({"reason": trial.reason} if trial.reason else {}),
        intermediate_values=steps,
    )
    copied.datetime_start, copied.datetime_complete = trial.started, trial.ended
    return copied
