"""optuna-dashboard behind a guard: it has no authentication and lets anyone who reaches it delete or invent trials."""

import logging
import re
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna_dashboard import wsgi  # type: ignore[import-untyped]

from cifar_sweep.errors import CifarSweepError
from cifar_sweep.search.storage import Storage

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def guarded(app: WsgiApp) -> WsgiApp:
    """`app` for reading only, and only for requests that name this machine (against DNS rebinding)."""

    def guard(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if re.sub(r":\d+$", "", environ.get("HTTP_HOST", "")) not in LOCAL_NAMES:
            return _refuse(start_response, "this dashboard answers to 127.0.0.1 and localhost only")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refuse(start_response, "this dashboard is for reading only")
        return app(environ, start_response)

    return guard


def _refuse(start_response: Callable[..., Any], reason: str) -> Iterable[bytes]:
    start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
    return [reason.encode()]


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def serve(storage: Storage, *, port: int, stop: Callable[[], bool], on_ready: Callable[[str], None]) -> None:
    """Serve the dashboard on 127.0.0.1 until `stop` says yes. `on_ready` is given the address.

    Raises:
        CifarSweepError: the port is taken.
    """
    app = guarded(wsgi(storage.optuna))
    try:
        server = make_server(HOST, port, app, server_class=_ThreadingServer, handler_class=_QuietHandler)
    except OSError as error:
        raise CifarSweepError(
            f"port {port} on {HOST} cannot be used: {error.strerror}; choose one with --port."
        ) from None
    server.timeout = 0.5  # seconds between two looks at `stop`
    with server:
        on_ready(f"http://{HOST}:{server.server_port}/dashboard/")
        while not stop():
            server.handle_request()
