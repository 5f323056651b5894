"""The address of a study database: which are accepted, and whether a file is one."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import URL, make_url

from cifar_sweep.errors import StorageError, UsageError

ACCEPTED = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
SMALLEST_SQLITE_BYTES = 512  # one page of the smallest size
NO_SQLITE = "not an SQLite database; the study database is a file that cifar-sweep made"


def parse_address(url: str) -> URL:
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


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def check_sqlite_file(url: URL) -> None:
    """Refuse a path where SQLite can keep no file."""
    path = Path(str(url.database))
    if path.exists() and not path.is_file():
        what = ("a folder", "a file") if path.is_dir() else ("no plain file", "a plain file")
        raise StorageError(f"{path}: the study database is {what[0]}; {what[1]} is needed.")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: the folder {path.parent} of the study database does not exist.")
    for needed in (path, path.parent):  # the folder, too: SQLite keeps its log beside the file
        if needed.exists() and not os.access(needed, os.R_OK | os.W_OK):
            raise StorageError(f"{needed}: the study database cannot be read and written here: permission denied.")
    if path.exists() and 0 < path.stat().st_size < SMALLEST_SQLITE_BYTES:  # SQLite would begin anew in it
        raise StorageError(f"{path}: {NO_SQLITE}.")


def check_sqlite_content(path: Path) -> None:
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
        theirs = f"this database belongs to something else (its tables: {', '.join(sorted(tables)[:5])})"
        raise StorageError(f"{path}: {theirs}; name another file with --storage.")
