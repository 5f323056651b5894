"""One trial as everybody reads it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from cifar_sweep.artifacts import Stored
from cifar_sweep.config import TrialConfig
from cifar_sweep.curve import METRICS, EpochResult, Metric, best_epoch
from cifar_sweep.errors import CifarSweepError
from cifar_sweep.parameters import Value
from cifar_sweep.study.hours import TIME_OVER
from cifar_sweep.study.owner import Owner
from cifar_sweep.sweep import space
from cifar_sweep.words import params_text

STATE_NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
OUTSIDE = "outside"  # the state of a trial that another program trains, or has trained
IMPOSSIBLE = "impossible"  # that of a trial whose network leaves nothing of its images: pruned untrained
STATES = (*STATE_NAMES.values(), OUTSIDE, IMPOSSIBLE)
# The user attributes of a trial that are read here; nobody else may change them.
RESERVED = {
    "config", "environment", "owner", "checkpoints", "curve", "weights", "best_epoch", "seconds", "reason",
    "traceback", "label", "given", "shortened", "deaths", "died_after", "until", "confirms", "confirm",
    "correct", "earlier", "uncut",
}  # fmt: skip
_EPOCH_FIELDS = {field.name for field in fields(EpochResult)}
_STORED = TypeAdapter(Stored).validate_python
_EPOCH = "epoch:"  # and its number: the user attribute of one epoch of a trial that is not finished
SYNTHETIC_REMARK = "synthetic images say nothing about CIFAR-10, which the claims are about"
T = TypeVar("T")


@dataclass(frozen=True)
class Environment:
    """What trained a trial: device, CPU threads, versions of what decides a number, and the commit of the source."""

    device: str
    threads: int
    versions: Mapping[str, str]
    commit: str | None


def _of(read: Callable[["TrialRecord"], T]) -> "cached_property[T]":
    """A property that is read once."""
    return cached_property(read)


def _text(key: str) -> "cached_property[str]":
    """A property that is stored as a text; empty where it is not."""
    return _of(lambda trial: str(trial.frozen.user_attrs.get(key) or ""))


def point_of(stored: Mapping[str, Value]) -> dict[str, Value]:
    """A stored point as it is; ValueError where it is none."""
    if not all(isinstance(value, (bool, int, float, str)) for value in stored.values()):
        raise ValueError
    return dict(stored)


def _checkpoints(stored: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"epoch": int(saved["epoch"]), **asdict(_STORED(saved))} for saved in stored]


def _results(points: Sequence[Mapping[str, Any]]) -> tuple[EpochResult, ...]:
    return tuple(EpochResult(**point) for point in points)


def _origin(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {"study": str(stored["study"]), "uid": str(stored["uid"]), "number": int(stored["number"])}


def _object(key: str, make: Callable[[Any], T]) -> "cached_property[T | None]":
    """A property that is made of what is stored; None where nothing is, or nothing that we would have written."""
    return _of(lambda trial: _made(trial.frozen.user_attrs.get(key), make))


def _made(stored: Any, make: Callable[[Any], T]) -> T | None:
    try:
        return None if stored is None else make(stored)
    except (CifarSweepError, TypeError, ValueError, AttributeError, KeyError, OverflowError):
        return None


@dataclass(frozen=True)
class TrialRecord:
    """One trial as everybody outside of `study/` reads it; `records` makes them."""

    frozen: FrozenTrial  # Optuna's trial, for Optuna's own functions; nobody else reads its attributes
    worker: str = ""  # who trained it last, as in "worker 2"; empty where that is not known

    number = _of(lambda trial: trial.frozen.number)  # in its study, from 0
    state = _of(lambda trial: trial._state())
    is_finished = _of(lambda trial: trial.frozen.state.is_finished())  # complete, pruned or failed
    value = _of(lambda trial: trial.frozen.value)  # of a complete trial its best one by its metric, else its last
    started = _of(lambda trial: trial.frozen.datetime_start)  # when it was last taken up, in local time
    ended = _of(lambda trial: trial.frozen.datetime_complete)  # in local time
    given = _object("given", point_of)  # the given point that it is, by its parameters' own names
    label = _text("label")  # of a point that was enqueued or given
    shortened = _text("shortened")  # in what a given point was shortened, in words
    # The parameters that it was enqueued with, as Optuna has them; what they leave out is sampled.
    queued = _of(lambda trial: dict[str, Any](trial.frozen.system_attrs.get("fixed_params", {})))
    config = _object("config", TrialConfig.from_dict)  # what it trains; None before it was first taken up
    # The process that holds it, or held it last; None where its worker's death or a release took it away.
    owner = _object("owner", TypeAdapter(Owner).validate_python)
    environment = _object("environment", TypeAdapter(Environment).validate_python)  # what trained it last
    weights = _object("weights", _STORED)  # its weights' file, kept or dropped since
    # What its next epoch can be continued from, as `SweepStudy.report` was given it.
    checkpoints = _of(lambda trial: _made(trial.frozen.user_attrs.get("checkpoints"), _checkpoints) or [])
    # How many workers died one after the other in the epoch in which its worker died last; 0 where none did.
    deaths = _of(lambda trial: _made(trial.frozen.user_attrs.get("deaths"), int) or 0)
    died_after = _object("died_after", int)  # how many epochs it had when its worker died last
    until = _object("until", int)  # the epoch after which it is frozen, if that is not its last one
    # Which validation images its best epoch names rightly, as `selection.packed` has it; None where that is not known.
    correct = _object("correct", dict[str, Any])
    confirms = _object("confirms", int)  # the trial of the search that it repeats under a fresh seed
    confirm = _object("confirm", tuple[int, int])  # and as part of what: so many trials, so many seeds each
    # What it has otherwise than that trial, of a search that was cut to so many hours; None where that is nothing.
    uncut = _object("uncut", dict[str, Any])
    # The trial of another study that it is: the `study`, its `uid` and the `number` there. It has no weights here.
    earlier = _of(lambda trial: _made(trial.frozen.user_attrs.get("earlier"), _origin) if trial.is_finished else None)
    reason = _text("reason")  # why it ended early
    traceback = _text("traceback")  # the end of the traceback of what failed it
    points = _of(lambda trial: stored_curve(trial.frozen.user_attrs))  # the curve as plain data
    curve = _of(lambda trial: _made(trial.points, _results) or ())  # the first epoch first
    # Its best epoch so far, of equals the first; None before any.
    best = _of(lambda trial: best_epoch(trial.curve, trial.config.shape.metric if trial.config else "accuracy"))
    epochs_done = _of(lambda trial: len(trial.points))  # how many epochs were reported
    epochs = _of(lambda trial: trial.config.shape.epochs if trial.config else None)  # of its config
    # The epochs of its config that it was not trained for; 0 where it has no config.
    epochs_left = _of(lambda trial: max((trial.epochs or 0) - trial.epochs_done, 0))
    seconds = _of(lambda trial: sum(result.seconds for result in trial.curve))  # its share of its groups' time so far
    device = _of(lambda trial: trial.environment.device if trial.environment else "")  # that trained it last
    weights_bytes = _of(lambda trial: trial.weights.size if trial.weights else None)  # None where there never were any
    seed = _of(lambda trial: trial.config.knobs.seed if trial.config else None)  # its own
    diverged = _of(lambda trial: trial.reason.startswith("diverged"))  # its loss was no longer a finite number

    @cached_property
    def params(self) -> Mapping[str, Value]:
        """Its parameters under their own names; of a given point the point's."""
        return self.given if self.given is not None else space.decode(self.frozen.params)

    def _state(self) -> str:
        """One of `STATES`."""
        if OUTSIDE in self.frozen.system_attrs:
            return OUTSIDE
        if self.frozen.state is TrialState.PRUNED and not self.points and self.config and self.config.shape.fault:
            return IMPOSSIBLE
        return STATE_NAMES[self.frozen.state]

    @property
    def is_frozen(self) -> bool:
        """Whether it waits, trained as far as it was to be, for a choice: to go on, or to be pruned.

        One whose worker died between its last epoch and its end has nothing to wait for.
        """
        is_granted = self.until is not None and self.epochs_done >= self.until
        return self.state == "waiting" and is_granted and self.epochs_left > 0

    @property
    def state_words(self) -> str:
        """Its state for people: of a frozen trial also since when, of a pruned one whether it diverged.

        A fresh seed that there was no time for has failed to Optuna, which has no other word for it.
        """
        if self.diverged:
            return "diverged"
        if (self.state, self.reason) == ("failed", TIME_OVER):
            return "not trained"
        return f"frozen after epoch {self.epochs_done}" if self.is_frozen else str(self.state)

    @cached_property
    def settings(self) -> Mapping[str, Value]:
        """Its config as values by name, the seeds among them; empty before it was first taken up."""
        return self.config.complete() if self.config else {}

    @property
    def accuracy(self) -> float | None:
        """A complete trial's validation accuracy in its best epoch, any other's last one; None before any."""
        if self.state == "complete" and self.metric.field == "validation_accuracy":
            return self.value
        shown = self.best if self.state == "complete" else self.curve[-1] if self.curve else None
        return shown.validation_accuracy if shown else None

    @property
    def metric(self) -> Metric:
        """What it is chosen by."""
        return METRICS[self.config.shape.metric if self.config else "accuracy"]

    @property
    def reached(self) -> float | None:
        """A complete trial's value, of any other that of its last epoch; None before any."""
        if self.state == "complete":
            return self.value
        return getattr(self.curve[-1], self.metric.field) if self.curve else None

    @property
    def score(self) -> float:
        """How good that is: higher is better, whatever the metric."""
        return self.metric.score(self.reached)

    @property
    def plain_attributes(self) -> dict[str, str | int | float]:
        """Each text and each number that is stored with it, by its name; what others have added among them."""
        stored = self.frozen.user_attrs.items()
        return {name: value for name, value in stored if isinstance(value, (str, int, float)) and value != ""}

    @property
    def setting(self) -> str:
        """What it tries, in words: its label where it is a given point, otherwise its parameters."""
        if self.given is None or not self.label:
            return params_text(self.params)
        return f"{self.label}, shortened: {self.shortened}" if self.shortened else self.label

    def described(self) -> dict[str, Any]:
        """Number, value and parameters as plain data; of a given point its label, too, and in what it was shortened."""
        plain: dict[str, Any] = {"number": self.number, "value": self.value, "params": dict(self.params)}
        if self.given is not None:
            plain |= {name: text for name in ("label", "shortened") if (text := getattr(self, name))}
        return plain


