"""The dashboard behind nginx, set up as docs/docker.md says: with a name of its own, and below a path of another."""

import http.client
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from tests.dashboard.test_dashboard_page import page, served, swept

__all__ = ["page"]
TOKEN, STUDY = "open-sesame", "e1_日本_größe"
GUIDE = Path(__file__).parent.parent.parent / "docs" / "docker.md"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]


@contextmanager
def nginx(folder: Path, dashboard: str) -> Iterator[str]:
    """The two blocks of the guide, before this dashboard, in one server; its address."""
    blocks = re.findall(r"```nginx\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    locations = re.findall(r"location .*", "\n".join(blocks))
    assert len(locations) == 2
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    ours = "\n".join(locations).replace("http://127.0.0.1:8080", dashboard)
    (folder / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {folder}/pid; error_log {folder}/log; events {{}}
        http {{ access_log off; {places} server {{ listen 127.0.0.1:{port}; {ours} }} }}
    """)
    process = subprocess.Popen([str(NGINX), "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")])
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("swept")


@pytest.fixture(scope="module")
def proxy(folder: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of nginx before a dashboard that asks for a token and may be written to."""
    storage = swept(folder, session_cache, "--study", STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIFAR_SWEEP_TOKEN", TOKEN)
        with served(storage, "--allow-write") as address, nginx(tmp_path_factory.mktemp("nginx"), address) as found:
            yield found


def ask(
    proxy: str, path: str, method: str = "GET", body: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(proxy).netloc, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


@pytest.mark.parametrize("below", ["", "/sweeps"])
def test_the_token_is_asked_for_and_kept(proxy: str, below: str) -> None:
    assert ask(proxy, f"{below}/api/studies")[0] == 403
    assert ask(proxy, f"{below}/dashboard/")[0] == 403
    for path in ("/", "/dashboard", "/dashboard/", "/dashboard/studies/1"):
        status, headers, _ = ask(proxy, f"{below}{path}?token={TOKEN}")
        assert status == 303
        assert not headers["Location"].startswith(("/", "http")), "nobody is sent out of the path"
        cookie = headers["Set-Cookie"].partition(";")[0]
        assert ask(proxy, f"{below}{path}", Cookie=cookie)[0] in (200, 302)
    assert ask(proxy, f"{below}/", Cookie=cookie)[1]["Location"] == "dashboard/"


@pytest.mark.parametrize("below", ["", "/sweeps"])
def test_writes_come_from_its_own_pages(proxy: str, below: str) -> None:
    known = {"Authorization": f"Bearer {TOKEN}", "Sec_Fetch_Site": "same-origin", "Content_Type": "application/json"}
    note, place = '{"version": 1, "body": "mine"}', f"{below}/api/studies/1/note"
    assert ask(proxy, place, "PUT", note, **known, Origin="http://evil.example")[0] == 403
    assert ask(proxy, place, "PUT", note, **known, Origin=proxy)[0] in (204, 409), "new, or written before"


def test_its_pages_and_downloads(proxy: str, page: Any, folder: Path) -> None:
    below = "/sweeps"
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{proxy}{below}/dashboard/?token={TOKEN}")
    page.get_by_text(f"1. {STUDY}").click()
    page.get_by_text("Best Trial (number=").wait_for()
    assert urlsplit(page.url).path == f"{below}/dashboard/studies/1"
    page.goto(f"{proxy}{below}/dashboard/studies/1/smartSelection")
    with page.expect_download() as waited:
        page.get_by_text("Download CSV File").click()
    assert waited.value.suggested_filename == f"{STUDY}.csv"
    assert Path(waited.value.path()).read_text(encoding="utf-8").startswith("Number,State,")
    page.goto(f"{proxy}{below}/dashboard/studies/1/trials?numbers=1")
    with page.expect_download() as waited:
        page.get_by_label("download artifact").click()
    assert waited.value.suggested_filename == f"{STUDY}-1-weights.safetensors"
    [stored] = (folder / "artifacts").glob("*/trial-0001/weights-*.safetensors")
    assert Path(waited.value.path()).read_bytes() == stored.read_bytes()
    assert all(each.startswith((f"{proxy}{below}/", "data:", "blob:")) for each in asked), "nothing outside of the path"
    status, headers, _ = ask(proxy, f"{below}/csv/1", Authorization=f"Bearer {TOKEN}")
    assert (status, headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    assert headers["Content-Disposition"].endswith(f"; filename*=UTF-8''{quote(STUDY)}.csv")
