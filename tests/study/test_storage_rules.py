"""The rules of a study's storage, step by step against a model, on every kind of database.

Workers claim, report, beat, freeze, stand still, die and lose the database in the midst of a step; studies are paused,
extended and copied; plain Optuna writes into them. Time passes when a test says so: what was written moves into the
past. After each step the database is what the model says.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import sqlalchemy
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from optuna.storages import RDBStorage

from cifar_sweep.errors import CifarSweepError, StorageBusyError, StudyError
from cifar_sweep.search.choice import Choice, Situation, grant_end
from cifar_sweep.study import opening, owner
from cifar_sweep.study import storage as storage_module
from cifar_sweep.study.claim import Claim, TrialLostError, Worker
from cifar_sweep.study.claiming import MAX_DEATHS
from cifar_sweep.study.copying import copy_studies
from cifar_sweep.study.lease import Lease
from cifar_sweep.study.next_group import NEW, Queue, Waiting, next_group
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import CANCELLED, FINISHED, LEASE_SECONDS, OPEN, PAUSED, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep
from tests.study.plants import PLANTS, Plant

EXAMPLES = int(os.environ.get("CIFAR_SWEEP_RULES_EXAMPLES", "10"))
DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
EPOCHS = 6  # in grants that end after 1, 2 and 6
PLACES = range(3)  # of workers: two on this machine, and one elsewhere
ELSEWHERE = PLACES[-1]
pytestmark = pytest.mark.slow
STEPS = Counter[str]()  # how often each rule was followed, over all examples


@cache
def sweep(trials: int, strategy: str) -> Sweep:
    plain: dict[str, Any] = {"name": "s", "trials": trials, "strategy": strategy}
    plain |= {"space": {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}}}
    plain |= {"fixed": {"model": "convnet", "epochs": EPOCHS}}
    return parse(plain | ({} if strategy == "auto" else {"sampler": "random", "pruner": "none"}), where="test")


def point(epoch: int, mark: float) -> dict[str, Any]:
    """An epoch; `mark` says which training it came from."""
    same = dict.fromkeys(("train_accuracy", "validation_loss", "validation_accuracy", "learning_rate", "seconds"), 0.5)
    return same | {"epoch": epoch, "train_loss": mark}


class BrokenError(StorageBusyError):
    """The database does not answer."""


class Databases:
    """A database as it is open in each worker's place and in another program, and another one for copies."""

    def __init__(self, url: str, elsewhere: str, stack: ExitStack) -> None:
        self.now = 0.0  # on the clock that goes on when it is told to
        self.alive: set[int] = set()  # the pids of this machine
        self.names = count()
        self.places = []
        for zone in ("UTC", "America/New_York", "Asia/Tokyo"):  # a server is told by its clients what time it is there
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PGTZ", zone)
                self.places.append(stack.enter_context(closing(open_storage(url))))
        self.target = stack.enter_context(closing(open_storage(elsewhere)))
        self.theirs = RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
        stack.callback(self.theirs.engine.dispose)
        stack.callback(self.theirs.remove_session)
        engine = self.places[0].optuna.engine
        past = {
            "sqlite": "datetime(heartbeat, -:s || ' seconds')",
            "postgresql": "heartbeat - make_interval(secs => :s)",
        }
        self._age = sqlalchemy.text(f"UPDATE trial_heartbeats SET heartbeat = {past[engine.name]}")

    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        with self.places[0].optuna.engine.begin() as connection:
            connection.execute(self._age, {"s": seconds})

    @contextmanager
    def breaking(self, place: int, statement: int) -> Iterator[None]:
        """The database goes away before so many of the statements that come from this place."""
        left = iter(range(statement))

        def execute(*_: Any) -> None:
            if next(left, None) is None:
                raise BrokenError("storage: it does not answer.")

        engine = self.places[place].optuna.engine
        sqlalchemy.event.listen(engine, "before_cursor_execute", execute)
        try:
            yield
        finally:
            sqlalchemy.event.remove(engine, "before_cursor_execute", execute)


