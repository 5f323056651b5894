"""Workers on this machine: in this process when there is one, in processes of their own when there are several."""

import atexit
import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from cifar_sweep.errors import CifarSweepError, StudyError, one_line
from cifar_sweep.machine.plan import Plan
from cifar_sweep.machine.processes import without_main
from cifar_sweep.study.lease import Patience
from cifar_sweep.study.opening import open_studies
from cifar_sweep.study.outage import explain
from cifar_sweep.study.storage import open_existing
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.work.signals import StopRequest
from cifar_sweep.work.worker import Job, work

log = logging.getLogger(__name__)
IDLE_SECONDS = 2.0
RETRY_SECONDS = 60


def local_jobs(job: Job, plan: Plan) -> list[Job]:
    """The job for each of the plan's workers."""
    split = plan.split
    common = replace(job, threads=split.threads, workers=split.workers, groups=plan.groups)
    return [replace(common, worker=worker) for worker in range(split.workers)]


def serve(
    job: Job,
    *,
    until_idle: bool,
    plan: Callable[[Sequence[SweepStudy]], Plan],
    shown: Callable[[Sequence[SweepStudy]], AbstractContextManager[None]],
    stop: Callable[[], bool],
) -> None:
    """Work on open studies, the most urgent first, until `stop` says yes, or there is nothing left.

    Args:
        job: which studies, and all that does not depend on the plan.
        until_idle: whether to end when no study is open.
        plan: for the studies that are open, how many workers there are to be, and how many trials each trains at once.
        shown: shows these studies while its body runs.
        stop: asked every moment.

    Raises:
        CifarSweepError: a worker's; of one that serves all studies for good it is said, and tried again.
    """
    with closing(open_existing(job.storage)) as storage:
        patiently = Patience(storage, stop)
        while not stop() and not job.out_of_time():
            studies = patiently(lambda: list(open_studies(storage, job.studies)))
            if studies:
                jobs = local_jobs(replace(job, known=tuple(study.name for study in studies)), plan(studies))
                try:
                    with shown(studies):
                        run_workers(jobs, stop=stop)
                except CifarSweepError as error:
                    if until_idle or job.studies:
                        raise
                    log.warning("%s It is tried again in %d s.", error, RETRY_SECONDS)
                    _sleep(RETRY_SECONDS, stop)
            elif until_idle:
                break
            else:
                _sleep(IDLE_SECONDS, stop)


def _sleep(seconds: float, stop: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop():
        time.sleep(0.1)


def run_workers(jobs: Sequence[Job], *, stop: Callable[[], bool]) -> None:
    """Run one worker per job until each has ended.

    Raises:
        CifarSweepError: a worker's; the others are asked to stop first.
    """
    if len(jobs) == 1:
        work(jobs[0], stop=stop)
        return
    workers: dict[BaseProcess, Connection] = {}
    try:
        with _ctrl_c_held_back():
            for job in jobs:
                process, receiver = _start(job)
                workers[process] = receiver
        error = _watch(workers, stop=stop)
    except BaseException:
        for process in workers:
            process.terminate()
        for process in workers:
            process.join()
        raise
    if error is not None:
        raise error


def _start(job: Job) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work_in_process, args=(job, sender), name=f"worker-{job.worker}")
    try:
        with without_main():
            process.start()
    except OSError as error:
        raise StudyError(f"worker {job.worker} could not be started: {error.strerror}.") from None
    sender.close()
    return process, receiver


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: a terminal sends it to all, and only the parent is to act on it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would undo the mask when it starts
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _watch(workers: dict[BaseProcess, Connection], *, stop: Callable[[], bool]) -> CifarSweepError | None:
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
                if process.exitcode and not (asked or stop()):
                    killed += 1
                    log.warning("%s ended with exit code %s; its trial goes to another", process.name, process.exitcode)
    if killed == len(workers):
        error = error or StudyError("all workers were killed; the same command goes on from each trial's last epoch.")
    return error


def _work_in_process(job: Job, sender: Connection) -> None:
    """A worker process: stops on SIGTERM, however often, leaves all else to its parent, and ends when that is gone."""
    atexit.register(gc.freeze)  # as in the command line
    stop = StopRequest()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _frame: setattr(stop, "signal", number))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)  # killed with no word: the trial is taken up from its last epoch, as after any kill

    threading.Thread(target=end_with_parent, name="parent-watch", daemon=True).start()
    try:
        work(job, stop=stop)
    except CifarSweepError as error:
        sender.send(error)
    except Exception as error:
        sender.send(explain(error) or StudyError(f"worker {job.worker} failed: {one_line(error)}."))
        log.debug("worker %d failed", job.worker, exc_info=True)
    else:
        sender.send(None)
