"""Numbers in words: parameters on a line, lengths of time, ranges of time."""

from collections.abc import Mapping
from typing import Any


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters on one line, floats with three significant digits."""
    shown = ((name, f"{value:.3g}" if isinstance(value, float) else value) for name, value in params.items())
    return " ".join(f"{name}={value}" for name, value in shown)


def duration(seconds: float) -> str:
    """A length of time for people: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def span(low: float, high: float) -> str:
    """A range of times for people: ``12 to 17 min``, ``50 s to 3 min``."""
    first, last = duration(low), duration(high)
    if first == last:
        return f"about {last}"
    number, _, unit = first.partition(" ")
    return f"{number} to {last}" if last.endswith(f" {unit}") else f"{first} to {last}"
