# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From the arguments of a task to its model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from timm.models import VisionTransformer
from torchvision.models._api import WeightsEnum

from ..bands import Sensor
from ..models import (
    MaskedAutoencoder,
    S2MAEViT,
    SatMAEViT,
    SpectralViT,
    build_encoder,
    encoder_arguments,
    group_bands,
    layout_of,
)
from ..weights import Weights, load_weights, read_weights
from ..weights.adapt import weights_for_bands

__all__ = ('build_model', 'encoder_settings', 'family')


def family(model: str) -> str:
    """Name the method that an encoder belongs to.

    Args:
        model: Name of the encoder.

    Returns:
        ``'s2mae'``, ``'satmae'``, or ``'sigmae'`` for all others.
    """
    name = model.partition('_')[0]
    return name if name in {'s2mae', 'satmae'} else 'sigmae'


def build_model(
    hparams: Mapping[str, Any],
    bands: tuple[str, ...],
    sensor: Sensor,
    source: WeightsEnum | str | Path | bool | None,
) -> tuple[MaskedAutoencoder, dict[str, Any]]:
    """Build the model of a task, and load the weights it starts from.

    Args:
        hparams: Arguments of the task.
        bands: Canonical names of the bands the model sees.
        sensor: Their sensor.
        source: The argument ``weights`` of the task.

    Returns:
        The model, and the information about the weights; empty without weights.

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
    arguments = _spectral_arguments(hparams, bands, sensor)
    if source:
        weights = weights_for_bands(read_weights(source), (bands, sensor))
        arguments = _continued(hparams, arguments, weights)
    encoder = build_encoder(hparams['model'], len(bands), hparams['size'], **arguments)
    model = MaskedAutoencoder(
        encoder,
        hparams['decoder'],
        hparams['decoder_dim'],
        hparams['decoder_depth'],
        hparams['decoder_num_heads'],
        len(hparams['indices']) if hparams['spectral_weight'] else None,
    )
    if weights is None:
        return model, {}
    load_weights(model, weights)
    return model, weights.info


def encoder_settings(
    encoder: VisionTransformer, bands: Sequence[str]
) -> dict[str, Any]:
    """List the arguments of a task that describe an encoder as it is.

    Args:
        encoder: The encoder.
        bands: Names of its bands.

    Returns:
        ``cube_bands`` or ``groups``, and ``positions``; nothing of a plain ViT.
    """
    if not isinstance(encoder, SpectralViT):
        return {}
    settings: dict[str, Any] = {'positions': encoder.positions}
    layout = layout_of(encoder)
    if isinstance(encoder, S2MAEViT):
        settings['cube_bands'] = layout.group_size
    if isinstance(encoder, SatMAEViT):
        settings['groups'] = layout.names(bands)
    return settings


def _spectral_arguments(
    hparams: Mapping[str, Any], bands: tuple[str, ...], sensor: Sensor
) -> dict[str, Any]:
    """Collect the arguments of S2MAE's and SatMAE's encoders; refused for others."""
    model = hparams['model']
    whose = family(model)
    for name, default, allowed in (
        ('cube_bands', None, ('s2mae',)),
        ('groups', None, ('satmae',)),
        ('positions', 'learnable', ('s2mae', 'satmae')),
    ):
        if hparams[name] != default and whose not in allowed:
            other = f'{allowed[0]}_vit_small_patch8'
            raise ValueError(
                f'{name}: {hparams[name]!r} means nothing to model={model!r}. Leave '
                f'{name} out, or use model={other!r}.'
            )
    match whose:
        case 's2mae':
            _check_order(bands, sensor)
            own: dict[str, Any] = {'cube_bands': hparams['cube_bands']}
        case 'satmae':
            own = {'groups': group_bands(bands, sensor, hparams['groups'])}
        case _:
            return {}
    return {**own, 'positions': hparams['positions']}


def _check_order(bands: tuple[str, ...], sensor: Sensor) -> None:
    """Warn where the bands of a cube are no neighbours in the spectrum."""
    wavelengths = [sensor.band(name).wavelength for name in bands]
    if wavelengths != sorted(wavelengths):
        order = [bands[i] for i in np.argsort(wavelengths)]
        rank_zero_warn(
            f'bands: {list(bands)} are not in the order of their wavelengths, so cubes '
            f'hold bands that are no neighbours. Pass bands={order}.'
        )


def _continued(
    hparams: Mapping[str, Any], arguments: dict[str, Any], weights: Weights
) -> dict[str, Any]:
    """Take over cubes, groups and positions of weights; refuse contradictions."""
    stored = {
        name: value
        for name, value in encoder_arguments(weights.encoder).items()
        if name in arguments
    }
    if not stored:
        return arguments
    asked = {name: arguments[name] for name in stored if hparams[name] is not None}
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
    """The kind of positions; if the file does not tell, what its tensors allow."""
    joint = bool(weights.encoder['joint_positions'])
    possible = asked if joint == (asked == 'vanilla') else 'learnable'
    return str(weights.info.get('positions', 'vanilla' if joint else possible))


def _as_lists(value: Any) -> Any:
    """Nested tuples as lists, to compare with the values of a configuration."""
    return [*map(_as_lists, value)] if isinstance(value, list | tuple) else value
