"""A study and its trials: claim, report, prune, finish.

A trial is an Optuna trial from first to last. Interrupted, it goes back to WAITING under its own number, with its
parameters and reports, and is claimed again; so a study holds exactly as many trials as were asked for.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import optuna
from optuna.trial import TrialState

from cifar_sweep.config import Shape, derive_seed
from cifar_sweep.errors import StudyError
from cifar_sweep.search.choice import Choice, Choose, Course, Gain, Hope, InTime, Situation, in_time_always
from cifar_sweep.study.claim import Claim, TrialLostError, Worker
from cifar_sweep.study.claiming import Claiming, asked, courses, queue_of, state_counts
from cifar_sweep.study.hours import TIME_OVER, Hours
from cifar_sweep.study.record import OUTSIDE, TrialRecord, count, epoch_key, epoch_keys, records
from cifar_sweep.study.selection import expected
from cifar_sweep.study.storage import CANCELLED, FINISHED, HALTED, OPEN, Storage
from cifar_sweep.study.tables import Change
from cifar_sweep.study.winner import described, fresh_seeds, ranked, seeds_due
from cifar_sweep.sweep import space, strategy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.words import params_text

TEST_IMAGES = 10_000  # CIFAR-10's, where a study does not say

log = logging.getLogger(__name__)


def stored_sweep(study: optuna.Study) -> Sweep:
    """The sweep that is stored with a study of ours; parsed once for each text."""
    return _parsed(json.dumps(study.user_attrs["sweep"]), study.study_name)


@lru_cache(maxsize=100)
def _parsed(text: str, name: str) -> Sweep:
    return parse(json.loads(text), where=f"study {name!r}")


class SweepStudy:
    """A sweep's study in a storage. Accuracies are fractions; the value of a trial is its best validation accuracy."""

    def __init__(self, storage: Storage, study: optuna.Study) -> None:
        self.storage, self._study, self.name = storage, study, study.study_name
        attributes = study.user_attrs
        whole = {"sweep", "data", "uid", "artifacts"} <= attributes.keys()
        if not whole or not {"name", "fingerprint", "classes"} <= attributes["data"].keys():
            raise not_ours(storage, self.name)
        self._read_again()
        self.uid: str = attributes["uid"]
        self.data: dict[str, Any] = dict(attributes["data"])
        if "source" in self.data:
            self.data["source"] = storage.from_stored(self.data["source"])
        self.code: dict[str, str] = attributes.get("code", {})
        self.artifacts: str = storage.from_stored(attributes["artifacts"])
        self.home: list[str] | None = attributes.get("home")  # the database's when files were last written, or made
        self.priority: int = attributes.get("priority", 0)
        self.choice = Choice()  # the last one that a claim here was made by
        self._study.pruner = strategy.build_pruner(self.sweep)

    @property
    def state(self) -> str:
        """`OPEN`, `FINISHED`, `PAUSED` or `CANCELLED`, as it stands in the database."""
        return state_of(self._study.user_attrs)

    @property
    def reason(self) -> str:
        """Why it was paused, where nobody asked for that."""
        return str(self._study.user_attrs.get("reason", ""))

    def set_state(self, state: str, *, reason: str = "") -> None:
        """Open, finish, pause or cancel the study. Workers stop at their next heartbeat, if it is to stop."""
        with self.storage.lock():
            self._study.set_user_attr("reason", reason)
            self._study.set_user_attr("state", state)

    @property
    def hours(self) -> Hours | None:
        """In how much time it is to be done; None where its budget of trials is all that ends it."""
        stored = self._study.user_attrs.get("hours")
        return Hours(**stored) if stored else None

    def start_clock(self) -> None:
        """Let the study's hours begin now, if it has any that have not begun."""
        if (hours := self.hours) and hours.deadline is None:
            with self.storage.lock():
                if self.search_end() is None:
                    started = replace(hours, deadline=time.time() + 3600 * hours.hours)
                    self._study.set_user_attr("hours", asdict(started))

    def search_end(self) -> float | None:
        """When its search has to end, in seconds since the epoch; None where that is not known.

        The confirmation's time is the search's as long as no trial is complete; it is left when the search is over.
        """
        hours = self.hours
        if hours is None or hours.deadline is None:
            return None
        reserved = not self.over and count(self.trials(), "complete")
        return hours.deadline - (hours.reserve if reserved else 0.0)

    @property
    def over(self) -> str:
        """Why the search ended before its budget was spent; empty where it did not."""
        return str(self._study.user_attrs.get("over", ""))

    @property
    def changes(self) -> list[dict[str, Any]]:
        """How it was extended, the first time first: `at`, what it `was` and is `now`, and the `trials` before that."""
        return list(self._study.user_attrs.get("changes", ()))

    def remark(self, trial: TrialRecord) -> str:
        """What to say of a trial that was trained before the study was extended; empty of any other."""
        if not any(trial.number in change["trials"] for change in self.changes) or trial.config is None:
            return ""
        _, different = space.point_at(trial.config, self.sweep)
        settings = params_text(different)
        return f"trial {trial.number} was trained under the earlier space" + (f", with {settings}" if settings else "")

    def _described(self, trial: TrialRecord) -> dict[str, Any]:
        remark = self.remark(trial)
        return trial.described() | ({"remark": remark} if remark else {})

    @property
    def costs(self) -> dict[str, Any] | None:
        """What its parts were reckoned to cost where it was started, as it was noted; None where nobody did."""
        return self._study.user_attrs.get("costs")

    def note_costs(self, costs: dict[str, Any]) -> None:
        """Store what its parts are reckoned to cost, for those who want to know how long it still takes."""
        self._study.set_user_attr("costs", costs)

    def settle(self) -> bool:
        """Whether there is nothing more to be trained; if so, workers need not look at the study again."""
        if not self.finished():
            return self.state != OPEN
        with self.storage.lock():
            self._read_again()
            if self.state == OPEN and self.finished():
                self._study.set_user_attr("reason", self.over)
                self._study.set_user_attr("state", FINISHED)
            return self.state != OPEN

    def _read_again(self) -> None:
        """The sweep as it stands now: somebody may have given the study more trials since it was loaded."""
        self.sweep: Sweep = stored_sweep(self._study)

    @property
    def budget(self) -> int:
        """How many trials are to be finished (complete or pruned); of given points, as many as were asked for last."""
        return self.sweep.size

    def trials(self) -> list[TrialRecord]:
        """All its own trials as they stand, by number, typed."""
        return [trial for trial in self._all() if not trial.earlier]

    def begun_with(self) -> dict[str, Any] | None:
        """What it knew from another study: its name, how many trials, and the best of them; None where nothing."""
        taken = [trial for trial in self._all() if trial.earlier]
        best = next(iter(ranked(taken)), None)
        if not taken:
            return None
        there = (
            best and best.earlier and {key: best.earlier[key] for key in ("study", "number")} | {"value": best.value}
        )
        studies = sorted({trial.earlier["study"] for trial in taken if trial.earlier})
        return {"studies": studies, "trials": len(taken), "best": there}

    def _all(self) -> list[TrialRecord]:
        return records(self._study.get_trials(deepcopy=False))

    def asked(self) -> list[TrialRecord]:
        """The trials that the budget counts (see `claiming.asked`), and those that confirm the best of them."""
        trials = self.trials()
        return [*asked(trials, self.sweep), *fresh_seeds(trials)]

    def ranked(self) -> list[TrialRecord]:
        """The complete trials, best validation accuracy first, of equals the earlier one."""
        return ranked(self.trials())

    def finished(self, trials: Sequence[TrialRecord] | None = None) -> bool:
        """Whether the search is over, its budget or its time, and the best are confirmed.

        Nothing takes the place of a given point that failed.
        """
        trials = self.trials() if trials is None else trials
        searched, seeds = asked(trials, self.sweep), fresh_seeds(trials)
        if self.over and not count(trials, "running") and (self.sweep.given or not count(searched, "complete")):
            return True
        if self.sweep.given:
            return not count(searched, "running", "waiting")
        # With so many hours, how many trials there are is reckoned again with each group.
        if (self.hours and not self.over) or count(searched, "complete", "pruned") < self.budget:
            return False
        confirm = self.sweep.confirm
        return not confirm or not (count(seeds, "running", "waiting") or seeds_due(trials, confirm))

    def missing(self) -> bool:
        """Whether a given point that was asked for has failed, and was not run again since."""
        return count(asked(self.trials(), self.sweep), "complete", "pruned", "running", "waiting") < self.budget

    def claim(
        self,
        worker: Worker,
        *,
        size: Callable[[Shape], int] = lambda _: 1,
        workers: int | None = None,
        choose: Choose = lambda _: Choice(),
        in_time: InTime = in_time_always,
        trials: int | None = None,
    ) -> list[Claim]:
        """Hold the trials of the next group; none while all are taken.

        `size` says how many trials of a shape to take at most, `workers` how many share the study, as in `next_group`.
        `choose` is asked where the sweep's strategy is auto, before the database is locked. `in_time` and `trials` are
        of a study that has so many hours: what still ends in them, and how many trials it will have.
        """
        while True:
            auto = self.sweep.strategy == "auto"
            self.choice = choice = self._choice(worker, size, choose, in_time) if auto else Choice()
            asked_for = self.sweep.identity()
            with self.storage.lock():
                if self.state != OPEN:
                    return []
                self._read_again()
                if choice.new and self.sweep.identity() != asked_for:
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
                claims = claiming.claim(size=size, workers=workers, choice=choice)
                # What was chosen and is gone, others have trained meanwhile: then it is chosen again.
                if not (claims or choice.thawed or choice.new) and self._is_timed_out():
                    self._end_search(claiming, TIME_OVER)
                return claims

    def _is_timed_out(self) -> bool:
        """Whether nothing runs of a search that has to end in time; to be asked where nothing else fits into it."""
        return self.search_end() is not None and not count(self.trials(), "running")

    def _end_search(self, claiming: Claiming, why: str) -> None:
        """Let the search be over as if its budget were spent: what it has begun is all of it.

        Where it is over already, there is no time for its confirmation, or for the rest of that.
        """
        if self.over:
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
        sweep = self.under_way()
        return Claiming(self.storage, self._study, sweep, self.data["classes"], self.code, worker, in_time)

    def under_way(self) -> Sweep:
        """The sweep as it stands; of one with so many hours nothing is confirmed before its search is over."""
        waits = self.hours is not None and not self.over
        return self.sweep.model_copy(update={"confirm": None}) if waits else self.sweep

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

    @property
    def hopes(self) -> dict[int, Hope]:
        """What was expected of each trial when a group was last chosen; empty where no model chooses."""
        stored = self._study.user_attrs.get("hopes", {})
        try:
            return {int(number): Hope(**hope) for number, hope in stored.items()}
        except (TypeError, ValueError):  # not as we wrote it
            return {}

    @property
    def gain(self) -> Gain | None:
        """What more trials were expected to gain when a group was last chosen; None where no model has said it."""
        stored = self._study.user_attrs.get("gain")
        return Gain(**stored) if stored else None

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
                values[step] = point["validation_accuracy"]
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
        """End a trial with its best validation accuracy. Raises TrialLostError as `report` does."""
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
            whole = {"curve": claim.curve} if claim.curve else {}
            self.storage.write(claim.trial, Change(whole | attributes, removed=epoch_keys(claim.curve)))
            self._study.tell(claim.trial, value, state=state)

    def release(self, claim: Claim) -> bool:
        """Give an unfinished trial back to the queue; fail it if the study was cancelled.

        Returns whether somebody will continue it. Raises TrialLostError as `report` does.
        """
        if self.state == CANCELLED and not self.sweep.given:  # nothing takes the place of a given point that failed
            self.fail(claim, "the study was cancelled")
            return False
        with self.storage.lock():
            if self.storage.owner(claim.trial_id) != claim.owner.token:
                raise _lost(claim)
            self.storage.give_back(claim.trial_id)
        return True

    def settle_in(self, *, uid: str) -> None:
        """Note that the study is in this database now, under this uid; to be called under the lock."""
        self.uid, self.home = uid, list(self.storage.home())
        for key, value in {"uid": uid, "home": self.home}.items():
            self._study.set_user_attr(key, value)

    def check_data(self, *, name: str, fingerprint: str) -> None:
        """Raise StudyError if these are not the images that the study was run on."""
        if fingerprint != self.data["fingerprint"]:
            raise StudyError(
                f"study {self.name!r} was run on {self.data['name']}, not on {name}; name its data with --data."
            )

    def test_accuracy(self, numbers: Sequence[int]) -> float | None:
        """The remembered test accuracy of these trials' mean probabilities, one trial being the plain case."""
        found: dict[str, float] = self._study.user_attrs.get("test_accuracy", {})
        return found.get("+".join(map(str, numbers)))

    def record_test(self, numbers: Sequence[int], accuracy: float) -> None:
        """Remember a test accuracy, so that the test set is not read again; what is there already stays."""
        if not self.storage.writable:
            log.warning("study %s can only be read here: its test accuracy is not noted", self.name)
            return
        with self.storage.lock():
            there = self._study.user_attrs.get("test_accuracy", {})
            self._study.set_user_attr("test_accuracy", {"+".join(map(str, numbers)): accuracy} | there)

    def kept(self, trials: Sequence[TrialRecord] | None = None) -> list[TrialRecord]:
        """The trials whose weights are kept, best first: as many as the sweep says, and as its size cap has room for.

        The best one is always kept. One that has dropped out does not come back: a better one only takes room. All
        fresh seeds of a confirmation come before: until it is over, each of them may be what it comes to.
        """
        trials = self.trials() if trials is None else trials
        searched = ranked(trial for trial in trials if trial.confirms is None)[: self.sweep.keep_weights]
        best = [trial for trial in ranked(trials) if trial.confirms is not None] + searched
        sizes = accumulate(trial.weights_bytes or 0 for trial in best)
        cap = self.sweep.keep_megabytes * 1_000_000
        return [trial for k, (trial, size) in enumerate(zip(best, sizes, strict=True)) if k == 0 or size <= cap]

    def stored_bytes(self, trials: Sequence[TrialRecord]) -> int:
        """What the kept weights and the checkpoints of unfinished trials take, of `trials`."""
        weights = sum(trial.weights_bytes or 0 for trial in self.kept(trials))
        checkpoints = [stored for trial in trials if not trial.is_finished for stored in trial.checkpoints]
        return weights + sum(int(stored["size"]) for stored in checkpoints)

    def remarks(self, trials: Sequence[TrialRecord] | None = None) -> dict[str, Any]:
        """What to say beside the best trial's accuracy, as far as it is known: plain data, each with its `text`.

        `expected`: what it is expected to come to on as many new images as the test set has, see `selection`;
        `confirmation`: how it was confirmed, see `winner`.
        """
        trials = self.trials() if trials is None else trials
        found = expected(trials, new_images=int(self.data.get("test_images", TEST_IMAGES)))
        told = {"expected": found and found.described(), "confirmation": described(trials)}
        return {name: each for name, each in told.items() if each}

    def summary(self, trials: Sequence[TrialRecord] | None = None) -> dict[str, Any]:
        """The study at a glance, as plain data; accuracies as fractions. Of `trials` alone, where they are given."""
        self._read_again()  # with so many hours, how many trials there will be is reckoned again and again
        budget = self.budget
        if trials is None:
            trials = self.trials()  # once: a trial that ends between two looks would be counted nowhere
            if self.sweep.given:
                trials = [trial for trial in trials if trial.given is not None or trial.state == OUTSIDE]
                budget = count(trials, "complete", "pruned", "running", "waiting")
        counts = state_counts(trials, self.sweep)
        # Trials whose worker is gone wait for the next one, whatever the database says until then. Without the lock a
        # claim under way looks like one, too, for a moment; at most what runs is counted.
        orphans = min(len(self.storage.orphans(self._study)), counts["running"])
        counts |= {"running": counts["running"] - orphans, "waiting": counts["waiting"] + orphans}
        best = ranked(trials)
        return {
            "name": self.name,
            "description": self.sweep.description,
            "trials": counts,
            "budget": budget,
            "state": self.state,
            "reason": self.reason,
            "priority": self.priority,
            "stored_bytes": self.stored_bytes(trials),
            "stored_bytes_cap": self.sweep.keep_megabytes * 1_000_000,
            "best": self._described(best[0]) if best else None,
            "confirmation": described(trials),
            "changes": self.changes,
            "earlier": self.begun_with(),
            "data": self.data["name"],
            "data_fingerprint": self.data["fingerprint"],
        }


def state_of(attributes: Mapping[str, Any]) -> str:
    """`OPEN`, `FINISHED`, `PAUSED` or `CANCELLED`, as it stands in a study's user attributes."""
    state = attributes.get("state", OPEN)
    return state if state in (FINISHED, *HALTED) else OPEN


def not_ours(storage: Storage, name: str) -> StudyError:
    """The error of a study that somebody else has made."""
    return StudyError(f"{storage.shown}: study {name!r} was not made by cifar-sweep; choose another with --study.")


def _lost(claim: Claim) -> TrialLostError:
    return TrialLostError(f"trial {claim.number} was taken up by another worker")


def data_words(study: SweepStudy) -> str:
    """Name and fingerprint of a study's data, as they stand beside its numbers."""
    return f"{study.data['name']} ({study.data['fingerprint']})"
