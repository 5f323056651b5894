"""The dashboard: optuna-dashboard, shown our overlay of the database, behind our rules of access."""

import functools
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import quote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna_dashboard import wsgi  # type: ignore[import-untyped]
from sqlalchemy.exc import SQLAlchemyError

from cifar_sweep.artifacts import DamagedArtifactError, MissingArtifactError, open_artifacts
from cifar_sweep.dashboard.access import READS, Answer, WsgiApp, answer_of, answering, guarded, sentence
from cifar_sweep.dashboard.overlay import Overlay
from cifar_sweep.dashboard.page import with_page
from cifar_sweep.dashboard.view import BYTES
from cifar_sweep.errors import CifarSweepError, UsageError
from cifar_sweep.study.storage import Storage

log = logging.getLogger(__name__)
TOKEN_VARIABLE = "CIFAR_SWEEP_TOKEN"  # noqa: S105 - a name, no token
_PATH = re.compile(r"/artifacts/(\d{1,18})/(\d{1,18})/([0-9a-f]{32})")


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def get_stderr(self) -> Any:
        return _OneLine()


class _OneLine(logging.Handler):
    """What optuna-dashboard says of an error in many lines, in one: a log handler, and a server's error stream."""

    def emit(self, record: logging.LogRecord) -> None:
        log.warning("dashboard: %s", record.getMessage().splitlines()[0])

    def write(self, text: str) -> int:
        if text.strip():
            log.warning("dashboard: %s", text.strip().splitlines()[-1])
        return len(text)


def token_for(host: str) -> str:
    """The token that a dashboard on this address asks for; on this machine's own only a set one. Raises UsageError."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    with suppress(ValueError):  # a name that is no address
        if not token and (host == "localhost" or ip_address(host).is_loopback):
            return ""
    if len(token) < 8 or not token.isascii():
        raise UsageError(
            f"--host {host}: others can reach it there, and it has no password; accepted: 127.0.0.1, or a token of 8 "
            f"characters or more in {TOKEN_VARIABLE}."
        )
    return token


class _Opened:
    """The dashboard of the database that is at its address now; of another one that takes its place it is made anew."""

    def __init__(self, storage: Storage, *, writable: bool) -> None:
        self._lock = threading.Lock()
        self._busy = 0  # who reads the database just now
        self._writable = writable
        self._open(storage)

    def _open(self, storage: Storage) -> None:
        self._storage, self._identity = storage, storage.identity()
        self._overlay = overlay = Overlay(storage, writable=self._writable)  # type: ignore[abstract]
        app = with_downloads(wsgi(overlay, artifact_store=overlay), overlay)
        self._app = with_page(app, secrets.token_hex(8))
        threading.Thread(target=self._warm, args=(overlay,), name="dashboard", daemon=True).start()

    def _warm(self, overlay: Overlay) -> None:
        with self._at_work():
            overlay.warm()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                if not self._busy:
                    self._storage.rest()

    def _look(self) -> tuple[Storage, Overlay, WsgiApp]:
        """What is open now. Raises StorageError where there is no database."""
        with self._lock:
            try:
                is_same = self._storage.identity() == self._identity and not self._overlay.is_of_another
            except (OSError, SQLAlchemyError):
                is_same = False  # it is gone, or does not answer: who opens it says why
            if not is_same:
                found = self._storage.again()
                self._storage.close()
                self._open(found)
            return self._storage, self._overlay, self._app

    def answer(self, environ: dict[str, Any]) -> Answer:
        with self._at_work():
            storage, overlay, app = self._look()
            answer = answer_of(app, environ)
            if answer[0].startswith("500"):
                storage.again().close()  # who opens it says what is wrong with it, if that is it
        # Then a part of the answer may be of the one before.
        if overlay.is_of_another and environ["REQUEST_METHOD"] in READS:
            return self.answer(environ)
        return answer


def application(storage: Storage, *, token: str = "", allow_write: bool = False) -> WsgiApp:
    """The whole dashboard as a WSGI application. It begins to read the studies at once, in the background.

    Without a token it answers to this machine's own names alone. It is for reading only unless `allow_write`.
    """
    theirs = logging.getLogger("optuna_dashboard")
    theirs.handlers, theirs.propagate = [_OneLine()], False
    return guarded(answering(_Opened(storage, writable=allow_write).answer), token=token, allow_write=allow_write)


def serve(
    storage: Storage,
    *,
    host: str,
    port: int,
    allow_write: bool,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Serve the dashboard until `stop` says yes; `say` is given the address. Raises CifarSweepError."""
    app = application(storage, token=token_for(host), allow_write=allow_write)
    try:
        server = make_server(host, port, app, server_class=_ThreadingServer, handler_class=_QuietHandler)
    except OSError as error:
        words = f"port {port} on {host} cannot be used: {error.strerror}; choose one with --port."
        raise CifarSweepError(words) from None
    server.timeout = 0.5  # seconds between two looks at `stop`
    with server:
        say(f"http://{host}:{server.server_port}/dashboard/")
        while not stop():
            server.handle_request()


def attachment(name: str) -> str:
    """A file's name as a header takes it: in ASCII, and as it is for browsers that know RFC 6266."""
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)
    whole = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
    return f'attachment; filename="{plain}"{whole}'


def with_downloads(app: WsgiApp, overlay: Overlay) -> WsgiApp:
    """`app`, whose answers below /artifacts/ are ours: optuna-dashboard would let any page read them, as any kind.

    Tables have the name of their study, as it is.
    """
    files_at = functools.cache(open_artifacts)

    def file(environ: dict[str, Any]) -> Answer:
        found = _PATH.fullmatch(environ["PATH_INFO"])
        study = overlay.ours(int(found[1])) if found else None
        file = study.file(int(found[2]), found[3]) if found and study else None
        if study is None or file is None:
            return sentence("404 Not Found", "this file is not kept, or not any more.", environ)
        etag = f'"{file.stored.sha256}"'
        headers = [("ETag", etag), ("Content-Disposition", attachment(file.name))]
        if environ.get("HTTP_IF_NONE_MATCH") == etag:
            return "304 Not Modified", headers, b""
        try:
            content = files_at(study.study.artifacts).get(file.stored)
        except MissingArtifactError as error:
            return sentence("404 Not Found", str(error), environ)
        except (DamagedArtifactError, CifarSweepError) as error:
            log.warning("%s", error)
            return sentence("500 Internal Server Error", str(error), environ)
        headers += [("Content-Type", BYTES), ("Content-Length", str(len(content)))]
        return "200 OK", headers, b"" if environ["REQUEST_METHOD"] == "HEAD" else content

    def table(environ: dict[str, Any], study_id: int) -> Answer:
        status, headers, content = answer_of(app, environ)
        if status.startswith("200"):
            name = attachment(f"{overlay.get_study_name_from_id(study_id)}.csv")
            headers = [("Content-Type", "text/csv; charset=utf-8"), ("Content-Disposition", name)]
        return status, headers, content

    def answer(environ: dict[str, Any]) -> Answer:
        path = environ.get("PATH_INFO", "")
        if found := re.fullmatch(r"/csv/(\d{1,18})", path):
            return table(environ, int(found[1]))
        return file(environ) if path.startswith("/artifacts/") else answer_of(app, environ)

    return answering(answer)
