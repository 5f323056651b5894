"""Claiming: which trials a worker takes, and what becomes of those that others left behind."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import optuna
from optuna.trial import TrialState

from cifar_sweep.config import Shape, TrialConfig, derive_seed
from cifar_sweep.errors import StorageBusyError, UsageError
from cifar_sweep.parameters import Value
from cifar_sweep.search.choice import Choice, Course, InTime, grant_end, in_time_always
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.hours import changed
from cifar_sweep.study.next_group import NEW, Queue, Waiting, next_group
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.study.record import IMPOSSIBLE, STATES, TrialRecord, count, epoch_keys, is_reserved
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.tables import Change
from cifar_sweep.study.winner import fresh_seeds, seeds_due
from cifar_sweep.sweep import space
from cifar_sweep.sweep.parsing import check_point
from cifar_sweep.sweep.strategy import build_sampler
from cifar_sweep.sweep.sweep import PrunerSettings, SamplerSettings, Sweep

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
    return Queue(sweep, spent(trials, sweep), under_way, waiting)


def spent(trials: Sequence[TrialRecord], sweep: Sweep) -> int:
    """How much of the budget is used up. Impossible trials take nothing of it, as far as there are not more than that:
    a space that has hardly any network that can be trained comes to an end, too.
    """
    return count(trials, "complete", "pruned") + max(0, count(trials, IMPOSSIBLE) - sweep.size)


def courses(trials: Sequence[TrialRecord], *, classes: int, extended: Sweep | None = None) -> list[Course]:
    """The trials that have begun, as a search sees them. A diverged one stays at the accuracy of chance.

    `extended` is the sweep of a study that had another one: of its trials, only those that could be of this one count.
    """
    found = []
    for trial in trials:
        if trial.config is not None and trial.state != "failed":
            params, different = (trial.params, {}) if extended is None else space.point_at(trial.config, extended)
            if different.keys() - space.LENGTH:
                continue
            # What can be taken away at the end is a trial of the study's own: another study's is nothing to beat.
            complete = trial.state == "complete" and not trial.earlier
            accuracies = [point.validation_accuracy for point in trial.curve]
            # What ran out of patience would have stayed as it was.
            rest = [1 / classes] if trial.diverged else accuracies[-1:] if trial.state == "complete" else []
            accuracies += rest * trial.epochs_left
            shape = trial.config.shape
            known = (params, trial.settings, shape, shape.epochs, accuracies)
            found.append(Course(trial.number, *known, frozen=trial.is_frozen, complete=complete))
    return found


def asked(trials: Sequence[TrialRecord], sweep: Sweep) -> list[TrialRecord]:
    """The trials that the budget counts: of given points those of the sweep, of waiting ones those it has room for.

    Those that come from another study are not among them.
    """
    trials = [trial for trial in trials if not trial.earlier]
    if sweep.given:
        points = [(point.label, point.params()) for point in sweep.enqueue]
        trials = [trial for trial in trials if (trial.label, trial.given) in points]
    trials = [trial for trial in trials if trial.confirms is None]
    placed = {trial.number for trial in queue_of(trials, sweep).placed}
    return [trial for trial in trials if trial.state != "waiting" or trial.is_frozen or trial.number in placed]


def is_searched(searched: Sequence[TrialRecord], sweep: Sweep) -> bool:
    """Whether the budget is spent; nothing takes the place of a point that was listed and failed."""
    if sweep.listed:
        return not count(searched, "running", "waiting")
    return spent(searched, sweep) >= sweep.size


def _confirms_now(searched: Sequence[TrialRecord], sweep: Sweep) -> tuple[int, int] | None:
    """How many of the best of a search are confirmed, under how many seeds; None where nothing is, or not yet."""
    return sweep.confirm if is_searched(searched, sweep) else None


def stage(trials: Sequence[TrialRecord], sweep: Sweep) -> tuple[Sweep, list[TrialRecord]]:
    """What is under way: the search and its trials, or, once that is finished, its confirmation as a sweep of its own.

    That one has as many trials as there are fresh seeds, and trains each of them to its end.
    """
    searched, seeds = asked(trials, sweep), fresh_seeds(trials)
    if not _confirms_now(searched, sweep):
        return sweep, searched
    plain = {"strategy": "optuna", "sampler": SamplerSettings(name="random"), "pruner": PrunerSettings(name="none")}
    return sweep.model_copy(update={"trials": len(seeds), "confirm": None} | plain), seeds


def state_counts(trials: Sequence[TrialRecord], sweep: Sweep) -> dict[str, int]:
    """How many trials are in each state, frozen ones apart; of points that wait no more than there is room for.

    Fresh seeds of a confirmation are not among them. Of the pruned ones, `diverged` says how many ended so.
    """
    trials = [trial for trial in trials if trial.confirms is None]
    counts = {name: count(trials, name) for name in STATES}
    frozen = sum(trial.is_frozen for trial in trials)
    waiting = counts["waiting"] - frozen if sweep.given else len(queue_of(trials, sweep).placed)
    return counts | {"waiting": waiting, "frozen": frozen, "diverged": sum(trial.diverged for trial in trials)}


def given_among(trials: Sequence[TrialRecord], sweep: Sweep) -> int:
    """How many of the finished trials are points that a search was given to try first; 0 where nothing is searched."""
    points = [] if sweep.given else [point.params().items() for point in sweep.enqueue]
    finished = [trial.settings.items() for trial in trials if trial.state in ("complete", "pruned")]
    return sum(any(point <= settings for settings in finished) for point in points)


def prune_waiting(storage: Storage, study: optuna.Study, trial: TrialRecord, reason: str) -> None:
    """End a trial that waits; its value is the last one reported. To be called under the database's lock."""
    change = Change({"reason": reason, "curve": trial.points}, removed=epoch_keys(trial.points))
    reported = trial.frozen.intermediate_values
    values = [reported[max(reported)]] if reported else None
    storage.turn(storage.trial_id(study, trial.number), TrialState.PRUNED, change, values=values)


