"""The bridge between search and training: train a claimed group, report, prune, keep weights, tell.

The order within a trial makes it safe to be killed anywhere: the checkpoint of an epoch is stored before the epoch is
reported, and the weights are stored before the trial is told. While the database does not answer, the training goes on,
and what is to be said is said later.
"""

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch

from cifar_sweep.artifacts import Artifacts
from cifar_sweep.curve import EpochResult, best_epoch
from cifar_sweep.errors import CifarSweepError, one_line
from cifar_sweep.study.claim import Claim, TrialLostError
from cifar_sweep.study.files import drop_needless
from cifar_sweep.study.lease import Patience
from cifar_sweep.study.outage import explain, is_outage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.training.device import is_out_of_memory
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import EpochInterruptedError, Run
from cifar_sweep.work.trial_files import TrialFiles

log = logging.getLogger(__name__)
TRACEBACK_CHARACTERS = 4000


class GroupTooLargeError(Exception):
    """The memory does not hold this many trials at once; they were given back."""


@dataclass(frozen=True)
class Member:
    """A trial that is being trained, and its files."""

    claim: Claim
    files: TrialFiles


@dataclass
class Training:
    """A group of claimed trials of one shape, to be trained each to its end, or until it is pruned, stopped or lost.

    Attributes:
        study: whose trials they are.
        data: the images.
        device: where to train.
        artifacts: where their files go.
        stop: asked before every step.
        patiently: waits for the database.
        members: the run's members, in order; those that have ended are taken out.
        away: whether the database did not answer when the last epoch was to be reported.
    """

    study: SweepStudy
    data: ImageData
    device: torch.device
    artifacts: Artifacts
    stop: Callable[[], bool]
    patiently: Patience
    members: list[Member] = field(default_factory=list)
    away: bool = False

    def train(self, claims: Sequence[Claim]) -> str | None:
        """Train these trials.

        Returns:
            Why one failed, if one did. What fails in a group is no single trial's fault: one fails, the others are
            given back, and are claimed again without it.

        Raises:
            GroupTooLargeError: it needs more memory than there is.
            CifarSweepError: no trial is at fault; all were given back.
        """
        self.members = [Member(claim, TrialFiles(self.artifacts, self.study, claim)) for claim in claims]
        try:
            run = Run([claim.config for claim in claims], self.data, device=self.device)
            self._take_up(run)
            self._train_and_tell(run)
        except EpochInterruptedError:
            self._give_back(self.members)
        except CifarSweepError:
            self._give_back(self.members)  # not their fault: they are continued when the cause is gone
            raise
        except Exception as error:
            if explain(error) is not None:
                raise  # the database does not answer: the trials are continued when it does
            if len(self.members) > 1 and is_out_of_memory(error):
                self._give_back(self.members)
                raise GroupTooLargeError from None
            failing, *others = self.members
            self._give_back(others)
            return self._fail(failing, error)
        return None

    def _take_up(self, run: Run) -> None:
        """Continue each trial from its checkpoint; give those back that are not as far as the first."""
        for k, member in enumerate(self.members):
            member.files.take_up(run, k)
        as_far = [k for k, member in enumerate(run.members) if len(member.history) == run.epochs_done]
        self._give_back([member for k, member in enumerate(self.members) if k not in as_far])
        self._go_on_with(as_far, run)
        if run.epochs_done:
            # A killed worker may have kept what it did not report, or a checkpoint may be gone.
            self._where(lambda k: self._report(run, k), run)

    def _train_and_tell(self, run: Run) -> None:
        """The epochs that are left, each with its checkpoints, reports and the pruner's word; then the trials' end."""
        epochs = run.shape.epochs
        while self.members and run.epochs_done < epochs:
            run.epoch(self.stop)
            self.away = False
            self._where(lambda k: self._keep_and_report(run, k), run)
            # Only when all have reported: a pruner compares a trial with what it knows of the others.
            if self.members and run.epochs_done < epochs and not self.away:
                self._where(lambda k: not self._pruned(run, k), run)
        self._where(lambda k: self._complete(run, k), run)

    def _where(self, goes_on: Callable[[int], bool], run: Run) -> None:
        """Ask for each member whether it goes on, and take the others out of the run, with those that were lost."""
        staying = []
        for k in range(len(self.members)):
            try:
                if goes_on(k):
                    staying.append(k)
            except TrialLostError as lost:
                log.warning("%s", lost)
        self._go_on_with(staying, run)

    def _go_on_with(self, staying: Sequence[int], run: Run) -> None:
        if staying:
            run.keep(staying)
        self.members = [self.members[k] for k in staying]

    def _keep_and_report(self, run: Run, k: int) -> bool:
        """Keep and report what the last epoch came to. Returns False where the trial ends with it."""
        member, result = self.members[k], run.members[k].history[-1]
        if result.diverged:
            reason = f"diverged in epoch {result.epoch}: the loss is no longer a finite number"
            if result.epoch > 1:  # what an outage may have held up
                self.patiently(lambda: self._report_up_to(run, k, result.epoch - 1))
            self.patiently(lambda: self.study.prune(member.claim, reason))
            member.files.discard()
            return False
        member.files.save(run, k, epoch=result.epoch)
        return self._report(run, k)

    def _report(self, run: Run, k: int) -> bool:
        """Report all epochs, now or with the next one. Returns True."""
        if self.away:
            return True
        try:
            self._report_up_to(run, k, run.epochs_done)
        except Exception as error:
            if not is_outage(error):
                raise
            self.study.storage.note_outage()
            self.away = True
            log.warning("%s; the training goes on, and is reported when it does", one_line(explain(error) or error))
        return True

    def _report_up_to(self, run: Run, k: int, epoch: int) -> None:
        member = self.members[k]
        curve = [asdict(result) for result in run.members[k].history[:epoch]]
        self.study.report(member.claim, curve, member.files.newest)
        member.files.reported()

    def _pruned(self, run: Run, k: int) -> bool:
        """Whether the pruner ended this trial. Where the database does not answer it did not."""
        member = self.members[k]
        try:
            if not self.study.should_prune(member.claim):
                return False
        except Exception as error:
            if not is_outage(error):
                raise
            return False
        reason = _why_pruned(self.study, run.members[k].history[-1])
        self.patiently(lambda: self.study.prune(member.claim, reason))
        member.files.discard()
        return True

    def _complete(self, run: Run, k: int) -> bool:
        """Keep the best weights, tell the trial, and drop weights that are no longer among the best. Returns False."""
        member, curve = self.members[k], run.members[k].history
        best = best_epoch(curve)
        assert best is not None  # a diverged trial has ended before
        if self.away:
            self.patiently(lambda: self._report_up_to(run, k, run.epochs_done))
        weights = member.files.keep_weights(run, k)
        try:
            self.patiently(
                lambda: self.study.complete(
                    member.claim,
                    best.validation_accuracy,
                    best_epoch=best.epoch,
                    seconds=sum(result.seconds for result in curve),
                    weights=asdict(weights),
                )
            )
        except TrialLostError:
            self.artifacts.remove(weights.name)
            raise
        member.files.discard()
        self.patiently(lambda: drop_needless(self.study, self.artifacts))
        return False

    def _fail(self, failing: Member, error: Exception) -> str | None:
        """End a trial that raised. Returns the reason; None where the trial was no longer ours."""
        reason = one_line(error)
        details = "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
        try:
            self.patiently(lambda: self.study.fail(failing.claim, reason, traceback=details))
        except TrialLostError as lost:
            log.warning("%s", lost)
            return None
        log.warning("trial %d failed: %s", failing.claim.number, reason)
        failing.files.discard()
        return reason

    def _give_back(self, members: Sequence[Member]) -> None:
        """Release unfinished trials that are still ours, if the storage answers; else they are found orphaned."""
        for member in members:
            try:
                if not self.study.release(member.claim):
                    member.files.discard()
            except Exception as error:
                log.debug("trial %d could not be given back now: %s", member.claim.number, error)
                if is_outage(error):
                    break  # the others would wait for an answer as long


def _why_pruned(study: SweepStudy, result: EpochResult) -> str:
    return (
        f"{study.sweep.pruner.name} pruner: validation accuracy {result.validation_accuracy:.1%} after epoch "
        f"{result.epoch} is among the weaker ones at this point"
    )
