"""Training an exported network again, and copies of it under other seeds."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from cifar_sweep.config import TrialConfig, derive_seed
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.exports.trained import Provenance, Trained, digest, facts_of_curve
from cifar_sweep.files import replace_file
from cifar_sweep.parameters import Value, applies, check_parameter, layer_counts
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.training import checkpoint
from cifar_sweep.training.device import device_name, prepare_process, resolve_device
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.lanes import KERNELS, kernels_name
from cifar_sweep.training.models.own import fingerprints
from cifar_sweep.training.train import EpochInterruptedError, Run
from cifar_sweep.work.trial_files import restore


def changed(config: TrialConfig, settings: Mapping[str, Value]) -> TrialConfig:
    """A config with other settings; UsageError for what it does not have, or does not accept."""
    for name, value in settings.items():
        check_parameter(name, value, where="--set")
        if not applies(name, {**config.complete(), **settings}):
            raise UsageError(f"--set {name}: it does nothing for {config.shape.model} as it is set.")
        if name in ("image_size", "repeat") or value == "auto":
            raise UsageError(
                f"--set {name}={value}: images, seed and arithmetic are the export's; accepted: other settings."
            )
    layer_counts({**config.complete(), **settings}, where="--set")  # lists are of as many layers as there are
    return TrialConfig.from_dict({**config.complete(), **settings})


@dataclass(frozen=True)
class Retraining:
    """Trains exported configs again."""

    data: ImageData
    device: str  # as `resolve_device` takes it
    threads: int  # of the CPU; 0 takes the number of the export's training
    unfinished: Path  # a folder for the checkpoint of a training that is stopped
    stop: Callable[[], bool]  # asked before every step
    say: Callable[[str], None]  # takes a line per epoch

    def train_copies(self, chosen: Sequence[Trained], *, seeds: int) -> list[Trained] | None:
        """Train each of `chosen` again under `seeds` other seeds; None where `stop` said yes. Raises as `train`."""
        copies: list[Trained] = []
        for original, copy in product(chosen, range(1, seeds + 1)):
            provenance, shape, knobs = original.provenance, original.config.shape, original.config.knobs
            self.say(f"trial {provenance.trial} of study {provenance.study}, seed {copy} of {seeds}")
            # Initial weights, dropout masks and order of the images are the copy's own.
            shape = replace(shape, data_seed=derive_seed(shape.data_seed, "copy", copy))
            knobs = replace(knobs, seed=derive_seed(knobs.seed, "copy", copy))
            config = TrialConfig(shape, knobs)
            trained = self.train(config, replace(provenance, config_sha256=digest(config)))
            if trained is None:
                return None
            copies.append(trained)
        return copies

    def train(self, config: TrialConfig, provenance: Provenance) -> Trained | None:
        """Train a config from its first epoch, or on from where this was stopped; None where `stop` said yes.

        Raises StudyError where it diverged, another CifarSweepError for the device, the disk or too little data.
        """
        device = resolve_device(self.device)
        threads = prepare_process(device, threads=self.threads or provenance.threads)
        kernels = kernels_name(device)
        self._say_of_kernels(provenance, kernels)
        code = fingerprints([config.shape.own_file])
        identity = json.dumps([config.to_dict(), self.data.fingerprint, device.type, threads, kernels, code]).encode()
        saved = self.unfinished / f".training-{hashlib.sha256(identity).hexdigest()[:16]}.safetensors"
        run = self._taken_up(Run([config], self.data, device=device, code=code.get(config.shape.own_file)), saved)
        try:
            run, place = self._train_epochs(run, provenance, saved)
        except EpochInterruptedError:
            return None
        curve = run.members[place].history
        edited = provenance.config_sha256 not in ("", digest(config))
        here = replace(
            provenance,
            changed=provenance.changed or edited,
            config_sha256=digest(config),
            device=f"{device.type} ({device_name(device)})",
            threads=threads,
            versions=versions() | {"kernels": kernels} | code,
            commit=commit() or "",
            **facts_of_curve(curve, metric=config.shape.metric),
        )
        return Trained(config, run.member(place).state_dict(), here, curve)

    def _say_of_kernels(self, provenance: Provenance, kernels: str) -> None:
        then = provenance.versions.get("kernels", "torch")
        for_all = ("winograd" in then) != ("winograd" in kernels)  # the others are for groups alone
        if then != kernels and (for_all or max(provenance.group_sizes, default=1) > 1):
            self.say(
                f"this was trained by other kernels ({then}) than here ({kernels}): the last digits may "
                "differ" + (f"; {KERNELS}=torch trains as then" if then == "torch" else "")
            )

    def _taken_up(self, run: Run, saved: Path) -> Run:
        try:
            restore(run, 0, saved.read_bytes)
            self.say(f"going on after epoch {run.epochs_done}")
        except checkpoint.StateError as error:
            if saved.exists():
                self.say(f"{saved}: {error}; starting again from the first epoch")
        return run

    def _train_epochs(self, run: Run, provenance: Provenance, saved: Path) -> tuple[Run, int]:
        """Train the epochs that are left, each in a group as large as then. Returns the run and the place in it."""
        groups = list(zip(provenance.group_sizes, provenance.group_places, strict=True))
        ours = 0
        while not run.members[ours].is_over:
            # The epochs that the provenance does not know are trained alone.
            size, place = groups[run.epochs_done] if run.epochs_done < len(groups) else (1, 0)
            run, ours = self._among_copies(run, ours, size=size, place=place), place
            result = run.epoch(self.stop)[ours]
            self.say(
                f"epoch {result.epoch} of {run.shape.epochs}: train {result.train_accuracy:.2%}, "
                f"validation {result.validation_accuracy:.2%}, {result.seconds * size:.1f} s"
            )
            if result.diverged:
                raise StudyError(f"the training diverged in epoch {result.epoch}: the loss is not a finite number.")
            replace_file(saved, checkpoint.pack(run.state(ours)))
        return run, ours

    def _among_copies(self, run: Run, ours: int, *, size: int, place: int) -> Run:
        """The run of member `ours`, at `place` in a group of `size` whose others are copies of it.

        Kernels may round by the size of a group and the place in it, never by what the others are.
        """
        others = [k for k in range(len(run.members)) if k != ours]
        if size <= len(run.members):
            run.keep([*others[:place], ours, *others[place : size - 1]])
            return run
        together = Run([run.members[ours].config] * size, self.data, device=run.device, code=run.code)
        for k in range(size if run.epochs_done else 0):
            together.restore(k, run.state(ours))
        return together


def discard_unfinished(folder: Path) -> None:
    """Remove the checkpoints of trainings that `folder` now holds the result of."""
    for path in folder.glob(".training-*.safetensors"):
        path.unlink(missing_ok=True)
