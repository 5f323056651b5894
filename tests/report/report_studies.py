"""Studies with made-up trials: as many as a test wants, in a moment, with curves that look like a training's."""

import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from cifar_sweep.config import derive_seed
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.record import records
from cifar_sweep.study.storage import open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep import space
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import SamplerSettings, Sweep

BEGAN = datetime(2026, 1, 1, 12, 0)
DATA = {"name": "CIFAR-10", "fingerprint": "0123456789abcdef", "classes": 10, "train_images": 40000, "source": "auto"}
VERSIONS = {"python": "3.11.7", "cifar-sweep": "0.1.0", "torch": "2.14.1", "torchvision": "0.29.1", "optuna": "5.0.0"}
SWEEP: dict[str, Any] = {
    "name": "mine",
    "description": "learning rate by batch size",
    "trials": 40,
    "fixed": {"model": "cnn3", "epochs": 10, "dropout": 0.2},
    "space": {
        "learning_rate": {"low": 1e-5, "high": 0.1, "log": True},
        "batch_size": {"low": 16, "high": 256, "base2": True},
    },
}


def sweep_of(**changes: Any) -> Sweep:
    """`SWEEP` with other keys."""
    return parse(SWEEP | changes, where="a test")


def made_up(
    sweep: Sweep,
    number: int,
    state: TrialState = TrialState.COMPLETE,
    *,
    epochs_done: int | None = None,
    accuracy: float | None = None,
    seed: int | None = None,
    params: Mapping[str, Any] | None = None,
    asked: optuna.Study | None = None,
    **attributes: Any,
) -> FrozenTrial:
    """One trial of `sweep`.

    Args:
        sweep: its space.
        number: decides everything that is not given.
        state: how it ended.
        epochs_done: all where it is complete; otherwise a third.
        accuracy: the last epoch's, which is the best one.
        seed: the trial's own.
        params: in Optuna's names; at random where not given.
        asked: the study whose sampler draws them; one of its own where not given.
        attributes: more user attributes.
    """
    random_ = random.Random(number)
    asked = asked or optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
    if params:
        asked.enqueue_trial(dict(params))
    drawn = asked.ask()
    space.suggest(drawn, sweep)
    config = space.to_config(drawn.params, sweep, number=number, classes=10, precision="fp32").to_dict()
    config["seed"] = derive_seed("made up", number) if seed is None else seed
    epochs = int(config["epochs"])
    done = (
        epochs_done
        if epochs_done is not None
        else epochs
        if state is TrialState.COMPLETE
        else 1 + number % max(1, epochs // 2)
    )
    middle = abs(math.log10(float(config["learning_rate"])) + 3) / 2
    reached = (
        accuracy if accuracy is not None else 0.1 + 0.65 * math.exp(-middle * middle) + random_.uniform(-0.03, 0.03)
    )
    pace = random_.uniform(2, 6)
    curve = [_epoch(epoch, epochs, reached, pace, exact=accuracy is not None and epoch == done)
             for epoch in range(1, done + 1)]  # fmt: skip
    best = max((point["validation_accuracy"] for point in curve), default=None)
    start = BEGAN + timedelta(seconds=20 * number)
    known: dict[str, Any] = {
        "config": config,
        "curve": curve,
        "environment": {"device": "cpu (a test)", "threads": 1, "versions": VERSIONS, "commit": "abc123"},
        "owner": {"host": "here", "pid": 1, "started": "", "token": f"token{number % 2}", "system": "s"},
    }
    if state is TrialState.COMPLETE:
        known |= {"best_epoch": done, "seconds": pace * done}
        known |= {"weights": {"name": f"weights-{number}", "size": 1000 * (1 + number % 7), "sha256": "0"}}
    elif state is not TrialState.RUNNING:
        known["reason"] = f"made up to be {state.name.lower()}"
    trial = create_trial(
        state=state,
        value=best if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        params=drawn.params,
        distributions=drawn.distributions,
        user_attrs=known | attributes,
        intermediate_values={point["epoch"]: point["validation_accuracy"] for point in curve},
    )
    trial.number = number
    trial.datetime_start = start
    trial.datetime_complete = start + timedelta(seconds=pace * done + 1) if state.is_finished() else None
    return trial


def _epoch(epoch: int, epochs: int, reached: float, pace: float, *, exact: bool) -> dict[str, Any]:
    share = 1.0 if exact else 1 - math.exp(-4 * epoch / epochs)
    accuracy = round(reached if exact else 0.1 + (reached - 0.1) * share, 4)
    return {
        "epoch": epoch,
        "train_loss": 2.3 - 1.9 * share,
        "train_accuracy": min(1.0, accuracy * 1.1),
        "validation_loss": 2.3 - 1.5 * share,
        "validation_accuracy": accuracy,
        "learning_rate": 1e-3,
        "seconds": pace,
        "group_size": 1,
        "group_place": 0,
    }


def many(sweep: Sweep, count: int) -> list[FrozenTrial]:
    """Trials of which most are pruned and a few fail, as in a real search."""
    drawn = random.Random(0)
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = []
    for number in range(count):
        chance = drawn.random()
        state = TrialState.COMPLETE if chance < 0.4 or number < 5 else TrialState.PRUNED
        state = TrialState.FAIL if chance > 0.98 else state
        trials.append(made_up(sweep, number, state, asked=asked))
    return trials


@cache
def _empty_database() -> bytes:
    """Made once: its tables take half a second."""
    with tempfile.TemporaryDirectory() as folder:
        open_storage(f"sqlite:///{folder}/studies.db").close()
        return Path(folder, "studies.db").read_bytes()


def study_of(
    trials: Sequence[FrozenTrial],
    *,
    sweep: Sweep | None = None,
    folder: Path = Path(),
    name: str = "mine",
    stored: bool = False,
    **data: Any,
) -> SweepStudy:
    """A study, in a database of its own in `folder`, that has these trials.

    Where they are not to be `stored` there, which takes a while for many, only the study that is returned has them.
    """
    path = folder / "studies.db"
    if not path.exists():
        path.write_bytes(_empty_database())
    whole = sweep or sweep_of()
    study = open_or_resume(open_storage(f"sqlite:///{path}"), name, _without_points(whole), data=DATA | data)
    study.sweep = whole
    if stored:
        study._study.add_trials(trials)
    else:
        study.trials = lambda: records(trials)  # type: ignore[method-assign]
    return study


def _without_points(sweep: Sweep) -> Sweep:
    """The points would be trials that wait."""
    sampler = SamplerSettings(name="random") if sweep.given else sweep.sampler
    return sweep.model_copy(update={"enqueue": [], "ensemble": [], "sampler": sampler})
