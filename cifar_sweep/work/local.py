"""Worker processes on this machine: they are started, watched, asked to stop, and end with their parent."""

import atexit
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from cifar_sweep.database.outage import explain
from cifar_sweep.errors import CifarSweepError, StudyError, one_line
from cifar_sweep.machine.processes import without_main
from cifar_sweep.work.signals import StopRequest

log = logging.getLogger(__name__)
Worker = Callable[..., None]


def run_in_processes(workers: Sequence[Worker], *, stop: Callable[[], bool]) -> None:
    """Call each of `workers` in a process of its own, and wait until all have ended.

    Each takes a `stop` of its own, which says yes when `stop` does. Raises a worker's CifarSweepError; the others are
    asked to stop first.
    """
    running: dict[BaseProcess, Connection] = {}
    try:
        with _ctrl_c_held_back():
            running.update(_start(number, worker) for number, worker in enumerate(workers))
        _watch(dict(running), stop=stop)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _start(number: int, worker: Worker) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work_in_process, args=(number, worker, sender), name=f"worker-{number}")
    try:
        with without_main():
            process.start()
    except OSError as error:
        raise StudyError(f"worker {number} could not be started: {error.strerror}.") from None
    sender.close()
    return process, receiver


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: a terminal sends it to all, and only the parent is to act on it."""
    resource_tracker.ensure_running()  # it would undo the mask when it starts
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _watch(running: dict[BaseProcess, Connection], *, stop: Callable[[], bool]) -> None:
    """Wait for all workers; ask all to stop on request, and when one reports an error, which is raised at the end."""
    error: CifarSweepError | None = None
    workers, killed, asked = len(running), 0, False
    while running:
        if (stop() or error) and not asked:
            asked = True
            for process in running:
                process.terminate()
        wait([process.sentinel for process in running], timeout=0.2)
        for process in [process for process in running if not process.is_alive()]:
            receiver = running.pop(process)
            try:
                error = error or receiver.recv()
            except EOFError:
                if process.exitcode and not (asked or stop()):
                    killed += 1
                    log.warning("%s ended with exit code %s; its trial goes to another", process.name, process.exitcode)
    if killed == workers:
        error = error or StudyError("all workers were killed; the same command goes on from each trial's last epoch.")
    if error is not None:
        raise error


def _work_in_process(number: int, worker: Worker, sender: Connection) -> None:
    """A worker process: stops on SIGTERM, however often, leaves all else to its parent, and ends when that is gone."""
    atexit.register(gc.freeze)  # as in the command line
    stop = StopRequest()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _frame: setattr(stop, "signal", number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    sender.send(error_of(number, partial(worker, stop=stop), level=logging.DEBUG))


def error_of(number: int, worker: Callable[[], None], *, level: int) -> CifarSweepError | None:
    """Have a worker do its job. Returns the error that ended it, if one did; what nobody foresaw is logged, too."""
    try:
        worker()
    except CifarSweepError as error:
        return error
    except Exception as error:
        log.log(level, "worker %d failed", number, exc_info=True)
        return explain(error) or StudyError(f"worker {number} failed: {one_line(error)}.")
    return None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # killed with no word: the trial is taken up from its last epoch, as after any kill
