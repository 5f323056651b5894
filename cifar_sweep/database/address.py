"""The address of a study database: which are accepted, and whether a file is one."""

import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy
from sqlalchemy.engine import URL, make_url

from cifar_sweep.errors import StorageError, UsageError
from cifar_sweep.files import expanded

ACCEPTED = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
SMALLEST_SQLITE_BYTES = 512  # one page of the smallest size
NO_SQLITE = "not an SQLite database; the study database is a file that cifar-sweep made"
SIGNS = "a password's own signs are written as %40 for @, %3A for :, %2F for / and %25 for %, or it is in PGPASSWORD"
# A connection that nobody answers any more, behind a cut cable or a forgetful firewall, is given up within a minute.
CONNECTING = {
    "connect_timeout": 10, "tcp_user_timeout": 50_000,
    "keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3,
}  # fmt: skip
_LOGIN = re.compile(r"[^/?@:]*:(?!\d*\?\w+=)[^/@]*@")  # a password may hold a ?; a port has options behind it
_SEARCH_PATH = re.compile(r"(?:-c\s*|--)search[_-]path=((?:\\.|\S)*)")


def parse_address(url: str) -> URL:
    """The database at an address as people have it: SQLAlchemy's, Optuna's or libpq's. Raises UsageError.

    Of a server's the query has all that SQLAlchemy has no name for, as libpq knows it.
    """
    url = url.strip().strip("\"'")  # some who read a .env file leave its quotes
    kind = url.partition("://")[0].partition("+")[0].lower()
    if "://" in url and kind in ("postgres", "postgresql"):
        return _server(url.partition("://")[2])
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # Not shown: a malformed address may hold a password that cannot be told apart.
        path = re.fullmatch(r"(?:(?:sqlite|file):)?([^@:]+\.(?:db|sqlite3?))", url)
        file = f"; a file is named as sqlite:///{path[1]}" if path else ""
        raise UsageError(f"storage: not a database address; accepted: {ACCEPTED}{file}.") from None
    if kind != "sqlite":
        raise UsageError(f"storage: {kind} databases are not supported; accepted: {ACCEPTED}.")
    if parsed.host or parsed.query:
        raise UsageError("storage: an SQLite address names a file alone; accepted: sqlite:///FILE.")
    if not parsed.database or parsed.database == ":memory:":
        raise UsageError("storage: an in-memory SQLite database ends with its process; accepted: sqlite:///FILE.")
    return parsed.set(drivername="sqlite", database=os.path.abspath(expanded(parsed.database)))


