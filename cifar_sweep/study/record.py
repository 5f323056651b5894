"""One trial as everybody reads it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.artifacts import Stored
from cifar_sweep.config import TrialConfig, Value
from cifar_sweep.curve import EpochResult, best_epoch
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
# The user attributes of a trial that are read here; nobody else may change them.
RESERVED = frozenset(
    (
        "config", "environment", "owner", "checkpoints", "curve", "weights", "best_epoch", "seconds", "reason",
        "traceback", "label", "given", "shortened", "deaths", "died_after",
    )
)  # fmt: skip
_EPOCH = "epoch:"  # and its number: the user attribute of one epoch of a trial that is not finished
SYNTHETIC_REMARK = "synthetic images say nothing about CIFAR-10, which the claims are about"


@dataclass(frozen=True)
class Environment:
    """What trained a trial: device, CPU threads, versions of what decides a number, and the commit of the source."""

    device: str
    threads: int
    versions: Mapping[str, str]
    commit: str | None


@dataclass(frozen=True)
class TrialRecord:
    """One trial as everybody outside of `study/` reads it; `records` makes them.

    Attributes:
        frozen: Optuna's trial, for Optuna's own functions; nobody else reads its attributes.
        worker: who trained it last, as in "worker 2"; empty where that is not known.
    """

    frozen: FrozenTrial
    worker: str = ""

    @property
    def _stored(self) -> Mapping[str, Any]:
        return self.frozen.user_attrs

    @property
    def number(self) -> int:
        """Its number in its study, from 0."""
        return self.frozen.number

    @property
    def state(self) -> str:
        """Optuna's state, as `STATE_NAMES` has it."""
        return STATE_NAMES[self.frozen.state]

    @property
    def is_finished(self) -> bool:
        """Whether it is complete, pruned or failed."""
        return self.frozen.state.is_finished()

    @property
    def value(self) -> float | None:
        """Optuna's value: of a complete trial its best validation accuracy, of a pruned one its last."""
        return self.frozen.value

    @property
    def started(self) -> datetime | None:
        """When it was last taken up, in local time."""
        return self.frozen.datetime_start

    @property
    def ended(self) -> datetime | None:
        """When it ended, in local time."""
        return self.frozen.datetime_complete

    @property
    def given(self) -> Mapping[str, Value] | None:
        """The given point that it is, by its parameters' own names; None where it is none."""
        return self._stored.get("given")

    @cached_property
    def params(self) -> Mapping[str, Value]:
        """Its parameters under their own names; of a given point the point's."""
        return self.given if self.given is not None else space.decode(self.frozen.params)

    @property
    def label(self) -> str:
        """The label of a point that was enqueued or given; empty where it has none."""
        return str(self._stored.get("label") or "")

    @property
    def shortened(self) -> str:
        """In what a given point was shortened, in words; empty where it was not."""
        return str(self._stored.get("shortened") or "")

    @property
    def queued(self) -> Mapping[str, Any]:
        """The parameters that it was enqueued with, as Optuna has them; what they leave out is sampled."""
        return dict(self.frozen.system_attrs.get("fixed_params", {}))

    @cached_property
    def config(self) -> TrialConfig | None:
        """What it trains; None before it was first taken up."""
        stored = self._stored.get("config")
        return TrialConfig.from_dict(stored) if stored else None

    @cached_property
    def settings(self) -> Mapping[str, Value]:
        """Its config as values by name, the seeds among them; empty before it was first taken up."""
        return self.config.to_dict() if self.config else {}

    @property
    def epochs(self) -> int | None:
        """The epochs of its config; None where it has none."""
        return self.config.shape.epochs if self.config else None

    @cached_property
    def points(self) -> list[Mapping[str, Any]]:
        """The curve as plain data."""
        return stored_curve(self._stored)

    @cached_property
    def curve(self) -> tuple[EpochResult, ...]:
        """What was reported of each epoch, the first one first."""
        return tuple(EpochResult(**point) for point in self.points)

    @property
    def epochs_done(self) -> int:
        """How many epochs were reported."""
        return len(self.points)

    @property
    def best(self) -> EpochResult | None:
        """Its best epoch so far, of equals the first; None before there is one."""
        return best_epoch(self.curve)

    @property
    def accuracy(self) -> float | None:
        """A complete trial's best validation accuracy, any other's last one, as a fraction; None before any."""
        if self.state == "complete":
            return self.value
        return self.curve[-1].validation_accuracy if self.curve else None

    @property
    def seconds(self) -> float:
        """Training time so far, over all its holders: its share of its groups' time."""
        return sum(result.seconds for result in self.curve)

    @property
    def epochs_left(self) -> int:
        """The epochs of its config that it was not trained for; 0 where it has no config."""
        return max((self.epochs or 0) - self.epochs_done, 0)

    @property
    def seconds_spared(self) -> float:
        """What `epochs_left` would have taken at its mean pace; 0 where it has none."""
        return self.epochs_left * self.seconds / self.epochs_done if self.curve else 0.0

    @property
    def owner(self) -> Owner | None:
        """The process that holds it, or held it last; None where its worker's death or a release took it away."""
        stored = self._stored.get("owner")
        return Owner(**stored) if stored else None

    @property
    def environment(self) -> Environment | None:
        """What trained it last; None before it was first taken up."""
        stored = self._stored.get("environment")
        return Environment(**stored) if stored else None

    @property
    def device(self) -> str:
        """The device that trained it last; empty where it never was."""
        return self.environment.device if self.environment else ""

    @property
    def weights(self) -> Stored | None:
        """Its weights' file, kept or dropped since; None where there never was one."""
        stored = self._stored.get("weights")
        return Stored(**stored) if stored else None

    @property
    def weights_bytes(self) -> int | None:
        """The size of its weights' file, kept or dropped since; None where there never was one."""
        return self.weights.size if self.weights else None

    @property
    def seed(self) -> int | None:
        """Its own seed; None before it was first taken up."""
        return self.config.knobs.seed if self.config else None

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """What its next epoch can be continued from, as `SweepStudy.report` was given it."""
        return list(self._stored.get("checkpoints", ()))

    @property
    def deaths(self) -> int:
        """How many workers died one after the other in the epoch in which its worker died last; 0 where none did."""
        return int(self._stored.get("deaths", 0))

    @property
    def died_after(self) -> int | None:
        """How many epochs it had when its worker died last; None where none did."""
        return self._stored.get("died_after")

    @property
    def reason(self) -> str:
        """Why it ended early; empty where it did not."""
        return str(self._stored.get("reason", ""))

    @property
    def diverged(self) -> bool:
        """Whether it ended because its loss was no longer a finite number."""
        return self.reason.startswith("diverged")

    @property
    def traceback(self) -> str:
        """The end of the traceback of what failed it; empty where nothing did."""
        return str(self._stored.get("traceback", ""))

    @property
    def plain_attributes(self) -> dict[str, str | int | float]:
        """Each text and each number that is stored with it, by its name; what others have added among them."""
        plain = ((name, value) for name, value in self._stored.items() if isinstance(value, (str, int, float)))
        return {name: value for name, value in plain if value != ""}

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


