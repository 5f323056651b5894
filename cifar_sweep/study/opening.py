"""Opening studies: a new one with its facts and hand points, one that is there if it fits, or any by name."""

import json
import logging
import re
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection

from cifar_sweep.artifacts import Artifacts
from cifar_sweep.curve import METRICS
from cifar_sweep.errors import CifarSweepError, StudyError, UsageError, nearest
from cifar_sweep.study import extending
from cifar_sweep.study.claiming import asked
from cifar_sweep.study.earlier import Earlier
from cifar_sweep.study.files import remove_files
from cifar_sweep.study.grid_points import queue_grid
from cifar_sweep.study.hours import Hours
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.study.record import count, records
from cifar_sweep.study.storage import CANCELLED, OPEN, Storage
from cifar_sweep.study.stored import not_ours, state_of, stored_sweep
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep import space, strategy
from cifar_sweep.sweep.sweep import Sweep

log = logging.getLogger(__name__)
LONGEST_NAME = 200  # bytes: it is a part of the names of files, which have 255


def check_request(name: str, sweep: Sweep) -> None:
    """Raise UsageError where no study can be made of this name, or of the pruner in this space."""
    if not re.fullmatch(r"[^\W_][\w.-]*", name):
        words = "letters, digits, dots, dashes and underscores, of which a letter or a digit is the first"
        raise UsageError(f"study {name!r}: accepted: {words}.")
    if len(name.encode()) > LONGEST_NAME:
        raise UsageError(f"study {name[:20]!r} and so on: the name is too long; accepted: {LONGEST_NAME} bytes.")
    strategy.build_pruner(sweep)


def open_or_resume(
    storage: Storage,
    name: str,
    sweep: Sweep,
    *,
    data: Mapping[str, Any],
    code: Mapping[str, str] | None = None,
    artifacts: str | None = None,
    priority: int | None = None,
    hours: Hours | None = None,
    earlier: Earlier | None = None,
    extend: bool = False,
) -> SweepStudy:
    """The study `name`, made if it is not there, with the sweep's budget; open, if it was finished or halted.

    `data` has the `name`, `fingerprint` and `classes` (their number) of the data, `code` the fingerprints of users' own
    models. None leaves as it is where the trials' files go, ./artifacts at first, and the priority, 0 at first; workers
    take the open study of the highest. `hours` says that the sweep was cut to them; a study that is there keeps its own
    cut and its own end. `earlier` is what it begins with of another study. Raises UsageError as `check_request`,
    StudyError where it is there with another space, other data or another model; with `extend` another space is its own
    from now on, and a study that is not there is refused.
    """
    check_request(name, sweep)
    if sweep.metric == "top5" and data["classes"] <= 5:
        always = f"of {data['classes']} classes the right one is always among five"
        raise UsageError(f"metric = 'top5': {always}; accepted for these images: accuracy, loss, f1.")
    if extend:
        load(storage, name)  # it is not made by this
    with storage.lock():
        lowest = METRICS[sweep.metric].lowest
        direction = StudyDirection.MINIMIZE if lowest else StudyDirection.MAXIMIZE
        study = optuna.create_study(storage=storage.optuna, study_name=name, direction=direction, load_if_exists=True)
        known = "sweep" in study.user_attrs
        if not known and study.directions != [direction]:
            raise StudyError(f"{storage.shown}: study {name!r} has another direction; it was not made by cifar-sweep.")
        if "uid" not in study.user_attrs and study.get_trials(deepcopy=False):
            raise not_ours(storage, name)
        if known:
            _check_data(study, data, code or {})
            sweep = _gone_on_with(storage, study, sweep, hours=hours, code=code or {}, extend=extend)
        elif hours:
            study.set_user_attr("hours", asdict(hours))
        if earlier is not None and earlier.source.uid == study.user_attrs.get("uid"):
            raise UsageError(f"--from {name}: a study knows its own trials already; accepted: another study.")
        if artifacts is not None or "artifacts" not in study.user_attrs:
            study.set_user_attr("artifacts", storage.to_store(artifacts or str(Path("artifacts").absolute())))
        if priority is not None:
            study.set_user_attr("priority", priority)
        if not known:
            found = {key: storage.to_store(str(value)) if key == "source" else value for key, value in data.items()}
            _give_facts(study, found, code or {}, metric=METRICS[sweep.metric].words)
            study.set_user_attr("home", storage.home())
        if earlier is not None:
            earlier.add_to(study, sweep)
        sweep = _enqueue(storage, study, sweep)
        # Of a new study the sweep is last: one that has it is whole.
        for key, value in {"sweep": sweep.model_dump(mode="json"), "reason": "", "state": OPEN}.items():
            study.set_user_attr(key, value)
    return SweepStudy(storage, storage.load(name))


