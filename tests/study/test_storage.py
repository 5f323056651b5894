"""The study database: what is refused and how, who owns a trial, and what the lock holds off."""

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from cifar_sweep.database import locks
from cifar_sweep.database.address import SIGNS, connecting, first_schema, parse_address
from cifar_sweep.database.address import shown as shown_address
from cifar_sweep.database.outage import explain
from cifar_sweep.errors import CifarSweepError, StorageError, UsageError
from cifar_sweep.study import owner as owner_module
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage, open_existing, open_storage

ACCEPTED = "accepted: sqlite:///FILE or postgresql://USER@HOST/DATABASE."


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Made once: its tables take half a second."""
    path = tmp_path_factory.mktemp("empty") / "studies.db"
    open_storage(f"sqlite:///{path}").close()
    return path.read_bytes()


@pytest.fixture
def storage(path: Path, empty_database: bytes) -> Iterator[Storage]:
    path.write_bytes(empty_database)
    opened = open_storage(f"sqlite:///{path}")
    yield opened
    opened.close()


@pytest.fixture
def trial_id(storage: Storage) -> int:
    """A running trial that nobody owns."""
    study_id = storage.optuna.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s")
    return storage.optuna.create_new_trial(study_id)


def sql(path: Path, *statements: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def refusal(url: str, kind: type[CifarSweepError] = StorageError) -> str:
    with pytest.raises(CifarSweepError) as refused:
        open_storage(url)
    assert type(refused.value) is kind
    return str(refused.value)


def assert_one_sentence(message: str) -> None:
    assert message.endswith(".")
    assert "\n" not in message
    assert ". " not in message
    assert "Traceback" not in message
    assert "sqlalche" not in message


# Files that are no study database


def make_text(path: Path) -> None:
    path.write_text("this is no database\n" * 100)


def make_short_text(path: Path) -> None:
    path.write_text("x")


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_truncated(path: Path) -> None:
    open_storage(f"sqlite:///{path}").close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_scribbled(path: Path) -> None:
    open_storage(f"sqlite:///{path}").close()
    content = bytearray(path.read_bytes())
    content[4096:20480] = b"\xff" * (20480 - 4096)
    path.write_bytes(content)


def make_foreign(path: Path) -> None:
    sql(path, "CREATE TABLE recipes (name TEXT)", "INSERT INTO recipes VALUES ('soup')")


def make_foreign_with_trials(path: Path) -> None:
    sql(path, "CREATE TABLE trials (judge TEXT)", "INSERT INTO trials VALUES ('Lynch')")


BROKEN = [
    (make_text, "not an SQLite database; the study database is a file that cifar-sweep made."),
    (make_short_text, "not an SQLite database"),
    (make_folder, "the study database is a folder; a file is needed."),
    (make_pipe, "a plain file is needed."),
    (make_truncated, "the study database is damaged"),
    (make_scribbled, "the study database is damaged"),
    (make_foreign, "this database belongs to something else (its tables: recipes); name another file with --storage."),
    (make_foreign_with_trials, "this database belongs to something else (its tables: trials)"),
]


@pytest.mark.parametrize(("make", "expected"), BROKEN, ids=[make.__name__ for make, _ in BROKEN])
def test_a_broken_file_is_refused_in_one_sentence_and_left_alone(path: Path, make: Any, expected: str) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else None
    message = refusal(f"sqlite:///{path}")
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert_one_sentence(message)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert {each.name for each in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}


def test_a_missing_folder_is_refused_and_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    message = refusal(f"sqlite:///{folder}/studies.db")
    assert message == f"{folder}/studies.db: the folder {folder} of the study database does not exist."
    assert not folder.exists()


def test_an_empty_file_becomes_a_study_database(path: Path) -> None:
    path.touch()
    open_storage(f"sqlite:///{path}").close()
    assert ("studies",) in sql(path, "SELECT name FROM sqlite_master")


@pytest.mark.parametrize("denied", ["studies.db", "", "studies.db-wal", "studies.db-shm"])
@pytest.mark.parametrize("mode", [os.R_OK, os.W_OK], ids=["read", "write"])
def test_missing_permissions_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch, denied: str, mode: int) -> None:
    # The tests may run as root, whom no permission bits stop.
    path.touch()
    target = path.parent / denied
    target.touch()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda asked, how: not (asked == target and how & mode) and allowed(asked, how))
    message = refusal(f"sqlite:///{path}")
    assert message == f"{target}: the study database cannot be read and written here: permission denied."


def test_a_write_to_a_read_only_database_is_explained(storage: Storage, trial_id: int) -> None:
    with storage.optuna.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(StorageInternalError) as refused:
        storage.optuna.set_trial_user_attr(trial_id, "a", 1)
    assert str(explain(refused.value)) == "storage: the database refused: attempt to write a readonly database."


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("v3.0.0.a", "made by an older version of Optuna, this is .*; bring it up with `optuna storage upgrade"),
        ("v9.9.9.z", "made by an unknown version of Optuna, this is .*; `pip install -U optuna` helps."),
    ],
)
def test_a_database_of_another_optuna_is_refused(path: Path, revision: str, expected: str) -> None:
    open_storage(f"sqlite:///{path}").close()
    sql(path, f"UPDATE alembic_version SET version_num = '{revision}'")
    with pytest.raises(StorageError, match=expected) as refused:
        open_storage(f"sqlite:///{path}")
    assert_one_sentence(str(refused.value))


# Addresses


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("studies.db", f"storage: not a database address; {ACCEPTED[:-1]}; a file is named as sqlite:///studies.db."),
        ("/a/s.db", f"storage: not a database address; {ACCEPTED[:-1]}; a file is named as sqlite:////a/s.db."),
        ("sqlite:s.db", f"storage: not a database address; {ACCEPTED[:-1]}; a file is named as sqlite:///s.db."),
        ("", f"storage: not a database address; {ACCEPTED}"),
        ("postgresql://u:p@h:port/d", "storage: not a database address: its port is no number"),
        ("postgresql://u:p@ss:/{}%@h/d", f"storage: not a database address; {SIGNS}; accepted: "),
        ("postgresql://u@h/d?connect_timeout=3&foo=bar", "storage: it has no option foo; accepted: "),
        ("mysql://u@h/d", f"storage: mysql databases are not supported; {ACCEPTED}"),
        ("redis://h", f"storage: redis databases are not supported; {ACCEPTED}"),
        ("jdbc:postgresql://u@h/d", f"storage: not a database address; {ACCEPTED}"),
        ("sqlite://", "storage: an in-memory SQLite database ends with its process; accepted: sqlite:///FILE."),
        (
            "sqlite:///:memory:",
            "storage: an in-memory SQLite database ends with its process; accepted: sqlite:///FILE.",
        ),
        ("sqlite://studies.db", "storage: an SQLite address names a file alone; accepted: sqlite:///FILE."),
        ("sqlite:///file:s?mode=memory&uri=true", "storage: an SQLite address names a file alone; accepted: sqlite:/"),
    ],
)
def test_a_bad_address_is_a_mistake_of_usage(url: str, expected: str) -> None:
    message = refusal(url, UsageError)
    assert message.startswith(expected)
    assert_one_sentence(message)


def test_a_relative_address_stays_with_its_file_when_the_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with closing(open_storage("sqlite+pysqlite:///studies.db")) as opened:
        monkeypatch.chdir(tmp_path / "elsewhere")
        opened.optuna.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s")
    assert sql(tmp_path / "studies.db", "SELECT study_name FROM studies") == [("s",)]


@pytest.mark.parametrize("folder", ["a{b}c", "{SCHEMA_VERSION}", "50%", "two words", "größe"])
def test_any_folder_name_will_do(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    open_storage(f"sqlite:///{tmp_path}/{folder.replace('%', '%25')}/studies.db").close()
    assert ("studies",) in sql(tmp_path / folder / "studies.db", "SELECT name FROM sqlite_master")


PASSWORDS = {"braces": "s{ecr}et", "percent": "sec%25ret", "at": "sec%40ret", "colon": "sec:ret", "words": "sec%20ret"}


@pytest.mark.parametrize("password", PASSWORDS.values(), ids=list(PASSWORDS))
@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:{}@127.0.0.1:1/d",
        "postgresql://127.0.0.1:1/d?user=me&password={}",
        "postgresql://me:{}@127.0.0.1:port/d",
        "mysql://me:{}@127.0.0.1/d",
        "postgresql://me:{}@127.0.0.1:1/d?no_such_option=1",
        "sqlite://me:{}@host/studies.db",
    ],
)
def test_a_password_is_in_no_message(address: str, password: str) -> None:
    with pytest.raises(CifarSweepError) as refused:
        open_storage(address.replace("{}", password))
    message = str(refused.value)
    assert not any(part in message for part in ("sec", "ecr", "ret", password))
    assert_one_sentence(message)


def test_a_password_with_an_at_sign_is_no_part_of_the_host() -> None:
    message = refusal("postgresql://me:sec@ret@127.0.0.1:1/d", UsageError)
    assert message == f"storage: the address has an @ too many; {SIGNS}."


def test_an_unreachable_server_is_named_in_one_sentence() -> None:
    message = refusal("postgresql://me@127.0.0.1:1/d")
    assert "127.0.0.1" in message
    assert "refused" in message
    assert_one_sentence(message)


PLAIN = "postgresql://me@h:5433/d"


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("postgres://me@h:5433/d", PLAIN),
        ("POSTGRES://me@h:5433/d", PLAIN),
        (" PostgreSQL+Psycopg2://me@h:5433/d\n", PLAIN),
        ("'postgresql://me@h:5433/d'", PLAIN),
        ("postgresql://me:a?b@h:5433/d", PLAIN),
        ("postgresql://h:5433/d?user=me&password=a@b", PLAIN),
        ("postgresql://h:5433?user=me&password=a@b&dbname=d", PLAIN),
        ("postgresql+asyncpg://me:p%40%3A%2F%25@h:5433/d", PLAIN),
        ("postgresql://me@h:5433/d?password=a+b", PLAIN),
        ("postgres://", "postgresql://"),
        ("postgresql:///d?service=lab", "postgresql:///d?service=lab"),
        ("postgresql://me@/d?host=/run/pg&port=5433", "postgresql://me@/d?host=%2Frun%2Fpg&port=5433"),
        ("postgresql://me@one:5432,two:5433/d", "postgresql://me@/d?host=one%2Ctwo&port=5432%2C5433"),
        ("postgresql://me@[::1]:5433/d?sslmode=require", "postgresql://me@[::1]:5433/d?sslmode=require"),
        ("postgresql://me@h/d?options=-csearch_path=lab", "postgresql://me@h/d?options=-csearch_path%3Dlab"),
        ("postgresql://me@h/d?options=-c+a=1", "postgresql://me@h/d?options=-c%20a%3D1"),
    ],
)
def test_an_address_is_understood_as_people_have_it_and_shown_as_it_can_be_given_again(
    address: str, meant: str
) -> None:
    parsed = parse_address(address)
    assert shown_address(parsed) == meant
    assert shown_address(parse_address(meant)) == meant
    assert connecting(parse_address(meant)) == connecting(parsed)


@pytest.mark.parametrize("password", ["p@ss:/{}%?#&=+ '\"\\", "ümlaut", "$HOME"])
def test_a_password_of_any_signs_is_passed_on_as_it_is(password: str) -> None:
    assert parse_address(f"postgres://me:{quote(password, safe='')}@h/d").password == password


@pytest.mark.parametrize(
    ("options", "left", "path"),
    [
        ("-csearch_path=lab", "", "lab"),
        ("-c statement_timeout=5s -c search_path=lab,public", "-c statement_timeout=5s", "lab,public"),
        ("--search_path=my\\ lab -c a=b", "-c a=b", "my lab"),
        ("-csearch_path=b -csearch_path=lab", "", "lab"),
        ("-c a=b", "-c a=b", None),
    ],
)
@pytest.mark.parametrize("place", ["address", "environment"])
def test_a_search_path_is_no_option_of_the_connection(
    place: str, options: str, left: str, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "postgresql://me@h/d"
    if place == "environment":
        monkeypatch.setenv("PGOPTIONS", options)
    else:
        address += f"?options={options}"
    connected, found = connecting(parse_address(address))
    assert (connected.get("options", options), found) == (left, path)


def test_the_options_of_a_service_stay() -> None:
    assert "options" not in connecting(parse_address("postgresql:///d?service=lab"))[0]


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("Lab, public", "lab"),
        ('"Lab",public', "Lab"),
        ('"a,b"', "a,b"),
        (' "a""b" , c', 'a"b'),
        ('"$user", lab', "$user"),
    ],
)
def test_the_first_schema_of_a_path(path: str, schema: str) -> None:
    assert first_schema(path) == schema


def test_a_time_to_connect_that_is_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connecting(parse_address("postgresql://h/d"))[0]["connect_timeout"] == 10
    assert "connect_timeout" not in connecting(parse_address("postgresql://h/d?connect_timeout=2"))[0]
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "3")
    assert "connect_timeout" not in connecting(parse_address("postgresql://h/d"))[0]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_address("sqlite:///~/studies.db").database == f"{tmp_path}/studies.db"


@pytest.mark.parametrize("password", PASSWORDS.values(), ids=list(PASSWORDS))
@pytest.mark.parametrize("address", ["postgresql://me:{}@h/d", "postgresql://me@h/d?password={}&sslpassword={}"])
def test_a_password_is_not_shown(storage: Storage, address: str, password: str) -> None:
    shown = Storage(make_url(address.replace("{}", password)), storage.optuna).shown
    assert not any(part in shown for part in ("sec", "ecr", "ret"))
    assert "me" in shown
    assert "h/d" in shown


def test_open_existing_makes_nothing(path: Path) -> None:
    with pytest.raises(StorageError, match="there is no study database here yet") as refused:
        open_existing(f"sqlite:///{path}")
    assert str(refused.value).startswith(f"{path}: ")
    assert list(path.parent.iterdir()) == []


def test_open_existing_opens_what_is_there(path: Path) -> None:
    open_storage(f"sqlite:///{path}").close()
    with closing(open_existing(f"sqlite:///{path}")) as opened:
        assert opened.shown == f"sqlite:///{path}"


def test_the_write_ahead_log_is_on(storage: Storage, path: Path) -> None:
    with storage.optuna.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1
    assert path.with_name("studies.db-wal").exists()


def test_a_transaction_locks_the_database_from_its_start(storage: Storage, path: Path) -> None:
    refused = pytest.raises(sqlite3.OperationalError, match="locked")
    with storage.optuna.engine.begin(), closing(sqlite3.connect(path, timeout=0)) as other, refused:
        other.execute("BEGIN IMMEDIATE")
    with closing(sqlite3.connect(path, timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")


@pytest.mark.parametrize("_", range(3))
def test_a_new_database_may_be_opened_by_several_at_once(path: Path, _: int) -> None:
    start = threading.Barrier(6)

    def open_it(_: int) -> None:
        start.wait()
        open_storage(f"sqlite:///{path}").close()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(open_it, range(6))) == [None] * 6


OTHER_PROCESS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT count(*) FROM trial_user_attributes").fetchone()[0])
connection.close()
"""