def as_ours(trial: FrozenTrial) -> FrozenTrial:
    """A trial of a study of ours as everybody is to see it, samplers and pruners included.

    One that another program trains, or has trained, is failed, whatever its state is there, and nothing that it stored
    under our names is read. What waits may be trained here, whoever queued it.
    """
    known = TrialRecord(trial)
    whole = "curve" in trial.user_attrs and not any(key.startswith(_EPOCH) for key in trial.user_attrs)
    is_ours = {
        TrialState.WAITING: True,
        TrialState.RUNNING: known.owner,  # what waits has none, and another program that takes it gives it none
        # We end it with its curve as a whole; another program may tell a trial that we hold.
        TrialState.COMPLETE: known.config and (known.earlier or (known.owner and whole)),
        TrialState.PRUNED: known.config and (known.earlier or known.reason),
        TrialState.FAIL: known.reason or (known.config and known.owner),  # by a person, in the dashboard
    }
    if is_ours[trial.state]:
        return trial
    shown = copy(trial)
    shown.user_attrs = {key: value for key, value in trial.user_attrs.items() if not is_reserved(key)}
    shown.user_attrs["reason"] = "it is not trained by cifar-sweep"  # Optuna caches it: its state may be another by now
    shown.system_attrs, shown.state, shown.intermediate_values = {OUTSIDE: True}, TrialState.FAIL, {}
    shown.values = None
    return shown


