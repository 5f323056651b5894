"""Figures of where in the space a search was good: accuracy by its parameters, and which of them matter."""

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape

import optuna
import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures import style
from cifar_sweep.parameters import PARAMETERS, Value
from cifar_sweep.study.record import STATES, TrialRecord
from cifar_sweep.sweep import space
from cifar_sweep.words import plain

BINS_PER_DECADE = 3  # cells about as wide as the step from one batch size to the next
MOST_BATCH_ROWS = 12  # the powers of two from 1 to 2048
# Of all parameters together: of more points no single one can be seen, and a browser takes seconds to draw them.
MOST_SLICE_POINTS = 6000
# PED-ANOVA compares the best tenth, and no fewer than two trials, with all.
FEWEST_TRIALS = 10
FEW_VALUES = 12  # so few values have room for the trials of each beside each other
# Paul Tol's "iridescent", every third step: it grows darker evenly, for readers of every colour vision.
SCALE = (
    "#FEFBE9", "#F5F3C1", "#DDECBF", "#C2E3D2", "#A8D8DC", "#8DCBE4",
    "#7BBCE7", "#88A5DD", "#9B8AC4", "#9A709E", "#805770", "#46353A",
)  # fmt: skip


def accuracy_by_learning_rate(trials: Sequence[TrialRecord], *, data: str) -> go.Figure:
    """How good trials are by learning rate: a complete trial's best, any other's last. `data` names the images.

    The symbol says how a trial ended, the colour its batch size where that varies, a ring that it is a point by hand.
    """
    drawn = style.with_accuracy(trials)
    sizes = sorted({trial.settings["batch_size"] for trial in drawn})
    figure = go.Figure()
    for size, state in sorted({(trial.settings["batch_size"], trial.state) for trial in drawn}):
        members = [trial for trial in drawn if (trial.settings["batch_size"], trial.state) == (size, state)]
        words = state if state == "complete" else f"{state}, last value"
        style.add_trials(
            figure,
            members,
            _learning_rate,
            name=f"batch size {size}, {words}" if len(sizes) > 1 else words,
            marker=style.marker(state, size=10, colour=style.PALETTE[sizes.index(size) % len(style.PALETTE)]),
            hovertemplate=None,
            hoverinfo="text",
            hovertext=[style.trial_words(trial) for trial in members],
        )
    by_hand = [trial for trial in drawn if trial.label]
    style.add_trials(
        figure,
        by_hand,
        _learning_rate,
        mode="markers+text",
        name="point by hand",
        marker={"color": style.QUIET, "symbol": "circle-open", "size": 18, "line": {"width": 2}},
        text=[escape(trial.label) for trial in by_hand],
        textposition="top center",
        cliponaxis=False,
        hovertemplate=None,
        hoverinfo="skip",
    )
    return style.finish(figure, f"{data}: validation images", height=520, **style.LEARNING_RATE, **style.axis(drawn))


def _learning_rate(trial: TrialRecord) -> float:
    return float(trial.settings["learning_rate"])


def learning_rate_by_batch(trials: Sequence[TrialRecord], *, data: str) -> go.Figure:
    """The best value in each cell of learning rate (thirds of a decade) by batch size.

    A complete trial counts with its best epoch, any other with its last; the text beside the pointer says which.
    """
    drawn = style.with_accuracy(trials)
    names = _batch_names(int(trial.settings["batch_size"]) for trial in drawn)
    cells: dict[tuple[str, int], list[TrialRecord]] = defaultdict(list)
    for trial in drawn:
        place = round(BINS_PER_DECADE * math.log10(_learning_rate(trial)))  # powers of ten are in the middle of a cell
        cells[names[int(trial.settings["batch_size"])], place].append(trial)
    rows, metric = list(dict.fromkeys(names.values())), style.metric_of(drawn)
    figure = go.Figure()
    if cells:
        bins = range(min(place for _, place in cells), max(place for _, place in cells) + 1)
        figure.add_heatmap(
            # One edge more than there are cells: on a logarithmic axis the middles alone would not do.
            x=[_edge(place) for place in (*bins, bins[-1] + 1)],
            y=rows,
            z=[[_best_value(cells.get((row, place), ())) for place in bins] for row in rows],
            hovertext=[[_cell_words(cells.get((row, place), ()), row, place) for place in bins] for row in rows],
            hoverinfo="text",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            colorscale=list(SCALE),
            reversescale=metric.lowest,
            colorbar={"title": {"text": "nats" if metric.lowest else "%"}, "thickness": 12, "outlinewidth": 0},
        )
        figure.update_yaxes(type="category", categoryorder="array", categoryarray=rows)
    title, axes = f"{data}: best {metric.words} in each cell", {"yaxis_title": "batch size"} | style.LEARNING_RATE
    return style.finish(figure, title, height=230 + 34 * len(rows), **axes)


def _edge(place: int) -> float:
    """The lower end of a cell."""
    return float(10 ** ((place - 0.5) / BINS_PER_DECADE))


def _batch_names(sizes: Iterable[int]) -> dict[int, str]:
    """The name of each batch size's row: itself, or the nearest power of two where there are too many."""
    distinct = sorted(set(sizes))
    if len(distinct) <= MOST_BATCH_ROWS:
        return {size: str(size) for size in distinct}
    return {size: f"about {2 ** round(math.log2(size))}" for size in distinct}


def _best_value(trials: Sequence[TrialRecord]) -> float | None:
    best = style.best_of(trials)
    return style.shown(best) if best else None


