# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From a raw batch to what the model needs: valid pixels and augmentation."""

from typing import Any

import torch
import torch.nn.functional as F
from kornia import augmentation as K
from torch import Tensor, nn

from ..patches import valid_pixels
from ..transforms.indices import require_float
from .statistics import BatchStatistics

__all__ = (
    'VALID_KEY',
    'augment',
    'default_transform',
    'mark_valid_pixels',
)

#: Key of the valid-pixel mask in a batch, ``(B, dates, H, W)``, float 0 or 1. kornia
#: moves keys that start with ``mask`` along with the image; padding arrives as 0.
VALID_KEY = 'mask_valid'


def default_transform(size: int, crop: float = 0.2) -> K.AugmentationSequential:
    """TorchGeo's default augmentation for MAE, with bilinear resampling.

    Bicubic resampling overshoots at edges, which makes negative reflectance and
    unbounded spectral indices. All samples of a batch are cropped at once
    (``cropping_mode='resample'``); by default kornia takes one after the other. The
    crops are the same.

    Args:
        size: Side of the augmented images in pixels.
        crop: Least share of the area that a crop keeps, in (0, 1].

    Returns:
        Random resized crops and flips.
    """
    return K.AugmentationSequential(
        K.RandomResizedCrop(
            (size, size),
            scale=(crop, 1.0),
            resample='bilinear',
            cropping_mode='resample',
        ),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        data_keys=['input'],
    )


def mark_valid_pixels(
    batch: dict[str, Any],
    statistics: BatchStatistics,
    nodata: float | None,
    normalized: bool = False,
) -> dict[str, Any]:
    """Mark missing pixels before anything is augmented.

    Missing pixels become NaN in every band of their date: whatever an interpolation
    mixes them into becomes NaN as well and is missing too. A mask goes along for what
    NaN cannot tell, padding.

    Args:
        batch: A batch with ``'image'`` ``(B, dates * C, H, W)`` or ``(B, T, C, H, W)``
            as the loader delivers it.
        statistics: What the batch holds.
        nodata: Pixels whose raw bands all equal this value on a date are missing then;
            None to keep them.
        normalized: Whether the loader delivers normalised values.

    Returns:
        A copy of the batch, with :data:`VALID_KEY` unless it has a time axis.

    Raises:
        TypeError: If the image holds integers.
        ValueError: If its channels are not those of *statistics*.
    """
    image = batch['image']
    require_float(image, 'image')
    statistics.check(image)
    dates = statistics.by_date(image)
    valid = valid_pixels(dates, None if normalized else nodata)
    if normalized and nodata is not None:
        absent = torch.full_like(dates[..., :1, :1], nodata)
        absent = statistics.normalize(absent)
        valid &= ((dates - absent).abs() > 1e-4).any(dim=-3)
    marked = dict(batch)
    if not valid.all():
        dates = torch.where(valid.unsqueeze(-3), dates, torch.nan)
        marked['image'] = dates.flatten(-4, -3)
    if image.ndim == 4:
        marked[VALID_KEY] = valid.to(image.dtype)
    return marked


def augment(
    transform: nn.Module, image: Tensor, valid: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Augment images and their valid-pixel masks alike, from a seed.

    Args:
        transform: A kornia ``AugmentationSequential``, or ``nn.Identity``.
        image: Images ``(B, C, H, W)``, NaN at missing pixels.
        valid: Valid pixels, float ``(B, 1, H, W)``.
        seed: Seed of the random parameters; the global generator is left as it was.

    Returns:
        The augmented images, NaN wherever a missing pixel had any weight, and the
        augmented masks, without the pixels next to padding.
    """
    if isinstance(transform, nn.Identity):
        return image, valid
    devices = [image.device] if image.device.type == 'cuda' else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        image, valid = transform(image, valid, data_keys=['input', 'mask'])
    return image, _shrink(valid)


def _shrink(valid: Tensor) -> Tensor:
    """Take one pixel off the border of masks ``(B, 1, H, W)`` that are not full.

    kornia interpolates images but not masks: next to padding, an image pixel that
    counts as valid can be half zero. The padding may lie outside the frame.
    """
    invalid = 1 - valid
    grown = invalid.amax(dim=(1, 2, 3), keepdim=True)
    grown = grown.repeat(1, 1, invalid.shape[2] + 2, invalid.shape[3] + 2)
    grown[:, :, 1:-1, 1:-1] = invalid
    return 1 - F.max_pool2d(grown, kernel_size=3, stride=1)
