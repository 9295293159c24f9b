# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Saliency in float64, patch by patch, written from its definition."""

import numpy as np

#: The channels of the images of this module.
BANDS = ('B03', 'B04', 'B08', 'B11')

#: The two channels of each index.
_PAIRS = ((2, 1), (0, 2), (3, 2))

#: A map with a smaller range is flat, and becomes 0.
_FLAT = 1e-3


def index_oracle(image: np.ndarray) -> np.ndarray:
    """NDVI, NDWI and NDBI ``(3, H, W)`` of reflectance ``(4, H, W)``."""
    bands = image.astype('float64')
    layers = []
    for a, b in ((bands[i], bands[j]) for i, j in _PAIRS):
        with np.errstate(all='ignore'):
            layers.append(np.where(abs(a + b) < 1e-6, 0, (a - b) / (a + b)))
    return np.clip(layers, -1, 1)


def statistics_oracle(
    image: np.ndarray, valid: np.ndarray, patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Richness and heterogeneity of each patch; NaN where no index counts.

    *valid* is ``(H, W)``, or ``(4, H, W)`` by channel.
    """
    layers = index_oracle(image)
    by_band = np.broadcast_to(valid, image.shape)
    counted = [by_band[i] & by_band[j] for i, j in _PAIRS]
    grid = valid.shape[-2] // patch, valid.shape[-1] // patch
    richness, heterogeneity = np.full((2, *grid), np.nan)
    for row, column in np.ndindex(grid):
        rows = slice(row * patch, (row + 1) * patch)
        columns = slice(column * patch, (column + 1) * patch)
        some = [
            layer[rows, columns][pixels[rows, columns]]
            for layer, pixels in zip(layers, counted, strict=True)
            if pixels[rows, columns].any()
        ]
        if some:
            richness[row, column] = np.mean([abs(values).mean() for values in some])
            heterogeneity[row, column] = np.mean([values.std() for values in some])
    return richness, heterogeneity


def saliency_oracle(
    image: np.ndarray, valid: np.ndarray, patch: int, alpha: float = 0.5
) -> np.ndarray:
    """Saliency of each patch; NaN if rounding decides whether a map is flat."""
    saliency = np.zeros((valid.shape[-2] // patch, valid.shape[-1] // patch))
    maps = statistics_oracle(image, valid, patch)
    for weight, values in zip((alpha, 1 - alpha), maps, strict=True):
        counted = np.isfinite(values)
        spread = np.ptp(values[counted]) if counted.any() else 0.0
        if abs(spread - _FLAT) < 1e-5:
            return np.full_like(saliency, np.nan)
        if spread > _FLAT:
            scaled = (values - values[counted].min()) / spread
            saliency += weight * np.where(counted, scaled, 0)
    return saliency
