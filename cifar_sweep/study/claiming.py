"""Claiming: which trials a worker takes, and what becomes of those that others left behind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.trial import TrialState

from cifar_sweep.config import Shape, TrialConfig, Value
from cifar_sweep.errors import StorageBusyError, UsageError
from cifar_sweep.search.choice import Choice, Course, grant_end
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.next_group import NEW, Queue, Waiting, next_group
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.study.record import STATES, TrialRecord, count, epoch_keys, is_reserved
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.tables import Change
from cifar_sweep.sweep import space
from cifar_sweep.sweep.parsing import check_point
from cifar_sweep.sweep.strategy import build_sampler
from cifar_sweep.sweep.sweep import Sweep

MAX_DEATHS = 3
NOT_BEGUN = ("label", "owner", "deaths", "died_after")  # what a trial may have that has no config yet


def queue_of(
    trials: Sequence[TrialRecord], sweep: Sweep, *, shape_of: Callable[[TrialRecord], Any] = lambda _: None
) -> Queue:
    """The queue of a study with these trials, of given points those of the sweep alone; `shape_of` as in `Waiting`.

    A frozen trial is under way in the eyes of the queue: what becomes of it is the choice of a model.
    """
    waiting = [
        Waiting(trial.number, shape_of(trial), trial.epochs_done, begun=trial.config is not None)
        for trial in trials
        if trial.state == "waiting" and not trial.is_frozen
    ]
    under_way = count(trials, "running") + sum(trial.is_frozen for trial in trials)
    return Queue(sweep, count(trials, "complete", "pruned"), under_way, waiting)


def courses(trials: Sequence[TrialRecord], *, classes: int) -> list[Course]:
    """The trials that have begun, as a search sees them. A diverged one stays at the accuracy of chance."""
    found = []
    for trial in trials:
        if trial.config is not None and trial.state != "failed":
            accuracies = [point.validation_accuracy for point in trial.curve]
            accuracies += [1 / classes] * (trial.epochs_left if trial.diverged else 0)
            shape, complete = trial.config.shape, trial.state == "complete"
            known = (trial.params, trial.settings, shape, shape.epochs, accuracies)
            found.append(Course(trial.number, *known, frozen=trial.is_frozen, complete=complete))
    return found


def asked(trials: Sequence[TrialRecord], sweep: Sweep) -> list[TrialRecord]:
    """The trials that the budget counts: of given points those of the sweep, of waiting ones those it has room for."""
    if sweep.given:
        points = [(point.label, point.params()) for point in sweep.enqueue]
        trials = [trial for trial in trials if (trial.label, trial.given) in points]
    placed = {trial.number for trial in queue_of(trials, sweep).placed}
    return [trial for trial in trials if trial.state != "waiting" or trial.is_frozen or trial.number in placed]


def state_counts(trials: Sequence[TrialRecord], sweep: Sweep) -> dict[str, int]:
    """How many trials are in each state, frozen ones apart; of points that wait no more than there is room for.

    Of the pruned ones, `diverged` says how many ended so.
    """
    counts = {name: count(trials, name) for name in STATES}
    frozen = sum(trial.is_frozen for trial in trials)
    waiting = counts["waiting"] - frozen if sweep.given else len(queue_of(trials, sweep).placed)
    return counts | {"waiting": waiting, "frozen": frozen, "diverged": sum(trial.diverged for trial in trials)}


def given_among(trials: Sequence[TrialRecord], sweep: Sweep) -> int:
    """How many of the finished trials are points that the sweep gives to be tried first."""
    points = [point.params().items() for point in sweep.enqueue]
    finished = [trial.settings.items() for trial in trials if trial.state in ("complete", "pruned")]
    return sum(any(point <= settings for settings in finished) for point in points)


@dataclass(frozen=True)
class Claiming:
    """A worker that claims trials of a study; all its methods are called under the database's lock."""

    storage: Storage
    study: optuna.Study
    sweep: Sweep  # the study's, as it stands now
    classes: int  # of the study's images
    code: Mapping[str, str]  # the fingerprints of users' own models, by model
    worker: Worker

    def claim(self, *, size: Callable[[Shape], int], workers: int | None, choice: Choice) -> list[Claim]:
        """The trials of the next group, held by the worker; see `SweepStudy.claim`."""
        self._give_back_own()
        self._requeue_orphans()
        self._check_queued()
        trials = {trial.number: trial for trial in asked(self._trials(), self.sweep)}
        queue = queue_of(list(trials.values()), self.sweep, shape_of=self._shape_of)
        waiting = queue.first()
        chosen = self.sweep.strategy == "auto"
        if chosen and waiting in (None, NEW):
            return self._chosen(choice, [trial for trial in trials.values() if trial.is_frozen], room=queue.new)
        if waiting is None:
            return []
        first = self._take(self._ask({}) if waiting is NEW else trials[waiting.number])
        shape = first.config.shape
        group = next_group(queue, replace(waiting, shape=shape), size=size(shape), workers=workers)
        others = [trials[trial.number] for trial in group.waiting if trial.number != waiting.number]
        claims = [first, *map(self._take, others)]
        held = space.shape_params(first.trial.params)
        # What an interrupted trial was begun with may be another precision than this worker's.
        new = 0 if chosen or self._config(held, number=0).shape != shape else group.size - len(claims)
        return claims + [self._take(self._ask(held)) for _ in range(new)]

    def _chosen(self, choice: Choice, frozen: Sequence[TrialRecord], *, room: int) -> list[Claim]:
        """What a choice comes to now: others may have chosen since it was made."""
        there = {trial.number: trial for trial in frozen}
        for number, reason in choice.pruned.items():
            if number in there:
                self._prune(there.pop(number), reason)
        thawed = [there[number] for number in choice.thawed if number in there]
        new = (self._ask(space.encode(point, self.sweep)) for point in choice.new[:room])
        return [self._take(trial) for trial in thawed or new]

    def _prune(self, trial: TrialRecord, reason: str) -> None:
        """End a frozen trial; its value is the last one reported."""
        trial_id = self.storage.trial_id(self.study, trial.number)
        change = Change({"reason": reason, "curve": trial.points}, removed=epoch_keys(trial.points))
        self.storage.write(optuna.Trial(self.study, trial_id), change)
        reported = trial.frozen.intermediate_values
        values = [reported[max(reported)]] if reported else None
        self.storage.optuna.set_trial_state_values(trial_id, state=TrialState.PRUNED, values=values)

    def shape_of(self, point: Mapping[str, Value]) -> Shape:
        """The shape of a trial at this point."""
        return self._config(space.encode(point, self.sweep), number=0).shape

    def _shape_of(self, waiting: TrialRecord) -> Shape | None:
        """The shape that a waiting trial will have; None where part of it is still to be sampled."""
        if waiting.config is not None:
            return waiting.config.shape
        params = waiting.queued if waiting.given is None else space.encode(waiting.given, self.sweep)
        if waiting.given is None and space.leaves_shape_open(params, self.sweep):
            return None
        return self._config(params, number=waiting.number).shape

    def _config(self, params: Mapping[str, Any], *, number: int) -> TrialConfig:
        precision = self.worker.precision
        return space.to_config(params, self.sweep, number=number, classes=self.classes, precision=precision)

    def _ask(self, params: Mapping[str, Any]) -> TrialRecord:
        """A new trial with these parameters, which waits."""
        self.study.enqueue_trial(dict(params))
        return self._trials()[-1]

    def _trials(self) -> list[TrialRecord]:
        """All trials, without the names of their workers: those take a while, and the database is locked."""
        return [TrialRecord(trial) for trial in self.study.get_trials(deepcopy=False)]

    def _take(self, waiting: TrialRecord) -> Claim:
        """Run this waiting trial. Optuna's ask would take the first one, asked for now or not."""
        trial_id = self.storage.trial_id(self.study, waiting.number)
        # First: a running trial that nobody of ours holds is another program's.
        self.storage.optuna.set_trial_user_attr(trial_id, "owner", asdict(self.worker.owner))
        if not self.storage.optuna.set_trial_state_values(trial_id, state=TrialState.RUNNING):
            raise StorageBusyError(
                f"study {self.study.study_name!r}: trial {waiting.number} was taken without the lock."
            )
        # Before the lock is given up: an interrupted trial's last heartbeat is old, and the next claim would take it.
        self.storage.beat(trial_id)
        self.study.sampler = build_sampler(self.sweep, number=waiting.number)
        trial = optuna.Trial(self.study, trial_id)
        space.suggest(trial, self.sweep, named=waiting.given)
        config = waiting.config or self._config(trial.params, number=waiting.number)
        epochs, granted = config.shape.epochs, self.sweep.strategy == "auto"
        until = grant_end(waiting.epochs_done, epochs) if granted else epochs
        grant = {"until": until} if granted else {}
        self.storage.write(trial, Change({"config": config.to_dict()} | grant | self._held(config)))
        reported = set(waiting.frozen.intermediate_values)
        return Claim(trial, trial_id, self.worker.owner, config, waiting, list(waiting.points), reported, until)

    def _held(self, config: TrialConfig) -> dict[str, Any]:
        """The attributes of a trial that this worker holds."""
        worker = self.worker
        known = versions() | {"kernels": worker.kernels}
        known |= {model: code for model, code in self.code.items() if model == config.shape.model}
        environment = {"device": worker.device, "threads": worker.threads, "versions": known, "commit": commit()}
        return {"environment": environment, "owner": asdict(worker.owner)}

    def _check_queued(self) -> None:
        """Fail points that others have queued and that do not fit; the rest wait like our own, with nothing else."""
        for trial in self._trials():
            if trial.state != "waiting" or trial.config is not None or self.sweep.given:
                continue
            trial_id = self.storage.trial_id(self.study, trial.number)
            params = {**trial.frozen.params, **trial.queued}
            try:
                point = space.renamed(check_point(space.decode(params), self.sweep, where="this point"), self.sweep)
            except UsageError as error:
                self.storage.optuna.set_trial_user_attr(trial_id, "reason", str(error))
                self.storage.optuna.set_trial_state_values(trial_id, state=TrialState.FAIL)
                continue
            odd = [key for key in trial.frozen.user_attrs if is_reserved(key) and key not in NOT_BEGUN]
            if odd or trial.frozen.params or trial.frozen.intermediate_values or repr(point) != repr(trial.queued):
                self.storage.requeue(trial_id, point, without=odd)

    def _give_back_own(self) -> None:
        """Requeue what this worker holds without knowing it: who claims has no trial, so a claim was broken off."""
        for trial in self._trials():
            if trial.state == "running" and trial.owner and trial.owner.token == self.worker.owner.token:
                self.storage.give_back(self.storage.trial_id(self.study, trial.number))

    def _requeue_orphans(self) -> None:
        """Give the trials of dead workers back to the queue; fail one that has killed its worker too often."""
        for trial_id in self.storage.orphans(self.study):
            trial = TrialRecord(self.storage.optuna.get_trial(trial_id))
            # Only deaths in the same epoch count: a long trial on a machine that often goes away gets on all the same.
            deaths = 1 + (trial.deaths if trial.died_after == trial.epochs_done else 0)
            changed: dict[str, Any] = {"died_after": trial.epochs_done, "deaths": deaths, "owner": None}
            if deaths > MAX_DEATHS:
                changed["reason"] = f"its worker died {deaths} times without finishing epoch {trial.epochs_done + 1}"
                changed["reason"] += "; if it was killed for its time, an epoch needs more of it"
            for name, value in changed.items():
                self.storage.optuna.set_trial_user_attr(trial_id, name, value)
            state = TrialState.FAIL if deaths > MAX_DEATHS else TrialState.WAITING
            self.storage.optuna.set_trial_state_values(trial_id, state=state)
