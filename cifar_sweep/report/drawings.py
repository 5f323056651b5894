"""The figures of a report's page, by the names that its template knows."""

from cifar_sweep.figures.curve_figures import curves, learning_curves
from cifar_sweep.figures.hand_figures import claimed_against_measured, hand_beside_search
from cifar_sweep.figures.parameter_figures import parallel, slices
from cifar_sweep.figures.search_figures import importance, learning_rate_by_batch
from cifar_sweep.figures.timeline import timeline
from cifar_sweep.figures.trial_figures import front, history, pruned_when, seconds_by_trial
from cifar_sweep.report.facts import Report
from cifar_sweep.report.html import Drawing, drawing
from cifar_sweep.sweep.sweep import Range

CURVES_IN_DETAIL = 3  # with four lines each
AXIS_PIXELS = 88  # of the parallel coordinates: below that, names lie on each other
HAND_PIXELS = 620  # below that, the names of the best lie on each other
PAIR_PIXELS = 340  # the height of figures beside each other


def drawings_of(report: Report) -> dict[str, Drawing]:
    """Every figure that has something to show; none before a trial has finished an epoch."""
    trials, data = report.trials, report.data
    if not any(trial.curve for trial in trials):
        return {}
    searched = "epochs" in report.study.sweep.space
    drawn = {
        "history-plot": drawing(history(trials)),
        "seconds-plot": drawing(seconds_by_trial(trials, data=data), height=PAIR_PIXELS),
        "curves-plot": drawing(curves(trials, epochs_searched=searched)),
    }
    if report.saved.trials:
        drawn["pruned-plot"] = drawing(pruned_when(trials, epochs_searched=searched), height=PAIR_PIXELS)
    if report.ranked:
        drawn["detail-plot"] = drawing(learning_curves(report.ranked[:CURVES_IN_DETAIL], data=data))
    if any(trial.ended and trial.curve for trial in trials):
        drawn["time-plot"] = drawing(timeline(trials))
    return drawn | _beside_hand(report) | _fronts(report) | (_parameters(report) if comparable(report) else {})


def comparable(report: Report) -> bool:
    """Whether there are two trials to compare."""
    return sum(trial.accuracy is not None for trial in report.trials) > 1


def by_importance(report: Report) -> list[str]:
    """The searched parameters, what matters most first; in their usual order where that is not known."""
    known = [name for name, _ in report.importances.shares]
    return known + [name for name in report.parameters if name not in known]


def _beside_hand(report: Report) -> dict[str, Drawing]:
    claims = report.by_hand.claims if report.by_hand else ()
    if not claims:
        return {}
    if report.study.sweep.given:
        return {"hand-plot": drawing(claimed_against_measured(claims))}
    figure = hand_beside_search(report.trials, claims, data=report.data)
    return {"hand-plot": drawing(figure, height=400, least_width=HAND_PIXELS)}


def _fronts(report: Report) -> dict[str, Drawing]:
    timed = [trial for trial in report.ranked if trial.seconds]
    if not timed:
        return {}
    sizes = {trial.weights.size for trial in timed if trial.weights}
    fronts = {"seconds-front": drawing(front(report.trials, size=False))}
    return fronts | ({"size-front": drawing(front(report.trials, size=True))} if len(sizes) > 1 else {})


def _parameters(report: Report) -> dict[str, Drawing]:
    names, shares = by_importance(report), report.importances.shares
    ranges = {name: domain for name, domain in report.study.sweep.space.items() if isinstance(domain, Range)}
    logarithmic = {name for name, domain in ranges.items() if domain.log or domain.base2}
    height = max(PAIR_PIXELS, 110 + 32 * len(shares))
    drawn = {"importance-plot": drawing(importance(report.importances), height=height)} if shares else {}
    if {"learning_rate", "batch_size"} <= set(names):
        heat = learning_rate_by_batch(report.trials, data=report.data).update_xaxes(dtick=1)
        drawn["heat-plot"] = drawing(heat, height=height)
    each = slices(report.trials, names, logarithmic=logarithmic)
    drawn |= {f"slice-{k}": drawing(figure) for k, figure in enumerate(each)}
    if len(names) > 1:
        # What matters most stands beside the accuracy.
        lines = parallel(report.trials, names[::-1], logarithmic=logarithmic)
        drawn["parallel-plot"] = drawing(lines, least_width=AXIS_PIXELS * (len(names) + 1), top=40)
    return drawn
