"""Sphinx configuration. Build the site with ``python -m sphinx -W docs site``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import pages  # noqa: E402 - next to this file

from plastibench import __version__  # noqa: E402

project = "plastibench"
copyright = "the plastibench authors"
release = version = __version__
html_theme = "furo"
html_title = f"plastibench {__version__}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["**/_*.md"]  # included in other pages
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
root_doc = "index"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
nitpicky = False
smartquotes = False  # `--every` would become a dash
default_role = "code"

pages.write(Path(__file__).parent)


def escape_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape bars in docstrings; see :func:`pages.without_substitutions`."""
    lines[:] = [pages.without_substitutions(line) for line in lines]


def setup(app: Any) -> None:
    """Register the hooks of the build."""
    app.connect("autodoc-process-docstring", escape_bars)
