"""Which worker trained which trial when, as a figure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures.figures import QUIET, finish
from cifar_sweep.figures.trial_figures import COLOURS
from cifar_sweep.study.record import TrialRow

LANE_PIXELS = (6, 22)  # the height of a line: at least, and at most
FEW_LANES_PIXELS = 300
MOST_LANES_PIXELS = 520


def timeline(rows: Sequence[TrialRow]) -> go.Figure:
    """Which worker had which trial when: a block of lines for each worker, as many as it trained at once.

    Long stretches in which nothing ran are cut out, at the dotted lines. A trial that was interrupted is shown from
    when it was last taken up.
    """
    spans = spans_of(rows)
    cut, cuts = without_pauses([(start, end) for _, start, end in spans])
    longest = max((end for _, end in cut), default=0.0)
    unit, factor = next((u, f) for u, f, least in (("h", 3600, 5400), ("min", 60, 90), ("s", 1, 0)) if longest >= least)
    placed = [(row, start / factor, end / factor) for (row, _, _), (start, end) in zip(spans, cut, strict=True)]
    workers: dict[str, list[tuple[TrialRow, float, float]]] = defaultdict(list)
    for entry in placed:
        workers[entry[0].worker or "unknown worker"].append(entry)
    figure = go.Figure()
    names: list[tuple[float, str]] = []
    drawn: dict[str, list[tuple[TrialRow, float, float, int]]] = defaultdict(list)
    lane = 0
    for worker, entries in sorted(workers.items(), key=lambda item: item[1][0][1]):
        lanes = lanes_of([(start, end) for _, start, end in entries])
        for (row, start, end), own in zip(entries, lanes, strict=True):
            drawn[row.state].append((row, start, end, lane + own))
        names.append((lane + max(lanes) / 2, worker))
        lane += max(lanes) + 2  # a line stays empty between workers
    for state, bars in drawn.items():
        _add_spans(figure, state, bars)
    for place in cuts:
        figure.add_vline(x=place / factor, line={"color": QUIET, "width": 1, "dash": "dot"})
    figure.update_layout(barmode="overlay", bargap=0.12)
    figure.update_xaxes(title=f"time since the first trial, {unit}", rangemode="tozero")
    figure.update_yaxes(
        tickvals=[place for place, _ in names],
        ticktext=[escape(name) for _, name in names],
        range=[lane - 0.5, -0.8],
        showgrid=False,
    )
    least, most = LANE_PIXELS
    return finish(
        figure, "", height=round(110 + min(MOST_LANES_PIXELS, max(least * lane, min(most * lane, FEW_LANES_PIXELS))))
    )


def _add_spans(figure: go.Figure, state: str, bars: Sequence[tuple[TrialRow, float, float, int]]) -> None:
    figure.add_bar(
        orientation="h",
        base=[round(start, 3) for _, start, _, _ in bars],
        x=[round(end - start, 3) for _, start, end, _ in bars],
        y=[lane for *_, lane in bars],
        name=state,
        marker={"color": COLOURS[state], "line": {"width": 0}},
        customdata=[[row.number, f"{row.seconds:.0f}", escape(row.device)] for row, *_ in bars],
        hovertemplate=f"trial %{{customdata[0]}}, {state}<br>%{{customdata[1]}} s of training on %{{customdata[2]}}"
        "<extra></extra>",
    )


def spans_of(rows: Iterable[TrialRow]) -> list[tuple[TrialRow, float, float]]:
    """The trials that have ended, with their seconds since the first one began, in order of their beginning."""
    ended = [(row, row.started, row.ended) for row in rows if row.started and row.ended and row.epochs_done]
    zero = min((started for _, started, _ in ended), default=None)
    spans = [
        (row, (started - zero).total_seconds(), (done - zero).total_seconds()) for row, started, done in ended if zero
    ]
    return sorted(spans, key=lambda span: (span[1], span[0].number))


def without_pauses(
    spans: Sequence[tuple[float, float]],
) -> tuple[list[tuple[float, float]], list[float]]:
    """The spans, in order of their beginning, with long pauses between them shortened, and where those were.

    A pause is long that takes more than a tenth of the time in which anything ran.
    """
    pauses: list[tuple[float, float]] = []
    reached = 0.0
    for start, end in spans:
        if start > reached:
            pauses.append((reached, start))
        reached = max(reached, end)
    busy = reached - sum(end - start for start, end in pauses)
    long = [(start, end) for start, end in pauses if end - start > busy / 10]
    kept = busy / 50

    def moved(time: float) -> float:
        return time - sum(end - start - kept for start, end in long if end <= time)

    return [(moved(start), moved(end)) for start, end in spans], [moved(end) - kept / 2 for _, end in long]


def lanes_of(spans: Sequence[tuple[float, float]]) -> list[int]:
    """A line for each span, in order of their beginning, so that those of one line do not overlap; as few as can be."""
    free_at: list[float] = []
    lanes = []
    for start, end in spans:
        lane = next((k for k, free in enumerate(free_at) if free <= start + 1e-9), len(free_at))
        free_at[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes
