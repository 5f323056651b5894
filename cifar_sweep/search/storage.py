"""The study database: from a URL to an Optuna storage with a lock. The only file that touches Optuna's private names.

What Optuna leaves to us: on SQLite two processes can pop the same waiting trial, because ``SELECT .. FOR UPDATE`` is
nothing there, so every transaction begins with ``BEGIN IMMEDIATE``; counting trials and asking for the next one takes
several transactions, so both stand under one lock; ask and tell send no heartbeat, so we send our own.
"""

import math
import os
import socket
import sqlite3
import time
import uuid
import warnings
import weakref
from collections.abc import Container, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url

from cifar_sweep.errors import StorageBusyError, StorageError, UsageError
from cifar_sweep.search import tables

ACCEPTED = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
LEASE_SECONDS = 120
BEATS_PER_LEASE = 8
OPEN, FINISHED, PAUSED, CANCELLED = "open", "finished", "paused", "cancelled"
HALTED = (PAUSED, CANCELLED)
LOCK_SECONDS = 120
# "cifarswp" in ASCII: one lock for all studies of a server's database, held by a session or a transaction.
LOCK_KEY = int.from_bytes(b"cifarswp", "big")
SMALLEST_SQLITE_BYTES = 512  # one page of the smallest size
# A connection that nobody answers any more, behind a cut cable or a forgetful firewall, is given up within a minute.
SERVER_OPTIONS: dict[str, Any] = {
    # A claim whose lock was lost with its connection must fail and be done again, not go on over a new connection.
    "pool_pre_ping": False,
    "connect_args": {
        "connect_timeout": 10,
        "keepalives_idle": 20,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 50_000,
    },
}
ONLY_READS = "cifar_sweep_only_reads"
READING_OF_A_SERVER: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
NO_SQLITE = "not an SQLite database; the study database is a file that cifar-sweep made"


@cache
def _system() -> str:
    """The machine's own id and the process namespace: of two containers, or machines of one name, the pids differ."""
    found = []
    with suppress(OSError):
        found.append(Path("/etc/machine-id").read_text().strip())
    with suppress(OSError):
        found.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "-".join(found)


@dataclass(frozen=True)
class Owner:
    """The process that trains a trial.

    Attributes:
        host: the machine's name.
        pid: the process.
        started: when it started, in the system's own count: pids are used again.
        token: differs for every worker that takes trials.
        system: which processes that machine's pids are of; see `_system`.
    """

    host: str
    pid: int
    started: str
    token: str
    system: str = field(default_factory=_system)

    @classmethod
    def current(cls) -> "Owner":
        """This process, with a new token."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _process_started(pid) or "", uuid.uuid4().hex, _system())

    def is_dead(self) -> bool:
        """Whether the process surely runs no longer: it is of this system, and gone."""
        here = (self.host, self.system) == (socket.gethostname(), _system())
        return here and _process_started(self.pid) != self.started


def _process_started(pid: int) -> str | None:
    """The start time of a running process in the system's own count, empty where unknown, None where it is gone."""
    try:
        # The name in parentheses may hold spaces; state and start time are fields 3 and 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):  # gone before, or between, opening and reading
        if Path("/proc/self").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


class Database(RDBStorage):
    """Optuna's storage on a database, which reads trials by plain queries, each time in one moment of the database."""

    def reading(self) -> sqlalchemy.Connection:
        """A connection that sees one moment of the database, and holds no writer off meanwhile."""
        options = {ONLY_READS: True} if self.engine.name == "sqlite" else READING_OF_A_SERVER
        return self.engine.connect().execution_options(**options)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: Set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        with self.reading() as connection:
            rows = tables.rows_of(connection, study_id, after=trial_id_greater_than, besides=included_trial_ids)
            chosen = [row for row in rows if states is None or TrialState[row.state] in states]
            trials = list(tables.read(connection, study_id, chosen).values())
        if not trials:
            self.get_study_name_from_id(study_id)  # raises KeyError where there is no such study
        return trials


