# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes to be mapped: GeoTIFFs, folders with a file per band, TorchGeo datasets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio import CRS
from rasterio.errors import RasterioError
from rasterio.features import geometry_window
from rasterio.transform import array_bounds
from rasterio.windows import Window, WindowError
from shapely.geometry.base import BaseGeometry
from torchgeo.datasets import RasterDataset

from ..bands import BandSet
from ..datasets.band_files import change_unit
from ..datasets.paths import clean_path, is_remote
from ..datasets.scenes import RasterScene

__all__ = (
    'crop',
    'dataset_raster',
    'nodata_values',
    'open_raster',
)


def open_raster(
    path: str | Path,
    bands: Sequence[str],
    bands_in_file: Sequence[str] | None = None,
    nodata: float | None = None,
    scale: float | None = None,
    offset: float | None = None,
    mask_band: str | None = None,
) -> RasterScene:
    """Open a scene to map it, without reading its pixels.

    Args:
        path: A file, or a folder with a file per band, see :meth:`.RasterScene.open`.
        bands: Wanted bands, in any spelling.
        bands_in_file: Names of the bands of a GeoTIFF without descriptions, in order.
        nodata: Value of missing pixels; None for the file's own, or else 0.
        scale: Reflectance per unit; None for that of the file, or else 1e-4.
        offset: Reflectance at 0: reflectance = value x scale + offset. None for what
            the file says, or else 0.
        mask_band: See :meth:`.RasterScene.open`.

    Returns:
        The scene. Its values are reflectance x 10000.
    """
    path = clean_path(path)
    if not is_remote(path) and not Path(path).exists():
        raise FileNotFoundError(f'scene: there is no file or folder {path!r}.')
    scene = RasterScene.open(
        path, bands, bands_in_file, nodata, scale, offset, mask_band=mask_band
    )
    transform = scene.transform
    if not np.isfinite(tuple(transform)).all() or transform.is_degenerate:
        raise ValueError(
            f'scene: {path} has the geotransform {tuple(transform)[:6]}, which cannot '
            'be used. Write the file again with a valid one.'
        )
    files = [
        replace(file, nodata=tuple(0.0 if n is None else n for n in file.nodata))
        for file in scene.files
    ]
    return replace(scene, files=tuple(files))


@dataclass(frozen=True, eq=False)
class _DatasetScene(RasterScene):
    """A scene that a dataset of TorchGeo reads; *channels* are its bands' positions."""

    dataset: RasterDataset = field(kw_only=True, repr=False)
    channels: tuple[int, ...] = field(kw_only=True)
    time: slice = field(kw_only=True)
    nodata: float | None = field(kw_only=True)
    scale: float = field(kw_only=True)
    offset: float = field(kw_only=True)

    @property
    def paths(self) -> list[str]:
        """The files that the pixels come from."""
        return [str(path) for path in self.dataset.index.filepath]

    def _raw(
        self, window: Window, shape: tuple[int, int], dtype: str = 'float32'
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values of a window inside the scene, reflectance x 10000, and the missing."""
        west, north = self.transform @ (window.col_off, window.row_off)
        east, south = self.transform @ (
            window.col_off + window.width,
            window.row_off + window.height,
        )
        x, y = slice(west, east), slice(south, north)
        if shape != (window.height, window.width):
            x = slice(west, east, (east - west) / shape[1])
            y = slice(south, north, (north - south) / shape[0])
        try:
            image = self.dataset[x, y, self.time]['image']
        except RasterioError as error:
            raise OSError(f'{self.path} cannot be read: {error}') from error
        if tuple(image.shape[-2:]) != shape:
            raise ValueError(
                f'{self.path} returned {tuple(image.shape[-2:])} pixels instead of '
                f'{shape}, at x {x}, y {y}.'
            )
        values = image.numpy()[list(self.channels)].astype(dtype)
        missing = nodata_values(values, self.nodata)
        change_unit(values, (self.scale, self.offset), self.unit)
        return values, missing


def nodata_values(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """Mask of nodata values ``(C, H, W)``; with 0, only where all bands are 0."""
    missing: np.ndarray = np.zeros(values.shape, bool)
    if nodata is not None:
        missing = values == np.asarray(nodata, values.dtype)
    if nodata == 0:
        # A single dark band may be 0.
        missing[:] = missing.all(0)
    return missing


def dataset_raster(
    dataset: RasterDataset,
    bands: Sequence[str],
    time: slice | None = None,
    nodata: float | None = 0.0,
    scale: float = 1e-4,
    offset: float = 0.0,
) -> RasterScene:
    """Use a dataset of TorchGeo as a scene, in its own system and resolution.

    It is read by windows, as with TorchGeo's ``GridGeoSampler``. Files that cover the
    same ground within *time* are merged by the dataset.

    Args:
        dataset: For example ``torchgeo.datasets.Sentinel2``, without transforms.
        bands: Wanted bands, in any spelling.
        time: Slice of time, as in the dataset's ``bounds[2]``; None for all of it.
        nodata: Value of missing pixels; None without.
        scale: Reflectance per unit.
        offset: Reflectance at 0; -0.1 for digital numbers of Sentinel-2 since
            processing baseline 04.00.
    """
    bands = BandSet(bands)
    channels = BandSet.from_data(dataset.bands, bands.sensor).channels(bands)
    x, y, t = dataset.bounds
    width, height = (round((s.stop - s.start) / s.step) for s in (x, y))
    return _DatasetScene(
        type(dataset).__name__,
        bands,
        height,
        width,
        Affine(x.step, 0, x.start, 0, -y.step, y.stop),
        CRS.from_user_input(dataset.crs),
        nodata=nodata,
        scale=scale,
        offset=offset,
        dataset=dataset,
        channels=tuple(channels),
        time=time or t,
    )


def crop(scene: RasterScene, aoi: BaseGeometry, patch_size: int = 1) -> RasterScene:
    """Keep the part of a scene that lies in an area of interest.

    Args:
        scene: The scene.
        aoi: The area, in the scene's system.
        patch_size: The patches stay where they were: rows and columns are cut at
            multiples of this number of pixels.

    Returns:
        The scene around the area; its pixels outside the area are missing.
    """
    try:
        window = geometry_window(scene, [aoi])
    except WindowError as error:
        bounds = array_bounds(scene.height, scene.width, scene.transform)
        raise ValueError(
            f'aoi: the area {_extent(*aoi.bounds)} lies outside {scene.path} '
            f'{_extent(*bounds)}, both in the system of the scene.'
        ) from error
    column, row = (
        int(n // patch_size * patch_size) for n in (window.col_off, window.row_off)
    )
    right, bottom = (
        min(math.ceil(end / patch_size) * patch_size, most)
        for end, most in (
            (window.col_off + window.width, scene.width),
            (window.row_off + window.height, scene.height),
        )
    )
    part = scene.part(row, column, bottom - row, right - column)
    aoi = aoi if scene.aoi is None else scene.aoi.intersection(aoi)
    return replace(part, aoi=aoi)


def _extent(west: float, south: float, east: float, north: float) -> str:
    """Describe a box."""
    return f'({west:.6g} to {east:.6g}, {south:.6g} to {north:.6g})'
