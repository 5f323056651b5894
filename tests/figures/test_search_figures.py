"""Figures of a search show the trials and claims that they are given, escaped, and never claims as our own numbers."""

import json
import math
from html import unescape
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.figures.hand_figures import MOST_POINTS, hand_beside_search
from cifar_sweep.figures.search_figures import BINS_PER_DECADE, MOST_BATCH_ROWS, learning_rate_by_batch
from cifar_sweep.figures.trial_figures import seconds_by_trial
from cifar_sweep.hand.rows import HandRow
from cifar_sweep.study.record import records
from tests.figures.test_figures import DATA, HOSTILE, named, trial

REAL = "CIFAR-10 (0123456789abcdef)"


def placed(number: int, learning_rate: float, batch_size: int, accuracy: float, **more: Any) -> FrozenTrial:
    """A trial of this point; `state` is complete where nothing else is said."""
    made = trial(
        number, more.pop("state", TrialState.COMPLETE), [accuracy / 2, accuracy], batch_size=batch_size, **more
    )
    made.user_attrs["config"]["learning_rate"] = learning_rate
    made.user_attrs["environment"] = {"device": "cpu (a model)", "threads": 1, "versions": {}, "commit": None}
    return made


CLAIMS = [
    HandRow("A-1", "lenet", claimed=68.0, note="a note"),
    HandRow("B-1", "cnn3", claimed=75.0),
    HandRow("B-2", "cnn3", claimed=80.0),
    HandRow("B-3", "cnn3"),
]


def title_of(figure: go.Figure) -> str:
    return unescape(figure.layout.title.text.replace("<br>", " "))


def cell(figure: go.Figure, learning_rate: float, batch_size: str) -> tuple[float | None, str]:
    """The value and the words of the cell where a point belongs."""
    [heat] = figure.data
    row = list(heat.y).index(batch_size)
    [column] = [place for place in range(len(heat.x) - 1) if heat.x[place] <= learning_rate < heat.x[place + 1]]
    return heat.z[row][column], heat.hovertext[row][column]


def test_the_best_of_each_cell() -> None:
    trials = [
        placed(0, 1e-3, 64, 0.5),
        placed(1, 1.1e-3, 64, 0.7, label="A-1"),
        placed(2, 0.9e-3, 64, 0.9, state=TrialState.PRUNED),
        placed(3, 1e-2, 16, 0.2, state=TrialState.PRUNED),
        placed(4, 1e-2, 16, 0.1, state=TrialState.FAIL),
        trial(5, TrialState.WAITING, []),
    ]
    figure = learning_rate_by_batch(records(trials), data=DATA)
    value, words = cell(figure, 1e-3, "64")
    assert value == pytest.approx(70), "a complete trial goes before the last value of one that was pruned"
    assert "best 70.00 %, trial 1, A-1<br>" in words
    assert "3 trials: 2 complete, 1 pruned" in words
    value, words = cell(figure, 1e-2, "16")
    assert value == pytest.approx(20)
    assert "trial 3, pruned: its last value" in words
    assert cell(figure, 1e-2, "64") == (None, "")
    assert cell(figure, 2e-3, "64") == (None, ""), "cells between are there, and empty"
    [heat] = figure.data
    assert list(heat.y) == ["16", "64"]
    assert len(heat.x) - 1 == len(heat.z[0]) == BINS_PER_DECADE + 1
    ratios = [after / before for before, after in zip(heat.x, heat.x[1:], strict=False)]
    assert ratios == pytest.approx([10 ** (1 / BINS_PER_DECADE)] * len(ratios))
    assert math.sqrt(heat.x[0] * heat.x[1]) == pytest.approx(1e-3), "a power of ten is in the middle"
    assert figure.layout.xaxis.type == "log"


def test_many_batch_sizes_share_rows() -> None:
    sizes = range(16, 16 + MOST_BATCH_ROWS + 1)
    figure = learning_rate_by_batch(records([placed(size, 1e-3, size, size / 100) for size in sizes]), data=DATA)
    assert list(figure.data[0].y) == ["about 16", "about 32"]
    value, words = cell(figure, 1e-3, "about 32")
    assert value == pytest.approx(28)
    assert "batch size 28" in words, "of the best one"


