"""The site: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import generated  # noqa: E402

from nas import __version__  # noqa: E402

project = "millinas"
author = "the millinas contributors"
copyright = author
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "millinas"
html_css_files = ["site.css"]
html_static_path = ["_static"]
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown as they are stored; the tests run them
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # of Plotly: figures without a picture beside them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100


def setup(app: Any) -> None:
    """Fill in what pages take from the code, before they are parsed."""

    def fill(app: Any, page: str, source: list[str]) -> None:
        if not page.startswith("notebooks/"):
            source[0] = generated.filled(source[0])

    app.connect("source-read", fill)
