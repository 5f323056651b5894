"""Standard output that is closed, full, or left by its reader, and that may not know every letter."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from cifar_sweep.errors import DiskError

# Commands that are there for what they print. All others do their work to the end, whoever reads.
READING = {
    "status", "report", "compare", "plot", "replay", "list", "plan", "evaluate", "predict", "model", "bench", "doctor",
}  # fmt: skip
log = logging.getLogger(__name__)


class Stream:
    """A text or byte stream that asks `lost` what to do about the first error, and prints nothing more after it."""

    def __init__(self, stream: Any, lost: Callable[[Exception], None]) -> None:
        self._stream, self._lost, self._is_lost = stream, lost, False

    @property
    def buffer(self) -> "Stream":
        return Stream(self._stream.buffer, self._lost)

    def write(self, content: Any) -> int:
        self._attempt(lambda: self._stream.write(content))
        return len(content)  # whatever came of it

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._is_lost:
            return
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._is_lost = True
            with suppress(OSError, ValueError):  # what is held back is written when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._lost(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def protected(arguments: Sequence[str]) -> Iterator[None]:
    """Inside, a lost output ends commands that only print, quietly or with a DiskError, and no others."""
    lost = {"stdout": _end if READING & set(arguments[:1]) else _go_on, "stderr": lambda _: None}
    before = {name: getattr(sys, name) for name in lost}
    try:
        for name, stream in before.items():
            if stream is None:  # closed before the start: no file of ours is to get its number
                stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Stream(stream, lost[name]))
        yield
    finally:
        for name, stream in before.items():
            if stream is not None:
                setattr(sys, name, stream)


def _go_on(error: Exception) -> None:
    log.warning("standard output is gone (%s); the work goes on", getattr(error, "strerror", None) or error)


def _end(error: Exception) -> None:
    if isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EBADF):
        raise DiskError(f"standard output cannot be written: {error.strerror}.")
    sys.exit(0)
