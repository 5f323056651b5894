"""The bridge between search and training: claim a trial, train it, report, prune, keep its weights, tell.

The order within a trial makes it safe to be killed anywhere: the checkpoint of an epoch is on disk before the epoch is
reported, and the weights are on disk before the trial is told.
"""

import logging
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cifar_sweep.config import PARAMETERS
from cifar_sweep.errors import CifarSweepError, DiskError, StudyError, UsageError, one_line
from cifar_sweep.search import study as studies
from cifar_sweep.search.storage import Owner, explain, open_existing
from cifar_sweep.search.study import Claim, SweepStudy, TrialLostError, Worker
from cifar_sweep.search.sweepfile import Range, Sweep, values_of
from cifar_sweep.training import checkpoint
from cifar_sweep.training import data as images
from cifar_sweep.training.data import ImageData
from cifar_sweep.training.device import (
    available_cores,
    default_workers,
    device_name,
    prepare_process,
    resolve_device,
    resolve_precision,
)
from cifar_sweep.training.group import EpochResult
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
) -> list[Job]:
    """One job per worker on this machine, with the cores shared out among them."""
    workers = workers or default_workers(device)
    share = threads or max(1, available_cores() // workers)
    first = resolve_device(device)
    prepare_process(first, threads=share)  # as the workers will be, so that what is measured here holds there
    precision, _ = resolve_precision(first)
    return [
        Job(storage, study, data, artifacts, device, precision, share, deadline, worker) for worker in range(workers)
    ]


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

    failures = 0
    while not stopped():
        claim = study.claim(worker)
        if claim is None:
            if study.finished():
                break
            time.sleep(POLL_SECONDS)  # other workers hold the last trials; one may come back
            continue
        with storage.heartbeat(claim.trial_id):
            failed = train_trial(study, claim, data, device=device, folder=folder, stop=stopped)
        failures = failures + 1 if failed else 0
        if failures >= MAX_CONSECUTIVE_FAILURES:
            raise StudyError(f"study {study.name!r}: {failures} trials in a row failed; the last one: {failed}.")
    storage.close()


def train_trial(
    study: SweepStudy,
    claim: Claim,
    data: ImageData,
    *,
    device: torch.device,
    folder: Path,
    stop: Callable[[], bool],
) -> str | None:
    """Train one claimed trial to its end, or until it is pruned, stopped, or lost. Returns why it failed, if it did."""
    last = folder / trial_folder(claim.number) / "checkpoint.safetensors"
    try:
        run = Run([claim.config], data, device=device)
        take_up(run, last)
        if run.epochs_done:
            study.report(claim, _curve(run))
        _train_and_tell(study, claim, run, folder=folder, stop=stop)
        _discard(last)
    except EpochInterruptedError:
        _give_back(study, claim)
    except TrialLostError as lost:
        log.warning("%s", lost)
    except CifarSweepError:
        _give_back(study, claim)  # not the trial's fault: it is continued when the cause is gone
        raise
    except Exception as error:
        if explain(error) is not None:
            raise  # the database does not answer: the trial is continued when it does
        return _fail(study, claim, error, last)
    return None


def _train_and_tell(study: SweepStudy, claim: Claim, run: Run, *, folder: Path, stop: Callable[[], bool]) -> None:
    """The epochs that are left, each with its checkpoint, its report and the pruner's word; then the trial's end."""
    epochs = claim.config.shape.epochs
    while run.epochs_done < epochs:
        [result] = run.epoch(stop)
        if result.diverged:
            study.prune(claim, f"diverged in epoch {result.epoch}: the loss is no longer a finite number")
            return
        study.check_held(claim)
        checkpoint.save(run.state(), folder / trial_folder(claim.number) / "checkpoint.safetensors")
        study.report(claim, _curve(run))
        if run.epochs_done < epochs and study.should_prune(claim):
            study.prune(claim, _why_pruned(study, result))
            return
    _complete(study, claim, run, folder)


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


def take_up(run: Run, path: Path) -> None:
    """Continue from the checkpoint at `path`, if there is a whole one; from the first epoch otherwise."""
    try:
        run.restore(checkpoint.load(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DiskError(f"{path}: the checkpoint cannot be read: {error.strerror}.") from None
    except torch.OutOfMemoryError:
        raise  # the checkpoint is sound
    except (checkpoint.DamagedFileError, KeyError, ValueError, TypeError, RuntimeError) as error:
        log.warning("%s: not usable (%s); the trial starts again from its first epoch", path, one_line(error))
        run.restart()


def _complete(study: SweepStudy, claim: Claim, run: Run, folder: Path) -> None:
    """Keep the best weights, tell the trial, and drop weights that are no longer among the best."""
    weights = folder / trial_folder(claim.number) / "weights.safetensors"
    curve = run.members[0].history
    best = max(curve, key=lambda result: (result.validation_accuracy, -result.epoch))
    study.check_held(claim)
    digest = checkpoint.save(dict(run.member(0).state_dict()), weights)
    study.complete(
        claim,
        best.validation_accuracy,
        best_epoch=best.epoch,
        seconds=sum(result.seconds for result in curve),
        weights_sha256=digest,
    )
    for trial in study.ranked()[study.sweep.keep_weights :]:
        _discard(folder / trial_folder(trial.number) / "weights.safetensors")


def _give_back(study: SweepStudy, claim: Claim) -> None:
    """Release an unfinished trial, as far as it is still ours and the storage answers; else it is found orphaned."""
    try:
        study.release(claim)
    except Exception as error:
        log.debug("trial %d could not be given back now: %s", claim.number, error)


def _curve(run: Run) -> list[dict[str, float]]:
    return [asdict(result) for result in run.members[0].history]


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
