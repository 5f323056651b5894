"""Writing a file whole or not at all; reading TOML as editors leave it."""

import codecs
import logging
import math
import os
import re
import secrets
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from cifar_sweep.errors import DiskError, UsageError

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


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, with or without a byte order mark. Raises OSError, and UsageError where it is none."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise UsageError(f"{path}: the file is text in UTF-16 or UTF-32, or no text; save it as text in UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: the file cannot be read: it is not text in UTF-8.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if curly := re.search("[\u2018-\u201f]", text):
            fault = f"line {text.count(chr(10), 0, curly.start()) + 1} has a curly quote ({curly[0]})"
            raise UsageError(f"{path}: not valid TOML: {fault}; accepted: straight ones.") from None
        is_yaml = path.suffix in (".yaml", ".yml") or re.match(r"(?m)(\s*#.*\n|---\s*\n)*[\w.-]+:(\s|$)", text)
        words = "it looks like YAML; a sweep is a TOML file; `cifar-sweep convert` makes one" if is_yaml else error
        raise UsageError(f"{path}: not valid TOML: {words}.") from None


@contextmanager
def alone(file: Path, seconds: float = math.inf) -> Iterator[None]:
    """The only one of the processes that measures what a file has; one that waits longer is no longer alone."""
    from filelock import FileLock

    with ExitStack() as held:
        with suppress(OSError):  # a read-only home, or the time is over
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(file.with_suffix(".lock"), timeout=-1 if math.isinf(seconds) else seconds)
            held.enter_context(lock)
        yield


def expanded(path: str) -> str:
    """A path with the home folder for its ~. Raises UsageError where there is none: a folder ~ is not meant."""
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise UsageError(f"{path}: there is no home folder to put for the ~; accepted: the whole path.")
    return found


def default_cache() -> Path:
    """The cache folder: CIFAR_SWEEP_CACHE, else ``cifar-sweep`` in XDG_CACHE_HOME, else in ``~/.cache``.

    Where there is no home folder, or none that can be written to, one among the temporary files.
    """
    if own := os.environ.get("CIFAR_SWEEP_CACHE"):
        return Path(expanded(own))
    cache = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "cifar-sweep")
    there = next((folder for folder in (cache, *cache.parents) if os.path.exists(folder)), cache)
    if cache.is_absolute() and os.access(there, os.W_OK):
        return cache
    cache = Path(tempfile.gettempdir(), f"cifar-sweep-{os.getuid()}")
    log.warning("there is no home folder to write to: the cache is %s; CIFAR_SWEEP_CACHE names another", cache)
    os.environ["CIFAR_SWEEP_CACHE"] = str(cache)  # once, and for all processes
    return cache
