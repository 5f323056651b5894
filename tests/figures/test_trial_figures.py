"""A report's figures show what they say, thin out what would be slow, and lead from a point to its trial."""

from datetime import datetime, timedelta
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
import pytest
from optuna.trial import TrialState

from cifar_sweep.figures.curve_figures import curves
from cifar_sweep.figures.search_figures import Importances, importance, in_a_row, slices
from cifar_sweep.figures.style import thinned
from cifar_sweep.figures.timeline import lanes_of, long_pauses, timeline
from cifar_sweep.figures.trial_figures import front, history, pruned_when
from cifar_sweep.study.record import records
from tests.report.report_studies import made_up, many, sweep_of

SWEEP = sweep_of()
LOG = frozenset({"learning_rate", "batch_size"})


def named(figure: go.Figure, name: str) -> Any:
    [found] = [trace for trace in figure.data if trace.name == name]
    return found


def parts(values: Any) -> int:
    """How many lines a trace has, apart by gaps."""
    return sum(value is None for value in values)


def test_thinned_keeps_both_ends() -> None:
    assert thinned(range(5), 9) == [0, 1, 2, 3, 4]
    assert thinned(range(101), 5) == [0, 25, 50, 75, 100]
    assert thinned(range(9), 1) == [0]


def test_history() -> None:
    trials = [made_up(SWEEP, n, accuracy=share) for n, share in enumerate([0.3, 0.5, 0.4, 0.6])]
    trials += [made_up(SWEEP, 4, TrialState.PRUNED, accuracy=0.55), made_up(SWEEP, 5, TrialState.FAIL, epochs_done=0)]
    figure = history(records(trials))
    assert list(named(figure, "complete").y) == [30, 50, 40, 60]
    assert list(named(figure, "complete").customdata) == [0, 1, 2, 3]
    assert (list(named(figure, "pruned, last value").x), list(named(figure, "pruned, last value").y)) == ([4], [55])
    best = named(figure, "best so far")
    assert (list(best.x), list(best.y), best.line.shape) == ([0, 1, 2, 3, 4], [30, 50, 50, 60, 60], "hv")


def test_when_trials_were_stopped() -> None:
    trials = [made_up(SWEEP, n, TrialState.PRUNED, epochs_done=done) for n, done in enumerate([1, 1, 3])]
    trials.append(made_up(SWEEP, 3, TrialState.PRUNED, epochs_done=3, reason="diverged in epoch 4: the loss"))
    trials += [made_up(SWEEP, 4), made_up(SWEEP, 5, TrialState.FAIL)]
    figure = pruned_when(records(trials), epochs_searched=False)
    assert dict(zip(named(figure, "pruned").x, named(figure, "pruned").y, strict=True)) == {1: 2, 3: 1}
    assert dict(zip(named(figure, "diverged").x, named(figure, "diverged").y, strict=True)) == {3: 1}
    assert figure.layout.xaxis.range[1] > 10, "to the end of the schedule"
    shares = pruned_when(records(trials), epochs_searched=True)
    assert dict(zip(named(shares, "pruned").x, named(shares, "pruned").y, strict=True)) == {10: 2, 30: 1}


def test_importance_has_the_greatest_on_top() -> None:
    [bars] = importance(Importances((("learning_rate", 0.7), ("dropout", 0.3)), 40)).data
    assert (list(bars.y), list(bars.x)) == (["dropout", "learning_rate"], [0.3, 0.7])


def test_curves_are_few_and_the_best_stand_out() -> None:
    trials = records(many(SWEEP, 300))
    figure = curves(trials, epochs_searched=False)
    assert sum(parts(trace.y) for trace in figure.data) <= 50
    best = max((trial for trial in trials if trial.state == "complete"), key=lambda trial: trial.value or 0)
    top = figure.data[-1]
    assert top.name == f"trial {best.number}", "the best one lies on the others"
    accuracies = [100 * result.validation_accuracy for result in best.curve]
    assert list(top.y)[:-1] == pytest.approx(accuracies)
    assert named(figure, "pruned").customdata[0] == next(t.number for t in trials if t.state == "pruned")
    few = curves(trials[:6], epochs_searched=True)
    assert max(x for trace in few.data for x in trace.x if x is not None) == 100


def test_the_front_by_time() -> None:
    trials = [made_up(SWEEP, n, accuracy=share) for n, share in enumerate([0.5, 0.6, 0.55, 0.55, 0.4])]
    for trial, seconds in zip(trials, [2.0, 3.0, 1.0, 1.5, 4.0], strict=True):
        for point in trial.user_attrs["curve"]:
            point["seconds"] = seconds / 10
    time = front(records([*trials, made_up(SWEEP, 5, TrialState.PRUNED)])).data[1]
    assert (list(time.customdata), list(time.x)) == ([2, 1], [1, 3])


# Parameters


