"""Writing a file whole or not at all."""

import logging
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from cifar_sweep.errors import DiskError

log = logging.getLogger(__name__)


def replace_file(path: Path, content: bytes | str) -> None:
    """Write `content` beside `path` and rename it into place, so that a reader sees the old file or the new one.

    After a DiskError what stood there before still stands.
    """
    # Not the process id: threads share it, and so do containers that share a folder.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode(errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise DiskError(f"{path}: the file could not be written: {error.strerror or error}.") from error


def default_cache() -> Path:
    """The cache folder: CIFAR_SWEEP_CACHE, else ``cifar-sweep`` in XDG_CACHE_HOME, else in ``~/.cache``.

    Where there is no home folder, or none that can be written to, one among the temporary files.
    """
    if own := os.environ.get("CIFAR_SWEEP_CACHE"):
        return Path(os.path.expanduser(own))
    cache = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "cifar-sweep")
    there = next((folder for folder in (cache, *cache.parents) if folder.exists()), cache)
    if cache.is_absolute() and os.access(there, os.W_OK):
        return cache
    cache = Path(tempfile.gettempdir(), f"cifar-sweep-{os.getuid()}")
    log.warning("there is no home folder to write to: the cache is %s; CIFAR_SWEEP_CACHE names another", cache)
    os.environ["CIFAR_SWEEP_CACHE"] = str(cache)  # once, and for all processes
    return cache
