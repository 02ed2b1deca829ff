"""Pages from templates: self-contained HTML with the shared style and script."""

import base64
import hashlib
from typing import Any

import jinja2
from markupsafe import Markup

from tagseg import __version__


def templates() -> jinja2.Environment:
    """Return the templates of report/templates; what they show is escaped, and must be there."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("tagseg.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(template: str, styles: tuple[str, ...] = ("style.css",), **values: Any) -> str:
    """Return the HTML of a template that extends base.html.j2; every value is escaped, nothing is loaded from outside.

    Args:
        template: a file name in report/templates.
        styles: the style sheets to put into the page, in order.
        values: what the template shows.
    """
    environment = templates()
    script = _source(environment, "report.js")
    return environment.get_template(template).render(
        # Only this very script may run: a name that slipped through escaping would still be text.
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        style=Markup("\n".join(_source(environment, name) for name in styles)),
        writer=__version__,
        **values,
    )


def css(colour: tuple[int, int, int]) -> str:
    """Return a colour (RGB, 0..255) as CSS."""
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0].strip()
