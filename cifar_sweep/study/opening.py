"""Opening studies: a new one with its facts and hand points, one that is there if it fits, or any by name."""

import json
import re
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection

from cifar_sweep.errors import StudyError, UsageError, nearest
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.study.record import records
from cifar_sweep.study.storage import CANCELLED, OPEN, Storage
from cifar_sweep.study.study import SweepStudy, not_ours, stored_sweep
from cifar_sweep.sweep import space, strategy
from cifar_sweep.sweep.sweep import Sweep


def check_request(name: str, sweep: Sweep) -> None:
    """Raise UsageError where no study can be made of this name, or of the pruner in this space."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UsageError(f"study {name!r}: accepted: letters, digits, dots, dashes and underscores.")
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
) -> SweepStudy:
    """The study `name`, made if it is not there, with the sweep's budget; open, if it was finished or halted.

    `data` has the `name`, `fingerprint` and `classes` (their number) of the data, `code` the fingerprints of users' own
    models. None leaves as it is where the trials' files go, ./artifacts at first, and the priority, 0 at first; workers
    take the open study of the highest. Raises UsageError as `check_request`, StudyError where it is there with another
    space, other data or another model.
    """
    check_request(name, sweep)
    with storage.lock():
        study = optuna.create_study(storage=storage.optuna, study_name=name, direction="maximize", load_if_exists=True)
        if study.directions != [StudyDirection.MAXIMIZE]:
            raise StudyError(f"{storage.shown}: study {name!r} minimises; it was not made by cifar-sweep.")
        if "uid" not in study.user_attrs and study.get_trials(deepcopy=False):
            raise not_ours(storage, name)
        if known := "sweep" in study.user_attrs:
            _check_same(study, sweep, data, code or {})
        if artifacts is not None or "artifacts" not in study.user_attrs:
            study.set_user_attr("artifacts", storage.to_store(artifacts or str(Path("artifacts").absolute())))
        if priority is not None:
            study.set_user_attr("priority", priority)
        if not known:
            found = {key: storage.to_store(str(value)) if key == "source" else value for key, value in data.items()}
            _give_facts(study, found, code or {})
            study.set_user_attr("home", storage.home())
        _enqueue(study, sweep)
        # Of a new study the sweep is last: one that has it is whole.
        for key, value in {"sweep": sweep.model_dump(mode="json"), "reason": "", "state": OPEN}.items():
            study.set_user_attr(key, value)
    return SweepStudy(storage, storage.load(name))


def _give_facts(study: optuna.Study, data: Mapping[str, Any], code: Mapping[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(["validation accuracy"])
    facts = {"uid": study.user_attrs.get("uid", uuid.uuid4().hex[:8]), "data": dict(data)}
    facts |= {"code": dict(code)} if code else {}
    for key, value in (facts | {"versions": versions(), "commit": commit()}).items():
        study.set_user_attr(key, value)


def _enqueue(study: optuna.Study, sweep: Sweep) -> None:
    """Queue the sweep's own points that the study does not have yet, and given points that failed."""
    trials = records(study.get_trials(deepcopy=False))
    there = [(trial.label, trial.given) for trial in trials if trial.state != "failed"]
    for point in sweep.enqueue:
        params = space.encode(point.params(), sweep)
        attributes: dict[str, Any] = {"label": point.label} if point.label else {}
        if sweep.given:
            attributes |= {"given": point.params(), "shortened": point.shortened}
            if (point.label, point.params()) in there:
                continue
        if params or sweep.given:
            study.enqueue_trial(params, user_attrs=attributes, skip_if_exists=not sweep.given)


def _check_same(study: optuna.Study, sweep: Sweep, data: Mapping[str, Any], code: Mapping[str, str]) -> None:
    """Numbers that mean different things must not meet in one study."""
    name = study.study_name
    stored, asked = stored_sweep(study).identity(), sweep.identity()
    if differing := next((key for key in asked if asked[key] != stored[key]), None):
        was, now = stored[differing], asked[differing]
        raise StudyError(
            f"study {name!r} is there already with another {differing}: it has {_difference(was, now)}, this run has "
            f"{_difference(now, was)}; run with the same settings to continue it, or name a new study with --study."
        )
    there = study.user_attrs["data"]
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
            raise StudyError(
                f"study {name!r} was run with another file for model {model!r}: its trials would not be comparable; "
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
    return [SweepStudy(storage, storage.load(name)) for name in names]


def open_studies(storage: Storage, names: Collection[str] = ()) -> Iterator[SweepStudy]:
    """The studies that have trials to train (of `names`, if any are given): highest priority first, then the oldest."""
    known = [
        (name, attributes)
        for name, attributes in storage.studies()
        if "sweep" in attributes and attributes.get("state", OPEN) == OPEN and (not names or name in names)
    ]
    for name, _ in sorted(known, key=lambda each: -each[1].get("priority", 0)):
        try:
            study = SweepStudy(storage, storage.load(name))
        except KeyError:  # it was deleted just now
            continue
        if not study.settle():
            yield study


def delete(storage: Storage, name: str, *, remove_files: Callable[[SweepStudy], None]) -> None:
    """Delete a study with all its trials, and first their files, so that none is left that nobody knows of.

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
    remove_files(study)  # it may take a while, and nobody takes trials of a cancelled study
    with storage.lock():
        optuna.delete_study(study_name=name, storage=storage.optuna)
