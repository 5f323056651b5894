"""Studies from one database to another, SQLite or PostgreSQL: each trial under its own number, then read back.

A copy has a mark from its first moment on, and its sweep comes last. So what has the mark but no sweep was broken off:
nobody else takes it for a study of ours, and it is made anew.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.study.opening import load, load_all
from cifar_sweep.study.storage import Storage

MARK = "copy"  # a study attribute; never copied itself
LAST = ("uid", "sweep")  # without an uid, `run` does not take a broken-off copy for a study that it has begun itself
# The target's own workers report under its lock: they get it between two batches of trials.
TRIALS_PER_LOCK = 50
PAUSE_SECONDS = 0.05  # they poll the lock of a file, and who comes back at once wins
# Two URLs of one server may differ in everything. Of two servers that started in the same microsecond, none is known.
SERVER_DATABASE = """
    SELECT CAST(extract(epoch FROM pg_postmaster_start_time()) AS text), CAST(oid AS text), current_schema()
    FROM pg_database WHERE datname = current_database()
"""


@dataclass(frozen=True)
class _Content:
    """All of a study that a copy has, too."""

    name: str
    attributes: dict[str, Any]
    system_attributes: dict[str, Any]
    trials: list[FrozenTrial]

    def difference(self, other: "_Content") -> str | None:
        """Where `other` first differs, in short; None where all is equal."""
        if len(self.trials) != len(other.trials):
            return f"{len(other.trials)} trials instead of {len(self.trials)}"
        pairs = zip(self.trials, other.trials, strict=True)
        number = next((one.number for one, two in pairs if _as_text(one) != _as_text(two)), None)
        if number is not None:
            return f"another trial {number}"
        facts = (json.dumps([each.attributes, each.system_attributes], sort_keys=True) for each in (self, other))
        return None if len(set(facts)) == 1 else "other attributes"


def copy_studies(
    source: Storage, target: Storage, names: Sequence[str] = (), *, say: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Copy studies from one database to another; the source stays as it is.

    A study that is in the target already, the same trial for trial, is passed over while there is another to copy: so
    a command that was broken off goes on where it was.

    Args:
        source: where they are.
        target: where they are wanted.
        names: which; with none given, all of ours.
        say: told of each study in one sentence.

    Returns:
        The names of the studies copied.

    Raises:
        UsageError: both are the same database.
        StudyError: a study is missing, is being trained, is in the target already, or did not arrive as it was.
    """
    if _identity(source) == _identity(target):
        raise UsageError(f"{target.shown}: the studies are in this database already; name another to copy them to.")
    wanted = [load(source, name).name for name in dict.fromkeys(names)] or [study.name for study in load_all(source)]
    if not wanted:
        raise StudyError(f"{source.shown}: there is no study to copy.")
    # All are looked at before the first is written.
    there = [name for name in wanted if _is_copied(target, _read_source(source, name))]
    if there == wanted:
        one_or_all = f"study {wanted[0]!r} is" if len(wanted) == 1 else f"all {len(wanted)} studies are"
        raise StudyError(f"{target.shown}: {one_or_all} here already, the same trial for trial; nothing was copied.")
    copied = []
    for name in wanted:
        if name in there:
            say(f"study {name!r} is there already, the same trial for trial, and passed over.")
            continue
        content = _read_source(source, name)
        _write(target, content)
        say(f"study {name!r} is copied, trials: {len(content.trials)}.")
        copied.append(name)
    return copied


def _identity(storage: Storage) -> tuple[Any, ...]:
    """What tells databases of one kind apart, however their addresses are written."""
    engine = storage.optuna.engine
    if engine.dialect.name == "sqlite":
        file = Path(str(engine.url.database)).stat()
        return file.st_dev, file.st_ino
    with engine.connect() as connection:
        return tuple(connection.execute(sqlalchemy.text(SERVER_DATABASE)).one())


def _read_source(source: Storage, name: str) -> _Content:
    """A study as its copy is to be. Raises StudyError where it is being trained."""
    with source.lock():
        study = optuna.load_study(storage=source.optuna, study_name=name)
        content = _read(source, name)
        orphans = source.orphans(study)
        running = [trial for trial in content.trials if trial.state is TrialState.RUNNING]
        held = [trial for trial in running if source.trial_id(study, trial.number) not in orphans]
    if held:
        raise StudyError(
            f"{source.shown}: study {name!r} is being trained (running trials: {len(held)}); pause it with "
            f"`cifar-sweep pause {name}`, or wait until it has ended."
        )
    for trial in running:
        trial.state = TrialState.WAITING
        trial.set_user_attr("owner", None)
    return content


