"""The site: `tox -e docs` writes it to build/docs/html.

Sphinx, because the API pages come from the docstrings and every reference in them can be checked; MyST, because the
pages are Markdown that can also be read where the code is kept, and MyST-NB, because one is a notebook; furo, because
it is plain.
Nothing is fetched: neither from other sites while building nor by a page that is looked at.
"""

import sys
from pathlib import Path

from ftml_bench import __version__

sys.path.insert(0, str(Path(__file__).parent))  # this folder's own extensions

project = "ftml-bench"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "dark_figures", "docstrings", "mathml", "public_names"]
extensions += ["reference_tables", "result_files"]
nb_execution_mode = "off"  # the tutorial is shown as it was run; the tests run it

nitpicky = True  # a reference to a name of ours that does not exist is an error; other packages' are not looked up
nitpick_ignore_regex = [("py:.*", r"(?!ftml_bench\b).*")]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings write `names` in single quotes
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "ftml-bench"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
