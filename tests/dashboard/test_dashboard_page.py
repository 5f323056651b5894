"""The dashboard in a real browser: its pages show our notes, figures and files, and no page may write unasked."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_sweep.cli import main
from tests.conftest import OWN_VARIABLES, TINY_SWEEP

RUN = ("run", "tiny.toml", "--data", "synthetic:500", "--workers", 1, "--threads", 1, "--trials", 2)
HOSTILE = "<img src=x onerror=alert(1)> ![p](http://evil.example/p.png) [l](javascript:alert(1)) **b**"


def swept(folder: Path, cache: Path, *options: str) -> str:
    """Trains two trials in `folder`; returns the address of their database."""
    (folder / "tiny.toml").write_text(f"{TINY_SWEEP}\n[[enqueue]]\nlabel = '{HOSTILE}'\nlearning_rate = 1e-3\n")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:  # a module's fixtures come before each test's clean environment
        for name in OWN_VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("CIFAR_SWEEP_CACHE", str(cache))
        patch.setenv("CIFAR_SWEEP_GROUP", "1")
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in (*RUN, *options)])
    torch.set_num_threads(threads)
    assert not ended.value.code
    return f"sqlite:///{folder}/studies.db"


@contextmanager
def served(storage: str, *options: str) -> Iterator[str]:
    """A dashboard, and where it is."""
    command = [sys.executable, "-m", "cifar_sweep", "dashboard", "--port", "0", "--storage", storage, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found
        yield found[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the study of all tests that only read is."""
    return tmp_path_factory.mktemp("swept")


@pytest.fixture(scope="module")
def address(browser: Any, folder: Path, session_cache: Path) -> Iterator[str]:
    """Where a dashboard shows that study, for reading only."""
    with served(swept(folder, session_cache)) as found:
        yield found


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty page that must not meet an error, nor a policy that forbids what it does."""
    context = browser.new_context(viewport={"width": 1400, "height": 1400})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and problems.append(message.text))
    yield opened
    context.close()
    assert problems == []


def test_a_study_with_its_trials_and_our_figures(address: str, page: Any) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{address}/dashboard/studies/1")
    page.get_by_text("Best Trial (number=").wait_for()
    for name in ("seconds-by-trial", "learning-rate-by-batch", "hand-beside-search"):
        page.locator(f'[id="user-defined-plot:{name}"] .main-svg').first.wait_for()
    bars = page.locator('[id="user-defined-plot:seconds-by-trial"] .points .point')
    assert bars.count() == 2, "a bar for each trial"
    words = page.locator('[id="user-defined-plot:hand-beside-search"]').inner_text()
    assert "claimed: other networks" in words
    assert "not measured here" in words
    assert page.get_by_text("synthetic images (500 + 100)").count() > 0
    details = [each for each in requests if each.endswith("/api/studies/1?after=0")]
    assert len(details) == 1, "what was fetched ahead is what the page asks for"
    assert all(each.startswith((address, "data:", "blob:")) for each in requests)
    page.goto(f"{address}/dashboard/studies/1/trials")
    page.get_by_text("2 Trials").wait_for()


def test_the_notes_on_a_study_and_on_a_trial(address: str, page: Any) -> None:
    page.goto(f"{address}/dashboard/studies/1/note")
    page.get_by_role("heading", name="What the reports claim").wait_for()
    assert page.get_by_text("as students' reports state them").count() == 1
    assert page.get_by_role("cell", name="2 of 2 done: 2 complete", exact=False).count() == 1
    page.goto(f"{address}/dashboard/studies/1/trials?numbers=0")
    page.get_by_text("validation accuracy in the best of 3 epochs").wait_for()
    assert page.get_by_role("cell", name="first").count() == 1
    assert page.get_by_role("cell", name=HOSTILE).count() == 1, "a user's words are shown as they are"
    assert page.locator("img, a[href^=javascript]").count() == 0
    assert page.locator("td b, td strong", has_text=re.compile("^b$")).count() == 0


def test_weights_are_downloaded(address: str, page: Any, folder: Path) -> None:
    page.goto(f"{address}/dashboard/studies/1/trials?numbers=1")
    with page.expect_download() as waited:
        page.get_by_label("download artifact").click()
    [stored] = (folder / "artifacts").glob("*/trial-0001/weights-*.safetensors")
    assert waited.value.suggested_filename == "tiny-1-weights.safetensors"
    assert Path(waited.value.path()).read_bytes() == stored.read_bytes()


WRITE = """async ([method, address, kind, mode]) => {
    const options = {method, mode, headers: kind ? {"Content-Type": kind} : {}};
    if (method !== "DELETE") options.body = '{"study_name": "unasked", "directions": ["maximize"]}';
    try { return (await fetch(address, options)).status } catch (error) { return 0 }
}"""


def test_a_page_of_its_own_does_not_write_unless_that_is_allowed(address: str, browser: Any) -> None:
    page = browser.new_page()  # not the fixture's: what is refused is an error there
    page.goto(f"{address}/dashboard")
    assert page.evaluate(WRITE, ["DELETE", f"{address}/api/studies/1", "", "cors"]) == 403
    assert page.evaluate(WRITE, ["POST", f"{address}/api/studies", "application/json", "cors"]) == 403
    page.reload()
    page.get_by_text("1. tiny").wait_for()
    assert page.get_by_text("unasked").count() == 0
    page.close()


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """A page of another program on this machine: another origin."""

    class Blank(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title>")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Blank)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_where_writes_are_allowed_they_are_its_own_pages_alone(
    browser: Any, tmp_path: Path, session_cache: Path, elsewhere: str
) -> None:
    with served(swept(tmp_path, session_cache), "--allow-write") as address:
        write_from_everywhere(browser.new_page(), address, elsewhere)


def write_from_everywhere(page: Any, address: str, elsewhere: str) -> None:
    """Writes are tried from other origins first, then from the dashboard's own."""
    for origin in (elsewhere, elsewhere.replace("127.0.0.1", "localhost"), "about:blank"):
        page.goto(origin)
        # What a page may send to anywhere: no browser asks before.
        assert page.evaluate(WRITE, ["POST", f"{address}/api/studies", "", "no-cors"]) == 0
        assert page.evaluate(WRITE, ["POST", f"{address}/api/studies", "text/plain", "no-cors"]) == 0
        # What a browser asks for before.
        assert page.evaluate(WRITE, ["POST", f"{address}/api/studies", "application/json", "cors"]) == 0
        assert page.evaluate(WRITE, ["DELETE", f"{address}/api/studies/1", "", "cors"]) == 0
    page.goto(f"{address}/dashboard")
    page.get_by_text("1. tiny").wait_for()
    assert page.get_by_text("unasked").count() == 0
    assert page.evaluate(WRITE, ["POST", f"{address}/api/studies", "application/json", "cors"]) == 201
    page.reload()
    page.get_by_text("2. unasked").wait_for()
    assert page.evaluate(WRITE, ["DELETE", f"{address}/api/studies/1", "", "cors"]) == 204
    page.reload()
    page.get_by_text("2. unasked").wait_for()
    assert page.get_by_text("1. tiny").count() == 0
    page.close()
