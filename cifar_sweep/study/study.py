"""A study and its trials: claim, report, prune, finish.

A trial is an Optuna trial from first to last. Interrupted, it goes back to WAITING under its own number, with its
parameters and reports, and is claimed again; so a study holds exactly as many trials as were asked for.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import optuna
from optuna.trial import TrialState

from cifar_sweep.config import Shape, derive_seed
from cifar_sweep.errors import StudyError
from cifar_sweep.search.choice import Choice, Choose, Hope, Situation
from cifar_sweep.study.claim import Claim, TrialLostError, Worker
from cifar_sweep.study.claiming import Claiming, asked, courses, queue_of, state_counts
from cifar_sweep.study.record import TrialRecord, count, epoch_key, epoch_keys, ranked, records
from cifar_sweep.study.storage import CANCELLED, FINISHED, OPEN, Storage
from cifar_sweep.study.tables import Change
from cifar_sweep.sweep import strategy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

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
        if "sweep" not in attributes or "data" not in attributes:
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
        return str(self._study.user_attrs.get("state", OPEN))

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
        """All trials as they stand, by number, typed."""
        return records(self._study.get_trials(deepcopy=False))

    def asked(self) -> list[TrialRecord]:
        """The trials that the budget counts; see `claiming.asked`."""
        return asked(self.trials(), self.sweep)

    def ranked(self) -> list[TrialRecord]:
        """The complete trials, best validation accuracy first, of equals the earlier one."""
        return ranked(self.trials())

    def finished(self) -> bool:
        """Whether the budget is spent. Nothing takes the place of a given point that failed."""
        trials = self.asked()
        if self.sweep.given:
            return not count(trials, "running", "waiting")
        return count(trials, "complete", "pruned") >= self.budget

    def missing(self) -> bool:
        """Whether a given point that was asked for has failed, and was not run again since."""
        return count(self.asked(), "complete", "pruned", "running", "waiting") < self.budget

    def claim(
        self,
        worker: Worker,
        *,
        size: Callable[[Shape], int] = lambda _: 1,
        workers: int | None = None,
        choose: Choose = lambda _: Choice(),
    ) -> list[Claim]:
        """Hold the trials of the next group; none while all are taken.

        `size` says how many trials of a shape to take at most, `workers` how many share the study, as in `next_group`.
        `choose` is asked where the sweep's strategy is auto, before the database is locked.
        """
        while True:
            self.choice = choice = self._choice(worker, size, choose) if self.sweep.strategy == "auto" else Choice()
            with self.storage.lock():
                if self.state != OPEN:
                    return []
                self._read_again()
                if choice.new and choice.made_of != len(courses(self.asked(), classes=self.data["classes"])):
                    continue  # another worker has begun trials meanwhile, perhaps at these very points
                if choice.hopes:
                    hopes = {str(number): asdict(hope) for number, hope in choice.hopes.items()}
                    self._study.set_user_attr("hopes", hopes)
                return self._claiming(worker).claim(size=size, workers=workers, choice=choice)

    def _claiming(self, worker: Worker) -> Claiming:
        return Claiming(self.storage, self._study, self.sweep, self.data["classes"], self.code, worker)

    def _choice(self, worker: Worker, size: Callable[[Shape], int], choose: Choose) -> Choice:
        """What to train next as the study stands; nothing where that needs no choice: a trial waits, or all run."""
        trials = self.asked()
        queue = queue_of(trials, self.sweep)
        if queue.placed or not (queue.new or any(trial.is_frozen for trial in trials)):
            return Choice()
        shape_of = self._claiming(worker).shape_of
        found = courses(trials, classes=self.data["classes"])
        seed = derive_seed(self.sweep.seed, "choice", len(found), sum(course.done for course in found))
        return replace(choose(Situation(found, size, queue.new, shape_of, seed)), made_of=len(found))

    @property
    def hopes(self) -> dict[int, Hope]:
        """What was expected of each trial when a group was last chosen; empty where no model chooses."""
        stored = self._study.user_attrs.get("hopes", {})
        return {int(number): Hope(**hope) for number, hope in stored.items()}

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
        """Whether the pruner would end this trial after its last report."""
        return claim.trial.should_prune()

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

        The best one is always kept. One that has dropped out does not come back: a better one only takes room.
        """
        best = ranked(self.trials() if trials is None else trials)[: self.sweep.keep_weights]
        sizes = accumulate(trial.weights_bytes or 0 for trial in best)
        cap = self.sweep.keep_megabytes * 1_000_000
        return [trial for k, (trial, size) in enumerate(zip(best, sizes, strict=True)) if k == 0 or size <= cap]

    def stored_bytes(self, trials: Sequence[TrialRecord]) -> int:
        """What the kept weights and the checkpoints of unfinished trials take, of `trials`."""
        weights = sum(trial.weights_bytes or 0 for trial in self.kept(trials))
        checkpoints = [stored for trial in trials if not trial.is_finished for stored in trial.checkpoints]
        return weights + sum(int(stored["size"]) for stored in checkpoints)

    def summary(self, trials: Sequence[TrialRecord] | None = None) -> dict[str, Any]:
        """The study at a glance, as plain data; accuracies as fractions. Of `trials` alone, where they are given."""
        budget = self.budget
        if trials is None:
            trials = self.trials()  # once: a trial that ends between two looks would be counted nowhere
            if self.sweep.given:
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
            "best": best[0].described() if best else None,
            "data": self.data["name"],
            "data_fingerprint": self.data["fingerprint"],
        }


def not_ours(storage: Storage, name: str) -> StudyError:
    """The error of a study that somebody else has made."""
    return StudyError(f"{storage.shown}: study {name!r} was not made by cifar-sweep; choose another with --study.")


def _lost(claim: Claim) -> TrialLostError:
    return TrialLostError(f"trial {claim.number} was taken up by another worker")


def data_words(study: SweepStudy) -> str:
    """Name and fingerprint of a study's data, as they stand beside its numbers."""
    return f"{study.data['name']} ({study.data['fingerprint']})"
