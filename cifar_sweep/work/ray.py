"""Workers on a Ray cluster. Ray only starts them, and says when one is lost; the study's database stays the truth."""

import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy.engine import make_url

from cifar_sweep.errors import CifarSweepError, StudyError, UsageError, one_line
from cifar_sweep.files import default_cache, replace_file
from cifar_sweep.machine.plan import choose
from cifar_sweep.study.opening import open_studies
from cifar_sweep.study.outage import explain, is_outage, wait_out
from cifar_sweep.study.storage import Storage, open_existing
from cifar_sweep.training.device import available_cores
from cifar_sweep.version import __version__
from cifar_sweep.work.ray_cluster import ClusterError, check_request, joined
from cifar_sweep.work.worker import Job, work

__all__ = ["check_request", "run_on_ray"]
log = logging.getLogger(__name__)
TICK_SECONDS = 0.5
LOOK_SECONDS = 2.0  # how often the database is asked whether the studies are finished
PATIENCE_SECONDS = 15.0  # how long workers may wait for room before that is said
FETCH_SECONDS = 10.0  # for an answer that is there
STOP_SECONDS = 30.0
RESTART_SECONDS, LONGEST_RESTART_SECONDS = 5.0, 60.0
SHARED_SECONDS = 10.0  # how long another machine may take to see a new file in a shared folder


@dataclass(frozen=True)
class Terms:
    """What all workers of a run have in common, besides their jobs.

    Attributes:
        cpus: cores for each, as Ray counts them.
        gpus: GPUs for each.
        group: how many trials to train at once; 0 is chosen on each machine.
        landmarks: files that lie in the folders of the artifacts for as long as the run lasts.
        lease: CIFAR_SWEEP_LEASE_SECONDS where the sweep was started, for it must be the same everywhere; None is not
            set.
    """

    cpus: float
    gpus: float
    group: int
    landmarks: tuple[Path, ...]
    lease: str | None