def attributes_seen_by_another_process(path: Path) -> int:
    command = [sys.executable, "-c", OTHER_PROCESS, str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_opening_again_leaves_the_first_connection_its_locks(storage: Storage, trial_id: int, path: Path) -> None:
    """Without its locks, the other process takes itself for the last one and deletes the log that is written to."""
    open_storage(f"sqlite:///{path}").close()
    assert attributes_seen_by_another_process(path) == 0
    storage.optuna.set_trial_user_attr(trial_id, "a", 1)
    assert attributes_seen_by_another_process(path) == 1


# Explanations


def test_a_missing_table_is_explained_in_one_sentence(storage: Storage, trial_id: int, path: Path) -> None:
    sql(path, "DROP TABLE trial_user_attributes")
    with pytest.raises(StorageInternalError) as refused:
        storage.optuna.set_trial_user_attr(trial_id, "a", 1)
    message = str(explain(refused.value))
    assert message == "storage: the database refused: no such table: trial_user_attributes."


@pytest.mark.parametrize(
    "error",
    [ValueError("bad"), RuntimeError("CUDA out of memory"), AssertionError("shape"), OSError(28, "No space left"),
     RuntimeError("please upgrade optuna"), StorageError("known already.")],
)  # fmt: skip
def test_what_is_no_database_error_is_not_explained(error: Exception) -> None:
    assert explain(error) is None


def fill(storage: Storage, study_id: int) -> None:
    for number in range(100):
        trial_id = storage.optuna.create_new_trial(study_id)
        storage.optuna.set_trial_user_attr(trial_id, "curve", f"{number}" * 20_000)


def test_a_full_disk_is_explained_in_one_sentence(small_disk: Path) -> None:
    with closing(open_storage(f"sqlite:///{small_disk}/studies.db")) as opened:
        study_id = opened.optuna.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s")
        with pytest.raises(StorageInternalError) as refused:
            fill(opened, study_id)
        message = str(explain(refused.value))
    assert "full" in message
    assert_one_sentence(message)


def test_a_disk_without_room_for_the_tables_is_explained_in_one_sentence(small_disk: Path) -> None:
    (small_disk / "fill").write_bytes(bytes(590 * 1024))
    message = refusal(f"sqlite:///{small_disk}/studies.db")
    assert "full" in message
    assert_one_sentence(message)


# Owners


@pytest.fixture
def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def owner(**changes: Any) -> Owner:
    here = Owner.current()
    return Owner(**{"host": here.host, "pid": here.pid, "started": here.started, "token": here.token} | changes)


def test_this_process_is_not_dead() -> None:
    assert not Owner.current().is_dead()


def test_two_owners_of_one_process_differ() -> None:
    assert Owner.current() != Owner.current()


def test_an_ended_process_is_dead(ended_pid: int) -> None:
    assert owner(pid=ended_pid).is_dead()


def test_a_process_of_another_start_time_is_dead() -> None:
    assert owner(started="1").is_dead()


def test_nothing_is_known_of_a_process_of_another_host(ended_pid: int) -> None:
    assert not owner(host="elsewhere", pid=ended_pid).is_dead()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="zombies are told by /proc")