@dataclass
class Expected:
    """A trial as it has to be."""

    state: str = "waiting"
    curve: list[float] = field(default_factory=list)  # the marks of its epochs
    begun: bool = False
    owner: str | None = None  # the token of the worker that holds it
    beat: float = 0.0  # when that one was last heard
    until: int | None = None
    deaths: int = 0
    died_after: int | None = None
    fits: bool = True  # whether its parameters are of the space

    @property
    def frozen(self) -> bool:
        return self.state == "waiting" and self.until is not None and self.until <= len(self.curve) < EPOCHS

    @property
    def seen(self) -> tuple[Any, ...]:
        if self.state == "outside":
            return (self.state,)
        return self.state, self.curve, self.owner, self.frozen, self.deaths


@dataclass
class Held:
    """A trial that a worker believes to hold, and how far it has trained it."""

    study: SweepStudy
    claim: Claim
    curve: list[dict[str, Any]]


# What stands there twice happens more often. A worker that holds nothing claims instead.
DEEDS = ["report", "report", "report", "train", "report twice", "begin again", "complete", "complete", "prune", "fail"]
DEEDS += ["release", "release", "beat", "beat", "break", "break", "break", "die", "die", "time", "time"]
DEEDS += [OPEN, OPEN, PAUSED, CANCELLED, "extend", "copy", "copy", "enqueue", "ask", "tell"]
places, numbers = st.sampled_from(PLACES), st.integers(0, 5)