def _read(storage: Storage, name: str) -> _Content:
    study = optuna.load_study(storage=storage.optuna, study_name=name)
    study_id = storage.optuna.get_study_id_from_name(name)
    attributes = {key: value for key, value in study.user_attrs.items() if key != MARK}
    return _Content(name, attributes, storage.optuna.get_study_system_attrs(study_id), study.get_trials())


def _as_text(trial: FrozenTrial) -> str:
    """All of a trial but its key in the database, as text: a NaN does not equal itself, its text does."""
    parts = {name: part for name, part in vars(trial).items() if name != "_trial_id"}
    return json.dumps(parts, sort_keys=True, default=repr)


def _is_copied(target: Storage, content: _Content) -> bool:
    """Whether the target has exactly this study already. Raises StudyError where it has another of that name."""
    with target.lock():
        return _state_in(target, content) == "whole"


def _state_in(target: Storage, content: _Content) -> Literal["nothing", "broken off", "whole"]:
    """What the target has of this study. Raises StudyError where it has something else under its name."""
    name = content.name
    if name not in optuna.get_all_study_names(target.optuna):
        return "nothing"
    study = optuna.load_study(storage=target.optuna, study_name=name)
    attributes = study.user_attrs
    if "sweep" not in attributes:
        if MARK in attributes:
            return "broken off"
        # Somebody was ended before the first attribute: there is nothing to lose, and `run` takes it as well.
        if not attributes and not study.get_trials(deepcopy=False) and study.directions == [StudyDirection.MAXIMIZE]:
            return "nothing"
        raise StudyError(
            f"{target.shown}: study {name!r} here was not made by cifar-sweep, or not to its end; it stays as it is, "
            "copy to another database."
        )
    if attributes["uid"] != content.attributes["uid"]:
        raise StudyError(
            f"{target.shown}: another study {name!r} is here already; it stays as it is, copy to another database."
        )
    if difference := content.difference(_read(target, name)):
        raise StudyError(
            f"{target.shown}: study {name!r} is here already, the same one in another state ({difference}); delete the "
            "one that you do not want."
        )
    return "whole"


def _write(target: Storage, content: _Content) -> None:
    """Make the study in the target, and read it back. Raises StudyError where that is not possible."""
    token = uuid.uuid4().hex
    _begin_copy(target, content, token)
    for first in range(0, len(content.trials), TRIALS_PER_LOCK):
        with _our_copy(target, content.name, token) as study:
            study_id = target.optuna.get_study_id_from_name(study.study_name)
            for trial in content.trials[first : first + TRIALS_PER_LOCK]:
                # Not study.add_trials, which refuses a point that was given outside of its space.
                target.optuna.create_new_trial(study_id, template_trial=trial)
        time.sleep(PAUSE_SECONDS)
    with _our_copy(target, content.name, token) as study:
        _finish_copy(target, study, content)


def _begin_copy(target: Storage, content: _Content, token: str) -> None:
    """Make an empty study with our mark; of one that was broken off nothing stays."""
    with target.lock():
        there = _state_in(target, content)
        if there == "whole":
            raise StudyError(f"{target.shown}: another command has copied study {content.name!r} just now.")
        if there == "broken off":
            optuna.delete_study(storage=target.optuna, study_name=content.name)
        study = optuna.create_study(
            storage=target.optuna, study_name=content.name, direction=StudyDirection.MAXIMIZE, load_if_exists=True
        )
        study.set_user_attr(MARK, token)


@contextmanager
def _our_copy(target: Storage, name: str, token: str) -> Iterator[optuna.Study]:
    """The target's lock, with the certainty that the study there is the one we have begun."""
    with target.lock():
        known = name in optuna.get_all_study_names(target.optuna)
        study = optuna.load_study(storage=target.optuna, study_name=name) if known else None
        if study is None or study.user_attrs.get(MARK) != token:
            raise StudyError(
                f"{target.shown}: another command has taken study {name!r} away from this one; copy again."
            )
        yield study


def _finish_copy(target: Storage, study: optuna.Study, content: _Content) -> None:
    """Give the study its attributes, and the last of them when all that it has was read back."""
    study_id = target.optuna.get_study_id_from_name(content.name)
    for key, value in content.system_attributes.items():
        target.optuna.set_study_system_attr(study_id, key, value)
    most = {key: value for key, value in content.attributes.items() if key not in LAST}
    for key, value in most.items():
        study.set_user_attr(key, value)
    if difference := replace(content, attributes=most).difference(_read(target, content.name)):
        raise StudyError(
            f"{target.shown}: study {content.name!r} did not arrive as it was ({difference}), and is no study yet; "
            "copy it again."
        )
    for key in LAST:
        study.set_user_attr(key, content.attributes[key])
