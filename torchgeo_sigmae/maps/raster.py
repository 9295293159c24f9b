# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The image that is mapped: a GeoTIFF, or a folder with a file a band."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS
from rasterio.features import geometry_mask
from rasterio.windows import Window
from shapely import box
from shapely.geometry.base import BaseGeometry

from ..bands import SENTINEL2, Sensor, normalize_bands
from ..datasets.scenes import Scene, opened
from .folders import find_band_files, radiometric_offset

__all__ = ('Raster', 'open_raster')


@dataclass(frozen=True)
class Raster:
    """An image of any size, read by windows.

    Attributes:
        name: What to call it in messages.
        bands: Names of its bands.
        height: Height in pixels.
        width: Width in pixels.
        transform: From columns and rows to coordinates.
        crs: Coordinate reference system; None without georeference.
        scenes: Where the pixels are: one file with all bands, or one file a band,
            perhaps coarser.
        offset: Added to raw values.
        row: First row of the files that belongs to the image.
        column: First column of the files that belongs to the image.
        area: Outside of it pixels count as missing; in the image's system.
    """

    name: str
    bands: tuple[str, ...]
    height: int
    width: int
    transform: Affine
    crs: CRS | None
    scenes: tuple[Scene, ...]
    offset: float = 0.0
    row: int = 0
    column: int = 0
    area: BaseGeometry | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from any other image, and from itself before a change."""
        files = [(s, os.stat(s.path)) for s in self.scenes]
        return {
            'files': [
                [s.path, stat.st_size, stat.st_mtime_ns, s.channels, s.nodata]
                for s, stat in files
            ],
            'bands': list(self.bands),
            'offset': self.offset,
            'window': [self.row, self.column, self.height, self.width],
            'area': None if self.area is None else self.area.wkt,
        }

    def grid(self, patch_size: int) -> tuple[int, int, Affine]:
        """Describe the grid of the patches; those over the edge count.

        Args:
            patch_size: Side of a patch in pixels.

        Returns:
            Rows, columns, and the transform from them to coordinates.
        """
        return (
            math.ceil(self.height / patch_size),
            math.ceil(self.width / patch_size),
            self.transform @ Affine.scale(patch_size),
        )

    def windows(self, side: int, patch_size: int) -> Iterator[Window]:
        """Cut it into windows that no patch crosses, row by row.

        Args:
            side: Side of a window in pixels, a multiple of *patch_size*.
            patch_size: Side of a patch in pixels.

        Yields:
            Windows of *side* pixels; the last ones end with the last patch.
        """
        rows, columns, _ = self.grid(patch_size)
        for row in range(0, self.height, side):
            height = min(side, rows * patch_size - row)
            for column in range(0, self.width, side):
                width = min(side, columns * patch_size - column)
                yield Window(column, row, width, height)

    def read(self, window: Window) -> np.ndarray:
        """Read a window, and no more.

        Args:
            window: Rows and columns, which may lie outside the image.

        Returns:
            Values in float32, ``(C, H, W)``: raw values and the offset. NaN in all
            bands where a pixel is missing: outside the image or the area, where all
            bands are 0, if nothing else marks missing data, or any band has the value
            that does.

        Raises:
            OSError: If a file cannot be read; the message names it.
        """
        height, width = int(window.height), int(window.width)
        top, left = (max(0, -int(start)) for start in (window.row_off, window.col_off))
        row, column = int(window.row_off) + top, int(window.col_off) + left
        rows = min(height - top, self.height - row)
        columns = min(width - left, self.width - column)
        image = np.full((len(self.bands), height, width), np.nan, np.float32)
        if rows <= 0 or columns <= 0:
            return image
        found = self._pixels(self.row + row, self.column + column, rows, columns)
        found += np.float32(self.offset)
        if self.area is not None:
            inside = self.transform @ Affine.translation(column, row)
            outside = geometry_mask([self.area], (rows, columns), inside)
            found[:, outside] = np.nan
        image[:, top : top + rows, left : left + columns] = found
        return image

    def cropped(self, area: BaseGeometry, patch_size: int) -> 'Raster':
        """Keep what lies in an area.

        Args:
            area: The area, in the image's system.
            patch_size: The image keeps its grid of patches of so many pixels.

        Returns:
            The image around the area, whose pixels outside of it are missing.

        Raises:
            ValueError: If the area lies outside the image.
        """
        corners = [(0, 0), (self.width, 0), (self.width, self.height), (0, self.height)]
        extent = box(0, 0, self.width, self.height)
        xs, ys = ~self.transform @ shapely.get_coordinates(area).T
        wanted = box(xs.min(), ys.min(), xs.max(), ys.max())
        if not wanted.intersection(extent).area:
            west, south, east, north = area.bounds
            there = np.array([self.transform @ corner for corner in corners])
            raise ValueError(
                f'aoi: the area ({west:.6g} to {east:.6g}, {south:.6g} to {north:.6g}) '
                f'lies outside {self.name} ({there[:, 0].min():.6g} to '
                f'{there[:, 0].max():.6g}, {there[:, 1].min():.6g} to '
                f'{there[:, 1].max():.6g}, both in the system of the image).'
            )
        left, top, right, bottom = wanted.intersection(extent).bounds
        column, row = (int(x // patch_size * patch_size) for x in (left, top))
        right, bottom = (
            min(math.ceil(x / patch_size) * patch_size, most)
            for x, most in ((right, self.width), (bottom, self.height))
        )
        return replace(
            self,
            height=int(bottom) - row,
            width=int(right) - column,
            transform=self.transform @ Affine.translation(column, row),
            row=self.row + row,
            column=self.column + column,
            area=area,
        )

    def overview(self, stride: int) -> np.ndarray:
        """Read every so manieth pixel, for a picture.

        Args:
            stride: Rows and columns from one pixel to the next.

        Returns:
            Values ``(C, ceil(H / stride), ceil(W / stride))`` as of :meth:`read`.
        """
        step = max(1, 2048 // stride) * stride
        rows = []
        for row in range(0, self.height, step):
            height = min(step, self.height - row)
            parts = [
                self.read(Window(column, row, min(step, self.width - column), height))[
                    :, ::stride, ::stride
                ]
                for column in range(0, self.width, step)
            ]
            rows.append(np.concatenate(parts, axis=2))
        return np.concatenate(rows, axis=1)

    def _pixels(self, row: int, column: int, height: int, width: int) -> np.ndarray:
        """Raw values of a window inside the files, a new array."""
        found = np.concatenate(
            [self._cut(scene, row, column, height, width) for scene in self.scenes]
        )
        if len(self.scenes) > 1:
            # 0 is a fair value of one dark band.
            missing = np.isnan(found)
            fair = all(not scene.nodata for scene in self.scenes)
            missing = missing.all(0) if fair else missing.any(0)
            found = np.where(missing, np.float32(np.nan), np.nan_to_num(found))
        return found

    def _cut(
        self, scene: Scene, row: int, column: int, height: int, width: int
    ) -> np.ndarray:
        """Read a window of one file, whose pixels may be larger: the nearest count."""
        fine = max(self.scenes, key=lambda one: one.area)
        if (scene.height, scene.width) == (fine.height, fine.width):
            return scene.read(row, column, height, width)
        rows, columns = (
            ((np.arange(start, start + count) + 0.5) * coarse / whole).astype(int)
            for start, count, coarse, whole in (
                (row, height, scene.height, fine.height),
                (column, width, scene.width, fine.width),
            )
        )
        found = scene.read(
            rows[0],
            columns[0],
            rows[-1] - rows[0] + 1,
            columns[-1] - columns[0] + 1,
        )
        return found[:, rows - rows[0]][:, :, columns - columns[0]]


def open_raster(
    path: str | Path,
    bands: Sequence[str],
    file_bands: Sequence[str] | None = None,
    sensor: str | Sensor = SENTINEL2,
    nodata: float | None = None,
    offset: float | None = None,
) -> Raster:
    """Open an image that is to be mapped, without reading its pixels.

    Args:
        path: A GeoTIFF with band descriptions; or a folder with a file a band, such as
            a Sentinel-2 ``.SAFE`` product or a patch of BigEarthNet. Coarser bands are
            read on the grid of the finest one, the nearest pixel each.
        bands: Wanted bands, in any spelling.
        file_bands: Names of the bands of a GeoTIFF without descriptions, in order.
        sensor: The sensor the names belong to.
        nodata: Value of missing pixels; None for what the file says, or else 0.
        offset: Added to raw values; None for what the metadata of a Sentinel-2 product
            says (-1000 since processing baseline 04.00), or else 0.

    Returns:
        The image.

    Raises:
        FileNotFoundError: If there is no such file, or no file of a band.
        OSError: If a file cannot be read; the message names it.
        ValueError: If the bands of the file are not known, or lack a wanted one, or the
            files of a folder do not show the same ground.
    """
    path = Path(path)
    names = normalize_bands(bands, sensor)
    if path.is_dir():
        files = find_band_files(path, names, sensor)
        scenes = [Scene.open(str(f), [n], [n], sensor) for n, f in files.items()]
        if offset is None:
            offset = radiometric_offset(path)
    elif path.exists():
        scenes = [Scene.open(str(path), names, file_bands, sensor)]
    else:
        raise FileNotFoundError(f'scene: there is no file or folder {str(path)!r}.')
    scenes = [
        replace(scene, nodata=_first(nodata, scene.nodata, 0.0)) for scene in scenes
    ]
    finest = max(scenes, key=lambda scene: scene.area)
    with opened(finest.path) as file:
        transform, crs = file.transform, file.crs
    if not np.isfinite(transform).all() or transform.is_degenerate:
        raise ValueError(
            f'scene: {finest.path} has the geotransform {tuple(transform)[:6]}, which '
            'shows no ground. Write it again with a sound one.'
        )
    for scene in scenes:
        with opened(scene.path) as file:
            _check_ground(file, scene, finest, transform, crs)
    return Raster(
        str(path),
        names,
        finest.height,
        finest.width,
        transform,
        None if crs is None else CRS.from_user_input(crs),
        tuple(scenes),
        offset or 0.0,
    )


def _check_ground(
    file: Any, scene: Scene, finest: Scene, transform: Affine, crs: Any
) -> None:
    """Refuse a file that does not show what the finest one shows."""
    ends = file.transform @ (file.width, file.height), file.transform @ (0, 0)
    wanted = transform @ (finest.width, finest.height), transform @ (0, 0)
    # Half a pixel of the finer grid.
    within = max(abs(transform.a), abs(transform.b)) / 2
    if file.crs != crs or not np.allclose(ends, wanted, rtol=0, atol=within):
        raise ValueError(
            f'scene: {scene.path} does not show the same ground as {finest.path}. '
            'Keep the bands of one product in a folder.'
        )


def _first(*values: float | None) -> float | None:
    """The first that is known."""
    return next((value for value in values if value is not None), None)
