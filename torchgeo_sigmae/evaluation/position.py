# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The share of the position in the variance of features of patches."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ('position_share', 'rolled_batches')


def rolled_batches(images: Tensor, count: int, batch_size: int) -> Iterator[Tensor]:
    """Roll images ``(B, C, H, W)`` by random shifts, about *count* in all."""
    generator = torch.Generator().manual_seed(0)
    side = max(images.shape[-2:])
    for _ in range(math.ceil(count / len(images))):
        shifts = torch.randint(side, (len(images), 2), generator=generator)
        rolled = [
            image.roll(shift, (-2, -1))
            for image, shift in zip(images, shifts.tolist(), strict=True)
        ]
        yield from torch.stack(rolled).split(batch_size)


def position_share(total: Tensor, square: Tensor, count: int) -> float:
    """Share of position in the variance of tokens, in [0, 1].

    *total* is the sum of the tokens of *count* images at each position, ``(D, N)``,
    *square* the sum of their squares.
    """
    mean = total / count
    center = mean.mean(dim=1, keepdim=True)
    variance = (square / count).mean(dim=1) - center.squeeze(1).square()
    positions = (mean - center).square().mean(dim=1)
    within = (variance - positions).sum()
    between = positions.sum() - within / (count - 1)
    return float((between / variance.sum()).clamp(0, 1))
