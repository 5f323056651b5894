"""The bridge between search and training: claim a group, train it, report, prune, keep weights, tell.

The order within a trial makes it safe to be killed anywhere: the checkpoint of an epoch is on disk before the epoch is
reported, and the weights are on disk before the trial is told.
"""

import logging
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cifar_sweep.config import PARAMETERS, Shape
from cifar_sweep.errors import CifarSweepError, DiskError, StudyError, UsageError, one_line
from cifar_sweep.search import study as studies
from cifar_sweep.search.storage import Owner, explain, open_existing
from cifar_sweep.search.study import Claim, SweepStudy, TrialLostError, Worker
from cifar_sweep.search.sweepfile import Range, Sweep, values_of
from cifar_sweep.training import checkpoint
from cifar_sweep.training import data as images
from cifar_sweep.training.data import ImageData
from cifar_sweep.training.device import (
    device_name,
    prepare_process,
    resolve_device,
    resolve_precision,
)
from cifar_sweep.training.group import EpochResult
from cifar_sweep.training.speed import ONE_AT_A_TIME, Groups
from cifar_sweep.training.split import split
from cifar_sweep.training.train import EpochInterruptedError, Run

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
MAX_CONSECUTIVE_FAILURES = 5
TRACEBACK_CHARACTERS = 4000


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know; the rest is in the study.

    Attributes:
        storage: address of the database.
        study: the study's name.
        data: where the images are, as `training.data.load` takes it.
        artifacts: the folder that holds checkpoints and weights.
        device: auto, cpu, cuda or cuda:N.
        precision: the arithmetic of trials whose sweep leaves it to the machine: fp32 or bf16.
        threads: threads to compute on, on the CPU; 0 is one per core.
        deadline: when to stop, in seconds since the epoch; None is never.
        worker: the worker's position among those started together.
        workers: how many were started together.
        groups: how many trials of a shape to train at once.
    """

    storage: str
    study: str
    data: str
    artifacts: Path
    device: str = "auto"
    precision: str = "fp32"
    threads: int = 0
    deadline: float | None = None
    worker: int = 0
    workers: int = 1
    groups: Groups = ONE_AT_A_TIME

    def out_of_time(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.time() >= self.deadline


def check_images(sweep: Sweep, data: ImageData) -> None:
    """Refuse a sweep that asks for more training images than there are, or for a batch larger than those.

    Raises:
        UsageError: it does; the message says which.
    """
    available = len(split(data.train_labels)[0])
    fewest, most = _bounds(sweep, "train_images")
    if most > available:
        raise UsageError(f"train_images = {most}: {data.name} has {available} training images besides validation.")
    used = fewest or most or available
    smallest, largest = _bounds(sweep, "batch_size")
    if largest > used:
        raise UsageError(f"batch_size = {largest}: more than the {used} training images; accepted: at most {used}.")
    if smallest == 1 and _may_normalize_features(sweep):
        raise UsageError("batch_size = 1: batch norm after a hidden layer of cnn3 needs two images; accepted: from 2.")


def _bounds(sweep: Sweep, name: str) -> tuple[int, int]:
    """The least and the greatest value that a whole-numbered parameter takes in this sweep."""
    if sweep.given:
        taken = [int(point.params().get(name, PARAMETERS[name].default)) for point in sweep.enqueue]
        return min(taken), max(taken)
    domain = sweep.space.get(name)
    if domain is None:
        value = int(sweep.fixed.get(name, PARAMETERS[name].default))
        return value, value
    values = [domain.low, domain.high] if isinstance(domain, Range) else [float(value) for value in domain.choices]
    return int(min(values)), int(max(values))


def _may_normalize_features(sweep: Sweep) -> bool:
    return "cnn3" in values_of(sweep, "model") and True in values_of(sweep, "batch_norm")


def local_jobs(
    storage: str,
    study: str,
    data: str,
    *,
    artifacts: Path,
    device: str,
    threads: int,
    deadline: float | None,
    workers: int,
    groups: Groups = ONE_AT_A_TIME,
) -> list[Job]:
    """One job per worker on this machine."""
    first = resolve_device(device)
    prepare_process(first, threads=threads)  # as the workers will be, so that what is measured here holds there
    precision, _ = resolve_precision(first)
    common = Job(storage, study, data, artifacts, device, precision, threads, deadline, workers=workers, groups=groups)
    return [replace(common, worker=worker) for worker in range(workers)]


def facts(data: ImageData, *, source: str) -> dict[str, str | int]:
    """What a study stores of its data; `source` is where to find it again, unless told otherwise."""
    there = str(Path(source).absolute()) if Path(source).exists() else source
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "classes": len(data.classes),
        "train_images": len(split(data.train_labels)[0]),
        "source": there,
    }


def work(job: Job, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Train trials of the study until its budget is spent, time is out, or `stop` says yes.

    An unfinished trial goes back to the queue and is continued from its last epoch, here or elsewhere.

    Raises:
        StudyError: several trials in a row failed, or the data is not the study's.
        CifarSweepError: the data, the device, the storage or the disk is at fault.
    """
    storage = open_existing(job.storage)
    study = studies.load(storage, job.study)
    data = images.load(job.data)
    if data.fingerprint != study.data["fingerprint"]:
        raise StudyError(f"study {study.name!r} was run on {study.data['name']}, this worker has {data.name}.")
    device = resolve_device(job.device, worker=job.worker)
    threads = prepare_process(device, threads=job.threads)
    worker = Worker(Owner.current(), f"{device.type} ({device_name(device)})", threads, job.precision)
    folder = artifact_folder(job.artifacts, study)

    def stopped() -> bool:
        return stop() or job.out_of_time()

    fitting: dict[Shape, int] = {}

    def size(shape: Shape) -> int:
        return min(job.groups.size(shape), fitting.get(shape, sys.maxsize))

    failures = 0
    while not stopped():
        claims = study.claim(worker, size=size, workers=None if job.groups.fixed else job.workers)
        if not claims:
            if study.finished():
                break
            time.sleep(POLL_SECONDS)  # other workers hold the last trials; one may come back
            continue
        failed = None
        with storage.heartbeat([claim.trial_id for claim in claims]):
            try:
                failed = train_group(study, claims, data, device=device, folder=folder, stop=stopped)
            except GroupTooLargeError:
                fitting[claims[0].config.shape] = len(claims) // 2
                log.warning("%d trials at once do not fit into memory; going on with half as many", len(claims))
        failures = failures + 1 if failed else 0
        if failures >= MAX_CONSECUTIVE_FAILURES:
            raise StudyError(f"study {study.name!r}: {failures} trials in a row failed; the last one: {failed}.")
    storage.close()