def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    theirs = owner(pid=process.pid, started=owner_module.process_started(process.pid))
    assert not theirs.is_dead()
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet waited for
    assert theirs.is_dead()
    process.wait()


def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where a process's start time is not to be read."""
    monkeypatch.setattr(owner_module, "Path", lambda path: Path("/nowhere") / path.lstrip("/"))


def test_without_start_times_a_running_process_is_not_dead(monkeypatch: pytest.MonkeyPatch, ended_pid: int) -> None:
    without_proc(monkeypatch)
    here = Owner.current()
    assert here.started == ""
    assert here.host == socket.gethostname()
    assert not here.is_dead()
    assert owner(pid=ended_pid).is_dead()


# The lock


def test_the_lock_holds_others_off_and_says_so(path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    refused = pytest.raises(StorageError, match=r"studies\.db\.lock: another process has held the study database")
    with closing(open_storage(f"sqlite:///{path}")) as other, storage.lock(), refused:
        other.lock().__enter__()
    with closing(open_storage(f"sqlite:///{path}")) as other, other.lock():
        pass


def test_an_error_under_the_lock_is_passed_on_and_frees_it(storage: Storage) -> None:
    with pytest.raises(PermissionError, match="of something else"), storage.lock():
        raise PermissionError("of something else")
    passed = threading.Event()

    def take() -> None:
        with storage.lock():
            passed.set()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join(5)
    assert passed.is_set()


def test_a_lock_that_cannot_be_made_is_a_storage_error(path: Path, storage: Storage) -> None:
    path.with_name("studies.db.lock").unlink(missing_ok=True)
    path.with_name("studies.db.lock").mkdir()
    with pytest.raises(StorageError, match="the study database cannot be locked"):
        storage.lock().__enter__()


OLD = "2020-01-01 00:00:00.000000"


def age(path: Path) -> None:
    sql(path, f"UPDATE trial_heartbeats SET heartbeat = '{OLD}'")


# Orphans


def study_of(storage: Storage) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=storage.optuna)


