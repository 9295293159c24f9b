# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The reader of rasters: scenes of any size, read by windows."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import rasterio
from affine import Affine
from rasterio import CRS
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.features import geometry_mask
from rasterio.transform import array_bounds
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ..bands import (
    SENTINEL2_TEN_BANDS,
    BandSet,
)

__all__ = ('BandFile', 'RasterScene', 'opened')

#: Pixel types that a cached scene keeps; all others become float32.
_SMALL_TYPES = {'int8', 'uint8', 'int16', 'uint16'}


@dataclass(frozen=True)
class BandFile:
    """The wanted bands of one file, as its header describes them.

    Attributes:
        path: The file.
        indexes: Positions of the bands in the file, from 1.
        height: Height in pixels.
        width: Width in pixels.
        dtype: Smallest type that holds all pixels exactly, or ``'float32'``.
        nodata: Value of missing pixels, or None.
        transform: From columns and rows to coordinates.
        crs: Coordinate reference system, or None.
    """

    path: str
    indexes: tuple[int, ...]
    height: int
    width: int
    dtype: str
    nodata: float | None
    transform: Affine
    crs: CRS | None

    @classmethod
    def open(
        cls,
        path: str,
        bands: BandSet,
        bands_in_file: Sequence[str] | None = None,
    ) -> 'BandFile':
        """Read the header of a file, see :meth:`.RasterScene.open`."""
        with opened(path) as file:
            names = bands_in_file or file.descriptions
            if not any(names):
                raise ValueError(
                    f'bands_in_file: {path} has no band descriptions. Pass '
                    f'bands_in_file= with the names of its {file.count} bands in order.'
                )
            if len(names) != file.count:
                raise ValueError(
                    f'bands_in_file: {len(names)} names {list(names)} for the '
                    f'{file.count} bands of {path}. Pass one name per band, or exclude '
                    'the file.'
                )
            available = BandSet.from_data([n or '' for n in names], bands.sensor)
            try:
                channels = available.channels(bands)
            except ValueError as error:
                raise ValueError(
                    f'bands: {path} has the bands {list(names)}. {error} Or exclude '
                    'the file.'
                ) from error
            types = {file.dtypes[channel] for channel in channels}
            if any(kind.startswith('complex') for kind in types):
                raise ValueError(
                    f'{path} holds complex numbers, whose imaginary part would be '
                    'lost. Write amplitudes, or exclude the file.'
                )
            return cls(
                path,
                tuple(channel + 1 for channel in channels),
                file.height,
                file.width,
                types.pop() if len(types) == 1 and types <= _SMALL_TYPES else 'float32',
                file.nodata,
                file.transform,
                file.crs,
            )


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
        files: The files that hold the bands, in order.
        nodata: Value of missing pixels, or None.
        offset: Added to raw values.
        row: First row of the files that belongs to the scene.
        column: First column of the files that belongs to the scene.
        aoi: Area of interest in the scene's system: pixels outside are missing.
        pixels: Raw values of the whole scene ``(C, H, W)`` if it is cached, else None.
    """

    path: str
    bands: BandSet
    height: int
    width: int
    transform: Affine
    crs: CRS | None
    files: tuple[BandFile, ...] = ()
    nodata: float | None = None
    offset: float = 0.0
    row: int = 0
    column: int = 0
    aoi: BaseGeometry | None = field(default=None, repr=False)
    pixels: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        path: str,
        bands: Sequence[str] = SENTINEL2_TEN_BANDS,
        bands_in_file: Sequence[str] | None = None,
        nodata: float | None = None,
    ) -> 'RasterScene':
        """Open a file without reading its pixels.

        Args:
            path: The file.
            bands: Wanted bands, in any spelling.
            bands_in_file: Names of the bands in the file, in order; None for the band
                descriptions in the file.
            nodata: Value of missing pixels; None for the file's own.

        Returns:
            The scene.

        Raises:
            OSError: If the file cannot be read; the message names it.
            ValueError: If the file lacks a band or band names, or is complex.
        """
        bands = BandSet(bands)
        file = BandFile.open(path, bands, bands_in_file)
        return cls.from_files(path, bands, [file], nodata)

    @classmethod
    def from_files(
        cls,
        path: str,
        bands: BandSet,
        files: Sequence[BandFile],
        nodata: float | None = None,
    ) -> 'RasterScene':
        """Combine files of the same ground; *bands* are canonical, in their order."""
        finest = max(files, key=lambda file: file.height * file.width)
        for file in files:
            if not _same_ground(file, finest):
                raise ValueError(
                    f'scene: {file.path} does not show the same ground as '
                    f'{finest.path}. Keep the bands of one product in a folder.'
                )
        values = {file.nodata for file in files if file.nodata is not None}
        if nodata is None and len(values) > 1:
            raise ValueError(
                f'nodata: the files of {path} have the values {sorted(values)}. Pass '
                'the one to use, nodata=.'
            )
        return cls(
            path,
            bands,
            finest.height,
            finest.width,
            finest.transform,
            finest.crs,
            tuple(files),
            nodata if nodata is not None or not values else values.pop(),
        )

    @property
    def num_pixels(self) -> int:
        """Number of pixels of one band."""
        return self.height * self.width

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
            Raw values plus the offset in float32, ``(C, H, W)``. Missing pixels are NaN
            in all bands: those outside the scene or its area of interest, those where
            all bands equal a nodata value of 0, and those where any band equals another
            nodata value.

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
        """Cut out a window, which lies in the scene.

        Args:
            row: Its first row.
            column: Its first column.
            height: Height in pixels.
            width: Width in pixels.

        Returns:
            The window as a scene.
        """
        return replace(
            self,
            height=int(height),
            width=int(width),
            transform=self.transform @ Affine.translation(column, row),
            row=self.row + int(row),
            column=self.column + int(column),
            pixels=None,
        )

    def cached(self) -> 'RasterScene':
        """Read all pixels into memory.

        Returns:
            The same scene, whose windows are cut from memory.

        Raises:
            OSError: If a file cannot be read; the message names it.
        """
        whole = Window(0, 0, self.width, self.height)
        pixels = self._raw(whole, (self.height, self.width), self._dtype)
        return replace(self, pixels=pixels)

    @property
    def _dtype(self) -> str:
        """Type of the cached pixels."""
        types = {file.dtype for file in self.files}
        return types.pop() if len(types) == 1 else 'float32'

    def _read_inside(self, window: Window, shape: tuple[int, int]) -> np.ndarray:
        """Values of a window inside the scene, resampled to *shape*."""
        values = self._raw(window, shape)
        if self.nodata is not None and not math.isnan(self.nodata):
            with np.errstate(over='ignore'):  # of float64; such pixels are infinite too
                equal = values == np.float32(self.nodata)
            # A single dark band may be 0.
            values[:, equal.all(0) if self.nodata == 0 else equal.any(0)] = np.nan
        if self.offset:
            values += np.float32(self.offset)
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
    ) -> np.ndarray:
        """Raw values of a window inside the scene, a new array ``(C, *shape)``."""
        if self.pixels is not None and shape == (window.height, window.width):
            return self.pixels[:, *window.toslices()].astype(dtype)
        fine_height = max(file.height for file in self.files)
        fine_width = max(file.width for file in self.files)
        bands = []
        for file in self.files:
            down, right = file.height / fine_height, file.width / fine_width
            part = Window(
                (self.column + window.col_off) * right,
                (self.row + window.row_off) * down,
                window.width * right,
                window.height * down,
            )
            with opened(file.path) as source:
                bands.append(
                    source.read(
                        file.indexes,
                        window=part,
                        out_shape=(len(file.indexes), *shape),
                        out_dtype=dtype,
                    )
                )
        return np.concatenate(bands) if len(bands) > 1 else bands[0]


def _same_ground(file: BandFile, finest: BandFile) -> bool:
    """Whether the corners of two files agree to half a pixel of the finer one."""
    if file is finest:
        return True
    corners, wanted = (
        (one.transform @ (0, 0), one.transform @ (one.width, one.height))
        for one in (file, finest)
    )
    half = max(abs(finest.transform.a), abs(finest.transform.b)) / 2
    near = np.allclose(corners, wanted, rtol=0, atol=half)
    return near and bool(file.crs == finest.crs)


@contextmanager
def opened(path: str) -> Iterator[rasterio.DatasetReader]:
    """Open a raster file; errors name the file, and no georeference is needed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                yield file
    # Damaged headers ask for any amount of memory, or hold names in no encoding.
    except (RasterioError, CPLE_BaseError, MemoryError, UnicodeError) as error:
        raise OSError(
            f'{path} cannot be read: {error}. The file may be damaged or truncated. '
            'Replace it, or exclude it.'
        ) from error
