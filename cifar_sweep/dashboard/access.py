"""Who may reach the dashboard, which has no authentication itself: who reaches it could delete or invent trials.

A request passes if it names this machine, or has the token. It may only read, unless writes are allowed; a write must
come from a page of the dashboard itself. Every answer has headers that keep browsers from running, framing or sharing
it.
"""

import gzip
import hmac
import io
import json
import logging
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from cifar_sweep.dashboard.notes import own_part
from cifar_sweep.errors import StorageError, one_line

log = logging.getLogger(__name__)
WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Headers = list[tuple[str, str]]
Answer = tuple[str, Headers, bytes]  # status, headers, content
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "cifar_sweep_token"
AGAIN_SECONDS = 5  # in which a browser asks again while the database is gone
READS = ("GET", "HEAD")
WRITES = ("POST", "PUT", "DELETE")
# A page of the dashboard may run its own script alone, which draws one of its figures by code that it makes itself.
_PAGE = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ANYTHING_ELSE = "default-src 'none'; frame-ancestors 'none'; sandbox"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With none at all, a browser would not say where a write comes from.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept by the reader's own browser at most, and asked for again each time: an answer may need a token.
    "Cache-Control": "private, no-cache",
}
# Ours, or not to be sent: optuna-dashboard lets every page on the web read a trial's files.
_REPLACED = {*(name.lower() for name in _HEADERS), "content-security-policy", "access-control-allow-origin"}
_WORTH_COMPRESSING = 1000  # bytes
# What optuna-dashboard offers and would spoil a study of ours with, and what is said instead.
_NEVER = {
    r"/api/studies/\d+/rename": "a renamed study would lose its curves, files and settings; run it under another name.",
    r"/api/artifacts/.*": "the files of a trial are kept by its worker alone; they go when their study is deleted.",
    r"/incompatible-rdb-schema": "the database is brought up with `optuna storage upgrade`.",
}
_NOTE = re.compile(r"/api/studies/\d+(/\d+)?/note")


def guarded(app: WsgiApp, *, token: str = "", allow_write: bool = False) -> WsgiApp:
    """`app` for requests that name this machine (against DNS rebinding), reading only unless writes are allowed.

    With a token, for those that have it instead: as ``?token=``, which is answered with a cookie, or as bearer.
    """

    def guard(environ: dict[str, Any]) -> Answer:
        status, headers, content = answered(environ)
        kept = [(name, value) for name, value in headers if name.lower() not in _REPLACED]
        return status, kept + _own_headers(_path(environ)), content

    def answered(environ: dict[str, Any]) -> Answer:
        if token and _equal(token, *parse_qs(environ.get("QUERY_STRING", "")).get("token", [])):
            return _welcome(environ, token)
        if refusal := _refusal(environ, token=token, allow_write=allow_write):
            return sentence("403 Forbidden", refusal, environ)
        if environ["REQUEST_METHOD"] == "PUT" and _NOTE.fullmatch(_path(environ)):
            _keep_own_part(environ)
        try:
            return _compressed(environ, *answer_of(app, environ))
        except StorageError as error:
            log.warning("dashboard: %s", error)
            status, headers, content = sentence("503 Service Unavailable", str(error), environ)
            return status, [*headers, ("Refresh", str(AGAIN_SECONDS))], content
        except Exception as error:
            log.warning("dashboard: %s", one_line(error))
            words = "the dashboard could not answer; its own output says why"
            return sentence("500 Internal Server Error", words, environ)

    return answering(guard)


def _refusal(environ: dict[str, Any], *, token: str, allow_write: bool) -> str:
    """Why a request is not let through; empty if it is."""
    if token:
        cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(COOKIE)
        bearer = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
        if not (_equal(token, bearer) or (cookie is not None and _equal(token, cookie.value))):
            return "this dashboard needs its token, as in ?token=..."
    elif re.sub(r":\d+$", "", environ.get("HTTP_HOST", "")) not in LOCAL_NAMES:
        return "this dashboard answers to 127.0.0.1 and localhost only"
    method = environ["REQUEST_METHOD"]
    if method in READS:
        return ""
    if method not in WRITES or not allow_write:
        return "this dashboard is for reading only" + ("" if allow_write else "; --allow-write lets writes through")
    if not _is_own_page(environ):
        return "this write does not come from a page of this dashboard"
    return next((words for path, words in _NEVER.items() if re.fullmatch(path, _path(environ))), "")


