# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What a datamodule of TorchGeo tells of its batches: bands, dates, normalisation."""

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
    """Find the channel order of a TorchGeo datamodule's batches.

    Args:
        datamodule: Any datamodule.

    Returns:
        Band names as the datamodule spells them, those of one date, or None if it does
        not tell.
    """
    kwargs = getattr(datamodule, 'kwargs', {})
    dataset = getattr(datamodule, 'dataset_class', None)
    chosen = kwargs.get('bands', getattr(datamodule, 'bands', None))
    if chosen is not None and not isinstance(chosen, str):
        return tuple(chosen)
    if getattr(dataset, '__name__', '').startswith('BigEarthNet'):
        radar = ('VV', 'VH')
        return {'s1': radar, 's2': BIGEARTHNET_BANDS}.get(
            chosen or 'all', radar + BIGEARTHNET_BANDS
        )
    if chosen is None:
        chosen = _dataset_argument(datamodule, 'bands')
    if chosen is None:
        # SSL4EO: every split has bands of its own, and no choice among them.
        metadata = getattr(dataset, 'metadata', None)
        split = _dataset_argument(datamodule, 'split')
        told = metadata.get(split) if isinstance(metadata, dict) else None
        if isinstance(told, dict):
            chosen = told.get('bands', told.get('all_bands'))
    return tuple(chosen) if isinstance(chosen, tuple | list) else None


def datamodule_dates(datamodule: object) -> int:
    """Find how many dates a TorchGeo datamodule puts into the channels of its batches.

    Args:
        datamodule: Any datamodule.

    Returns:
        The ``seasons`` of SSL4EO and its like, 1 where there are none.
    """
    seasons = _dataset_argument(datamodule, 'seasons')
    return seasons if isinstance(seasons, int) else 1


def _dataset_argument(datamodule: object, name: str) -> Any:
    """What a TorchGeo datamodule passes to its dataset, or the dataset's default."""
    kwargs = getattr(datamodule, 'kwargs', {})
    dataset = getattr(datamodule, 'dataset_class', None)
    if name in kwargs or not isinstance(dataset, type):
        return kwargs.get(name)
    parameter = inspect.signature(dataset).parameters.get(name)
    return None if parameter is None else parameter.default


def attached_datamodule(trainer: Trainer) -> object:
    """Find the datamodule of the current run.

    Args:
        trainer: The trainer.

    Returns:
        The datamodule, or None. ``trainer.datamodule`` may still be that of an earlier
        run.
    """
    connector = getattr(trainer, '_data_connector', None)
    selector = getattr(connector, '_datahook_selector', None)
    if selector is None:
        return getattr(trainer, 'datamodule', None)
    return selector.datamodule


def datamodule_normalization(datamodule: object) -> tuple[Any, Any] | None:
    """Find the mean and std a TorchGeo datamodule applies after the batch transfer.

    Its ``mean`` and ``std`` attributes prove nothing (the base class has 0 and 255), so
    the ``Normalize`` in its augmentations is read.

    Args:
        datamodule: Any datamodule.

    Returns:
        Mean and std, or None if it applies none.

    Raises:
        ValueError: If its augmentations normalise differently.
    """
    found = _normalizations(datamodule)
    for mean, std in found[1:]:
        if not (torch.equal(mean, found[0][0]) and torch.equal(std, found[0][1])):
            raise ValueError(
                f'mean, std: {type(datamodule).__name__} normalises differently in '
                'training and evaluation. Pass mean= and std= for the batches you use.'
            )
    return found[0] if found else None


def normalizes(datamodule: object) -> bool:
    """Tell whether a TorchGeo datamodule normalises its batches after the transfer.

    Args:
        datamodule: Any datamodule.

    Returns:
        Whether there is a ``Normalize`` in its augmentations.
    """
    return bool(_normalizations(datamodule))


def _normalizations(datamodule: object) -> list[tuple[Any, Any]]:
    """Mean and std of every ``Normalize`` in a TorchGeo datamodule's augmentations."""
    if not isinstance(datamodule, BaseDataModule):
        return []
    return [
        (module.flags['mean'], module.flags['std'])
        for name in ('aug', 'train_aug', 'val_aug', 'test_aug', 'predict_aug')
        if isinstance(aug := getattr(datamodule, name, None), nn.Module)
        for module in aug.modules()
        if isinstance(module, K.Normalize)
    ]
