"""Comparisons of replays in made-up files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare_replays

TABLE = {"name": "made_up", "best": 0.6, "noise": 0.01, "chance": 0.1, "whole_epochs": 10, "whole_seconds": 5.0}


def write(folder: Path, strategy: str, replays: list[list[tuple]], *, spent: int = 1000, **more) -> Path:
    """A file of replays with these events; each ended at its last event where that is the best."""
    stored = []
    for seed, events in enumerate(replays):
        epochs, seconds = events[-1][:2] if events and events[-1][2] == TABLE["best"] else (spent, spent / 2)
        stored.append({"seed": seed, "spent": epochs, "seconds": seconds, "events": events})
    path = folder / f"{strategy}-{len(list(folder.iterdir()))}.json"
    whole = {"table": TABLE, "strategy": strategy, "settings": {"most_epochs": spent}, "replays": stored} | more
    path.write_text(json.dumps(whole))
    return path


def cells(printed: str) -> dict[str, dict[str, str]]:
    """Each strategy's cells by their column."""
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines())
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def compare(*paths: Path, ours: str | None = None, by: str = "epochs") -> dict[str, dict[str, str]]:
    return cells(compare_replays.compare(compare_replays.read(paths, by=by), ours=ours))


def rising(first: int) -> list[tuple]:
    """A choice 10 points below the best, then 2, 1, 0.4, and the best: each `first` epochs later."""
    return [(first * (k + 1), 2.0 * first * (k + 1), mean) for k, mean in enumerate((0.5, 0.58, 0.59, 0.596, 0.6))]


def test_times_regrets_and_ratios(tmp_path: Path) -> None:
    ours = write(tmp_path, "ours", [rising(20)] * 5)
    slow = write(tmp_path, "slow", [rising(40)] * 3 + [[(400, 800.0, 0.5)]] * 2)
    never = write(tmp_path, "never", [[]] * 4)
    found = compare(ours, slow, never, ours="ours")
    assert list(found) == ["ours", "slow", "never"]
    assert found["ours"]["n"] == "5"
    assert found["ours"]["epochs to 2 points"] == "40 (40 to 40)"
    assert found["ours"]["epochs to one noise (1.00)"] == "60 (60 to 60)"
    assert found["ours"]["epochs to 0.5 points"] == "80 (80 to 80)"
    assert found["slow"]["epochs to 2 points"] == "80 (80 to never)"
    assert found["never"]["epochs to 2 points"] == "never (never to never)"
    # After 5 trials, 50 epochs: 2 points; slow: three times 10, twice still chance.
    assert found["ours"]["regret after 5 trials"] == "2.00 ± 0.00"
    assert found["slow"]["regret after 5 trials"] == "26.00 ± 9.80"
    assert found["ours"]["regret after 40 trials"] == "0.00 ± 0.00"
    assert found["never"]["regret after 40 trials"] == "50.00 ± 0.00"
    # Two of five were never near: in some resamples more than half are, and the ratio has no lower bound but zero.
    assert found["ours"]["ratio, 2 points"] == "1"
    assert found["slow"]["ratio, 2 points"] == "0.50 (0.00 to 0.50)"
    assert found["never"]["ratio, 2 points"] == "< 0.04 (0.00 to 0.04)"
    assert compare(ours, slow, never, ours="never")["ours"]["ratio, 2 points"] == "> 25.00 (25.00 to ∞)"
    other = write(tmp_path, "other", [[]] * 2)
    assert compare(other, never, ours="never")["other"]["ratio, 2 points"] == "unknown"


def test_the_interval_holds_where_times_differ(tmp_path: Path) -> None:
    ours = write(tmp_path, "ours", [rising(10 + k) for k in range(20)])
    slow = write(tmp_path, "slow", [rising(30 + k) for k in range(20)])
    assert compare(ours, slow, ours="ours")["slow"]["ratio, 2 points"] == "0.49 (0.38 to 0.62)"


def test_simulated_seconds(tmp_path: Path) -> None:
    found = compare(write(tmp_path, "ours", [rising(10)] * 2), by="seconds")
    assert found["ours"]["seconds to 2 points"] == "40 (40 to 40)"
    assert found["ours"]["regret after 5 trials"] == "10.00 ± 0.00"  # 25 seconds
    without = write(tmp_path, "random", [[(10, 0.0, 0.5)]], spent=0)
    with pytest.raises(SystemExit, match="no simulated seconds"):
        compare_replays.read([without], by="seconds")


def test_a_replay_that_ended_early_has_no_later_regret(tmp_path: Path) -> None:
    found = compare(write(tmp_path, "ours", [[(20, 40.0, 0.5)]], spent=120))
    assert [found["ours"][f"regret after {k} trials"] for k in (5, 10, 20, 40)] == ["10.00", "10.00"] + ["unknown"] * 2


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path, "ours", [rising(10)])
    for other, sentence in {
        write(tmp_path, "slow", [], table=TABLE | {"best": 0.7}): "another table",
        write(tmp_path, "ours", [], spent=5): "other settings",
        write(tmp_path, "ours", [rising(20)]): "has seeds",
    }.items():
        with pytest.raises(SystemExit, match=sentence):
            compare_replays.read([first, other], by="epochs")


def test_files_of_one_strategy_are_one(tmp_path: Path) -> None:
    first, second = write(tmp_path, "ours", [rising(10)] * 2), write(tmp_path, "ours", [rising(20)] * 3)
    stored = json.loads(second.read_text())
    for replay in stored["replays"]:
        replay["seed"] += 2
    second.write_text(json.dumps(stored))
    assert compare(first, second)["ours"]["n"] == "5"
    assert compare(first, second)["ours"]["epochs to 2 points"] == "40 (20 to 40)"


def test_the_command_prints_the_same(tmp_path: Path) -> None:
    ours, slow = write(tmp_path, "ours", [rising(20)] * 5), write(tmp_path, "slow", [rising(40)] * 5)
    command = [sys.executable, compare_replays.__file__, ours, slow, "--ours", "ours", "--seconds"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert cells(printed) == compare(ours, slow, ours="ours", by="seconds")
    assert cells(printed)["slow"]["ratio, 2 points"] == "0.50 (0.50 to 0.50)"