class Storage:
    """An open study database.

    Attributes:
        shown: the address without its password, for people.
        optuna: the Optuna storage.
        cached: the same for studies: each finished trial is read once, however often a study is loaded.
        heartbeat_seconds: how often a worker says that it trains a trial.
    """

    def __init__(self, url: URL, rdb: Database) -> None:
        # libpq takes passwords as options, too, and those are not masked.
        self.shown = url.difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)
        self.optuna = rdb
        self.cached = optuna.storages.get_storage(rdb)
        self._uids: dict[int, str] = {}
        self.heartbeat_seconds = float(rdb.heartbeat_interval or 1)
        self._lock_file = _sqlite_lock(url) if _is_sqlite(url) else None
        weakref.finalize(self, rdb.engine.dispose)  # a command ends without a word; its connections must not
        self._outage = -math.inf  # when the database last did not answer, on the monotonic clock

    def lock(self) -> AbstractContextManager[Any]:
        """Hold all other workers of this database off what takes several transactions.

        Raises:
            StorageBusyError: another process has held it for `LOCK_SECONDS`.
        """
        return _advisory_lock(self.optuna.engine) if self._lock_file is None else _file_lock(self._lock_file)

    def set_waiting(self, trial_id: int) -> None:
        """Put a running trial back into the queue, with its parameters, reports and attributes."""
        self.optuna.set_trial_state_values(trial_id, state=TrialState.WAITING)

    def trial_id(self, study: optuna.Study, number: int) -> int:
        """The database's key of trial `number`."""
        return self.optuna.get_trial_id_from_study_id_trial_number(study._study_id, number)

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

    def record(
        self, trial: optuna.Trial, token: str, attributes: Mapping[str, Any], values: Mapping[int, float]
    ) -> bool:
        """Set user attributes of a trial and report finite values by their step, all in one transaction.

        Returns:
            Whether the worker of this token holds the trial; if not, nothing is written.
        """
        with self._transaction() as connection:
            if tables.holder(connection, trial._trial_id) != (TrialState.RUNNING, token):
                return False
            tables.record(connection, trial._trial_id, attributes, values)
        # What Optuna knows of a trial that runs; its pruners look there.
        known = trial._cached_frozen_trial
        known.user_attrs.update(attributes)
        known.intermediate_values.update(values)
        return True

    @contextmanager
    def _transaction(self) -> Iterator[sqlalchemy.Connection]:
        """A transaction under the lock; that of a server is held by the transaction itself, a round trip less."""
        held = nullcontext() if self._lock_file is None else _file_lock(self._lock_file)
        with held, self.optuna.engine.begin() as connection:
            if self._lock_file is None:
                _take_advisory_lock(connection, "pg_advisory_xact_lock")
            yield connection

    def orphans(self, study: optuna.Study) -> Sequence[int]:
        """Keys of running trials that nobody trains: their process is gone, or its heartbeat is older than the lease.

        To be called under the lock, which a claim holds until the trial has its owner.
        """
        # After an outage the other workers have a few beats' time to be heard again.
        forgiving = time.monotonic() - self._outage < 2 * self.heartbeat_seconds
        stale = set() if forgiving else set(self.optuna._get_stale_trial_ids(study._study_id))
        running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        return [trial._trial_id for trial in running if trial._trial_id in stale or _is_abandoned(trial)]

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

    def is_reused(self, study_id: int, uid: str) -> bool:
        """Whether this id was another study's, which was deleted since; what is cached of that is forgotten then."""
        reused = self._uids.setdefault(study_id, uid) != uid
        if reused:
            self._uids[study_id] = uid
            self.cached = optuna.storages.get_storage(self.optuna)
        return reused

    def note_outage(self) -> None:
        """Remember that the database did not answer just now."""
        self._outage = time.monotonic()

    def studies(self) -> list[tuple[str, dict[str, Any]]]:
        """All studies, the oldest first: their names and user attributes."""
        # Not get_all_study_summaries, which reads every trial of every study.
        there = sorted(self.optuna.get_all_studies(), key=lambda each: each._study_id)
        return [(each.study_name, each.user_attrs) for each in there]

    def close(self) -> None:
        """Give the database connections back."""
        self.optuna.engine.dispose()


def owner_attribute(owner: Owner) -> dict[str, Any]:
    """The owner as a trial's user attribute."""
    return asdict(owner)


