"""Stopping on a signal. Apart from what trains: the dashboard stops so, too, and loads no torch."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_SECONDS = 0.5  # `timeout` sends its signal twice: to the process, and to all of its group


class StopRequest:
    """Set by the first Ctrl-C or SIGTERM; one that comes later ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended; 0 where none did."""
        return 128 + self.signal if self.signal else 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C, SIGTERM or hang-up into a request to stop, where this is the main thread."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    caught = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        caught.append(signal.SIGHUP)

    first = 0.0

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if request.signal is None:
            request.signal, first = number, time.monotonic()
        elif time.monotonic() - first > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {each: signal.signal(each, on_signal) for each in caught}
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
