# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Layers of the transformers in a task: learning rates and stochastic depth."""

from typing import Any

from timm.layers import DropPath
from timm.models import group_parameters
from torch import nn

from .._compiled import unwrap
from ..optim import UNDECAYED

__all__ = ('find_transformers', 'parameter_groups', 'set_drop_path')


def find_transformers(module: nn.Module, prefix: str = '') -> dict[str, Any]:
    """Outermost timm models made of transformer blocks, by the prefix of their names.

    Recognized by what is needed of them, because timm has a dozen such classes.
    """
    if (compiled := unwrap(module)) is not module:
        return find_transformers(compiled, f'{prefix}_orig_mod.')
    blocks = getattr(module, 'blocks', None)
    if (
        isinstance(blocks, nn.Sequential | nn.ModuleList)
        and len(blocks)
        and all(hasattr(block, 'attn') for block in blocks)
        and hasattr(module, 'group_matcher')
    ):
        return {prefix: module}
    transformers: dict[str, Any] = {}
    for name, child in module.named_children():
        transformers |= find_transformers(child, f'{prefix}{name}.')
    return transformers


def parameter_groups(
    task: nn.Module, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Sort what is trained by its distance to the head, and by whether it decays.

    Args:
        task: The task, or any module that holds a timm transformer.
        lr: Learning rate of the head.
        weight_decay: Weight decay of matrices and kernels.
        layer_decay: Factor from each layer to the one below, in (0, 1].

    Returns:
        Parameter groups with ``name``, ``params``, ``lr`` and ``weight_decay``, from
        the lowest layer to the head. ``name`` is ``head``, ``head-1`` for the last
        block, and so on, with ``_no_decay`` for those without weight decay.

    Raises:
        ValueError: If all parameters are frozen.
    """
    distances: dict[str, int] = {}
    undecayed: set[str] = set()
    for prefix, transformer in find_transformers(task).items():
        if layer_decay != 1:
            for name, distance in _distances(transformer).items():
                distances[f'{prefix}{name}'] = distance
        if hasattr(transformer, 'no_weight_decay'):
            undecayed |= {f'{prefix}{name}' for name in transformer.no_weight_decay()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            token = name in undecayed or name.rpartition('.')[2] in UNDECAYED
            key = (-distances.get(name, 0), parameter.ndim > 1 and not token)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError(
            'freeze_backbone, freeze_decoder: everything is frozen, there is nothing '
            'to train. Leave one of them out.'
        )
    return [
        {
            'name': f'head{layer or ""}{"" if decays else "_no_decay"}',
            'params': parameters,
            'lr': lr * layer_decay**-layer,
            'weight_decay': weight_decay if decays else 0.0,
        }
        for (layer, decays), parameters in sorted(groups.items(), key=lambda g: g[0])
    ]


def set_drop_path(transformer: nn.Module, drop_path: float) -> None:
    """Set stochastic depth, growing linearly from 0 in the first block.

    Args:
        transformer: A timm transformer with ``blocks``.
        drop_path: Probability of the last block, in [0, 1).
    """
    blocks: Any = transformer.blocks
    for i, block in enumerate(map(unwrap, blocks)):
        rate = drop_path * i / max(len(blocks) - 1, 1)
        for name, _ in list(block.named_children()):
            if name.startswith('drop_path'):
                # No parameters in either, so that state dicts do not change.
                setattr(block, name, DropPath(rate) if rate else nn.Identity())


def _distances(transformer: nn.Module) -> dict[str, int]:
    """Layers from each parameter to the head: timm's layers, counted from the top.

    timm's own ``param_groups_layer_decay`` counts from the uppermost layer there is,
    which is the last block where a decoder, not a head, stands on top.
    """
    model: Any = transformer
    top = len(model.blocks) + 1
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    # Register tokens count as head in older timm.
    low = {name for name in layers if name.rpartition('.')[2] in UNDECAYED}
    return {
        name: top - (0 if name in low else min(layer, top))
        for name, layer in layers.items()
    }
