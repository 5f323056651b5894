"""The lock of a study database: one process at a time does what takes several transactions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from filelock import FileLock, Timeout
from sqlalchemy.engine import URL

from cifar_sweep.errors import StorageBusyError, StorageError

LOCK_SECONDS = 120
# "cifarswp" in ASCII: one lock for all studies of a server's database, held by a session or a transaction.
LOCK_KEY = int.from_bytes(b"cifarswp", "big")


def sqlite_lock(url: URL) -> FileLock:
    return FileLock(f"{url.database}.lock", timeout=LOCK_SECONDS)


@contextmanager
def file_lock(lock: FileLock) -> Iterator[None]:
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
def advisory_lock(engine: sqlalchemy.Engine) -> Iterator[None]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        take_advisory_lock(connection, "pg_advisory_lock")
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})


def take_advisory_lock(connection: sqlalchemy.Connection, function: str) -> None:
    try:
        connection.execute(sqlalchemy.text(f"SELECT {function}(:key)"), {"key": LOCK_KEY})
    except sqlalchemy.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
            raise
        raise StorageBusyError(
            f"storage: another process has held the study database for {LOCK_SECONDS} s; end it and try again."
        ) from None


@contextmanager
def server_lock(url: URL, options: dict[str, Any]) -> Iterator[None]:
    """The advisory lock of a server whose tables may not be there yet."""
    engine = sqlalchemy.create_engine(url, **options)
    try:
        with advisory_lock(engine):
            yield
    finally:
        engine.dispose()
