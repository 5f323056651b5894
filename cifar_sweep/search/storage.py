"""The study database: from a URL to an Optuna storage with a lock. The only file that touches Optuna's private names.

What Optuna leaves to us: on SQLite two processes can pop the same waiting trial, because ``SELECT .. FOR UPDATE`` is
nothing there, so every transaction begins with ``BEGIN IMMEDIATE``; counting trials and asking for the next one takes
several transactions, so both stand under one lock; ask and tell send no heartbeat, so we send our own.
"""

import os
import socket
import sqlite3
import threading
import uuid
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.engine import URL, make_url

from cifar_sweep.errors import StorageError, UsageError

ACCEPTED = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
HEARTBEAT_SECONDS = 15
LEASE_SECONDS = 120
LOCK_SECONDS = 120
SMALLEST_SQLITE_BYTES = 512  # one page of the smallest size
NO_SQLITE = "not an SQLite database; the study database is a file that cifar-sweep made"


@dataclass(frozen=True)
class Owner:
    """The process that trains a trial. `token` differs for every claim-taking worker, `started` for reused pids."""

    host: str
    pid: int
    started: str
    token: str

    @classmethod
    def current(cls) -> "Owner":
        """This process, with a new token."""
        return cls(socket.gethostname(), os.getpid(), _process_started(os.getpid()) or "", uuid.uuid4().hex)

    def is_dead(self) -> bool:
        """Whether the process surely runs no longer: it is of this host, and gone."""
        return self.host == socket.gethostname() and _process_started(self.pid) != self.started


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


class Storage:
    """An open study database.

    Attributes:
        shown: the address without its password, for people.
        optuna: the Optuna storage.
    """

    def __init__(self, url: URL, rdb: RDBStorage) -> None:
        # libpq takes passwords as options, too, and those are not masked.
        self.shown = url.difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)
        self.optuna = rdb
        self._lock_file = _sqlite_lock(url) if _is_sqlite(url) else None

    def lock(self) -> AbstractContextManager[Any]:
        """Hold all other workers of this database off what takes several transactions.

        Raises:
            StorageError: another process has held it for `LOCK_SECONDS`.
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
        trial = self.optuna.get_trial(trial_id)
        holder = trial.user_attrs.get("owner")
        return str(holder["token"]) if trial.state is TrialState.RUNNING and holder else None

    def orphans(self, study: optuna.Study) -> Sequence[int]:
        """Keys of running trials that nobody trains: their process is gone, or its heartbeat is older than the lease.

        To be called under the lock, which a claim holds until the trial has its owner.
        """
        stale = set(self.optuna._get_stale_trial_ids(study._study_id))
        running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        return [trial._trial_id for trial in running if trial._trial_id in stale or _is_abandoned(trial)]

    def beat(self, trial_id: int) -> None:
        """Say once that a trial is being trained."""
        self.optuna.record_heartbeat(trial_id)

    @contextmanager
    def heartbeat(self, trial_ids: Collection[int]) -> Iterator[None]:
        """Say every few seconds that these trials are being trained. A failed beat is tried again at the next."""
        done = threading.Event()

        def beat_all() -> None:
            for trial_id in trial_ids:
                self.beat(trial_id)

        def beat_on() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                try:
                    beat_all()
                except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError):
                    continue  # an outage: the lease is longer than several beats

        beat_all()
        thread = threading.Thread(target=beat_on, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

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


def open_storage(url: str) -> Storage:
    """Open the database at `url`, made if it is not there yet.

    Raises:
        UsageError: the address is not one of a database we use.
        StorageError: the database cannot be used; the message says why.
    """
    parsed = _parse(url)
    if not _is_sqlite(parsed):
        return _connect(parsed, {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}})
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
            rdb = RDBStorage(
                address, engine_kwargs=options, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=LEASE_SECONDS
            )
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
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _sqlite_lock(url: URL) -> FileLock:
    return FileLock(f"{url.database}.lock", timeout=LOCK_SECONDS)


@contextmanager
def _file_lock(lock: FileLock) -> Iterator[None]:
    try:
        lock.acquire(poll_interval=0.01)  # who comes back at once wins over who polls: often is fairer
    except Timeout:
        raise StorageError(
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
    # "cifarswp" in ASCII: one lock for all studies of a database, held by the session until it says otherwise.
    key = {"key": int.from_bytes(b"cifarswp", "big")}
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
        try:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), key)
        except sqlalchemy.exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
                raise
            raise StorageError(
                f"storage: another process has held the study database for {LOCK_SECONDS} s; end it and try again."
            ) from None
        finally:
            connection.execute(sqlalchemy.text("RESET lock_timeout"))
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), key)


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
