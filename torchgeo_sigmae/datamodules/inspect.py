# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands, dates and normalization of the batches of TorchGeo's datamodules."""

import inspect
from typing import Any

import torch
from kornia import augmentation as K
from lightning.pytorch import Trainer
from torch import nn
from torchgeo.datamodules import BaseDataModule

from ..bands import BIGEARTHNET_BANDS

__all__ = (
    'attached_datamodule',
    'datamodule_bands',
    'datamodule_dates',
    'datamodule_normalization',
    'normalizes',
)


def datamodule_bands(datamodule: object) -> tuple[str, ...] | None:
    """Find the channel order of a datamodule's batches.

    Args:
        datamodule: Any datamodule.

    Returns:
        Band names of one date, in the datamodule's spelling; None if they are unknown.
    """
    kwargs = getattr(datamodule, 'kwargs', {})
    dataset = getattr(datamodule, 'dataset_class', None)
    bands = kwargs.get('bands', getattr(datamodule, 'bands', None))
    if bands is not None and not isinstance(bands, str):
        return tuple(bands)
    if getattr(dataset, '__name__', '').startswith('BigEarthNet'):
        radar = ('VV', 'VH')
        return {'s1': radar, 's2': BIGEARTHNET_BANDS}.get(
            bands or 'all', radar + BIGEARTHNET_BANDS
        )
    if bands is None:
        bands = _dataset_argument(datamodule, 'bands')
    if bands is None:
        # SSL4EO: the split decides about the bands.
        metadata = getattr(dataset, 'metadata', None)
        split = _dataset_argument(datamodule, 'split')
        entry = metadata.get(split) if isinstance(metadata, dict) else None
        if isinstance(entry, dict):
            bands = entry.get('bands', entry.get('all_bands'))
    return tuple(bands) if isinstance(bands, tuple | list) else None


def datamodule_dates(datamodule: object) -> int:
    """Find how many dates a datamodule puts into the channels of its batches.

    Args:
        datamodule: Any datamodule.

    Returns:
        The ``seasons`` of SSL4EO and similar datasets, else 1.
    """
    seasons = _dataset_argument(datamodule, 'seasons')
    return seasons if isinstance(seasons, int) else 1


def datamodule_normalization(datamodule: object) -> tuple[Any, Any] | None:
    """Find the mean and std that a datamodule applies after the batch transfer.

    The ``Normalize`` in its augmentations is read. The attributes ``mean`` and ``std``
    prove nothing: TorchGeo's base class has 0 and 255.

    Args:
        datamodule: Any datamodule.

    Returns:
        Mean and std, or None if it applies none.

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
    """Find out whether a datamodule normalizes its batches after the transfer.

    Args:
        datamodule: Any datamodule.

    Returns:
        Whether there is a ``Normalize`` in its augmentations.
    """
    return bool(_normalizations(datamodule))


def attached_datamodule(trainer: Trainer) -> object:
    """Find the datamodule of the current run.

    ``trainer.datamodule`` may still be that of an earlier run.

    Args:
        trainer: The trainer.

    Returns:
        The datamodule, or None.
    """
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


def _normalizations(datamodule: object) -> list[tuple[Any, Any]]:
    """Mean and std of every ``Normalize`` in a datamodule's augmentations."""
    if not isinstance(datamodule, BaseDataModule):
        return []
    return [
        (module.flags['mean'], module.flags['std'])
        for name in ('aug', 'train_aug', 'val_aug', 'test_aug', 'predict_aug')
        if isinstance(aug := getattr(datamodule, name, None), nn.Module)
        for module in aug.modules()
        if isinstance(module, K.Normalize)
    ]
