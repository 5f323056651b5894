"""Replays of peers on a made-up table: what they cost, when they end. The peers' own packages are not needed."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import replay_peers
from benchmarks.peers.replay_peers import EndedError, Knob, Replay, Space, Table, run

EPOCHS = 4
SPACE = {
    "optimizer": {"choices": ["sgd", "adam"]},
    "batch_size": {"low": 16, "high": 64, "base2": True},
    "learning_rate": {"low": 1e-5, "high": 0.1, "log": True},
}


def stored(finals: list[float], **more) -> dict:
    """A table whose curves rise evenly to these accuracies."""
    rows = [
        {
            "setting": k,
            "seed": 0,
            "params": {"optimizer": "adam", "batch_size": 32, "learning_rate": 10 ** (7 * k % 30 / 29 * 4 - 5)},
            "validation_accuracy": [final * (epoch + 1) / EPOCHS for epoch in range(EPOCHS)],
        }
        for k, final in enumerate(finals)
    ]
    return {"name": "made_up", "fixed": {"epochs": EPOCHS}, "space": SPACE, "rows": rows} | more


FINALS = [0.3 + 0.01 * k for k in range(30)]


def test_random_search_trains_whole_schedules_until_its_choice_is_near() -> None:
    table = Table(stored(FINALS))
    for seed in range(5):
        found = run(table, "random", seed, most_epochs=1000)
        assert found.spent == EPOCHS * len(found.trained)
        assert set(found.trained.values()) == {EPOCHS}
        assert [event[0] for event in found.events] == list(range(EPOCHS, found.spent + 1, EPOCHS))
        assert found.events[-1][2] == table.best
        assert all(event[2] < table.best - replay_peers.NEAR_ENOUGH for event in found.events[:-1])


def test_one_epoch_search_trains_the_best_of_a_round_whole() -> None:
    table = Table(stored(FINALS))
    found = run(table, "one_epoch_top_1", 0, most_epochs=10 + EPOCHS - 1)
    whole = [k for k, epochs in found.trained.items() if epochs == EPOCHS]
    assert len(found.trained) == 10
    assert whole == [max(found.trained)]
    assert found.events == [(10 + EPOCHS - 1, 0.0, table.true[whole[0]])]


def test_one_epoch_search_keeps_the_next_best_of_earlier_rounds() -> None:
    # One epoch says nothing here: all are equal, and the best is found only when all others were kept.
    rows = stored(FINALS)["rows"]
    for row in rows:
        row["validation_accuracy"][0] = 0.2
    found = run(Table(stored(FINALS, rows=rows)), "one_epoch_top_2", 3, most_epochs=1000)
    assert found.short() == 0
    assert found.spent == sum(found.trained.values())


def test_a_stopped_trial_s_setting_is_free_again_when_none_is_left_and_paid_again() -> None:
    table = Table(stored([0.5, 0.4]))
    for again in (False, True):
        search = Replay(table, 0, again=again)
        first, second = search.start(table.settings[1]), search.start(table.settings[0])
        search.train(first)
        if not again:
            with pytest.raises(EndedError):
                search.start(table.settings[0])
            continue
        search.start(table.settings[1])
        assert (first, search.trained, search.trials, search.spent) == (1, {1: 0}, 3, 1)
        assert second == 0


@pytest.mark.parametrize("strategy", ["random", "one_epoch_top_1"])
def test_a_replay_ends_with_its_epochs(strategy: str) -> None:
    found = run(Table(stored(FINALS)), strategy, 0, most_epochs=7)
    assert found.spent == 7
    assert found.spent == sum(found.trained.values())


def test_a_replay_is_the_same_for_the_same_seed() -> None:
    table = Table(stored(FINALS))
    runs = [run(table, "random", seed, most_epochs=1000).trained for seed in (1, 1, 2)]
    assert list(runs[0]) == list(runs[1]) != list(runs[2])


def test_values_come_back_from_even_scales() -> None:
    space = Space(
        Table(stored([0.5], space=SPACE | {"epochs": {"choices": [4, 8, 16]}, "gamma": {"low": 0.1, "high": 1.0}}))
    )
    values = {"optimizer": "adam", "batch_size": 32, "learning_rate": 1e-3, "epochs": 16, "gamma": 0.5}
    places = space.places(values)
    assert places == {"optimizer": "adam", "batch_size": 5, "learning_rate": -3.0, "epochs": 2, "gamma": 0.5}
    assert space.values(places) == pytest.approx(values)
    assert Knob.of("batch_size", SPACE["batch_size"]).value(6.49) == 64  # a peer may propose a little outside
    assert Knob.of("batch_size", SPACE["batch_size"]).value(6.51) == 64


def test_the_command_writes_what_it_found(tmp_path: Path) -> None:
    table = tmp_path / "made_up.json.gz"
    table.write_bytes(gzip.compress(json.dumps(stored(FINALS)).encode()))
    command = [sys.executable, replay_peers.__file__, "--table", table, "--json", tmp_path / "out.json"]
    printed = subprocess.run(
        [*command, "--strategy", "random", "one_epoch_top_2", "--replays", "3", "--seed0", "5"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "one_epoch_top_2: 3 of 3 within half a point" in printed
    found = json.loads((tmp_path / "out-random.json").read_text())
    assert (found["table"], found["strategy"]) == ("made_up", "random")
    assert set(found["versions"]) == {"python", "numpy"}
    assert [replay["seed"] for replay in found["replays"]] == [5, 6, 7]
    assert all(replay["spent"] == replay["events"][-1][0] for replay in found["replays"])
    assert json.loads((tmp_path / "out-one_epoch_top_2.json").read_text())["settings"]["kept"] == 2
