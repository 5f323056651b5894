"""Figures on one HTML page, whole in itself: it opens offline, on a phone, on light and on dark ground."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from cifar_sweep.files import replace_file

# Within JSON these stand in texts only; written so, no text can end the script, begin a comment or break a line.
_IN_SCRIPT = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"})
# `!important`: plotly writes its colours at each element, where the reader's choice of light or dark is not known.
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #57606a; --ground: #ffffff; --line: #d0d7de; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --quiet: #a5adb6; --ground: #14171b; --line: #3a4149; }
}
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.25rem; overflow-wrap: anywhere; }
p { margin: 0 0 0.5rem; color: var(--quiet); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.figure { width: 100%; border-top: 1px solid var(--line); padding-top: 0.5rem; }
.figure .main-svg text { fill: var(--ink) !important; }
.figure .hovertext path { fill: var(--ground) !important; stroke: var(--quiet) !important; }
"""
# A finger on a figure scrolls the page; a mouse zooms in, and out with a double click.
_DRAW = """
const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
for (const [place, figure] of FIGURES.entries()) {
  const layout = { ...figure.layout, dragmode };
  Plotly.newPlot(`figure-${place + 1}`, figure.data, layout, { responsive: true, displayModeBar: false });
}
"""


def write_html(
    path: Path, figures: Sequence[tuple[str, str, go.Figure]], *, title: str, facts: Mapping[str, str]
) -> None:
    """Write figures, each with its title and an explanation, and facts about them, as one page.

    Args:
        path: the file to write.
        figures: title, explanation, figure.
        title: the page's.
        facts: what the numbers are of, such as data, device and commit, by name.

    Raises:
        DiskError: the file could not be written; what stood there before still stands.
    """
    sections = "\n".join(
        f"<section>\n<h2>{escape(heading)}</h2>\n<p>{escape(explanation)}</p>\n"
        f'<div class="figure" id="figure-{place}" role="img" aria-label="{escape(heading)}"></div>\n</section>'
        for place, (heading, explanation, _) in enumerate(figures, start=1)
    )
    known = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    drawings = in_script([figure.to_dict() for _, _, figure in figures])
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<dl>
{known}
</dl>
<noscript><p>The figures are drawn by JavaScript, which is off here.</p></noscript>
{sections}
</main>
<script>{get_plotlyjs()}</script>
<script>
const FIGURES = {drawings};
{_DRAW}</script>
</body>
</html>
"""
    replace_file(path, page.encode(errors="replace"))


def in_script(value: Any) -> str:
    """Plain data as JSON that can stand in a page's script, whatever its texts are.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_IN_SCRIPT)
