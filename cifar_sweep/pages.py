"""Texts and pages from the templates of a room."""

from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from cifar_sweep.words import counted, duration, in_markdown, percent, plain


@cache
def templates(room: str, finalize: Callable[[Any], Any] | None = None) -> Environment:
    """A room's `templates/`: values are escaped in HTML, and go through `finalize`; the filter `md` is for Markdown."""
    found = Environment(
        loader=PackageLoader(f"cifar_sweep.{room}"),
        autoescape=select_autoescape(["html", "html.jinja"]),
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"counted": counted, "duration": duration, "md": in_markdown, "percent": percent, "plain": plain}
    found.filters["date"] = "{:%Y-%m-%d %H:%M}".format
    return found


def rendered(room: str, template: str, **facts: Any) -> str:
    """The text that a template makes of these facts."""
    return templates(room).get_template(template).render(facts)
