# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The encoder of a task: its arguments, and the weights it starts from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from timm.models import VisionTransformer
from torchvision.models._api import WeightsEnum

from ..bands import BandSet
from ..models import (
    S2MAEViT,
    SatMAEViT,
    SIGMAEViT,
    build_encoder,
    encoder_arguments,
)
from ..models.embeddings import group_bands
from ..models.mae import layout_of
from ..weights import Weights, read_weights
from ..weights.adapt import weights_for_bands

__all__ = ('encoder_settings', 'family', 'start_encoder')

#: Arguments of our encoders, by the start of their names.
_ARGUMENTS = {
    'sigmae': ('positions',),
    's2mae': ('cube_bands', 'positions'),
    'satmae': ('groups', 'positions'),
}


def family(model: str) -> str:
    """The method an encoder belongs to: s2mae, satmae, or sigmae for all others."""
    name = model.partition('_')[0]
    return name if name in _ARGUMENTS else 'sigmae'


def start_encoder(
    model: str,
    bands: BandSet,
    size: int | None,
    encoder_kwargs: Mapping[str, Any],
    source: WeightsEnum | str | Path | bool | None,
) -> tuple[VisionTransformer, Weights | None]:
    """Build the encoder of a task, and read the weights it starts from.

    The arguments are those of the task; *source* is its ``weights``.

    Returns:
        The encoder, its weights not loaded yet; the weights, if there are any.

    Raises:
        ValueError: If arguments do not fit each other or the weights.
        FileNotFoundError: If there is no such file.
    """
    if source is True:
        raise ValueError(
            "weights: True would mean timm's own weights, which are for three bands. "
            'Pass the path of an exported encoder, a weight enum or its string, or '
            'None.'
        )
    weights = None
    arguments = _encoder_arguments(model, encoder_kwargs, bands)
    if source:
        weights = weights_for_bands(read_weights(source), bands)
        arguments = _continued(encoder_kwargs, arguments, weights)
    return build_encoder(model, len(bands), size, **arguments), weights


def encoder_settings(
    encoder: VisionTransformer, bands: Sequence[str]
) -> dict[str, Any]:
    """The ``encoder_kwargs`` that describe an encoder; nothing of a plain ViT."""
    if not isinstance(encoder, SIGMAEViT):
        return {}
    settings: dict[str, Any] = {'positions': encoder.positions}
    layout = layout_of(encoder)
    if isinstance(encoder, S2MAEViT):
        settings['cube_bands'] = layout.group_size
    if isinstance(encoder, SatMAEViT):
        settings['groups'] = layout.names(bands)
    return settings


def _encoder_arguments(
    model: str, given: Mapping[str, Any], bands: BandSet
) -> dict[str, Any]:
    """Collect the arguments of our encoders; refuse others."""
    name = model.partition('_')[0]
    allowed = _ARGUMENTS.get(name, ())
    for argument, value in given.items():
        if argument not in allowed:
            owners = [owner for owner, names in _ARGUMENTS.items() if argument in names]
            advice = f'Leave {argument} out'
            if owners:
                advice += f', or use model={f"{owners[0]}_vit_small_patch8"!r}'
            raise ValueError(
                f'encoder_kwargs: {argument}={value!r} means nothing to '
                f'model={model!r}. {advice}.'
            )
    if not allowed:
        return {}
    usual = 'rotary' if name == 'sigmae' else 'learnable'
    arguments = {'positions': given.get('positions', usual)}
    if 'cube_bands' in allowed:
        _warn_of_order(bands)
        return {**arguments, 'cube_bands': given.get('cube_bands')}
    if 'groups' in allowed:
        return {**arguments, 'groups': group_bands(bands, given.get('groups'))}
    return arguments


def _warn_of_order(bands: BandSet) -> None:
    """Warn where the bands of a cube are no neighbors in the spectrum."""
    wavelengths = [wavelength for wavelength in bands.wavelengths if wavelength]
    if len(wavelengths) == len(bands) and wavelengths != sorted(wavelengths):
        order = [bands[i] for i in np.argsort(wavelengths)]
        rank_zero_warn(
            f'bands: {list(bands)} are not in the order of their wavelengths, so cubes '
            f'hold bands that are no neighbors. Pass bands={order}.'
        )


def _continued(
    given: Mapping[str, Any], arguments: dict[str, Any], weights: Weights
) -> dict[str, Any]:
    """Take over cubes, groups and positions of weights; refuse contradictions."""
    stored = {
        name: value
        for name, value in encoder_arguments(weights.encoder).items()
        if name in arguments
    }
    spectral = 'joint_positions' in weights.encoder
    if not arguments or spectral == (set(arguments) == {'positions'}):
        # Weights of another family are refused when they are loaded.
        return arguments
    asked = {name: arguments[name] for name in stored if given.get(name) is not None}
    if stored or 'positions' in given:
        asked['positions'] = arguments['positions']
    stored['positions'] = _positions_of(weights, arguments['positions'])
    for name, value in asked.items():
        if _as_lists(value) != _as_lists(stored[name]):
            raise ValueError(
                f'{name}: {value!r}, but the encoder goes on with {stored[name]!r}. '
                'Pass that, or train from scratch.'
            )
    return {**arguments, **stored}


def _positions_of(weights: Weights, asked: str) -> str:
    """The kind of positions; if the file does not say, what its tensors allow."""
    if 'joint_positions' not in weights.encoder:
        return 'rotary' if 'rotary_positions' in weights.encoder else 'learnable'
    joint = bool(weights.encoder['joint_positions'])
    possible = asked if joint == (asked == 'vanilla') else 'learnable'
    return str(weights.info.get('positions', 'vanilla' if joint else possible))


def _as_lists(value: Any) -> Any:
    """Nested tuples as lists, to compare with the values of a configuration."""
    return [*map(_as_lists, value)] if isinstance(value, list | tuple) else value
