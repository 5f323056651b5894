"""Which worker trained which trial when, as a figure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures.style import QUIET, STATE_COLOURS, finish, time_unit
from cifar_sweep.study.record import TrialRecord

LANE_PIXELS = (6, 22)  # the height of a line: at least, and at most
FEW_LANES_PIXELS = 300  # lines are as high as they may be until all are so high
MOST_LANES_PIXELS = 520  # a figure higher than that does not fit on a screen

Span = tuple[float, float]


def timeline(trials: Sequence[TrialRecord]) -> go.Figure:
    """Which worker had which trial when: a block of lines for each worker, as many as it trained at once.

    Long stretches in which nothing ran are cut out, at the dotted lines. A trial that was interrupted is shown from
    when it was last taken up.
    """
    ended, spans = spans_of(trials)
    spans, cuts = without_pauses(spans)
    unit, factor = time_unit(max((end for _, end in spans), default=0.0))
    workers: dict[str, list[tuple[TrialRecord, Span]]] = defaultdict(list)
    for trial, span in zip(ended, spans, strict=True):
        workers[trial.worker or "unknown worker"].append((trial, span))
    figure = go.Figure()
    names: dict[float, str] = {}
    bars: dict[str, list[tuple[TrialRecord, Span, int]]] = defaultdict(list)
    first = 0
    for worker, entries in workers.items():
        lanes = lanes_of([span for _, span in entries])
        for (trial, span), lane in zip(entries, lanes, strict=True):
            bars[trial.state].append((trial, span, first + lane))
        names[first + max(lanes) / 2] = escape(worker)
        first += max(lanes) + 2  # a line stays empty between workers
    for state, members in bars.items():
        _add_bars(figure, state, members, factor)
    for place in cuts:
        figure.add_vline(x=place / factor, line={"color": QUIET, "width": 1, "dash": "dot"})
    figure.update_xaxes(title=f"time since the first trial, {unit}", rangemode="tozero")
    ticks = {"tickvals": list(names), "ticktext": list(names.values())}
    figure.update_yaxes(**ticks, range=[first - 0.5, -0.8], showgrid=False)
    least, most = LANE_PIXELS
    pixels = min(MOST_LANES_PIXELS, max(least * first, min(most * first, FEW_LANES_PIXELS)))
    return finish(figure, height=110 + pixels, barmode="overlay", bargap=0.12)


def _add_bars(figure: go.Figure, state: str, bars: Sequence[tuple[TrialRecord, Span, int]], factor: int) -> None:
    figure.add_bar(
        orientation="h",
        base=[round(start / factor, 3) for _, (start, _), _ in bars],
        x=[round((end - start) / factor, 3) for _, (start, end), _ in bars],
        y=[lane for *_, lane in bars],
        name=state,
        marker={"color": STATE_COLOURS[state], "line": {"width": 0}},
        customdata=[[trial.number, f"{trial.seconds:.0f}", escape(trial.device)] for trial, *_ in bars],
        hovertemplate=f"trial %{{customdata[0]}}, {state}<br>%{{customdata[1]}} s of training on %{{customdata[2]}}"
        "<extra></extra>",
    )


def spans_of(trials: Iterable[TrialRecord]) -> tuple[list[TrialRecord], list[Span]]:
    """The trials that were trained and have ended, in order of their beginning, with their spans.

    A span is a beginning and an end, in seconds since the first trial began.
    """
    times = [(trial.started, trial.number, trial.ended, trial) for trial in trials if trial.curve]
    ended = sorted((start, number, end, trial) for start, number, end, trial in times if start and end)
    zero = ended[0][0] if ended else None
    spans = [((start - zero).total_seconds(), (end - zero).total_seconds()) for start, _, end, _ in ended if zero]
    return [trial for *_, trial in ended], spans


def without_pauses(spans: Sequence[Span]) -> tuple[list[Span], list[float]]:
    """Shorten the long pauses between spans. Returns the spans and where the pauses were, in seconds.

    The spans are in order of their beginning. A pause is long if it takes more than a tenth of the busy time.
    """
    pauses: list[Span] = []
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


def lanes_of(spans: Sequence[Span]) -> list[int]:
    """The line of each span, in order of their beginning: spans of one line do not overlap, and lines are few."""
    free_at: list[float] = []
    lanes = []
    for start, end in spans:
        lane = next((k for k, free in enumerate(free_at) if free <= start + 1e-9), len(free_at))
        free_at[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes
