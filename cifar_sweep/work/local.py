"""Worker processes on this machine: they are started, watched, asked to stop, and end with their parent."""

import atexit
import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from cifar_sweep.database.outage import explain
from cifar_sweep.errors import CifarSweepError, SickDeviceError, StudyError, one_line
from cifar_sweep.machine.processes import start
from cifar_sweep.work.signals import StopRequest

log = logging.getLogger(__name__)
Worker = Callable[..., None]
# How often in a row a worker is started again whose device is sick, and after how long it counts as well again.
MOST_RESTARTS = 5
WELL_SECONDS = 600.0


@dataclass
class _Running:
    """A worker process, and what it sends when it ends."""

    number: int
    process: BaseProcess
    receiver: Connection
    started: float = field(default_factory=time.monotonic)
    restarts: int = 0  # in a row


def run_in_processes(workers: Sequence[Worker], *, stop: Callable[[], bool]) -> None:
    """Call each of `workers` in a process of its own, and wait until all have ended.

    Each takes a `stop` of its own, which says yes when `stop` does. Raises a worker's CifarSweepError; the others are
    asked to stop first. One whose device is sick is started again, some times.
    """
    running: list[_Running] = []
    try:
        running.extend(_start(number, worker) for number, worker in enumerate(workers))
        _watch(running, workers, stop=stop)
    finally:
        for each in running:
            each.process.terminate()
        for each in running:
            each.process.join()


def _start(number: int, worker: Worker) -> _Running:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    try:
        process = start(_work_in_process, number, worker, sender, name=f"worker-{number}")
    except OSError as error:
        raise StudyError(f"worker {number} could not be started: {error.strerror}.") from None
    sender.close()
    return _Running(number, process, receiver)


def _watch(running: list[_Running], workers: Sequence[Worker], *, stop: Callable[[], bool]) -> None:
    """Wait for all workers; ask all to stop on request, and when one reports an error, which is raised at the end."""
    error: CifarSweepError | None = None
    killed, asked = 0, False
    while running:
        if (stop() or error) and not asked:
            asked = True
            for each in running:
                each.process.terminate()
        wait([each.process.sentinel for each in running], timeout=0.2)
        for ended in [each for each in running if not each.process.is_alive()]:
            running.remove(ended)
            process = ended.process
            try:
                found = ended.receiver.recv()
            except EOFError:
                if process.exitcode and not (asked or stop()):
                    killed += 1
                    log.warning("%s ended with exit code %s; its trial goes to another", process.name, process.exitcode)
                continue
            again = None if error or asked or stop() else _started_again(ended, found, workers)
            if again:
                running.append(again)
            else:
                error = error or found
    if killed == len(workers):
        error = error or StudyError("all workers were killed; the same command goes on from each trial's last epoch.")
    if error is not None:
        raise error


def _started_again(ended: _Running, error: CifarSweepError | None, workers: Sequence[Worker]) -> _Running | None:
    """A new process for a worker whose device was sick in its old one; None where that is not so, or has no end."""
    recent = time.monotonic() - ended.started < WELL_SECONDS
    restarts = ended.restarts + 1 if recent else 1
    if not isinstance(error, SickDeviceError) or restarts > MOST_RESTARTS:
        return None
    log.warning("%s: %s It is started again.", ended.process.name, error)
    again = _start(ended.number, workers[ended.number])
    again.restarts = restarts
    return again


def _work_in_process(number: int, worker: Worker, sender: Connection) -> None:
    """A worker process: stops on SIGTERM, however often, leaves all else to its parent, and ends when that is gone."""
    atexit.register(gc.freeze)  # as in the command line
    stop = StopRequest()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _frame: setattr(stop, "signal", number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    error = error_of(number, partial(worker, stop=stop), level=logging.DEBUG)
    sender.send(error)
    if isinstance(error, SickDeviceError):
        os._exit(error.exit_code)  # what CUDA does at an ordinary end would fail, or wait


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
