"""What counts as a database that does not answer, told by real servers and files, and how it is waited out."""

import errno
import os
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.study import StudyDirection

from cifar_sweep.database import locks, outage
from cifar_sweep.database.outage import explain, is_outage, wait_out
from cifar_sweep.errors import StorageBusyError, StorageError, StudyError
from cifar_sweep.study.storage import Storage, open_storage
from tests.servers import PostgresServer, StopMode

HARD_STOPS: list[StopMode] = ["fast", "immediate"]


def raised(operation: Callable[[], Any]) -> Exception:
    try:
        operation()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def module_storage(module_postgres: PostgresServer) -> Iterator[Storage]:
    with closing(open_storage(module_postgres.url)) as opened:
        yield opened


@pytest.fixture
def opened(own_postgres: PostgresServer, module_storage: Storage) -> Storage:
    """A database on a server of its own, with no connection from before."""
    module_storage.close()
    return module_storage


@pytest.fixture
def trial_id(opened: Storage, name: str) -> int:
    return opened.optuna.create_new_trial(opened.optuna.create_new_study([StudyDirection.MAXIMIZE], name))


def set_attribute(storage: Storage, trial_id: int, value: int = 1) -> Callable[[], None]:
    return lambda: storage.optuna.set_trial_user_attr(trial_id, "a", value)


def execute(storage: Storage, *statements: str) -> Callable[[], None]:
    def run() -> None:
        with storage.optuna.engine.begin() as connection:
            for statement in statements:
                connection.execute(sqlalchemy.text(statement))

    return run


# PostgreSQL that goes away


@pytest.mark.parametrize("mode", HARD_STOPS)
def test_a_stopped_server_is_an_outage(
    own_postgres: PostgresServer, opened: Storage, trial_id: int, mode: StopMode
) -> None:
    own_postgres.stop(mode)
    first, second = raised(set_attribute(opened, trial_id)), raised(set_attribute(opened, trial_id))
    assert is_outage(first)
    assert is_outage(second)
    assert "Connection refused" in str(second.__cause__)


@pytest.mark.parametrize("mode", HARD_STOPS)
def test_a_server_that_stops_in_a_statement_is_an_outage(
    own_postgres: PostgresServer, opened: Storage, mode: StopMode
) -> None:
    stopping = threading.Timer(0.2, own_postgres.stop, [mode])
    stopping.start()
    assert is_outage(raised(execute(opened, "SELECT pg_sleep(10)")))
    stopping.join()


@pytest.mark.parametrize("mode", HARD_STOPS)
def test_a_server_that_was_started_again_in_a_transaction_is_an_outage(
    own_postgres: PostgresServer, opened: Storage, trial_id: int, mode: StopMode
) -> None:
    def interrupted() -> None:
        with opened.optuna.engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
            own_postgres.stop(mode)
            own_postgres.start()

    assert is_outage(raised(interrupted))
    assert not opened.optuna.get_trial(trial_id).state.is_finished()


def test_a_server_that_is_shutting_down_is_an_outage(own_postgres: PostgresServer, opened: Storage) -> None:
    with psycopg.connect(own_postgres.url):  # it waits for this one to go
        stopping = threading.Thread(target=own_postgres.stop, args=["smart"])
        stopping.start()
        with suppress(psycopg.OperationalError):
            while True:
                psycopg.connect(own_postgres.url).close()
        error = raised(lambda: open_storage(own_postgres.url))
    stopping.join()
    assert "shutting down" in str(error)
    assert is_outage(error)


def test_too_many_clients_are_an_outage_for_who_is_at_work_and_a_refusal_for_who_begins(
    own_postgres: PostgresServer, opened: Storage, trial_id: int
) -> None:
    execute(opened, "DROP OWNED BY lonely" if exists(opened, "lonely") else "CREATE ROLE lonely LOGIN")()
    execute(opened, "ALTER ROLE lonely CONNECTION LIMIT 1", "GRANT ALL ON ALL TABLES IN SCHEMA public TO lonely")()
    address = own_postgres.url.replace("postgres@", "lonely@")
    with closing(open_storage(address)) as at_work:
        at_work.close()
        with connected(address):
            assert is_outage(raised(set_attribute(at_work, trial_id)))
            refused = raised(lambda: open_storage(address))
    assert "too many connections for role" in str(refused)
    assert "each worker takes one connection, and the command another" in str(refused)
    assert not is_outage(refused)


def connected(address: str) -> psycopg.Connection[Any]:
    """A connection, once the server has seen the end of the one before."""
    for _ in range(100):
        with suppress(psycopg.OperationalError):
            return psycopg.connect(address)
        time.sleep(0.05)
    return psycopg.connect(address)


