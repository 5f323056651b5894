"""What a study is as it stands: its sweep, its trials, what it comes to. Reading it needs no worker."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import optuna

from cifar_sweep.curve import METRICS, Metric
from cifar_sweep.errors import StudyError
from cifar_sweep.search.choice import Choice, Gain, Hope
from cifar_sweep.study import selection
from cifar_sweep.study.claiming import asked, is_searched, state_counts
from cifar_sweep.study.hours import Hours
from cifar_sweep.study.record import IMPOSSIBLE, OUTSIDE, TrialRecord, count, records
from cifar_sweep.study.storage import FINISHED, HALTED, OPEN, Storage
from cifar_sweep.study.verdict import verdict
from cifar_sweep.study.winner import described, fresh_seeds, ranked, seeds_due
from cifar_sweep.sweep import space, strategy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.words import params_text

_TAKEN = ("complete", "pruned", IMPOSSIBLE, "running", "waiting")  # the states of a point that was not lost
TEST_IMAGES = 10_000  # CIFAR-10's, where a study does not say
log = logging.getLogger(__name__)


def stored_sweep(study: optuna.Study) -> Sweep:
    """The sweep that is stored with a study of ours; parsed once for each text."""
    return _parsed(json.dumps(study.user_attrs["sweep"]), study.study_name)


@lru_cache(maxsize=100)
def _parsed(text: str, name: str) -> Sweep:
    raw = json.loads(text)
    sweep = parse(raw, where=f"study {name!r}")
    # Of a grid that was extended there may be more trials than points.
    return sweep.model_copy(update={"trials": raw.get("trials", sweep.trials)})


class StoredStudy:
    """A sweep's study in a storage. Accuracies are fractions; a trial's value is its best epoch's, by the metric."""

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

    def _read_again(self) -> None:
        """The sweep as it stands now: somebody may have given the study more trials since it was loaded."""
        self.sweep: Sweep = stored_sweep(self._study)

    @property
    def metric(self) -> Metric:
        """What its trials are chosen by."""
        return METRICS[self.sweep.metric]

    @property
    def budget(self) -> int:
        """How many trials are to be finished (complete or pruned); of given points, as many as were asked for last."""
        return self.sweep.size

    def trials(self) -> list[TrialRecord]:
        """All its own trials as they stand, by number, typed."""
        return [trial for trial in self._all() if not trial.earlier]

    def begun_with(self) -> dict[str, Any] | None:
        """What it knew from another study: its name, how many trials, and the best of them; None where nothing."""
        trials = [trial for trial in self._all() if trial.earlier]
        origins = {trial.number: trial.earlier for trial in trials if trial.earlier}
        if not origins:
            return None
        best = next(iter(ranked(trials)), None)
        there = best and {key: origins[best.number][key] for key in ("study", "number")} | {"value": best.value}
        return {"studies": sorted({each["study"] for each in origins.values()}), "trials": len(trials), "best": there}

    def _all(self) -> list[TrialRecord]:
        return records(self._study.get_trials(deepcopy=False))

    def asked(self) -> list[TrialRecord]:
        """The trials that the budget counts (see `claiming.asked`), and those that confirm the best of them."""
        trials = self.trials()
        return [*asked(trials, self.sweep), *fresh_seeds(trials)]

    def ranked(self) -> list[TrialRecord]:
        """The complete trials, the best first, of equals the earlier one."""
        return ranked(self.trials())

    def finished(self, trials: Sequence[TrialRecord] | None = None) -> bool:
        """Whether the search is over, its budget or its time, and the best are confirmed.

        Nothing takes the place of a listed point that failed.
        """
        trials = self.trials() if trials is None else trials
        searched, seeds = asked(trials, self.sweep), fresh_seeds(trials)
        given = self.sweep.given
        if self.over and not count(trials, "running") and (given or not count(searched, "complete")):
            return True
        # With so many hours, how many trials there are is reckoned again with each group.
        if (self.hours and not self.over and not given) or not is_searched(searched, self.sweep):
            return False
        confirm = self.sweep.confirm
        return not confirm or not (count(seeds, "running", "waiting") or seeds_due(trials, confirm))

    def missing(self) -> bool:
        """Whether a listed point that was asked for has failed, and was not run again since."""
        return count(asked(self.trials(), self.sweep), *_TAKEN) < self.budget

    def under_way(self) -> Sweep:
        """The sweep as it stands; of one with so many hours nothing is confirmed before its search is over."""
        waits = self.hours is not None and not self.over
        return self.sweep.model_copy(update={"confirm": None}) if waits else self.sweep

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

    def validation_images(self, trial: TrialRecord) -> int:
        """How many images a trial was validated on; 0 where that is not known."""
        # Of each class one image in five, where nobody has said which (see `training.images.split`).
        there = self.data.get("validation_images", round(self.data.get("train_images", 0) / 4))
        return int(trial.settings.get("validation_images", 0)) or there

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

    def expected(self, trials: Sequence[TrialRecord]) -> dict[str, Any] | None:
        """What the best of these is expected to come to on as many new images as the test set has; see `selection`."""
        found = selection.expected(trials, new_images=int(self.data.get("test_images", TEST_IMAGES)))
        return found.described() if found else None

    def remarks(self, trials: Sequence[TrialRecord] | None = None) -> dict[str, Any]:
        """What to say beside the best trial's accuracy, as far as it is known: plain data, each with its `text`.

        `expected`: as the method; `confirmation`: how it was confirmed, see `winner`. Nothing where there is no best.
        """
        trials = self.trials() if trials is None else trials
        if verdict(self, trials):
            return {}
        told = {"expected": self.expected(trials), "confirmation": described(trials)}
        return {name: each for name, each in told.items() if each}

    def summary(self, trials: Sequence[TrialRecord] | None = None) -> dict[str, Any]:
        """The study at a glance, as plain data; accuracies as fractions. Of `trials` alone, where they are given."""
        self._read_again()  # with so many hours, how many trials there will be is reckoned again and again
        budget = self.budget
        if trials is None:
            trials = self.trials()  # once: a trial that ends between two looks would be counted nowhere
            if self.sweep.given:
                trials = [trial for trial in trials if trial.given is not None or trial.state == OUTSIDE]
                budget = count(trials, *_TAKEN)
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
            "metric": self.sweep.metric,
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
