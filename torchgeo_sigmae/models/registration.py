# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Our names in segmentation-models-pytorch and in TorchGeo's model registry.

Neither has a function to register with, only tables. If a table has changed, a warning
says what is unavailable, and everything else works.
"""

import functools
import warnings
from collections.abc import Callable, MutableMapping
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torchgeo.models
from timm.models import VisionTransformer
from torchvision.models._api import WeightsEnum

from .pyramid import PYRAMIDS
from .registry import NAMES

__all__ = ('build_model', 'register', 'register_weights')

#: Keys of an entry of smp's table.
_SMP_ENTRY = {'encoder', 'params', 'pretrained_settings'}


def build_model(
    model: str, weights: WeightsEnum | None = None, **kwargs: Any
) -> VisionTransformer:
    """Build one of our encoders as TorchGeo's model builders do.

    ``torchgeo.models.get_model(name, weights=..., **kwargs)`` calls it. *kwargs* are
    those of :func:`timm.create_model`. With *weights*, ``in_chans`` defaults to theirs,
    and all but the head is pretrained.
    """
    if weights is None:
        return timm.create_model(model, **kwargs)
    made_for = weights.meta['model']
    if made_for != model:
        raise ValueError(
            f'weights: {weights} was made for {made_for!r}, not for {model!r}. Use '
            f'model={made_for!r}.'
        )
    kwargs.setdefault('in_chans', weights.meta['in_chans'])
    encoder = timm.create_model(model, **kwargs)
    missing, unexpected = encoder.load_state_dict(
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True),
        strict=False,
    )
    missing = set(missing) - {'head.weight', 'head.bias'}
    if missing or unexpected:
        raise ValueError(
            f'weights: {weights} does not fit {model!r} built with {kwargs}: missing '
            f'{sorted(missing)}, unexpected {unexpected}. Drop the arguments that '
            'change the architecture.'
        )
    return encoder


#: TorchGeo looks weights up by builder as well, so each name has one builder for good.
_BUILDERS: dict[str, Callable[..., VisionTransformer]] = {
    name: functools.partial(build_model, name) for name in NAMES
}


def register() -> None:
    """Make our names known to smp's models and to TorchGeo's model registry.

    Importing the package does this; a second call changes nothing. If a table has
    changed, a warning names what is unavailable.
    """
    encoders = _table(smp, 'encoders', 'encoders')
    if encoders is not None and not all(map(_is_smp_entry, encoders.values())):
        encoders = None
    models = _table(torchgeo.models, 'api', '_model')
    for name, architecture in NAMES.items():
        if encoders is not None:
            encoders[name] = {
                'encoder': PYRAMIDS[architecture.encoder],
                'params': {'model': name},
                'pretrained_settings': {},
            }
        if models is not None:
            models[name] = _BUILDERS[name]
    tables = {
        'our encoders in segmentation, change detection and pixelwise regression '
        '(segmentation_models_pytorch.encoders.encoders)': encoders,
        'our names in torchgeo.models.list_models and get_model '
        '(torchgeo.models.api._model)': models,
        'our weights in torchgeo.models.get_weight and get_model_weights '
        '(torchgeo.models.api._model_weights)': _table(
            torchgeo.models, 'api', '_model_weights'
        ),
    }
    unavailable = [use for use, table in tables.items() if table is None]
    if unavailable:
        warnings.warn(
            'torchgeo-sigmae could not register everything, because an installed '
            'package differs from what it knows. Unavailable: '
            f'{"; ".join(unavailable)}. Everything else works; a newer '
            'torchgeo-sigmae may bring it back.',
            stacklevel=2,
        )


def register_weights(weights: type[WeightsEnum]) -> None:
    """Make an enum of weights known to TorchGeo's registry, under all of our names."""
    # register() warns if the table is missing.
    table = _table(torchgeo.models, 'api', '_model_weights')
    if table is not None:
        for name, builder in _BUILDERS.items():
            table[builder] = table[name] = weights


def _table(owner: object, *path: str) -> MutableMapping[Any, Any] | None:
    """Find a table by its private name; None if it is gone or has changed."""
    for name in path:
        owner = getattr(owner, name, None)
    return owner if isinstance(owner, MutableMapping) else None


def _is_smp_entry(entry: object) -> bool:
    """Does an entry of smp's table have the keys we write?"""
    return isinstance(entry, MutableMapping) and set(entry) >= _SMP_ENTRY