def _path(environ: dict[str, Any]) -> str:
    """The path as optuna-dashboard takes it."""
    return str(environ.get("PATH_INFO", "")).rstrip("/")


def _is_own_page(environ: dict[str, Any]) -> bool:
    """Whether a write was sent by a page of the dashboard itself, or by a program that is no browser.

    A browser says with each write where it comes from, and sends JSON to elsewhere only after it has asked, which is
    refused.
    """
    if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") != "same-origin":
        return False
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and urlsplit(origin).netloc != environ.get("HTTP_HOST"):
        return False
    has_body = environ.get("CONTENT_LENGTH") not in (None, "", "0")
    return not has_body or environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() == "application/json"


def _equal(token: str, *given: str) -> bool:
    return any(hmac.compare_digest(token.encode(), each.encode(errors="replace")) for each in given)


def _welcome(environ: dict[str, Any], token: str) -> Answer:
    """The same page without the token, which goes into a cookie: an address is copied, and kept in histories."""
    cookie = SimpleCookie({COOKIE: token})
    cookie[COOKIE].update({"httponly": "true", "samesite": "Strict", "path": "/"})
    # By its last part alone: a proxy may show the dashboard below a path that it does not know of.
    place = quote((environ.get("PATH_INFO") or "/").rpartition("/")[2]) or "./"
    return "303 See Other", [("Location", place), ("Set-Cookie", cookie[COOKIE].OutputString())], b""


def sentence(status: str, words: str, environ: dict[str, Any]) -> Answer:
    """An answer of one sentence: plain text, or JSON as the dashboard's page expects it of its own requests."""
    is_json = environ.get("PATH_INFO", "").startswith("/api/")
    kind, content = ("application/json", json.dumps({"reason": words})) if is_json else ("text/plain", words)
    return status, [("Content-Type", f"{kind}; charset=utf-8")], content.encode(errors="replace")


def _keep_own_part(environ: dict[str, Any]) -> None:
    """Cut what we wrote ourselves off a note that is to be saved."""
    length = environ.get("CONTENT_LENGTH") or "0"
    content = environ["wsgi.input"].read(int(length)) if length.isdecimal() else b""
    with suppress(ValueError, TypeError, AttributeError):  # not what the dashboard's page sends: not ours to mend
        note = json.loads(content)
        content = json.dumps(note | {"body": own_part(note["body"])}).encode()
    environ |= {"wsgi.input": io.BytesIO(content), "CONTENT_LENGTH": str(len(content))}


def _own_headers(path: str) -> Headers:
    """The headers that every answer has."""
    # By its place: an answer that it has not changed names no kind, but replaces the headers that a browser keeps.
    policy = _PAGE if path.startswith("/dashboard") else _ANYTHING_ELSE
    return [*_HEADERS.items(), ("Content-Security-Policy", policy)]


def answer_of(app: WsgiApp, environ: dict[str, Any]) -> Answer:
    """The answer of `app`, in one piece: between two, a busy server lets others go first."""
    started: list[tuple[str, Headers]] = []
    body = app(environ, lambda status, headers, *_: started.append((status, headers)))
    content = b"".join(body)
    if hasattr(body, "close"):
        body.close()
    return *started[-1], content


def answering(answer: Callable[[dict[str, Any]], Answer]) -> WsgiApp:
    """The application that gives these answers; `answer_of` takes one from it."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, headers, content = answer(environ)
        start_response(status, headers)
        return [content]

    return app


def _compressed(environ: dict[str, Any], status: str, headers: Headers, content: bytes) -> Answer:
    """The answer; JSON and scripts are compressed where the browser takes it: to a sixth, and to a third."""
    kind = next((value for name, value in headers if name.lower() == "content-type"), "")
    if re.match(r"(application|text)/(json|javascript)", kind) and environ["REQUEST_METHOD"] != "HEAD":
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        if len(content) >= _WORTH_COMPRESSING and "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            content = gzip.compress(content, compresslevel=1)
            headers.append(("Content-Encoding", "gzip"))
        headers += [("Vary", "Accept-Encoding"), ("Content-Length", str(len(content)))]
    return status, headers, content
