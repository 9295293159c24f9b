# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Augmentation of image pairs and time series, every date alike.

TorchGeo's change-detection datamodules augment with kornia's ``VideoSequential``.
kornia 0.9 refuses their batches, because image and mask do not have the same number of
frames; this module does the same work with any kornia.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from kornia import augmentation as K
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import Subset

from .._methods import replace_method

__all__ = ('BitemporalAugmentation', 'bitemporal')

_SPLITS = ('train_', 'val_', 'test_', 'predict_', '')

_DataModule = TypeVar('_DataModule', bound=LightningDataModule)


class BitemporalAugmentation(nn.Module):
    """Augment every date of an image pair or time series, and its masks, alike.

    The random numbers drawn for the first date are replayed for the others, so that
    all of them are cropped at the same place and flipped the same way, and operations
    with a value per band, like ``K.Normalize``, see one date at a time.

    Works as ``transforms=`` of a TorchGeo dataset and as ``aug`` of a datamodule.

    Convention: ``'image'`` is ``(T, C, H, W)``, or a batch ``(B, T, C, H, W)``, of
    floats, NaN allowed. Every tensor whose key starts with ``'mask'`` moves along, with
    nearest neighbor: ``(..., H, W)`` for a sample, ``(B, ..., H, W)`` for a batch, of
    any dtype, labels up to 16777216. Other keys pass through untouched.

    .. versionadded:: 0.1

    Example:
        >>> import torch
        >>> from kornia import augmentation as K
        >>> augmentation = BitemporalAugmentation(K.RandomCrop((32, 32)))
        >>> sample = {'image': torch.rand(2, 13, 64, 64), 'mask': torch.ones(1, 64, 64)}
        >>> {key: tuple(x.shape) for key, x in augmentation(sample).items()}
        {'image': (2, 13, 32, 32), 'mask': (1, 32, 32)}
    """

    def __init__(self, *augmentations: nn.Module) -> None:
        """Initialize with kornia augmentations of images ``(B, C, H, W)``."""
        super().__init__()
        self.augmentations = K.AugmentationSequential(*augmentations, data_keys=None)

    def forward(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Augment a sample or a batch, into a new dictionary of the same layout."""
        image = sample['image']
        if image.ndim not in (4, 5):
            raise ValueError(
                f'image: {tuple(image.shape)} has no time axis. Pass (T, C, H, W), or '
                'a batch (B, T, C, H, W).'
            )
        single = image.ndim == 4
        dates = (image[None] if single else image).unbind(1)
        masks = {
            key: value
            for key, value in sample.items()
            if key.startswith('mask') and isinstance(value, Tensor)
        }
        layers = [
            self._layers(key, mask[None] if single else mask, dates[0])
            for key, mask in masks.items()
        ]
        keys = ['input', *('mask' for _ in layers)]
        first = self.augmentations(dates[0], *layers, data_keys=keys)
        first, *layers = first if layers else [first]
        params = self.augmentations._params
        others = [
            self.augmentations(date, params=params, data_keys=['input'])
            for date in dates[1:]
        ]
        augmented = torch.stack([first, *others], dim=1)
        moved = {
            key: layer.reshape(*mask.shape[:-2], *layer.shape[-2:]).to(mask.dtype)
            for (key, mask), layer in zip(masks.items(), layers, strict=True)
        }
        return {**sample, 'image': augmented[0] if single else augmented, **moved}

    @staticmethod
    def _layers(key: str, mask: Tensor, date: Tensor) -> Tensor:
        """Bring a mask ``(B, ..., H, W)`` to ``(B, L, H, W)`` in the image's dtype."""
        if mask.ndim < 3 or len(mask) != len(date):
            raise ValueError(
                f'{key}: {tuple(mask.shape)} does not belong to a batch of '
                f'{len(date)} images. Pass ({len(date)}, ..., H, W).'
            )
        return mask.reshape(len(mask), -1, *mask.shape[-2:]).to(date.dtype)


def bitemporal(datamodule: _DataModule) -> _DataModule:
    """Make a datamodule for image pairs work with any kornia.

    Replaces, in place, every ``VideoSequential`` among the datamodule's augmentations
    and in the ``transforms`` of its datasets by :class:`BitemporalAugmentation`, now
    and after every later ``setup``. Images are those TorchGeo has with kornia 0.8; so
    are masks, except that kornia 0.8 crops those of a batch elsewhere than its images.
    :class:`~torchgeo_sigmae.SIGMAETask` does this by itself; for TorchGeo's own tasks::

        datamodule = bitemporal(OSCDDataModule(root='data/oscd'))

    Args:
        datamodule: Any datamodule. One without ``VideoSequential`` is left as it is,
            and so is one that picks its operations or frames at random.

    Returns:
        The same datamodule.
    """
    if _repair(datamodule):
        replace_method(datamodule, 'setup', _setup)
    return datamodule


def _setup(
    datamodule: LightningDataModule, original: Callable[[str], None], stage: str
) -> None:
    """Run the datamodule's own ``setup``, and repair what it made."""
    original(stage)
    _repair(datamodule)


def _repair(datamodule: LightningDataModule) -> bool:
    """Replace every ``VideoSequential``; return whether there was one."""
    attributes: list[tuple[object, str]] = []
    for split in _SPLITS:
        attributes.append((datamodule, f'{split}aug'))
        dataset = getattr(datamodule, f'{split}dataset', None)
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        attributes.append((dataset, 'transforms'))
    repaired = False
    for owner, name in attributes:
        replacement = _replacement(getattr(owner, name, None))
        if replacement is not None:
            setattr(owner, name, replacement)
            repaired = True
    return repaired


def _replacement(
    augmentation: Callable[..., Any] | None,
) -> BitemporalAugmentation | None:
    """Build what stands in for a ``VideoSequential``, or None where there is none."""
    if not isinstance(augmentation, K.AugmentationSequential):
        return None
    children = list(augmentation.children())
    videos = [child for child in children if isinstance(child, K.VideoSequential)]
    if not videos or not all(
        video.data_format == 'BTCHW' and video.same_on_frame and not video.random_apply
        for video in videos
    ):
        return None
    return BitemporalAugmentation(
        *(
            operation
            for child in children
            for operation in (child.children() if child in videos else [child])
        )
    )
