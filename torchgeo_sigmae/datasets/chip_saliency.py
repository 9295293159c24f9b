# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""How salient a chip is, in numbers that can be compared between chips."""

import numpy as np
import torch

from ..bands import BandSet
from ..patches import valid_patches, valid_values
from ..transforms.indices import (
    DEFAULT_INDICES,
    get_index,
    index_channels,
    spectral_indices,
)
from ..transforms.saliency import masked_indices, patch_statistics

__all__ = ('ChipSaliency',)

#: Side of a patch, as of the default encoder.
_PATCH = 8


class ChipSaliency:
    """Mean of richness and internal heterogeneity over the patches of a chip.

    The saliency of patches is scaled to [0, 1] within each image, so it ranks patches
    but not chips. These are the statistics before that, see :func:`.patch_statistics`.
    Patches without data do not count, nor do those cut off by the border.
    """

    def __init__(self, bands: BandSet, scale: float, offset: float) -> None:
        """Initialize a new ChipSaliency instance.

        Args:
            bands: Bands of the chips.
            scale: Reflectance = value x scale + offset.
            offset: Reflectance at 0.

        Raises:
            ValueError: If a band of the three default indices is missing.
        """
        indices = [get_index(index) for index in DEFAULT_INDICES]
        used = {channel for i in indices for channel in index_channels(i, bands)}
        self._channels = sorted(used)
        names = [bands[channel] for channel in self._channels]
        self._bands = BandSet(names, bands.sensor)
        self._scale, self._offset = scale, offset

    def __call__(self, values: np.ndarray) -> float:
        """Measure raw values ``(C, H, W)``, NaN where missing; 0 without any data."""
        side = min(_PATCH, *values.shape[1:])
        height, width = (n // side * side for n in values.shape[1:])
        image = torch.from_numpy(values[:, :height, :width])
        valid = valid_values(image, 0)
        image = image[self._channels] * self._scale + self._offset
        if valid.all():
            # Several times as fast as with a mask.
            indices = spectral_indices(image, self._bands)
            return float(sum(x.mean() for x in patch_statistics(indices, side)) / 2)
        indices, counted = masked_indices(
            image, self._bands, DEFAULT_INDICES, valid[self._channels]
        )
        some = valid_patches(counted, side).any(dim=0)
        parts = patch_statistics(indices, side, counted)
        return float(sum(x[some].mean() for x in parts) / 2) if some.any() else 0.0