def queued_params(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """The parameters that a trial was enqueued with."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def _is_abandoned(trial: optuna.trial.FrozenTrial) -> bool:
    holder = trial.user_attrs.get("owner")
    return holder is None or Owner(**holder).is_dead()


def lease_seconds() -> int:
    """How long after its worker's last heartbeat a trial goes to another; the same for all workers of a database.

    Raises:
        UsageError: CIFAR_SWEEP_LEASE_SECONDS is no whole number from 2.
    """
    text = os.environ.get("CIFAR_SWEEP_LEASE_SECONDS", str(LEASE_SECONDS))
    if not (text.isascii() and text.isdecimal() and int(text) > 1):
        raise UsageError(f"CIFAR_SWEEP_LEASE_SECONDS = {text}: accepted: a whole number of seconds from 2.")
    return int(text)


def open_storage(url: str) -> Storage:
    """Open the database at `url`, made if it is not there yet.

    Raises:
        UsageError: the address is not one of a database we use.
        StorageError: the database cannot be used; the message says why.
    """
    parsed = _parse(url)
    if not _is_sqlite(parsed):
        connecting = SERVER_OPTIONS["connect_args"] | {"options": f"-c lock_timeout={LOCK_SECONDS}s"}
        return _connect(parsed, SERVER_OPTIONS | {"connect_args": connecting})
    _check_sqlite_file(parsed)
    # Two processes that make the tables at once fail on each other's, and half of them look like a foreign database.
    with _file_lock(_sqlite_lock(parsed)):
        _check_sqlite_content(Path(str(parsed.database)))
        return _connect(parsed, {"connect_args": {"timeout": 60}})


def open_existing(url: str) -> Storage:
    """As `open_storage`, for a database that must be there.

    Raises:
        StorageError: as `open_storage`; also where there is no database yet.
    """
    parsed = _parse(url)
    if _is_sqlite(parsed) and not Path(str(parsed.database)).is_file():
        raise StorageError(
            f"{parsed.database}: there is no study database here yet; `cifar-sweep run` makes one, or say where it is "
            "with --storage."
        )
    return open_storage(url)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # Not shown: a malformed address may hold a password that cannot be told apart.
        raise UsageError(f"storage: not a database address; accepted: {ACCEPTED}.") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.host or parsed.query:
            raise UsageError("storage: an SQLite address names a file alone; accepted: sqlite:///FILE.")
        if not parsed.database or parsed.database == ":memory:":
            raise UsageError("storage: an in-memory SQLite database ends with its process; accepted: sqlite:///FILE.")
        return parsed.set(drivername="sqlite", database=str(Path(parsed.database).absolute()))
    if backend == "postgresql":
        if "@" in (parsed.host or ""):
            # Not shown: what stands between the two @ is the end of the password.
            raise UsageError("storage: the address has an @ too many; accepted: %40 for an @ in a password.")
        return parsed.set(drivername="postgresql+psycopg")
    raise UsageError(f"storage: {backend} databases are not supported; accepted: {ACCEPTED}.")


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _check_sqlite_file(url: URL) -> None:
    """Refuse a path where SQLite can keep no file."""
    path = Path(str(url.database))
    if path.is_dir():
        raise StorageError(f"{path}: the study database is a folder; a file is needed.")
    if path.exists() and not path.is_file():
        raise StorageError(f"{path}: the study database is no plain file; a plain file is needed.")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: the folder {path.parent} of the study database does not exist.")
    for needed in (path, path.parent):  # the folder, too: SQLite keeps its log beside the file
        if needed.exists() and not os.access(needed, os.R_OK | os.W_OK):
            raise StorageError(f"{needed}: the study database cannot be read and written here: permission denied.")
    if path.exists() and 0 < path.stat().st_size < SMALLEST_SQLITE_BYTES:  # SQLite would begin anew in it
        raise StorageError(f"{path}: {NO_SQLITE}.")


def _check_sqlite_content(path: Path) -> None:
    """Refuse what Optuna would meet with a long traceback, or silently fill with tables.

    Through SQLite alone: to close a file of our own here would drop the locks of this process's other connections
    (POSIX locks are per process), and another process could then delete the log that they write to.
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise StorageError(f"{path}: {NO_SQLITE}.") from None
        raise StorageError(f"{path}: the study database is damaged or locked: {error}.") from None
    if problem != "ok":
        raise StorageError(f"{path}: the study database is damaged: {problem.splitlines()[-1].rstrip('.')}.")
    if tables and not {"studies", "trials", "version_info"} <= tables:
        raise StorageError(
            f"{path}: this database belongs to something else (its tables: {', '.join(sorted(tables)[:5])}); "
            "name another file with --storage."
        )


def _connect(url: URL, options: dict[str, Any]) -> Storage:
    # Optuna formats the address with its schema version: braces of a password must survive that.
    address = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the live view says what Optuna would log
    try:
        with nullcontext() if _is_sqlite(url) else _server_lock(url, options), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats are, and the lower bound is tested
            lease = lease_seconds()
            beat = max(1, lease // BEATS_PER_LEASE)
            rdb = Database(address, engine_kwargs=options, heartbeat_interval=beat, grace_period=lease)
    except Exception as error:
        raise explain(error) or error from None
    if _is_sqlite(url):
        # Only now: Optuna's schema check opens a second connection inside a transaction and would wait for itself.
        rdb.engine.dispose()
        sqlalchemy.event.listen(rdb.engine, "connect", _on_sqlite_connect)
        sqlalchemy.event.listen(rdb.engine, "begin", _on_sqlite_begin)
    return Storage(url, rdb)


def _on_sqlite_connect(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; _on_sqlite_begin does
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _on_sqlite_begin(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(ONLY_READS) else "BEGIN IMMEDIATE")


def _sqlite_lock(url: URL) -> FileLock:
    return FileLock(f"{url.database}.lock", timeout=LOCK_SECONDS)


@contextmanager
def _file_lock(lock: FileLock) -> Iterator[None]:
    try:
        lock.acquire(poll_interval=0.01)  # who comes back at once wins over who polls: often is fairer
    except Timeout:
        raise StorageBusyError(
            f"{lock.lock_file}: another process has held the study database for {LOCK_SECONDS} s; end it and try again."
        ) from None
    except OSError as error:
        raise StorageError(f"{lock.lock_file}: the study database cannot be locked: {error.strerror}.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _advisory_lock(engine: sqlalchemy.Engine) -> Iterator[None]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        _take_advisory_lock(connection, "pg_advisory_lock")
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})


def _take_advisory_lock(connection: sqlalchemy.Connection, function: str) -> None:
    try:
        connection.execute(sqlalchemy.text(f"SELECT {function}(:key)"), {"key": LOCK_KEY})
    except sqlalchemy.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
            raise
        raise StorageBusyError(
            f"storage: another process has held the study database for {LOCK_SECONDS} s; end it and try again."
        ) from None


@contextmanager
def _server_lock(url: URL, options: dict[str, Any]) -> Iterator[None]:
    """The advisory lock of a server whose tables may not be there yet."""
    engine = sqlalchemy.create_engine(url, **options)
    try:
        with _advisory_lock(engine):
            yield
    finally:
        engine.dispose()


def explain(error: BaseException) -> StorageError | None:
    """A database error in one sentence, or None where `error` is none.

    Optuna wraps everything in one message about length limits; the driver's own word is at the end of the causes.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    ours = (StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)
    schema = isinstance(error, RuntimeError) and "table schema" in str(error)
    # "Should not reach." is what Optuna says when a new trial cannot be written, on a full disk above all.
    unwritten = isinstance(error, AssertionError) and "Should not reach" in str(error)
    if not (isinstance(error, ours) or schema or unwritten):
        return None
    if schema:
        # Optuna names one of two commands, by whether it knows the database's version.
        older = "optuna storage upgrade" in str(error)
        cure = "bring it up with `optuna storage upgrade --storage URL`" if older else "`pip install -U optuna` helps"
        found = f"an {'older' if older else 'unknown'} version of Optuna"
        return StorageError(f"storage: the database was made by {found}, this is {optuna.__version__}; {cure}.")
    if unwritten:
        return StorageError("storage: a new trial could not be written; the disk may be full.")
    word = next((str(item.orig) for item in seen if isinstance(item, sqlalchemy.exc.DBAPIError)), str(seen[-1]))
    first_line = (word.strip().splitlines() or ["no reason given"])[0]
    return StorageError(f"storage: the database refused: {first_line.rstrip('.')}.")
