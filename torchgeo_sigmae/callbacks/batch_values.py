# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Check the values of the first batch against pretrained weights."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..weights import Weights

__all__ = ('as_vector', 'warn_of_values')

#: Standardized batches have medians of mean and standard deviation within these, even
#: if they show nothing but snow or water.
_LARGEST_MEAN, _LEAST_STD, _LARGEST_STD = 15.0, 0.01, 6.0

#: Share of values that is next to none; the mean of a batch of snow.
_FEW, _BRIGHT = 0.01, 3.0


def warn_of_values(
    image: Tensor, weights: Weights, factor: Tensor, shift: Tensor
) -> bool:
    """Warn where the values of a batch are not normalized as the weights expect.

    Standardized values lie on both sides of 0, about a third of them beyond 1. Raw
    digital numbers are far larger; reflectance, and bytes scaled to [0, 1] or [-1, 1],
    are positive or within 1. Pixels that are 0 or not finite do not count.

    Args:
        image: A batch as the model gets it, ``(B, C, H, W)`` or ``(B, T, C, H, W)``.
        weights: The pretrained weights.
        factor: What the first layer makes up for, see :func:`.match_normalization`.
        shift: Likewise.

    Returns:
        True if the values are as expected.
    """
    values = image.detach().float().movedim(-3, 0).flatten(1)
    values = torch.where(values.isfinite() & (values != 0), values, torch.nan)
    if len(values) % len(factor) == 0:
        factor, shift = (
            x.to(values).repeat(len(values) // len(x))[:, None] for x in (factor, shift)
        )
        values = values * factor + shift
    mean = values.nanmean(dim=1)
    std = (values - mean[:, None]).square().nanmean(dim=1).sqrt()
    if _standardized(values, mean, std):
        return True
    stored, units = as_vector(weights.info.get('mean')), ''
    if stored is not None:
        middle, theirs = float(mean.nanmedian()), float(stored.median())
        units = f' The mean of the weights is about {theirs:.4g}'
        if not theirs / 3 < middle < theirs * 3:
            units += (
                f', that of your values {middle:.3g}: convert mean and std to the unit '
                'of your values'
            )
        units += '.'
    name = weights.name
    rank_zero_warn(
        f'weights: {name!r} expects bands with mean 0 and standard deviation 1, but '
        'those of the first training batch have means of '
        f'{_range(mean)} and standard deviations of {_range(std)}. Normalize the '
        'images in the dataset or datamodule, (value - mean) / std for each band, '
        'with mean and std of the weights: '
        f'torchgeo_sigmae.weights.read_weights({name!r}).info.'
        f'{units}'
    )
    return False


def _standardized(values: Tensor, mean: Tensor, std: Tensor) -> bool:
    """Return whether values ``(C, N)`` can be standardized ones."""
    valid = values[values.isfinite()]
    if not len(valid):
        return True
    middle, spread = float(mean.nanmedian()), float(std.nanmedian())
    if abs(middle) > _LARGEST_MEAN or not _LEAST_STD < spread < _LARGEST_STD:
        return False
    small = float((valid.abs() > 1).float().mean()) < _FEW
    # Snow is brighter than the mean in all bands, but by far.
    positive = float((valid < 0).float().mean()) < _FEW and middle < _BRIGHT
    return not (small or positive)


def _range(values: Tensor) -> str:
    """Least and greatest value, in words."""
    values = values[values.isfinite()]
    return f'{float(values.min()):.3g} to {float(values.max()):.3g}'


def as_vector(values: Any) -> Tensor | None:
    """Numbers as a vector; None if one of them is missing."""
    if values is None or (isinstance(values, list | tuple) and None in values):
        return None
    return torch.as_tensor(values, dtype=torch.float64).flatten()
