# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From the batch of a loader to images whose missing values are marked."""

from typing import Any

import torch
from torch import Tensor

from ..patches import valid_values
from ..transforms.indices import require_float
from .settings import BatchSpec
from .statistics import BatchStatistics

__all__ = (
    'VALID_KEY',
    'fold_dates',
    'mark_missing',
    'refuse_empty',
    'sample_indices',
    'select_image',
    'take_batch',
)

#: Key of a mask in a batch, ``(B, dates, H, W)``, float: 1 where any band has data.
#: kornia moves keys that start with ``mask`` along with the image; padding becomes 0.
VALID_KEY = 'mask_valid'


def take_batch(
    batch: dict[str, Any],
    spec: BatchSpec,
    statistics: BatchStatistics,
    datamodule_normalizes: bool = False,
    allow_empty: bool = False,
) -> dict[str, Any]:
    """Bring the batch of a loader into the form that is augmented.

    Args:
        batch: The batch.
        spec: The argument ``batch`` of the task.
        statistics: What the batch holds.
        datamodule_normalizes: Whether the datamodule normalizes batches, later.
        allow_empty: Whether a batch may lack any valid value.

    Returns:
        The batch with ``'image'``, NaN where values are missing, normalized unless the
        datamodule does that.

    Raises:
        TypeError: See :func:`mark_missing`.
        ValueError: See :func:`mark_missing` and :func:`refuse_empty`.
    """
    if spec.key != 'image' and isinstance(batch, dict):
        batch = select_image(batch, spec.key)
    raw = datamodule_normalizes or bool(spec.normalize)
    batch = mark_missing(batch, statistics, spec.nodata, not raw)
    if not allow_empty:
        refuse_empty(batch, spec.nodata)
    if spec.normalize:
        batch['image'] = statistics.normalize(batch['image'])
    return batch


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
        # One band shows whether all bands of any pixel can have the value.
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
