"""The study database: from a URL to an Optuna storage with a lock. The only file that touches Optuna's private names.

What Optuna leaves to us: on SQLite two processes can pop the same waiting trial, because ``SELECT .. FOR UPDATE`` is
nothing there, so every transaction begins with ``BEGIN IMMEDIATE``; counting trials and asking for the next one takes
several transactions, so both stand under one lock; ask and tell send no heartbeat, so we send our own.
"""

import math
import os
import socket
import threading
import time
import weakref
from collections.abc import Collection, Container, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL
from sqlalchemy.orm import scoped_session, sessionmaker

from cifar_sweep.database.address import is_sqlite, parse_address, shown
from cifar_sweep.database.locks import advisory_lock, file_lock
from cifar_sweep.database.outage import explain
from cifar_sweep.errors import StorageError, UsageError
from cifar_sweep.study import engines, tables
from cifar_sweep.study.engines import ONLY_READS
from cifar_sweep.study.record import TrialRecord, as_ours

LEASE_SECONDS = 120  # longer than a database is away while it is started anew
BEATS_PER_LEASE = 8  # several may be lost
OPEN, FINISHED, PAUSED, CANCELLED = "open", "finished", "paused", "cancelled"
HALTED = (PAUSED, CANCELLED)
READING_OF_A_SERVER = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
THIS_DATABASE = "FROM pg_database WHERE datname = current_database()"
SERVER_HOME = f"SELECT oid || ' ' || current_schema() {THIS_DATABASE}"
SERVER_IDENTITY = f"SELECT concat_ws(' ', oid, to_regclass('studies')::oid) {THIS_DATABASE}"


