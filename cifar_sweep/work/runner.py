"""The bridge between search and training: train a claimed group, report, prune, keep weights, tell.

The order within a trial makes it safe to be killed anywhere: the checkpoint of an epoch is stored before the epoch is
reported, and the weights are stored before the trial is told. While the database does not answer, the training goes on;
what it has to report is reported later.
"""

import logging
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum, auto

import torch

from cifar_sweep.artifacts import Artifacts
from cifar_sweep.curve import best_epoch
from cifar_sweep.database.outage import explain, is_outage
from cifar_sweep.errors import CifarSweepError, SickDeviceError, one_line
from cifar_sweep.study.claim import Claim, TrialLostError
from cifar_sweep.study.files import drop_needless
from cifar_sweep.study.lease import Patience
from cifar_sweep.study.selection import packed
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.training.device import is_out_of_memory, is_sick
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import EpochInterruptedError, Run
from cifar_sweep.work.trial_files import TrialFiles

log = logging.getLogger(__name__)
TRACEBACK_CHARACTERS = 4000  # of its end, which says what failed; every worker reads all trials' attributes


class GroupTooLargeError(Exception):
    """The memory does not hold this many trials at once; they were given back."""


class Outcome(Enum):
    """What a step of the work comes to for a trial."""

    GOES_ON = auto()
    ENDED = auto()  # and was told: it is complete, was pruned, or has diverged
    LOST = auto()  # another worker holds it now


@dataclass
class HeldTrial:
    """A trial that is being trained, its files, and what the last step came to for it."""

    claim: Claim
    files: TrialFiles
    outcome: Outcome = Outcome.GOES_ON


@dataclass
class Training:
    """A group of claimed trials of one shape, to be trained each to its end, or until it is pruned, stopped or lost."""

    study: SweepStudy
    data: ImageData
    device: torch.device
    artifacts: Artifacts
    stop: Callable[[], bool]  # asked before every step of the optimizer
    patiently: Patience
    spared: bool = True  # whether a trial that alone is too large is given back, and not failed
    end: float = math.inf  # until when the best of a cut search have to be complete, in seconds since the epoch
    trials: list[HeldTrial] = field(default_factory=list)  # as the run's members; those that do not go on are left out
    away: bool = False  # whether the database did not answer when the last epoch was to be reported

    def train(self, claims: Sequence[Claim]) -> str | None:
        """Train these trials. Returns why one failed, if one did: in a group, one fails and the others are given back.

        Raises:
            GroupTooLargeError: it needs more memory than there is.
            SickDeviceError: this process can compute nothing more; all were given back.
            CifarSweepError: no trial is at fault; all were given back.
        """
        self.trials = [HeldTrial(claim, TrialFiles(self.artifacts, self.study, claim)) for claim in claims]
        try:
            code = self.study.code.get(claims[0].config.shape.own_file)
            run = Run([claim.config for claim in claims], self.data, device=self.device, code=code)
            self._take_up(run)
            self._train_and_tell(run)
        except EpochInterruptedError:
            self._give_back(self.trials)
        except CifarSweepError:
            self._give_back(self._unfinished())  # not their fault: they are continued when the cause is gone
            raise
        except Exception as error:
            if explain(error) is not None:
                raise  # the database does not answer: the trials are continued when it does
            failing, *others = self._unfinished()
            if is_sick(self.device):  # one of these trials may have made it so
                self._give_back([failing, *others], died=True)
                raise SickDeviceError(f"{self.device}: {one_line(error)}.") from None
            if (others or self.spared) and is_out_of_memory(error):
                self._give_back([failing, *others])
                raise GroupTooLargeError from None
            self._give_back(others)
            return self._fail(failing, error)
        return None

    def _unfinished(self) -> list[HeldTrial]:
        return [trial for trial in self.trials if trial.outcome is Outcome.GOES_ON]

    def _take_up(self, run: Run) -> None:
        """Continue each trial from its checkpoint; give those back that are not as far as the first."""
        for k, trial in enumerate(self.trials):
            trial.files.take_up(run, k)
        as_far = [k for k, member in enumerate(run.members) if len(member.history) == run.epochs_done]
        self._give_back([trial for k, trial in enumerate(self.trials) if k not in as_far])
        self._keep(run, as_far)
        if run.epochs_done:
            # A killed worker may have kept what it did not report, or a checkpoint may be gone.
            self._for_each_trial(run, self._report)

    def _train_and_tell(self, run: Run) -> None:
        """The epochs of this grant, each with its checkpoints, reports and the pruner's word; then the trials' end."""
        until = self.trials[0].claim.until if self.trials else 0
        self._for_each_trial(run, self._complete_if_over)
        while self.trials and run.epochs_done < until:
            run.epoch(self.stop)
            self.away = False
            self._for_each_trial(run, self._keep_and_report)
            self._for_each_trial(run, self._complete_if_over)
            # Only when all have reported: a pruner compares a trial with what it knows of the others.
            if run.epochs_done < run.shape.epochs and not self.away:
                self._for_each_trial(run, self._prune)
        self._for_each_trial(run, self._freeze)

    def _for_each_trial(self, run: Run, step: Callable[[Run, int], Outcome]) -> None:
        """Take `step` with each trial; only those for which it goes on stay in the run."""
        for k, trial in enumerate(self.trials):
            try:
                trial.outcome = step(run, k)
            except TrialLostError as lost:
                log.warning("%s", lost)
                trial.outcome = Outcome.LOST
        self._keep(run, [k for k, trial in enumerate(self.trials) if trial.outcome is Outcome.GOES_ON])

    def _keep(self, run: Run, staying: Sequence[int]) -> None:
        if staying:  # a run has one member at least
            run.keep(staying)
        self.trials = [self.trials[k] for k in staying]

    def _keep_and_report(self, run: Run, k: int) -> Outcome:
        trial, result = self.trials[k], run.members[k].history[-1]
        if result.diverged:
            reason = f"diverged in epoch {result.epoch}: the loss is no longer a finite number"
            if result.epoch > 1:  # what an outage may have held up
                self.patiently(lambda: self._report_up_to(run, k, result.epoch - 1))
            return self._end_early(trial, reason)
        trial.files.save(run, k, epoch=result.epoch)
        return self._report(run, k)

    def _report(self, run: Run, k: int) -> Outcome:
        if self.away:
            return Outcome.GOES_ON
        try:
            self._report_up_to(run, k, run.epochs_done)
        except Exception as error:
            if not is_outage(error):
                raise
            self.study.storage.note_outage()
            self.away = True
            log.warning("%s; the training goes on, and is reported when it does", one_line(explain(error) or error))
        return Outcome.GOES_ON

    def _report_up_to(self, run: Run, k: int, epoch: int) -> None:
        trial = self.trials[k]
        curve = [result.to_dict() for result in run.members[k].history[:epoch]]
        self.study.report(trial.claim, curve, trial.files.newest)
        trial.files.reported()

    def _prune(self, run: Run, k: int) -> Outcome:
        """End a trial where the pruner says so; while the database does not answer, it says nothing."""
        trial, result = self.trials[k], run.members[k].history[-1]
        try:
            if not self.study.should_prune(trial.claim):
                return Outcome.GOES_ON
        except Exception as error:
            if not is_outage(error):
                raise
            return Outcome.GOES_ON
        metric, pruner = self.study.metric, self.study.sweep.pruner.name
        reached = f"{metric.words} {metric.text(getattr(result, metric.field), digits=1)} after epoch {result.epoch}"
        return self._end_early(trial, f"{pruner} pruner: {reached} is among the weaker ones at this point")

    def _end_early(self, trial: HeldTrial, reason: str) -> Outcome:
        self.patiently(lambda: self.study.prune(trial.claim, reason))
        trial.files.discard()
        return Outcome.ENDED

    def _freeze(self, run: Run, k: int) -> Outcome:
        """Put a trial back, to go on when it is chosen again."""
        trial = self.trials[k]
        if self.away:
            self.patiently(lambda: self._report_up_to(run, k, run.epochs_done))
        self.patiently(lambda: self._release(trial))
        return Outcome.ENDED

    def _release(self, trial: HeldTrial, *, died: bool = False) -> None:
        if not self.study.release(trial.claim, died=died):
            trial.files.discard()

    def _complete_if_over(self, run: Run, k: int) -> Outcome:
        return self._complete(run, k) if run.members[k].is_over or self._is_late(run, k) else Outcome.GOES_ON

    def _is_late(self, run: Run, k: int) -> bool:
        """Whether one of the best of a cut search has no time for another epoch: what it has is worth keeping."""
        if self.trials[k].claim.before.uncut is None or not run.members[k].history:
            return False
        return time.time() + run.members[k].history[-1].seconds * len(run.members) > self.end

    def _complete(self, run: Run, k: int) -> Outcome:
        """Keep the best weights, tell the trial, and drop weights that are no longer among the best."""
        trial, curve = self.trials[k], run.members[k].history
        best = best_epoch(curve, self.study.sweep.metric)
        assert best is not None  # a diverged trial has ended before
        if self.away:
            self.patiently(lambda: self._report_up_to(run, k, run.epochs_done))
        weights = trial.files.keep_weights(run, k)
        value, seconds = getattr(best, self.study.metric.field), sum(result.seconds for result in curve)
        correct = packed(run.members[k].correct.tolist())
        facts = {"best_epoch": best.epoch, "seconds": seconds, "weights": asdict(weights), "correct": correct}
        try:
            self.patiently(lambda: self.study.complete(trial.claim, value, **facts))
        except TrialLostError:
            self.artifacts.remove(weights.name)
            raise
        trial.files.discard()
        self.patiently(lambda: drop_needless(self.study, self.artifacts))
        return Outcome.ENDED

    def _fail(self, failing: HeldTrial, error: Exception) -> str | None:
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

    def _give_back(self, trials: Sequence[HeldTrial], *, died: bool = False) -> None:
        """Release unfinished trials that are still ours, if the storage answers; else they are found orphaned."""
        for trial in trials:
            try:
                self._release(trial, died=died)
            except Exception as error:
                log.debug("trial %d could not be given back now: %s", trial.claim.number, error)
                if is_outage(error):
                    break  # the others would wait for an answer as long
