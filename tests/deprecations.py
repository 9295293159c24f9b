# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Deprecation warnings that our own calls cause are errors, wherever they point.

A filter sees the line a warning points at, and libraries often point at themselves.
Here the stack is looked at: who called the function that warns. Other Pythons that
tests start get filters for every module of ours (:func:`filters`).
"""

import functools
import pkgutil
import sys
import warnings
from types import FrameType
from typing import Any

import torchgeo_sigmae

KINDS = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)

#: Whose decorators warn in place of the function, which is not on the stack then.
DECORATORS = ('typing_extensions', 'warnings')

#: Modules that stand between a call and the function that warns, or warn for it.
BETWEEN = (
    'contextlib', 'functools', 'importlib', '_frozen_importlib', 'lightning_utilities',
    '_frozen_importlib_external', 'lightning.fabric.utilities.rank_zero',
    'lightning.pytorch.utilities.rank_zero', 'torch.nn.modules.module', __name__,
)  # fmt: skip


def refuse() -> None:
    """Make the deprecated calls of our package fail in this process."""
    own = warnings.warn
    if hasattr(own, 'refuses'):
        return

    @functools.wraps(own)
    def warn(
        message: Any, category: Any = None, stacklevel: int = 1, source: Any = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        kind = type(message) if isinstance(message, Warning) else category
        if kind and issubclass(kind, KINDS) and called_by_us(sys._getframe(1)):
            raise message if isinstance(message, Warning) else kind(message)
        # This function is one more on the stack.
        own(message, category, stacklevel + 1, source, **kwargs)

    warn.refuses = True  # type: ignore[attr-defined]
    warnings.warn = warn


def called_by_us(frame: FrameType | None) -> bool:
    """Whether the library whose function this is was called by our package."""
    if frame is not None and _is_in(frame, DECORATORS):
        frame = _out_of(frame, (*BETWEEN, *DECORATORS))
        return frame is not None and _is_in(frame, ('torchgeo_sigmae',))
    frame = _out_of(frame, BETWEEN)
    if frame is not None and not _is_in(frame, ('torchgeo_sigmae',)):
        library = frame.f_globals.get('__name__', '').split('.')[0]
        frame = _out_of(frame, (*BETWEEN, library))
    return frame is not None and _is_in(frame, ('torchgeo_sigmae',))


def filters() -> str:
    """Write ``PYTHONWARNINGS``, whose modules are whole names and no patterns."""
    found = pkgutil.walk_packages(torchgeo_sigmae.__path__, 'torchgeo_sigmae.')
    modules = ['torchgeo_sigmae', *(module.name for module in found)]
    # What is run with -m has this name.
    modules += ['__main__']
    return ','.join(
        f'error::{kind.__name__}:{module}' for module in modules for kind in KINDS
    )


def _out_of(frame: FrameType | None, modules: tuple[str, ...]) -> FrameType | None:
    while frame is not None and _is_in(frame, modules):
        frame = frame.f_back
    return frame


def _is_in(frame: FrameType, modules: tuple[str, ...]) -> bool:
    name = frame.f_globals.get('__name__') or ''
    return any(name == module or name.startswith(f'{module}.') for module in modules)
