"""Workers on this machine: in this process when there is one, in processes of their own when there are several."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from types import FrameType

from cifar_sweep.errors import CifarSweepError, StudyError
from cifar_sweep.runner import Job, work

log = logging.getLogger(__name__)


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
def stop_on_signals(*signals: signal.Signals) -> Iterator[StopRequest]:
    """Turn the first of these signals (SIGINT and SIGTERM, if none is named) into a request to stop."""
    request = StopRequest()
    caught = signals or (signal.SIGINT, signal.SIGTERM)

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


def run_workers(jobs: Sequence[Job], *, stop: Callable[[], bool]) -> None:
    """Run one worker per job until each has ended.

    Raises:
        CifarSweepError: a worker's; the others are asked to stop first.
    """
    if len(jobs) == 1:
        work(jobs[0], stop=stop)
        return
    context = multiprocessing.get_context("spawn")
    workers: dict[multiprocessing.process.BaseProcess, Connection] = {}
    for job in jobs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work_in_process, args=(job, sender), name=f"worker-{job.worker}")
        process.start()
        sender.close()
        workers[process] = receiver
    error = _watch(workers, stop=stop)
    if error is not None:
        raise error


def _watch(
    workers: dict[multiprocessing.process.BaseProcess, Connection], *, stop: Callable[[], bool]
) -> CifarSweepError | None:
    """Wait for all workers; pass a stop request on, and stop all when one reports an error."""
    error: CifarSweepError | None = None
    killed = 0
    running = dict(workers)
    asked = False
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
                if process.exitcode and not asked:
                    killed += 1
                    log.warning("%s ended with exit code %s; its trial goes to another", process.name, process.exitcode)
    if killed == len(workers):
        error = error or StudyError("all workers were killed; the same command goes on from each trial's last epoch.")
    return error


def _work_in_process(job: Job, sender: Connection) -> None:
    """A worker process: stops on SIGTERM, leaves Ctrl-C to its parent, and ends when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)  # killed with no word: the trial is taken up from its last epoch, as after any kill

    threading.Thread(target=end_with_parent, name="parent-watch", daemon=True).start()
    with stop_on_signals(signal.SIGTERM) as stop:
        try:
            work(job, stop=stop)
        except CifarSweepError as error:
            sender.send(error)
        except Exception as error:
            from cifar_sweep.search.storage import explain

            known = explain(error)
            if known is None:
                log.exception("worker %d failed", job.worker)
            sender.send(known or StudyError(f"worker {job.worker} failed: {type(error).__name__}: {error}."))
        else:
            sender.send(None)
