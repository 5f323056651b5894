"""What plain Optuna brings into a study: points and trials in any state, and attributes of any content."""

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from cifar_sweep.forecast.time_left import forecast_rest
from cifar_sweep.study import opening
from cifar_sweep.study.claim import Claim, TrialLostError, Worker
from cifar_sweep.study.claiming import Claiming
from cifar_sweep.study.opening import load_all, open_or_resume, open_studies
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.record import RESERVED, TrialRecord, epoch_key
from cifar_sweep.study.storage import Storage, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.terminal import status
from tests.study.plain_studies import opened_by_optuna

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10, "source": "auto"}
SPACE = {
    "learning_rate": {"low": 1e-5, "high": 0.1, "log": True},
    "batch_size": {"low": 16, "high": 64, "base2": True},
    "hidden_units": {"low": 50, "high": 250, "step": 50},
    "optimizer": {"choices": ["adam", "sgd"]},
}
HERE = Worker(Owner.current(), "cpu (test)", 2, "fp32")
ORIGIN = {"study": "another", "uid": "1", "number": 0}  # of a trial that another study is said to have trained
FITTING: list[dict[str, Any]] = [
    {},
    {"batch_size": 32},
    {"log2_batch_size": 6, "optimizer": "sgd"},
    {"log2_batch_size": 4.0, "learning_rate": 1e-3},
    {"batch_size": 16.0, "hidden_units": 100, "learning_rate": 0.1},
    {"epochs": 3},  # as it is fixed
]
ODD_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2)
)
NAMES = st.sampled_from([*SPACE, "log2_batch_size", "log2_learning_rate", "momentum", "epochs", "lr", "", "a|b\n"])
POINTS = st.one_of(st.sampled_from(FITTING), st.dictionaries(NAMES, ODD_VALUES, max_size=3))
ATTRIBUTES = st.dictionaries(
    st.one_of(st.sampled_from([*sorted(RESERVED), epoch_key(1)]), st.text(max_size=3)),
    st.one_of(ODD_VALUES, st.dictionaries(st.text(max_size=3), ODD_VALUES, max_size=2), st.just([{"epoch": 1}])),
    max_size=4,
)
DISTRIBUTIONS: list[tuple[str, BaseDistribution, Any]] = [
    ("learning_rate", FloatDistribution(0, 10), 5.0),
    ("learning_rate", FloatDistribution(-1, 0.5), 0.01),
    ("learning_rate", CategoricalDistribution([None, 0.01]), None),
    ("batch_size", IntDistribution(1, 1000), 32),
    ("log2_batch_size", FloatDistribution(0, 100), 99.5),
    ("hidden_units", IntDistribution(1, 1000), 101),
    ("optimizer", CategoricalDistribution(["lion", "adam"]), "lion"),
    ("width", IntDistribution(1, 3), 2),
]


@st.composite
def added(draw: st.DrawFn) -> Callable[[optuna.Study], None]:
    """Adds a trial in any state."""
    state = draw(st.sampled_from(list(TrialState)))
    chosen = {name: (kind, value) for name, kind, value in draw(st.lists(st.sampled_from(DISTRIBUTIONS), max_size=3))}
    value = draw(st.floats(allow_nan=False)) if state is TrialState.COMPLETE else None
    trial = create_trial(
        state=state,
        value=value,
        params={name: value for name, (_, value) in chosen.items()},
        distributions={name: kind for name, (kind, _) in chosen.items()},
        user_attrs=draw(ATTRIBUTES),
        intermediate_values=draw(st.dictionaries(st.integers(0, 5), st.floats(), max_size=3)),
    )
    return lambda study: study.add_trial(trial)


def enqueued(point: dict[str, Any], attributes: dict[str, Any]) -> Callable[[optuna.Study], None]:
    return lambda study: study.enqueue_trial(point, user_attrs=attributes)


def asked(study: optuna.Study) -> None:
    """A trial that another program has asked for, and trains."""
    study.ask({"learning_rate": FloatDistribution(1e-9, 1, log=True)})


def optimized(study: optuna.Study) -> None:
    """Another program's own objective, by another sampler."""
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    study.optimize(lambda trial: trial.suggest_float("learning_rate", 1e-9, 5, log=True) + 10, n_trials=1)


DEEDS = st.one_of(added(), st.builds(enqueued, POINTS, ATTRIBUTES), st.sampled_from([asked, optimized]))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "commit", lambda: "0123456789ab")
        patch.setattr("cifar_sweep.study.claiming.commit", lambda: "0123456789ab")
        yield


def made(storage: Storage, name: str, **tables: Any) -> SweepStudy:
    plain = {"name": "s", "trials": 12, "pruner": "median", "fixed": {"epochs": 3}, "space": SPACE}
    plain["sampler"] = {"name": "tpe", "startup_trials": 2}
    return open_or_resume(storage, name, parse(plain | tables, where="test"), data=DATA)


