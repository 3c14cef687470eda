"""How Sphinx builds the site; docs/README.md says how to call it."""

import pathlib
import re
import sys
import tomllib

DOCS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_ext"))
_PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_VERSION = re.search(r'__version__ = "(.+?)"', (DOCS.parent / "mvp_jax" / "__init__.py").read_text(encoding="utf-8"))
assert _VERSION

project = "mvp_jax"
author = "The authors of mvp_jax"
release = version = _VERSION[1]
repository_address = _PROJECT.get("urls", {}).get("Repository", "")

extensions = [
    "myst_nb",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "name_links",
    "repository_links",
    "gallery_pages",
]
exclude_patterns = ["README.md", "_*"]

# Markdown and notebooks
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
# The gallery shows the outputs that the notebooks hold: none as they are committed, all after CI has executed them.
nb_execution_mode = "off"
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Reference
add_module_names = False
python_maximum_signature_line_length = 100
python_trailing_comma_in_multi_line_signatures = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
modindex_common_prefix = ["mvp_jax."]

# HTML
html_theme = "sphinx_book_theme"
html_title = "mvp_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "max_navbar_depth": 4,
    "collapse_navbar": True,  # each page lists its own branch alone; nine tenths of the build went into listing all
    "navigation_with_keys": False,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "path_to_docs": "docs",
    "repository_branch": "main",
} | ({"repository_url": repository_address, "use_repository_button": True} if repository_address else {})