def is_reserved(attribute: str) -> bool:
    """Whether a user attribute of a trial is one of ours."""
    return attribute in RESERVED or attribute.startswith(_EPOCH)


def epoch_key(epoch: int) -> str:
    """The user attribute of one epoch of a trial that is not finished."""
    return f"{_EPOCH}{epoch}"


def epoch_keys(curve: Sequence[Any]) -> list[str]:
    """The user attributes of all these epochs."""
    return [epoch_key(epoch) for epoch in range(1, len(curve) + 1)]


def stored_curve(attributes: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A trial's curve in its user attributes: `curve`, and one attribute for each epoch that was reported since."""
    stored = attributes.get("curve")
    curve = stored if isinstance(stored, list) and all(map(_is_point, stored)) else []
    while _is_point(point := attributes.get(epoch_key(len(curve) + 1))):
        curve = [*curve, point]
    return list(curve)


def _is_point(stored: Any) -> bool:
    """Whether this may be an epoch as we store it."""
    is_named = isinstance(stored, dict) and {"epoch", "validation_accuracy"} <= stored.keys() <= _EPOCH_FIELDS
    return is_named and all(type(value) in (int, float) for value in stored.values())


def records(trials: Sequence[FrozenTrial]) -> list[TrialRecord]:
    """The records of a study's trials, by number."""
    workers = worker_names(trials)
    return [TrialRecord(trial, workers.get(trial.number, "")) for trial in trials]


def count(trials: Iterable[TrialRecord], *states: str) -> int:
    """How many trials are in one of these states, named as in `STATES`."""
    return sum(trial.state in states for trial in trials)


def counts_text(counts: Mapping[str, int], *, but: Sequence[str] = ()) -> str:
    """How many trials are in each state, diverged ones apart, as in "2 pruned, 1 diverged": those that there are."""
    apart = {**counts, "pruned": counts["pruned"] - counts["diverged"]}
    names = ("complete", "pruned", "diverged", "failed", "running", "frozen", "waiting", OUTSIDE, IMPOSSIBLE)
    return ", ".join(f"{apart[name]} {name}" for name in names if apart[name] and name not in but)


@dataclass(frozen=True)
class Saved:
    """What was not trained. `seconds` are a worker's, as if each trial had gone on at its own mean pace."""

    trials: int  # pruned ones
    epochs: int
    seconds: float
    frozen: int = 0  # trials that wait, and may yet go on


def saved_by_pruning(trials: Iterable[TrialRecord]) -> Saved:
    """The epochs that pruned and frozen trials were spared; where none was trained, they count without time."""
    spared = [
        each
        for each in trials
        if each.epochs is not None and (each.is_frozen or (each.state == "pruned" and not each.diverged))
    ]
    seconds = sum(trial.epochs_left * trial.seconds / trial.epochs_done for trial in spared if trial.curve)
    frozen = sum(trial.is_frozen for trial in spared)
    return Saved(len(spared) - frozen, sum(trial.epochs_left for trial in spared), seconds, frozen)


def is_synthetic(data: Iterable[str]) -> bool:
    """Whether any of these `data_words` names images that were drawn."""
    return any(name.startswith("synthetic images (") for name in data)


def worker_names(trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Who trained each trial last, by number: "worker 1" began first; the machine is named where there are several.

    A trial that its worker's death ended has none.
    """
    begun = sorted(trials, key=lambda trial: (trial.datetime_start or datetime.min, trial.number))
    known = ((trial.number, TrialRecord(trial).owner) for trial in begun if trial.datetime_start)
    owners = {number: owner for number, owner in known if owner}
    tokens = list(dict.fromkeys(owner.token for owner in owners.values()))
    several = len({owner.host for owner in owners.values()}) > 1
    return {
        number: f"worker {tokens.index(owner.token) + 1}" + (f" on {owner.host}" if several else "")
        for number, owner in owners.items()
    }
