# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Sphinx configuration."""

import importlib
import inspect
import pkgutil

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.ext.autodoc.typehints import record_typehints
from sphinx.util import logging

import torchgeo_sigmae
from torchgeo_sigmae._version import __version__

project = 'torchgeo-sigmae'
author = 'torchgeo-sigmae contributors'
copyright = '2026, torchgeo-sigmae contributors'
release = version = __version__

extensions = [
    # Markdown pages and the notebooks of tutorials/.
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.intersphinx',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    # The cards of the landing page.
    'sphinx_design',
]
exclude_patterns = ['_build']
html_theme = 'pydata_sphinx_theme'
html_title = f'torchgeo-sigmae {version}'
html_show_sourcelink = False
html_static_path = ['_static']
templates_path = ['_templates']
html_css_files = ['custom.css']
# Formulas as MathML, which browsers draw without a script and a network; see setup.
html_math_renderer = 'mathml'
# All pages at the left of every page: the theme's own navigation at the top names a few
# pages and hides the others in a menu.
html_sidebars = {'**': ['pages.html']}
html_theme_options = {'navbar_center': []}

# A reference that leads nowhere is a warning, and warnings are errors. A build has no
# network: inventories/ lists every object of other projects that our pages refer to.
nitpicky = True
intersphinx_mapping = {
    name: (address, f'inventories/{name}.inv')
    for name, address in {
        'geopandas': 'https://geopandas.org/en/stable/',
        'lightning': 'https://lightning.ai/docs/pytorch/stable/',
        'matplotlib': 'https://matplotlib.org/stable/',
        'numpy': 'https://numpy.org/doc/stable/',
        'pyproj': 'https://pyproj4.github.io/pyproj/stable/',
        'python': 'https://docs.python.org/3/',
        'rasterio': 'https://rasterio.readthedocs.io/en/stable/',
        'torch': 'https://docs.pytorch.org/docs/stable/',
        'torchgeo': 'https://torchgeo.readthedocs.io/en/stable/',
        'xarray': 'https://docs.xarray.dev/en/stable/',
    }.items()
}
# Objects without a page in the documentation of their project.
nitpick_ignore = [
    ('py:class', 'affine.Affine'),
    ('py:class', 'torchgeo_sigmae.cli.parser.T'),
    ('py:class', 'jsonargparse._namespace.Namespace'),
    ('py:class', 'kornia.augmentation.container.augment.AugmentationSequential'),
    ('py:class', 'lightning.fabric.utilities.data.AttributeDict'),
    ('py:class', 'lightning.pytorch.cli.LightningArgumentParser'),
    ('py:class', 'lightning.pytorch.cli.SaveConfigCallback'),
    ('py:class', 'lightning.pytorch.utilities.types.LRSchedulerConfig'),
    ('py:class', 'lightning.pytorch.utilities.types.OptimizerConfig'),
    ('py:class', 'lightning.pytorch.utilities.types.OptimizerLRSchedulerConfig'),
    ('py:class', 'shapely.geometry.base.BaseGeometry'),
    ('py:class', 'timm.models.VisionTransformer'),
    ('py:class', 'timm.models.vision_transformer.VisionTransformer'),
    ('py:class', 'torchmetrics.metric.Metric'),
    ('py:class', 'torchvision.models._api.WeightsEnum'),
    ('py:exc', 'DatasetNotFoundError'),
    ('py:func', 'timm.create_model'),
]
nitpick_ignore_regex = [
    # Private names, and names that docstrings import from the top of the package.
    ('py:.*', r'torchgeo_sigmae(\.\w+)*\._\w+'),
    ('py:.*', r'torchgeo_sigmae\.\w+'),
]

autoclass_content = 'both'
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 3
# Shown as they were run, by docs/tutorials/execute.py.
nb_execution_mode = 'off'


def setup(app):
    """Register the renderer of formulas, a fix of autodoc and a check."""
    app.add_html_math_renderer('mathml', (visit_math, None), (visit_math_block, None))
    # After autodoc itself.
    app.connect('autodoc-process-signature', take_types_of_init, priority=900)
    app.connect('env-check-consistency', check_public_names)


def visit_math(self, node):
    """Write a formula in a sentence."""
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self, node):
    """Write a formula of its own."""
    self.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def take_types_of_init(app, kind, name, value, *rest):
    """Give the parameters of a class their types.

    autodoc takes those of attributes with the same names, if a class annotates them.
    """
    if inspect.isclass(value) and inspect.isfunction(value.__init__):
        record_typehints(app, kind, name, value.__init__, *rest)


def check_public_names(app, env):
    """Warn of public names of a package that are on no page."""
    # A constant is documented in the module that defines it.
    documented = {name.rpartition('.')[2] for name in env.get_domain('py').objects}
    for module in pkgutil.iter_modules(torchgeo_sigmae.__path__, 'torchgeo_sigmae.'):
        if module.ispkg:
            for name in {*importlib.import_module(module.name).__all__} - documented:
                logging.getLogger(__name__).warning(
                    '%s.%s is public but on no page of docs/api', module.name, name
                )
