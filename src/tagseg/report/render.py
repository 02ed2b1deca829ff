"""Render pages from templates, as self-contained HTML with the shared style and script."""

import base64
import hashlib
from typing import Any

import jinja2
from markupsafe import Markup

from tagseg._version import __version__


def templates() -> jinja2.Environment:
    """Return the templates of report/templates, which escape every value and fail on a missing one."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("tagseg.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(template: str, styles: tuple[str, ...] = (), scripts: tuple[str, ...] = (), **values: Any) -> str:
    """Return the HTML of a template that extends base.html.j2; it escapes every value and loads nothing from outside.

    Args:
        template: a file name in report/templates.
        styles: the page's own style sheets, after the one that all pages share.
        scripts: the page's own scripts, after the one that all pages share.
        values: the template's values.
    """
    environment = templates()
    style = "\n".join(_source(environment, name) for name in ("style.css", *styles))
    script = "\n".join(_source(environment, name) for name in ("page.js", *scripts))
    return environment.get_template(template).render(
        # Only this exact script may run: even a name that was not escaped would never be executed.
        script=Markup(script),
        script_hash=_digest(script),
        style=Markup(style),
        style_hash=_digest(style),
        writer=__version__,
        **values,
    )


def css(colour: tuple[int, int, int]) -> str:
    """Return an RGB colour (0..255) as CSS."""
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0].strip()


def _digest(source: str) -> str:
    """Return the checksum that a page's content security policy uses for its style and its script."""
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")
