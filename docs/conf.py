"""The site: what is written in docs/ and at the top of the repository, the published notebooks, and the docstrings.

    python3 run.py site      # writes output/site/index.html; a warning is an error

The source folder is the repository, so that a link between two files of it is the same on the site and where the code
is hosted. Nothing that a page needs is elsewhere: formulas are MathML, and panels stand as their pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).parent))  # where site_links.py is

project = "apgd_teach"
author = "The apgd_teach authors"
copyright = "the apgd_teach authors; text CC BY 4.0, code MIT"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "site_links"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "docs/api/*.rst",
    "notebooks/*.ipynb",
    "benchmarks/*.md",
    "apgd_teach/data/bundle/LICENSES.md",
    "apgd_teach/data/cards/*.md",
]

myst_enable_extensions = ["dollarmath", "amsmath", "tasklist"]
myst_heading_anchors = 3
myst_dmath_allow_labels = False
nb_execution_mode = "off"  # they were run by `apgd-teach build`, which also saw to it that what they say is true
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # the published notebooks have pictures in the place of widgets
suppress_warnings = ["mystnb.unknown_mime_type"]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "ignore-module-all": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 100

html_theme = "furo"
html_title = "apgd_teach"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["root"]  # the first page, which leads to docs/index.html
html_copy_source = False
html_show_sourcelink = False
