"""Workers on a Ray cluster. Ray starts them and says when one is lost; the study's database decides what is trained."""

import asyncio
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

from cifar_sweep.database.address import absolute
from cifar_sweep.database.outage import is_outage, wait_out
from cifar_sweep.errors import CifarSweepError, DataError, DiskError, SickDeviceError, UsageError, one_line
from cifar_sweep.files import replace_file
from cifar_sweep.machine.plan import choose
from cifar_sweep.study.opening import open_studies
from cifar_sweep.study.storage import Storage, open_existing
from cifar_sweep.training.limits import available_cores
from cifar_sweep.training.models.user_code import UserCode, take, user_code
from cifar_sweep.version import __version__
from cifar_sweep.work.local import error_of
from cifar_sweep.work.ray_cluster import ClusterError, joined
from cifar_sweep.work.worker import Job, work

log = logging.getLogger(__name__)
TICK_SECONDS = 0.5  # between two looks at the workers
LOOK_SECONDS = 2.0  # how often the database is asked whether the studies are finished
PATIENCE_SECONDS = 15.0  # how long workers may wait for room before that is said
FETCH_SECONDS = 10.0  # for an answer that is there
STOP_SECONDS = 30.0  # for workers to give their trials back
RESTART_SECONDS, LONGEST_RESTART_SECONDS = 5.0, 60.0  # longer with each loss: what kills a worker may last
SHARED_SECONDS = 10.0  # how long another machine may take to see a new file in a shared folder


@dataclass(frozen=True)
class Terms:
    """What all workers of a run have in common, besides their jobs."""

    gpus: float  # of each worker; a fraction is a part of one
    group: int  # trials at once; 0 is chosen on each machine
    landmarks: tuple[Path, ...]  # files that lie in the folders of the artifacts for as long as the run lasts
    lease: str | None  # CIFAR_SWEEP_LEASE_SECONDS of the run, for all workers; None: not set
    code: tuple[UserCode, ...] = ()  # the files of users' own networks that the studies were made with


