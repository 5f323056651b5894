"""Replays of confirmations: the product's own rules, asked about a made-up table."""

import base64
import gzip
import json
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import confirm_replays


def test_a_confirmation_finds_the_best_where_luck_misled_the_search() -> None:
    truth = [0.5] * 38 + [0.6, 0.7]
    values = [*truth[:38], 0.9, 0.71]
    places = count()
    found = confirm_replays.confirm(values, lambda k: truth[k] + 0.001 * (next(places) % 2), (5, 3))
    assert [each.number for each in found[:2]] == [39, 38]
    assert [len(each.seeds) for each in found] == [3, 2, 2, 2, 2], "who cannot win gets two"


def test_all_figures_of_a_table(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    generator, rows = np.random.default_rng(0), []
    for setting in range(45):
        for seed in range(3):
            correct = generator.random(64) < 0.2 + setting / 100
            bits = base64.b64encode(np.packbits(correct).tobytes()).decode()
            row = {
                "validation_accuracy": [float(correct.mean())],
                "test_accuracy": 0.2 + setting / 100,
                "correct": bits,
            }
            rows.append({"setting": setting, "seed": seed, "params": {"learning_rate": 0.001 * (1 + setting)}} | row)
    space = {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}}
    path = tmp_path / "made_up.json.gz"
    whole = {"name": "made up", "fixed": {"epochs": 1}, "space": space, "rows": rows}
    path.write_bytes(gzip.compress(json.dumps(whole).encode()))
    monkeypatch.setattr(
        sys, "argv", ["confirm_replays", "--table", str(path), "--replays", "20", "--test-images", "64"]
    )
    confirm_replays.main()
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"]["settings"] == 45
    assert found["winner"]["points_short"]["confirmed"][0] < found["winner"]["points_short"]["single"][0]
    assert 10 <= found["winner"]["fresh_seeds"][0] <= 15
    for truth in ("test", "halves"):
        curse = found["curse"][truth]
        assert curse["shown_too_high"][0] > 3, "with so few images the choice flatters"
        assert abs(curse["expected_too_high"][0]) < curse["shown_too_high"][0]
