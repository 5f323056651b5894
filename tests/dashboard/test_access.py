"""Only requests that may pass do, and every answer carries headers that keep a browser from harm."""

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from cifar_sweep.dashboard.access import WsgiApp, guarded
from cifar_sweep.dashboard.notes import OWN_NOTE

TOKEN = "open-sesame"
OWN = {"HTTP_ORIGIN": "http://127.0.0.1:8080", "HTTP_SEC_FETCH_SITE": "same-origin"}


class Upstream:
    """Stands for optuna-dashboard: says OK, and remembers what it was asked."""

    def __init__(self, headers: dict[str, str] | None = None, content: bytes = b"{}") -> None:
        self.headers = headers or {"Content-Type": "application/json"}
        self.content = content
        self.asked: list[tuple[str, str, bytes]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], body))
        start_response("200 OK", list(self.headers.items()))
        return [self.content]


def ask(
    app: WsgiApp, method: str = "GET", path: str = "/api/studies", *, body: bytes = b"", **environ: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of an answer. `environ` is what the server would say of the request."""
    given = {"REQUEST_METHOD": method, "HTTP_HOST": "127.0.0.1:8080", "QUERY_STRING": "", "PATH_INFO": path}
    if body:
        given |= {"CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": "application/json"}
    started: list[Any] = []
    content = b"".join(
        app(given | {"wsgi.input": io.BytesIO(body)} | environ, lambda *answer: started.append(answer))  # type: ignore[arg-type]
    )
    status, headers = started[0]
    assert len({name.lower() for name, _ in headers}) == len(headers), "no header twice"
    return int(status[:3]), dict(headers), content


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "localhost:1", "[::1]:8080"])
def test_names_of_this_machine(host: str) -> None:
    assert ask(guarded(Upstream()), HTTP_HOST=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil:80", ""]
)
def test_other_names(host: str) -> None:
    upstream = Upstream()
    for allow_write in (False, True):
        assert ask(guarded(upstream, allow_write=allow_write), HTTP_HOST=host)[0] == 403
    assert upstream.asked == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"])
def test_reading_only(method: str) -> None:
    upstream = Upstream()
    status, _, content = ask(guarded(upstream), method, "/api/studies/1", **OWN)
    assert (status, upstream.asked) == (403, [])
    assert json.loads(content)["reason"] == "this dashboard is for reading only; --allow-write lets writes through"


def test_own_pages_may_write_where_that_is_allowed() -> None:
    upstream = Upstream()
    app = guarded(upstream, allow_write=True)
    assert ask(app, "DELETE", "/api/studies/1", **OWN)[0] == 200
    assert ask(app, "POST", "/api/trials/1/tell", body=b'{"state": "Fail"}', **OWN)[0] == 200
    assert ask(app, "POST", "/api/trials/1/tell", body=b"{}")[0] == 200, "a program that is no browser"
    assert [method for method, _, _ in upstream.asked] == ["DELETE", "POST", "POST"]
    for method in ("PATCH", "OPTIONS", "TRACE"):
        assert ask(app, method, "/api/studies/1", **OWN)[0] == 403


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_ORIGIN": "http://127.0.0.1:9999", "HTTP_SEC_FETCH_SITE": "same-site"},
        {"HTTP_ORIGIN": "http://127.0.0.1:9999"},
        {"HTTP_ORIGIN": "null"},
        {"HTTP_ORIGIN": ""},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_SEC_FETCH_SITE": "none"},
        {"HTTP_ORIGIN": OWN["HTTP_ORIGIN"], "HTTP_SEC_FETCH_SITE": "cross-site"},
        OWN | {"CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "2"},
        OWN | {"CONTENT_TYPE": "application/x-www-form-urlencoded", "CONTENT_LENGTH": "2"},
        OWN | {"CONTENT_LENGTH": "2"},
    ],
    ids=str,
)
@pytest.mark.parametrize("token", ["", TOKEN])
def test_other_pages_may_not_write(environ: dict[str, str], token: str) -> None:
    upstream = Upstream()
    app = guarded(upstream, token=token, allow_write=True)
    environ = environ | {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
    status, _, content = ask(app, "DELETE", "/api/studies/1", **environ)
    assert (status, upstream.asked) == (403, [])
    assert json.loads(content)["reason"] == "this write does not come from a page of this dashboard"


def test_writes_need_the_token_too() -> None:
    upstream = Upstream()
    app = guarded(upstream, token=TOKEN, allow_write=True)
    assert ask(app, "DELETE", "/api/studies/1", **OWN)[0] == 403
    assert ask(app, "DELETE", "/api/studies/1", HTTP_COOKIE="cifar_sweep_token=wrong", **OWN)[0] == 403
    assert upstream.asked == []
    assert ask(app, "DELETE", "/api/studies/1", HTTP_COOKIE=f"cifar_sweep_token={TOKEN}", **OWN)[0] == 200
    at_home = {"HTTP_HOST": "sweeps.example", "HTTP_ORIGIN": "https://sweeps.example"}
    assert ask(app, "DELETE", "/api/studies/1", HTTP_COOKIE=f"cifar_sweep_token={TOKEN}", **at_home)[0] == 200


@pytest.mark.parametrize("given", ["wrong", "open-sesam", "open-sesame1", "\udcff", "ä"])
def test_a_wrong_token(given: str) -> None:
    assert ask(guarded(Upstream(), token=TOKEN), HTTP_AUTHORIZATION=f"Bearer {given}")[0] == 403


def test_the_token_goes_from_the_address_into_a_cookie() -> None:
    app = guarded(Upstream(), token=TOKEN)
    status, headers, _ = ask(app, path="/dashboard/", QUERY_STRING=f"token={TOKEN}&x=1")
    assert (status, headers["Location"]) == (303, "./")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(headers["Set-Cookie"].split("; "))
    assert headers["Referrer-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/studies/1/rename"),
        ("POST", "/api/studies/1/rename/"),
        ("POST", "/api/artifacts/1"),
        ("POST", "/api/artifacts/1/2"),
        ("DELETE", "/api/artifacts/1/2/0af"),
        ("POST", "/incompatible-rdb-schema"),
    ],
)
def test_what_would_spoil_a_study(method: str, path: str) -> None:
    upstream = Upstream()
    assert ask(guarded(upstream, allow_write=True), method, path, body=b"{}", **OWN)[0] == 403
    assert upstream.asked == []


def test_headers_of_every_answer() -> None:
    theirs = {
        "Content-Type": "application/json",
        "Access-Control-Allow-Origin": "*",
        "Cache-Control": "public",
        "x-frame-options": "ALLOWALL",
        "Content-Security-Policy": "default-src *",
    }
    app = guarded(Upstream(theirs))
    for path, host in (("/api/studies", "localhost"), ("/static/bundle.js", "localhost"), ("/x", "evil.example")):
        headers = ask(app, path=path, HTTP_HOST=host)[1]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cross-Origin-Resource-Policy"] == headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "private, no-cache"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"
        assert "Access-Control-Allow-Origin" not in headers


def test_a_page_may_run_its_own_script() -> None:
    app = guarded(Upstream({"Content-Type": "text/html; charset=UTF-8"}))
    headers = ask(app, path="/dashboard/studies/7/trials")[1]
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == "'self' 'unsafe-eval'"
    assert policy["connect-src"] == "'self'"
    assert "sandbox" not in policy
    unchanged = ask(guarded(Upstream({"ETag": "x"}, b"")), path="/dashboard/studies/7")[1]
    assert unchanged["Content-Security-Policy"] == headers["Content-Security-Policy"], "a browser keeps the last one"
    headers = ask(app, path="/csv/1")[1]
    assert "sandbox" in headers["Content-Security-Policy"], "HTML elsewhere is no page of the dashboard"


def test_json_is_compressed_for_who_takes_that() -> None:
    content = json.dumps({"trials": ["trial"] * 1000}).encode()
    app = guarded(Upstream({"Content-Type": "application/json", "Content-Length": str(len(content))}, content))
    _, headers, sent = ask(app, HTTP_ACCEPT_ENCODING="gzip, deflate")
    assert (headers["Content-Encoding"], headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert int(headers["Content-Length"]) == len(sent) < len(content) / 5
    assert gzip.decompress(sent) == content
    _, headers, sent = ask(app)
    assert sent == content
    assert int(headers["Content-Length"]) == len(content)
    assert "Content-Encoding" not in headers
    small = ask(guarded(Upstream()), HTTP_ACCEPT_ENCODING="gzip")
    assert (small[2], "Content-Encoding" in small[1]) == (b"{}", False)


@pytest.mark.parametrize("path", ["/api/studies/1/note", "/api/studies/1/2/note", "/api/studies/1/note/"])
def test_of_a_note_the_users_own_part_is_saved(path: str) -> None:
    upstream = Upstream()
    app = guarded(upstream, allow_write=True)

    def saved(text: str) -> Any:
        ask(app, "PUT", path, body=json.dumps({"version": 3, "body": text}).encode(), **OWN)
        return json.loads(upstream.asked.pop()[2])

    assert saved(f"ours\n\n---\n\n{OWN_NOTE}\n\nmine, *all* of it\n") == {"version": 3, "body": "mine, *all* of it"}
    assert saved("mine alone") == {"version": 3, "body": "mine alone"}
    assert saved(f"ours {OWN_NOTE}") == {"version": 3, "body": ""}
    for odd in (b"{", b"[]", b'{"body": 3}', b"null", b"\xff"):
        ask(app, "PUT", path, body=odd, **OWN)
        assert upstream.asked.pop()[2] == odd


def test_an_error_is_one_line_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def broken(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise RuntimeError("the database is gone\nand more")

    status, headers, content = ask(guarded(broken))
    assert status == 500
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "the dashboard could not answer" in json.loads(content)["reason"]
    assert caplog.messages == ["dashboard: RuntimeError: the database is gone"]
