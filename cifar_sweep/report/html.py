"""HTML pages that are whole in themselves: they open offline, in light and dark, on a phone.

Pages are the templates in `templates/`. Figures lie in them as JSON and are drawn when they come near the screen.
Text is escaped by Jinja, and within scripts by `in_script`.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from cifar_sweep.pages import rendered
from cifar_sweep.version import __version__

SIGNIFICANT_DIGITS = 6
# Within JSON these stand in texts only; written so, no text can end the script, begin a comment or break a line.
_IN_SCRIPT = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"})


@dataclass(frozen=True)
class Drawing:
    """A figure for a page. `json` can stand in a script; below `least_width`, in pixels, it scrolls sideways."""

    json: str
    height: int
    least_width: int = 0


def drawing(figure: go.Figure, *, height: int = 0, least_width: int = 0) -> Drawing:
    """A figure for a page: without its title, which the page has above it, and with its numbers rounded.

    Lengths are in pixels. `height` is the figure's own where it is not given.
    """
    plain = figure.to_dict()
    layout = plain["layout"]
    layout.pop("title", None)
    layout["margin"]["t"] = 10
    layout["autosize"] = True
    own = int(layout.pop("height", 400))
    short = json.loads(json.dumps(plain), parse_float=lambda digits: rounded(float(digits)))
    return Drawing(in_script(short), height or own, least_width)


def render(template: str, *, title: str, **facts: Any) -> str:
    """A page from a template with these facts."""
    # Its few other characters would make a browser hold all of it in two bytes a character: slower to read.
    plotly = get_plotlyjs().encode("ascii", "backslashreplace").decode()
    now = datetime.now(UTC)
    return rendered("report", template, title=title, version=__version__, written=now, plotly=plotly, **facts)


def in_script(value: Any) -> str:
    """Plain data as JSON that can stand in a page's script, whatever its texts are. Raises ValueError for NaN."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_IN_SCRIPT)


def rounded(number: float) -> float:
    """A number with as many digits as anybody sees."""
    return float(f"{number:.{SIGNIFICANT_DIGITS}g}")
