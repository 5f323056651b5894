"""Which worker trained which trial when, as a figure."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from html import escape

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures.style import QUIET, STATE_COLOURS, finish
from cifar_sweep.study.record import TrialRecord

LANE_PIXELS = (6, 22)  # the height of a line: at least, and at most
FEW_LANES_PIXELS = 300  # lines are as high as they may be until all are so high
MOST_LANES_PIXELS = 520  # a figure higher than that does not fit on a screen

Span = tuple[datetime, datetime]


def timeline(trials: Sequence[TrialRecord]) -> go.Figure:
    """Which worker had which trial when: a block of lines for each worker, as many as it trained at once.

    Long stretches in which nothing ran are cut out, at the dotted lines. A trial that was interrupted is shown from
    when it was last taken up.
    """
    spans = {each.number: (each.started, each.ended) for each in trials if each.curve and each.started and each.ended}
    shown = [trial for trial in trials if trial.number in spans]
    shown.sort(key=lambda trial: (spans[trial.number][0], trial.number))
    names: dict[float, str] = {}
    lanes: dict[int, int] = {}
    first = 0
    for worker in dict.fromkeys(trial.worker for trial in shown):
        own = [trial.number for trial in shown if trial.worker == worker]
        places = lanes_of([spans[number] for number in own])
        lanes |= {number: first + place for number, place in zip(own, places, strict=True)}
        names[first + max(places) / 2] = escape(worker or "unknown worker")
        first += max(places) + 2  # a line stays empty between workers
    figure = go.Figure()
    for state in dict.fromkeys(trial.state for trial in shown):
        members = [trial for trial in shown if trial.state == state]
        figure.add_bar(
            orientation="h",
            base=[spans[trial.number][0].isoformat() for trial in members],
            x=[(end - start) / timedelta(milliseconds=1) for start, end in (spans[trial.number] for trial in members)],
            y=[lanes[trial.number] for trial in members],
            name=state,
            marker_color=STATE_COLOURS[state],
            customdata=[[trial.number, f"{trial.seconds:.0f}", escape(trial.device)] for trial in members],
            hovertemplate=f"trial %{{customdata[0]}}, {state}<br>%{{customdata[1]}} s of training on %{{customdata[2]}}"
            "<extra></extra>",
        )
    pauses = [[end.isoformat() for end in pause] for pause in long_pauses([spans[trial.number] for trial in shown])]
    for begin, _ in pauses:
        figure.add_vline(x=begin, line={"color": QUIET, "width": 1, "dash": "dot"})
    if shown:  # with breaks plotly would make it far too wide
        last = max(end for _, end in spans.values())
        figure.update_xaxes(range=[spans[shown[0].number][0].isoformat(), last.isoformat()])
    figure.update_xaxes(title="time", type="date", rangebreaks=[{"bounds": pause} for pause in pauses])
    ticks = {"tickvals": list(names), "ticktext": list(names.values())}
    figure.update_yaxes(**ticks, range=[first - 0.5, -0.8], showgrid=False)
    least, most = LANE_PIXELS
    pixels = min(MOST_LANES_PIXELS, max(least * first, min(most * first, FEW_LANES_PIXELS)))
    return finish(figure, height=110 + pixels, barmode="overlay", bargap=0.12)


def long_pauses(spans: Sequence[Span]) -> list[Span]:
    """The pauses between spans, in order of their beginning, that take more than a tenth of the busy time."""
    pauses: list[Span] = []
    busy, reached = timedelta(), spans[0][0] if spans else datetime.min
    for start, end in spans:
        if start > reached:
            pauses.append((reached, start))
        busy += max(end - max(start, reached), timedelta())
        reached = max(reached, end)
    return [(start, end) for start, end in pauses if end - start > busy / 10]


def lanes_of(spans: Sequence[Span]) -> list[int]:
    """The line of each span, in order of their beginning: spans of one line do not overlap, and lines are few."""
    free_at: list[datetime] = []
    lanes = []
    for start, end in spans:
        lane = next((k for k, free in enumerate(free_at) if free <= start), len(free_at))
        free_at[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes
