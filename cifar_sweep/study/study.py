"""A study and its trials: claim, report, prune, finish.

A trial is an Optuna trial from first to last. Interrupted, it goes back to WAITING under its own number, with its
parameters and reports, and is claimed again; so a study holds exactly as many trials as were asked for.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from optuna.trial import TrialState

from cifar_sweep.config import Shape, derive_seed
from cifar_sweep.search.choice import Choice, Choose, Course, InTime, Situation, in_time_always
from cifar_sweep.study.claim import Claim, TrialLostError, Worker
from cifar_sweep.study.claiming import Claiming, asked, courses, queue_of, requeue_orphan
from cifar_sweep.study.hours import TIME_OVER, wider
from cifar_sweep.study.record import TrialRecord, count, epoch_key, epoch_keys
from cifar_sweep.study.storage import CANCELLED, FINISHED, OPEN
from cifar_sweep.study.stored import StoredStudy
from cifar_sweep.study.tables import Change
from cifar_sweep.study.winner import fresh_seeds, seeds_due
from cifar_sweep.sweep import strategy


class SweepStudy(StoredStudy):
    """A study that workers claim trials of, report to and end; see `StoredStudy` for what it is."""

    def start_clock(self) -> None:
        """Let the study's hours begin now, if it has any that have not begun."""
        if (hours := self.hours) and hours.deadline is None:
            with self.storage.lock():
                if self.search_end() is None:
                    started = replace(hours, deadline=time.time() + 3600 * hours.hours)
                    self._study.set_user_attr("hours", asdict(started))

    def settle(self) -> bool:
        """Whether there is nothing more to be trained; if so, workers need not look at the study again."""
        if not self.finished():
            return self.state != OPEN
        with self.storage.lock():
            self._read_again()
            if self.state == OPEN and self.finished():
                if self._has_time_for_more():
                    return False
                self._study.set_user_attr("reason", self.over)
                self._study.set_user_attr("state", FINISHED)
            return self.state != OPEN

    def _has_time_for_more(self) -> bool:
        """Whether more of the best get seeds without the cuts: where the quickest one's share of a group would fit.

        Those that do not fit are given up again by whoever claims.
        """
        hours, confirm, trials = self.hours, self.sweep.confirm, self.trials()
        seeds = [trial for trial in fresh_seeds(trials) if trial.state == "complete"]
        if not (hours and hours.uncuts and hours.deadline and seeds):
            return False
        quickest = min(trial.seconds for trial in seeds)
        if time.time() + quickest > hours.deadline:
            return False
        while confirm and not seeds_due(trials, confirm):
            confirm = wider(confirm)
        if confirm:
            self._change(confirm=confirm)
        return confirm is not None

    def claim(
        self,
        worker: Worker,
        *,
        size: Callable[[Shape], int] = lambda _: 1,
        workers: int | None = None,
        devices: int = 1,
        choose: Choose = lambda _: Choice(),
        in_time: InTime = in_time_always,
        trials: int | None = None,
    ) -> list[Claim]:
        """Hold the trials of the next group; none while all are taken.

        `size` says how many trials of a shape to take at most, `workers` and `devices` how many share the study, as in
        `next_group`.
        `choose` is asked where the sweep's strategy is auto, before the database is locked. `in_time` and `trials` are
        of a study that has so many hours: what still ends in them, and how many trials it will have.
        """
        while True:
            auto = self.sweep.strategy == "auto"
            self.choice = choice = self._choice(worker, size, choose, in_time) if auto else Choice()
            asked_for = self.sweep
            with self.storage.lock():
                if self.state != OPEN:
                    return []
                self._read_again()
                if choice.new and self.sweep.identity() != asked_for.identity():
                    return []  # it was extended just now: the next choice is of the new space
                if trials is not None and not self.over:
                    self._change(trials=trials)
                if choice.new and choice.made_of != len(self._courses(self._all())):
                    continue  # another worker has begun trials meanwhile, perhaps at these very points
                if choice.hopes:
                    hopes = {str(number): asdict(hope) for number, hope in choice.hopes.items()}
                    self._study.set_user_attr("hopes", hopes)
                claiming = self._claiming(worker, in_time)
                if choice.gain:
                    self._study.set_user_attr("gain", asdict(choice.gain))
                    if self.sweep.stop == "auto" and not choice.gain.is_worthwhile:
                        self._end_search(claiming, str(choice.gain))
                if self.over:  # what others have frozen since
                    claiming.close(self.over)
                claims = claiming.claim(size=size, workers=workers, devices=devices, choice=choice)
                # What was chosen and is gone, others have trained meanwhile: then it is chosen again.
                if not (claims or choice.thawed or choice.new) and self._is_timed_out():
                    left = not self.sweep.listed or count(self.trials(), "waiting")
                    self._end_search(claiming, TIME_OVER if left else "each point was trained")
                return claims

    def _is_timed_out(self) -> bool:
        """Whether nothing runs of a search that has to end in time; to be asked where nothing else fits into it.

        Where others have just ended the last fresh seed, it is finished, and nothing is given up.
        """
        ends, trials = self.search_end() is not None, self.trials()
        return ends and not count(trials, "running") and not (self.over and self.finished(trials))

    def _end_search(self, claiming: Claiming, why: str) -> None:
        """Let the search be over as if its budget were spent: what it has begun is all of it.

        Where it is over already, there is no time for its confirmation, or for the rest of that.
        """
        if self.over:
            claiming.give_up_seeds(why)
            self._change(confirm=None)
        elif not self.finished():
            claiming.close(why)
            self._study.set_user_attr("over", why)
            searched = asked(self.trials(), self.sweep)
            self._change(trials=max(count(searched, "complete", "pruned", "running"), 1))

    def _change(self, **keys: Any) -> None:
        """Change keys of the stored sweep."""
        if any(getattr(self.sweep, key) != value for key, value in keys.items()):
            changed = self.sweep.model_copy(update=keys)
            self._study.set_user_attr("sweep", changed.model_dump(mode="json"))
            self._read_again()

    def _claiming(self, worker: Worker, in_time: InTime = in_time_always) -> Claiming:
        sweep, hours = self.under_way(), self.hours
        claiming = Claiming(self.storage, self._study, sweep, self.data["classes"], self.code, worker, in_time)
        if hours is None or not hours.uncuts:
            return claiming
        images = int(self.data.get("train_images", 0))
        return replace(claiming, uncut=lambda config, fits: hours.fitting(config, images, fits))

    def _choice(self, worker: Worker, size: Callable[[Shape], int], choose: Choose, in_time: InTime) -> Choice:
        """What to train next as the study stands; nothing where that needs no choice: a trial waits, or all run."""
        claiming = self._claiming(worker, in_time)
        everything = self._all()
        trials = asked(everything, self.sweep)
        queue = queue_of(claiming.timely(trials), self.sweep)
        if queue.placed or self.over or not (queue.new or any(trial.is_frozen for trial in trials)):
            return Choice()
        found = self._courses(everything)
        seed = derive_seed(self.sweep.seed, "choice", len(found), sum(course.done for course in found))
        choice = choose(Situation(found, size, queue.new, claiming.shape_of, seed, in_time))
        own = {trial.number for trial in trials}
        hopes = {number: hope for number, hope in choice.hopes.items() if number in own}
        return replace(choice, hopes=hopes, made_of=len(found))

    def _courses(self, everything: Sequence[TrialRecord]) -> list[Course]:
        """The trials that have begun, another study's among them, as a search sees them."""
        known = [trial for trial in everything if trial.earlier]
        extended = self.sweep if self.changes else None
        return courses([*known, *asked(everything, self.sweep)], classes=self.data["classes"], extended=extended)

    def report(
        self, claim: Claim, curve: Sequence[Mapping[str, Any]], checkpoints: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Store a trial's learning curve, all its epochs, and report the steps that Optuna has not seen yet.

        It may come late, with several epochs at once, and be done again. `checkpoints` is plain data that says where to
        continue it from; the next claim is given it. Raises TrialLostError where another worker holds the trial now.
        """
        searched = "epochs" in self.sweep.space
        values = {}
        for point in curve:
            step = strategy.step_of(point["epoch"], epochs=claim.config.shape.epochs, searched=searched)
            if step is not None and step not in claim.reported:
                values[step] = point[self.metric.field]
        # At once: a curve must not be longer than what a trial can be continued from.
        attributes = {"checkpoints": [dict(each) for each in checkpoints]}
        if list(curve[: (known := len(claim.curve))]) == claim.curve:
            fresh = {epoch_key(epoch): dict(point) for epoch, point in enumerate(curve[known:], start=known + 1)}
            change = Change(attributes | fresh, values=values)
        else:  # it was continued from an earlier epoch
            change = Change(attributes | {"curve": list(curve)}, removed=epoch_keys(claim.curve), values=values)
        if not self.storage.report(claim.trial, claim.owner.token, change):
            raise _lost(claim)
        claim.curve[:] = curve
        claim.reported.update(values)

    def should_prune(self, claim: Claim) -> bool:
        """Whether the pruner would end this trial after its last report; never one that confirms another."""
        return claim.before.confirms is None and claim.trial.should_prune()

    def complete(self, claim: Claim, value: float, **attributes: Any) -> None:
        """End a trial with the value of its best epoch. Raises TrialLostError as `report` does."""
        self._tell(claim, attributes, value=value)

    def prune(self, claim: Claim, reason: str) -> None:
        """End a trial early; its value is the last one reported. Raises TrialLostError as `report` does."""
        self._tell(claim, {"reason": reason}, state=TrialState.PRUNED)

    def fail(self, claim: Claim, reason: str, **attributes: Any) -> None:
        """End a trial without a value. Raises TrialLostError as `report` does."""
        self._tell(claim, {"reason": reason} | attributes, state=TrialState.FAIL)

    def _tell(
        self, claim: Claim, attributes: dict[str, Any], *, value: float | None = None, state: TrialState | None = None
    ) -> None:
        """End a trial, once: done again because the database's answer was lost, it changes nothing."""
        with self.storage.lock():
            there, holder = self.storage.holder(claim.trial_id)
            if there is None or holder != claim.owner.token:
                raise _lost(claim)
            if there.is_finished():
                return
            # One attribute for the curve of a finished trial: it is read much faster than one for each epoch.
            change = Change({"curve": claim.curve} | attributes, removed=epoch_keys(claim.curve))
            self.storage.write(claim.trial_id, change)
            self._study.tell(claim.trial, value, state=state)

    def release(self, claim: Claim, *, died: bool = False) -> bool:
        """Give an unfinished trial back to the queue; fail it if the study was cancelled.

        `died` counts as a death of its worker, of which a trial may only cause so many. Returns whether somebody will
        continue it. Raises TrialLostError as `report` does.
        """
        if self.state == CANCELLED and not self.sweep.listed:  # nothing takes the place of a listed point that failed
            self.fail(claim, "the study was cancelled")
            return False
        with self.storage.lock():
            if self.storage.owner(claim.trial_id) != claim.owner.token:
                raise _lost(claim)
            if died:
                return requeue_orphan(self.storage, claim.trial_id)
            self.storage.give_back(claim.trial_id)
        return True


def _lost(claim: Claim) -> TrialLostError:
    return TrialLostError(f"trial {claim.number} was taken up by another worker")


def data_words(study: SweepStudy) -> str:
    """Name and fingerprint of a study's data, as they stand beside its numbers."""
    return f"{study.data['name']} ({study.data['fingerprint']})"
