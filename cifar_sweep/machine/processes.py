"""Processes that measure at the same time: what a machine does with all of it at work."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from cifar_sweep.errors import StudyError, one_line
from cifar_sweep.training.limits import available_cores

if TYPE_CHECKING:
    import torch

IS_FORKED = sys.platform == "linux"
PRELOADED = ["cifar_sweep.machine.timing", "cifar_sweep.work.worker"]


class ProcessPool:
    """Processes that wait for calls. Each is fresh when it starts, and keeps what it has loaded."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    def together(self, function: Callable[..., Any], *calls: dict[str, Any]) -> list[Any]:
        """The results of calls of `function`, begun at once, each in its process; StudyError if one ended or raised."""
        try:
            for connection, call in zip(self._connections[: len(calls)], calls, strict=True):
                connection.send((function, call))
            answers = [connection.recv() for connection in self._connections[: len(calls)]]
        except (EOFError, OSError):
            raise StudyError("a measuring process was ended from outside.") from None
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def ask(function: Callable[..., Any], *, device: "torch.device", **call: Any) -> Any:
    """What `function` answers of a device. Of a GPU it is called in a process of its own, which then ends.

    A process that has asked CUDA keeps half a gigabyte of the GPU, and keeps all others from one that is exclusive.
    """
    if device.type == "cpu":
        return function(device=device, **call)
    with process_pool(1) as pool:
        [answer] = pool.together(function, {"device": device, **call})
    return answer


def start(
    function: Callable[..., None], *arguments: Any, name: str | None = None, daemon: bool | None = None
) -> BaseProcess:
    """A process that calls `function`, and which Ctrl-C does not reach: the parent decides. Raises OSError.

    On Linux it is forked from one that has loaded PyTorch; else it loads that itself, which takes seconds.
    """
    context: Any = multiprocessing.get_context("forkserver" if IS_FORKED else "spawn")
    if IS_FORKED:
        context.set_forkserver_preload(PRELOADED)
    # What it is forked from has the environment of the first time.
    call = partial(_begun, function, dict(os.environ))
    process: BaseProcess = context.Process(target=call, args=arguments, name=name, daemon=daemon)
    with _without_main(), _ctrl_c_held_back():
        process.start()
    return process


def prepare() -> None:
    """Have what processes are forked from load PyTorch while this one does, where there is a core for it."""
    if IS_FORKED and available_cores() > 1:
        forkserver.set_forkserver_preload(PRELOADED)
        with _ctrl_c_held_back():
            forkserver.ensure_running()


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: a terminal sends it to all, and only the parent is to act on it."""
    resource_tracker.ensure_running()  # it would undo the mask when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begun(function: Callable[..., None], environment: dict[str, str], *arguments: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


@contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that do not load the program's main file: what they run is all in modules.

    A script that runs a sweep in its last line, without a look at ``__name__``, would else run it in each of them.
    """
    main = sys.modules["__main__"].__dict__
    file = main.pop("__file__", None)
    try:
        yield
    finally:
        if file is not None:
            main["__file__"] = file


@contextmanager
def process_pool(size: int) -> Iterator[ProcessPool]:
    """`size` processes, ended with the block."""
    connections, processes = [], []
    try:
        for _ in range(size):
            mine, theirs = multiprocessing.Pipe()
            processes.append(start(_answer, theirs, daemon=True))
            theirs.close()  # so that a process that ends is noticed
            connections.append(mine)
        yield ProcessPool(connections)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _answer(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent ends these
    import torch  # noqa: F401  # all calls need it, and the parent is still busy with other things

    while True:
        try:
            function, call = connection.recv()
        except EOFError:
            return
        try:
            connection.send(function(**call))
        except Exception as error:
            connection.send(StudyError(f"measuring failed: {one_line(error)}."))
