"""The lock of a study database: one process at a time does what takes several transactions."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from filelock import FileLock, Timeout
from sqlalchemy.engine import URL

from cifar_sweep.errors import StorageBusyError, StorageError

LOCK_SECONDS = 120
LOCK_KEY = int.from_bytes(b"cifarswp", "big")  # one lock for all studies of a server's database


@contextmanager
def file_lock(url: URL) -> Iterator[None]:
    """The lock of an SQLite database."""
    lock = FileLock(f"{url.database}.lock", timeout=LOCK_SECONDS)
    try:
        held = lock.acquire(poll_interval=0.01)  # who comes back at once wins over who polls: often is fairer
    except Timeout:
        raise _busy(lock.lock_file) from None
    except OSError as error:
        raise StorageError(f"{lock.lock_file}: the study database cannot be locked: {error.strerror}.") from None
    with held:
        yield


@contextmanager
def advisory_lock(engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
    """The lock of a server's database, and the transaction that holds it.

    With the transaction it goes, whatever happens, and behind whatever pooler: no connection keeps it, nor its time
    limit.
    """
    with engine.begin() as connection:
        try:
            connection.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = '{int(1000 * LOCK_SECONDS)}ms'"))
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        except sqlalchemy.exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
                raise
            raise _busy("storage") from None
        yield connection


def _busy(what: str) -> StorageBusyError:
    held = f"another process has held the study database for {LOCK_SECONDS} s"
    return StorageBusyError(f"{what}: {held}; end it and try again.")
