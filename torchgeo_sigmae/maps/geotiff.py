# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps as cloud-optimized GeoTIFFs, written whole or not at all."""

import os
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from pyproj import CRS
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.shutil import copy
from rasterio.windows import Window
from tqdm import tqdm

from .._files import atomic_path

__all__ = ('write_map',)

#: Side of the tiles of a map in cells.
_TILE = 256

#: What GDAL may keep in memory, in bytes; its default is a share of the machine's.
_CACHE = 64 * 2**20

#: Of every map.
_OPTIONS = {'compress': 'deflate', 'bigtiff': 'if_safer'}


def write_map(
    target: Path,
    parts: Iterable[tuple[Window, np.ndarray]],
    shape: tuple[int, int],
    transform: Affine,
    crs: CRS | None,
    names: Sequence[str],
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write a cloud-optimized GeoTIFF in float32: tiles, deflate, overviews.

    Without GDAL's driver for them, a GeoTIFF with tiles but no overviews.

    The file is read again and compared before it gets its name: GDAL does not always
    say that a disk was full.

    Args:
        target: The file to be; one of that name is replaced.
        parts: Windows, and their values ``(D, h, w)``, NaN where there are none.
        shape: Rows and columns.
        transform: From columns and rows to coordinates.
        crs: Coordinate reference system; None without georeference.
        names: A description for every layer.
        tags: Further metadata.

    Raises:
        OSError: If it cannot be written; nothing has changed then under that name.
    """
    rough, sums = target.with_name(f'.{target.name}.{os.getpid()}.rough.tif'), []
    errors = (RasterioError, CPLE_BaseError)
    try:
        with (
            atomic_path(target, errors=errors) as smooth,
            rasterio.Env(GDAL_CACHEMAX=_CACHE) as gdal,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(
                rough, 'w', driver='GTiff', count=len(names), dtype='float32',
                height=shape[0], width=shape[1], transform=transform,
                crs=None if crs is None else rasterio.CRS.from_user_input(crs),
                nodata=float('nan'), interleave='band', tiled=True, blockxsize=_TILE,
                blockysize=_TILE, bigtiff='if_safer',
            ) as file:  # fmt: skip
                file.descriptions = tuple(names)
                file.update_tags(**(tags or {}))
                title = f'Writing {target.name}'
                for window, values in tqdm(parts, title, disable=None, delay=2):
                    file.write(values, window=window)
                    sums.append((window, _checksum(values)))
            if 'COG' in gdal.drivers():
                copy(
                    rough, smooth, driver='COG', blocksize=_TILE, predictor='yes',
                    overview_resampling='average', **_OPTIONS,
                )  # fmt: skip
            else:
                copy(
                    rough, smooth, driver='GTiff', tiled=True, blockxsize=_TILE,
                    blockysize=_TILE, predictor=3, **_OPTIONS,
                )  # fmt: skip
            with rasterio.open(smooth) as file:
                for window, wanted in sums:
                    if _checksum(file.read(window=window)) != wanted:
                        raise OSError('what was written reads otherwise')
    finally:
        with suppress(OSError):
            rough.unlink()


def _checksum(values: np.ndarray) -> int:
    """Checksum of values; all NaN are alike."""
    return zlib.crc32(np.where(np.isnan(values), np.float32(np.nan), values).tobytes())
