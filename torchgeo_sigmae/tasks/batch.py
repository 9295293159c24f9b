# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From a raw batch to what the model needs: missing values and augmentation."""

from typing import Any

import torch
import torch.nn.functional as F
from kornia import augmentation as K
from torch import Tensor, nn

from ..patches import valid_values
from ..transforms.indices import require_float
from .statistics import BatchStatistics

__all__ = (
    'VALID_KEY',
    'augment',
    'build_transform',
    'default_transform',
    'fold_dates',
    'mark_missing',
    'refuse_empty',
    'sample_indices',
    'select_image',
)

#: Key of a mask in a batch, ``(B, dates, H, W)``, float: 1 where any band has data.
#: kornia moves keys that start with ``mask`` along with the image; padding becomes 0.
VALID_KEY = 'mask_valid'


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


def select_image(batch: dict[str, Any], key: str) -> dict[str, Any]:
    """Take the images under a key; other tensors of the batch are dropped.

    Args:
        batch: A batch with ``batch[key]`` ``(B, C, H, W)``, ``(B, T, C, H, W)`` or, of
            a single band, ``(B, H, W)``.
        key: The key.

    Returns:
        A batch with ``'image'``, floating point, and the names of the samples: what is
        no tensor stays, and WebDataset's ``'__key__'`` is the ``'filename'``.

    Raises:
        ValueError: If there is no image under this key.
    """
    image = batch.get(key)
    if not isinstance(image, Tensor) or not 3 <= image.ndim <= 5:
        images = [k for k, v in batch.items() if isinstance(v, Tensor) and v.ndim > 2]
        raise ValueError(
            f'batch.key: the batch holds no images under {key!r}, but under {images}. '
            'Pass batch=BatchSpec(key=...) with one of them.'
        )
    kept = {k: v for k, v in batch.items() if not isinstance(v, Tensor)}
    if '__key__' in kept:
        kept.setdefault('filename', kept['__key__'])
    image = image if image.is_floating_point() else image.float()
    return {**kept, 'image': image.unsqueeze(1) if image.ndim == 3 else image}


def mark_missing(
    batch: dict[str, Any],
    statistics: BatchStatistics,
    nodata: float | None,
    normalized: bool = False,
) -> dict[str, Any]:
    """Mark missing values before anything is augmented.

    Missing values become NaN, and so does whatever an interpolation mixes them into.
    Padding cannot be seen that way, so a mask goes along. Channels that the model does
    not see are never looked at; values in them that are not finite become 0, because
    augmentations see all channels.

    Args:
        batch: A batch with ``'image'`` ``(B, dates * C, H, W)`` or ``(B, T, C, H, W)``
            as the loader delivers it.
        statistics: What the batch holds.
        nodata: Pixels whose raw bands all equal this value on a date are missing then;
            None to keep them.
        normalized: Whether the loader delivers normalized values.

    Returns:
        A copy of the batch, with :data:`VALID_KEY` unless it has a time axis.

    Raises:
        TypeError: If the image holds integers, or the batch is no dictionary.
        ValueError: If there is no image, or it has other channels than *statistics*.
    """
    if not isinstance(batch, dict):
        raise TypeError(
            f'image: the batch is a {type(batch).__name__}, not a dictionary with an '
            "'image', as TorchGeo's datasets return. Return {'image': image} in the "
            'dataset.'
        )
    if 'image' not in batch:
        raise ValueError(
            f"image: the batch has no 'image', but the keys {sorted(batch)}. Pass one "
            'of them, batch=BatchSpec(key=...).'
        )
    image = batch['image']
    require_float(image, 'image')
    statistics.check(image)
    dates = statistics.by_date(image)
    channels = list(statistics.channels)
    every = channels == list(range(dates.shape[-3]))
    seen = dates if every else dates[..., channels, :, :]
    valid = valid_values(seen, None if normalized else nodata)
    if normalized and nodata is not None:
        absent = seen.new_full((len(channels), 1, 1), nodata)
        absent = statistics.normalize(absent, statistics.channels)
        # One band tells whether all bands of any pixel can have the value.
        if not ((seen[..., :1, :, :] - absent[:1]).abs() > 1e-4).all():
            differs = (seen - absent).abs() > 1e-4
            valid = valid & (~valid | differs).any(-3, keepdim=True)
    marked = dict(batch)
    if not every or not valid.all():
        dates = torch.where(dates.isfinite(), dates, 0)
        dates[..., channels, :, :] = torch.where(valid, seen, torch.nan)
        marked['image'] = dates.flatten(-4, -3)
    if image.ndim == 4:
        marked[VALID_KEY] = valid.any(dim=-3).to(image.dtype)
    return marked


def refuse_empty(batch: dict[str, Any], nodata: float | None) -> None:
    """Stop where a marked batch has no valid value at all, naming its files."""
    missing = VALID_KEY in batch and not batch[VALID_KEY].any()
    if missing or (batch['image'].ndim == 5 and batch['image'].isnan().all()):
        paths = batch.get('path') or batch.get('filename') or []
        names = ', '.join(dict.fromkeys(map(str, paths)))
        raise ValueError(
            'image: a batch has no valid value in the bands of the model: all are NaN, '
            f'infinite or nodata ({nodata}). {f"Its files: {names}. " * bool(names)}'
            'Exclude such files, or pass batch=BatchSpec(nodata=None) if this value is '
            'no gap.'
        )


def fold_dates(
    batch: dict[str, Any], statistics: BatchStatistics
) -> tuple[Tensor, Tensor]:
    """Make every date of a marked batch a sample.

    Returns:
        Images ``(B * dates, len(data_bands), H, W)``, and the pixels that are no
        padding, float ``(B * dates, 1, H, W)``.
    """
    statistics.check(batch['image'])
    image = statistics.by_date(batch['image']).flatten(0, -4)
    if VALID_KEY in batch:
        return image, batch[VALID_KEY].flatten(0, 1).unsqueeze(1)
    return image, torch.ones_like(image[:, :1])


def sample_indices(
    image: Tensor, dates: int, before: int, rank: int, processes: int
) -> Tensor:
    """Number the samples of a batch among those of all processes.

    Lightning deals samples to the processes in turn, all dates of one to one.

    Args:
        image: The samples ``(B, ...)``, every date a sample.
        dates: Dates of each image that the datamodule delivered.
        before: Samples that this process had before the batch.
        rank: Number of this process.
        processes: Number of processes.

    Returns:
        Indices ``(B,)``, on the device of *image*.
    """
    index = before + torch.arange(len(image), device=image.device)
    return (index // dates * processes + rank) * dates + index % dates


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
