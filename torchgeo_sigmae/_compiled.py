# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Modules that ``torch.compile`` wrapped: one name a parameter, wrapped or not.

``torch.compile(module)`` returns a module that holds the original as ``_orig_mod``. Its
state dict has ``_orig_mod.`` in every key, which no other task can load.
"""

from itertools import chain
from typing import Any

from torch import nn

__all__ = ('keep_plain_keys', 'plain_key', 'unwrap')

_WRAPPER = '_orig_mod'


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, or the module itself."""
    return dict(module.named_children()).get(_WRAPPER, module)


def plain_key(key: str) -> str:
    """Remove the wrapper from the name of a parameter."""
    return '.'.join(part for part in key.split('.') if part != _WRAPPER)


def keep_plain_keys(module: nn.Module) -> None:
    """Let a module save plain keys, and load plain keys as well as wrapped ones."""
    if not getattr(module, '_keeps_plain_keys', False):
        module.register_state_dict_post_hook(_save_plain)
        module.register_load_state_dict_pre_hook(_load_any)
        setattr(module, '_keeps_plain_keys', True)  # noqa: B010


def _save_plain(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: object
) -> None:
    """Rename the keys of a state dict in place."""
    if any(_WRAPPER in key for key in state_dict):
        renamed = {plain_key(key): value for key, value in state_dict.items()}
        state_dict.clear()
        state_dict.update(renamed)


def _load_any(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Rename keys to those of the module as it is compiled now."""
    names = chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    current = {plain_key(f'{prefix}{name}'): f'{prefix}{name}' for name, _ in names}
    for key in list(state_dict):
        plain = plain_key(key)
        if (name := current.get(plain, plain)) != key:
            state_dict[name] = state_dict.pop(key)
