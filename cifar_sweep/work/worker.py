"""Workers: each claims trials of the studies that are open, trains them, and claims again until nothing is left."""

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import partial

import torch

from cifar_sweep.artifacts import Artifacts, open_artifacts
from cifar_sweep.config import Shape
from cifar_sweep.database.outage import is_outage, pause, wait_out
from cifar_sweep.errors import CifarSweepError, DiskError, StudyError
from cifar_sweep.exports.trained import images_of
from cifar_sweep.forecast.hours import in_time, replan
from cifar_sweep.machine.groups import ONE_AT_A_TIME, Groups
from cifar_sweep.machine.plan import Plan
from cifar_sweep.search.chooser import Chooser
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.files import drop_needless, settle_in
from cifar_sweep.study.lease import Lease, Patience
from cifar_sweep.study.opening import check_code, open_studies
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import PAUSED, Storage, open_existing
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.training.device import device_name, prepare_process, resolve_device, resolve_precision
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.lanes import kernels_name
from cifar_sweep.training.models.own import fingerprints
from cifar_sweep.work.local import run_in_processes
from cifar_sweep.work.runner import GroupTooLargeError, Training

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5  # between two looks for a trial that another worker gives back
IDLE_SECONDS = 2.0  # between two looks for a study that is submitted
RETRY_SECONDS = 60  # before what ended all workers is tried again
MEMORY_SECONDS = 10  # before a single trial that did not fit into memory is tried again
MAX_CONSECUTIVE_FAILURES = 5  # then the study is at fault, or this machine, and no single trial


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know; the rest is in the database."""

    storage: str  # address of the database
    studies: tuple[str, ...] = ()  # the studies to work on; none: every study that is open
    known: tuple[str, ...] | None = None  # those the groups were planned for: another one ends the worker; None: any
    data: str | None = None  # where the images are, as `images.data.load` takes it; None: where each study says
    artifacts: str | None = None  # where checkpoints and weights go; None: where each study says
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int = 0  # CPU threads to compute on; 0 is one per core
    deadline: float | None = None  # when to stop, in seconds since the epoch; None is never
    worker: int = 0  # the worker's position among those started together
    workers: int = 1  # how many were started together
    devices: int = 1  # how many these have among them
    groups: Groups = ONE_AT_A_TIME  # how many trials of a shape to train at once
    share: float = 1.0  # what part of its GPU's memory it may take

    def out_of_time(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.time() >= self.deadline


def run_workers(job: Job, plan: Plan, *, stop: Callable[[], bool]) -> None:
    """Do `job` with as many workers as `plan` says: one in this process, several, or any on a GPU, in their own.

    Raises a worker's CifarSweepError; the others are asked to stop first.
    """
    split, where = plan.split, resolve_device(job.device)
    share = 1 / math.ceil(split.workers / split.devices)
    planned = replace(
        job, threads=split.threads, workers=split.workers, devices=split.devices, groups=plan.groups, share=share
    )
    if split.workers == 1 and where.type == "cpu":
        work(planned, stop=stop)
    else:  # a GPU that is sick is well again in a new process
        jobs = [replace(planned, worker=worker) for worker in range(split.workers)]
        run_in_processes([partial(work, each) for each in jobs], stop=stop)


def serve(
    job: Job,
    *,
    until_idle: bool,
    plan: Callable[[Sequence[SweepStudy]], Plan],
    shown: Callable[[Sequence[SweepStudy]], AbstractContextManager[None]],
    stop: Callable[[], bool],
) -> None:
    """Work on open studies, the most urgent first, until `stop` says yes, or, `until_idle`, no study is open.

    `job` has all that does not depend on the plan; `plan` gives the plan for the studies that are open, and `shown`
    shows them while its body runs. Raises a worker's CifarSweepError; who serves all studies for good logs it, and
    tries again.
    """
    with closing(open_existing(job.storage)) as storage:
        patiently = Patience(storage, stop)
        while not stop() and not job.out_of_time():
            studies = patiently(lambda: list(open_studies(storage, job.studies)))
            if studies:
                planned, made = replace(job, known=tuple(study.name for study in studies)), plan(studies)
                try:
                    with shown(studies):
                        run_workers(planned, made, stop=stop)
                except CifarSweepError as error:
                    if until_idle or job.studies:
                        raise
                    log.warning("%s It is tried again in %d s.", error, RETRY_SECONDS)
                    pause(RETRY_SECONDS, stop)
            elif until_idle:
                break
            else:
                pause(IDLE_SECONDS, stop)


def work(job: Job, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Train trials of open studies until their budgets are spent, time is out, or `stop` says yes.

    An unfinished trial goes back to the queue and is continued from its last epoch, here or elsewhere. Raises
    StudyError where several trials in a row failed, another CifarSweepError where none is at fault.
    """

    def stopped() -> bool:
        return stop() or job.out_of_time()

    try:
        with closing(wait_out(lambda: open_existing(job.storage), stop=stopped, say=log.warning)) as storage:
            _TrialWorker(job, storage, stop=stopped).work()
    except Exception as error:
        if not (stopped() and is_outage(error)):
            raise
        log.warning("stopped while the database does not answer; the trials go on elsewhere, or with the same command")