def test_claims_stand_on_lines_of_their_own() -> None:
    trials = [placed(0, 1e-3, 64, 0.5), placed(1, 1e-3, 64, 0.71), placed(2, 1e-2, 64, 0.3, state=TrialState.PRUNED)]
    figure = hand_beside_search(records(trials), CLAIMS, data=REAL)
    complete, others = named(figure, "search: complete"), named(figure, "search: other, last value")
    assert list(complete.x) == pytest.approx([50, 71])
    assert list(others.x) == pytest.approx([30])
    best = named(figure, "search: best")
    assert (list(best.x), best.text[0].strip()) == ([pytest.approx(71)], "71.00 %, trial 1")
    alike, different = named(figure, "claimed: same network"), named(figure, "claimed: other networks")
    assert (list(alike.x), list(different.x)) == ([68.0], [75.0, 80.0])
    assert list(different.text) == ["", "80.00 %, B-2"], "the best claim is named"
    assert "claimed by the report: 68.00 % on CIFAR-10" in alike.hovertext[0]
    assert "a note" in alike.hovertext[0]
    rows = [set(trace.y) for trace in figure.data]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 5, "no line holds claims and our values"
    title = title_of(figure)
    assert f"validation accuracy on {REAL}" in title
    assert "claimed: test accuracy on CIFAR-10, as students' reports state it, not measured here" in title
    assert "synthetic" not in title
    on_synthetic = title_of(hand_beside_search(records(trials), CLAIMS, data=DATA))
    assert "synthetic images say nothing about CIFAR-10" in on_synthetic


def test_no_points_where_there_are_too_many() -> None:
    trials = [placed(number, 1e-3, 64, number / 1000) for number in range(MOST_POINTS + 1)]
    assert named(hand_beside_search(records(trials), [], data=REAL), "search: complete").boxpoints is False
    assert named(hand_beside_search(records(trials[:-1]), [], data=REAL), "search: complete").boxpoints == "all"


def test_time_by_trial_and_how_it_ended() -> None:
    trials = [
        placed(0, 1e-3, 64, 0.5, label="A-1"),
        placed(1, 1e-3, 64, 0.5, state=TrialState.PRUNED),
        placed(2, 1e-3, 64, 0.5),
        trial(3, TrialState.WAITING, []),
    ]
    trials[2].user_attrs["environment"]["device"] = "cuda (another)"
    figure = seconds_by_trial(records(trials), data=DATA)
    complete, pruned = named(figure, "complete"), named(figure, "pruned")
    assert (list(complete.x), list(complete.y)) == ([0, 2], [2, 2])
    assert (list(pruned.x), list(pruned.y)) == ([1], [2])
    assert complete.marker.color != pruned.marker.color
    assert complete.hovertext[0] == "trial 0, A-1, complete<br>2 s on cpu (a model)<br>2 of 4 epochs, 1 s each"
    assert "training on cpu (a model); cuda (another): 6 s in all" in title_of(figure)
    assert figure.layout.yaxis.title.text == "training time, s"
    trials[0].user_attrs["curve"][0]["seconds"] = 7200
    figure = seconds_by_trial(records(trials), data=DATA)
    assert figure.layout.yaxis.title.text == "training time, h"
    assert named(figure, "complete").y[0] == pytest.approx(7201 / 3600)


def test_what_users_wrote_is_escaped() -> None:
    trials = [placed(0, 1e-3, 64, 0.5, label=HOSTILE), placed(1, 1e-3, 64, 0.5, state=TrialState.PRUNED, label=HOSTILE)]
    for made in trials:
        made.user_attrs["environment"]["device"] = HOSTILE
    claims = [HandRow(HOSTILE, HOSTILE, claimed=1.0, note=HOSTILE)]
    for figure in (
        learning_rate_by_batch(records(trials), data=HOSTILE),
        hand_beside_search(records(trials), claims, data=HOSTILE),
        seconds_by_trial(records(trials), data=HOSTILE),
    ):
        texts = figure.to_json()
        assert "alert(1)" in texts
        plain = json.dumps(json.loads(texts), ensure_ascii=False)
        assert "<script" not in plain
        assert "<b " not in plain


def test_no_trial_at_all() -> None:
    assert len(learning_rate_by_batch([], data=DATA).data) == 0
    assert len(seconds_by_trial([], data=DATA).data) == 0
    assert [trace.name for trace in hand_beside_search([], CLAIMS, data=DATA).data] == ["claimed: other networks"]
