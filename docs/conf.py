# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Sphinx configuration."""

import os
import sys
from pathlib import Path

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE / 'extensions')]

from inventories import INVENTORIES, UNDOCUMENTED, write_inventories  # noqa: E402

from torchgeo_sigmae._version import __version__  # noqa: E402

project = 'torchgeo-sigmae'
author = 'torchgeo-sigmae contributors'
copyright = '2026, torchgeo-sigmae contributors'
release = version = __version__

extensions = [
    # Markdown pages and the notebooks of tutorials/.
    'myst_nb',
    'references',
    'sphinx.ext.autodoc',
    'sphinx.ext.intersphinx',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
exclude_patterns = ['_build']
html_theme = 'pydata_sphinx_theme'
html_title = f'torchgeo-sigmae {version}'
html_show_sourcelink = False
# All sections at the left of every page: the theme's own navigation at the top names
# a few pages and hides the others in a menu.
html_sidebars = {'**': ['globaltoc.html']}
html_theme_options = {'navbar_center': []}

# A reference that leads nowhere is a warning, and warnings are errors.
nitpicky = True
nitpick_ignore = UNDOCUMENTED
if os.environ.get('SIGMAE_DOCS_ONLINE') == '1':
    intersphinx_mapping = {
        name: (address, None) for name, (address, _) in INVENTORIES.items()
    }
else:
    intersphinx_mapping = write_inventories(_HERE / '_build' / 'inventories')

autoclass_content = 'both'
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
# Shown as they were run, by docs/tutorials/execute.py.
nb_execution_mode = 'off'