@dataclass(frozen=True)
class Claiming:
    """A worker that claims trials of a study; all its methods are called under the database's lock."""

    storage: Storage
    study: optuna.Study
    sweep: Sweep  # the study's, as it stands now
    classes: int  # of the study's images
    code: Mapping[str, str]  # the fingerprints of users' own models, by model
    worker: Worker
    in_time: InTime = in_time_always
    uncut: Callable[[TrialConfig, Callable[[Shape], bool]], dict[str, Value]] | None = None  # of the study's hours
    shapes: dict[Hashable, Shape] = field(default_factory=dict)  # of trials that wait, as far as they were asked for

    def claim(self, *, size: Callable[[Shape], int], workers: int | None, devices: int, choice: Choice) -> list[Claim]:
        """The trials of the next group, held by the worker; see `SweepStudy.claim`."""
        while (claims := self._claimed(size, workers, devices, choice)) is None:
            pass
        return claims

    def _claimed(
        self, size: Callable[[Shape], int], workers: int | None, devices: int, choice: Choice
    ) -> list[Claim] | None:
        """The same; None where the next trial could not be trained, and was pruned."""
        self._give_back_own()
        self._requeue_orphans()
        self._check_queued()
        sweep, there = stage(self._confirming(), self.sweep)
        trials = {trial.number: trial for trial in self.timely(there)}
        queue = queue_of(list(trials.values()), sweep, shape_of=self._shape_of)
        waiting = queue.first()
        chosen = sweep.strategy == "auto"
        if chosen and waiting in (None, NEW):
            return self._chosen(choice, [trial for trial in trials.values() if trial.is_frozen], room=queue.new)
        if waiting is None or (waiting is NEW and not self._may_ask(late=len(there) > len(trials))):
            return []
        first = self._take(self._ask({}) if waiting is NEW else trials[waiting.number])
        shape = first.config.shape
        if shape.fault:  # the sampler learns of it as of the worst trial that there is
            self.storage.turn(first.trial_id, TrialState.PRUNED, Change({"reason": shape.fault, "curve": []}))
            return None
        most = min(size(shape), self.in_time(shape, waiting.epochs))
        if not most:  # what was sampled takes too long; it says so when the search ends
            self.storage.give_back(first.trial_id)
            return []
        if sweep is not self.sweep:  # a confirmation, shared out among all workers
            most = min(most, math.ceil(len(queue.placed) / (workers or 1)))
        group = next_group(queue, replace(waiting, shape=shape), size=most, workers=workers, devices=devices)
        others = [trials[trial.number] for trial in group.waiting if trial.number != waiting.number]
        claims = [first, *map(self._take, others)]
        held = space.shape_params(first.trial.params)
        # What an interrupted trial was begun with may be another precision than this worker's.
        new = 0 if chosen or self._config(held, number=0).shape != shape else group.size - len(claims)
        return claims + [self._take(self._ask(held)) for _ in range(new)]

    def _confirming(self) -> list[TrialRecord]:
        """All trials, with those that wait for the fresh seeds that are due, once the search is finished."""
        trials = self._trials()
        confirm = _confirms_now(asked(trials, self.sweep), self.sweep)
        if not confirm:
            return trials
        uncut = {trial.confirms: trial.uncut for trial in trials if trial.uncut}
        for number in seeds_due(trials, confirm):
            config = trials[number].config
            if self.uncut and config and number not in uncut:
                uncut[number] = self.uncut(config, lambda shape: bool(self.in_time(shape, 0)))
            attributes: dict[str, Any] = {"confirms": number, "confirm": confirm}
            attributes |= {"uncut": uncut[number]} if uncut.get(number) else {}
            self.study.enqueue_trial(dict(trials[number].frozen.params), user_attrs=attributes)
        return self._trials()

    def timely(self, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        """The trials without those that wait and would not end in time, as far as their shape is known."""
        return [trial for trial in trials if trial.state != "waiting" or trial.is_frozen or self._is_timely(trial)]

    def _is_timely(self, waiting: TrialRecord) -> bool:
        shape = None if self.in_time is in_time_always else self._shape_of(waiting)
        return shape is None or bool(self.in_time(shape, waiting.epochs_done))

    def _may_ask(self, *, late: bool) -> bool:
        """Whether a new trial may end in time; where its shape is sampled, unless one was `late` already."""
        if space.leaves_shape_open({}, self.sweep):
            return not late
        return bool(self.in_time(self._config({}, number=0).shape, 0))

    def close(self, reason: str) -> None:
        """End all trials that wait and were trained, frozen ones among them: the search is over."""
        self._give_back_own()
        self._requeue_orphans()
        for trial in asked(self._trials(), self.sweep):
            if trial.state == "waiting" and trial.config is not None:
                words = f"stopped after epoch {trial.epochs_done}: {reason}"
                prune_waiting(self.storage, self.study, trial, words)

    def give_up_seeds(self, reason: str) -> None:
        """Fail the fresh seeds that wait: there is no time for them."""
        for trial in self._trials():
            if trial.confirms is not None and trial.state == "waiting":
                self._fail(trial, reason)

    def _chosen(self, choice: Choice, frozen: Sequence[TrialRecord], *, room: int) -> list[Claim]:
        """What a choice comes to now: others may have chosen since it was made."""
        there = {trial.number: trial for trial in frozen}
        for number, reason in choice.pruned.items():
            if number in there:
                prune_waiting(self.storage, self.study, there.pop(number), reason)
        thawed = [there[number] for number in choice.thawed if number in there]
        new = (self._ask(space.encode(point, self.sweep)) for point in choice.new[:room])
        return [self._take(trial) for trial in thawed or new]

    def _fail(self, trial: TrialRecord, reason: str) -> None:
        """End a trial that waits without a value."""
        trial_id = self.storage.trial_id(self.study, trial.number)
        self.storage.turn(trial_id, TrialState.FAIL, Change({"reason": reason}))

    def shape_of(self, point: Mapping[str, Value]) -> Shape:
        """The shape of a trial at this point."""
        return self._config(space.encode(point, self.sweep), number=0).shape

    def _shape_of(self, waiting: TrialRecord) -> Shape | None:
        """The shape that a waiting trial will have; None where part of it is still to be sampled."""
        if waiting.config is not None:
            return waiting.config.shape
        if waiting.confirms is not None:
            return self._repeated(waiting).shape
        params = waiting.queued if waiting.given is None else space.encode(waiting.given, self.sweep)
        if (key := space.shape_key(params)) in self.shapes:
            return self.shapes[key]
        if waiting.given is None and space.leaves_shape_open(params, self.sweep):
            return None
        return self.shapes.setdefault(key, self._config(params, number=waiting.number).shape)

    def _config(self, params: Mapping[str, Any], *, number: int) -> TrialConfig:
        precision = self.worker.precision
        return space.to_config(params, self.sweep, number=number, classes=self.classes, precision=precision)

    def _repeated(self, fresh: TrialRecord) -> TrialConfig:
        """The config of the trial that a fresh seed confirms, with a seed of its own, and without the cuts to hours."""
        config = self._trials()[fresh.confirms or 0].config
        assert config is not None  # it is complete
        config = changed(config, fresh.uncut or {})
        return replace(config, knobs=replace(config.knobs, seed=derive_seed(self.sweep.seed, "trial", fresh.number)))

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
        self.study.sampler = build_sampler(self.sweep, number=waiting.number, whole=space.distributions(self.sweep))
        trial = optuna.Trial(self.study, trial_id)
        if waiting.config is None:  # one that has begun stays what it is, whatever the space is now
            space.suggest(trial, self.sweep, named=waiting.given)
        fresh = waiting.confirms is not None
        config = waiting.config or (
            self._repeated(waiting) if fresh else self._config(trial.params, number=waiting.number)
        )
        epochs, granted = config.shape.epochs, self.sweep.strategy == "auto" and not fresh
        until = grant_end(waiting.epochs_done, epochs) if granted else epochs
        grant = {"until": until} if granted else {}
        self.storage.write(trial_id, Change({"config": config.to_dict()} | grant | self._held(config)))
        reported = set(waiting.frozen.intermediate_values)
        return Claim(trial, trial_id, self.worker.owner, config, waiting, list(waiting.points), reported, until)

    def _held(self, config: TrialConfig) -> dict[str, Any]:
        """The attributes of a trial that this worker holds."""
        worker = self.worker
        known = versions() | {"kernels": worker.kernels}
        known |= {model: code for model, code in self.code.items() if model == config.shape.own_file}
        environment = {"device": worker.device, "threads": worker.threads, "versions": known, "commit": commit()}
        return {"environment": environment, "owner": asdict(worker.owner)}

    def _check_queued(self) -> None:
        """Fail points that others have queued and that do not fit; the rest wait like our own, with nothing else."""
        for trial in self._trials():
            if trial.state != "waiting" or trial.config is not None or self.sweep.given or trial.confirms is not None:
                continue
            params = {**trial.frozen.params, **trial.queued}
            try:
                point = space.renamed(check_point(space.decode(params), self.sweep, where="this point"), self.sweep)
            except UsageError as error:
                self._fail(trial, str(error))
                continue
            odd = [key for key in trial.frozen.user_attrs if is_reserved(key) and key not in NOT_BEGUN]
            if odd or trial.frozen.params or trial.frozen.intermediate_values or repr(point) != repr(trial.queued):
                self.storage.requeue(self.storage.trial_id(self.study, trial.number), point, without=odd)

    def _give_back_own(self) -> None:
        """Requeue what this worker holds without knowing it: who claims has no trial, so a claim was broken off."""
        for trial in self._trials():
            if trial.state == "running" and trial.owner and trial.owner.token == self.worker.owner.token:
                self.storage.give_back(self.storage.trial_id(self.study, trial.number))

    def _requeue_orphans(self) -> None:
        """Give the trials of dead workers back to the queue."""
        for trial_id in self.storage.orphans(self.study):
            requeue_orphan(self.storage, trial_id)


def requeue_orphan(storage: Storage, trial_id: int) -> bool:
    """Give the trial of a dead worker back to the queue; fail one that has killed too many. Whether it is continued."""
    trial = TrialRecord(storage.optuna.get_trial(trial_id))
    # Only deaths in the same epoch count: a long trial on a machine that often goes away gets on all the same.
    deaths = 1 + (trial.deaths if trial.died_after == trial.epochs_done else 0)
    changed: dict[str, Any] = {"died_after": trial.epochs_done, "deaths": deaths, "owner": None}
    if deaths > MAX_DEATHS:
        changed["reason"] = f"its worker died {deaths} times without finishing epoch {trial.epochs_done + 1}"
        changed["reason"] += "; if it was killed for its time or memory, an epoch needs more of it"
    storage.turn(trial_id, TrialState.FAIL if deaths > MAX_DEATHS else TrialState.WAITING, Change(changed))
    return deaths <= MAX_DEATHS