def run_on_ray(
    job: Job,
    address: str,
    *,
    workers: int,
    gpus: float,
    group: int,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Do a job with workers on a Ray cluster until its studies are finished, time is out, or `stop` says yes.

    A worker that waits for room waits until there is some. A worker that is lost, with its process or its node, is
    started again wherever there is room, as often as it takes. With SQLite all workers stay on this machine. Workers
    that are to stop have 30 s to give their trials back.

    Each worker has as many cores as `job` has threads, one if it names none, and so many `gpus`, or a part of one. It
    trains a `group` of trials at once; 0 is chosen on each machine. `address` is as `check_request` returns it.
    Raises ClusterError where the cluster is of no use, else a worker's CifarSweepError, when the others have stopped.
    """
    # On the nodes: paths that do not depend on the folder that a worker starts in, and the device as Ray shows it.
    job = replace(
        job,
        storage=absolute(job.storage),
        data=str(Path(job.data).absolute()) if job.data and Path(job.data).exists() else job.data,
        device=("cuda" if gpus else "cpu") if job.device == "auto" else job.device,
        threads=job.threads or 1,
        workers=workers,
        devices=max(1, math.ceil(workers * gpus)),  # a machine's cores are one
    )
    with closing(open_existing(job.storage)) as storage, _landmarks(storage, job) as landmarks:
        lease, code = os.environ.get("CIFAR_SWEEP_LEASE_SECONDS"), tuple(_own_code(storage, job))
        terms = Terms(gpus, group, landmarks, lease, code)
        with joined(address) as ray:
            say(_greeting(ray, job, gpus))
            asyncio.run(_Crew(ray, job, terms, say=say).run(lambda: _is_finished(storage, job), stop=stop))


def _own_code(storage: Storage, job: Job) -> Iterator[UserCode]:
    """The users' own networks of the studies, to be sent along: a node may have none of their files, or others."""
    for study in open_studies(storage, job.studies):
        for model, fingerprint in study.code.items():
            with suppress(CifarSweepError):  # it is not here: then each node looks for it
                yield user_code(model, fingerprint)


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
                landmark.unlink()


def _is_finished(storage: Storage, job: Job) -> bool:
    """Whether no study is left to work on; not while the database does not answer."""
    try:
        return next(open_studies(storage, job.studies), None) is None
    except Exception as error:
        if not is_outage(error):
            raise
        storage.note_outage()
        return False


def _greeting(ray: Any, job: Job, gpus: float) -> str:
    there = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    each = f"{job.threads} cores" + (f" and {gpus:g} GPU" if gpus else "")
    return (
        f"Ray: {nodes} node{'s' * (nodes > 1)} with {there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs; "
        f"{job.workers} worker{'s' * (job.workers > 1)} with {each} each"
    )


class _Crew:
    """The workers of a run, each started anew when it is lost. Nothing waits for a node without end: it may be gone."""

    _closing = False

    def __init__(self, ray: Any, job: Job, terms: Terms, *, say: Callable[[str], None]) -> None:
        options: dict[str, Any] = {"num_cpus": job.threads, "num_gpus": terms.gpus, "scheduling_strategy": "SPREAD"}
        if job.storage.startswith("sqlite"):  # every node has 1 of a resource that is named by its address
            options["resources"] = {f"node:{ray.util.get_node_ip_address()}": 0.001}
        self._ray, self._job, self._terms, self._say = ray, job, terms, say
        self._worker = ray.remote(ClusterWorker).options(max_concurrency=2, **options)
        self._actors: dict[int, Any] = {}
        self._hosts: dict[int, str] = {}  # of the workers that have started

    async def run(self, finished: Callable[[], bool], *, stop: Callable[[], bool]) -> None:
        jobs = [replace(self._job, worker=worker) for worker in range(self._job.workers)]
        tasks = [asyncio.create_task(self._keep_at_work(job)) for job in jobs]
        left, unable = set(tasks), list[CifarSweepError]()
        at_work, since = 0, (looked := time.monotonic())
        try:
            while not (stop() or self._job.out_of_time()):
                done, left = await asyncio.wait(left, timeout=TICK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    if isinstance(error := task.exception(), (DataError, DiskError, UsageError)):
                        unable.append(error)  # a node may lack what others have
                        if left:
                            self._say(f"{error} The other workers go on.")
                    elif error:
                        raise error
                if not left and unable and not finished():
                    raise unable[0]
                if not left:
                    break
                now, before, at_work = time.monotonic(), at_work, len(tasks) - len(left) + len(self._hosts)
                since = since if at_work == before else now
                if at_work < len(tasks) and now - since > PATIENCE_SECONDS:
                    since = math.inf
                    there = f"{at_work} of {len(tasks)} workers are at work"
                    self._say(f"{there}; the others wait for room in the cluster.")
                if now - looked > LOOK_SECONDS:
                    if finished():
                        break
                    looked = now
        finally:
            await self._close(tasks)

    async def _keep_at_work(self, job: Job) -> None:
        losses = 0
        while not self._closing:
            actor = self._actors[job.worker] = self._worker.remote()
            try:
                await self._do(job, actor)
                return
            except (self._ray.exceptions.RayError, SickDeviceError) as failure:
                host = self._hosts.pop(job.worker, None)
                self._raise_if_lasting(failure)
                log.debug("worker %d: %s", job.worker, failure)
                part = one_line(failure) if isinstance(failure, SickDeviceError) else "with its process or its node"
            self._kill(actor)  # it may only be out of reach
            if self._closing:
                return
            losses += 1
            where = f"on {host}, {part}" if host else "before it started"
            pause = min(losses * RESTART_SECONDS, LONGEST_RESTART_SECONDS)
            again = f"it is started again in {pause:.0f} s, wherever there is room"
            self._say(f"worker {job.worker} was lost {where}; {again}.")
            await asyncio.sleep(pause)

    async def _do(self, job: Job, actor: Any) -> None:
        host, version = await self._answer(actor.whereabouts.remote())
        if version != __version__:
            there = f"cifar-sweep {version} is installed there"
            raise ClusterError(f"{host}: {there}, here {__version__}; all machines need the same.")
        self._hosts[job.worker] = host
        error = await self._answer(actor.work.remote(job, self._terms))
        if isinstance(error, SickDeviceError):
            raise error
        del self._hosts[job.worker], self._actors[job.worker]
        if error is not None:
            raise error if host == socket.gethostname() else type(error)(f"{host}: {error}")

    def _raise_if_lasting(self, failure: Exception) -> None:
        """Raise ClusterError where another worker would fail in the same way."""
        last_line = str(failure).strip().rpartition("\n")[2].strip().rstrip(".")  # after a traceback of the node's
        if isinstance(failure, self._ray.exceptions.RayTaskError):
            raise ClusterError(f"Ray could not run a worker: {last_line}.") from None
        if "creation task" in str(failure):
            why = f"({last_line}); it must be installed on each."
            raise ClusterError(f"a node could not load cifar-sweep {why}") from None

    async def _answer(self, asked: Any) -> Any:
        while not self._ray.wait([asked], timeout=0)[0]:
            await asyncio.sleep(TICK_SECONDS)
        return self._ray.get(asked, timeout=FETCH_SECONDS)

    async def _close(self, tasks: Sequence["asyncio.Task[None]"]) -> None:
        """Ask all to stop, wait for those that have started, and end the rest."""
        self._closing = True
        for actor in self._actors.values():
            actor.stop.remote()
        until = time.monotonic() + STOP_SECONDS
        while not all(task.done() for task in tasks) and time.monotonic() < until:
            await asyncio.sleep(TICK_SECONDS)  # one may have started just now
            if not self._hosts:
                break
        if left := len(self._hosts):
            which = "a worker that did" if left == 1 else f"{left} workers that did"
            self._say(f"{which} not stop within {STOP_SECONDS:.0f} s will be ended; trials go on from checkpoints.")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for actor in self._actors.values():
            self._kill(actor)

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):  # it may be gone
            self._ray.kill(actor, no_restart=True)


class ClusterWorker:
    """An actor on a node, with two threads: one works, the other hears that it is to stop."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def whereabouts(self) -> tuple[str, str]:
        """The machine's name, and the version of cifar-sweep there."""
        return socket.gethostname(), __version__

    def stop(self) -> None:
        """Ask it to give its trials back and end."""
        self._asked.set()

    def work(self, job: Job, terms: Terms) -> CifarSweepError | None:
        """Do the job. Returns the error that ended it, if one did: Ray would wrap what is raised."""
        if terms.lease is not None:
            os.environ["CIFAR_SWEEP_LEASE_SECONDS"] = terms.lease
        for code in terms.code:
            take(code)
        stop = self._asked.is_set

        def do() -> None:
            _check_landmarks(terms.landmarks)
            wait_out(lambda: work(_planned(job, terms), stop=stop), stop=stop, say=log.warning)

        return error_of(job.worker, do, level=logging.WARNING)


def _planned(job: Job, terms: Terms) -> Job:
    """The job with groups for this machine."""
    with closing(open_existing(job.storage)) as storage:
        sweeps = [study.sweep for study in open_studies(storage, job.studies)]
    if not sweeps:
        return job
    # A GPU is measured with all workers that it has room for; a machine's cores with one.
    workers = int(1 / terms.gpus) if terms.gpus else 1
    groups = choose(sweeps, device=job.device, workers=workers, threads=job.threads, group=terms.group).groups
    if groups.free_bytes is not None and not terms.gpus:
        part = min(1.0, job.threads / available_cores())
        groups = replace(groups, free_bytes=int(part * groups.free_bytes))
    return replace(job, groups=groups, share=terms.gpus or 1.0)


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