class Rules(RuleBasedStateMachine):
    """Three workers, a study, and what it has to come to."""

    def __init__(self, there: Databases) -> None:
        super().__init__()
        self.there = there
        self.trials: list[Expected] = []
        self.dead: set[str] = set()  # tokens of workers whose end is seen at once
        self.held: list[dict[int, Held]] = [{} for _ in PLACES]
        self.pids, self.marks, self.state = count(1000), count(), OPEN
        self.theirs: list[optuna.Trial] = []
        self.looks, self.sound = 0, False

    @initialize(budget=st.integers(1, 5), strategy=st.sampled_from(["optuna", "auto"]))
    def begin(self, budget: int, strategy: str) -> None:
        self.there.now += 1e6  # no outage is remembered from before
        self.outages = [-1e6] * len(PLACES)
        self.name, self.strategy, self.budget = f"s{os.getpid()}-{next(self.there.names)}", strategy, budget
        open_or_resume(self.there.places[0], self.name, sweep(budget, strategy), data=DATA)
        self.workers = [self.born(place) for place in PLACES]
        self.studies = [load(storage, self.name) for storage in self.there.places]
        self.other = optuna.load_study(storage=self.there.theirs, study_name=self.name)

    def born(self, place: int) -> Worker:
        current, pid = Owner.current(), next(self.pids)
        self.there.alive.add(pid)
        host = "elsewhere" if place == ELSEWHERE else current.host
        return Worker(replace(current, pid=pid, started=str(pid), host=host), "cpu (test)", 1, "fp32")

    def token(self, place: int) -> str:
        return self.workers[place].owner.token

    # What the model says

    def count(self, *states: str) -> int:
        return sum(trial.state in states for trial in self.trials)

    def queue(self) -> Queue:
        waiting = [(number, trial) for number, trial in enumerate(self.trials) if trial.state == "waiting"]
        free = [(number, trial) for number, trial in waiting if not trial.frozen]
        return Queue(
            sweep(self.budget, self.strategy),
            self.count("complete", "pruned"),
            self.count("running") + len(waiting) - len(free),
            [Waiting(number, "a", len(trial.curve), begun=trial.begun) for number, trial in free],
        )

    def is_left(self, trial: Expected, place: int) -> bool:
        """Whether nobody trains this running trial, as it is seen from there."""
        patient = self.there.now - self.outages[place] < 30
        return trial.owner in self.dead or (self.there.now - trial.beat > LEASE_SECONDS and not patient)

    def take_back(self, place: int) -> None:
        """What a claim does first: its worker's own trials, and those that nobody trains, wait again."""
        for trial in self.trials:
            if trial.state == "running" and trial.owner == self.token(place):
                trial.state, trial.owner = "waiting", None
            elif trial.state == "running" and self.is_left(trial, place):
                done = len(trial.curve)
                trial.deaths = 1 + (trial.deaths if trial.died_after == done else 0)
                trial.died_after, trial.owner = done, None
                trial.state = "failed" if trial.deaths > MAX_DEATHS else "waiting"
            elif trial.state == "waiting" and not trial.fits:
                trial.state = "failed"

    def group(self, size: int, made: Choice) -> list[int]:
        """The numbers of the trials that are taken; those that are given up are pruned."""
        queue = self.queue()
        first, later = queue.first(), count(len(self.trials))
        if self.strategy == "auto" and first in (None, NEW):
            there = [number for number, trial in enumerate(self.trials) if trial.frozen]
            for number in made.pruned:
                self.trials[number].state = "pruned"
            thawed = [number for number in made.thawed if number in there]
            return thawed or list(islice(later, len(made.new[: queue.new])))
        if first is None:
            return []
        group = next_group(queue, replace(first, shape="a"), size=size, workers=None)
        new = 0 if self.strategy == "auto" else group.new
        return [trial.number for trial in group.waiting] + list(islice(later, new))

    def holds(self, place: int, number: int) -> bool:
        trial = self.trials[number]
        return trial.state == "running" and trial.owner == self.token(place)

    # What workers do

    def choose(self, chosen: list[Choice], wish: tuple[int, int, int], now: Situation) -> Choice:
        pruned, thawed, new = wish
        frozen = [course.number for course in now.courses if course.frozen]
        gone = dict.fromkeys(frozen[:pruned], "hopeless")
        on = frozen[pruned : pruned + thawed]
        chosen.append(Choice(on, [] if on else [{"learning_rate": 0.01}] * new, gone))
        return chosen[-1]

    def do_claim(self, place: int, size: int, wish: tuple[int, int, int] = (0, 1, 1)) -> None:
        study = load(self.there.places[place], self.name)
        settled, chosen = study.settle(), list[Choice]()
        if self.state == OPEN and self.count("complete", "pruned") >= self.budget:
            self.state = FINISHED
        assert settled is (self.state != OPEN)
        claims = study.claim(self.workers[place], size=lambda _: size, choose=partial(self.choose, chosen, wish))
        expected = []
        if self.state == OPEN:
            self.take_back(place)
            expected = self.group(size, chosen[-1] if chosen else Choice())
        assert [claim.number for claim in claims] == expected
        self.held[place] = {}
        for claim in claims:
            if claim.number == len(self.trials):
                self.trials.append(Expected())
            trial = self.trials[claim.number]
            trial.until = grant_end(len(trial.curve), EPOCHS) if self.strategy == "auto" else None
            assert claim.until == (trial.until or EPOCHS)
            assert [each["train_loss"] for each in claim.curve] == trial.curve
            trial.state, trial.begun, trial.owner, trial.beat = "running", True, self.token(place), self.there.now
            self.held[place][claim.number] = Held(study, claim, list(claim.curve))

    def do_report(self, place: int, number: int) -> None:
        held = self.held[place][number]
        if self.kept(place, number, lambda: held.study.report(held.claim, held.curve)):
            self.trials[number].curve = [each["train_loss"] for each in held.curve]

    def do_end(self, place: int, number: int, how: str, again: bool) -> None:
        held = self.held[place][number]
        cancelled = self.state == CANCELLED
        ends: dict[str, tuple[Callable[[], Any], str]] = {
            "complete": (lambda: held.study.complete(held.claim, 0.5), "complete"),
            "prune": (lambda: held.study.prune(held.claim, "it was weak"), "pruned"),
            "fail": (lambda: held.study.fail(held.claim, "it was broken"), "failed"),
            "release": (lambda: held.study.release(held.claim), "failed" if cancelled else "waiting"),
        }
        end, state = ends[how]
        if self.kept(place, number, end):
            self.trials[number].state, self.trials[number].owner = state, None
            if again:  # the answer was lost
                with suppress(TrialLostError):
                    end()
        self.held[place].pop(number, None)

    def kept(self, place: int, number: int, operation: Callable[[], Any]) -> bool:
        """Do what a holder alone may; whether this worker still is it."""
        if self.holds(place, number):
            operation()
            return True
        with pytest.raises(TrialLostError):
            operation()
        del self.held[place][number]
        return False

    def claim(self, place: int, size: int, wish: tuple[int, int, int], again: bool) -> None:
        self.do_claim(place, 1 + size % 3, wish)
        if again:  # the answer was lost
            self.do_claim(place, 1 + size % 3, wish)

    @rule(deed=st.sampled_from(DEEDS), place=places, which=numbers, amount=st.integers(0, 99), flag=st.booleans())
    def step(self, deed: str, place: int, which: int, amount: int, flag: bool) -> None:
        """One rule, so that each example has steps of all kinds."""
        besides: dict[str, Callable[[], None]] = {
            "die": partial(self.die, place),
            "time": partial(self.there.pass_time, 130 if flag else 50),
            "extend": partial(self.extend, amount % 3),
            "copy": partial(self.copy, place),
            "enqueue": partial(self.enqueue, fits=flag),
            "ask": self.ask,
            "tell": partial(self.tell, which, 0.99 if flag else None),
            **{state: partial(self.set_state, state) for state in (OPEN, PAUSED, CANCELLED)},
        }
        if deed not in besides and not self.held[place]:
            deed = "claim"
            besides[deed] = partial(self.claim, place, which, (amount % 3, which % 3, 1 + amount % 2), flag)
        STEPS[deed] += 1
        besides[deed]() if deed in besides else self.work(deed, place, which, amount, flag)

    def work(self, deed: str, place: int, which: int, amount: int, flag: bool) -> None:
        """A worker does something with a trial that it believes to hold."""
        held = sorted(self.held[place])
        number = held[which % len(held)]
        if deed in ("complete", "prune") and not self.held[place][number].claim.curve:
            deed = "report"  # there is nothing yet that it could be worth
        {
            "report": partial(self.train, place, number, amount % 3),
            "train": partial(self.train, place, number, amount % 3, reported=False),
            "report twice": partial(self.report_twice, place, number),
            "begin again": partial(self.begin_again, place, number, amount % 3),
            "beat": partial(self.beat, place),
            "break": partial(self.break_off, place, number, amount, which, dies=flag),
        }.get(deed, partial(self.do_end, place, number, deed, flag))()

    def train(self, place: int, number: int, epochs: int, reported: bool = True) -> None:
        held = self.held[place][number]
        for epoch in range(len(held.curve) + 1, min(len(held.curve) + epochs, held.claim.until) + 1):
            held.curve.append(point(epoch, next(self.marks)))
        if reported:  # otherwise later: the database was away
            self.do_report(place, number)

    def report_twice(self, place: int, number: int) -> None:
        """The answer to the first time was lost."""
        held = self.held[place][number]
        claim = replace(held.claim, curve=list(held.claim.curve), reported=set(held.claim.reported))
        self.train(place, number, 1)
        if number in self.held[place]:
            held.claim = claim
            self.do_report(place, number)

    def begin_again(self, place: int, number: int, kept: int) -> None:
        """From an earlier epoch: its checkpoints were not to be used."""
        held = self.held[place][number]
        if kept < len(held.curve):
            held.curve = [*held.curve[:kept], point(kept + 1, next(self.marks))]
            self.do_report(place, number)

    def beat(self, place: int) -> None:
        storage, held = self.there.places[place], self.held[place]
        lease = Lease(storage, self.name, [each.claim for each in held.values()])
        lease.beat()
        assert lease.halted is (self.state in (PAUSED, CANCELLED))
        for number in held:
            if self.holds(place, number):
                self.trials[number].beat = self.there.now

    def break_off(self, place: int, number: int, statement: int, which: int, *, dies: bool) -> None:
        """The database goes away in the midst of a step, which is done again later, unless its worker died."""
        steps = [partial(self.do_report, place, number), partial(self.do_end, place, number, "release", False)]
        if self.held[place][number].claim.curve:
            steps += [partial(self.do_end, place, number, "complete", False)]
        steps += [partial(self.do_claim, place, 2)]  # as if the answer to the first claim had been lost, too
        do = steps[which % len(steps)]
        try:
            with self.there.breaking(place, statement if do is steps[-1] else statement % 12):
                do()
        except BrokenError:
            if self.state == OPEN and self.studies[place].state == FINISHED:
                self.state = FINISHED
            self.there.places[place].note_outage()
            self.outages[place] = self.there.now
            if dies:
                self.die(place)
            else:
                do()

    def die(self, place: int) -> None:
        worker = self.workers[place]
        self.there.alive.remove(worker.owner.pid)
        if place != ELSEWHERE:
            self.dead.add(worker.owner.token)
        self.workers[place], self.held[place] = self.born(place), {}

    # What people and other programs do

    def set_state(self, state: str) -> None:
        self.studies[0].set_state(state)
        self.state = state

    def extend(self, more: int) -> None:
        self.budget += more
        self.state = OPEN
        open_or_resume(self.there.places[0], self.name, sweep(self.budget, self.strategy), data=DATA)

    def copy(self, place: int) -> None:
        source, target = self.there.places[place], self.there.target
        running = [trial for trial in self.trials if trial.state == "running"]
        if any(not self.is_left(trial, place) for trial in running):
            with pytest.raises(StudyError, match="is being trained"):
                copy_studies(source, target, [self.name])
            return
        assert copy_studies(source, target, [self.name]) == [self.name]
        there = deepcopy(self.trials)
        for trial in there:
            if trial.state == "running":
                trial.state, trial.owner = "waiting", None
        assert self.seen(load(target, self.name)) == [trial.seen for trial in there]
        optuna.delete_study(storage=target.optuna, study_name=self.name)

    def enqueue(self, *, fits: bool) -> None:
        self.other.enqueue_trial({"learning_rate": 0.01 if fits else 5.0})
        self.trials.append(Expected(fits=fits))

    def ask(self) -> None:
        """Another program takes a trial that waits, or a new one."""
        trial = self.other.ask()
        if trial.number == len(self.trials):
            self.trials.append(Expected())
        self.trials[trial.number].state = "outside"
        self.theirs.append(trial)

    def tell(self, which: int, value: float | None) -> None:
        if self.theirs:
            trial = self.theirs.pop(which % len(self.theirs))
            self.other.tell(trial, value, state=None if value else optuna.trial.TrialState.FAIL)

    # What has to be so

    def seen(self, study: SweepStudy) -> list[tuple[Any, ...]]:
        found = []
        for trial in study.trials():
            holder = trial.owner.token if trial.owner and trial.state == "running" else None
            marks = [each.train_loss for each in trial.curve]
            what = (trial.state, marks, holder, trial.is_frozen, trial.deaths)
            found.append(what[:1] if trial.state == "outside" else what)
        return found

    @invariant()
    def all_is_as_expected(self) -> None:
        if not hasattr(self, "name"):
            return
        self.sound, self.looks = False, self.looks + 1
        study = self.studies[self.looks % len(PLACES)]
        assert self.seen(study) == [trial.seen for trial in self.trials]
        frozen = sum(trial.frozen for trial in self.trials)
        assert self.count("complete", "pruned", "running") + frozen <= self.budget
        self.sound = True

    def teardown(self) -> None:
        """One worker that nothing happens to ends the study with exactly its budget."""
        if not self.sound:
            return
        self.set_state(OPEN)
        self.there.pass_time(130)
        self.held = [{} for _ in PLACES]
        for _ in range(100):
            self.do_claim(0, 3, (0, 2, 2))
            if self.state == FINISHED:
                break
            for number, held in list(self.held[0].items()):
                for epoch in range(len(held.curve) + 1, held.claim.until + 1):
                    held.curve.append(point(epoch, next(self.marks)))
                self.do_report(0, number)
                self.do_end(0, number, "complete" if len(held.curve) == EPOCHS else "release", False)
        assert self.state == FINISHED
        assert self.count("complete", "pruned") == self.budget
        self.all_is_as_expected()


