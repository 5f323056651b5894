"""`replay`: another strategy on a study's own curves, and what it cannot know."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from cifar_sweep.curve import EpochResult
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.replay.recorded import replay_study
from cifar_sweep.study.claim import Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.parsing import parse

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
EPOCHS = 4
GRID: dict[str, Any] = {"batch_size": {"choices": [16, 32, 64]}, "step_size": {"choices": [1, 2]}}
BEST = {(16, 1): 0.50, (16, 2): 0.52, (32, 1): 0.60, (32, 2): 0.70, (64, 1): 0.40, (64, 2): 0.30}
RANDOM = {"sampler": "random", "pruner": "none"}


def ran(storage: Storage, name: str, *, pruned: Callable[[float], bool] = lambda _: False) -> SweepStudy:
    """A study whose six trials are the six points of the grid, some of them pruned after an epoch."""
    points = [{"batch_size": size, "step_size": step} for size, step in BEST]
    plain = {"name": "s", "trials": 6, "enqueue": points, "fixed": {"model": "convnet", "epochs": EPOCHS}}
    study = open_or_resume(storage, name, parse(plain | RANDOM | {"space": GRID}, where="test"), data=DATA)
    while claims := study.claim(Worker(Owner.current(), "cpu (test)", 1, "fp32")):
        for claim in claims:
            best = BEST[claim.config.shape.batch_size, claim.config.knobs.step_size]
            values = [best / 2] if pruned(best) else [best / 2, best, best - 0.01, best - 0.02]
            curve = [EpochResult(k + 1, 1.0, 0.5, 1.0, value, 1e-3, 1.0).to_dict() for k, value in enumerate(values)]
            study.report(claim, curve)
            if pruned(best):
                study.prune(claim, "weak")
            else:
                study.complete(claim, best)
    return study


def test_what_the_study_itself_cost_and_what_random_would_have(storage: Storage, name: str) -> None:
    found = replay_study(ran(storage, name), RANDOM, replays=9)
    assert found.points == {"complete": 6, "pruned": 0}
    assert found.best == 0.7
    own = {name: epochs for name, (epochs, _) in found.within.items()}
    assert own == {"2 points": 16, "0.5 points": 16, "the best itself": 16}, "the fourth trial"
    assert found.epochs == (24, [24] * 9)
    assert found.proposals == 54
    assert 9 <= found.near < 54, "the first one of each replay at least; a point stands for one trial of a replay"
    assert found.cut == 0
    reached = found.within["the best itself"][1]
    assert set(reached) <= {4, 8, 12, 16, 20, 24, None}, "a point is trained again where its shape has no other"
    assert len(set(reached)) > 2
    assert found.quartiles()["in all"] == [24, 24, 24]


def test_quartiles_say_never_where_the_best_was_not_found(storage: Storage, name: str) -> None:
    found = replay_study(ran(storage, name), RANDOM, replays=1)
    found.within["the best itself"] = (16, [None, 8, None, 4, None])
    assert found.quartiles()["the best itself"] == [8, None, None]


def test_a_pruned_curve_ends_where_it_ends(storage: Storage, name: str) -> None:
    study = ran(storage, name, pruned=lambda best: best < 0.6)
    found = replay_study(study, RANDOM, replays=9)
    assert found.points == {"complete": 2, "pruned": 4}
    assert found.cut == 9
    assert max(found.epochs[1]) < 24, "what was not trained costs nothing"
    assert found.within["the best itself"][0] == 1 + 1 + 4 + 4


@pytest.mark.parametrize("strategy", [{"strategy": "auto"}, {"sampler": "tpe", "pruner": "median"}], ids=str)
def test_strategies_find_the_best_and_are_the_same_each_time(
    storage: Storage, name: str, strategy: Mapping[str, str]
) -> None:
    study = ran(storage, name)
    first, second = (replay_study(study, strategy, replays=3) for _ in range(2))
    assert first.within == second.within
    assert any(epochs for _, reached in first.within.values() for epochs in reached)


@pytest.mark.parametrize(
    ("parameter", "span", "places"),
    [
        ("learning_rate", {"low": 1e-5, "high": 0.1, "log": True}, (1e-4, 1e-2)),
        ("dropout", {"low": 0.0, "high": 0.8}, (0.2, 0.6)),
    ],
)
def test_proposals_between_trained_points_are_counted_apart(
    parameter: str, span: dict[str, Any], places: tuple[float, ...], storage: Storage, name: str
) -> None:
    rates = {parameter: span}
    points = [{parameter: place} for place in places]
    plain = {
        "name": "s",
        "trials": 2,
        "enqueue": points,
        "fixed": {"model": "convnet", "epochs": 1},
        "space": rates,
    }
    study = open_or_resume(storage, name, parse(plain | RANDOM, where="test"), data=DATA)
    while claims := study.claim(Worker(Owner.current(), "cpu (test)", 1, "fp32")):
        for claim in claims:
            study.report(claim, [EpochResult(1, 1.0, 0.5, 1.0, 0.5, 1e-3, 1.0).to_dict()])
            study.complete(claim, 0.5)
    found = replay_study(study, RANDOM, replays=50)
    assert found.proposals == 100
    assert 8 <= found.near <= 35, "two windows of a tenth of the range"


def test_what_cannot_be_replayed_is_refused(storage: Storage, name: str) -> None:
    given = {
        "name": "s",
        "sampler": "given",
        "pruner": "none",
        "space": GRID,
        "enqueue": [{"label": "A", "step_size": 1}],
    }
    study = open_or_resume(storage, f"{name}-given", parse(given, where="test"), data=DATA)
    with pytest.raises(StudyError, match="has given points, which no strategy chose"):
        replay_study(study, RANDOM, replays=1)
    with pytest.raises(StudyError, match="needs the curves of two complete trials"):
        replay_study(ran(storage, name, pruned=lambda best: best < 0.7), RANDOM, replays=1)


def test_the_command(cli: Any) -> None:
    ran(open_storage("sqlite:///studies.db"), "mine", pruned=lambda best: best < 0.5)
    shown = cli("replay", "mine", "--sampler", "random", "--pruner", "none", "--replays", 5)
    assert shown.exit_code == 0, shown.err
    assert "study mine: curves of 4 complete and 2 pruned trials, the best 70.00%" in shown.out
    assert "5 replays of sampler random, pruner none, 6 trials each" in shown.out
    assert "stood for a trained point within 5 % of each range" in shown.out
    assert "of 5 replays came to the end of a curve that was pruned" in shown.out
    plain = json.loads(cli("replay", "mine", "--replays", 2, "--json").out)
    assert plain["strategy"] == {"strategy": "auto"}
    assert plain["epochs"]["the best itself"]["study"] == 16
    assert len(plain["epochs"]["in all"]["replays"]) == 2
    both = cli("replay", "mine", "--strategy", "auto", "--sampler", "tpe")
    assert both.exit_code == UsageError.exit_code
    assert "--strategy auto has its own sampler and pruner" in both.err
