"""optuna-dashboard behind a guard: it has no authentication and lets anyone who reaches it delete or invent trials."""

import hmac
import logging
import os
import re
from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from ipaddress import ip_address
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs, quote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna_dashboard import wsgi  # type: ignore[import-untyped]

from cifar_sweep.errors import CifarSweepError, UsageError
from cifar_sweep.search.storage import Storage

log = logging.getLogger(__name__)
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
TOKEN_VARIABLE = "CIFAR_SWEEP_TOKEN"  # noqa: S105 - a name, no token
COOKIE = "cifar_sweep_token"

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def guarded(app: WsgiApp, *, token: str = "") -> WsgiApp:
    """`app` for reading only, and only for requests that name this machine (against DNS rebinding).

    With a token, for those that have it instead: as ``?token=``, which is answered with a cookie, or as bearer.
    """

    def guard(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if token:
            if _equal(token, *parse_qs(environ.get("QUERY_STRING", "")).get("token", [])):
                return _welcome(environ, start_response, token)
            cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(COOKIE)
            bearer = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
            if not (_equal(token, bearer) or (cookie is not None and _equal(token, cookie.value))):
                return _refuse(start_response, "this dashboard needs its token, as in ?token=...")
        elif re.sub(r":\d+$", "", environ.get("HTTP_HOST", "")) not in LOCAL_NAMES:
            return _refuse(start_response, "this dashboard answers to 127.0.0.1 and localhost only")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refuse(start_response, "this dashboard is for reading only")
        return app(environ, start_response)

    return guard


def _equal(token: str, *given: str) -> bool:
    return any(hmac.compare_digest(token.encode(), each.encode()) for each in given)


def _welcome(environ: dict[str, Any], start_response: Callable[..., Any], token: str) -> Iterable[bytes]:
    """The same page without the token, which goes into a cookie: an address is copied, and kept in histories."""
    cookie = SimpleCookie({COOKIE: token})
    for name, value in {"httponly": "true", "samesite": "Strict", "path": "/"}.items():
        cookie[COOKIE][name] = value
    headers = [("Location", quote(environ.get("PATH_INFO") or "/")), ("Set-Cookie", cookie[COOKIE].OutputString())]
    start_response("303 See Other", headers)
    return [b""]


def _refuse(start_response: Callable[..., Any], reason: str) -> Iterable[bytes]:
    start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
    return [reason.encode()]


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def token_for(host: str) -> str:
    """The token that a dashboard on this address asks for; none on this machine's own.

    Raises:
        UsageError: others can reach the address, and no token is set.
    """
    if host == "localhost" or (_is_address(host) and ip_address(host).is_loopback):
        return ""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if len(token) < 8 or not token.isascii():
        raise UsageError(
            f"--host {host}: others can reach it there, and it has no password; accepted: 127.0.0.1, or a token of 8 "
            f"characters or more in {TOKEN_VARIABLE}."
        )
    return token


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def serve(storage: Storage, *, host: str, port: int, stop: Callable[[], bool], on_ready: Callable[[str], None]) -> None:
    """Serve the dashboard until `stop` says yes. `on_ready` is given the address.

    Raises:
        UsageError: others can reach it, and there is no token.
        CifarSweepError: the address cannot be used.
    """
    app = guarded(wsgi(storage.optuna), token=token_for(host))
    try:
        server = make_server(host, port, app, server_class=_ThreadingServer, handler_class=_QuietHandler)
    except OSError as error:
        raise CifarSweepError(
            f"port {port} on {host} cannot be used: {error.strerror}; choose one with --port."
        ) from None
    server.timeout = 0.5  # seconds between two looks at `stop`
    with server:
        on_ready(f"http://{host}:{server.server_port}/dashboard/")
        while not stop():
            server.handle_request()
