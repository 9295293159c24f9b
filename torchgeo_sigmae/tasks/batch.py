# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From a raw batch to what the model needs: valid pixels, augmentation, seeds."""

from typing import Any

import numpy as np
import torch
from kornia import augmentation as K
from torch import Generator, Tensor, nn

from ..transforms.indices import require_float
from ..transforms.saliency import valid_pixels
from .statistics import BatchStatistics

__all__ = (
    'VALID_KEY',
    'augment',
    'default_transform',
    'mark_valid_pixels',
    'seed_from',
    'seeded_generator',
)

#: Key of the valid-pixel mask in a batch, ``(B, 1, H, W)``, float 0 or 1. kornia moves
#: keys that start with ``mask`` along with the image; padding arrives as 0.
VALID_KEY = 'mask_valid'


def default_transform(size: int) -> K.AugmentationSequential:
    """TorchGeo's default augmentation for MAE, with bilinear resampling.

    Bicubic resampling overshoots at edges, which makes negative reflectance and
    unbounded spectral indices.

    Args:
        size: Side of the augmented images in pixels.

    Returns:
        Random resized crops and flips.
    """
    return K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0), resample='bilinear'),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        data_keys=['input'],
    )


def mark_valid_pixels(
    batch: dict[str, Any], statistics: BatchStatistics, nodata: float | None
) -> dict[str, Any]:
    """Add the valid-pixel mask to a raw batch and take missing values out of it.

    Invalid pixels are set to each band's mean, so that an interpolation at their border
    mixes in nothing extreme.

    Args:
        batch: A batch with ``'image'`` ``(B, C, H, W)`` as the loader delivers it.
        statistics: What the batch holds.
        nodata: Pixels whose bands all equal this value are missing; None to keep them.

    Returns:
        A copy of the batch with :data:`VALID_KEY`.

    Raises:
        TypeError: If the image holds integers.
        ValueError: If its channels are not those of *statistics*.
    """
    image = batch['image']
    require_float(image, 'image')
    statistics.check(image)
    valid = valid_pixels(image, nodata).unsqueeze(-3)
    fill = torch.tensor(statistics.mean, dtype=image.dtype, device=image.device)
    image = torch.where(valid, image, fill.view(-1, 1, 1))
    return {**batch, 'image': image, VALID_KEY: valid.to(image.dtype)}


def augment(
    transform: nn.Module, image: Tensor, valid: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Augment images and their valid-pixel masks alike, from a seed.

    Args:
        transform: A kornia ``AugmentationSequential``, or ``nn.Identity``.
        image: Images ``(B, C, H, W)``.
        valid: Valid pixels, float ``(B, 1, H, W)``.
        seed: Seed of the random parameters; the global generator is left as it was.

    Returns:
        The augmented images and masks.
    """
    if isinstance(transform, nn.Identity):
        return image, valid
    devices = [image.device] if image.device.type == 'cuda' else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        image, valid = transform(image, valid, data_keys=['input', 'mask'])
    return image, valid


def seed_from(*key: int) -> int:
    """Mix integers into one well-spread seed.

    Args:
        *key: Non-negative integers, for example (seed, epoch, batch, process).

    Returns:
        A seed in [0, 2**63).
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def seeded_generator(device: torch.device, *key: int) -> Generator:
    """Make a generator that depends on *key* alone.

    Args:
        device: Where it generates.
        *key: See :func:`seed_from`.

    Returns:
        The generator.
    """
    return torch.Generator(device).manual_seed(seed_from(*key))
