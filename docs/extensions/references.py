# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""References that find their target, and no public name without a page.

A type in a signature is named by the module that defines it, and a docstring names what
users import. Both lead to where the object is documented. A name in ``__all__`` of a
public module that is on no page is a warning, which our builds turn into errors.
"""

import importlib
import inspect
import pkgutil
from typing import Any

from docutils.nodes import Element
from inventories import ALIASES
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.typehints import record_typehints
from sphinx.util import logging

import torchgeo_sigmae

_LOGGER = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.setup_extension('sphinx.ext.autodoc')
    # Before intersphinx, which then looks for the new target.
    app.connect('missing-reference', _redirect, priority=100)
    app.connect('env-check-consistency', _check_complete)
    # After autodoc itself.
    app.connect('autodoc-process-signature', _take_types_of_init, priority=900)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}


def _redirect(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    """Point a reference to where its target is documented."""
    if node.get('refdomain') != 'py':
        return None
    target = node['reftarget'] = ALIASES.get(node['reftarget'], node['reftarget'])
    if not target.startswith('torchgeo_sigmae.'):
        return None
    domain = env.get_domain('py')
    wanted = _identity(target)
    for name in domain.objects if wanted else ():
        if name.rpartition('.')[2] == target.rpartition('.')[2] and (
            _identity(name) is wanted
        ):
            return domain.resolve_xref(
                env, node['refdoc'], app.builder, node['reftype'], name, node, content
            )
    return None


def _take_types_of_init(
    app: Sphinx, kind: str, name: str, value: Any, *rest: Any
) -> None:
    """Give parameters of a class their types.

    autodoc takes those of attributes of the same name, where a class annotates them.
    """
    if inspect.isclass(value) and inspect.isfunction(value.__init__):
        record_typehints(app, kind, name, value.__init__, *rest)


def _identity(name: str) -> Any:
    """The object of a dotted name, a function rather than the module of its name."""
    parts = name.split('.')
    for count in range(1, len(parts) + 1):
        try:
            found: Any = importlib.import_module('.'.join(parts[:count]))
        except ImportError:
            return None
        for part in parts[count:]:
            found = getattr(found, part, None)
        if found is not None:
            return found
    return None


def _public() -> dict[str, Any]:
    """Every name in ``__all__`` of a public module, with the object."""
    names = ['torchgeo_sigmae']
    names += [
        module.name
        for module in pkgutil.walk_packages(
            torchgeo_sigmae.__path__, 'torchgeo_sigmae.'
        )
        if not any(part.startswith('_') for part in module.name.split('.'))
    ]
    public = {}
    for name in names:
        module = importlib.import_module(name)
        for public_name in module.__all__:
            value = getattr(module, public_name)
            if not inspect.ismodule(value) and not public_name.startswith('__'):
                public[f'{name}.{public_name}'] = value
    return public


def _check_complete(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names without a page."""
    documented: dict[str, list[Any]] = {}
    for name in env.get_domain('py').objects:
        found = _identity(name)
        documented.setdefault(name.rpartition('.')[2], []).append(found)
    for name, value in _public().items():
        if not any(value is it for it in documented.get(name.rpartition('.')[2], ())):
            _LOGGER.warning('%s is public but on no page of docs/api', name)