def point(epoch: int, accuracy: float) -> dict[str, Any]:
    losses = dict.fromkeys(("train_loss", "train_accuracy", "validation_loss", "learning_rate", "seconds"), 0.5)
    return losses | {"epoch": epoch, "validation_accuracy": accuracy}


def train(study: SweepStudy) -> int | None:
    """Train the next trial as a worker does; None where none is left."""
    claims = study.claim(HERE)
    if not claims:
        return None
    [claim] = claims
    curve = [point(epoch, claim.number / 100 + epoch / 1000) for epoch in (1, 2, 3)]
    for done in (1, 2):
        study.report(claim, curve[:done])
        if study.should_prune(claim):
            study.prune(claim, "by the pruner")
            return claim.number
    study.report(claim, curve)
    study.complete(claim, curve[-1]["validation_accuracy"])
    return claim.number


def check(study: SweepStudy, ours: set[int]) -> None:
    """What is said of the study is right at this moment."""
    glance = status.glance(study)
    json.dumps(glance, allow_nan=False)
    counts = glance["trials"]
    assert counts["complete"] + counts["pruned"] == len(ours)
    assert counts["running"] == 0
    assert len(ours) + counts["waiting"] <= 12
    assert sum(trial.state in ("complete", "pruned") for trial in study.trials()) == len(ours)
    assert {trial.number for trial in study.ranked()} <= ours
    if ours:
        assert glance["best"]["number"] in ours or not study.ranked()
    for trial in study.trials():
        _ = trial.setting, trial.described(), trial.params, trial.seconds, trial.worker, trial.state_words
        if trial.state == "outside" or (trial.state == "failed" and trial.number not in ours):
            assert trial.reason
    assert status.table([glance]).row_count == 1
    forecast_rest(study, starting=True)


