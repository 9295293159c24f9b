# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Saliency in float64, patch by patch, written from its definition."""

import numpy as np

#: The channels of the images of this module.
BANDS = ('B03', 'B04', 'B08', 'B11')

#: A map with a smaller range is flat, and becomes 0.
_FLAT = 1e-3


def index_oracle(image: np.ndarray) -> np.ndarray:
    """NDVI, NDWI and NDBI ``(3, H, W)`` of reflectance ``(4, H, W)``."""
    green, red, nir, swir = image.astype('float64')
    layers = []
    for a, b in ((nir, red), (green, nir), (swir, nir)):
        with np.errstate(all='ignore'):
            layers.append(np.where(abs(a + b) < 1e-6, 0, (a - b) / (a + b)))
    return np.clip(layers, -1, 1)


def statistics_oracle(
    image: np.ndarray, valid: np.ndarray, patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Richness and heterogeneity of each patch; NaN where no pixel is valid."""
    layers = index_oracle(image)
    grid = valid.shape[0] // patch, valid.shape[1] // patch
    richness, heterogeneity = np.full((2, *grid), np.nan)
    for row, column in np.ndindex(grid):
        rows = slice(row * patch, (row + 1) * patch)
        columns = slice(column * patch, (column + 1) * patch)
        values = layers[:, rows, columns][:, valid[rows, columns]]
        if values.size:
            richness[row, column] = abs(values).mean()
            heterogeneity[row, column] = values.std(axis=1).mean()
    return richness, heterogeneity


def saliency_oracle(
    image: np.ndarray, valid: np.ndarray, patch: int, alpha: float = 0.5
) -> np.ndarray:
    """Saliency of each patch; NaN if rounding decides whether a map is flat."""
    saliency = np.zeros((valid.shape[0] // patch, valid.shape[1] // patch))
    maps = statistics_oracle(image, valid, patch)
    for weight, values in zip((alpha, 1 - alpha), maps, strict=True):
        known = np.isfinite(values)
        spread = np.ptp(values[known]) if known.any() else 0.0
        if abs(spread - _FLAT) < 1e-5:
            return np.full_like(saliency, np.nan)
        if spread > _FLAT:
            scaled = (values - values[known].min()) / spread
            saliency += weight * np.where(known, scaled, 0)
    return saliency
