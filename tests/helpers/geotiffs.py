# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""GeoTIFFs for tests."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

RGB = ('B04', 'B03', 'B02')


def write(
    path: Path,
    array: np.ndarray,
    bands: Sequence[str] | None = RGB,
    nodata: float | None = None,
    east: float | None = None,
    **profile: object,
) -> Path:
    """A GeoTIFF of ``(C, H, W)``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if east is not None:
        profile |= {
            'crs': CRS.from_epsg(32632),
            'transform': from_origin(east, 5_400_000, 10, 10),
        }
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(
            path,
            'w',
            driver='GTiff',
            count=len(array),
            height=array.shape[1],
            width=array.shape[2],
            dtype=array.dtype,
            nodata=nodata,
            **profile,
        ) as file:
            file.write(array)
            if bands is not None:
                file.descriptions = tuple(bands)
    return path


def numbered(height: int, width: int, count: int = 3) -> np.ndarray:
    """Every value says its band, row and column: 10000 b + 100 r + c + 1."""
    band, row, column = np.mgrid[:count, :height, :width]
    return (10000 * band + 100 * row + column + 1).astype('uint16')