@pytest.fixture
def there(url: str, sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Databases]:
    for module in (opening, "cifar_sweep.study.claiming"):
        where = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{where}.commit", lambda: "0123456789ab")
    (tmp_path / "copy.db").write_bytes(sqlite_template.read_bytes())
    with ExitStack() as stack:
        opened = Databases(url, f"sqlite:///{tmp_path}/copy.db", stack)
        monkeypatch.setattr(owner, "process_started", lambda pid: str(pid) if pid in opened.alive else None)
        monkeypatch.setattr(storage_module, "time", SimpleNamespace(monotonic=lambda: opened.now))
        yield opened


def follow(there: Databases, *, examples: int, phases: Sequence[Phase]) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=phases,
        database=None,
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(partial(Rules, there), settings=chosen)


def test_the_storage_follows_the_rules(there: Databases, record_property: Callable[[str, object], None]) -> None:
    STEPS.clear()
    follow(there, examples=EXAMPLES, phases=[Phase.generate, Phase.shrink])
    record_property("steps", {"all": STEPS.total(), **STEPS})


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("plant", PLANTS if EXAMPLES > 10 else [*PLANTS][:4], ids=lambda plant: plant.__name__)
def test_a_planted_fault_breaks_the_rules(plant: Plant, there: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, KeyError, ValueError, CifarSweepError)):
        follow(there, examples=100, phases=[Phase.generate])
