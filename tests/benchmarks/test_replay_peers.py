"""Replays of peers on a made-up table: what they cost, when they end. The peers' own packages are not needed."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from benchmarks.peers import replay_peers
from benchmarks.peers.replay_peers import Clock, Knob, Search, Space, Table, correct, optuna_distributions, run
from benchmarks.tables import Speeds, facts

EPOCHS = 4
SPACE = {
    "optimizer": {"choices": ["sgd", "adam"]},
    "learning_rate": {"low": 1e-5, "high": 0.1, "log": True},
}


def stored(finals: list[float], **more) -> dict:
    """A table whose curves rise evenly to these accuracies."""
    rows = [
        {
            "setting": k,
            "seed": 0,
            "params": {
                "optimizer": SPACE["optimizer"]["choices"][k % 2],
                "learning_rate": 10 ** (7 * k % 30 / 29 * 4 - 5),
            },
            "validation_accuracy": [final * (epoch + 1) / EPOCHS for epoch in range(EPOCHS)],
        }
        for k, final in enumerate(finals)
    ]
    return {"name": "made_up", "fixed": {"epochs": EPOCHS}, "space": SPACE, "rows": rows} | more


FINALS = [0.3 + 0.01 * k for k in range(30)]


def test_random_search_trains_whole_schedules_until_its_choice_is_the_best() -> None:
    table = Table(stored(FINALS))
    for seed in range(5):
        found = run(table, "random", seed, most_epochs=5000)
        assert found.spent == EPOCHS * len(found.trained)
        assert set(found.trained) == {EPOCHS}
        assert [event[0] for event in found.events] == list(range(EPOCHS, found.spent + 1, EPOCHS))
        assert found.events[-1][2] == table.best
        assert all(event[2] < table.best for event in found.events[:-1])


def test_a_replay_may_end_near_the_best() -> None:
    table = Table(stored(FINALS))
    spent = []
    for seed in range(5):
        exact, near = (run(table, "random", seed, most_epochs=5000, near=near) for near in (0.0, 0.045))
        assert near.short() <= 0.045
        assert near.events == exact.events[: len(near.events)]
        spent.append((near.spent, exact.spent))
    assert any(sooner < later for sooner, later in spent)


def test_a_setting_can_be_trained_again_and_is_paid_again() -> None:
    found = run(Table(stored([0.5, 0.4])), "random", 0, most_epochs=5 * EPOCHS, near=-1)
    assert len(found.settings) == 5
    assert set(found.settings) == {0, 1}
    assert found.spent == 5 * EPOCHS


def test_one_epoch_search_trains_the_best_of_a_round_whole() -> None:
    table = Table(stored(FINALS))
    found = run(table, "one_epoch_top_1", 0, most_epochs=10 + EPOCHS - 1)
    whole = [k for k, epochs in enumerate(found.trained) if epochs == EPOCHS]
    assert len(found.trained) == 10
    assert [found.settings[k] for k in whole] == [max(found.settings)]
    spent = 10 + EPOCHS - 1
    seconds = spent * Speeds.read().epoch(64, 1)
    assert found.events == [(spent, pytest.approx(seconds), table.true[max(found.settings)])]


def test_one_epoch_search_leaves_those_that_a_round_did_not_keep() -> None:
    table = Table(stored(FINALS))
    found = run(table, "one_epoch_top_2", 3, most_epochs=3 * (20 + 2 * (EPOCHS - 1)), near=-1)
    for first in (0, 20, 40):
        one_round = list(range(first, first + 20))
        kept = sorted(one_round, key=lambda k: -table.true[found.settings[k]])[:2]
        assert [found.trained[k] for k in one_round] == [EPOCHS if k in kept else 1 for k in one_round]


@pytest.mark.parametrize("strategy", ["random", "one_epoch_top_1"])
def test_a_replay_ends_with_its_epochs(strategy: str) -> None:
    found = run(Table(stored(FINALS)), strategy, 0, most_epochs=7)
    assert found.spent == 7
    assert found.spent == sum(found.trained)


def test_two_workers_train_twice_as_much_in_the_same_time() -> None:
    table = Table(stored(FINALS))
    alone, both = (run(table, "random", 0, most_epochs=80, near=-1, workers=workers) for workers in (1, 2))
    assert alone.spent == both.spent == 80
    assert both.seconds == pytest.approx(alone.seconds / 2)
    assert both.trained[:2] == [EPOCHS, EPOCHS]
    assert [event[0] for event in both.events[:2]] == [2 * EPOCHS - 1, 2 * EPOCHS]  # side by side


def test_a_workers_fault_ends_the_replay() -> None:
    def work() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Clock(2).run(work)


def test_a_replay_is_the_same_for_the_same_seed() -> None:
    table = Table(stored(FINALS))
    runs = [run(table, "random", seed, most_epochs=1000).settings for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_optuna_is_told_what_was_trained() -> None:
    space = Space(Table(stored([0.5], space=SPACE)))
    distributions = optuna_distributions(space)
    study = optuna.create_study()
    asked = study.ask(distributions)
    correct(study, asked, distributions, space.places({"optimizer": "adam", "learning_rate": 1e-3}))
    study.tell(asked, 1.0)
    assert study.trials[0].params == {"optimizer": "adam", "learning_rate": pytest.approx(-3.0)}


def test_a_setting_stands_for_one_trial_while_its_shape_has_others() -> None:
    search = Search(Table(stored(FINALS)), seed=0)
    alike = [k for k in range(len(FINALS)) if k % 2]  # those of one optimizer
    for _ in [*alike, 7]:
        search.begin(search.table.settings[7])
    assert sorted(search.settings[:-1]) == alike
    assert search.settings[0] == search.settings[-1] == 7


def test_even_scales_become_values_of_a_sweep() -> None:
    batch_size = {"low": 16, "high": 64, "base2": True}
    more = {"batch_size": batch_size, "epochs": {"choices": [4, 8, 16]}, "gamma": {"low": 0.1, "high": 1.0}}
    space = Space(Table(stored([0.5], space=SPACE | more)))
    places = {"optimizer": "adam", "batch_size": 5, "learning_rate": -3.0, "epochs": 2, "gamma": 0.5}
    values = {"optimizer": "adam", "batch_size": 32, "learning_rate": 1e-3, "epochs": 16, "gamma": 0.5}
    assert space.values(places) == pytest.approx(values)
    assert space.places(values) == pytest.approx(places)
    assert Knob.of("batch_size", batch_size).value(6.49) == 64  # a peer may propose a little outside
    assert Knob.of("batch_size", batch_size).value(6.51) == 64


def test_the_command_writes_what_it_found(tmp_path: Path) -> None:
    table = tmp_path / "made_up.json.gz"
    table.write_bytes(gzip.compress(json.dumps(stored(FINALS)).encode()))
    command = [sys.executable, replay_peers.__file__, "--table", table, "--json", tmp_path / "out.json"]
    printed = subprocess.run(
        [*command, "--strategy", "random", "one_epoch_top_2", "--replays", "3", "--seed0", "5", "--near", "0.02"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "one_epoch_top_2: 3 of 3 within 2 points of the best" in printed
    found = json.loads((tmp_path / "out-random.json").read_text())
    assert found["table"] == facts(Table(stored(FINALS)), Speeds.read())
    assert (found["table"]["name"], found["strategy"]) == ("made_up", "random")
    assert set(found["versions"]) == {"python", "numpy"}
    assert [replay["seed"] for replay in found["replays"]] == [5, 6, 7]
    assert all(replay["spent"] == replay["events"][-1][0] for replay in found["replays"])
    assert json.loads((tmp_path / "out-one_epoch_top_2.json").read_text())["settings"]["kept"] == 2
