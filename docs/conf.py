# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Sphinx configuration."""

from torchgeo_sigmae._version import __version__

project = 'torchgeo-sigmae'
author = 'torchgeo-sigmae contributors'
copyright = '2026, torchgeo-sigmae contributors'
release = version = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
exclude_patterns = ['_build']
html_theme = 'pydata_sphinx_theme'
html_title = f'torchgeo-sigmae {version}'
html_show_sourcelink = False

autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
# Names of these packages end in private modules that Sphinx cannot point to.
suppress_warnings = ['ref.python']
