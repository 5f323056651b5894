"""Downloads of trials' files from the dashboard, each checked against the checksum that the database has of it."""

import logging
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

from cifar_sweep.artifacts import Artifacts, DamagedArtifactError, MissingArtifactError, open_artifacts
from cifar_sweep.errors import CifarSweepError
from cifar_sweep.results.guard import WsgiApp, answer
from cifar_sweep.results.overlay import Overlay

log = logging.getLogger(__name__)

_PATH = re.compile(r"/artifacts/(\d{1,18})/(\d{1,18})/([0-9a-f]{32})")


def with_downloads(app: WsgiApp, overlay: Overlay) -> WsgiApp:
    """`app`, whose answers below /artifacts/ are ours: optuna-dashboard would let any page read them, as any kind."""
    opened: dict[str, Artifacts] = {}
    lock = threading.Lock()

    def files_at(address: str) -> Artifacts:
        with lock:  # boto3 may not be asked for two clients at once
            if address not in opened:
                opened[address] = open_artifacts(address)
            return opened[address]

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if not path.startswith("/artifacts/"):
            return app(environ, start_response)
        found = _PATH.fullmatch(path)
        study = overlay.ours(int(found[1])) if found else None
        file = study.file(int(found[2]), found[3]) if found and study else None
        if study is None or file is None:
            return answer(start_response, "404 Not Found", "this file is not kept, or not any more.")
        etag = f'"{file.stored.sha256}"'
        headers = [("ETag", etag), ("Content-Disposition", f'attachment; filename="{file.name}"')]
        if environ.get("HTTP_IF_NONE_MATCH") == etag:
            start_response("304 Not Modified", headers)
            return [b""]
        try:
            content = files_at(study.study.artifacts).get(file.stored)
        except MissingArtifactError as error:
            return answer(start_response, "404 Not Found", str(error))
        except (DamagedArtifactError, CifarSweepError) as error:
            log.warning("%s", error)
            return answer(start_response, "500 Internal Server Error", str(error))
        length = ("Content-Length", str(len(content)))
        start_response("200 OK", [("Content-Type", "application/octet-stream"), length, *headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]

    return serve
