# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights for other bands, sensors and numbers of dates."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torchvision.models._api import WeightsEnum

from ..bands import BandSet, Sensor, get_sensor
from .files import Weights, write_weights
from .matching import METHODS, BandReport, target_bands
from .read import read_weights
from .tensors import adapt_decoder, adapt_encoder

__all__ = ('adapt_bands', 'adapt_weights', 'weights_for_bands')

#: Information that stays true whatever the bands.
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
    sensor: str | Sensor | None = None,
    method: str = 'auto',
    source_bands: Sequence[str] | None = None,
) -> BandReport:
    """Write an encoder file for other bands, for ``weights=`` of any task.

    A target band takes the weights of the source band of the same name. With ``'auto'``
    and ``'zero'``, it also takes those of source bands that the target lacks by name,
    if it is the nearest band within 4 % of their wavelength. The weights are *added*,
    because the encoder expects that light in both bands: Landsat's near infrared stands
    in for B08 and B8A, and so does B08 if B8A is left out. Target bands that are
    equally near share. A band without counterpart (Landsat's thermal bands, B10 for
    weights without it) starts at zero: fine-tuning trains it, and a frozen first layer
    ignores it. Nothing else is rescaled: the activations are those of the original
    encoder on an image whose remaining bands are at their mean, which is 0.

    S2MAE's cubes share one kernel, which stays; their positions in the spectrum are
    interpolated to the wavelengths of the target cubes. SatMAE's target bands join the
    group of the band they stand in for, else that of the nearest band. In both, two
    dates become tokens of their own, and no weight is divided.

    The report is also logged and stored in ``info['adapted_from']`` of the file.
    ``mean`` and ``std`` are carried over for bands matched by name and are None for
    others; ``scale`` and ``offset`` are carried over within a sensor.

    Args:
        weights: Any source that :func:`.read_weights` takes.
        bands: Target bands of one date, in order and any spelling; for S2MAE a multiple
            of the bands of a cube.
        path: The file to write, atomically; missing folders are created.
        dates: Number of dates whose channels follow each other, at least 1. TorchGeo's
            early-fusion change models take two dates as ``2 * len(bands)`` channels.
            Weights are divided by it, so equal dates give the activations of one.
        sensor: The sensor *bands* belong to; None for Sentinel-2, or that of a BandSet.
        method: ``'auto'``; ``'name'`` to match by name and sensor only, and refuse any
            other band; ``'zero'`` to let names that the sensor does not know (``VV``,
            ``DEM``) start at zero.
        source_bands: Bands of the weights, where the file does not name them, as in
            :func:`.read_weights`.

    Returns:
        What was done, band by band.

    Raises:
        ValueError: If *weights* do not name their bands or were adapted to several
            dates; if a band is unknown or given twice, or none has a counterpart; if
            *path* is the file of the weights.
    """
    if method not in METHODS:
        raise ValueError(f'method: {method!r} is unknown. Use one of {METHODS}.')
    if dates < 1:
        raise ValueError(f'dates: {dates} must be at least 1. Pass 2 for image pairs.')
    exist = all(os.path.exists(str(file)) for file in (weights, path))
    if exist and os.path.samefile(str(weights), path):
        raise ValueError(
            f'path: {str(path)!r} is the file of the weights themselves. Pass another '
            'path; the original is needed to adapt to other bands.'
        )
    source = read_weights(weights, source_bands)
    target = target_bands(bands, sensor, method)
    adapted, report = adapt_weights(source, target, method, dates)
    # The file is for fine-tuning; SIGMAETask adapts encoder and decoder by itself.
    write_weights(Weights(adapted.encoder, info=adapted.info), path)
    return report


