# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From the arguments of a task to its encoder and its record in a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from timm.models import VisionTransformer
from torchvision.models._api import WeightsEnum

from .._compat import TORCHGEO_VERSION
from ..bands import BandSet
from ..masking import MaskSchedule
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
from ..transforms.indices import DEFAULT_INDICES, get_index
from ..weights import Weights, read_weights
from ..weights.adapt import weights_for_bands
from .statistics import BatchStatistics

__all__ = ('choose_masking', 'describe_encoder', 'encoder_settings', 'start_encoder')

#: Arguments of the encoders with several tokens per patch position, by family.
_ARGUMENTS = {'s2mae': ('cube_bands', 'positions'), 'satmae': ('groups', 'positions')}


def _family(model: str) -> str:
    """The method an encoder belongs to: s2mae, satmae, or sigmae for all others."""
    name = model.partition('_')[0]
    return name if name in _ARGUMENTS else 'sigmae'


def choose_masking(hparams: dict[str, Any], bands: BandSet) -> None:
    """Set ``indices`` and ``masking`` to what the bands allow, where they are None.

    Raises:
        ValueError: If the spectral target has no index.
    """
    if hparams['indices'] is None:
        allowed = [name for name in DEFAULT_INDICES if _computable(name, bands)]
        hparams['indices'] = allowed
        missing = [name for name in DEFAULT_INDICES if name not in allowed]
        if missing and hparams['masking'] != 'random':
            rank_zero_info(
                f'indices: {allowed or "none"}, since the bands {list(bands[:13])} do '
                f'not allow {", ".join(missing)}.'
            )
    if hparams['masking'] is None:
        hparams['masking'] = 'saliency' if hparams['indices'] else 'random'
        if not hparams['indices']:
            rank_zero_info("masking: 'random', since no index can guide it.")
    if hparams['spectral_weight'] and not hparams['indices']:
        raise ValueError(
            f'spectral_weight: {hparams["spectral_weight"]}, but the bands '
            f'{list(bands[:13])} allow no index. Pass indices=, or 0.'
        )


def _computable(name: str, bands: BandSet) -> bool:
    """Whether an index can be computed from bands."""
    needed = [bands.sensor.find(band) for band in get_index(name).bands]
    return all(band is not None and band.name in bands for band in needed)


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
    if not isinstance(encoder, SpectralViT):
        return {}
    settings: dict[str, Any] = {'positions': encoder.positions}
    layout = layout_of(encoder)
    if isinstance(encoder, S2MAEViT):
        settings['cube_bands'] = layout.group_size
    if isinstance(encoder, SatMAEViT):
        settings['groups'] = layout.names(bands)
    return settings


def describe_encoder(
    hparams: Mapping[str, Any],
    model: MaskedAutoencoder,
    bands: BandSet,
    statistics: BatchStatistics,
    schedule: MaskSchedule,
    trained_on: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Collect what a file has to say about an encoder, in plain values."""
    copied = (
        *('model', 'norm_pix_loss', 'spectral_weight', 'band_dropout'),
        *('target', 'masking'),
    )
    return {
        **{name: hparams[name] for name in copied},
        'in_channels': len(bands),
        'bands': list(bands),
        'sensor': bands.sensor.plain(),
        'mean': statistics.model_mean,
        'std': statistics.model_std,
        'scale': statistics.scale,
        'offset': statistics.offset,
        'size': model.encoder.patch_embed.img_size[0],
        'patch_size': model.patch_size,
        'torchgeo_version': TORCHGEO_VERSION,
        'trained_on': list(trained_on),
        'ssl_method': _family(hparams['model']),
        'positions': hparams['encoder_kwargs'].get('positions', 'learnable'),
        'mask_ratio': schedule.ratio_at(1.0),
        'groups': model.layout.names(bands),
    }


def _encoder_arguments(
    model: str, given: Mapping[str, Any], bands: BandSet
) -> dict[str, Any]:
    """Collect the arguments of S2MAE's and SatMAE's encoders; refuse others."""
    allowed = _ARGUMENTS.get(_family(model), ())
    for name, value in given.items():
        if name not in allowed:
            owners = [owner for owner, names in _ARGUMENTS.items() if name in names]
            advice = f'Leave {name} out'
            if owners:
                advice += f', or use model={f"{owners[0]}_vit_small_patch8"!r}'
            raise ValueError(
                f'encoder_kwargs: {name}={value!r} means nothing to model={model!r}. '
                f'{advice}.'
            )
    if not allowed:
        return {}
    arguments = {'positions': given.get('positions', 'learnable')}
    if 'cube_bands' in allowed:
        _warn_of_order(bands)
        return {**arguments, 'cube_bands': given.get('cube_bands')}
    return {**arguments, 'groups': group_bands(bands, given.get('groups'))}


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
    if not stored:
        return arguments
    asked = {name: arguments[name] for name in stored if given.get(name) is not None}
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