def exists(storage: Storage, role: str) -> bool:
    with storage.optuna.engine.connect() as connection:
        found = connection.execute(sqlalchemy.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
        return found.first() is not None


def test_a_connection_that_the_server_gave_up_is_an_outage(opened: Storage) -> None:
    def dawdle() -> None:
        with opened.optuna.engine.begin() as connection:
            connection.execute(sqlalchemy.text("SET idle_in_transaction_session_timeout = 20"))
            time.sleep(0.3)
            connection.execute(sqlalchemy.text("SELECT 1"))

    error = raised(dawdle)
    assert "idle-in-transaction" in str(error)
    assert is_outage(error)


LATER = ["57P01", "57P02", "57P03", "53300", "08000", "08006", "40P01", "40001"]
FOR_GOOD = ["53100", "25006", "28000", "28P01", "42P01", "42501", "22001", "57014", "XX001"]


@pytest.mark.parametrize("code", LATER + FOR_GOOD)
def test_the_answer_of_the_server_tells_an_outage(opened: Storage, code: str) -> None:
    error = raised(execute(opened, f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"))
    assert isinstance(error, sqlalchemy.exc.DBAPIError)
    assert getattr(error.orig, "sqlstate", None) == code
    assert is_outage(error) == (code in LATER)


# What is said while it connects


def close_at_once(connection: socket.socket) -> None:
    connection.recv(8)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def impostor(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of something that is no database."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"postgresql://me@127.0.0.1:{listening.getsockname()[1]}/d"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("answer", [close_at_once, reset])
def test_a_server_that_does_not_let_one_in_is_an_outage(answer: Callable[[socket.socket], None]) -> None:
    with impostor(answer) as address:
        assert is_outage(raised(lambda: psycopg.connect(address)))


@pytest.mark.slow
def test_a_server_that_says_nothing_is_an_outage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"postgresql://me@127.0.0.1:{listening.getsockname()[1]}/d?connect_timeout=2"
        error = raised(lambda: psycopg.connect(address))
    assert isinstance(error, psycopg.errors.ConnectionTimeout)
    assert is_outage(error)


def test_a_missing_socket_is_an_outage(tmp_path: Path) -> None:
    assert is_outage(raised(lambda: open_storage(f"postgresql://me@/d?host={tmp_path}")))


def test_a_name_that_is_not_known_now_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert is_outage(raised(lambda: open_storage("postgresql://me@db/d")))


@pytest.mark.parametrize(
    "words",
    [
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is in recovery mode",
        "FATAL:  the database system is not yet accepting connections",
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        f"could not receive data from server: {os.strerror(errno.ETIMEDOUT)}",
        f"could not send startup packet: {os.strerror(errno.EPIPE)}",
        os.strerror(errno.ECONNRESET),
        os.strerror(errno.ECONNABORTED),
        os.strerror(errno.EHOSTDOWN),
        os.strerror(errno.EHOSTUNREACH),
        os.strerror(errno.ENETUNREACH),
        "SSL connection has been closed unexpectedly",
        "timeout expired",
        'could not translate host name "db" to address: Temporary failure in name resolution',
    ],
)
def test_other_words_of_an_outage(words: str) -> None:
    assert is_outage(psycopg.OperationalError(f'connection failed: connection to server at "db" failed: {words}'))


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("FATAL:  unsupported startup parameter: options", "a pooler takes no options; leave them out of the address"),
        ("FATAL:  query_wait_timeout", "the pooler had none left; each worker takes one connection, and the command"),
        (
            "ERROR:  transaction blocks not allowed in statement pooling mode",
            "use the server's own address, or a",
        ),
        ("FATAL:  sorry, too many clients already", "each worker takes one connection, and the command another"),
    ],
)
def test_what_is_to_be_done_about_it_is_said(words: str, advice: str) -> None:
    error = sqlalchemy.exc.OperationalError("SELECT 1", {}, psycopg.OperationalError(words))
    assert f"{words}; {advice}" in str(explain(error))


def test_a_wrong_password_is_no_outage(guarded_postgres: PostgresServer) -> None:
    assert not is_outage(raised(lambda: open_storage(guarded_postgres.url.replace("ec", "ce"))))
    assert not is_outage(raised(lambda: open_storage(guarded_postgres.url_without_password)))


def test_a_wrong_address_is_no_outage(own_postgres: PostgresServer) -> None:
    for wrong in (
        own_postgres.url.replace("postgres@", "nobody@"),
        own_postgres.url.removesuffix("postgres") + "nowhere",
        f"{own_postgres.url}?sslmode=require",
        own_postgres.url.replace(str(own_postgres.port), "99999"),
    ):
        error = raised(lambda wrong=wrong: open_storage(wrong))  # type: ignore[misc]
        assert isinstance(error, StorageError)
        assert not is_outage(error), wrong


def test_no_password_is_said(guarded_postgres: PostgresServer) -> None:
    said: list[str] = []
    with closing(open_storage(guarded_postgres.url)) as opened:
        guarded_postgres.stop()
        with pytest.raises(sqlalchemy.exc.OperationalError):
            wait_out(execute(opened, "SELECT 1"), stop=lambda: bool(said), say=said.append)
    guarded_postgres.start()
    assert len(said) == 1
    assert not any(part in said[0] for part in ("ec:r", "ec%3Ar", "@t", "%40t"))


# SQLite


@pytest.fixture
def file(tmp_path: Path, sqlite_template: Path) -> Path:
    path = tmp_path / "studies.db"
    path.write_bytes(sqlite_template.read_bytes())
    return path


@pytest.fixture
def on_file(file: Path) -> Iterator[Storage]:
    """A database in a file, that waits for nobody, with no connection from before."""
    with closing(open_storage(f"sqlite:///{file}")) as opened:
        opened.close()
        sqlalchemy.event.listen(
            opened.optuna.engine, "connect", lambda made, _: made.execute("PRAGMA busy_timeout = 50")
        )
        yield opened


def new_study(storage: Storage) -> Callable[[], int]:
    return lambda: storage.optuna.create_new_study([StudyDirection.MAXIMIZE], "s")


def test_a_file_that_another_writes_to_is_an_outage(on_file: Storage, file: Path) -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        error = raised(new_study(on_file))
    assert isinstance(error, StorageInternalError)
    assert is_outage(error)
    assert new_study(on_file)() == 1


def test_a_full_disk_is_no_outage(small_disk: Path) -> None:
    with closing(open_storage(f"sqlite:///{small_disk}/studies.db")) as opened:
        study_id = new_study(opened)()

        def fill() -> None:
            for number in range(100):
                opened.optuna.set_study_user_attr(study_id, str(number), "x" * 20_000)

        error = raised(fill)
    assert "full" in str(error.__cause__)
    assert not is_outage(error)


def forbid_writing(file: Path, storage: Storage) -> None:
    sqlalchemy.event.listen(storage.optuna.engine, "connect", lambda made, _: made.execute("PRAGMA query_only = 1"))


def drop_the_tables(file: Path, storage: Storage) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TABLE studies")


def scribble(file: Path, storage: Storage) -> None:
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * (file.stat().st_size - 4096))


def overwrite(file: Path, storage: Storage) -> None:
    file.write_bytes(b"this is no database\n" * 1000)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (forbid_writing, "readonly"),
        (drop_the_tables, "no such table"),
        (scribble, "malformed"),
        (overwrite, "not a database"),
    ],
)
def test_a_file_that_is_spoilt_is_no_outage(
    on_file: Storage, file: Path, spoil: Callable[[Path, Storage], None], words: str
) -> None:
    spoil(file, on_file)
    error = raised(new_study(on_file))
    assert words in str(error.__cause__ or error)
    assert not is_outage(error)


