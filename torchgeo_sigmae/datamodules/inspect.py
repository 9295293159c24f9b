# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands, dates and normalization of the batches of TorchGeo's datamodules."""

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from kornia import augmentation as K
from lightning.pytorch import Trainer
from torch import nn
from torchgeo.datamodules import BaseDataModule

from ..bands import (
    BIGEARTHNET_BANDS,
    SENTINEL2_BANDS,
    BandSet,
    Sensor,
    get_sensor,
)

__all__ = (
    'attached_datamodule',
    'datamodule_bands',
    'datamodule_dates',
    'datamodule_normalization',
    'datamodule_sensor',
    'normalizes',
)


#: Channel orders that TorchGeo gives only in its documentation.
_ORDERS = {
    'FieldsOfTheWorld': ('B04', 'B03', 'B02', 'B08'),
    'FireRisk': ('R', 'G', 'B'),
    'NASAMarineDebris': ('red', 'green', 'blue'),
}

#: Channel orders of TreeSatAI's images, which its datamodule joins.
_TREESATAI = {
    'aerial': ('IR', 'G', 'B', 'R'),
    's1': ('VV', 'VH', 'VV/VH'),
    's2': (
        *('B02', 'B03', 'B04', 'B08', 'B05', 'B06', 'B07', 'B8A', 'B11', 'B12'),
        *('B01', 'B09'),
    ),
}

#: Channel orders of SSL4EO-L's parts, where the dataset does not list them.
_LANDSAT = {
    'tm_toa': ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7'),
    'etm_toa': ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B62', 'B7', 'B8'),
    'etm_sr': ('B1', 'B2', 'B3', 'B4', 'B5', 'B7'),
    'oli_tirs_toa': tuple(f'B{number}' for number in range(1, 12)),
    'oli_sr': tuple(f'B{number}' for number in range(1, 8)),
}

#: Sensors by what the name of a dataset and its split contain.
_SENSORS = {
    r'L8Biome|Landsat[89]|\boli_': 'landsat8',
    r'L7Irish|Landsat7|\betm_': 'landsat7',
    r'Landsat[45]|\btm_': 'landsat5',
    r'NAIP|FireRisk': 'naip',
    r'NASAMarineDebris': 'planetscope',
    r'HySpecNet|EnMAP': 'enmap',
}


def datamodule_bands(datamodule: object) -> BandSet | None:
    """Find the channel order of a datamodule's batches; None if it is unknown.

    Returns:
        The channels of one date, of which some may be no bands of the sensor.
    """
    bands = getattr(datamodule, 'bands', None)
    if isinstance(bands, BandSet):
        return bands
    dataset = getattr(datamodule, 'dataset_class', None)
    name = getattr(dataset, '__name__', '')
    names = _names(datamodule, name)
    if not names:
        return None
    every = getattr(dataset, 'all_bands', None) or SENTINEL2_BANDS
    names = [every[band] if isinstance(band, int) else band for band in names]
    micrometers = getattr(dataset, 'wavelengths', None)
    if isinstance(micrometers, Mapping) and set(names) <= set(micrometers):
        nanometers = {n: 1000 * micrometers[n] for n in dict.fromkeys(names)}
        return BandSet.from_data(names, Sensor.from_wavelengths(name, nanometers))
    sensor = datamodule_sensor(datamodule)
    if sensor is None:
        likely = map(get_sensor, ('sentinel2', 'sentinel1', 'naip', 'planetscope'))
        sensor = next(
            (each for each in likely if any(map(each.find, names))), get_sensor('any')
        )
    return BandSet.from_data(names, sensor)


def datamodule_sensor(datamodule: object) -> Sensor | None:
    """Find the sensor; None if the names of the bands would be the only hint."""
    bands = getattr(datamodule, 'bands', None)
    if isinstance(bands, BandSet):
        return bands.sensor
    name = _class_attribute(datamodule, '__name__')
    described = f'{name} {_split(datamodule)}'
    return next(
        (get_sensor(s) for p, s in _SENSORS.items() if re.search(p, described)), None
    )


def _names(datamodule: object, dataset: str) -> Sequence[Any] | None:
    """Names, or numbers, of the channels of one date."""
    kwargs = getattr(datamodule, 'kwargs', {})
    bands = kwargs.get('bands', getattr(datamodule, 'bands', None))
    if dataset.startswith('BigEarthNet'):
        radar = ('VV', 'VH')
        sets = {'s1': radar, 's2': BIGEARTHNET_BANDS, 'all': radar + BIGEARTHNET_BANDS}
        return sets.get(bands or 'all')
    if dataset == 'TreeSatAI':
        sensors = kwargs.get('sensors', _TREESATAI)
        return [band for sensor in sensors for band in _TREESATAI[sensor]]
    if isinstance(bands, Sequence) and not isinstance(bands, str):
        return bands
    # TorchGeo's datamodules of Sentinel-2 or NAIP imagery beside labels.
    for image in ('sentinel2', 'naip'):
        if (options := getattr(datamodule, f'{image}_kwargs', None)) is not None:
            order = SENTINEL2_BANDS if image == 'sentinel2' else ('R', 'G', 'B', 'NIR')
            return cast(Sequence[Any], options.get('bands') or order)
    # In SSL4EO the split decides, in its benchmark the sensor.
    metadata = _class_attribute(datamodule, 'metadata')
    split = _split(datamodule)
    entry = metadata.get(split) if isinstance(metadata, Mapping) else None
    if isinstance(entry, Mapping):
        bands = entry.get('bands') or entry.get('all_bands')
    bands = bands or _dataset_argument(datamodule, 'bands') or _LANDSAT.get(split)
    if isinstance(bands, Sequence) and not isinstance(bands, str):
        return bands
    return _ORDERS.get(dataset) or _class_attribute(datamodule, 'default_bands')