class Database(RDBStorage):
    """Optuna's storage on a database, which reads trials by plain queries, each time in one moment of the database.

    While a transaction is `joined`, all that its thread reads and writes is part of it. Optuna's own constructor would
    always make tables, over several connections.
    """

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        lease = lease_seconds()
        self.heartbeat_interval, self.grace_period = max(1, lease // BEATS_PER_LEASE), lease
        self.heartbeat_stale_trial_callback = self.failed_trial_callback = None
        self.engine = engine
        self.scoped_session = scoped_session(sessionmaker(bind=engine, join_transaction_mode="create_savepoint"))
        self._joined = threading.local()

    @contextmanager
    def joined(self, connection: sqlalchemy.Connection) -> Iterator[None]:
        """Have all that this thread does be part of the transaction of a connection."""
        self._joined.connection, self.scoped_session().bind = connection, connection
        try:
            yield
        finally:
            self._joined.connection, self.scoped_session().bind = None, self.engine

    @property
    def transaction(self) -> sqlalchemy.Connection | None:
        """What is joined."""
        return getattr(self._joined, "connection", None)

    def reading(self) -> AbstractContextManager[sqlalchemy.Connection]:
        """A connection that sees one moment of the database, and holds no writer off meanwhile."""
        options: dict[str, Any] = {ONLY_READS: True} if self.engine.name == "sqlite" else READING_OF_A_SERVER
        joined = self.transaction
        return nullcontext(joined) if joined else self.engine.connect().execution_options(**options)

    def writing(self) -> AbstractContextManager[sqlalchemy.Connection]:
        """A transaction: the one that is joined, or one of its own."""
        return nullcontext(self.transaction) if self.transaction else self.engine.begin()

    def record_heartbeat(self, trial_id: int) -> None:
        """Say that a trial is being trained, at this very moment: for Optuna a transaction has one moment alone."""
        super().record_heartbeat(trial_id)
        if self.transaction and self.engine.name != "sqlite":
            tables.beat_now(self.transaction, trial_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return tables.without_odd(super().get_study_user_attrs(study_id))

    def get_all_studies(self) -> list[Any]:
        found = super().get_all_studies()
        for study in found:
            study.user_attrs = tables.without_odd(study.user_attrs)
        return found

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: Any,
        previous: Any,  # noqa: ARG002
    ) -> None:
        """Without a look at what other programs stored under this name; a study of ours never changes its space."""
        super()._set_trial_param(trial_id, param_name, param_value_internal, distribution, distribution)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: Set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        with self.reading() as connection:
            rows = tables.rows_of(connection, study_id, after=trial_id_greater_than, besides=included_trial_ids)
            trials = self.read(connection, study_id, rows).values()
        if not trials:
            self.get_study_name_from_id(study_id)  # raises KeyError where there is no such study
        return [trial for trial in trials if states is None or trial.state in states]

    @staticmethod
    def read(
        connection: sqlalchemy.Connection, study_id: int, rows: Sequence[sqlalchemy.Row[Any]], **options: Any
    ) -> dict[int, FrozenTrial]:
        """The trials of these rows as everybody is to see them, by their key; `options` as of `tables.read`."""
        trials = tables.read(connection, study_id, rows, **options)
        is_ours = tables.is_ours(connection, study_id)
        return {key: as_ours(trial) for key, trial in trials.items()} if is_ours else trials


class Storage:
    """An open study database."""

    def __init__(self, url: URL, rdb: Database, writable: bool = True) -> None:
        self.shown = shown(url)
        self.writable = writable
        self.folder = Path(str(url.database)).parent if is_sqlite(url) else None  # what is below it moves with it
        self.optuna = rdb
        self._cached = optuna.storages.get_storage(rdb)
        self._known: dict[int, tuple[str, int]] = {}  # of each study its uid, and how often it was extended
        self.heartbeat_seconds = float(rdb.heartbeat_interval or 1)  # how often a worker says that it trains
        self._outage = -math.inf  # when the database last did not answer, on the monotonic clock
        self._end = partial(engines.end, rdb.engine, checkpoint=writable)
        weakref.finalize(self, self._end)  # a command ends without a word; its connections must not

    def close(self) -> None:
        """Give the database connections back."""
        self._end()

    def to_store(self, address: str) -> str:
        """A path as it is stored: from the database's own folder, if it is below it, so that both can be moved."""
        below = self.folder and address.startswith("/") and Path(address).is_relative_to(self.folder)
        return f"./{Path(address).relative_to(self.folder)}" if below and self.folder else address

    def from_stored(self, stored: str) -> str:
        """The path that was stored so, as it is now."""
        return str(self.folder / stored) if self.folder and stored.startswith("./") else stored

    def home(self) -> tuple[str, str]:
        """Where this database is, and which file it is: of a moved one one of both is as it was, of a copy none."""
        if self.folder:
            path = str(self.optuna.engine.url.database)
            found = os.stat(path)
            return f"{socket.gethostname()}:{path}", f"{found.st_dev}:{found.st_ino}"
        with self.optuna.reading() as connection:
            return str(connection.execute(sqlalchemy.text(SERVER_HOME)).scalar_one()), ""

    def identity(self) -> str:
        """What tells this database from another one in its place. Raises a driver's error or OSError if it is gone."""
        if self.folder:
            return self.home()[1]
        with self.optuna.reading() as connection:
            return str(connection.execute(sqlalchemy.text(SERVER_IDENTITY)).scalar_one())

    def again(self) -> "Storage":
        """The database that is at this address now. Raises StorageError where there is none."""
        return _open(self.optuna.engine.url, make=False)

    def rest(self) -> None:
        """Keep no connection while nobody asks: a file is then complete and can be replaced, a database dropped."""
        self.optuna.engine.dispose()

    def check_writable(self) -> None:
        """Raises StorageError where nothing may be written here."""
        if not self.writable:
            raise StorageError(f"{self.shown}: the study database cannot be written here: permission denied.")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold all other workers of this database off what takes several steps.

        They are one transaction, which is undone where an error ends it, or the death of its process. Raises
        StorageBusyError where another process has held it for `locks.LOCK_SECONDS`, StorageError where nothing may be
        written here.
        """
        self.check_writable()
        engine, is_file = self.optuna.engine, is_sqlite(self.optuna.engine.url)
        try:
            with (
                file_lock(engine.url) if is_file else nullcontext(),
                engine.begin() if is_file else advisory_lock(engine) as connection,
                self.optuna.joined(connection),
            ):
                yield
        except BaseException:
            self._cached.__init__(self.optuna)  # type: ignore[misc] # it knows what was undone
            raise

    def give_back(self, trial_id: int) -> None:
        """Put a running trial back into the queue, with its parameters, reports and attributes, but for its owner."""
        self.turn(trial_id, TrialState.WAITING, tables.Change({"owner": None}))

    def turn(
        self, trial_id: int, state: TrialState, change: tables.Change, *, values: Sequence[float] | None = None
    ) -> None:
        """Write a change of a trial, then its new state; to be called under the lock."""
        self.write(trial_id, change)
        self.optuna.set_trial_state_values(trial_id, state, values)

    def trial_id(self, study: optuna.Study, number: int) -> int:
        """The database's key of trial `number`."""
        return self.optuna.get_trial_id_from_study_id_trial_number(key_of(study), number)

    def owner(self, trial_id: int) -> str | None:
        """The token of the worker that holds a running trial; None where nobody does or it does not run."""
        state, holder = self.holder(trial_id)
        return holder if state is TrialState.RUNNING else None

    def holder(self, trial_id: int) -> tuple[TrialState | None, str | None]:
        """A trial's state, and the token of its last worker; None where there is no such trial, or worker.

        In one small query: it is asked with each heartbeat, and Optuna would read all that a trial has.
        """
        with self.optuna.reading() as connection:
            return tables.holder(connection, trial_id)

    def report(self, trial: optuna.Trial, token: str, change: tables.Change) -> bool:
        """Write a change of a trial in one transaction, if the worker of this token holds it; whether it does."""
        with self.lock():
            if self.owner(trial._trial_id) != token:
                return False
            self.write(trial._trial_id, change)
        known = trial._cached_frozen_trial  # Optuna's object of it, where its pruners look
        for key in change.removed:
            known.user_attrs.pop(key, None)
        known.user_attrs.update(change.attributes)
        known.intermediate_values.update(change.values)
        return True

    def write(self, trial_id: int, change: tables.Change) -> None:
        """Write a change of a trial in one transaction; to be called under the lock."""
        with self.optuna.writing() as connection:
            tables.write(connection, trial_id, change)

    def orphans(self, study: optuna.Study) -> Sequence[int]:
        """Keys of running trials that nobody trains: their process is gone, or its heartbeat is older than the lease.

        To be called under the lock, which a claim holds until the trial has its owner.
        """
        # After an outage the other workers have a few beats' time to be heard again.
        forgiving = time.monotonic() - self._outage < 2 * self.heartbeat_seconds
        stale = set() if forgiving else set(self.optuna._get_stale_trial_ids(key_of(study)))
        running = [TrialRecord(trial) for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING])]
        keys = {trial.frozen._trial_id: trial.owner for trial in running}
        return [key for key, owner in keys.items() if key in stale or (owner and owner.is_dead())]

    def enqueue(self, study: optuna.Study, points: Sequence[Mapping[str, Any]]) -> None:
        """Queue trials with these parameters of Optuna, all at once; to be called under the lock."""
        if points:
            with self.optuna.writing() as connection:
                tables.enqueue(connection, key_of(study), points)

    def requeue(self, trial_id: int, params: Mapping[str, Any], *, without: Collection[str]) -> None:
        """Have a waiting trial begin with these parameters of Optuna, without these user attributes."""
        with self.optuna.writing() as connection:
            tables.requeue(connection, trial_id, params)
            tables.write(connection, trial_id, tables.Change({}, removed=without))

    def beat(self, trial_id: int) -> None:
        """Say once that a trial is being trained."""
        self.optuna.record_heartbeat(trial_id)

    def is_halted(self, study: str) -> bool:
        """Whether the study of this name was paused, cancelled or deleted."""
        try:
            study_id = self.optuna.get_study_id_from_name(study)
            return self.optuna.get_study_user_attrs(study_id).get("state", OPEN) in HALTED
        except KeyError:
            return True

    def load(self, name: str) -> optuna.Study:
        """The study of this name, of which each finished trial is read once, however often it is loaded."""
        study = optuna.load_study(storage=self._cached, study_name=name)
        attributes = study.user_attrs
        key, known = key_of(study), (str(attributes.get("uid")), len(attributes.get("changes", ())))
        if self._known.setdefault(key, known) == known:
            return study
        # It was extended, or has the key of another one that was deleted: what is cached of its trials is forgotten.
        self._known[key] = known
        self._cached = optuna.storages.get_storage(self.optuna)
        return optuna.load_study(storage=self._cached, study_name=name)

    def note_outage(self) -> None:
        """Remember that the database did not answer just now."""
        self._outage = time.monotonic()

    def studies(self) -> list[tuple[str, dict[str, Any]]]:
        """All studies, the oldest first: their names and user attributes."""
        # Not get_all_study_summaries, which reads every trial of every study.
        return [(each.study_name, each.user_attrs) for each in sorted(self.optuna.get_all_studies(), key=key_of)]


