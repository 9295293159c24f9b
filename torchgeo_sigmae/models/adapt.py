# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

r"""Weights for other bands, sensors and numbers of dates.

The first layer is linear, so every target channel may stand in for source bands: with
:math:`\hat x_c = \sum_t a_{tc} x_t` for source band c and target channels t,
:math:`W'_t = \sum_c a_{tc} W_c` makes the encoder compute on the target channels what
it computed on :math:`\hat x`. Every column of :math:`a` sums to one, so that
activations keep their scale, or to zero: the band is then seen at its mean, which is 0
after normalisation.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchvision.models._api import WeightsEnum

from ..bands import Sensor, get_sensor
from .checkpoint import EncoderCheckpoint, write_encoder
from .loading import read_weights
from .matching import METHODS, BandReport, match_bands, target_bands
from .spectrum import (
    BandsOf,
    adapt_cubes,
    adapt_groups,
    is_cubes,
    within_groups,
)

__all__ = ('adapt_bands', 'adapt_state')

_FIRST_LAYER = 'patch_embed.proj.weight'

#: What stays true of adapted weights, whatever their bands.
_KEPT = (
    'model',
    'size',
    'patch_size',
    'target',
    'positions',
    'trained_on',
    'norm_pix_loss',
    'ssl_method',
    'masking',
    'mask_ratio',
    'torchgeo_version',
)


def adapt_bands(
    weights: WeightsEnum | str | Path,
    bands: Sequence[str],
    path: str | Path,
    dates: int = 1,
    sensor: str | Sensor = 'sentinel2',
    method: str = 'auto',
) -> BandReport:
    """Write an encoder file for other bands, to pass to ``weights=``.

    A target band takes the weights of the source band of its name. With ``'auto'`` and
    ``'zero'`` it also takes those of source bands the target lacks by name, where it is
    the nearest within 4 % in wavelength: their weights are *added*, because the encoder
    is used to that light in both. (Landsat's near infrared stands in for B08 and B8A,
    and so does B08 where B8A is left out.) Target bands equally near share, which is
    their average. Nothing else is rescaled: the activations are those of the original
    encoder on an image whose remaining bands are at their mean, where they are 0.

    A band without counterpart (Landsat's thermal bands, B10 for weights without it)
    starts at zero. That disturbs nothing that was learned, and fine-tuning trains it;
    a frozen first layer ignores it.

    What was done is also logged, and kept in ``hyper_parameters['adapted_from']`` of
    the file. There, ``mean`` and ``std`` are carried for bands found by name and None
    for others, whose data have statistics of their own; ``scale`` and ``offset`` are
    carried within a sensor. The encoder expects every band with mean 0 and standard
    deviation 1.

    S2MAE's cubes share one kernel, which stays as it is; their positions in the
    spectrum are interpolated to the wavelengths of the target cubes, so the bands of a
    cube must divide the number of target bands. SatMAE's target bands join the group of
    the band they stand in for, else that of the nearest, and stand in for bands of that
    group only. Two dates become tokens of
    their own in both, and no weight is divided.

    Args:
        weights: A weight enum, its string, or the path of an encoder file whose
            ``hyper_parameters`` tell ``bands`` and ``sensor``.
        bands: Target bands of one date, in order and any spelling.
        path: The file to write, atomically; missing folders are made.
        dates: How many times the channels follow each other, at least 1. TorchGeo's
            early-fusion change models take two dates as ``2 * len(bands)`` channels.
            Weights are divided by it, so that equal dates give the activations of one.
        sensor: The sensor *bands* belong to.
        method: ``'auto'``; ``'name'`` to take bands by name and sensor alone, and
            refuse any other; ``'zero'`` to also let names the sensor does not know
            (``VV``, ``DEM``) start at zero.

    Returns:
        What was done, band by band.

    Raises:
        FileNotFoundError: If *weights* is neither a known enum nor a file.
        ValueError: If *weights* do not tell their bands, have no patch embedding, or
            were adapted to several dates; if a band is unknown to the sensor or given
            twice, or none has a counterpart; if *dates* or *method* is out of range; if
            *path* is the file of the weights.
        TypeError: If *bands* is one string instead of a sequence of names.
        RuntimeError: If the file of an enum was altered or damaged.
    """
    if method not in METHODS:
        raise ValueError(f'method: {method!r} is unknown. Use one of {METHODS}.')
    if dates < 1:
        raise ValueError(f'dates: {dates} must be at least 1. Pass 2 for image pairs.')
    if isinstance(weights, str | Path) and _is_same_file(weights, path):
        raise ValueError(
            f'path: {str(path)!r} is the file of the weights themselves. Pass another '
            'path; the original is needed to adapt to other bands.'
        )
    checkpoint = read_weights(weights)
    name = str(weights) if isinstance(weights, WeightsEnum) else Path(weights).name
    known = checkpoint.hyper_parameters
    target_sensor = get_sensor(sensor)
    target = target_bands(bands, target_sensor, method)
    _check_weights(name, checkpoint)
    source_sensor = _resolve(known['sensor'], target_sensor, name)
    source = source_sensor.spell(known['bands'])
    adapted, report = adapt_state(
        checkpoint.state_dict,
        (source, source_sensor),
        (target, target_sensor),
        method,
        dates,
    )
    _check_report(report, name, source, source_sensor, target_sensor, method)
    same = source_sensor.name == target_sensor.name
    write_encoder(
        EncoderCheckpoint(
            adapted,
            {
                **{key: known[key] for key in _KEPT if key in known},
                'in_channels': dates * len(target),
                'bands': list(target),
                'sensor': target_sensor.name,
                'dates': dates,
                'mean': _carry(known, 'mean', source, report),
                'std': _carry(known, 'std', source, report),
                'scale': known.get('scale') if same else None,
                'offset': known.get('offset') if same else None,
                'adapted_from': {
                    'weights': name,
                    'bands': list(source),
                    'sensor': source_sensor.name,
                    'method': method,
                    'sources': {band.band: band.sources for band in report.bands},
                    'left_out': list(report.left_out),
                },
            },
        ),
        path,
    )
    for line in str(report).splitlines():
        rank_zero_info(line)
    return report


def adapt_state(
    state_dict: Mapping[str, Tensor],
    source: BandsOf,
    target: BandsOf,
    method: str = 'auto',
    dates: int = 1,
) -> tuple[dict[str, Tensor], BandReport]:
    """Bring the tensors of an encoder to other bands.

    Args:
        state_dict: Tensors under plain timm keys, of any of our encoders.
        source: Canonical names of their bands, and the sensor.
        target: Those wanted.
        method: As in :func:`.adapt_bands`.
        dates: As in :func:`.adapt_bands`.

    Returns:
        The tensors, and what was done.

    Raises:
        ValueError: If cubes of bands cannot be made of the target bands.
    """
    if is_cubes(state_dict, len(source[0])):
        return adapt_cubes(state_dict, source, target, method, dates)
    # SatMAE's dates are tokens of their own, so nothing adds up.
    grouped = 'patch_embed.band_group' in state_dict
    report = match_bands(*source, *target, method, dates)
    if grouped:
        report = within_groups(state_dict, source, report)
    first, share = state_dict[_FIRST_LAYER], 1 if grouped else dates
    adapted = torch.stack(
        [_combine(first, source[0], band.sources, share) for band in report.bands],
        dim=1,
    )
    changed = {**state_dict, _FIRST_LAYER: adapted.repeat(1, dates, 1, 1)}
    if grouped:
        changed |= adapt_groups(state_dict, source, target, report)
    return changed, report


def _is_same_file(weights: str | Path, path: str | Path) -> bool:
    """Whether both exist and are one file."""
    return (
        os.path.exists(weights)
        and os.path.exists(path)
        and os.path.samefile(weights, path)
    )


def _check_weights(name: str, checkpoint: EncoderCheckpoint) -> None:
    """Refuse weights whose first layer has no bands with names."""
    known = checkpoint.hyper_parameters
    if not known.get('bands') or not known.get('sensor'):
        raise ValueError(
            f'weights: {name!r} does not tell its bands, so they cannot be matched. '
            "Save it with torchgeo_sigmae.models.save_encoder and 'bands' and "
            "'sensor' in its hyper_parameters."
        )
    if known.get('dates', 1) != 1:
        raise ValueError(
            f'weights: {name!r} was already adapted to {known["dates"]} dates. Pass '
            f'the weights it was made from, {known["adapted_from"]["weights"]!r}.'
        )
    first = checkpoint.state_dict.get(_FIRST_LAYER)
    bands = tuple(known['bands'])
    if is_cubes(checkpoint.state_dict, len(bands)):
        return
    if first is None or first.ndim != 4 or first.shape[1] != len(bands):
        seen = 'there is none' if first is None else f'its shape is {(*first.shape,)}'
        raise ValueError(
            f'weights: {name!r} has {len(bands)} bands {list(bands)}, so its first '
            f'layer ({_FIRST_LAYER}) must be (width, {len(bands)}, patch, patch), but '
            f'{seen}. Pass the file of a plain ViT made by SIGMAETask.export.'
        )


def _resolve(sensor: str, target: Sensor, name: str) -> Sensor:
    """The sensor of the weights; one of the user's own is known as their target."""
    if sensor == target.name:
        return target
    try:
        return get_sensor(sensor)
    except ValueError:
        raise ValueError(
            f'weights: {name!r} was made with the sensor {sensor!r}, whose wavelengths '
            'are not known here. Pass sensor= that very torchgeo_sigmae.bands.Sensor.'
        ) from None


def _check_report(
    report: BandReport,
    name: str,
    source: tuple[str, ...],
    source_sensor: Sensor,
    target_sensor: Sensor,
    method: str,
) -> None:
    """Refuse an encoder that would see nothing, or what method='name' forbids."""
    new = [band.band for band in report.bands if not band.sources]
    made_with = f'{name!r} was made with {list(source)} of {source_sensor.name}'
    if method == 'name' and new:
        raise ValueError(
            f'bands: {", ".join(new)} of {target_sensor.name} not among those of the '
            f"weights: {made_with}. Leave them out, or pass method='auto' to match by "
            'wavelength and let the others start at zero.'
        )
    if len(new) == len(report.bands):
        raise ValueError(
            f'bands: none of {new} has a counterpart, so nothing of the weights would '
            f'be used: {made_with}. Name at least one band near one of these, or train '
            'from scratch.'
        )


def _combine(
    first: Tensor, source: tuple[str, ...], sources: dict[str, float], dates: int
) -> Tensor:
    """The weights ``(D, p, p)`` of one target channel; exact where one is picked."""
    total = torch.zeros_like(first[:, 0])
    for name, share in sources.items():
        total = total + first[:, source.index(name)] * (share / dates)
    return total


def _carry(
    known: dict[str, Any], key: str, source: tuple[str, ...], report: BandReport
) -> list[float | None]:
    """Mean or std of the bands taken by name; None for the others."""
    values: Any = known.get(key)
    if not isinstance(values, list | tuple) or len(values) != len(source):
        return [None] * len(report.bands)
    by_band = dict(zip(source, values, strict=True))
    return [by_band[band.band] if band.named else None for band in report.bands]
