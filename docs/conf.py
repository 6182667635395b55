"""The documentation's pages: `.venv/bin/sphinx-build -W docs docs/_build` writes docs/_build/index.html."""

from importlib import metadata

project = "medshard"
author = "The medshard authors"
release = metadata.version("medshard")

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = "medshard"
html_show_copyright = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]