class GroupTooLargeError(Exception):
    """The memory does not hold this many trials at once; they were given back."""


def train_group(
    study: SweepStudy,
    claims: Sequence[Claim],
    data: ImageData,
    *,
    device: torch.device,
    folder: Path,
    stop: Callable[[], bool],
) -> str | None:
    """Train claimed trials of one shape, each to its end, or until it is pruned, stopped, or lost.

    Returns:
        Why one failed, if one did. What fails in a group is no single trial's fault: one fails, the others are given
        back, and are claimed again without it.

    Raises:
        GroupTooLargeError: it needs more memory than there is.
        CifarSweepError: no trial is at fault; all were given back.
    """
    held = list(claims)
    try:
        run = Run([claim.config for claim in held], data, device=device)
        _take_up(study, held, run, folder)
        _train_and_tell(study, held, run, folder=folder, stop=stop)
    except EpochInterruptedError:
        _give_back(study, held)
    except CifarSweepError:
        _give_back(study, held)  # not their fault: they are continued when the cause is gone
        raise
    except Exception as error:
        if explain(error) is not None:
            raise  # the database does not answer: the trials are continued when it does
        if len(held) > 1 and _is_out_of_memory(error):
            _give_back(study, held)
            raise GroupTooLargeError from None
        failing, *others = held
        _give_back(study, others)
        return _fail(study, failing, error, _checkpoint(folder, failing))
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a device's memory is spent; the CPU's allocator says so in a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def _take_up(study: SweepStudy, held: list[Claim], run: Run, folder: Path) -> None:
    """Continue each trial from its checkpoint; give those back that are not as far as the first."""
    for k, claim in enumerate(held):
        take_up(run, k, _checkpoint(folder, claim))
    as_far = [k for k, member in enumerate(run.members) if len(member.history) == run.epochs_done]
    _give_back(study, [claim for k, claim in enumerate(held) if k not in as_far])
    _go_on_with(as_far, held, run)
    if run.epochs_done:
        _where(lambda k: _report_again(study, held[k], run, k), held, run)


def _train_and_tell(study: SweepStudy, held: list[Claim], run: Run, *, folder: Path, stop: Callable[[], bool]) -> None:
    """The epochs that are left, each with its checkpoints, reports and the pruner's word; then the trials' end.

    `held` are the run's members; those that have ended are taken out of it.
    """
    epochs = run.shape.epochs
    while held and run.epochs_done < epochs:
        run.epoch(stop)
        _where(lambda k: _report(study, held[k], run, k, folder), held, run)
        # Only when all have reported: a pruner compares a trial with what it knows of the others.
        if held and run.epochs_done < epochs:
            _where(lambda k: not _pruned(study, held[k], run, k, folder), held, run)
    _where(lambda k: _complete(study, held[k], run, k, folder), held, run)