def adapt_weights(
    weights: Weights, target: BandSet, method: str = 'auto', dates: int = 1
) -> tuple[Weights, BandReport]:
    """Adapt encoder and decoder to other bands, and log what was done.

    *method* and *dates* are those of :func:`~torchgeo_sigmae.weights.adapt_bands`;
    several dates drop the decoder.
    """
    info = weights.info
    source = _source_bands(weights, target.sensor)
    encoder, report = adapt_encoder(weights.encoder, source, target, method, dates)
    _check_report(report, weights.name, source, target.sensor, method)
    decoder = {}
    if weights.decoder and dates == 1:
        decoder = adapt_decoder(
            weights.encoder, weights.decoder, source, target, method
        )
    same = source.sensor.name == target.sensor.name
    adapted = {
        **{key: info[key] for key in _KEPT if key in info},
        'in_channels': dates * len(target),
        'bands': list(target),
        'sensor': target.sensor.plain(),
        'dates': dates,
        'mean': _carried(info, 'mean', source, report),
        'std': _carried(info, 'std', source, report),
        'scale': info.get('scale') if same else None,
        'offset': info.get('offset') if same else None,
        'adapted_from': {
            'weights': Path(weights.name).name,
            'bands': list(source),
            'sensor': source.sensor.plain(),
            'method': method,
            'sources': {band.band: band.sources for band in report.bands},
            'left_out': list(report.left_out),
        },
    }
    for line in str(report).splitlines():
        rank_zero_info(line)
    return Weights(encoder, decoder, adapted, weights.name), report


def weights_for_bands(weights: Weights, target: BandSet) -> Weights:
    """Adapt weights to the bands of a model, if they name other bands."""
    info, bands = weights.info, weights.info.get('bands')
    if not bands:
        return weights
    if not info.get('sensor') and BandSet.from_data(bands, target.sensor) == target:
        return weights
    if _source_bands(weights, target.sensor).matches(target):
        return weights
    return adapt_weights(weights, target)[0]


def _source_bands(weights: Weights, target_sensor: Sensor) -> BandSet:
    """The bands the weights were made with."""
    info, name = weights.info, Path(weights.name).name
    if not info.get('bands') or not info.get('sensor'):
        raise ValueError(
            f'weights: {name!r} does not name its bands and their sensor, so they '
            'cannot be matched. Name them in order: source_bands=, '
            '--source-bands on the command line.'
        )
    if info.get('dates', 1) != 1:
        original = info.get('adapted_from', {}).get('weights')
        raise ValueError(
            f'weights: {name!r} was already adapted to {info["dates"]} dates, whose '
            'channels follow each other. Pass the weights it was made from, '
            f'{original!r}.'
        )
    # A file of the first edition has only the name of a user's own sensor.
    sensor = target_sensor
    if info['sensor'] != target_sensor.name:
        try:
            sensor = get_sensor(info['sensor'])
        except ValueError:
            raise ValueError(
                f'weights: {name!r} was made with the sensor {info["sensor"]!r}, whose '
                'wavelengths are unknown. Pass that torchgeo_sigmae.bands.Sensor as '
                'sensor=.'
            ) from None
    return BandSet.from_data(info['bands'], sensor)


def _check_report(
    report: BandReport, name: str, source: BandSet, sensor: Sensor, method: str
) -> None:
    """Refuse an encoder that would see nothing, or what method='name' forbids."""
    new = [band.band for band in report.bands if not band.sources]
    made_with = (
        f'{Path(name).name!r} was made with {list(source)} of {source.sensor.name}'
    )
    if method == 'name' and new:
        raise ValueError(
            f'bands: {", ".join(new)} of {sensor.name} not among those of the '
            f"weights: {made_with}. Leave them out, or pass method='auto' to match by "
            'wavelength and let the others start at zero.'
        )
    if len(new) == len(report.bands):
        raise ValueError(
            f'bands: none of {new} has a counterpart, so nothing of the weights would '
            f'be used: {made_with}. Name at least one band near one of these, or train '
            'from scratch.'
        )


def _carried(
    info: dict[str, Any], key: str, source: BandSet, report: BandReport
) -> list[float | None]:
    """Mean or std of the bands taken by name; None for the others."""
    values: Any = info.get(key)
    if not isinstance(values, list | tuple) or len(values) != len(source):
        return [None] * len(report.bands)
    by_band = dict(zip(source, values, strict=True))
    return [by_band[band.band] if band.named else None for band in report.bands]
