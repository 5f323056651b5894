"""Values and numbers in words."""

import re
from collections.abc import Mapping
from typing import Any

from cifar_sweep.parameters import Value

_MARKED_UP = re.compile(r"([\\`*_\[\]<>|~&$])")


def in_markdown(text: str) -> str:
    """A text on one line that Markdown shows as it is."""
    return _MARKED_UP.sub(r"\\\1", line(" ".join(text.split())))


def line(text: str) -> str:
    """A text on one line that a terminal and a file in UTF-8 take: escape sequences and halves of letters are shown."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return shown.encode(errors="backslashreplace").decode()


def percent(share: float) -> str:
    """A fraction in percent, without the sign."""
    return f"{100 * share:.2f}"


def plain(value: Value, digits: int = 4) -> str:
    """A parameter's value for people, floats with so many significant digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def counted(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
