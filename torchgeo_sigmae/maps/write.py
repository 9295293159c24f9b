# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps as cloud-optimized GeoTIFFs and GeoParquet, written whole or not at all."""

import io
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.shutil import copy
from rasterio.windows import Window

from .._files import atomic_path, require_writable
from ..datasets.band_files import opened
from .windows import Grid, Part

__all__ = (
    'require_pyarrow',
    'stored_layers',
    'write_geoparquet',
    'write_map',
)

#: Side of the tiles of a map in cells.
_TILE = 256

#: Memory that GDAL may use, in bytes; its default is a share of the machine's.
_CACHE = 64 * 2**20

_ERRORS = (RasterioError, CPLE_BaseError)


@contextmanager
def stored_layers(
    target: Path, parts: Iterable[Part], grid: Grid, count: int
) -> Iterator[Callable[[], Iterator[Part]]]:
    """Store parts in a temporary file; yield a function that reads them again."""
    path = target.with_name(f'.{target.name}.{os.getpid()}.layers.tif')

    def read() -> Iterator[Part]:
        try:
            yield from _read_layers(path, sums)
        except OSError as error:
            raise _unwritable(target, error) from error

    try:
        sums = _write_layers(target, path, parts, grid, [''] * count, {})
        yield read
    finally:
        with suppress(OSError):
            path.unlink()


def write_map(
    target: Path,
    parts: Iterable[Part],
    grid: Grid,
    names: Sequence[str],
    tags: Mapping[str, str],
) -> None:
    """Write a cloud-optimized GeoTIFF in float32: tiles, deflate, overviews.

    The file is read again and compared before it gets its name: GDAL does not always
    report that a disk was full. An existing file is replaced whole, or left as it was.
    """
    rough = target.with_name(f'.{target.name}.{os.getpid()}.rough.tif')
    try:
        sums = _write_layers(target, rough, parts, grid, names, tags)
        with (
            atomic_path(target, errors=_ERRORS) as smooth,
            rasterio.Env(GDAL_CACHEMAX=_CACHE),
        ):
            copy(
                rough, smooth, driver='COG', blocksize=_TILE, compress='deflate',
                predictor='yes', overview_resampling='average', bigtiff='if_safer',
            )  # fmt: skip
            for _ in _read_layers(smooth, sums):
                pass
    finally:
        with suppress(OSError):
            rough.unlink()


def _write_layers(
    target: Path,
    path: Path,
    parts: Iterable[Part],
    grid: Grid,
    names: Sequence[str],
    tags: Mapping[str, str],
) -> list[tuple[Window, int]]:
    """Write a tiled GeoTIFF, and return the checksums of its windows."""
    require_writable(target)
    sums = []
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=_CACHE),
            warnings.catch_warnings(action='ignore', category=NotGeoreferencedWarning),
            rasterio.open(
                path, 'w', driver='GTiff', count=len(names), dtype='float32',
                height=grid.rows, width=grid.columns, transform=grid.transform,
                crs=grid.crs, nodata=float('nan'), interleave='band', tiled=True,
                blockxsize=_TILE, blockysize=_TILE, bigtiff='if_safer',
            ) as file,
        ):  # fmt: skip
            if grid.gcps:
                file.gcps = (
                    [GroundControlPoint(*point) for point in grid.gcps],
                    (grid.gcps_crs),
                )
            file.descriptions = tuple(names)
            file.update_tags(**tags)
            for window, values in parts:
                file.write(values, window=window)
                sums.append((window, _checksum(values)))
    except _ERRORS as error:
        raise _unwritable(target, error) from error
    return sums


def _read_layers(path: Path, sums: list[tuple[Window, int]]) -> Iterator[Part]:
    """Read windows of a file, and compare them with their checksums."""
    with opened(str(path)) as file:
        for window, checksum in sums:
            values = file.read(window=window)
            if _checksum(values) != checksum:
                raise OSError('the disk does not hold what was written')
            yield window, values


def _checksum(values: np.ndarray) -> int:
    """Checksum of values; all NaN are alike."""
    return zlib.crc32(np.where(np.isnan(values), np.float32(np.nan), values).tobytes())


def _unwritable(target: Path, error: Exception) -> OSError:
    """The error of a map that cannot be written."""
    return OSError(
        f'output: {target} cannot be written: {error}. Check free disk space and write '
        'permission.'
    )


def require_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow, which only GeoParquet needs, and its module for Parquet."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            'GeoParquet needs pyarrow: pip install "torchgeo-sigmae[parquet]".'
        ) from error
    return pyarrow, parquet


def write_geoparquet(
    target: Path, parts: Iterable[Part], grid: Grid, tags: Mapping[str, str]
) -> None:
    """Write a GeoParquet with a row for every cell that has values."""
    _, parquet = require_pyarrow()
    # The metadata that geopandas writes, without the bounds of rows.
    empty = io.BytesIO()
    gpd.GeoDataFrame(geometry=gpd.GeoSeries([], crs=grid.crs)).to_parquet(empty)
    metadata = {'geo': parquet.read_schema(empty).metadata[b'geo'], **tags}
    tables = (_rows(*part, grid).replace_schema_metadata(metadata) for part in parts)
    first = next(tables)
    with (
        atomic_path(target) as part,
        parquet.ParquetWriter(part, first.schema) as writer,
    ):
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _rows(window: Window, values: np.ndarray, grid: Grid) -> Any:
    """A pyarrow table of the cells of a window that have values."""
    pa, _ = require_pyarrow()
    rows, columns = np.nonzero(np.isfinite(values[0]))
    flat = pa.array(values[:, rows, columns].T.ravel())
    embeddings = pa.FixedSizeListArray.from_arrays(flat, len(values))
    rows, columns = rows + int(window.row_off), columns + int(window.col_off)
    footprints = shapely.transform(
        shapely.box(columns, rows, columns + 1, rows + 1),
        lambda xy: np.stack(grid.transform @ (xy[:, 0], xy[:, 1]), axis=1),
    )
    frame = gpd.GeoDataFrame(
        {'row': rows.astype('int32'), 'column': columns.astype('int32')},
        geometry=footprints,
        crs=grid.crs,
    )
    table = pa.table(frame.to_arrow(index=False))
    return table.append_column('embedding', embeddings)