def _split(datamodule: object) -> str:
    """The part of a dataset that decides about bands, such as ``'oli_sr'``."""
    sensor = _dataset_argument(datamodule, 'sensor')
    return sensor if sensor in _LANDSAT else str(_dataset_argument(datamodule, 'split'))


def datamodule_dates(datamodule: object) -> int:
    """Count the dates in the channels of a batch, such as the seasons of SSL4EO."""
    if _class_attribute(datamodule, '__name__') == 'FieldsOfTheWorld':
        return 2
    if _dataset_argument(datamodule, 'timepoint_aggregation') == 'concat':
        return int(_dataset_argument(datamodule, 'num_of_timepoints'))
    seasons = _dataset_argument(datamodule, 'seasons')
    return seasons if isinstance(seasons, int) else 1


def datamodule_normalization(datamodule: object) -> tuple[Any, Any] | None:
    """Find the mean and std that a datamodule applies after the batch transfer.

    The ``Normalize`` in its augmentations are read, several one after the other as one.
    The attributes ``mean`` and ``std`` prove nothing: TorchGeo's base class has 0 and
    255. TreeSatAI normalizes without an augmentation, by numbers of its module.

    Raises:
        ValueError: If training and evaluation are normalized differently.
    """
    pairs = _normalizations(datamodule)
    for mean, std in pairs[1:]:
        if not (torch.equal(mean, pairs[0][0]) and torch.equal(std, pairs[0][1])):
            raise ValueError(
                f'mean, std: {type(datamodule).__name__} normalizes differently in '
                'training and evaluation. Pass mean= and std= for the batches you use.'
            )
    return pairs[0] if pairs else None


def normalizes(datamodule: object) -> bool:
    """Return whether a datamodule normalizes its batches after the transfer."""
    return bool(_normalizations(datamodule))


def attached_datamodule(trainer: Trainer) -> object:
    """Find the datamodule of this run; ``trainer.datamodule`` may be of an earlier."""
    connector = getattr(trainer, '_data_connector', None)
    selector = getattr(connector, '_datahook_selector', None)
    if selector is None:
        return getattr(trainer, 'datamodule', None)
    return selector.datamodule


def _dataset_argument(datamodule: object, name: str) -> Any:
    """An argument of the datamodule's dataset, or the dataset's default."""
    kwargs = getattr(datamodule, 'kwargs', {})
    dataset = getattr(datamodule, 'dataset_class', None)
    if name in kwargs or not isinstance(dataset, type):
        return kwargs.get(name)
    parameter = inspect.signature(dataset).parameters.get(name)
    return None if parameter is None else parameter.default


def _class_attribute(datamodule: object, name: str) -> Any:
    """An attribute of the datamodule's dataset class, or None."""
    return getattr(getattr(datamodule, 'dataset_class', None), name, None)


def _normalizations(datamodule: object) -> list[tuple[Any, Any]]:
    """Mean and std of each of a datamodule's augmentations that normalizes."""
    if not isinstance(datamodule, BaseDataModule):
        return []
    module = sys.modules[type(datamodule).__module__]
    means, stds = getattr(module, 'means', None), getattr(module, 'stds', None)
    if isinstance(means, dict) and isinstance(stds, dict):
        sensors = getattr(datamodule, 'sensors', list(means))
        both = ([x for s in sensors for x in table[s]] for table in (means, stds))
        return [(torch.tensor(next(both)), torch.tensor(next(both)))]
    pairs = []
    for name in ('aug', 'train_aug', 'val_aug', 'test_aug', 'predict_aug'):
        augmentation = getattr(datamodule, name, None)
        if not isinstance(augmentation, nn.Module):
            continue
        mean, std = torch.zeros(()), torch.ones(())
        steps = [m for m in augmentation.modules() if isinstance(m, K.Normalize)]
        for step in steps:
            mean = mean + std * step.flags['mean']
            std = std * step.flags['std']
        if steps:
            dates = datamodule_dates(datamodule)
            pairs.append((_of_one_date(mean, dates), _of_one_date(std, dates)))
    return pairs


def _of_one_date(values: torch.Tensor, dates: int) -> torch.Tensor:
    """Numbers of one date, where those of all dates are repeated."""
    flat = values.flatten()
    each = flat.view(dates, -1) if dates > 1 and len(flat) % dates == 0 else flat[None]
    return each[0] if bool((each == each[0]).all()) else flat