def is_reserved(attribute: str) -> bool:
    """Whether a user attribute of a trial is one of ours."""
    return attribute in RESERVED or attribute.startswith(_EPOCH)


def epoch_key(epoch: int) -> str:
    """The user attribute of one epoch of a trial that is not finished."""
    return f"{_EPOCH}{epoch}"


def stored_curve(attributes: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A trial's curve in its user attributes: `curve`, and one attribute for each epoch that was reported since."""
    curve = list(attributes.get("curve", ()))
    while point := attributes.get(epoch_key(len(curve) + 1)):
        curve.append(point)
    return curve


def records(trials: Sequence[FrozenTrial]) -> list[TrialRecord]:
    """The records of a study's trials, by number."""
    workers = worker_names(trials)
    return [TrialRecord(trial, workers.get(trial.number, "")) for trial in trials]


def ranked(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The complete trials, best validation accuracy first, of equals the earlier one."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))


def count(trials: Iterable[TrialRecord], *states: str) -> int:
    """How many trials are in one of these states, named as in `STATE_NAMES`."""
    return sum(trial.state in states for trial in trials)


@dataclass(frozen=True)
class Saved:
    """What was not trained. `seconds` are a worker's, as if each trial had gone on at its own mean pace."""

    trials: int
    epochs: int
    seconds: float


def saved_by_pruning(trials: Iterable[TrialRecord]) -> Saved:
    """The epochs that pruned trials were spared; one that was pruned before its first epoch counts without time."""
    pruned = [trial for trial in trials if trial.state == "pruned" and trial.epochs is not None]
    epochs = sum(trial.epochs_left for trial in pruned)
    return Saved(len(pruned), epochs, sum(trial.seconds_spared for trial in pruned))


def is_synthetic(data: Iterable[str]) -> bool:
    """Whether any of these `data_words` names images that were drawn."""
    return any(name.startswith("synthetic") for name in data)


def worker_names(trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Who trained each trial last, by number: "worker 1" began first; the machine is named where there are several.

    A trial that its worker's death ended has none.
    """
    owned = [trial for trial in trials if trial.user_attrs.get("owner") and trial.datetime_start]
    owned.sort(key=lambda trial: (trial.datetime_start or datetime.min, trial.number))
    tokens = list(dict.fromkeys(trial.user_attrs["owner"]["token"] for trial in owned))
    several = len({trial.user_attrs["owner"]["host"] for trial in owned}) > 1
    names = {}
    for trial in owned:
        owner = trial.user_attrs["owner"]
        where = f" on {owner['host']}" if several else ""
        names[trial.number] = f"worker {tokens.index(owner['token']) + 1}{where}"
    return names
