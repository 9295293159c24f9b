# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From a raw batch to what the model needs: valid pixels, augmentation, seeds."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
    batch: dict[str, Any],
    statistics: BatchStatistics,
    nodata: float | None,
    normalized: bool = False,
) -> dict[str, Any]:
    """Mark missing pixels before anything is augmented.

    Missing pixels become NaN in every band: whatever an interpolation mixes them into
    becomes NaN as well and is missing too. A mask goes along for what NaN cannot tell,
    padding.

    Args:
        batch: A batch with ``'image'`` ``(B, C, H, W)`` or ``(B, T, C, H, W)`` as the
            loader delivers it.
        statistics: What the batch holds.
        nodata: Pixels whose raw bands all equal this value are missing; None to keep
            them.
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
    valid = valid_pixels(image, None if normalized else nodata)
    if normalized and nodata is not None:
        absent = statistics.normalize(torch.full_like(image[..., :1, :1], nodata))
        valid &= ((image - absent).abs() > 1e-4).any(dim=-3)
    valid = valid.unsqueeze(-3)
    marked = dict(batch)
    if not valid.all():
        marked['image'] = torch.where(valid, image, torch.nan)
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