class MemoryStorage(Storage):
    """A study database in memory, for one process."""

    def __init__(self) -> None:
        self.shown, self.writable, self.folder = "memory", True, None
        self.optuna = InMemoryStorage()  # type: ignore[assignment]

    def home(self) -> tuple[str, str]:
        return self.shown, ""

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield

    def load(self, name: str) -> optuna.Study:
        return optuna.load_study(storage=self.optuna, study_name=name)

    def holder(self, trial_id: int) -> tuple[TrialState | None, str | None]:
        trial = self.optuna.get_trial(trial_id)
        owner = trial.user_attrs.get("owner")
        return trial.state, owner["token"] if owner else None

    def write(self, trial_id: int, change: tables.Change) -> None:
        for key, value in (dict.fromkeys(change.removed) | dict(change.attributes)).items():
            self.optuna.set_trial_user_attr(trial_id, key, value)
        for step, value in change.values.items():
            self.optuna.set_trial_intermediate_value(trial_id, step, value)

    def enqueue(self, study: optuna.Study, points: Sequence[Mapping[str, Any]]) -> None:
        for point in points:
            study.enqueue_trial(dict(point))

    def orphans(self, _study: optuna.Study) -> Sequence[int]:
        return ()

    def beat(self, trial_id: int) -> None:
        pass