def test_words_and_few_numbers_stand_in_a_row() -> None:
    own = "a network of one's own"
    assert in_a_row("optimizer", ["rmsprop", own, "sgd"]) == ["sgd", "rmsprop", own], "known ones in their order"
    assert in_a_row("batch_norm", [True, False]) == [False, True]
    assert in_a_row("batch_size", [64, 16]) == [16, 64]
    assert in_a_row("batch_size", list(range(16, 40))) == []
    assert in_a_row("dropout", [0.2, 0.1]) == [], "no trial shares a value"
    assert in_a_row("dropout", [0.2, 0.1] * 3) == [0.1, 0.2]


def test_there_is_no_logarithm_of_0() -> None:
    trials = [made_up(SWEEP, n) for n in range(2)]
    [more] = slices(records(trials), ["learning_rate"], logarithmic=LOG)
    trials[0].params |= {"learning_rate": 0.0}
    [zero] = slices(records(trials), ["learning_rate"], logarithmic=LOG)
    assert (zero.layout.xaxis.type, more.layout.xaxis.type) == (None, "log")


def test_trials_of_one_value_stand_beside_each_other() -> None:
    trials = [made_up(SWEEP, n, params={"log2_batch_size": 4 + n % 2}) for n in range(40)]
    [figure] = slices(records(trials), ["batch_size"], logarithmic=LOG)
    places = dict(zip(figure.data[0].customdata, figure.data[0].x, strict=True))
    assert len(set(places.values())) == 40
    assert all(round(place) == number % 2 for number, place in places.items())
    assert list(figure.layout.xaxis.ticktext) == ["16", "32"]


def test_slices() -> None:
    trials = [
        made_up(SWEEP, 0, accuracy=0.5, params={"learning_rate": 1e-2, "log2_batch_size": 5}),
        made_up(SWEEP, 1, TrialState.PRUNED, accuracy=0.4, params={"learning_rate": 1e-3, "log2_batch_size": 6}),
    ]
    by_rate, by_size = slices(records(trials), ["learning_rate", "batch_size"], logarithmic=LOG)
    pruned, complete, best = by_rate.data
    assert (list(pruned.x), list(pruned.y)) == ([1e-3], [40])
    assert (list(complete.x), list(complete.y), list(complete.customdata), complete.text[0]) == (
        [1e-2],
        [50],
        [0],
        "0.01",
    )
    assert (list(best.x), best.marker.symbol) == ([1e-2], "circle-open")
    assert (by_rate.layout.xaxis.type, list(by_size.layout.xaxis.ticktext)) == ("log", ["32", "64"])


def test_thousands_of_trials_are_thinned() -> None:
    rows = records(many(SWEEP, 1200))
    [figure] = slices(rows, ["learning_rate"], logarithmic=LOG)
    assert sum(len(trace.x) for trace in figure.data) <= 1201


# Workers


def at(start: float, end: float) -> tuple[datetime, datetime]:
    """A span by its seconds after a whole minute."""
    minute = datetime(2026, 1, 1)
    return minute + timedelta(seconds=start), minute + timedelta(seconds=end)


def test_lanes() -> None:
    assert lanes_of([at(0, 5), at(1, 2), at(2, 6), at(5, 7), at(5, 8)]) == [0, 1, 1, 0, 2]


def test_long_pauses() -> None:
    spans = [at(0, 10), at(5, 20), at(1020, 1040), at(1041, 1100)]
    assert long_pauses(spans) == [at(20, 1020)], "a short pause stays"
    assert long_pauses([]) == []


def test_long_pauses_are_cut_out() -> None:
    trials = [made_up(SWEEP, 0), made_up(SWEEP, 1)]
    trials[1].datetime_start = trials[0].datetime_complete + timedelta(days=1)
    trials[1].datetime_complete = trials[1].datetime_start + timedelta(seconds=20)
    figure = timeline(records(trials))
    [cut] = figure.layout.xaxis.rangebreaks
    begin, end = (each.isoformat() for each in (trials[0].datetime_complete, trials[1].datetime_start))
    assert cut.bounds == (begin, end)
    assert figure.layout.shapes[0].x0 == begin


def test_the_timeline() -> None:
    trials = [made_up(SWEEP, number) for number in range(4)]
    trials += [made_up(SWEEP, 4, TrialState.PRUNED), made_up(SWEEP, 5, TrialState.RUNNING)]
    trials[2].user_attrs["owner"] = None
    trials[3].datetime_complete = trials[3].datetime_start + timedelta(hours=3)
    figure = timeline(records(trials))
    complete, pruned = named(figure, "complete"), named(figure, "pruned")
    assert sorted(number for number, *_ in complete.customdata) == [0, 1, 2, 3]
    assert list(figure.layout.yaxis.ticktext) == ["worker 1", "worker 2", "unknown worker"]
    assert [number for number, *_ in pruned.customdata] == [4]
    assert max(complete.x) == 3 * 3600 * 1000, "milliseconds"
    assert complete.base[0] == trials[0].datetime_start.isoformat()
    assert len({*complete.y, *pruned.y}) >= 3
