"""How Sphinx builds the pages; they build without a network."""

from __future__ import annotations

import torchimize

project = "torchimize"
author = "the torchimize authors"
copyright = "2026, the torchimize authors"  # Sphinx asks for this name
version = release = torchimize.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"torchimize {release}"

# The docstrings give types with shapes and dtypes; the annotations would say less, and again.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
add_module_names = False
python_use_unqualified_type_names = True

napoleon_google_docstring = False
# Fields instead of directives: an attribute described in its class's docstring and found again as
# a member would otherwise be two descriptions of one object, which is a warning.
napoleon_use_ivar = True