def key_of(study: Any) -> int:
    """The key of a study in its database; of an `optuna.Study`, or what `get_all_studies` gives."""
    return int(study._study_id)


def lease_seconds() -> int:
    """How long after its worker's last heartbeat a trial goes to another; the same for all workers of a database.

    Raises UsageError where CIFAR_SWEEP_LEASE_SECONDS is no whole number from 2.
    """
    text = os.environ.get("CIFAR_SWEEP_LEASE_SECONDS", str(LEASE_SECONDS))
    if not (text.isascii() and text.isdecimal() and int(text) > 1):
        raise UsageError(f"CIFAR_SWEEP_LEASE_SECONDS = {text}: accepted: a whole number of seconds from 2.")
    return int(text)


def open_storage(url: str) -> Storage:
    """Open the database at `url`, made if it is not there yet. Raises UsageError or StorageError."""
    return _open(parse_address(url), make=True)


def open_existing(url: str) -> Storage:
    """As `open_storage`, to read alone where nothing may be written; StorageError where there is no database yet."""
    return _open(parse_address(url), make=False)


def open_waiting(url: str) -> Storage:
    """As `open_existing`, for who waits for studies: of a server the tables are made."""
    parsed = parse_address(url)
    return _open(parsed, make=not is_sqlite(parsed))


def _open(url: URL, *, make: bool) -> Storage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the live view says what Optuna would log
    try:
        engine, writable = engines.open_engine(url, make=make)
    except Exception as error:
        raise explain(error) or error from None
    return Storage(url, Database(engine), writable)