class _TrialWorker:
    def __init__(self, job: Job, storage: Storage, *, stop: Callable[[], bool]) -> None:
        self.job, self.storage, self.stop = job, storage, stop
        self.device = resolve_device(job.device, worker=job.worker)
        threads = prepare_process(self.device, threads=job.threads, share=job.share)
        shown, (precision, _) = f"{self.device.type} ({device_name(self.device)})", resolve_precision(self.device)
        self.worker = Worker(Owner.current(), shown, threads, precision, kernels_name(self.device))
        self.patiently = Patience(storage, stop)
        self.fitting: dict[Shape, int] = {}  # trials to try next, where a group was too large for the memory
        self.failures: Counter[str] = Counter()  # trials that failed in a row, by the study's uid, as below
        self.given_up = 0  # studies in a row that were paused because all their trials fail
        self.ready: dict[str, tuple[ImageData, Artifacts]] = {}  # of studies that can be trained here
        self.choosers: dict[tuple[str, int], Chooser] = {}  # by the study's uid, and how often it was extended
        self.unable: dict[str, CifarSweepError] = {}  # why the others cannot

    def work(self) -> None:
        while not self.stop() and (found := self.patiently(self._next)):
            if found[1]:
                self._train(*found)
            else:
                time.sleep(POLL_SECONDS)  # other workers hold the last trials; one may come back

    def _next(self) -> tuple[SweepStudy, list[Claim]] | None:
        """A study and trials of it to train: no trials where others hold the last ones, None where nothing is left."""
        unfinished = None
        for study in open_studies(self.storage, self.job.studies):
            if self.job.known is not None and study.name not in self.job.known:
                return None
            if self._is_able(study):
                workers = None if self.job.groups.fixed else self.job.workers
                study.start_clock()
                unfinished = (
                    study,
                    study.claim(
                        self.worker,
                        size=self._size,
                        workers=workers,
                        devices=self.job.devices,
                        choose=self._chooser(study).choose,
                        in_time=in_time(study),
                        trials=replan(study),
                    ),
                )
                if study.choice.pruned:
                    drop_needless(study, self.ready[study.uid][1])
                if unfinished[1]:
                    break
        if self.unable and unfinished is None:
            raise next(iter(self.unable.values()))
        return unfinished

    def _chooser(self, study: SweepStudy) -> Chooser:
        space = study.uid, len(study.changes)
        if space not in self.choosers:
            self.choosers[space] = Chooser(study.sweep)
        return self.choosers[space]

    def _size(self, shape: Shape) -> int:
        return min(self.job.groups.size(shape), max(1, self.fitting.get(shape, sys.maxsize)))

    def _is_able(self, study: SweepStudy) -> bool:
        if study.uid not in self.unable and study.uid not in self.ready:
            try:
                artifacts = open_artifacts(self.job.artifacts or study.artifacts)
                settle_in(study, artifacts)
                data = images_of(study, self.job.data)
                check_code(study.name, study.code, fingerprints(study.code))
                self.ready[study.uid] = data, artifacts
            except CifarSweepError as error:
                self._leave(study, error)
        return study.uid in self.ready

    def _leave(self, study: SweepStudy, error: CifarSweepError) -> None:
        """Leave a study to others: here its images are not to be had, or its files cannot be kept."""
        log.warning("study %s: %s", study.name, error)
        self.ready.pop(study.uid, None)
        self.unable[study.uid] = error

    def _train(self, study: SweepStudy, claims: list[Claim]) -> None:
        data, artifacts = self.ready[study.uid]
        failed, too_large, end = None, False, self.patiently(study.search_end) or math.inf
        with Lease(self.storage, study.name, claims) as lease:

            def stopped() -> bool:
                return self.stop() or lease.halted or time.time() >= end

            fits = self.fitting.get(claims[0].config.shape)
            training = Training(study, data, self.device, artifacts, stopped, self.patiently, fits != 0, end)
            try:
                failed = training.train(claims)
                self.fitting |= {claims[0].config.shape: 1} if fits == 0 else {}
            except DiskError as error:
                if self.job.studies:
                    raise
                self._leave(study, error)
            except GroupTooLargeError:
                too_large = True
        if too_large:  # only here is the group itself gone
            self._try_smaller(claims)
        self.given_up = self.given_up if failed else 0
        self.failures[study.uid] = self.failures[study.uid] + 1 if failed else 0
        if self.failures[study.uid] >= MAX_CONSECUTIVE_FAILURES:
            self.failures[study.uid] = 0
            self._give_up(study, f"{MAX_CONSECUTIVE_FAILURES} trials in a row failed; the last one: {failed}")

    def _try_smaller(self, claims: Sequence[Claim]) -> None:
        """Note that so many trials do not fit into the memory, and give it what this process holds of it in vain."""
        self.fitting[claims[0].config.shape] = half = len(claims) // 2
        torch.cuda.empty_cache()
        if half:
            log.warning("%d trials at once do not fit into memory; going on with half as many", len(claims))
        else:
            log.warning(
                "a trial does not fit into the memory that is left; it is tried once more in %d s", MEMORY_SECONDS
            )
            pause(MEMORY_SECONDS, self.stop)

    def _give_up(self, study: SweepStudy, reason: str) -> None:
        """Keep a study whose trials all fail from wasting more time; others go on."""
        self.patiently(lambda: study.set_state(PAUSED, reason=reason))
        self.given_up += 1
        error = StudyError(f"study {study.name!r}: {reason}.")
        if self.job.studies or self.given_up > 1:  # then it is rather this process that is sick
            raise error
        log.warning("%s It is paused.", error)
