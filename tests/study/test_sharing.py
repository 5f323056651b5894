"""Projects that are moved, copied, shared and only read: who may do what, and what is touched (docs/sharing.md)."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.cli import main
from cifar_sweep.dashboard.server import application
from cifar_sweep.errors import StorageError
from cifar_sweep.study.copying import copy_studies
from cifar_sweep.study.opening import load
from cifar_sweep.study.storage import Storage, open_existing, open_storage
from tests.conftest import CAREFUL, TINY_SWEEP, Finished
from tests.dashboard.test_access import ask
from tests.servers import PostgresServer

ADDRESS = "sqlite:///studies.db"
RUN = ("run", "tiny.toml", "--data", "synthetic:500", "--epochs", 1, "--set", "keep_weights=1")


def told(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Path:
    """A project folder with a study of two trials, one of which has kept its weights."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(TINY_SWEEP)
    in_folder(folder, session_cache, *RUN, "--trials", 2)
    return folder


@pytest.fixture(scope="module")
def compared(finished: Path, tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Path:
    """The same project, with a run of the reports besides."""
    folder = tmp_path_factory.mktemp("compared") / "project"
    shutil.copytree(finished, folder)
    in_folder(folder, session_cache, "run", "reports", "--only", "B-009", "--data", "synthetic:500", "--epochs", 1)
    return folder


def in_folder(folder: Path, cache: Path, *command: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in {"CACHE": str(cache), "WORKERS": "1", "GROUP": "1"}.items():
            patch.setenv(f"CIFAR_SWEEP_{name}", value)
        assert told(*command) == 0


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but for what locks and SQLite's log leave."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith((".lock", "-wal", "-shm"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def weights_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("weights-*.safetensors"))


@pytest.fixture
def original(finished: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The project, with its artifacts beside the database, or elsewhere by a path or by a link."""
    folder, where = tmp_path / "original", getattr(request, "param", "beside")
    shutil.copytree(finished, folder)
    if where != "beside":
        shutil.move(folder / "artifacts", tmp_path / "large-disk")
    if where == "link":
        (folder / "artifacts").symlink_to(tmp_path / "large-disk")
    with sqlite3.connect(folder / "studies.db") as connection:
        change = "UPDATE study_user_attributes SET value_json = ? WHERE key = ?"
        if where == "path":
            connection.execute(change, (json.dumps(str(tmp_path / "large-disk")), "artifacts"))
        at, found = f"{os.uname().nodename}:{folder}/studies.db", (folder / "studies.db").stat()
        connection.execute(change, (json.dumps([at, f"{found.st_dev}:{found.st_ino}"]), "home"))
    connection.close()
    return folder


PLACES = pytest.mark.parametrize("original", ["beside", "path", "link"], indirect=True)


def more(cli: Callable[..., Finished], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train so many more trials in this folder that others are the best, and only one keeps its weights."""
    monkeypatch.chdir(folder)
    ended = cli(*RUN, "--trials", 4)
    assert ended.exit_code == 0, ended.err


def delete(cli: Callable[..., Finished], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    ended = cli("delete", "tiny", "--yes")
    assert ended.exit_code == 0, ended.err


@PLACES
@pytest.mark.parametrize("deeds", [(more,), (delete,), (more, delete)], ids=["run", "delete", "run-delete"])
def test_a_copy_touches_nothing_of_its_original(
    original: Path, deeds: tuple[Callable[..., None], ...], cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(original, tmp_path / "copy", symlinks=True)
    before, elsewhere = tree(original), tree(tmp_path / "large-disk")
    assert weights_in(tmp_path / "large-disk") or weights_in(original)
    for deed in deeds:
        deed(cli, tmp_path / "copy", monkeypatch)
    assert tree(original) == before
    assert elsewhere.items() <= tree(tmp_path / "large-disk").items()
    if delete in deeds:
        assert tree(tmp_path / "large-disk") == elsewhere
        assert weights_in(tmp_path / "copy") == []


@PLACES
def test_a_moved_project_goes_on_and_deletes_its_own_files(
    original: Path, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moved").mkdir()
    moved = original.rename(tmp_path / "moved" / "project")
    more(cli, moved, monkeypatch)
    with closing(open_existing(ADDRESS)) as storage:
        study = load(storage, "tiny")
        [best] = study.kept()
        assert best.weights
        assert open_artifacts(study.artifacts).get(best.weights)
    assert len(weights_in(tmp_path)) == 1
    delete(cli, moved, monkeypatch)
    assert weights_in(tmp_path) == []
    assert not (tmp_path / "original").exists()


def test_an_export_of_a_moved_project_finds_its_weights_and_its_images(
    original: Path, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = original.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert cli("export", "tiny", "--storage", f"sqlite:///{moved}/studies.db").exit_code == 0
    assert not (tmp_path / "original").exists()


def test_what_others_keep_in_the_folder_stays(original: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    [weights] = weights_in(original)
    note = weights.with_name("notes.txt")
    note.write_text("mine")
    more(cli, original, monkeypatch)
    delete(cli, original, monkeypatch)
    assert note.read_text() == "mine"
    assert weights_in(original) == []


def test_images_below_the_folder_are_found_after_a_move(tmp_path: Path) -> None:
    with closing(open_storage(f"sqlite:///{tmp_path}/studies.db")) as storage:
        assert storage.to_store(f"{tmp_path}/images/mine") == "./images/mine"
        assert storage.from_stored("./images/mine") == f"{tmp_path}/images/mine"
        for stays in ("synthetic:500", "auto", "/elsewhere/images", "s3://bucket/x", f"{tmp_path}-2/images"):
            assert storage.from_stored(storage.to_store(stays)) == storage.to_store(stays) == stays


def test_a_copy_by_command_leaves_the_files_of_its_original(
    original: Path, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    shutil.copy(original / "tiny.toml", ".")
    before = tree(original)
    assert cli("copy", f"sqlite:///{original}/studies.db", ADDRESS).exit_code == 0
    assert cli("export", "tiny").exit_code == 0, "its weights are read there"
    more(cli, tmp_path / "copy", monkeypatch)
    delete(cli, tmp_path / "copy", monkeypatch)
    assert tree(original) == before


# Complete without the log


def test_a_file_is_complete_when_a_command_has_ended_while_another_has_it_open(original: Path, tmp_path: Path) -> None:
    address = f"sqlite:///{original}/studies.db"
    with closing(open_existing(address)) as dashboard:
        assert len(dashboard.studies()) == 1
        with closing(open_existing(address)) as command:
            command.optuna.create_new_study([], "later")
        shutil.copy(original / "studies.db", tmp_path / "alone.db")
    with closing(open_existing(f"sqlite:///{tmp_path}/alone.db")) as alone:
        assert [name for name, _ in alone.studies()] == ["tiny", "later"]


def test_a_file_that_cannot_be_made_complete_is_named(original: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(sqlite3.connect(original / "studies.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM trials").fetchone()
        with closing(open_existing(f"sqlite:///{original}/studies.db")) as command:
            command.optuna.create_new_study([], "later")
    [line] = caplog.messages
    assert line.startswith(f"another program reads {original}/studies.db: a part of it stays in the file -wal")


# A drive on which SQLite does not work


@pytest.mark.slow
def test_a_drive_without_shared_memory_is_named_and_nothing_is_left(
    tmp_path: Path, cli: Callable[..., Finished]
) -> None:
    real, net = tmp_path / "real", tmp_path / "net"
    real.mkdir()
    net.mkdir()
    if not shutil.which("bindfs") or subprocess.run(["bindfs", "-o", "direct_io", real, net], check=False).returncode:
        pytest.skip("bindfs is not installed, or may not mount here")
    try:
        address = f"sqlite:///{net}/studies.db"
        with pytest.raises(StorageError, match=r"SQLite does not work here \(.*a network drive\?\); name a file on"):
            open_storage(address)
        assert {path.name for path in real.iterdir()} <= {"studies.db.lock"}
        assert "FAULT" in cli("doctor", "--storage", address, "--data", "synthetic:500").out
        assert {path.name for path in real.iterdir()} <= {"studies.db.lock"}
        open_storage(f"sqlite:///{real}/studies.db").close()
        with pytest.raises(StorageError, match="a network drive"):
            open_existing(address)
    finally:
        subprocess.run(["umount", str(net)], check=True)


# A group


def test_files_have_the_rights_that_the_user_gives_a_group(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with closing(open_storage(f"sqlite:///{tmp_path}/studies.db")) as storage:
            storage.optuna.create_new_study([], "s")
            with storage.lock():
                modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        open_artifacts(str(tmp_path / "artifacts")).put("a/b", b"c")
        modes |= {path.name: path.stat().st_mode & 0o666 for path in (tmp_path / "artifacts").rglob("*")}
    finally:
        os.umask(before)
    assert modes.pop("a") == 0o664
    assert modes == dict.fromkeys(["studies.db", "studies.db-wal", "studies.db-shm", "studies.db.lock", "b"], 0o664)


# A reader

READING: dict[str, tuple[object, ...]] = {
    "status": ("status",),
    "report": ("report", "tiny"),
    "plot": ("plot", "tiny"),
    "compare": ("compare",),
    "export": ("export", "tiny"),
    "copy": ("copy", "{storage}", "sqlite:///mine.db"),
}
WRITING: dict[str, tuple[object, ...]] = {
    "pause": ("pause", "tiny"),
    "delete": ("delete", "tiny", "--yes"),
    "run": ("run", "tiny.toml", "--data", "synthetic:500"),
    "worker": ("worker", "--until-idle"),
    "doctor": ("doctor", "--data", "synthetic:500"),  # it is well with what a run accepts, and with nothing else
}
READER = """
import contextlib, io, json, sys
from wsgiref.util import setup_testing_defaults
from cifar_sweep.cli import main
from cifar_sweep.dashboard.server import application
from cifar_sweep.study.storage import open_existing
asked, storage = json.loads(sys.argv[1]), sys.argv[2]
found = {}
for name, arguments in asked.items():
    arguments = [each.replace("{storage}", storage) for each in arguments]
    rest = [] if name == "copy" else ["--storage", storage]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments + rest)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    found[name] = [code, out.getvalue() + err.getvalue()]
environ = {"PATH_INFO": "/api/studies", "HTTP_HOST": "127.0.0.1"}
setup_testing_defaults(environ)
answers = []
application(open_existing(storage))(environ, lambda status, headers, *_: answers.append(status))
found["dashboard"] = [0 if answers == ["200 OK"] else 1, str(answers)]
print(json.dumps(found))
"""


def read_only(folder: Path, desk: Path) -> dict[str, tuple[int, str]]:
    """What commands say in a process that may only read the folder, and writes at its own desk."""
    asked = json.dumps(READING | WRITING, default=str)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    as_reader = CAREFUL if os.geteuid() == 0 else []
    desk.mkdir()
    shutil.copy(folder / "tiny.toml", desk)
    command = [*as_reader, sys.executable, "-c", READER, asked, f"sqlite:///{folder}/studies.db"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, cwd=desk, check=False)
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert ended.returncode == 0, ended.stderr
    return {name: tuple(said) for name, said in json.loads(ended.stdout.splitlines()[-1]).items()}


@pytest.fixture(scope="module", params=["at-rest", "at-work"])
def reader(
    request: pytest.FixtureRequest, compared: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str]]:
    """What a reader was told, of a study at rest, or of one whose owner is at work, by command."""
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("there is no setpriv, and root may write everywhere")
    folder = tmp_path_factory.mktemp("read") / "project"
    shutil.copytree(compared, folder)
    with pytest.MonkeyPatch.context() as patch, closing(open_storage(f"sqlite:///{folder}/studies.db")) as owner:
        patch.delenv("CIFAR_SWEEP_DATA", raising=False)
        for name, value in {"CACHE": str(session_cache), "ONNX": "0", "WORKERS": "1", "GROUP": "1"}.items():
            patch.setenv(f"CIFAR_SWEEP_{name}", value)
        if request.param == "at-work":
            owner.optuna.create_new_study([], "just-now")
        else:
            owner.close()
        before = tree(folder)
        said = read_only(folder, folder.parent / "desk")
        assert tree(folder) == before
    if request.param == "at-work":
        assert (folder.parent / "desk" / "mine.db").exists()
    return said


@pytest.mark.slow
@pytest.mark.parametrize("command", [*READING, "dashboard"])
def test_a_reader_may(reader: dict[str, tuple[int, str]], command: str) -> None:
    code, words = reader[command]
    assert code == 0, words


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITING)
def test_a_reader_may_not(reader: dict[str, tuple[int, str]], command: str) -> None:
    code, words = reader[command]
    assert code == 1
    assert "permission denied" in words or (command == "doctor" and "which may only be looked at here" in words)
    assert "Traceback" not in words


# A role of a server


@pytest.fixture(scope="module")
def selecting(compared: Path, module_postgres: PostgresServer) -> str:
    """The address of a role that may only look at a study."""
    with (
        closing(open_existing(f"sqlite:///{compared}/studies.db")) as source,
        closing(open_storage(module_postgres.url)) as target,
    ):
        copy_studies(source, target)
        with target.optuna.engine.begin() as connection:
            connection.exec_driver_sql("CREATE ROLE looking LOGIN")
            connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO looking")
    return module_postgres.url.replace("postgres@", "looking@")


@pytest.mark.slow
@pytest.mark.parametrize("command", READING)
def test_a_role_that_only_selects_may(
    selecting: str, command: str, compared: Path, cli: Callable[..., Finished], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = [str(each).replace("{storage}", selecting) for each in READING[command]]
    files = ("--artifacts", compared / "artifacts") if command in ("report", "compare", "export") else ()
    ended = cli(*arguments, *files, *(() if command == "copy" else ("--storage", selecting)))
    assert ended.exit_code == 0, ended.err
    assert ("its test accuracy is not noted" in caplog.text) == (command in ("report", "compare", "export"))


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITING)
def test_a_role_that_only_selects_may_not(
    selecting: str, command: str, compared: Path, cli: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(compared)
    ended = cli(*WRITING[command], "--storage", selecting)
    assert ended.exit_code == 1
    words = "which may only be looked at here" if command == "doctor" else "cannot be written here: permission denied."
    assert words in ended.out + ended.err


@pytest.mark.slow
def test_a_role_that_only_selects_has_the_dashboard(selecting: str) -> None:
    with closing(open_existing(selecting)) as storage:
        status, _, content = ask(application(storage))
        assert (status, len(json.loads(content)["study_summaries"])) == (200, 2)


def test_a_storage_to_read_alone_refuses_to_be_locked(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    storage: Storage
    with closing(open_existing(f"sqlite:///{original}/studies.db")) as storage:
        assert [name for name, _ in storage.studies()] == ["tiny"]
        with pytest.raises(StorageError, match="permission denied"), storage.lock():
            pass
