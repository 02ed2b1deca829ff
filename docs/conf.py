"""How Sphinx builds the site: Markdown by MyST, the API from docstrings. Nothing is fetched, and a warning is an error.

    make docs

Sphinx and MyST are maintained (MkDocs 1 and Material for MkDocs are not, and their successor has not reached 1.0). The
pages need no web server, and the theme loads no fonts or scripts from other sites.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]

project = "tagseg"
author = "tagseg contributors"
copyright = author
version = release = re.findall(r'__version__ = "(.+)"', (ROOT / "src/tagseg/_version.py").read_text("utf-8"))[0]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "literal"  # docstrings put names of Python between single backticks
highlight_language = "none"

myst_enable_extensions = ["attrs_block"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"tagseg {version}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False

LEAVES_DOCS = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")
RESULTS = re.compile(r"benchmarks/results/(\w+)\.(?:md|json)")


def keep_links_inside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace links to files of the repository, which are not part of the site: results become links to the page
    Benchmarks, other links become paths. On a code host both are links."""

    def inside(link: re.Match[str]) -> str:
        words, path = link[1], os.path.normpath(link[2])
        figures = RESULTS.fullmatch(path)
        if figures:
            return f"[{words}](benchmarks.md#{figures[1]})"
        return words if words.strip("`") == path else f"{words} (`{path}`)"

    source[0] = LEAVES_DOCS.sub(inside, source[0])


def setup(app: Sphinx) -> None:
    """Register the function that replaces links."""
    app.connect("source-read", keep_links_inside)
