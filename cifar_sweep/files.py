"""Writing a file whole or not at all."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from cifar_sweep.errors import DiskError


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
    """The cache folder: CIFAR_SWEEP_CACHE, else ``cifar-sweep`` in XDG_CACHE_HOME, else in ``~/.cache``."""
    own = os.environ.get("CIFAR_SWEEP_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cifar-sweep"
