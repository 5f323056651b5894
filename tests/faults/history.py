"""What happened to a study, and whether that may be: what workers believed, and what its database saw.

The database notes each write itself, in the transaction that writes, with its own time. The workers note what they
hold, what they send, and what they are told. `problems` compares the two.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection

from cifar_sweep.study.claim import TrialLostError
from cifar_sweep.study.record import TrialRecord, stored_curve
from cifar_sweep.study.study import SweepStudy

FINISHED = ("COMPLETE", "PRUNED", "FAIL")
RACE_SECONDS = 1.0  # a server takes heartbeats while a claim is made that does not see them
NOW = {"sqlite": "(julianday('now') - 2440587.5) * 86400.0", "postgresql": "extract(epoch FROM clock_timestamp())"}
OWNER = "(SELECT o.value_json FROM trial_user_attributes o WHERE o.trial_id = {row}.trial_id AND o.key = 'owner')"
# What is noted: the table, the kind of writing, and the trial, the key and the value of the note.
NOTED = [
    ("trials", "INSERT", "'state'", "CAST(NEW.state AS TEXT)"),
    ("trials", "UPDATE OF state", "'state'", "CAST(NEW.state AS TEXT)"),
    ("trial_user_attributes", "INSERT", "NEW.key", "NEW.value_json"),
    ("trial_user_attributes", "UPDATE", "NEW.key", "NEW.value_json"),
    ("trial_user_attributes", "DELETE", "OLD.key", "NULL"),
    ("trial_heartbeats", "INSERT", "'beat'", "NULL"),
    ("trial_heartbeats", "UPDATE", "'beat'", "NULL"),
    ("study_user_attributes", "INSERT", "NEW.key", "NEW.value_json"),
    ("study_user_attributes", "UPDATE", "NEW.key", "NEW.value_json"),
]


def watch(connection: Connection) -> None:
    """Have a database note all that is written from now on, and first what is there."""
    kind = connection.engine.name
    if sqlalchemy.inspect(connection).has_table("history"):
        return
    key = "SERIAL" if kind == "postgresql" else "INTEGER"
    connection.exec_driver_sql(
        f"CREATE TABLE history (id {key} PRIMARY KEY, at DOUBLE PRECISION, study_id INTEGER, trial_id INTEGER, "
        "key TEXT, value TEXT, owner TEXT)"
    )
    add = "INSERT INTO history (at, study_id, trial_id, key, value, owner) "
    for table, where in (
        ("trials", "CAST(state AS TEXT)"),
        ("trial_user_attributes", ""),
        ("study_user_attributes", ""),
    ):
        what = f"'state', {where}" if where else "key, value_json"
        of = "study_id, NULL" if table.startswith("study") else "NULL, trial_id"
        connection.exec_driver_sql(f"{add} SELECT 0, {of}, {what}, NULL FROM {table}")
    for number, (table, writing, name, value) in enumerate(NOTED):
        row = "OLD" if writing == "DELETE" else "NEW"
        of = f"{row}.study_id, NULL" if table.startswith("study") else f"NULL, {row}.trial_id"
        owner = "NULL" if table.startswith("study") else OWNER.format(row=row)
        note = f"{add} VALUES ({NOW[kind]}, {of}, {name}, {value}, {owner});"
        after = f"AFTER {writing} ON {table}"
        if kind == "sqlite":
            connection.exec_driver_sql(f"CREATE TRIGGER history{number} {after} BEGIN {note} END")
        else:
            body = f"$$ BEGIN {note} RETURN NULL; END $$ LANGUAGE plpgsql"
            connection.exec_driver_sql(f"CREATE FUNCTION history{number}() RETURNS trigger AS {body}")
            call = f"FOR EACH ROW EXECUTE FUNCTION history{number}()"
            connection.exec_driver_sql(f"CREATE TRIGGER history{number} {after} {call}")


def unwatch(connection: Connection) -> None:
    """Have it note nothing any more."""
    for number in range(len(NOTED)):
        if connection.engine.name == "postgresql":
            connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS history{number} CASCADE")
        else:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS history{number}")
    connection.exec_driver_sql("DROP TABLE IF EXISTS history")


@dataclass(frozen=True)
class Written:
    """A write as the database has noted it."""

    at: float  # the database's time in seconds since the epoch; 0 of what was there before it was watched
    trial: int | None  # its number; None of what is the study's
    key: str  # `state`, `beat`, or the name of a user attribute
    value: Any  # None of what was removed
    holder: str | None  # the token of the trial's owner after it


@dataclass(frozen=True)
class Believed:
    """What a worker did and was told, or what was done to it."""

    at: float
    what: str  # claimed, sent, accepted, told or lost, each of a trial; or killed
    pid: int
    worker: str = ""  # its token
    study: str = ""
    trial: int = -1
    points: Sequence[dict[str, Any]] = ()  # the epochs that were sent or accepted
    state: str = ""  # how it ended the trial


def written(connection: Connection, study_id: int) -> list[Written]:
    """All that was noted of a study."""
    rows = connection.exec_driver_sql(
        "SELECT h.at, t.number, h.key, h.value, h.owner FROM history h LEFT JOIN trials t ON t.trial_id = h.trial_id "
        f"WHERE COALESCE(h.study_id, t.study_id) = {study_id} ORDER BY h.id"
    )
    return [Written(at, number, key, _value(key, value), _token(owner)) for at, number, key, value, owner in rows]


def _value(key: str, value: str | None) -> Any:
    return value if value is None or key == "state" else json.loads(value)


def _token(owner: str | None) -> str | None:
    found = json.loads(owner) if owner else None
    return found["token"] if found else None


# What workers believe


def note(path: Path, **facts: Any) -> None:
    with path.open("a") as file:  # one write of one line: whole, whoever else writes
        file.write(json.dumps({"at": time.time(), **facts}) + "\n")


def believed(path: Path) -> list[Believed]:
    text = path.read_text() if path.exists() else ""
    return [Believed(**json.loads(line)) for line in text.splitlines()]


@contextmanager
def recording(path: Path, pid: int) -> Iterator[None]:
    """Note what this process does with studies, while it is entered."""
    real = {name: getattr(SweepStudy, name) for name in ("claim", "report", "complete", "prune", "fail", "release")}

    def claim(study: SweepStudy, worker: Any, **options: Any) -> Any:
        claims = real["claim"](study, worker, **options)
        for each in claims:
            note(path, pid=pid, what="claimed", worker=worker.owner.token, study=study.name, trial=each.number)
        return claims

    def doing(name: str, study: SweepStudy, held: Any, *arguments: Any, **options: Any) -> Any:
        say = partial(note, path, pid=pid, worker=held.owner.token, study=study.name, trial=held.number)
        points: list[Any] = []
        if name == "report":
            points = [dict(each) for k, each in enumerate(arguments[0]) if held.curve[k : k + 1] != [each]]
            say(what="sent", points=points)
        try:
            result = real[name](study, held, *arguments, **options)
        except TrialLostError:
            say(what="lost")
            raise
        say(what="accepted", points=points) if name == "report" else say(what="told", state=name)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepStudy, "claim", claim)
        for name in real.keys() - {"claim"}:
            patch.setattr(SweepStudy, name, lambda *given, _name=name, **options: doing(_name, *given, **options))
        yield


# What may be


@dataclass
class Trial:
    """A trial as it stands at a moment of the history."""

    state: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    beats: list[float] = field(default_factory=list)

    @property
    def holder(self) -> str | None:
        owner = self.attributes.get("owner")
        return owner["token"] if owner else None

    @property
    def counts(self) -> bool:
        """Whether it takes a place of the budget: it runs here, has ended here, or is frozen."""
        there = self.attributes
        if there.get("confirms") is not None:
            return False  # a fresh seed: how many there are follows from the search
        single = sum(key.startswith("epoch:") for key in there)
        if self.state == "RUNNING":
            return self.holder is not None
        if self.state == "COMPLETE":  # with its curve as a whole: otherwise another program has ended it
            return self.holder is not None and "curve" in there and not single
        done = len(there.get("curve") or ()) + single
        frozen = bool(there.get("config")) and (there.get("until") or 1e9) <= done < there["config"]["epochs"]
        return self.state == "PRUNED" or (self.state == "WAITING" and frozen)


def problems(
    history: Sequence[Written], beliefs: Sequence[Believed], trials: Sequence[TrialRecord], *, lease: float
) -> list[str]:
    """What must not have happened, each in a sentence; none where all was well. `trials` is what stands at the end."""
    return [*_of_the_database(history, beliefs, lease), *_of_the_workers(history, beliefs, trials)]


def _of_the_database(history: Sequence[Written], beliefs: Sequence[Believed], lease: float) -> Iterator[str]:
    trials: dict[int, Trial] = defaultdict(Trial)
    budget, taken = 0, set[int]()
    senders, killed = _senders(beliefs), _killed(beliefs)
    for each in history:
        if each.trial is None:
            budget = each.value["trials"] if each.key == "sweep" and each.value else budget
            continue
        trial, what = trials[each.trial], f"trial {each.trial}"
        is_late = each.at and trial.state in FINISHED and each.key in ("state", "owner", "curve")
        if is_late and each.value != trial.state:
            yield f"{what}: its {each.key} was changed after its end"
        if each.key == "beat":
            trial.beats.append(each.at)
        elif each.key == "state":
            trial.state = each.value
        else:
            if each.key.startswith("epoch:") and each.value and each.at:
                yield from _of_an_epoch(what, each, trial, senders)
            if each.key == "deaths" and each.at and (holder := trial.holder):
                alive = any(each.at - lease < beat < each.at - RACE_SECONDS for beat in trial.beats)
                if alive and killed.get(holder, each.at) >= each.at:
                    yield f"{what}: it was taken from a worker that is alive"
            if (
                each.key == "owner"
                and each.value
                and trial.state == "RUNNING"
                and trial.holder not in (None, each.holder)
            ):
                yield f"{what}: it was claimed while another worker held it"
            trial.attributes[each.key] = each.value
            if each.value is None:
                del trial.attributes[each.key]
        (taken.add if trial.counts else taken.discard)(each.trial)
        if budget and len(taken) > budget:
            yield f"{what}: {len(taken)} trials were under way or finished where the budget is {budget}"
            budget = 0  # said once


def _of_an_epoch(what: str, each: Written, trial: Trial, senders: dict[Any, set[str]]) -> Iterator[str]:
    sent = senders[(each.trial, json.dumps(each.value, sort_keys=True))]
    if each.holder not in sent:
        yield f"{what}: {each.key} came from a worker that does not hold it"
    known = trial.attributes.get(each.key)
    if known is not None and known != each.value:
        yield f"{what}: {each.key} was accepted twice"


def _senders(beliefs: Sequence[Believed]) -> dict[Any, set[str]]:
    found: dict[Any, set[str]] = defaultdict(set)
    for each in beliefs:
        if each.what == "sent":
            for point in each.points:
                found[(each.trial, json.dumps(point, sort_keys=True))].add(each.worker)
    return found


def _killed(beliefs: Sequence[Believed]) -> dict[str, float]:
    """When workers were killed, by their tokens."""
    tokens = {each.pid: each.worker for each in beliefs if each.worker}
    return {tokens[each.pid]: each.at for each in beliefs if each.what == "killed" and each.pid in tokens}


def _of_the_workers(
    history: Sequence[Written], beliefs: Sequence[Believed], trials: Sequence[TrialRecord]
) -> Iterator[str]:
    taken = {(each.trial, each.holder) for each in history if each.key == "state" and each.value == "RUNNING"}
    ends: dict[int, set[str]] = defaultdict(set)
    there, stored = {trial.number: trial for trial in trials}, defaultdict[int | None, dict[str, Any]](dict)
    for write in history:
        stored[write.trial][write.key] = write.value
    # What another program has taken shows no epochs any more.
    known = {n: trial.points if trial.state != "outside" else stored_curve(stored[n]) for n, trial in there.items()}
    for each in beliefs:
        what = f"trial {each.trial}"
        if each.what == "claimed" and (each.trial, each.worker) not in taken:
            yield f"{what}: a worker believes that it has claimed it, and the database does not"
        if each.what == "accepted" and not all(dict(point) in map(dict, known[each.trial]) for point in each.points):
            yield f"{what}: an epoch that was acknowledged is not there at the end"
        if each.what == "told" and each.state != "release":
            ends[each.trial].add(each.worker)
            if (state := there[each.trial].state)[:4] not in (each.state[:4], "outs"):
                yield f"{what}: it is {state} where a worker was told that it was ended by {each.state}"
    for number, workers in ends.items():
        if len(workers) > 1:
            yield f"trial {number}: {len(workers)} workers have ended it"
    for number, trial in there.items():
        if trial.state == "running":
            yield f"trial {number}: it was never ended"


def problems_of(study: SweepStudy, path: Path, *, lease: float) -> list[str]:
    """What must not have happened to a study that was watched, with the workers whose beliefs are in a file."""
    storage = study.storage.optuna
    study_id = storage.get_study_id_from_name(study.name)  # before: there is one connection
    with storage.reading() as connection:
        history = written(connection, study_id)
    beliefs = [each for each in believed(path) if each.study in ("", study.name)]
    return problems(history, beliefs, study.trials(), lease=lease)