def orphans_with_owner(storage: Storage, trial_id: int, holder: Owner | None) -> list[int]:
    storage.optuna.set_trial_user_attr(trial_id, "owner", asdict(holder) if holder else None)
    return list(storage.orphans(study_of(storage)))


def test_a_running_trial_of_nobody_is_no_orphan_but_another_programs(storage: Storage, trial_id: int) -> None:
    assert list(storage.orphans(study_of(storage))) == []
    assert orphans_with_owner(storage, trial_id, None) == []


def test_a_running_trial_is_an_orphan_when_its_process_is_gone(storage: Storage, trial_id: int, ended_pid: int) -> None:
    assert orphans_with_owner(storage, trial_id, owner()) == []
    assert orphans_with_owner(storage, trial_id, owner(pid=ended_pid)) == [trial_id]


def test_a_trial_of_another_host_is_an_orphan_when_its_lease_is_over(
    storage: Storage, trial_id: int, path: Path
) -> None:
    storage.beat(trial_id)
    assert orphans_with_owner(storage, trial_id, owner(host="elsewhere")) == []
    sql(path, "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-119 seconds') || '.000000'")
    assert orphans_with_owner(storage, trial_id, owner(host="elsewhere")) == []
    age(path)
    assert orphans_with_owner(storage, trial_id, owner(host="elsewhere")) == [trial_id]


def test_a_trial_that_waits_or_is_finished_is_no_orphan_and_has_no_owner(storage: Storage, trial_id: int) -> None:
    assert orphans_with_owner(storage, trial_id, owner(token="mine")) == []
    assert storage.owner(trial_id) == "mine"
    storage.give_back(trial_id)
    assert list(storage.orphans(study_of(storage))) == []
    assert storage.owner(trial_id) is None
    storage.optuna.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5])
    assert storage.owner(trial_id) is None