def _where(goes_on: Callable[[int], bool], held: list[Claim], run: Run) -> None:
    """Ask for each member whether it goes on, and take the others out of the run, with those that were lost."""
    staying = []
    for k in range(len(held)):
        try:
            if goes_on(k):
                staying.append(k)
        except TrialLostError as lost:
            log.warning("%s", lost)
    _go_on_with(staying, held, run)


def _go_on_with(staying: Sequence[int], held: list[Claim], run: Run) -> None:
    if staying:
        run.keep(staying)
    held[:] = [held[k] for k in staying]


def _report_again(study: SweepStudy, claim: Claim, run: Run, k: int) -> bool:
    """Report what a killed worker may have kept and not reported. Returns True."""
    study.report(claim, _curve(run, k))
    return True


def _report(study: SweepStudy, claim: Claim, run: Run, k: int, folder: Path) -> bool:
    """Keep and report what the last epoch came to. Returns False where the trial ends with it."""
    result = run.members[k].history[-1]
    if result.diverged:
        study.prune(claim, f"diverged in epoch {result.epoch}: the loss is no longer a finite number")
        _discard(_checkpoint(folder, claim))
        return False
    study.check_held(claim)
    checkpoint.save(run.state(k), _checkpoint(folder, claim))
    study.report(claim, _curve(run, k))
    return True


def _pruned(study: SweepStudy, claim: Claim, run: Run, k: int, folder: Path) -> bool:
    if not study.should_prune(claim):
        return False
    study.prune(claim, _why_pruned(study, run.members[k].history[-1]))
    _discard(_checkpoint(folder, claim))
    return True


def _fail(study: SweepStudy, claim: Claim, error: Exception, last: Path) -> str | None:
    """End a trial that raised. Returns the reason; None where the trial was no longer ours."""
    reason = one_line(error)
    details = "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
    try:
        study.fail(claim, reason, traceback=details)
    except TrialLostError as lost:
        log.warning("%s", lost)
        return None
    log.warning("trial %d failed: %s", claim.number, reason)
    _discard(last)
    return reason


def _discard(path: Path) -> None:
    """Remove a file that nobody needs any more; one that cannot be removed is in nobody's way."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def take_up(run: Run, k: int, path: Path) -> None:
    """Continue member `k` from the checkpoint at `path`, if there is a whole one; from the first epoch otherwise."""
    try:
        run.restore(k, checkpoint.load(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DiskError(f"{path}: the checkpoint cannot be read: {error.strerror}.") from None
    except torch.OutOfMemoryError:
        raise  # the checkpoint is sound
    except (checkpoint.DamagedFileError, KeyError, ValueError, TypeError, RuntimeError) as error:
        log.warning("%s: not usable (%s); the trial starts again from its first epoch", path, one_line(error))


def _complete(study: SweepStudy, claim: Claim, run: Run, k: int, folder: Path) -> bool:
    """Keep the best weights, tell the trial, and drop weights that are no longer among the best. Returns False."""
    weights = folder / trial_folder(claim.number) / "weights.safetensors"
    curve = run.members[k].history
    best = max(curve, key=lambda result: (result.validation_accuracy, -result.epoch))
    study.check_held(claim)
    digest = checkpoint.save(dict(run.member(k).state_dict()), weights)
    study.complete(
        claim,
        best.validation_accuracy,
        best_epoch=best.epoch,
        seconds=sum(result.seconds for result in curve),
        weights_sha256=digest,
    )
    _discard(_checkpoint(folder, claim))
    for trial in study.ranked()[study.sweep.keep_weights :]:
        _discard(folder / trial_folder(trial.number) / "weights.safetensors")
    return False


def _give_back(study: SweepStudy, claims: Sequence[Claim]) -> None:
    """Release unfinished trials that are still ours, if the storage answers; else they are found orphaned."""
    for claim in claims:
        try:
            study.release(claim)
        except Exception as error:
            log.debug("trial %d could not be given back now: %s", claim.number, error)


def _curve(run: Run, k: int) -> list[dict[str, float]]:
    return [asdict(result) for result in run.members[k].history]


def _checkpoint(folder: Path, claim: Claim) -> Path:
    return folder / trial_folder(claim.number) / "checkpoint.safetensors"


def _why_pruned(study: SweepStudy, result: EpochResult) -> str:
    return (
        f"{study.sweep.pruner.name} pruner: validation accuracy {result.validation_accuracy:.1%} after epoch "
        f"{result.epoch} is among the weaker ones at this point"
    )


def artifact_folder(artifacts: Path, study: SweepStudy) -> Path:
    """Where a study's checkpoints and weights are. The uid keeps studies of one name in two databases apart."""
    return artifacts / f"{study.name}-{study.uid}"


def trial_folder(number: int) -> str:
    """A trial's folder below its study's."""
    return f"trial-{number:04d}"
