"""Changing one's mind about a study that has run: another sweep from now on, and the old trials as what they are."""

from collections.abc import Sequence
from datetime import UTC, datetime

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from cifar_sweep.errors import StudyError
from cifar_sweep.parameters import PARAMETERS
from cifar_sweep.study import tables
from cifar_sweep.study.claiming import prune_waiting
from cifar_sweep.study.grid_points import GridPoints
from cifar_sweep.study.provenance import commit
from cifar_sweep.study.record import TrialRecord, count, records
from cifar_sweep.study.storage import Storage, key_of
from cifar_sweep.study.winner import ranked
from cifar_sweep.sweep import space
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.words import counted


def is_comparable(trial: TrialRecord, sweep: Sweep) -> bool:
    """Whether a trial that has begun could be one of this sweep, but for its length."""
    return trial.config is not None and not space.point_at(trial.config, sweep)[1].keys() - space.LENGTH


def extend(storage: Storage, study: optuna.Study, was: Sweep, now: Sweep) -> None:
    """Make a study and its trials those of another sweep, under the lock; StudyError where that cannot be."""
    before, after = was.identity(), now.identity()
    changed = [key for key in after if after[key] != before[key]]
    if not changed:
        return
    trials = [trial for trial in records(study.get_trials(deepcopy=False)) if not trial.earlier]
    _check(storage, study, trials, was, now)
    begun = [trial for trial in trials if trial.config is not None]
    others = [trial for trial in begun if trial.config and space.point_at(trial.config, now)[1]]
    for trial in trials:
        if trial.is_frozen and (now.strategy != "auto" or not is_comparable(trial, now)):
            waited = f"frozen after epoch {trial.epochs_done} when the study was extended"
            prune_waiting(storage, study, trial, f"{waited}, with settings of the earlier space")
    if "grid" in (was.sampler.name, now.sampler.name):
        _withdraw(storage, study, trials, now)
    with storage.optuna.writing() as connection:
        tables.redistribute(connection, key_of(study), space.distributions(now))
    longer = [each["fixed"].get("epochs", PARAMETERS["epochs"].default) for each in (before, after)]
    if longer[0] < longer[1] and "epochs" not in {**before["space"], **after["space"]}:
        for trial in ranked(trial for trial in begun if is_comparable(trial, now))[: now.keep_weights]:
            assert trial.config is not None  # it has begun
            label = f"trial {trial.number}, {longer[1]} epochs"
            if label not in [other.label for other in trials]:
                point, _ = space.point_at(trial.config, now)
                study.enqueue_trial(space.encode(point, now), user_attrs={"label": label})
    change = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "was": {key: before[key] for key in changed},
        "now": {key: after[key] for key in changed},
        "trials": [trial.number for trial in begun],
        "words": _words(was, now, changed) + _about(begun, others, now),
    }
    study.set_user_attr("changes", [*study.user_attrs.get("changes", ()), change])


def _check(storage: Storage, study: optuna.Study, trials: Sequence[TrialRecord], was: Sweep, now: Sweep) -> None:
    name = f"study {study.study_name!r}"
    if was.given or now.given:
        raise StudyError(f"--extend: {name}: given points have no space to extend; accepted: a sweep that searches.")
    if was.metric != now.metric:
        kept = f"its trials were chosen by {was.metric}, not by {now.metric}"
        raise StudyError(f"--extend: {name}: {kept}; keep that, or begin a new study.")
    if running := count(trials, "running") - len(storage.orphans(study)):
        raise StudyError(f"--extend: {name}: {running} of its trials are being trained; stop their workers first.")
    if asked := _asked(trials, now):
        raise StudyError(f"--extend: {name}: {asked}.")
    known = space.distributions(now)
    for trial in trials:
        for key, value in trial.frozen.params.items():
            domain = known.get(key)
            if isinstance(domain, CategoricalDistribution) and value not in domain.choices:
                left_out = f"trial {trial.number} has {key} = {value}, which the new choices leave out"
                new = "begin a new study" + (" with --from" if not now.listed else "")
                keep = f"Optuna takes no choice away from a study: keep it, or {new}"
                raise StudyError(f"--extend: {name}: {left_out}; {keep}.")


def _asked(trials: Sequence[TrialRecord], now: Sweep) -> str:
    """Why nothing new would be trained, and what is accepted, in words; empty where something would."""
    if now.sampler.name == "grid":
        found = GridPoints.of(trials, now, extended=True)
        if found.finished < now.trials:
            return ""
        there = f"{found.finished} of the grid's {found.points} points are trained"
        more = f"trials = {found.finished + 1} to {found.points}"
        further = "further values in [space], or others in [fixed]"
        asked = f"{there}, and the sweep asks for {now.trials}, so nothing new would be trained"
        return f"{asked}; accepted: {more if found.finished < found.points else further}"
    searched = [trial for trial in trials if trial.confirms is None]
    if (finished := count(searched, "complete", "pruned")) < now.trials:
        return ""
    asked = f"{finished} trials are finished, and the sweep asks for {now.trials}"
    return f"{asked}, so nothing new would be trained; raise trials"


def _withdraw(storage: Storage, study: optuna.Study, trials: Sequence[TrialRecord], now: Sweep) -> None:
    """Fail what waits of a grid, was never begun, and is no point of the new sweep, or would not be sampled by it."""
    is_grid = now.sampler.name == "grid"
    fresh = [trial for trial in trials if trial.state == "waiting" and trial.config is None and trial.confirms is None]
    strays = GridPoints.of(trials, now, extended=True).strays if is_grid else fresh
    change = tables.Change({"reason": "the study was extended before it began"})
    for trial in strays:
        storage.turn(storage.trial_id(study, trial.number), TrialState.FAIL, change)


def _words(was: Sweep, now: Sweep, changed: Sequence[str]) -> str:
    """What has changed, as in "epochs: 3, now 6"."""
    parts = []
    for key in changed:
        old, new = (getattr(each, key) for each in (was, now))
        before, after = ({key: each} if isinstance(each, (int, str)) else dict(each) for each in (old, new))
        for name in dict.fromkeys([*before, *after]):
            one, other = (each.get(name, "not there") for each in (before, after))
            if one != other:
                parts.append(f"{name}: {one}, now {other}")
    return "; ".join(parts)


def _about(begun: Sequence[TrialRecord], others: Sequence[TrialRecord], now: Sweep) -> str:
    """What becomes of the trials that there are."""
    words = f". {counted(len(begun), 'trial')} stay{'s' if len(begun) == 1 else ''} as before"
    if not others:
        return words + ", and could be of the new space as well."
    left_out = sum(not is_comparable(trial, now) for trial in others)
    words += f"; {len(others)} of them {'has' if len(others) == 1 else 'have'} settings that the new space has not"
    if now.strategy == "auto":
        return words + (f", and {left_out} of these tell the model nothing." if left_out else ".")
    return words + f": sampler {now.sampler.name} compares their values with new ones all the same."
