"""PostgreSQL as it is found: behind a pooler, with few connections, with others' tables, in a schema, for reading."""

import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from optuna.trial import TrialState

from cifar_sweep.database.outage import is_outage
from cifar_sweep.errors import StorageError, StorageMissingError
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage, open_existing, open_storage, open_waiting
from tests.conftest import Finished
from tests.servers import PgBouncer, PostgresServer

OPTION = "?options=-csearch_path="


def sql(server: PostgresServer, *statements: str) -> list[Any]:
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursors = [connection.execute(statement) for statement in statements]  # type: ignore[call-overload]
        return cursors[-1].fetchall() if cursors[-1].description else []


def tables_in(server: PostgresServer, schema: str) -> set[str]:
    return {row[0] for row in sql(server, f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'")}


@pytest.fixture
def server(own_postgres: PostgresServer) -> PostgresServer:
    """A server whose database is empty."""
    sql(own_postgres, "DROP SCHEMA IF EXISTS lab CASCADE", "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    sql(own_postgres, "DROP ROLE IF EXISTS one", "CREATE ROLE one LOGIN", "GRANT ALL ON SCHEMA public TO one")
    yield own_postgres
    sql(own_postgres, "DROP OWNED BY one", "DROP ROLE one")


# What is asked for is what is used


@pytest.mark.parametrize("path", ["lab", "lab,public", '"lab"', "LAB, public"])
def test_the_schema_that_is_asked_for_is_used_by_all_tables(
    server: PostgresServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql(server, "CREATE SCHEMA lab")
    open_storage(server.url).close()  # the same tables stand in the schema behind it
    before = tables_in(server, "public")
    monkeypatch.setenv("PGOPTIONS", f"-csearch_path={path.replace(' ', chr(92) + ' ')}")
    with closing(open_storage(server.url)) as opened:
        opened.optuna.create_new_study([], "s")
        assert [name for name, _ in opened.studies()] == ["s"]
    assert tables_in(server, "lab") == before
    assert sql(server, "SELECT count(*) FROM lab.studies") == [(1,)]
    assert sql(server, "SELECT count(*) FROM public.studies") == [(0,)]


def test_a_role_whose_schema_stands_before_another_uses_its_own(server: PostgresServer) -> None:
    sql(server, "CREATE SCHEMA lab AUTHORIZATION one", "ALTER ROLE one SET search_path = lab, public")
    open_storage(server.url).close()
    open_storage(server.url.replace("postgres@", "one@")).close()
    assert tables_in(server, "lab") == tables_in(server, "public")


def test_a_schema_that_is_not_there_is_no_other_one(server: PostgresServer) -> None:
    with pytest.raises(StorageError, match=r"there is no schema 'nowhere' for this role; `CREATE SCHEMA` makes it\.$"):
        open_storage(f"{server.url}{OPTION}nowhere,public")
    assert tables_in(server, "public") == set()


def test_a_role_that_may_make_no_tables_is_told_so_before_a_run(
    server: PostgresServer, cli: Callable[..., Finished]
) -> None:
    sql(server, "REVOKE ALL ON SCHEMA public FROM one, public", "GRANT USAGE ON SCHEMA public TO one")
    url = server.url.replace("postgres@", "one@")
    with pytest.raises(StorageError, match="no studies yet, and no right to make tables in schema public; their owner"):
        open_storage(url)
    doctor = cli("doctor", "--storage", url, "--data", "synthetic:100")
    assert (doctor.exit_code, "no right to make tables in schema public" in doctor.out) == (1, True)


# Tables of others


def test_who_only_looks_makes_no_table(server: PostgresServer, cli: Callable[..., Finished]) -> None:
    sql(server, "CREATE TABLE customers (name text)")
    with pytest.raises(StorageMissingError, match=r"no study database here yet beside tables of something else \(cust"):
        open_existing(server.url)
    assert cli("status", "--storage", server.url).exit_code == 1
    doctor = cli("doctor", "--storage", server.url, "--data", "synthetic:100")
    assert "no study database here yet beside tables of something else (customers); the first run" in doctor.out
    assert tables_in(server, "public") == {"customers"}


def test_who_waits_for_studies_may_come_first(server: PostgresServer) -> None:
    open_waiting(server.url).close()
    open_existing(server.url).close()


def test_tables_of_others_are_left_alone_and_named(server: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    sql(server, "CREATE TABLE customers (name text)", "INSERT INTO customers VALUES ('Ann')")
    open_storage(server.url).close()
    assert "beside tables of something else (customers), which are left alone" in caplog.text
    assert sql(server, "SELECT * FROM customers") == [("Ann",)]


@pytest.mark.parametrize("table", ["trials", "alembic_version"])
def test_tables_of_others_with_the_names_of_ours_are_a_refusal(server: PostgresServer, table: str) -> None:
    sql(server, f"CREATE TABLE {table} (version_num text)")
    with pytest.raises(StorageError, match=rf"have the names of ours \({table}\); .* a schema of its own"):
        open_storage(server.url)
    assert tables_in(server, "public") == {table}


# One transaction


@pytest.fixture
def opened(server: PostgresServer) -> Iterator[Storage]:
    with closing(open_storage(server.url)) as storage:
        yield storage


def test_what_is_done_under_the_lock_is_undone_where_it_breaks_off(opened: Storage, server: PostgresServer) -> None:
    key = opened.optuna.create_new_study([], "s")
    trial_id = opened.optuna.create_new_trial(key)
    study = opened.load("s")

    def break_off() -> None:
        with opened.lock():
            opened.optuna.set_trial_state_values(trial_id, TrialState.FAIL)
            assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING]
    assert sql(server, "SELECT state FROM trials") == [("RUNNING",)]


def test_a_process_takes_one_connection(opened: Storage, server: PostgresServer) -> None:
    key = opened.optuna.create_new_study([], "s")
    with opened.lock():
        trial_id = opened.optuna.create_new_trial(key)
        opened.beat(trial_id)
        opened.load("s").get_trials()
        with opened.optuna.reading() as connection:
            assert connection is opened.optuna.transaction
        others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
        assert sql(server, f"SELECT count(*) FROM pg_stat_activity WHERE {others}") == [(1,)]


def test_a_heartbeat_has_its_own_moment_in_a_transaction(opened: Storage) -> None:
    trial_id = opened.optuna.create_new_trial(opened.optuna.create_new_study([], "s"))
    with opened.lock():
        transaction = opened.optuna.transaction
        assert transaction is not None
        transaction.exec_driver_sql("SELECT pg_sleep(0.2)")
        opened.beat(trial_id)
        [(age,)] = transaction.exec_driver_sql("SELECT extract(epoch FROM heartbeat - now()) FROM trial_heartbeats")
    assert 0.2 <= age < 5


def test_workers_in_other_time_zones_hear_each_other(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """libpq tells the server what time it is where the client is, and a heartbeat has no zone."""
    with ExitStack() as stack:
        opened = []
        for zone in ("Asia/Tokyo", "America/New_York"):
            monkeypatch.setenv("PGTZ", zone)
            opened.append(stack.enter_context(closing(open_storage(server.url))))
        trial_id = opened[0].optuna.create_new_trial(opened[0].optuna.create_new_study([], "s"))
        elsewhere = asdict(replace(Owner.current(), host="elsewhere"))
        opened[0].optuna.set_trial_user_attr(trial_id, "owner", elsewhere)
        for one, other in (opened, opened[::-1]):
            one.beat(trial_id)
            assert list(other.orphans(other.load("s"))) == []
            with other.lock():
                assert list(other.orphans(other.load("s"))) == []


def test_a_connection_that_the_server_ends_at_rest_costs_nothing(opened: Storage, server: PostgresServer) -> None:
    trial_id = opened.optuna.create_new_trial(opened.optuna.create_new_study([], "s"))
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user AND state = 'idle'"

    def lock() -> None:
        with opened.lock():
            pass

    for use in (lambda: opened.beat(trial_id), lambda: opened.is_halted("s"), lock):
        assert sql(server, ended)
        use()


@pytest.mark.slow
@pytest.mark.parametrize("step", ["create_new_trial", "get_study_user_attrs"])  # Optuna tries the first one five times
def test_a_connection_that_is_lost_under_the_lock_is_an_outage(
    opened: Storage, server: PostgresServer, step: str
) -> None:
    key = opened.optuna.create_new_study([], "s")

    def lose() -> None:
        with opened.lock():
            sql(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
            getattr(opened.optuna, step)(key)

    with pytest.raises(Exception) as lost:  # noqa: PT011 - whatever it is, it is to be told from a mistake
        lose()
    assert is_outage(lost.value)
    assert opened.optuna.create_new_trial(key) == 1


def test_an_address_is_printed_as_a_shell_takes_it(
    server: PostgresServer, cli: Callable[..., Finished], tiny_sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{server.url}?application_name=it%27s%20me&connect_timeout=5"
    submitted = cli("submit", tiny_sweep, "--data", "synthetic:500", "--storage", address)
    [line] = [line for line in submitted.out.splitlines() if line.startswith("next: ")]
    words = shlex.split(line)
    again = words[words.index("--storage") + 1]
    assert cli("status", "--storage", again).exit_code == 0
    monkeypatch.setenv("CIFAR_SWEEP_STORAGE", address)
    assert "--storage" not in cli("submit", tiny_sweep, "--data", "synthetic:500").out


# Sweeps: eight trials, two workers


def pooled(mode: str) -> Callable[[PostgresServer, ExitStack], str]:
    # As many connections as a session needs for each process; of transactions two will do for three processes.
    return lambda server, stack: stack.enter_context(PgBouncer(server, mode, size=3 if mode == "session" else 2)).url


def limited(server: PostgresServer, _: ExitStack) -> str:
    sql(server, "ALTER ROLE one CONNECTION LIMIT 4")
    return server.url.replace("postgres@", "one@")


def impatient(server: PostgresServer, _: ExitStack) -> str:
    sql(server, "ALTER ROLE one SET idle_session_timeout = '2s'")
    return server.url.replace("postgres@", "one@")


def in_a_schema(server: PostgresServer, _: ExitStack) -> str:
    sql(server, "CREATE SCHEMA lab")
    return f"{server.url}{OPTION}lab"


# A network that lets a connection rest for longer than that, once in each process.
RESTING = """
import time
from torch import nn

class Pause(nn.Module):
    steps = 0

    def forward(self, x):
        Pause.steps += 1
        time.sleep(2.3 * (Pause.steps == 9))
        return x

def build(shape):
    return nn.Sequential(Pause(), nn.Flatten(), nn.Linear(3072, shape.classes))
"""
WAYS = [pooled("session"), pooled("transaction"), limited, impatient, in_a_schema]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("way", WAYS, ids=["session", "transaction", "limited", "impatient", "schema"])
def test_eight_trials_by_two_workers(
    server: PostgresServer, way: Callable[..., str], tiny_sweep: Path, start: Callable[..., Any]
) -> None:
    if way in WAYS[:2] and not shutil.which("pgbouncer"):
        pytest.skip("pgbouncer is not installed")
    if way is impatient:
        Path("resting.py").write_text(RESTING)
        tiny_sweep.write_text(tiny_sweep.read_text().replace('"lenet"', '"resting:build"'))
    options = ("--trials", 8, "--workers", 2, "--threads", 1, "--data", "synthetic:1000")
    with ExitStack() as stack:
        url = way(server, stack)
        out, err = start("run", tiny_sweep, *options, "--storage", url).communicate(timeout=500)
    assert "8 of 8 trials finished: 8 complete, 0 pruned" in out
    assert len(err.splitlines()) <= (way is impatient), err
    log = (server.folder / "data" / "log").read_text()
    assert ("due to idle-session timeout" in log) or way is not impatient
    schema = "lab" if way is in_a_schema else "public"
    assert sql(server, f"SELECT state, count(*) FROM {schema}.trials GROUP BY 1") == [("COMPLETE", 8)]
    assert sql(server, f"SELECT count(*) FROM {schema}.trial_intermediate_values") == [(8 * 3,)]
    assert sql(server, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


@pytest.mark.slow
def test_more_workers_than_connections_are_answered_in_a_sentence(
    server: PostgresServer, tiny_sweep: Path, start: Callable[..., Any]
) -> None:
    sql(server, "ALTER ROLE one CONNECTION LIMIT 2")
    url = server.url.replace("postgres@", "one@")
    running = start("run", tiny_sweep, "--workers", 2, "--threads", 1, "--data", "synthetic:500", "--storage", url)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 1
    assert "too many connections for role" in err
    assert "each worker takes one connection, and the command another: fewer --workers, or a higher limit." in err


@pytest.mark.slow
def test_one_worker_takes_a_connection_and_the_command_another(
    server: PostgresServer, tiny_sweep: Path, start: Callable[..., Any]
) -> None:
    sql(server, "ALTER ROLE one CONNECTION LIMIT 2")
    url = server.url.replace("postgres@", "one@")
    for command in (("submit", tiny_sweep, "--data", "synthetic:500"), ("worker", "--until-idle", "--workers", 1)):
        running = start(*command, "--storage", url)
        _, err = running.communicate(timeout=300)
        assert (running.returncode, err) == (0, "")
