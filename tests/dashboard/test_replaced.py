"""A database that is gone or replaced while the dashboard is open: said, never the old one shown for the new one."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest

from cifar_sweep.dashboard.access import WsgiApp
from cifar_sweep.dashboard.server import application
from cifar_sweep.study.claim import Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import open_storage
from cifar_sweep.sweep.parsing import parse
from tests.dashboard.test_access import ask
from tests.dashboard.test_dashboard_page import served
from tests.servers import PostgresServer


def fill(url: str, name: str, *, trials: int, value: float) -> None:
    """A database with one study, whose complete trials all have this value."""
    with closing(open_storage(url)) as storage:
        space = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}}
        sweep = parse({"name": "s", "trials": trials, "fixed": {"epochs": 1}, "space": space}, where="test")
        data = {"name": "pictures", "fingerprint": "abc", "classes": 10}
        study = open_or_resume(storage, name, sweep, data=data)
        for _ in range(trials):
            [claim] = study.claim(Worker(Owner.current(), "cpu", 1, "fp32"))
            study.complete(claim, value)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    fill(f"sqlite:///{tmp_path}/studies.db", "old", trials=3, value=0.25)
    return tmp_path / "studies.db"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    fill(f"sqlite:///{tmp_path}/new.db", "new", trials=5, value=0.75)
    return tmp_path / "new.db"


@pytest.fixture
def app(old: Path) -> Iterator[WsgiApp]:
    with closing(open_storage(f"sqlite:///{old}")) as storage:
        yield application(storage)


def opening(app: WsgiApp) -> str:
    """What a page of this moment says with each request."""
    [found] = re.findall(rb"page\.js\?(\w+)", ask(app, path="/dashboard/studies/1")[2])
    return str(found.decode())


def wait_for_rest(file: Path) -> None:
    """Until nobody has the file open: a log beside it would be taken for the next file's."""
    until = time.monotonic() + 20
    while (log := file.with_name(f"{file.name}-wal")).exists():
        assert time.monotonic() < until, log
        time.sleep(0.02)


def seen(app: WsgiApp, after: int = 0, **environ: str) -> tuple[int, Any]:
    """The status, and the name and the trials' values of study 1; or the reason why there are none."""
    status, _, content = ask(app, path="/api/studies/1", QUERY_STRING=f"after={after}", **environ)
    found = json.loads(content)
    if status != 200:
        return status, found["reason"]
    return status, (found["name"], [trial["values"] for trial in found["trials"]])


OLD, NEW = (200, ("old", [[0.25]] * 3)), (200, ("new", [[0.75]] * 5))


def test_a_file_that_is_gone_is_said_to_be_and_found_again(app: WsgiApp, old: Path) -> None:
    assert seen(app) == OLD
    before = opening(app)
    wait_for_rest(old)
    away = old.rename(old.with_name("away.db"))
    for path in ("/api/studies", "/api/studies/1", "/csv/1", "/dashboard/", "/artifacts/1/1/" + "0" * 32):
        status, headers, content = ask(app, path=path)
        assert status == 503
        assert f"{old}: there is no study database here yet" in content.decode()
        assert headers["Refresh"] == "5"
    assert not list(old.parent.glob("studies.db*[!k]")), "nothing is made in its place"
    away.rename(old)
    assert seen(app, HTTP_X_OPENING=before) == OLD


def by_another_file(old: Path, new: Path) -> None:
    new.replace(old)


def by_a_copy(old: Path, new: Path) -> None:
    old.unlink()
    shutil.copyfile(new, old)


def in_place(old: Path, new: Path) -> None:
    shutil.copyfile(new, old)


@pytest.mark.parametrize("replace", [by_another_file, by_a_copy, in_place])
def test_another_file_is_never_shown_as_the_old_one(
    app: WsgiApp, old: Path, new: Path, replace: Callable[[Path, Path], None]
) -> None:
    assert seen(app) == OLD
    page = opening(app)
    wait_for_rest(old)
    replace(old, new)
    # The page has three trials and would put the rest behind them.
    status, reason = seen(app, 3, HTTP_X_OPENING=page)
    assert (status, reason[:43]) == (410, "another database has taken this one's place")
    assert seen(app) == NEW
    assert seen(app, 3, HTTP_X_OPENING=page)[0] == 410, "for good"
    assert seen(app, HTTP_X_OPENING=opening(app)) == NEW
    [study] = json.loads(ask(app)[2])["study_summaries"]
    assert study["study_name"] == "new"


def test_a_study_that_is_made_anew_under_its_old_key_is_another_one(app: WsgiApp, old: Path) -> None:
    assert seen(app) == OLD
    page = opening(app)
    with closing(open_storage(f"sqlite:///{old}")) as storage:
        optuna.delete_study(study_name="old", storage=storage.optuna)
    fill(f"sqlite:///{old}", "new", trials=5, value=0.75)
    assert seen(app, 3, HTTP_X_OPENING=page)[0] == 410
    assert seen(app) == NEW


def test_what_is_no_study_database_is_said_to_be_none(app: WsgiApp, old: Path) -> None:
    old.write_bytes(b"no database" * 100)
    assert seen(app) == (503, f"{old}: not an SQLite database; the study database is a file that cifar-sweep made.")


@pytest.mark.slow
def test_a_servers_database_that_is_dropped_and_made_anew(own_postgres: PostgresServer) -> None:
    url = own_postgres.url.rpartition("/")[0] + "/sweeps"

    def do(*statements: str) -> None:
        with psycopg.connect(own_postgres.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[call-overload]

    do("CREATE DATABASE sweeps")
    fill(url, "old", trials=3, value=0.25)
    with closing(open_storage(url)) as storage:
        app = application(storage)
        assert seen(app) == OLD
        page = opening(app)
        do("DROP DATABASE sweeps")  # which waits for others to leave, for five seconds
        for _ in range(2):
            status, reason = seen(app)
            assert (status, 'database "sweeps" does not exist' in reason) == (503, True)
        do("CREATE DATABASE sweeps")
        status, reason = seen(app)
        assert (status, "there is no study database here yet" in reason) == (503, True)
        fill(url, "new", trials=5, value=0.75)
        assert seen(app, 3, HTTP_X_OPENING=page)[0] == 410
        assert seen(app) == NEW
    do("DROP DATABASE sweeps WITH (FORCE)")


def test_an_open_page_shows_the_new_database_by_itself(browser: Any, old: Path, new: Path) -> None:
    page = browser.new_page()
    with served(f"sqlite:///{old}") as address:
        page.goto(f"{address}/dashboard/studies/1/trials")
        page.get_by_text("3 Trials").wait_for()
        away = old.rename(old.with_name("away.db"))
        page.goto(f"{address}/dashboard/studies/1/trials")
        page.get_by_text("there is no study database here yet").wait_for()
        away.rename(old)
        page.get_by_text("3 Trials").wait_for()  # it asks again by itself
        new.replace(old)
        page.get_by_text("5 Trials").wait_for()
        assert page.get_by_text("0.25").count() == 0
    page.close()
