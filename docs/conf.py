"""Configuration of the documentation: Sphinx, MyST and numpydoc."""

from importlib.metadata import version as installed_version

project = "pymc-amortized"
author = "The pymc-amortized developers"
copyright = author
release = version = installed_version("pymc-amortized")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]

autosummary_generate = True
autodoc_default_options = {"members": True, "inherited-members": "Module"}
autodoc_member_order = "bysource"
# The docstrings hold the types, with shapes; the signatures stay readable without them.
autodoc_typehints = "none"
# autodoc lists the members of a class; numpydoc would list them a second time.
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = project
html_show_sourcelink = False
html_sidebars = {"index": [], "inside": []}
html_theme_options = {"show_prev_next": False}
