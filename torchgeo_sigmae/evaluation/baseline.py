# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The baseline of frozen encoders: statistics of the bands."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..bands import SENTINEL2_TEN_BANDS, BandSet
from ..patches import cut_patches

__all__ = ('POOLS', 'BandStatistics', 'pool')

#: How the features of all patches become those of an image.
POOLS: tuple[str, ...] = ('mean', 'mean+std')


class BandStatistics(nn.Module):
    """Mean and standard deviation of every band: the baseline of every encoder."""

    name = 'band mean and std'

    def __init__(self, bands: Sequence[str] = SENTINEL2_TEN_BANDS) -> None:
        """Initialize with the names of the bands."""
        super().__init__()
        self.bands = BandSet.from_data(bands)

    def forward(self, image: Tensor, patches: Tensor | None = None) -> Tensor:
        """Describe images of raw values ``(B, C, H, W)``: ``(B, 2 C)``."""
        return pool(image.flatten(2), 'mean+std')

    def patch_features(self, image: Tensor, patch_size: int = 8) -> Tensor:
        """Describe the patches of images: ``(B, 2 C, H / p, W / p)``."""
        return pool(cut_patches(image, patch_size).flatten(-2), 'mean+std')


def pool(values: Tensor, pooling: str) -> Tensor:
    """Pool features ``(B, D, ..., N)`` to ``(B, D, ...)``, or to ``(B, 2 D, ...)``."""
    mean = values.mean(dim=-1)
    if pooling == 'mean':
        return mean
    return torch.cat([mean, values.std(dim=-1, correction=0)], dim=1)