@settings(
    max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
@example(deeds=[(0, enqueued({}, {"earlier": {"x": 1}})), (3, enqueued({}, {"earlier": ORIGIN}))])
@given(deeds=st.lists(st.tuples(st.integers(0, 11), DEEDS), min_size=1, max_size=4))
def test_twelve_of_ours_whatever_others_bring(deeds: list[Any], sqlite_template: Path, tmp_path: Path) -> None:
    database = tmp_path / "studies.db"
    for old in tmp_path.glob("studies.db*"):
        old.unlink()
    shutil.copy(sqlite_template, database)
    address = f"sqlite:///{database}"
    with closing(open_storage(address)) as storage, ExitStack() as stack:
        study = made(storage, "mixed")
        theirs = stack.enter_context(opened_by_optuna(address, "mixed"))
        ours: set[int] = set()
        while True:
            for _, deed in [each for each in deeds if each[0] == len(ours)]:
                with suppress(ValueError):  # Optuna refuses it itself: another distribution than ours
                    deed(theirs)
                check(study, ours)
            deeds = [each for each in deeds if each[0] != len(ours)]
            number = train(study)
            if number is None:
                break
            ours.add(number)
            check(study, ours)
        assert len(ours) == 12
        assert study.finished()


@pytest.mark.parametrize("queued", FITTING, ids=str)
@pytest.mark.parametrize("way", ["enqueued", "added"])
def test_a_point_that_fits_is_trained_as_it_is_written(
    queued: dict[str, Any], way: str, storage: Storage, name: str
) -> None:
    study = made(storage, name)
    theirs = study._study
    if way == "enqueued":
        theirs.enqueue_trial(queued)
    else:
        kinds = {each: CategoricalDistribution([value]) for each, value in queued.items()}
        theirs.add_trial(create_trial(state=TrialState.WAITING, params=queued, distributions=kinds))
    [claim] = study.claim(HERE)
    wanted = {
        key.removeprefix("log2_"): 2**value if key.startswith("log2_") else value for key, value in queued.items()
    }
    assert claim.number == 0
    assert {key: claim.config.to_dict()[key] for key in wanted} == wanted
    assert set(study.trials()[0].params) >= set(SPACE), "what it left open was sampled"


@pytest.mark.parametrize(
    ("queued", "reason"),
    [
        ({"learning_rate": 5.0}, "this point: learning_rate = 5.0 is outside of its [space]: 1e-05 to 0.1."),
        ({"learning_rate": math.nan}, "learning_rate = nan is not accepted"),
        ({"batch_size": 33}, "batch_size = 33 is outside of its [space]: 16 to 64, powers of two."),
        ({"log2_batch_size": 5, "batch_size": 16}, "there is no parameter 'log2_batch_size'"),
        ({"optimizer": None}, "optimizer = None is not accepted; it takes one of sgd, nesterov, adam"),
        ({"lr": 0.1}, "there is no parameter 'lr'"),
        ({"epochs": 4}, "epochs = 4 contradicts [fixed], where it is 3."),
        ({"momentum": 0.5}, "momentum is not in [space]"),
    ],
)
def test_a_point_that_does_not_fit_is_failed_with_its_reason(
    queued: dict[str, Any], reason: str, storage: Storage, name: str
) -> None:
    study = made(storage, name)
    study._study.enqueue_trial(queued)
    assert train(study) == 1
    first = study.trials()[0]
    assert first.state == "failed"
    assert reason in first.reason


def test_a_trial_that_another_program_runs_is_left_to_it(storage: Storage, url: str, name: str) -> None:
    study = made(storage, name, trials=2)
    with opened_by_optuna(url, name) as other:
        theirs = other.ask({"learning_rate": FloatDistribution(0, 1)})
        assert study.summary()["trials"]["outside"] == 1
        assert [train(study), train(study), train(study)] == [1, 2, None]
        other.tell(theirs, 0.99)
    assert study.ranked()[0].number == 2
    assert study.trials()[0].reason == "it is not trained by cifar-sweep"


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("told", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_a_trial_that_we_train_and_another_program_ends_is_none_of_ours(
    told: TrialState, epochs: int, storage: Storage, url: str, name: str
) -> None:
    """On SQLite two programs may take a trial at the same time: only ours looks whether another one was faster."""
    study = made(storage, name, trials=2)
    [claim] = study.claim(HERE)
    if epochs:
        study.report(claim, [point(epoch, 0.3) for epoch in range(1, epochs + 1)])
    with opened_by_optuna(url, name) as other:
        other.tell(claim.number, 0.99 if told is TrialState.COMPLETE else None, state=told)
    with pytest.raises(TrialLostError):
        study.report(claim, [point(epoch, 0.3) for epoch in range(1, epochs + 2)])
    assert [train(study), train(study), train(study)] == [1, 2, None]
    ended = "failed" if told is TrialState.FAIL else "outside"
    assert [trial.state for trial in study.trials()] == [ended, "complete", "complete"]
    assert study.ranked()[0].number == 2


def test_of_two_that_take_a_trial_at_once_the_first_to_end_it_has_it(
    sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite, Optuna's ask reads what waits, and takes it when a claim under way has released the file."""
    shutil.copy(sqlite_template, tmp_path / "studies.db")
    url, asked = f"sqlite:///{tmp_path}/studies.db", list[int]()

    def ask() -> None:
        with opened_by_optuna(url, "s") as other:
            asked.append(other.ask().number)

    def slow(claiming: Claiming, waiting: TrialRecord) -> Claim:
        claim = take(claiming, waiting)
        asking.start()
        time.sleep(1)
        return claim

    with closing(open_storage(url)) as storage:
        study = made(storage, "s", trials=2)
        study.release(*study.claim(HERE))
        take, asking = Claiming._take, threading.Thread(target=ask)
        with monkeypatch.context() as patched:
            patched.setattr(Claiming, "_take", slow)
            [claim] = study.claim(HERE)
        asking.join()
        assert asked == [claim.number]
        study.complete(claim, 0.5)
        with opened_by_optuna(url, "s") as other, pytest.raises(ValueError, match="COMPLETE"):
            other.tell(asked[0], 0.99)
        assert [train(study), train(study)] == [1, None]
        assert study.ranked()[0].frozen.value == 0.5


@pytest.mark.parametrize("told", ["complete", "pruned", "failed"])
def test_a_trial_of_ours_that_another_program_takes_while_it_waits_is_left_to_it(
    told: str, storage: Storage, url: str, name: str
) -> None:
    study = made(storage, name, trials=2)
    [claim] = study.claim(HERE)
    study.report(claim, [point(1, 0.3)])
    study.release(claim)
    with opened_by_optuna(url, name) as other:
        theirs = other.ask()
        assert theirs.number == claim.number
        counts = study.summary()["trials"]
        assert (counts["outside"], counts["running"], counts["waiting"]) == (1, 0, 0)
        assert train(study) == 1, "it does not take it back"
        theirs.report(0.99, 5)
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[told]
        other.tell(theirs, 0.99 if told == "complete" else None, state=state)
    assert [train(study), train(study)] == [2, None]
    assert [trial.state for trial in study.trials()] == ["outside", "complete", "complete"]
    assert study.ranked()[0].number == 2


@pytest.mark.parametrize(
    "key", ["sweep", "data", "code", "state", "priority", "hopes", "costs", "uid", "artifacts", "reason"]
)
@pytest.mark.parametrize(
    ("url", "value"),
    [
        *(("sqlite", value) for value in (None, 7, "odd", [], {"odd": {}})),
        pytest.param("postgresql", {"odd": {}}, marks=pytest.mark.slow),  # one: it looks at all tests' studies there
    ],
    ids=str,
    indirect=["url"],
)
def test_an_odd_attribute_of_a_study_stops_nobody(key: str, value: Any, storage: Storage, name: str) -> None:
    study, other = made(storage, name), made(storage, f"{name}-other")
    study._study.set_user_attr(key, value)
    names = {found.name for found in load_all(storage)}
    assert other.name in names
    assert other.name in {found.name for found in open_studies(storage)}
    for found in load_all(storage):
        status.table([status.glance(found)])