# Errors that hide others


def test_a_lock_that_another_holds_is_an_outage(storage: Storage, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    with closing(open_storage(url)) as other, storage.lock():
        error = raised(other.lock().__enter__)
    assert isinstance(error, StorageBusyError)
    assert is_outage(error)


@contextmanager
def handled(error: Exception) -> Iterator[None]:
    try:
        raise error
    except Exception:
        yield


GONE = sqlalchemy.exc.OperationalError("SELECT 1", {}, psycopg.OperationalError("x"), connection_invalidated=True)


@pytest.mark.parametrize(
    "error",
    [KeyError("a"), ValueError("bad"), RuntimeError("CUDA out of memory"), AssertionError("shape"), StudyError("gone."),
     UnboundLocalError("local variable 'a'"), OSError(errno.ECONNREFUSED, "Connection refused"), TimeoutError()],
)  # fmt: skip
def test_a_mistake_made_while_an_outage_was_handled_is_none(error: Exception) -> None:
    def handle() -> None:
        with handled(GONE):
            raise error

    assert is_outage(GONE)
    assert raised(handle).__context__ is GONE
    assert not is_outage(error)


def test_the_latest_word_counts() -> None:
    def handle() -> None:
        with handled(GONE), closing(sqlite3.connect(":memory:")) as connection:
            connection.execute("SELECT nonsense")

    error = raised(handle)
    assert error.__context__ is GONE
    assert not is_outage(error)


# Waiting


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(outage, "monotonic", made.monotonic)
    monkeypatch.setattr(outage, "sleep", made.sleep)
    return made


REFUSED = psycopg.OperationalError(
    'connection failed: connection to server at "db", port 5432 failed: Connection refused\n\tIs the server running?'
)


class Flaky:
    """Answers after so many seconds, or with an error of another kind."""

    def __init__(self, clock: Clock, seconds: float, *, then: Exception | None = None) -> None:
        self.clock = clock
        self.answers_at = clock.now + seconds
        self.then = then
        self.asked: list[float] = []

    def __call__(self) -> str:
        self.asked.append(self.clock.now)
        if self.clock.now < self.answers_at:
            raise REFUSED
        if self.then:
            raise self.then
        return "done"


def test_what_works_at_once_says_nothing(clock: Clock) -> None:
    said: list[str] = []
    assert wait_out(lambda: 7, stop=lambda: True, say=said.append) == 7
    assert said == []
    assert clock.slept == []


def test_an_outage_is_waited_out_and_said_twice(clock: Clock) -> None:
    said: list[str] = []
    assert wait_out(Flaky(clock, 60), stop=never, say=said.append) == "done"
    assert said[0] == (
        'the database does not answer (connection to server at "db", port 5432 failed: Connection refused); '
        "going on when it does."
    )
    assert said[1].startswith("the database answers again after 6")
    assert said[1].endswith(" s.")
    assert len(said) == 2


def test_the_reason_is_what_happened_and_not_what_to_do(clock: Clock) -> None:
    said: list[str] = []
    held = StorageBusyError("studies.db.lock: another process has held it for 120 s; end it and try again.")

    def operation() -> None:
        if not said:
            raise held

    wait_out(operation, stop=never, say=said.append)
    assert said == [
        "the database does not answer (studies.db.lock: another process has held it for 120 s); going on when it does.",
        "the database answers again after 1 s.",
    ]


def test_a_long_outage_is_said_every_five_minutes(clock: Clock) -> None:
    said: list[str] = []
    wait_out(Flaky(clock, 1000), stop=never, say=said.append)
    assert [words.partition(" (")[0] for words in said[:-1]] == [
        "the database does not answer",
        "the database has not answered for 5 minutes",
        "the database has not answered for 10 minutes",
        "the database has not answered for 15 minutes",
    ]
    assert "answers again" in said[-1]


def test_the_waits_grow_to_five_seconds_and_are_never_the_same(clock: Clock) -> None:
    flaky = Flaky(clock, 300)
    wait_out(flaky, stop=never, say=lambda _: None)
    waits = [after - before for before, after in zip(flaky.asked, flaky.asked[1:], strict=False)]
    for wait, longest in zip(waits, [0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 100], strict=False):
        assert longest / 2 <= wait + 1e-6
        assert wait <= longest + 1e-6
    assert len({round(wait, 6) for wait in waits[5:]}) == len(waits[5:])
    assert max(clock.slept) <= 0.2


@pytest.mark.parametrize("seconds", [0, 30])
def test_an_error_that_is_no_outage_passes_through(clock: Clock, seconds: float) -> None:
    said: list[str] = []
    flaky = Flaky(clock, seconds, then=ValueError("bad"))
    with pytest.raises(ValueError, match="bad"):
        wait_out(flaky, stop=never, say=said.append)
    assert clock.now == flaky.asked[-1]
    assert [words.split()[2] for words in said] == (["does", "answers"] if seconds else [])


def test_the_last_outage_is_raised_when_told_to_stop(clock: Clock) -> None:
    said: list[str] = []
    flaky = Flaky(clock, 1e6)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        wait_out(flaky, stop=lambda: clock.now >= 1042, say=said.append)
    assert clock.now <= 1042.2 + 1e-6
    assert len(said) == 1


def test_who_is_to_stop_already_does_not_wait(clock: Clock) -> None:
    said: list[str] = []
    with pytest.raises(psycopg.OperationalError, match="refused"):
        wait_out(Flaky(clock, 10), stop=lambda: True, say=said.append)
    assert said == []
    assert clock.slept == []


@pytest.mark.slow
def test_nothing_is_lost_while_the_server_comes_and_goes(
    own_postgres: PostgresServer, opened: Storage, trial_id: int
) -> None:
    said: list[str] = []
    errors: list[Exception] = []
    over = threading.Event()
    reported: list[int] = []

    def report() -> None:
        opened.optuna.set_trial_intermediate_value(trial_id, len(reported), 0.5)

    def report_on() -> None:
        try:
            while not over.is_set():
                wait_out(report, stop=never, say=said.append)
                reported.append(len(reported))
        except Exception as error:
            errors.append(error)

    def go_on(steps: int = 5) -> None:
        """Until some more were reported."""
        until = len(reported) + steps
        while len(reported) < until and reporting.is_alive():
            time.sleep(0.01)

    reporting = threading.Thread(target=report_on)
    reporting.start()
    go_on()
    for mode in HARD_STOPS:
        own_postgres.stop(mode)
        time.sleep(0.3)
        own_postgres.start()
        go_on()
    own_postgres.restart()
    go_on()
    over.set()
    reporting.join()
    assert errors == []
    assert sorted(opened.optuna.get_trial(trial_id).intermediate_values) == reported
    assert [words.split()[2] for words in said] == ["does", "answers"] * 3
