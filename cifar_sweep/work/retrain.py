"""Training an exported network again, and copies of it under other seeds."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from cifar_sweep.config import TrialConfig, derive_seed
from cifar_sweep.errors import StudyError
from cifar_sweep.exports.trained import Provenance, Trained
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.training import checkpoint
from cifar_sweep.training.device import device_name, prepare_process, resolve_device
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.lanes import KERNELS, kernels_name
from cifar_sweep.training.models.own import fingerprints
from cifar_sweep.training.train import EpochInterruptedError, Run
from cifar_sweep.work.trial_files import restore


def other_seed(config: TrialConfig, copy: int) -> TrialConfig:
    """`config` with initial weights, dropout masks and order of the images of its own; copies count from 1."""
    return TrialConfig(
        replace(config.shape, data_seed=derive_seed(config.shape.data_seed, "copy", copy)),
        replace(config.knobs, seed=derive_seed(config.knobs.seed, "copy", copy)),
    )


def train_copies(
    chosen: Sequence[Trained],
    *,
    seeds: int,
    data: ImageData,
    device: str,
    threads: int,
    unfinished: Path,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> list[Trained] | None:
    """Train each of `chosen` again under `seeds` other seeds; arguments as in `train_again`. None where stopped."""
    copies: list[Trained] = []
    for original in chosen:
        provenance = original.provenance
        for copy in range(1, seeds + 1):
            say(f"trial {provenance.trial} of study {provenance.study}, seed {copy} of {seeds}")
            trained = train_again(
                other_seed(original.config, copy), provenance,
                data=data, device=device, threads=threads, unfinished=unfinished, stop=stop, say=say,
            )  # fmt: skip
            if trained is None:
                return None
            copies.append(trained)
    return copies


def train_again(
    config: TrialConfig,
    provenance: Provenance,
    *,
    data: ImageData,
    device: str,
    threads: int,
    unfinished: Path,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Trained | None:
    """Train an exported config from its first epoch, or on from where this was stopped. None where `stop` said yes.

    Args:
        config: what to train.
        provenance: of the export.
        data: the images.
        device: as `resolve_device` takes it.
        threads: CPU threads; 0 takes the provenance's number.
        unfinished: a folder for the checkpoint of a training that is stopped.
        stop: asked before every step.
        say: takes a line per epoch.

    Raises:
        StudyError: the training diverged before any epoch ended well.
        CifarSweepError: the device or the disk is at fault, or the data is too small.
    """
    on = resolve_device(device)
    used = prepare_process(on, threads=threads or provenance.threads)
    groups = list(zip(provenance.group_sizes, provenance.group_places, strict=True))
    run, place = Run([config], data, device=on), 0
    used_then, used_now = provenance.versions.get("kernels", "torch"), kernels_name(on)
    if used_then != used_now and max(provenance.group_sizes, default=1) > 1:
        say(
            f"a group of trials was trained by other kernels ({used_then}) than here ({used_now}): the last digits may "
            "differ" + (f"; {KERNELS}=torch trains as then" if used_then == "torch" else "")
        )
    identity = json.dumps([config.to_dict(), data.fingerprint, on.type, used, used_now]).encode()
    last = unfinished / f".training-{hashlib.sha256(identity).hexdigest()[:16]}.safetensors"
    try:
        restore(run, 0, last.read_bytes)
        say(f"going on after epoch {run.epochs_done}")
    except checkpoint.StateError as error:
        if last.exists():
            say(f"{last}: {error}; starting again from the first epoch")
    try:
        while run.epochs_done < config.shape.epochs:
            # What is missing was trained alone.
            size, then = groups[run.epochs_done] if run.epochs_done < len(groups) else (1, 0)
            run, place = _among_copies(run, place, size, then, data, device=on), then
            result = run.epoch(stop)[place]
            say(
                f"epoch {result.epoch} of {config.shape.epochs}: train {result.train_accuracy:.2%}, "
                f"validation {result.validation_accuracy:.2%}, {result.seconds * size:.1f} s"
            )
            if result.diverged:
                raise StudyError(f"the training diverged in epoch {result.epoch}: the loss is not a finite number.")
            checkpoint.save(run.state(place), last)
    except EpochInterruptedError:
        return None
    here = replace(
        provenance,
        device=f"{on.type} ({device_name(on)})",
        threads=used,
        versions=versions() | {"kernels": used_now} | fingerprints([config.shape.model]),
        commit=commit(),
        group_sizes=tuple(result.group_size for result in run.members[place].history),
        group_places=tuple(result.group_place for result in run.members[place].history),
    )
    curve = [asdict(result) for result in run.members[place].history]
    return Trained(config, run.member(place).state_dict(), curve, here)


def _among_copies(run: Run, ours: int, size: int, place: int, data: ImageData, *, device: torch.device) -> Run:
    """The run of member `ours`, at `place` in a group of `size` whose others are copies of it.

    Kernels may round by the size of a group and the place in it, never by what the others are.
    """
    others = [k for k in range(len(run.members)) if k != ours]
    if size <= len(run.members):
        run.keep([*others[:place], ours, *others[place : size - 1]])
        return run
    together = Run([run.members[ours].config] * size, data, device=device)
    for k in range(size if run.epochs_done else 0):
        together.restore(k, run.state(ours))
    return together


def discard_unfinished(folder: Path) -> None:
    """Remove the checkpoints of trainings that `folder` now holds the result of."""
    for path in folder.glob(".training-*.safetensors"):
        path.unlink(missing_ok=True)
