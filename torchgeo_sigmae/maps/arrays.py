# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""xarray objects as scenes, and maps of them as Dask arrays."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import dask
import dask.array
import numpy as np
import rioxarray  # noqa: F401  registers .rio
import xarray
from dask.array.overlap import overlap
from dask.delayed import Delayed
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ..bands import BandSet
from ..datasets.band_files import UNIT, change_unit
from ..datasets.scenes import RasterScene
from ..datasets.units import reflectance_problem, sample_windows
from .array_metadata import (
    check_chunks,
    read_crs,
    read_nodata,
    read_scaling,
    read_transform,
    select_bands,
)
from .read import crop, nodata_values
from .regions import read_aoi
from .windows import patch_grid, patch_windows

__all__ = ('ArrayScene', 'LazyScene', 'check_values', 'read_windows')


@dataclass(frozen=True, eq=False)
class ArrayScene(RasterScene):
    """A scene of which a block is in memory.

    Attributes:
        nodata: Value of missing values.
        scaling: Scale and offset of the values; None to take them as they are.
        values: The block ``(C, h, w)``.
        top: Its first row in the scene.
        left: Its first column in the scene.
    """

    nodata: float = field(default=0.0, kw_only=True)
    scaling: tuple[float, float] | None = field(default=None, kw_only=True)
    values: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    top: int = 0
    left: int = 0

    def _raw(
        self, window: Window, shape: tuple[int, int], dtype: str = 'float32'
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values of a window inside the block, and which are missing."""
        rows, columns = window.toslices()
        rows = slice(rows.start - self.top, rows.stop - self.top)
        columns = slice(columns.start - self.left, columns.stop - self.left)
        values = self.values[:, rows, columns].astype(dtype)
        missing = nodata_values(values, self.nodata)
        if self.scaling is not None:
            change_unit(values, self.scaling, self.unit)
        return values, missing


@dataclass(frozen=True)
class LazyScene:
    """An xarray object of which every image, for example every date, is a scene.

    Attributes:
        data: The values in the wanted bands, ``(..., band, y, x)``.
        scene: The scene without values.
        is_lazy: Whether the values were a Dask array.
    """

    data: xarray.DataArray
    scene: ArrayScene
    is_lazy: bool

    @classmethod
    def open(
        cls,
        data: xarray.DataArray | xarray.Dataset,
        bands: BandSet,
        patch_size: int,
        nodata: float | None = None,
        scale: float | None = None,
        offset: float | None = None,
        aoi: str | Path | BaseGeometry | None = None,
        unit: tuple[float, float] = (UNIT, 0.0),
        step: int | None = None,
    ) -> Self:
        """Find bands, units and georeference, without reading values.

        Args:
            data: The object.
            bands: Wanted bands.
            patch_size: Side of a patch in pixels.
            nodata: Value of missing values; None for that of *data*, or else 0.
            scale: Reflectance per unit; None for that of *data*.
            offset: Reflectance at 0; None for that of *data*.
            aoi: Area of interest: a file, or a geometry in the system of *data*.
            unit: Scale and offset of the values that are returned.
            step: Rows and columns are cut at multiples of it; None for *patch_size*.

        Raises:
            ValueError: If *data* lacks bands, their names or the system that *aoi*
                needs, its chunks are smaller than a patch, or its bands have different
                units or nodata values.
        """
        x, y, crs = data.rio.x_dim, data.rio.y_dim, read_crs(data)
        transform = read_transform(data, x, y)
        array, variables = select_bands(data, bands)
        array = array.transpose(..., 'band', y, x)
        scene = ArrayScene(
            'data',
            bands,
            array.sizes[y],
            array.sizes[x],
            transform,
            crs,
            unit=unit,
            nodata=read_nodata(variables) if nodata is None else nodata,
            scaling=read_scaling(variables, scale, offset),
        )
        if aoi is not None:
            if not isinstance(aoi, BaseGeometry):
                if crs is None:
                    raise ValueError(
                        'data: no coordinate reference system, so where the area of '
                        'aoi= lies is not known. Call data.rio.write_crs(...).'
                    )
                aoi = read_aoi(aoi, crs)
            part = crop(scene, aoi, step or patch_size)
            rows = slice(part.row, part.row + part.height)
            columns = slice(part.column, part.column + part.width)
            array = array.isel({y: rows, x: columns})
            scene = replace(
                scene, height=part.height, width=part.width, transform=part.transform,
                aoi=part.aoi,
            )  # fmt: skip
        if not array.size:
            raise ValueError(f'data: there are no values in {dict(array.sizes)}.')
        is_lazy = array.chunks is not None
        if is_lazy:
            check_chunks(array, patch_size)
        else:
            chunks = (*(1,) * (array.ndim - 3), -1, 1024, 1024)
            values = dask.array.from_array(array.data, chunks, name=False)
            array = array.copy(data=values)
        return cls(array, scene, is_lazy)

    @cached_property
    def node(self) -> Delayed:
        """The scene as a task, which every worker gets once."""
        return dask.delayed(self.scene, traverse=False)

    @cached_property
    def _values(self) -> dask.array.Array:
        """The values; a chunk holds all bands."""
        return self.data.data.rechunk({-3: -1})

    def images(self) -> Iterator[tuple[int, ...]]:
        """Iterate over the positions of the images."""
        yield from np.ndindex(self.data.shape[:-3])

    def sample(
        self, image: tuple[int, ...], windows: Sequence[Window]
    ) -> list[dask.array.Array]:
        """Cut windows out of an image, for :func:`read_windows`."""
        return [self._values[(*image, slice(None), *w.toslices())] for w in windows]

    def checked(self, image: tuple[int, ...]) -> Delayed:
        """A task that warns if the values of an image are implausible."""
        windows = sample_windows(self.scene)
        return dask.delayed(_check_windows)(
            self.node, self.sample(image, windows), windows
        )

    def map_windows(
        self,
        image: tuple[int, ...],
        function: Callable[..., np.ndarray],
        arguments: Sequence[Delayed],
        count: int,
        patch_size: int,
        window: int | None,
        halo: int = 0,
        in_pixels: bool = False,
    ) -> dask.array.Array:
        """Compute a map of an image, one task per window.

        Args:
            image: Position of the image.
            function: Called with the scene, the window and *arguments*; returns
                ``(count, h, w)``.
            arguments: Values that every window needs.
            count: Number of layers.
            patch_size: Windows are multiples of it.
            window: Side of the windows in pixels; None for about 1024.
            halo: Number of pixels around a window that *function* reads.
            in_pixels: Whether a cell of the map is a pixel, or else a patch.

        Returns:
            The map ``(count, h, w)``.
        """
        rows, columns = _lengths(self.scene, patch_size, window, halo)
        array = self._values[image].rechunk((-1, rows, columns))
        depth = tuple(halo if len(n) > 1 else 0 for n in (rows, columns))
        if any(depth):
            array = overlap(array, dict(enumerate((0, *depth))), 'none')
        cells = [
            n if in_pixels else tuple(math.ceil(side / patch_size) for side in n)
            for n in (rows, columns)
        ]
        return dask.array.map_blocks(
            _map_block,
            array,
            self.node,
            *arguments,
            function=function,
            lengths=(rows, columns),
            depth=depth,
            patch_size=patch_size,
            dtype=np.float32,
            meta=np.empty((0, 0, 0), np.float32),
            chunks=((count,), *cells),
        )

    def wrap(
        self,
        maps: Sequence[dask.array.Array],
        name: str,
        layers: Sequence[str],
        patch_size: int,
        attributes: dict[str, Any],
    ) -> xarray.DataArray:
        """Put the maps ``(D, h, w)`` of all images together: ``(..., band, y, x)``.

        They are computed unless the values were lazy. A cell has *patch_size* pixels.
        """
        *leading, _, y, x = self.data.dims
        shape = (*self.data.shape[:-3], *maps[0].shape)
        coordinates = {
            key: value
            for key, value in self.data.coords.items()
            if set(value.dims) <= set(leading) and key != self.data.rio.grid_mapping
        }
        transform = patch_grid(self.scene, patch_size).transform
        if patch_size == 1:
            coordinates |= {n: self.data[n] for n in (y, x) if n in self.data.coords}
        elif x in self.data.coords and y in self.data.coords:
            columns, rows = (np.arange(n) + 0.5 for n in reversed(shape[-2:]))
            coordinates |= {
                x: transform.c + transform.a * columns,
                y: transform.f + transform.e * rows,
            }
        result = xarray.DataArray(
            dask.array.stack(maps).reshape(shape),
            {**coordinates, 'band': list(layers)},
            (*leading, 'band', y, x),
            name,
            attributes,
        )
        result = result.rio.set_spatial_dims(x, y)
        if self.scene.crs is not None:
            result = result.rio.write_crs(self.scene.crs).rio.write_transform(transform)
        # Of arrays in memory: tasks one by one, whose operations use all cores.
        return result if self.is_lazy else result.compute(scheduler='synchronous')


def read_windows(
    scene: ArrayScene, blocks: Sequence[np.ndarray], windows: Sequence[Window]
) -> Iterator[np.ndarray]:
    """Read windows, each from a block of its own."""
    for values, window in zip(blocks, windows, strict=True):
        top, left = int(window.row_off), int(window.col_off)
        yield replace(scene, values=values, top=top, left=left).read(window)


def check_values(scene: RasterScene, chips: Sequence[np.ndarray]) -> None:
    """Warn if values of a scene are implausible, also where Dask's workers run."""
    values = np.concatenate([chip.reshape(len(chip), -1) for chip in chips], axis=1)
    problem = reflectance_problem(values, scene.bands, scene.path, scene.unit)
    if problem:
        try:
            from distributed import warn
        except ImportError:
            from warnings import warn
        warn(problem, stacklevel=2)


def _check_windows(
    scene: ArrayScene, blocks: Sequence[np.ndarray], windows: Sequence[Window]
) -> None:
    """Warn if values of windows are implausible."""
    check_values(scene, list(read_windows(scene, blocks, windows)))


def _map_block(
    block: np.ndarray,
    scene: ArrayScene,
    *arguments: Any,
    function: Callable[..., np.ndarray],
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
    depth: tuple[int, int],
    patch_size: int,
    block_id: tuple[int, ...],
) -> np.ndarray:
    """Map a window from its block, which extends beyond it by *depth*."""
    (top, left), (height, width) = zip(
        *(
            (sum(sides[:i]), math.ceil(sides[i] / patch_size) * patch_size)
            for sides, i in zip(lengths, block_id[1:], strict=True)
        ),
        strict=True,
    )
    scene = replace(
        scene, values=block, top=max(top - depth[0], 0), left=max(left - depth[1], 0)
    )
    return function(scene, Window(left, top, width, height), *arguments)


def _lengths(
    scene: RasterScene, patch_size: int, window: int | None, halo: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Heights and widths of windows, each at least as long as the halo."""
    windows = patch_windows(scene, patch_size, window)
    lengths = []
    for offset, size in (('row_off', scene.height), ('col_off', scene.width)):
        starts = sorted({int(getattr(part, offset)) for part in windows})
        if len(starts) > 1 and starts[1] < halo:
            raise ValueError(
                f'window: {window} is smaller than the {halo} pixels around a window '
                f'that chips reach. Pass at least {halo}.'
            )
        if len(starts) > 1 and size - starts[-1] < halo:
            starts.pop()
        lengths.append(tuple(int(n) for n in np.diff([*starts, size])))
    return lengths[0], lengths[1]
