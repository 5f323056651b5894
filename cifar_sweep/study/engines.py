"""Engines for study databases: which tables are there, or are made; how connections are opened, and given back."""

import logging
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Engine, NullPool, create_engine, event
from sqlalchemy.engine import URL

from cifar_sweep.database import address
from cifar_sweep.database.locks import advisory_lock, file_lock
from cifar_sweep.errors import StorageError, StorageMissingError
from cifar_sweep.study import tables

log = logging.getLogger(__name__)
ONLY_READS = "cifar_sweep_only_reads"  # an option of a connection: its transactions hold no writer off
HELD = "another program reads %s: a part of it stays in the file -wal; copy both, or use `cifar-sweep copy`"
# One connection for each process: a server's are few. Heartbeats wait for it, and threads of a dashboard.
ONE_CONNECTION = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 120}
# What a server has for us: the schema that is used, whether others stand behind it, the tables in it, what we may do.
LOOK = sqlalchemy.text("""
    SELECT current_schema(), cardinality(current_schemas(false)) > 1,
        ARRAY(SELECT relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
              WHERE nspname = current_schema() AND relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1),
        current_setting('transaction_read_only') = 'off' AND has_table_privilege(to_regclass('trials'), 'INSERT'),
        current_setting('transaction_read_only') = 'off' AND has_schema_privilege(current_schema(), 'CREATE')
""")


def open_engine(url: URL, *, make: bool) -> tuple[Engine, bool]:
    """The engine of a database, whose tables are made if `make` says so, and whether it may be written to.

    Raises StorageError, or the error of a driver.
    """
    engine, writable = (_open_file if address.is_sqlite(url) else _open_server)(url, make=make)
    with _given_up_on_error(engine), engine.connect().execution_options(**{ONLY_READS: True}) as connection:
        tables.check_version(connection)
    return engine, writable


@contextmanager
def _given_up_on_error(engine: Engine) -> Iterator[None]:
    try:
        yield
    except BaseException:
        engine.dispose()
        raise


def _missing(what: str, theirs: str = "") -> StorageMissingError:
    cure = "`cifar-sweep run` makes one, or say where it is with --storage"
    return StorageMissingError(f"{what}: there is no study database here yet{theirs}; {cure}.")


def _open_file(url: URL, *, make: bool) -> tuple[Engine, bool]:
    path = Path(str(url.database))
    if not (make or path.exists()):
        raise _missing(str(path))
    writable = make or address.is_writable(path)
    address.check_sqlite_file(path, to_write=writable)
    if not writable:
        address.check_sqlite_content(path, to_write=False)
        return create_engine(url, poolclass=NullPool, creator=partial(address.reader_of, path)), False
    # Two processes that make the tables at once fail on each other's, and half of them look like a foreign database.
    with file_lock(url):
        was_there, is_new = path.exists(), not address.check_sqlite_content(path, to_write=True)
        if not was_there:
            path.touch()  # with the rights that this user's files have: SQLite would make it for its owner alone
        engine = create_engine(url, connect_args={"timeout": 60})
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
        try:
            with _given_up_on_error(engine), engine.begin() if is_new else nullcontext() as connection:
                if connection:
                    tables.make(connection)
        except (sqlite3.OperationalError, sqlalchemy.exc.OperationalError) as error:
            for half_made in () if was_there else ("", "-wal", "-shm"):
                Path(f"{path}{half_made}").unlink(missing_ok=True)
            raise address.unfit(path, getattr(error, "orig", error)) or error from None
    return engine, True


def _open_server(url: URL, *, make: bool) -> tuple[Engine, bool]:
    options, path = address.connecting(url)
    # libpq passes it on, past poolers, too: heartbeats are compared in the time of the session that looks at them.
    os.environ["PGTZ"] = "UTC"
    engine = create_engine(url, connect_args=options, pool_pre_ping=True, **ONE_CONNECTION)
    event.listen(engine, "invalidate", lambda *_: _say_lost())
    if path is not None:
        _search(engine, path)
    with _given_up_on_error(engine):
        return engine, _prepare(engine, url, path, make=make)


def _prepare(engine: Engine, url: URL, path: str | None, *, make: bool) -> bool:
    """Find the tables of a server's database, or make them; whether they may be written to."""
    where = address.shown(url)
    with engine.connect() as connection:
        schema, has_others, found, writable, may_make = connection.execute(LOOK).one()
    if schema is None or (path is not None and address.first_schema(path) not in (schema, "$user")):
        missing = address.first_schema(path or "public")
        raise StorageError(f"{where}: there is no schema {missing!r} for this role; `CREATE SCHEMA` makes it.")
    if path is not None or has_others:  # in the schemas behind it may be the tables of another study database
        _search(engine, engine.dialect.identifier_preparer.quote(schema))
    if {"studies", "version_info"} <= set(found):
        return bool(writable)
    if taken := tables.NAMES & set(found):
        theirs = f"tables of something else have the names of ours ({', '.join(sorted(taken))})"
        cure = "name another database, or a schema of its own with ?options=-csearch_path=SCHEMA"
        raise StorageError(f"{where}: {theirs}; {cure}.")
    if not may_make:
        cure = "their owner can, or gives the right to: GRANT CREATE ON SCHEMA"
        raise StorageError(f"{where}: no studies yet, and no right to make tables in schema {schema}; {cure}.")
    theirs = f"tables of something else ({', '.join(found[:5])})"
    if not make:
        raise _missing(where, f" beside {theirs}" if found else "")
    if found:
        log.warning("%s: the studies stand beside %s, which are left alone", where, theirs)
    with advisory_lock(engine) as connection:
        if not sqlalchemy.inspect(connection).has_table("version_info"):  # nobody was faster
            tables.make(connection)
    return True


def end(engine: Engine, *, checkpoint: bool) -> None:
    if checkpoint and address.is_sqlite(engine.url) and os.path.exists(str(engine.url.database)):
        # What is in the log alone would be missing from a copy of the file, while a dashboard keeps that open. Without
        # waiting for anybody: who looks again and again would keep a worker from writing.
        with suppress(Exception), closing(engine.raw_connection()) as connection:
            for _ in range(3):
                _, pages, moved = connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if moved == pages:
                    break
                time.sleep(0.1)  # somebody reads, or writes, just now
            else:
                if multiprocessing.parent_process() is None:
                    log.warning(HELD, engine.url.database)
    engine.dispose()


def _search(engine: Engine, path: str) -> None:
    """Look in these schemas alone: said with each transaction, for a pooler gives each one another connection."""
    words = sqlalchemy.text("SELECT set_config('search_path', :path, true)")
    event.listen(engine, "begin", lambda connection: connection.execute(words, {"path": path}))


@cache
def _say_lost() -> None:
    if multiprocessing.parent_process() is None:  # each worker sees it, too
        log.warning("the server has ended a connection that rested; it is opened again whenever it is needed")


def _on_sqlite_connect(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; _on_sqlite_begin does
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _on_sqlite_begin(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(ONLY_READS) else "BEGIN IMMEDIATE")
