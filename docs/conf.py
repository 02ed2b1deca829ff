"""How Sphinx builds the site: Markdown by MyST, the API from docstrings. Nothing is fetched, and a warning is an error.

    make docs

Sphinx and MyST are kept up (MkDocs 1 and Material for MkDocs are at their end, and what follows them is not at 1.0),
their pages need no web server, and the theme asks no other site for fonts or scripts.
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
    """Turn links to files of the repository, which the site does not hold: figures are on the page Benchmarks, of
    others the path remains. On a code host both are links."""

    def inside(link: re.Match[str]) -> str:
        words, path = link[1], os.path.normpath(link[2])
        figures = RESULTS.fullmatch(path)
        if figures:
            return f"[{words}](benchmarks.md#{figures[1]})"
        return words if words.strip("`") == path else f"{words} (`{path}`)"

    source[0] = LEAVES_DOCS.sub(inside, source[0])


def setup(app: Sphinx) -> None:
    """Register what turns links."""
    app.connect("source-read", keep_links_inside)
