# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The reader of rasters: scenes of any size, read by windows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio import CRS
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError
from rasterio.features import geometry_mask
from rasterio.transform import array_bounds
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ..bands import SENTINEL2_TEN_BANDS, BandSet
from .band_files import MASK_BANDS, UNIT, BandFile, change_unit
from .paths import clean_path
from .scene_files import open_files

__all__ = ('RasterScene',)

#: Rows of a scene that are read into memory at a time.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class RasterScene:
    """A scene of any size, read by windows.

    Its bands are those of one file, or of several files of the same ground. Coarser
    bands are read on the grid of the finest one, the nearest pixel each.

    Attributes:
        path: The file or folder.
        bands: Canonical names of the bands.
        height: Height in pixels.
        width: Width in pixels.
        transform: From columns and rows to coordinates.
        crs: Coordinate reference system; None without georeference.
        files: The files that hold the bands.
        mask_file: The file of the band that shows clouds, or None.
        mask_band: Name of that band: ``'SCL'`` or ``'QA_PIXEL'``.
        row: First row of the files that belongs to the scene.
        column: First column of the files that belongs to the scene.
        unit: Scale and offset of the values that are returned, where those of a file
            are known: reflectance = value x scale + offset.
        aoi: Area of interest in the scene's system: pixels outside are missing.
        pixels: Raw values of the whole scene ``(C, H, W)`` if it is cached, else None.
        missing: Which of them are missing, ``(C, H, W)``; None if none is.
    """

    path: str
    bands: BandSet
    height: int
    width: int
    transform: Affine
    crs: CRS | None
    files: tuple[BandFile, ...] = ()
    mask_file: BandFile | None = None
    mask_band: str | None = None
    row: int = 0
    column: int = 0
    unit: tuple[float, float] = (UNIT, 0.0)
    aoi: BaseGeometry | None = field(default=None, repr=False)
    pixels: np.ndarray | None = field(default=None, repr=False)
    missing: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        bands: Sequence[str] = SENTINEL2_TEN_BANDS,
        bands_in_file: Sequence[str] | None = None,
        nodata: float | None = None,
        scale: float | None = None,
        offset: float | None = None,
        allow_missing_bands: bool = False,
        mask_band: str | None = None,
    ) -> 'RasterScene':
        """Open a scene without reading its pixels.

        Args:
            path: A file that GDAL reads, also remote (``https://``, ``s3://``) or
                zipped; or a folder with a file per band, such as a Sentinel-2
                ``.SAFE`` product, zipped or not. Coarser bands are read on the grid of
                the finest one.
            bands: Wanted bands, in any spelling.
            bands_in_file: Names of the bands in the file, in order, without an alpha
                band; None for the band descriptions in the file.
            nodata: Value of missing pixels; None for the file's own.
            scale: Reflectance per unit of the file's values; None for what the file
                says: its scale and offset tags, or the metadata of a Sentinel-2
                product.
            offset: Reflectance at 0: reflectance = value x scale + offset. None for
                what the file says.
            allow_missing_bands: Whether the file may lack some of the bands, which
                become missing values.
            mask_band: ``'SCL'`` or ``'QA_PIXEL'``: a band of the file, or a file beside
                it that ends in this name, whose clouds and cloud shadows become missing
                values. None for no cloud mask.

        Raises:
            FileNotFoundError: If there is no such folder, or no file of a band in it.
            OSError: If the file cannot be read; the message names it.
            ValueError: If the file lacks a band or band names, has a band twice, or is
                complex, if the files of a folder do not show the same ground, or if
                the name of a Landsat product names another satellite.
        """
        path, names = clean_path(path), BandSet(bands)
        files, mask = open_files(
            path, names, bands_in_file, nodata, scale, offset, allow_missing_bands,
            mask_band,
        )  # fmt: skip
        finest = max(files, key=lambda file: file.height * file.width)
        return cls(
            path,
            names,
            finest.height,
            finest.width,
            finest.transform,
            finest.crs,
            tuple(files),
            mask,
            mask_band,
        )

    @property
    def num_pixels(self) -> int:
        """Number of pixels of one band."""
        return self.height * self.width

    @property
    def gcps(self) -> tuple[tuple[float, ...], ...]:
        """Ground control points, row, column, x, y, z, of a scene without transform."""
        if self.crs is not None or not self.files:
            return ()
        finest = max(self.files, key=lambda file: file.height * file.width)
        return tuple(
            (row - self.row, column - self.column, *position)
            for row, column, *position in finest.gcps
        )

    @property
    def gcps_crs(self) -> CRS | None:
        """The system of the ground control points."""
        return self.files[0].gcps_crs if self.files else None

    @property
    def is_part(self) -> bool:
        """True if the files reach beyond the scene."""
        height = max(file.height for file in self.files)
        width = max(file.width for file in self.files)
        return (height, width) != (self.height, self.width)

    @property
    def nbytes(self) -> int:
        """Memory that :meth:`cached` takes, in bytes."""
        return self.num_pixels * len(self.bands) * np.dtype(self._dtype).itemsize

    @property
    def paths(self) -> list[str]:
        """The files that the pixels come from."""
        return [file.path for file in self.files]

    @property
    def footprint(self) -> tuple[float, float, float, float] | None:
        """West, south, east, north in degrees; None if the place on Earth is unknown.

        The west is larger than the east if the scene crosses the date line.
        """
        if self.crs is None:
            return None
        bounds = array_bounds(self.height, self.width, self.transform)
        try:
            degrees = transform_bounds(self.crs, 'EPSG:4326', *bounds)
        # Local systems, or those of other planets.
        except (CPLE_BaseError, RasterioError, CRSError):
            return None
        west, south, east, north = map(float, degrees)
        return (west, south, east, north) if np.isfinite(degrees).all() else None

    def read(self, window: Window | None = None) -> np.ndarray:
        """Read a window, and no more.

        Args:
            window: Rows and columns, which may lie outside the scene; None for all.

        Returns:
            Values in float32, ``(C, H, W)``: in ``unit``, by default reflectance x
            10000, where the scale and offset of a file are known, else those of the
            file. Missing values are NaN: outside the scene, its area of interest or the
            mask of the file; under clouds of *mask_band*; where all spectral bands of
            the file (of several files, all wanted bands) are 0 and 0 is nodata; where
            the band equals another nodata value; and in bands that the file lacks.

        Raises:
            OSError: If a file cannot be read; the message names it.
        """
        window = window or Window(0, 0, self.width, self.height)
        column, row, width, height = map(int, window.flatten())
        image = np.full((len(self.bands), height, width), np.nan, np.float32)
        top, left = max(-row, 0), max(-column, 0)
        rows = min(height, self.height - row) - top
        columns = min(width, self.width - column) - left
        if rows > 0 and columns > 0:
            inside = Window(column + left, row + top, columns, rows)
            image[:, top : top + rows, left : left + columns] = self._read_inside(
                inside, (rows, columns)
            )
        return image

    def preview(self, stride: int) -> np.ndarray:
        """Read the whole scene at a lower resolution, from overviews if there are any.

        Args:
            stride: Number of rows and columns that become one.

        Returns:
            Values as in :meth:`read`, ``(C, ceil(H / stride), ceil(W / stride))``.
        """
        shape = math.ceil(self.height / stride), math.ceil(self.width / stride)
        return self._read_inside(Window(0, 0, self.width, self.height), shape)

    def part(self, row: int, column: int, height: int, width: int) -> 'RasterScene':
        """Cut out a window, which lies in the scene."""
        return replace(
            self,
            height=int(height),
            width=int(width),
            transform=self.transform @ Affine.translation(column, row),
            row=self.row + int(row),
            column=self.column + int(column),
            pixels=None,
            missing=None,
        )

    def cached(self) -> 'RasterScene':
        """Read all pixels; windows of the returned scene are cut from memory."""
        pixels = np.empty((len(self.bands), self.height, self.width), self._dtype)
        missing = None
        for row in range(0, self.height, _ROWS):
            height = min(_ROWS, self.height - row)
            strip = Window(0, row, self.width, height)
            part, holes = self._raw(strip, (height, self.width), self._dtype)
            pixels[:, row : row + height] = part
            if holes.any():
                missing = np.zeros(pixels.shape, bool) if missing is None else missing
                missing[:, row : row + height] = holes
        return replace(self, pixels=pixels, missing=missing)

    @property
    def _dtype(self) -> str:
        """Type of the cached pixels."""
        types = {file.dtype for file in self.files}
        return types.pop() if len(types) == 1 else 'float32'

    def _read_inside(self, window: Window, shape: tuple[int, int]) -> np.ndarray:
        """Values of a window inside the scene, resampled to *shape*."""
        values, missing = self._raw(window, shape)
        for file in self.files:
            if file.scales is None or file.offsets is None:
                continue
            for channel, scale, offset in zip(
                file.channels, file.scales, file.offsets, strict=True
            ):
                change_unit(values[channel], (scale, offset), self.unit)
        values[missing] = np.nan
        if self.aoi is not None:
            transform = (
                self.transform
                @ Affine.translation(window.col_off, window.row_off)
                @ Affine.scale(window.width / shape[1], window.height / shape[0])
            )
            values[:, geometry_mask([self.aoi], shape, transform)] = np.nan
        return values

    def _raw(
        self, window: Window, shape: tuple[int, int], dtype: str = 'float32'
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raw values ``(C, *shape)`` of a window inside, and which are missing."""
        size = len(self.bands), *shape
        if self.pixels is not None and shape == (window.height, window.width):
            inside = (slice(None), *window.toslices())
            missing = np.zeros(size, bool)
            if self.missing is not None:
                missing = self.missing[inside]
            return self.pixels[inside].astype(dtype), missing
        values, missing = np.zeros(size, dtype), np.ones(size, bool)
        dark = np.ones(shape, bool)
        for file in self.files:
            channels = list(file.channels)
            part, holes, zero = file.read(self._in_file(file, window), shape, dtype)
            values[channels], missing[channels] = part, holes
            # The files without nodata of 0 do not count.
            dark &= zero if 0 in file.nodata else True
        if any(0 in file.nodata for file in self.files):
            missing[:, dark] = True
        if self.mask_file is not None and self.mask_band is not None:
            part, _, _ = self.mask_file.read(
                self._in_file(self.mask_file, window), shape
            )
            missing[:, MASK_BANDS[self.mask_band](part[0])] = True
        return values, missing

    def _in_file(self, file: BandFile, window: Window) -> Window:
        """A window of the scene in the pixels of a file."""
        # The scene may be a part of its files, and they may be coarser.
        down = file.height / max(each.height for each in self.files)
        right = file.width / max(each.width for each in self.files)
        return Window(
            (self.column + window.col_off) * right,
            (self.row + window.row_off) * down,
            window.width * right,
            window.height * down,
        )
