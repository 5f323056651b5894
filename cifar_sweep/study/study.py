"""A study and its trials: claim, report, prune, finish.

A trial is an Optuna trial from first to last. Interrupted, it goes back to WAITING under its own number, with its
parameters and reports, and is claimed again; so a study holds exactly as many trials as were asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.errors import StorageBusyError, StudyError
from cifar_sweep.study.claim import Claim, TrialLostError, Worker
from cifar_sweep.study.claiming import MAX_DEATHS
from cifar_sweep.study.owner import owner_attribute
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.study.record import STATE_NAMES, TrialRecord, best_first, count, describe, given_point, records
from cifar_sweep.study.storage import CANCELLED, FINISHED, OPEN, Storage, queued_params
from cifar_sweep.sweep import space, strategy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep


class SweepStudy:
    """A sweep's study in a storage. Accuracies are fractions; the value of a trial is its best validation accuracy."""

    def __init__(self, storage: Storage, study: optuna.Study) -> None:
        self.storage = storage
        self._study = study
        self.name = study.study_name
        attributes = study.user_attrs
        if "sweep" not in attributes or "data" not in attributes:
            raise StudyError(
                f"{storage.shown}: study {self.name!r} was not made by cifar-sweep; choose another with --study."
            )
        self.sweep: Sweep = parse(attributes["sweep"], where=f"study {self.name!r}")
        self.uid: str = attributes["uid"]
        self.data: dict[str, Any] = attributes["data"]
        self.code: dict[str, str] = attributes.get("code", {})
        self.artifacts: str = attributes["artifacts"]
        self.priority: int = attributes.get("priority", 0)
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
        self.sweep = parse(self._study.user_attrs["sweep"], where=f"study {self.name!r}")

    @property
    def budget(self) -> int:
        """How many trials are to be finished (complete or pruned); of given points, as many as were asked for last."""
        return self.sweep.size

    def trials(self) -> Sequence[FrozenTrial]:
        """All trials as they stand, by number."""
        return self._study.get_trials(deepcopy=False)

    def records(self) -> list[TrialRecord]:
        """All trials as they stand, by number, typed."""
        return records(self.trials())

    def asked_records(self) -> list[TrialRecord]:
        """The trials that the budget counts, typed; see `asked`."""
        return records(self.asked())

    def ranked_records(self) -> list[TrialRecord]:
        """The complete trials, best validation accuracy first, of equals the earlier one."""
        by_number = {record.number: record for record in self.records()}
        return [by_number[trial.number] for trial in self.ranked()]

    def asked(self) -> Sequence[FrozenTrial]:
        """The trials that the budget counts: of given points those that were asked for last; otherwise all."""
        trials = self.trials()
        if not self.sweep.given:
            return trials
        wanted = [(point.label, point.params()) for point in self.sweep.enqueue]
        return [trial for trial in trials if given_point(trial) in wanted]

    def finished(self) -> bool:
        """Whether the budget is spent. Nothing takes the place of a given point that failed."""
        trials = self.asked()
        if self.sweep.given:
            return not count(trials, "running", "waiting")
        return count(trials, "complete", "pruned") >= self.budget

    def missing(self) -> bool:
        """Whether a given point that was asked for has failed, and was not run again since."""
        trials = self.asked()
        return count(trials, "complete", "pruned", "running", "waiting") < self.budget

    def claim(
        self, worker: Worker, *, size: Callable[[Shape], int] = lambda _: 1, workers: int | None = None
    ) -> list[Claim]:
        """Hold an interrupted, an enqueued, or a new trial, and others like it; none while all are taken.

        Args:
            worker: who takes them.
            size: how many trials of a shape to take at most. All that are taken have the first one's shape and as many
                epochs behind them; those that are new are asked with the parameters held that decide the shape.
            workers: how many share the study, where the search is to limit what each asks for before the others'
                results are known; None where `size` alone decides.
        """
        with self.storage.lock():
            if self.state != OPEN:
                return []
            self._read_again()
            self._give_back_own(worker)
            self._requeue_orphans()
            first = self._claim_first(worker)
            if first is None:
                return []
            return [first, *self._claim_others(first, worker, size=size(first.config.shape), workers=workers)]

    def _claim_first(self, worker: Worker) -> Claim | None:
        trials = self.asked()
        waiting = next((trial for trial in trials if trial.state is TrialState.WAITING), None)
        # The queue may hold given points that were not asked for now.
        full = not self.sweep.given and count(trials, "complete", "pruned", "running") >= self.budget
        if full or (self.sweep.given and waiting is None):
            return None
        return self._take(waiting or self._enqueued({}), worker)

    def _claim_others(self, first: Claim, worker: Worker, *, size: int, workers: int | None) -> list[Claim]:
        """Trials for a group of `size` with `first`: those that wait and are alike, then new ones as there is room."""
        trials = self.asked()
        held = space.shape_params(first.trial.params)
        waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
        alike = [trial for trial in waiting if self._is_like(trial, first, held)]
        claims = [self._take(trial, worker) for trial in alike[: max(0, size - 1)]]
        new = 0 if self.sweep.given else min(size, self._most_new(trials, workers)) - 1 - len(claims)
        # What waits has its place in the budget.
        room = self.budget - count(trials, "complete", "pruned", "running", "waiting")
        return claims + [self._take(self._enqueued(held), worker) for _ in range(min(new, room))]

    def _most_new(self, trials: Sequence[FrozenTrial], workers: int | None) -> int:
        """How large a group may become by new trials, one of which is among the running ones already."""
        if workers is None:
            return self.budget
        finished = count(trials, "complete", "pruned")
        asked = finished + count(trials, "running") - 1
        return strategy.most_new(self.sweep, asked=asked, finished=finished, workers=workers)

    def _is_like(self, waiting: FrozenTrial, first: Claim, held: Mapping[str, Any]) -> bool:
        """Whether this trial, once taken, will have the shape of `first`, and has come as far."""
        if len(waiting.user_attrs.get("curve", [])) != first.epochs_done:
            return False
        if stored := waiting.user_attrs.get("config"):
            return TrialConfig.from_dict(stored).shape == first.config.shape
        if self.sweep.given:
            params = space.encode(waiting.user_attrs["given"], self.sweep)
            config = self._config(params, number=waiting.number, precision=first.config.shape.precision)
            return config.shape == first.config.shape
        return space.shape_params(queued_params(waiting)) == held

    def _enqueued(self, params: Mapping[str, Any]) -> FrozenTrial:
        """A new trial with these parameters, which waits."""
        self._study.enqueue_trial(dict(params))
        return self.trials()[-1]

    def _take(self, waiting: FrozenTrial, worker: Worker) -> Claim:
        """Run this waiting trial. Optuna's ask would take the first one, asked for now or not."""
        trial_id = self.storage.trial_id(self._study, waiting.number)
        if not self.storage.optuna.set_trial_state_values(trial_id, state=TrialState.RUNNING):
            raise StorageBusyError(f"study {self.name!r}: trial {waiting.number} was taken without the lock.")
        seed = strategy.sampler_seed(self.sweep.seed, number=waiting.number)
        self._study.sampler = strategy.build_sampler(self.sweep.sampler, seed=seed)
        trial = optuna.Trial(self._study, trial_id)
        space.suggest(trial, self.sweep, named=waiting.user_attrs["given"] if self.sweep.given else None)
        return self._hold(trial, worker, reported=set(waiting.intermediate_values))

    def _hold(self, trial: optuna.Trial, worker: Worker, *, reported: set[int]) -> Claim:
        trial_id = self.storage.trial_id(self._study, trial.number)
        # Before the lock is given up: an interrupted trial's last heartbeat is old, and the next claim would take it.
        self.storage.beat(trial_id)
        stored = trial.user_attrs.get("config")
        config = (
            TrialConfig.from_dict(stored)
            if stored
            else self._config(trial.params, number=trial.number, precision=worker.precision)
        )
        trial.set_user_attr("config", config.to_dict())
        # One attribute, not four: each is a transaction, and a group has many trials.
        known = versions() | {"kernels": worker.kernels}
        known |= {model: code for model, code in self.code.items() if model == config.shape.model}
        environment = {"device": worker.device, "threads": worker.threads, "versions": known, "commit": commit()}
        trial.set_user_attr("environment", environment)
        trial.set_user_attr("owner", owner_attribute(worker.owner))
        return Claim(trial, trial_id, worker.owner, config, reported)

    def _config(self, params: Mapping[str, Any], *, number: int, precision: str) -> TrialConfig:
        return space.to_config(params, self.sweep, number=number, classes=self.data["classes"], precision=precision)

    def _give_back_own(self, worker: Worker) -> None:
        """Requeue what this worker holds without knowing it: who claims has no trial, so a claim was broken off."""
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if (trial.user_attrs.get("owner") or {}).get("token") == worker.owner.token:
                trial_id = self.storage.trial_id(self._study, trial.number)
                self.storage.optuna.set_trial_user_attr(trial_id, "owner", None)
                self.storage.set_waiting(trial_id)

    def _requeue_orphans(self) -> None:
        """Give the trials of dead workers back to the queue; fail one that has killed its worker too often."""
        for trial_id in self.storage.orphans(self._study):
            attributes = self.storage.optuna.get_trial(trial_id).user_attrs
            # Only deaths in the same epoch count: a long trial on a machine that often goes away gets on all the same.
            reached = len(attributes.get("curve", []))
            deaths = 1 + (attributes.get("deaths", 0) if attributes.get("died_after") == reached else 0)
            self.storage.optuna.set_trial_user_attr(trial_id, "died_after", reached)
            self.storage.optuna.set_trial_user_attr(trial_id, "deaths", deaths)
            self.storage.optuna.set_trial_user_attr(trial_id, "owner", None)
            if deaths <= MAX_DEATHS:
                self.storage.set_waiting(trial_id)
            else:
                reason = f"its worker died {deaths} times without finishing epoch {reached + 1}"
                self.storage.optuna.set_trial_user_attr(trial_id, "reason", reason)
                self.storage.optuna.set_trial_state_values(trial_id, state=TrialState.FAIL)

    def report(
        self, claim: Claim, curve: Sequence[Mapping[str, Any]], checkpoints: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Store a trial's learning curve, epoch by epoch, and report the steps that Optuna has not seen yet.

        It may come late, with several epochs at once, and be done again.

        Args:
            claim: the trial.
            curve: all its epochs.
            checkpoints: plain data that says where to continue it from; the next claim is given it.

        Raises:
            TrialLostError: another worker holds the trial now.
        """
        searched = "epochs" in self.sweep.space
        values = {}
        for point in curve:
            step = strategy.step_of(point["epoch"], epochs=claim.config.shape.epochs, searched=searched)
            if step is not None and step not in claim.reported:
                values[step] = point["validation_accuracy"]
        # At once: a curve must not be longer than what a trial can be continued from.
        attributes = {"checkpoints": [dict(each) for each in checkpoints], "curve": list(curve)}
        if not self.storage.record(claim.trial, claim.owner.token, attributes, values):
            raise _lost(claim)
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
        self,
        claim: Claim,
        attributes: Mapping[str, Any],
        *,
        value: float | None = None,
        state: TrialState | None = None,
    ) -> None:
        """End a trial, once: done again because the database's answer was lost, it changes nothing."""
        with self.storage.lock():
            there, holder = self.storage.holder(claim.trial_id)
            if there is None or holder != claim.owner.token:
                raise _lost(claim)
            if there.is_finished():
                return
            _set(claim.trial, attributes)
            self._study.tell(claim.trial, value, state=state)

    def release(self, claim: Claim) -> bool:
        """Give an unfinished trial back to the queue; fail it if the study was cancelled.

        Returns:
            Whether somebody will continue it.

        Raises TrialLostError as `report` does.
        """
        if self.state == CANCELLED and not self.sweep.given:  # nothing takes the place of a given point that failed
            self.fail(claim, "the study was cancelled")
            return False
        with self.storage.lock():
            if self.storage.owner(claim.trial_id) != claim.owner.token:
                raise _lost(claim)
            claim.trial.set_user_attr("owner", None)
            self.storage.set_waiting(claim.trial_id)
        return True

    def check_data(self, *, name: str, fingerprint: str) -> None:
        """Raise StudyError if these are not the images that the study was run on."""
        if fingerprint != self.data["fingerprint"]:
            raise StudyError(
                f"study {self.name!r} was run on {self.data['name']}, not on {name}; name its data with --data."
            )

    def test_accuracy(self, numbers: Sequence[int]) -> float | None:
        """The remembered test accuracy of these trials' mean probabilities, one trial being the plain case."""
        found: dict[str, float] = self._study.user_attrs.get("test_accuracy", {})
        return found.get(_joined(numbers))

    def record_test(self, numbers: Sequence[int], accuracy: float) -> None:
        """Remember a test accuracy, so that the test set is not read again; what is there already stays."""
        with self.storage.lock():
            there = self._study.user_attrs.get("test_accuracy", {})
            self._study.set_user_attr("test_accuracy", {_joined(numbers): accuracy} | there)

    def ranked(self) -> list[FrozenTrial]:
        """The complete trials, best validation accuracy first; of equals the earlier one."""
        return best_first(self.trials())

    def kept(self, trials: Sequence[FrozenTrial] | None = None) -> list[FrozenTrial]:
        """The trials whose weights are kept, best first: as many as the sweep says, and as its size cap has room for.

        The best one is always kept. One that has dropped out does not come back: a better one only takes room.
        """
        ranked = best_first(self.trials() if trials is None else trials)[: self.sweep.keep_weights]
        sizes = accumulate(trial.user_attrs.get("weights", {}).get("size", 0) for trial in ranked)
        cap = self.sweep.keep_megabytes * 1_000_000
        return [trial for k, (trial, size) in enumerate(zip(ranked, sizes, strict=True)) if k == 0 or size <= cap]

    def stored_bytes(self, trials: Sequence[FrozenTrial]) -> int:
        """What the kept weights and the checkpoints of unfinished trials take, of `trials`."""
        weights: int = sum(trial.user_attrs.get("weights", {}).get("size", 0) for trial in self.kept(trials))
        unfinished = [trial for trial in trials if not trial.state.is_finished()]
        checkpoints = [stored for trial in unfinished for stored in trial.user_attrs.get("checkpoints", [])]
        return weights + sum(int(stored["size"]) for stored in checkpoints)

    def summary(self, trials: Sequence[FrozenTrial] | None = None) -> dict[str, Any]:
        """The study at a glance, as plain data; accuracies as fractions. Of `trials` alone, where they are given."""
        if trials is None:
            trials = self.trials()  # once: a trial that ends between two looks would be counted nowhere
            budget = count(trials, "complete", "pruned", "running", "waiting") if self.sweep.given else self.budget
        else:
            budget = self.budget
        counts = {name: count(trials, name) for name in STATE_NAMES.values()}
        # Trials whose worker is gone wait for the next one, whatever the database says until then. Without the lock a
        # claim under way looks like one, too, for a moment; at most what runs is counted.
        orphans = min(len(self.storage.orphans(self._study)), counts["running"])
        counts |= {"running": counts["running"] - orphans, "waiting": counts["waiting"] + orphans}
        ranked = best_first(trials)
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
            "best": describe(ranked[0]) if ranked else None,
            "data": self.data["name"],
            "data_fingerprint": self.data["fingerprint"],
        }


def _lost(claim: Claim) -> TrialLostError:
    return TrialLostError(f"trial {claim.number} was taken up by another worker")


def _joined(numbers: Sequence[int]) -> str:
    return "+".join(map(str, numbers))


def _set(trial: optuna.Trial, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        trial.set_user_attr(name, value)


def data_words(study: SweepStudy) -> str:
    """Name and fingerprint of a study's data, as they stand beside its numbers."""
    return f"{study.data['name']} ({study.data['fingerprint']})"
