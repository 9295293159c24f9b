# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Replace a method of one object that belongs to somebody else.

TorchGeo's datamodules and tasks are used as they are: their class, and hence their
name in configurations and checkpoints, stays the same. A subclass made at run time
could not be pickled, which worker processes and spawned trainers need; an attribute of
the object that holds a partial of a module-level function can.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ('replace_method', 'restore_method')


def replace_method(
    instance: object, name: str, replacement: Callable[..., Any]
) -> None:
    """Replace a method of one object.

    Args:
        instance: The object.
        name: Name of the method.
        replacement: Called with the object, its original method, and the arguments of
            the call. Replacing twice by the same function changes nothing.
    """
    current = vars(instance).get(name)
    if getattr(current, 'func', None) != replacement:
        original = getattr(instance, name)
        vars(instance)[name] = partial(replacement, instance, original)


def restore_method(
    instance: object, name: str, replacement: Callable[..., Any]
) -> None:
    """Undo :func:`replace_method`, if it is still this replacement."""
    if getattr(vars(instance).get(name), 'func', None) == replacement:
        del vars(instance)[name]
