# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Augment images and the masks of their valid pixels alike, from a seed."""

import torch
import torch.nn.functional as F
from kornia import augmentation as K
from torch import Tensor, nn

__all__ = ('augment', 'build_transform', 'default_transform')


def default_transform(size: int, crop: float = 0.2) -> K.AugmentationSequential:
    """TorchGeo's default augmentation for MAE, with bilinear resampling.

    Bicubic resampling overshoots at edges, which makes negative reflectance and
    unbounded spectral indices.

    Args:
        size: Side of the augmented images in pixels.
        crop: Least share of the area that a crop keeps, in (0, 1].
    """
    return K.AugmentationSequential(
        K.RandomResizedCrop(
            (size, size),
            scale=(crop, 1.0),
            resample='bilinear',
            # The same crops as by default, but all samples at once.
            cropping_mode='resample',
        ),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        data_keys=['input'],
    )


def build_transform(
    transform: nn.Module | list[nn.Module] | None, size: int
) -> nn.Module:
    """Join a list of augmentations, or choose the default for images of a size.

    Raises:
        TypeError: If the augmentation cannot move the mask of valid pixels along.
    """
    if transform is None:
        transform = default_transform(size)
    if isinstance(transform, list):
        transform = K.AugmentationSequential(*transform, data_keys=['input'])
    if not isinstance(transform, K.AugmentationSequential | nn.Identity):
        raise TypeError(
            f'transform: {type(transform).__name__} cannot move the mask of valid '
            'pixels along with the image. Pass a list of kornia augmentations, or '
            'nn.Identity().'
        )
    return transform


def augment(
    transform: nn.Module, image: Tensor, valid: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Augment images and their valid-pixel masks alike, from a seed.

    The global generator is left as it was.

    Args:
        transform: A kornia ``AugmentationSequential``, or ``nn.Identity``.
        image: Normalized images ``(B, C, H, W)``, NaN at missing values.
        valid: Pixels with data, float ``(B, 1, H, W)``.
        seed: Seed of the random parameters.

    Returns:
        The augmented images, NaN wherever a missing value had any weight, and the
        augmented masks, without the pixels next to padding.
    """
    if isinstance(transform, nn.Identity):
        return image, valid
    result, moved = _transformed(transform, image, valid, seed)
    # One pass and one transfer from the device, where nothing is missing.
    finite, full = torch.stack([image.sum().isfinite(), moved.min() == 1]).tolist()
    if not finite and _lost_a_band(image, result):
        # A band has become all NaN: the augmentation used its mean or maximum, as
        # contrast does. Once more with the band's mean, 0, in place of NaN.
        known = image.isfinite()
        masks = torch.cat([valid, known.to(valid.dtype)], dim=1)
        filled = torch.where(known, image, 0)
        result, masks = _transformed(transform, filled, masks, seed)
        moved, known = masks[:, :1], _shrink(masks[:, 1:]) > 0.5
        result = torch.where(known, result, torch.nan)
    return result, moved if full else _shrink(moved)


def _lost_a_band(before: Tensor, after: Tensor) -> bool:
    """Tell whether a band with values has become all NaN in any image."""
    had, has = (x.isfinite().any(dim=(2, 3)) for x in (before, after))
    return bool((had & ~has).any())


def _transformed(
    transform: nn.Module, image: Tensor, masks: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Apply a transform of kornia from a seed."""
    devices = [image.device] if image.device.type == 'cuda' else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        image, masks = transform(image, masks, data_keys=['input', 'mask'])
    return image, masks


def _shrink(valid: Tensor) -> Tensor:
    """Take one pixel off the border of masks ``(B, n, H, W)`` that are not full.

    kornia interpolates images but not masks: next to padding, an image pixel that
    counts as valid can be half zero. The padding may lie outside the frame.
    """
    invalid = 1 - valid
    grown = invalid.amax(dim=(2, 3), keepdim=True)
    grown = grown.repeat(1, 1, invalid.shape[2] + 2, invalid.shape[3] + 2)
    grown[:, :, 1:-1, 1:-1] = invalid
    return 1 - F.max_pool2d(grown, kernel_size=3, stride=1)
