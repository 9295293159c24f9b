# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo's raster datasets as images to be mapped."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from affine import Affine
from pyproj import CRS
from torchgeo.datasets import RasterDataset

from ..bands import SENTINEL2, Sensor, band_indices, normalize_bands
from .raster import Raster

__all__ = ('dataset_raster',)


@dataclass(frozen=True)
class _DatasetRaster(Raster):
    """An image that a dataset of TorchGeo reads.

    Attributes:
        dataset: The dataset.
        channels: Where the bands stand in its images.
        time: The slice of time that is asked for.
        nodata: A pixel is missing where all bands have this value; None without.
    """

    dataset: RasterDataset = field(kw_only=True, repr=False)
    channels: tuple[int, ...] = field(kw_only=True)
    time: slice = field(kw_only=True)
    nodata: float | None = field(kw_only=True)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from any other image, and from itself before a change."""
        files = [(str(f), os.stat(f)) for f in self.dataset.index.filepath]
        return {
            **super().identity,
            'files': [[f, stat.st_size, stat.st_mtime_ns] for f, stat in files],
            'time': str(self.time),
            'channels': self.channels,
            'nodata': self.nodata,
        }

    def _pixels(self, row: int, column: int, height: int, width: int) -> np.ndarray:
        """Raw values of a window, as grid sampling gives them."""
        # The transform is that of the first pixel, which a crop moves.
        whole = self.transform @ Affine.translation(-self.column, -self.row)
        west, north = whole @ (column, row)
        east, south = whole @ (column + width, row + height)
        query = (slice(west, east), slice(south, north), self.time)
        image = self.dataset[query]['image'].float()
        if image.shape[-2:] != (height, width):
            raise ValueError(
                f'{self.name} gave {tuple(image.shape[-2:])} pixels where {height} x '
                f'{width} were asked for, at {query}.'
            )
        found: np.ndarray = image.numpy()[list(self.channels)]
        if self.nodata is not None:
            found[:, (found == self.nodata).all(0)] = np.nan
        return found


def dataset_raster(
    dataset: RasterDataset,
    bands: Sequence[str],
    time: slice | None = None,
    sensor: str | Sensor = SENTINEL2,
    nodata: float | None = 0.0,
    offset: float = 0.0,
) -> Raster:
    """Take a dataset of TorchGeo as an image that is to be mapped.

    It is read by windows, as with TorchGeo's ``GridGeoSampler``: what covers a place at
    several times within *time*, or in several files, is merged by the dataset.

    Args:
        dataset: For example ``torchgeo.datasets.Sentinel2``, without transforms.
        bands: Wanted bands, in any spelling.
        time: Slice of time, as in the dataset's ``bounds[2]``; None for all of it.
        sensor: The sensor the bands belong to.
        nodata: A pixel is missing where all its bands have this value; None without.
        offset: Added to raw values; -1000 for digital numbers of Sentinel-2 since
            processing baseline 04.00.

    Returns:
        The image, in the system and resolution of the dataset.

    Raises:
        ValueError: If the dataset lacks a band.
    """
    channels = band_indices(bands, dataset.bands, sensor)
    x, y, t = dataset.bounds
    width, height = (round((s.stop - s.start) / s.step) for s in (x, y))
    return _DatasetRaster(
        type(dataset).__name__,
        normalize_bands(bands, sensor),
        height,
        width,
        Affine(x.step, 0, x.start, 0, -y.step, y.stop),
        CRS.from_user_input(dataset.crs),
        (),
        offset,
        dataset=dataset,
        channels=tuple(channels),
        time=time or t,
        nodata=nodata,
    )
