"""A trial's files: its last two checkpoints while it trains, and its weights for as long as it is among the best.

A file's name ends with its worker's mark, and the database says which file counts. So a worker that has lost a trial
without knowing it yet can spoil nothing of the one that goes on with it.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from cifar_sweep.artifacts import Artifacts, DamagedArtifactError, MissingArtifactError, Stored
from cifar_sweep.errors import one_line
from cifar_sweep.study.claim import Claim
from cifar_sweep.study.files import remove, trial_folder
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.training import checkpoint
from cifar_sweep.training.train import Run

log = logging.getLogger(__name__)
KEPT_CHECKPOINTS = 2  # the database names the last one, and the one before it: docs/LOG.md, 2026-11-23


class TrialFiles:
    """The files of one claimed trial; `checkpoints` are those that are kept, as `SweepStudy.report` takes them."""

    def __init__(self, artifacts: Artifacts, study: SweepStudy, claim: Claim) -> None:
        self._artifacts, self._study, self._trial = artifacts, study, claim.number
        self._folder = trial_folder(study, claim.number)
        self._mark = claim.owner.token[:8]
        self._reported = self.checkpoints = claim.before.checkpoints

    @property
    def newest(self) -> list[dict[str, Any]]:
        """The checkpoints that are worth knowing of: the last one, and the one before should that be damaged."""
        return self.checkpoints[-KEPT_CHECKPOINTS:]

    def take_up(self, run: Run, k: int) -> None:
        """Continue member `k` from the newest checkpoint that is sound; from its first epoch if none is."""
        for saved in reversed(self.checkpoints):
            stored = Stored(saved["name"], saved["sha256"], saved["size"])
            try:
                restore(run, k, partial(self._artifacts.get, stored))
                return
            except checkpoint.StateError as error:
                epoch = saved["epoch"]
                log.warning("trial %d: its checkpoint of epoch %d is not usable: %s", self._trial, epoch, error)
        if self.checkpoints:
            log.warning("trial %d starts again from its first epoch", self._trial)
        self.checkpoints = []

    def save(self, run: Run, k: int, *, epoch: int) -> None:
        """Keep what member `k` can be continued from. Raises DiskError."""
        name = f"{self._folder}/checkpoint-{epoch:04d}-{self._mark}.safetensors"
        stored = self._artifacts.put(name, checkpoint.pack(run.state(k)))
        self.checkpoints = [*self.checkpoints, {"epoch": epoch, **asdict(stored)}]
        # While the database is away it names older ones; these stay until it names newer ones.
        self._drop_others_than(self.newest + self._reported)

    def reported(self) -> None:
        """The database has the last checkpoints: the older ones are not needed any more."""
        self._reported = self.newest
        self._drop_others_than(self._reported)

    def keep_weights(self, run: Run, k: int) -> Stored:
        """Keep the best weights of member `k`. Raises DiskError."""
        content = checkpoint.pack(dict(run.member(k).state_dict()))
        return self._artifacts.put(f"{self._folder}/weights-{self._mark}.safetensors", content)

    def discard(self) -> None:
        """Remove all checkpoints: the trial has ended."""
        self._drop_others_than([])

    def _drop_others_than(self, needed: list[dict[str, Any]]) -> None:
        for saved in self.checkpoints:
            if saved not in needed:
                remove(self._study, self._artifacts, [saved["name"]])
        self.checkpoints = [saved for saved in self.checkpoints if saved in needed]


def restore(run: Run, k: int, read: Callable[[], bytes]) -> None:
    """Have member `k` go on from the checkpoint that `read` gives.

    Raises StateError, and nothing has changed, where there is none, or it is not whole, or not one of this config's.
    """
    try:
        content = read()
    except (MissingArtifactError, FileNotFoundError):
        raise checkpoint.StateError("it is not there") from None
    except DamagedArtifactError as error:
        raise checkpoint.StateError(one_line(error)) from None
    run.restore(k, checkpoint.unpack(content))