def run_on_ray(
    jobs: Sequence[Job],
    *,
    on: str,
    gpus_per_worker: float,
    cpus_per_worker: float,
    group: int,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Run one worker per job on a Ray cluster until the studies are finished, time is out, or `stop` says yes.

    A worker that waits for room waits until there is some. One that is lost, with its process or its node, is started
    again wherever there is room, as often as it takes; its trial goes on with whoever claims it.
    With an SQLite database all workers stay on this machine.

    Args:
        jobs: the workers' jobs, all with the same storage, studies and device; their groups are planned anew.
        on: as `check_request` takes it.
        gpus_per_worker: GPUs, or a fraction of one; 0 is on the CPU.
        cpus_per_worker: cores, or a fraction of one.
        group: trials at once in each worker; 0 is chosen on each machine, as `machine.plan.choose` does.
        stop: asked every half a second; workers then give their trials back, for which they have 30 s.
        say: told in a sentence what happens.

    Raises:
        UsageError: as `check_request`; the resources or the device are none that a worker can have.
        ClusterError: the cluster cannot be joined or started, or cannot run workers.
        CifarSweepError: a worker's; the others are asked to stop first.
    """
    address = check_request(on, storage=jobs[0].storage, artifacts=jobs[0].artifacts or "")
    _check_share(cpus_per_worker, gpus_per_worker)
    device = _device(jobs[0].device, gpus_per_worker)
    placed = [_placed(job, device=device, cpus=cpus_per_worker) for job in jobs]
    with closing(open_existing(placed[0].storage)) as storage, _landmarks(storage, placed[0]) as landmarks:
        lease = os.environ.get("CIFAR_SWEEP_LEASE_SECONDS")
        terms = Terms(cpus_per_worker, gpus_per_worker, group, landmarks, lease)
        with joined(address) as ray:
            say(_greeting(ray, len(placed), terms))
            crew = _Crew(ray, placed, terms, options=_options(ray, terms, storage=placed[0].storage), say=say)
            crew.run(lambda: _is_finished(storage, placed[0]), stop=stop)


# What runs on the nodes


class ClusterWorker:
    """An actor with two threads: one works, the other hears that it is to stop."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def whereabouts(self) -> tuple[str, str]:
        """The machine's name, and the version of cifar-sweep there."""
        return socket.gethostname(), __version__

    def stop(self) -> None:
        """Ask it to give its trials back and end."""
        self._asked.set()

    def work(self, job: Job, terms: Terms) -> CifarSweepError | None:
        """Do the job. Returns what ended it, where that is nothing good; Ray would wrap what is raised."""
        if terms.lease is not None:
            os.environ["CIFAR_SWEEP_LEASE_SECONDS"] = terms.lease
        try:
            _check_landmarks(terms.landmarks)
            wait_out(lambda: self._plan_and_work(job, terms), stop=self._asked.is_set, say=log.warning)
        except CifarSweepError as error:
            return error
        except Exception as error:
            log.warning("worker %d failed", job.worker, exc_info=True)
            return explain(error) or StudyError(f"worker {job.worker} failed: {one_line(error)}.")
        return None

    def _plan_and_work(self, job: Job, terms: Terms) -> None:
        work(_planned(job, terms), stop=self._asked.is_set)


def _planned(job: Job, terms: Terms) -> Job:
    """The job with groups for this machine, which one worker at a time measures."""
    with closing(open_existing(job.storage)) as storage:
        sweeps = [study.sweep for study in open_studies(storage, job.studies)]
    if not sweeps:
        return job
    lock = FileLock(default_cache() / "plan.lock")
    with suppress(OSError):  # a read-only home: then they measure beside each other
        default_cache().mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        groups = choose(sweeps, device=job.device, workers=1, threads=job.threads, group=terms.group).groups
    finally:
        lock.release()
    if groups.free_bytes is not None:  # the plan is for one worker on the whole machine
        part = min(1.0, terms.gpus or terms.cpus / available_cores())
        groups = replace(groups, free_bytes=int(part * groups.free_bytes))
    return replace(job, groups=groups)


def _check_landmarks(landmarks: Sequence[Path]) -> None:
    """Refuse to work where the artifacts' folder is another one: nobody else could go on from its checkpoints."""
    until = time.monotonic() + SHARED_SECONDS
    for landmark in landmarks:
        while not landmark.exists():
            if time.monotonic() > until:
                raise UsageError(
                    f"artifacts {landmark.parent}: not the folder of that name on the machine that runs the sweep; "
                    "accepted: a folder that all machines share, or s3://BUCKET/PREFIX."
                )
            time.sleep(TICK_SECONDS)


# What runs where the sweep was started


@dataclass(eq=False)
class _Seat:
    """A job, and the worker that has it: none while it is `due` to be started again, in seconds of monotonic time."""

    job: Job
    actor: Any = None
    whereabouts: Any = None
    ended: Any = None
    host: str = ""
    losses: int = 0
    due: float = 0.0
    done: bool = False


class _Crew:
    """The workers of a run. No call waits for a node without a limit: it may be gone."""

    def __init__(
        self, ray: Any, jobs: Sequence[Job], terms: Terms, *, options: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        self._ray = ray
        self._terms = terms
        self._say = say
        self._actor = ray.remote(ClusterWorker).options(**options)
        self._seats = [_Seat(job) for job in jobs]
        self._error: CifarSweepError | None = None
        self._closing = False
        self._at_work = 0
        self._since = time.monotonic()  # so many are at work; when that was said, infinite

    def run(self, finished: Callable[[], bool], *, stop: Callable[[], bool]) -> None:
        """See `run_on_ray`."""
        looked = time.monotonic()
        try:
            while not (self._error or stop() or all(seat.done or seat.job.out_of_time() for seat in self._seats)):
                self._start_those_due()
                self._look()
                self._say_who_waits()
                if time.monotonic() - looked > LOOK_SECONDS:
                    if finished():
                        break
                    looked = time.monotonic()
        finally:
            self._close()
        if self._error is not None:
            raise self._error

    def _start_those_due(self) -> None:
        for seat in self._seats:
            if seat.actor is None and not seat.done and time.monotonic() >= seat.due:
                seat.actor = self._actor.remote()
                seat.whereabouts = seat.actor.whereabouts.remote()
                seat.ended = seat.actor.work.remote(seat.job, self._terms)

    def _look(self) -> None:
        """Wait a moment, and see who has started and who has ended."""
        seats = [seat for seat in self._seats if seat.actor is not None]
        starting = [seat.whereabouts for seat in seats if not seat.host]
        awaited = [*starting, *(seat.ended for seat in seats)]
        if not awaited:
            time.sleep(TICK_SECONDS)
            return
        ready, _ = self._ray.wait(awaited, num_returns=len(awaited), timeout=TICK_SECONDS)
        for seat in seats:
            if not seat.host and seat.whereabouts in ready:
                self._welcome(seat)
            if seat.ended in ready:
                self._take_leave(seat)

    def _welcome(self, seat: _Seat) -> None:
        try:
            seat.host, version = self._ray.get(seat.whereabouts, timeout=FETCH_SECONDS)
        except self._ray.exceptions.RayError:
            return  # it has ended, too, and why is seen there
        if version != __version__:
            reason = f"cifar-sweep {version} is installed there, here {__version__}; all machines need the same"
            self._fail(ClusterError(f"{seat.host}: {reason}."))

    def _take_leave(self, seat: _Seat) -> None:
        exceptions = self._ray.exceptions
        try:
            error = self._ray.get(seat.ended, timeout=FETCH_SECONDS)
        except exceptions.RayTaskError as failure:
            self._fail(ClusterError(f"Ray could not run a worker: {_last_line(failure)}."))
        except exceptions.RayError as failure:
            if "creation task" in str(failure):  # it would be so each time
                reason = _last_line(failure)
                self._fail(ClusterError(f"a node could not load cifar-sweep ({reason}); it must be installed on each."))
            else:
                log.debug("worker %d: %s", seat.job.worker, failure)
                self._start_again(seat)
                return
        else:
            if error is not None:
                elsewhere = seat.host not in ("", socket.gethostname())
                self._fail(type(error)(f"{seat.host}: {error}") if elsewhere else error)
        seat.actor, seat.done = None, True

    def _start_again(self, seat: _Seat) -> None:
        where = f"on {seat.host}, with its process or its node" if seat.host else "before it started"
        self._dismiss(seat)  # it may only be out of reach
        if self._closing:
            return
        seat.losses += 1
        pause = min(seat.losses * RESTART_SECONDS, LONGEST_RESTART_SECONDS)
        seat.due = time.monotonic() + pause
        self._say(
            f"worker {seat.job.worker} was lost {where}; it is started again in {pause:.0f} s, wherever there is room."
        )

    def _fail(self, error: CifarSweepError) -> None:
        self._error = self._error or error

    def _dismiss(self, seat: _Seat) -> None:
        with suppress(Exception):  # it may be gone
            self._ray.kill(seat.actor, no_restart=True)
        seat.actor, seat.host = None, ""

    def _say_who_waits(self) -> None:
        at_work, all_of_them = sum(bool(seat.host) or seat.done for seat in self._seats), len(self._seats)
        if at_work != self._at_work:
            self._at_work, self._since = at_work, time.monotonic()
        if time.monotonic() - self._since > PATIENCE_SECONDS:
            self._since = math.inf
            if at_work < all_of_them:
                self._say(f"{at_work} of {all_of_them} workers are at work; the others wait for room in the cluster.")

    def _close(self) -> None:
        """Ask all to stop, wait for those that have started, and end the rest."""
        self._closing = True
        for seat in self._seats:
            if seat.actor is not None:
                seat.actor.stop.remote()
        until = time.monotonic() + STOP_SECONDS
        self._look()  # one may have started just now
        while self._started() and time.monotonic() < until:
            self._look()
        if left := len(self._started()):
            which = "a worker that did" if left == 1 else f"{left} workers that did"
            self._say(f"{which} not stop within {STOP_SECONDS:.0f} s will be ended; trials go on from checkpoints.")
        for seat in self._seats:
            self._dismiss(seat)

    def _started(self) -> list[_Seat]:
        return [seat for seat in self._seats if seat.actor is not None and seat.host]


def _is_finished(storage: Storage, job: Job) -> bool:
    """Whether no study is left to work on; not while the database does not answer."""
    try:
        return next(open_studies(storage, job.studies), None) is None
    except Exception as error:
        if not is_outage(error):
            raise
        storage.note_outage()
        return False


@contextmanager
def _landmarks(storage: Storage, job: Job) -> Iterator[tuple[Path, ...]]:
    """A file in each folder that the workers will put theirs in, by which they know it."""
    addresses = {job.artifacts or study.artifacts for study in open_studies(storage, job.studies)}
    name = f".run-{secrets.token_hex(8)}"
    landmarks = tuple(Path(address) / name for address in sorted(addresses) if "://" not in address)
    try:
        for landmark in landmarks:
            replace_file(landmark, b"")
        yield landmarks
    finally:
        for landmark in landmarks:
            with suppress(OSError):
                landmark.unlink(missing_ok=True)


def _check_share(cpus: float, gpus: float) -> None:
    """Refuse resources that Ray would refuse with a traceback."""
    if not (math.isfinite(cpus) and cpus >= 0):
        raise UsageError(f"--cpus-per-worker {cpus:g}: accepted: a number from 0.")
    if not (math.isfinite(gpus) and gpus >= 0 and (gpus < 1 or gpus == int(gpus))):
        raise UsageError(f"--gpus-per-worker {gpus:g}: accepted: a fraction from 0 to 1, or a whole number.")


def _device(asked: str, gpus: float) -> str:
    """The device by the name that it has for a worker, to which Ray shows its own GPUs alone."""
    if asked.startswith("cuda:"):
        raise UsageError(f"--device {asked}: on Ray the cluster chooses the GPU; accepted: auto, cpu, cuda.")
    if asked == "cuda" and not gpus:
        raise UsageError("--device cuda: on Ray a worker has a GPU only by --gpus-per-worker; accepted: 0.5, or 1.")
    return ("cuda" if gpus else "cpu") if asked == "auto" else asked


def _placed(job: Job, *, device: str, cpus: float) -> Job:
    """The job for a part of any machine: with paths that do not depend on the folder that a worker starts in."""
    url = make_url(job.storage)
    if url.get_backend_name() == "sqlite" and url.database:
        url = url.set(database=str(Path(url.database).absolute()))
    data = str(Path(job.data).absolute()) if job.data and Path(job.data).exists() else job.data
    storage = url.render_as_string(hide_password=False)
    return replace(job, storage=storage, data=data, device=device, threads=job.threads or max(1, int(cpus)))


def _options(ray: Any, terms: Terms, *, storage: str) -> dict[str, Any]:
    """How Ray is to place a worker: beside SQLite on this machine, else on any."""
    options = {"num_cpus": terms.cpus, "num_gpus": terms.gpus, "max_concurrency": 2, "scheduling_strategy": "SPREAD"}
    if storage.startswith("sqlite"):  # every node has 1 of a resource that is named by its address
        options["resources"] = {f"node:{ray.util.get_node_ip_address()}": 0.001}
    return options


def _greeting(ray: Any, workers: int, terms: Terms) -> str:
    there = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    each = f"{terms.cpus:g} cores" + (f" and {terms.gpus:g} GPU" if terms.gpus else "")
    return (
        f"Ray: {nodes} node{'s' * (nodes > 1)} with {there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs; "
        f"{workers} worker{'s' * (workers > 1)} with {each} each"
    )


def _last_line(failure: Exception) -> str:
    """What was raised on a node, without the traceback before it."""
    return str(failure).strip().splitlines()[-1].strip().rstrip(".")