def _server(rest: str) -> URL:
    """A server's address, read by libpq, from what follows its kind."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    login = _LOGIN.match(rest)
    start = login.end() if login else 0
    place, mark, query = rest[start:].partition("?")
    pairs = [each.partition("=") for each in query.split("&")]
    # As SQLAlchemy takes them, too: a plus is a space in options, and a second = needs no escape.
    values = [(key, unquote(text.replace("+", " ") if key == "options" else text)) for key, _, text in pairs]
    escaped = "&".join(f"{key}={quote(value, safe='')}" for key, value in values if key)
    try:
        found = conninfo_to_dict(f"postgresql://{rest[:start]}{place}{mark}{escaped}")
        known = {key: str(value) for key, value in found.items()}
    except (ProgrammingError, UnicodeError) as error:
        wrong = re.match(r"invalid URI query parameter: \"(\w+)\"", str(error))
        reason = f"it has no option {wrong[1]}" if wrong else f"not a database address; {SIGNS}"
        if wrong and wrong[1].lower() in ("schema", "currentschema", "search_path"):
            reason += "; a schema is named as ?options=-csearch_path=SCHEMA"
        raise UsageError(f"storage: {reason}; accepted: {ACCEPTED}, with libpq's options.") from None
    if "@" in known.get("host", ""):
        # Not shown: what stands between the two @ is the end of the password.
        raise UsageError(f"storage: the address has an @ too many; {SIGNS}.")
    port = known.get("port", "")
    if not all(each.isdecimal() for each in port.split(",") if each):
        raise UsageError(f"storage: not a database address: its port is no number; {SIGNS}; accepted: {ACCEPTED}.")
    names = {"username": "user", "password": "password", "database": "dbname"}
    if not re.search("[,/]", known.get("host", ",") + port):  # SQLAlchemy knows neither several hosts nor sockets
        names |= {"host": "host", "port": "port"}
    parts: dict[str, Any] = {ours: known.pop(theirs, None) for ours, theirs in names.items()}
    parts["port"] = int(parts["port"]) if parts.get("port") else None
    return URL.create("postgresql+psycopg", **parts, query=known)


def absolute(url: str) -> str:
    """The address for a process with another working folder."""
    parsed = parse_address(url)
    return str(parsed) if is_sqlite(parsed) else url


def shown(url: URL) -> str:
    """An address for people, without its password: as it can be given again."""
    plain = url.difference_update_query(["password", "sslpassword"])._replace(password=None)
    place, mark, query = plain.set(drivername=plain.get_backend_name()).render_as_string().partition("?")
    return place + mark + query.replace("+", "%20")  # a plus is a plus for libpq


def connecting(url: URL) -> tuple[dict[str, Any], str | None]:
    """How libpq is to connect besides what the address says, and the search path that was asked for.

    That is no option of a connection here: poolers refuse those, or drop them.
    """
    options = str(url.query.get("options", os.environ.get("PGOPTIONS", "")))
    found = next(reversed(list(_SEARCH_PATH.finditer(options))), None)  # the last one counts
    # Prepared statements and poolers do not go together, either.
    chosen: dict[str, Any] = {"prepare_threshold": None}
    if found:  # else what a service file says stays: an option here would take its place
        chosen["options"] = _SEARCH_PATH.sub("", options).strip()
    chosen |= {key: value for key, value in CONNECTING.items() if key not in url.query}
    if "PGCONNECT_TIMEOUT" in os.environ:
        chosen.pop("connect_timeout", None)
    return chosen, re.sub(r"\\(.)", r"\1", found[1]) if found else None


def first_schema(search_path: str) -> str:
    """The schema that a search path names first."""
    quoted = re.match(r'\s*"((?:[^"]|"")*)"', search_path)
    return quoted[1].replace('""', '"') if quoted else search_path.split(",")[0].strip().lower()


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def is_writable(path: Path) -> bool:
    """Whether SQLite may write to this file: to its folder, too, where it keeps its log."""
    return all(os.access(each, os.R_OK | os.W_OK) for each in (path, path.parent) if each.exists())


def check_sqlite_file(path: Path, *, to_write: bool) -> None:
    """Refuse a path where SQLite can keep, or read, no file."""
    if path.exists() and not path.is_file():
        what = ("a folder", "a file") if path.is_dir() else ("no plain file", "a plain file")
        raise StorageError(f"{path}: the study database is {what[0]}; {what[1]} is needed.")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: the folder {path.parent} of the study database does not exist.")
    mode, words = (os.R_OK | os.W_OK, "read and written") if to_write else (os.R_OK, "read")
    # SQLite keeps its log beside the file.
    for needed in (path, path.parent, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        if needed.exists() and not os.access(needed, mode):
            raise StorageError(f"{needed}: the study database cannot be {words} here: permission denied.")
    if path.exists() and 0 < path.stat().st_size < SMALLEST_SQLITE_BYTES:  # SQLite would begin anew in it
        raise StorageError(f"{path}: {NO_SQLITE}.")


def unfit(path: Path, error: BaseException) -> StorageError | None:
    """What an error of SQLite says of the place where a file lies; None where it is not the place's."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL):
        return None
    if shutil.disk_usage(path.parent).free < 2**20:  # SQLite may call that an I/O error
        return StorageError(f"{path}: the disk is full; free some space, or name another place.")
    cure = "name a file on a local disk with --storage, or a PostgreSQL database"
    return StorageError(f"{path}: SQLite does not work here ({error}; a network drive?); {cure}.")


def reader_of(path: Path) -> sqlite3.Connection:
    """A connection that reads a file where nothing may be written.

    Without a log nobody is writing, and SQLite must be told so: it would make files beside it.
    """
    log = path.with_name(f"{path.name}-wal")
    still = "" if log.exists() and log.stat().st_size else "&immutable=1"
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro{still}", uri=True, timeout=60, check_same_thread=False)


def check_sqlite_content(path: Path, *, to_write: bool) -> bool:
    """Refuse what Optuna would meet with a long traceback, or silently fill with tables. Whether it has tables.

    Through SQLite alone: to close a file of our own here would drop the locks of this process's other connections
    (POSIX locks are per process), and another process could then delete the log that they write to.
    """
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path, timeout=60) if to_write else reader_of(path)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise StorageError(f"{path}: {NO_SQLITE}.") from None
        words = f"{path}: the study database is damaged or locked: {error}."
        raise unfit(path, error) or StorageError(words) from None
    if problem != "ok":
        raise StorageError(f"{path}: the study database is damaged: {problem.splitlines()[-1].rstrip('.')}.")
    if tables and not {"studies", "trials", "version_info"} <= tables:
        theirs = f"this database belongs to something else (its tables: {', '.join(sorted(tables)[:5])})"
        raise StorageError(f"{path}: {theirs}; name another file with --storage.")
    return bool(tables)