def _gone_on_with(
    storage: Storage, study: optuna.Study, sweep: Sweep, *, hours: Hours | None, code: Mapping[str, str], extend: bool
) -> Sweep:
    """The sweep that a study that is there goes on with; see `open_or_resume`."""
    _check_hours(study, hours)
    was = stored_sweep(study)
    if extend:
        extending.extend(storage, study, was, sweep)
        study.set_user_attr("code", study.user_attrs.get("code", {}) | dict(code))
    else:
        _check_same(study, sweep, hours)
    study.set_user_attr("over", study.user_attrs.get("over", "") if hours else "")
    if hours or sweep.listed:
        return was if hours else sweep
    # What is finished stays: a smaller number than that takes nothing back.
    finished = count(asked(records(study.get_trials(deepcopy=False)), was), "complete", "pruned")
    return sweep.model_copy(update={"trials": max(sweep.trials, min(finished, was.trials))})


def _give_facts(study: optuna.Study, data: Mapping[str, Any], code: Mapping[str, str], *, metric: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([metric])
    facts = {"uid": study.user_attrs.get("uid", uuid.uuid4().hex[:8]), "data": dict(data)}
    facts |= {"code": dict(code)} if code else {}
    for key, value in (facts | {"versions": versions(), "commit": commit()}).items():
        study.set_user_attr(key, value)


def _enqueue(storage: Storage, study: optuna.Study, sweep: Sweep) -> Sweep:
    """Queue the sweep's own points that the study does not have yet, and given points that failed.

    Returns the sweep, of a grid as `queue_grid` does.
    """
    if sweep.sampler.name == "grid":
        return queue_grid(storage, study, sweep)
    trials = records(study.get_trials(deepcopy=False))
    there = [(trial.label, trial.given) for trial in trials if trial.state != "failed"]
    for point in sweep.enqueue:
        params = space.encode(point.params(), sweep)
        attributes: dict[str, Any] = {"label": point.label} if point.label else {}
        if sweep.given:
            count = study.user_attrs["data"].get("train_images")
            shortened = (
                point.shortened.replace("of all training", f"of {count:,} training") if count else point.shortened
            )
            attributes |= {"given": point.params(), "shortened": shortened}
            if (point.label, point.params()) in there:
                continue
        if params or sweep.given:
            study.enqueue_trial(params, user_attrs=attributes, skip_if_exists=not sweep.given)
    return sweep


def _check_hours(study: optuna.Study, hours: Hours | None) -> None:
    """A study that was cut to so many hours goes on in them, and no other does."""
    name, given = study.study_name, study.user_attrs.get("hours")
    if (given["hours"] if given else None) != (hours.hours if hours else None):
        has = f"with --hours {given['hours']:g}" if given else "without --hours"
        raise StudyError(
            f"study {name!r} was begun {has}, which decides how long its trials are; run {has} to continue it, or name "
            "a new study with --study."
        )


def _check_same(study: optuna.Study, sweep: Sweep, hours: Hours | None) -> None:
    """Numbers that mean different things must not meet in one study."""
    name = study.study_name
    stored = study.user_attrs["hours"]["asked"] if hours else stored_sweep(study).identity()
    asked = hours.asked if hours else sweep.identity()
    if differing := next((key for key in asked if asked[key] != stored[key]), None):
        was, now = stored[differing], asked[differing]
        raise StudyError(
            f"study {name!r} is there already with another {differing}: it has {_difference(was, now)}, this run has "
            f"{_difference(now, was)}; run with the same settings to continue it, go on with these from now on with "
            "--extend, or name a new study with --study."
        )


def _check_data(study: optuna.Study, data: Mapping[str, Any], code: Mapping[str, str]) -> None:
    """Raise StudyError if these are not the images, or not the models, that the study's trials were trained with."""
    name, there = study.study_name, study.user_attrs["data"]
    if there["fingerprint"] != data["fingerprint"]:
        raise StudyError(
            f"study {name!r} was run on other data: {there['name']} ({there['fingerprint']}), not {data['name']} "
            f"({data['fingerprint']}); give the same --data to continue it, or name a new study with --study."
        )
    check_code(name, study.user_attrs.get("code", {}), code)


def check_code(name: str, stored: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise StudyError if a user's own model is not the one that the study's trials were trained with."""
    for model, fingerprint in stored.items():
        if found.get(model) != fingerprint:
            named = f"weights_file {model!r}" if ":" not in model else f"model {model!r}"
            raise StudyError(
                f"study {name!r} was run with another file for {named}: its trials would not be comparable; "
                "restore the file to continue it, or name a new study with --study."
            )


def _difference(one: Any, other: Any) -> str:
    """What `one` has that `other` has not, in short."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in one if one[key] != other.get(key)]
        return json.dumps({key: one[key] for key in keys}) if keys else "less"
    return json.dumps(one)


def load(storage: Storage, name: str | None = None) -> SweepStudy:
    """An existing study; with no name, the only one there is. Raises StudyError where there is no such one."""
    known = optuna.get_all_study_names(storage.optuna)
    if name is None and len(known) != 1:
        raise StudyError(f"{storage.shown}: name one of its studies: {', '.join(sorted(known)) or 'it has none'}.")
    name = known[0] if name is None else name
    if name not in known:
        there = nearest(name, known) if known else "it has no study"
        raise StudyError(f"{storage.shown}: there is no study {name!r}; {there}.")
    return SweepStudy(storage, storage.load(name))


def load_all(storage: Storage) -> list[SweepStudy]:
    """Every study of ours, by name; others' studies in the same database are passed over."""
    names = sorted(name for name, attributes in storage.studies() if "sweep" in attributes)
    return [study for name in names if (study := _ours(storage, name))]


def _ours(storage: Storage, name: str) -> SweepStudy | None:
    """A study; None where it was deleted just now, or what stands there is not what we wrote."""
    try:
        return SweepStudy(storage, storage.load(name))
    except KeyError:
        return None
    except CifarSweepError as error:
        log.warning("study %r is passed over: %s", name, error)
        return None


def open_studies(storage: Storage, names: Collection[str] = ()) -> Iterator[SweepStudy]:
    """The studies that have trials to train (of `names`, if any are given): highest priority first, then the oldest."""
    known = [
        (name, attributes)
        for name, attributes in storage.studies()
        if "sweep" in attributes and state_of(attributes) == OPEN and (not names or name in names)
    ]
    for name, _ in sorted(known, key=lambda each: -each[1].get("priority", 0)):
        study = _ours(storage, name)
        if study and not study.settle():
            yield study


def delete(storage: Storage, name: str, *, files: Artifacts | None) -> None:
    """Delete a study with all its trials, and first their `files`, so that none is left that nobody knows of.

    With None they stay.

    Raises StudyError where its trials are still being trained; they are told to stop.
    """
    study = load(storage, name)
    study.set_state(CANCELLED)
    with storage.lock():
        running = study.summary()["trials"]["running"]
    if running:
        raise StudyError(
            f"study {name!r}: {running} of its trials are being trained; they stop within "
            f"{storage.heartbeat_seconds:.0f} s or so: delete it then."
        )
    if files:
        remove_files(study, files)  # it may take a while, and nobody takes trials of a cancelled study
    with storage.lock():
        optuna.delete_study(study_name=name, storage=storage.optuna)