def _cell_words(trials: Sequence[TrialRecord], row: str, place: int) -> str:
    best = style.best_of(trials)
    if best is None:
        return ""
    counts = Counter(trial.state for trial in trials)
    last = "" if best.state == "complete" else f", {best.state}: its last value"
    return style.hover_text([
        f"learning rate {_edge(place):.2g} to {_edge(place + 1):.2g}, batch size {row}",
        f"best {style.with_unit(best)}, {style.trial_name(best)}{last}",
        f"learning rate {best.settings['learning_rate']:.3g}, batch size {best.settings['batch_size']}",
        f"{len(trials)} trials: "
        + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]),
    ])  # fmt: skip


@dataclass(frozen=True)
class Importances:
    """How much each parameter decides whether a trial is among the best tenth; empty, with a reason, where unknown."""

    shares: tuple[tuple[str, float], ...]
    trials: int
    reason: str = ""


def importances_of(trials: Sequence[TrialRecord]) -> Importances:
    """Optuna's PED-ANOVA importances over the complete trials, by the parameters' own names, the greatest first.

    They answer one question: which parameters set the best tenth of the complete trials apart from all of them. Fresh
    seeds of the best ones would count those points several times, and are left out.
    """
    complete = [trial.frozen for trial in trials if trial.state == "complete" and trial.confirms is None]
    reason = ""
    if len(complete) < FEWEST_TRIALS:
        there = "is 1 complete trial" if len(complete) == 1 else f"are {len(complete)} complete trials"
        reason = f"there {there}, and it takes {FEWEST_TRIALS}"
    elif len({name for trial in complete for name in trial.params}) < 2:
        reason = "it compares parameters, and fewer than two were searched"
    elif len({trial.value for trial in complete}) == 1:
        reason = f"all complete trials have the same {style.metric_of(trials).words.removeprefix('validation ')}"
    if reason:
        return Importances((), len(complete), reason)
    # In memory, without their curves: the study's own storage would be read again.
    study = optuna.create_study(direction="minimize" if style.metric_of(trials).lowest else "maximize")
    for trial in complete:
        study.add_trial(optuna.create_trial(value=trial.value, params=trial.params, distributions=trial.distributions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks on parameters that few trials have
        found = optuna.importance.get_param_importances(study)
    shares: dict[str, float] = defaultdict(float)
    for name, share in found.items():
        shares[space.own_name(name)] += share
    return Importances(tuple(sorted(shares.items(), key=lambda entry: -entry[1])), len(complete))


def importance(found: Importances) -> go.Figure:
    """A bar for each parameter, the greatest on top."""
    names, shares = zip(*found.shares[::-1], strict=True) if found.shares else ((), ())
    figure = style.bars(names, [round(share, 4) for share in shares], [f"{share:.0%}" for share in shares])
    return figure.update_xaxes(tickformat=".0%", range=[0, 1.15 * max(shares, default=1)])


def slices(trials: Sequence[TrialRecord], names: Sequence[str], *, logarithmic: Collection[str]) -> list[go.Figure]:
    """For each parameter how good the trials are by its value."""
    shown = style.with_accuracy(trials)
    best = style.best_of([trial for trial in shown if trial.state == "complete"])
    most = MOST_SLICE_POINTS // max(len(names), 1)
    having = {name: [trial for trial in shown if name in trial.params] for name in names}
    return [_slice(trials, name, best, most, log=name in logarithmic) for name, trials in having.items()]


def _slice(trials: Sequence[TrialRecord], name: str, best: TrialRecord | None, most: int, *, log: bool) -> go.Figure:
    values = [trial.params[name] for trial in trials]
    row = in_a_row(name, values)

    def place(trial: TrialRecord) -> Value:
        """Where trials share a value, each stands a little beside it: the golden ratio puts neighbours far apart."""
        value, aside = trial.params[name], 0.5 * (trial.number * 0.618034 % 1 - 0.5)
        return round(row.index(value) + aside, 3) if row else value

    figure = go.Figure()
    for state in ("pruned", "failed", "running", "waiting", "complete"):
        members = style.thinned([trial for trial in trials if trial.state == state], most)
        style.add_trials(
            figure,
            members,
            place,
            marker=style.marker(state, size=6) | {"opacity": 0.85},
            text=[_value_text(trial.params[name]) for trial in members],
            hovertemplate=style.hover(trials, f"<br>{name} %{{text}}", name=f"trial %{{customdata}}, {state}"),
        )
    ring = {"symbol": "circle-open", "size": 14, "color": style.BEST, "line": {"width": 2.5}}
    at_best = [best] if best is not None and name in best.params else []
    style.add_trials(figure, at_best, place, marker=ring, hovertemplate=None, hoverinfo="skip")
    if row:
        ticks = {"tickvals": list(range(len(row))), "ticktext": [_value_text(value) for value in row]}
        figure.update_xaxes(**ticks, range=[-0.6, len(row) - 0.4], showgrid=False)
    elif log and all(isinstance(value, (int, float)) and value > 0 for value in values):
        figure.update_xaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(ticksuffix=style.metric_of(trials).unit)
    return style.finish(figure, height=230, showlegend=False)


def in_a_row(name: str, values: Sequence[Value]) -> list[Value]:
    """The different values in their order, if each is to have a place of its own: words, and few numbers; else none.

    A number has one where trials share it, or where it is whole.
    """
    choices = [choice for choice in PARAMETERS[name].choices if choice in values]
    known = choices + sorted(set(values) - set(choices))
    is_shared = len(values) >= 3 * len(known) or PARAMETERS[name].kind is not float
    return known if PARAMETERS[name].kind is str or (is_shared and len(known) <= FEW_VALUES) else []


def _value_text(value: Value) -> str:
    return escape(plain(value, 3))
