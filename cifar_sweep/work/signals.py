"""Stopping on a signal. Apart from what trains: the dashboard stops so, too, and loads no torch."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Set by the first Ctrl-C or SIGTERM; the second one ends the process at once."""

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

    def on_signal(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        for each in caught:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.signal(each, on_signal) for each in caught}
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
