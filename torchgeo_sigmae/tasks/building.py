# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From the arguments of a task to its model, whoever's weights it starts from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from timm.models import VisionTransformer
from torch import Tensor
from torchvision.models._api import WeightsEnum

from ..bands import Sensor
from ..models import (
    MaskedAutoencoder,
    S2MAEViT,
    SatMAEViT,
    SpectralViT,
    Stage,
    build_encoder,
    encoder_arguments,
    group_bands,
    layout_of,
    load_encoder_weights,
    load_stage,
    parse_stage,
    read_weights,
)

__all__ = ('build_model', 'encoder_settings', 'family')


def family(model: str) -> str:
    """Tell whose encoder a name is.

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
    weights: WeightsEnum | str | bool | None,
    previous: WeightsEnum | str | None,
) -> tuple[MaskedAutoencoder, Stage | None]:
    """Build the model of a task, and load what it starts from.

    Args:
        hparams: Arguments of the task.
        bands: Canonical names of the bands the model sees.
        sensor: Their sensor.
        weights: Initial encoder weights, if any.
        previous: The stage of pretraining before this one, if any.

    Returns:
        The model, and the stage before.

    Raises:
        ValueError: If arguments do not go with each other or with what is loaded.
        FileNotFoundError: If there is no such file.
    """
    if weights is True:
        raise ValueError(
            "weights: True would mean timm's own weights, which are for "
            'three bands. Pass the path of an exported encoder, a weight enum or '
            'its string, or None.'
        )
    if weights and previous:
        raise ValueError(
            'weights, previous: both given, but a stage brings its encoder along. '
            'Pass one of them.'
        )
    arguments = _asked(hparams, bands, sensor)
    stage = given = None
    if previous:
        stage = parse_stage(previous, hparams['model']).for_bands(bands, sensor)
        arguments = _go_on(hparams, arguments, stage.encoder, stage.known)
    elif weights:
        given = read_weights(weights)
        known = given.hyper_parameters
        arguments = _go_on(hparams, arguments, given.state_dict, known)
    encoder = build_encoder(hparams['model'], len(bands), hparams['size'], **arguments)
    if weights:
        load_encoder_weights(encoder, weights, bands, sensor, given)
    model = MaskedAutoencoder(
        encoder,
        hparams['decoder'],
        hparams['decoder_dim'],
        hparams['decoder_depth'],
        hparams['decoder_num_heads'],
        len(hparams['indices']) if hparams['spectral_weight'] else None,
    )
    if stage is not None:
        load_stage(model, stage)
    return model, stage


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


def _asked(
    hparams: Mapping[str, Any], bands: tuple[str, ...], sensor: Sensor
) -> dict[str, Any]:
    """What S2MAE's and SatMAE's encoders take; refused for others."""
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


def _go_on(
    hparams: Mapping[str, Any],
    arguments: dict[str, Any],
    state_dict: Mapping[str, Tensor],
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Take over cubes or groups of an encoder; refuse others than its own."""
    own = encoder_arguments(state_dict)
    asked: dict[str, Any] = {
        name: arguments[name]
        for name in ('cube_bands', 'groups')
        if name in arguments and hparams[name] is not None
    }
    if 'positions' in known and 'positions' in arguments:
        own['positions'] = known['positions']
        asked['positions'] = arguments['positions']
    for name, value in asked.items():
        if name in own and _listed(value) != _listed(own[name]):
            raise ValueError(
                f'{name}: {value!r}, but the encoder goes on with {own[name]!r}. Pass '
                'that, or train from scratch.'
            )
    return {**arguments, **own} if arguments else arguments


def _listed(value: Any) -> Any:
    """Nested tuples as lists, to compare with what a configuration holds."""
    return [*map(_listed, value)] if isinstance(value, list | tuple) else value
