"""The texts of an export, made from `templates/`."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(template: str, **facts: Any) -> str:
    """The text that a template makes of `facts`; in HTML they are escaped."""
    environment = Environment(
        loader=PackageLoader("cifar_sweep.exports"),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(facts)
