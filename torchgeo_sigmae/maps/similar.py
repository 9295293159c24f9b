# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of what is like a place."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from pyproj import CRS, Transformer
from rasterio.windows import Window

from ..datasets.scenes import opened
from .geotiff import write_map

__all__ = ('similar_map',)

#: Side of what is read at a time, in patches.
_SIDE = 256


def similar_map(
    path: str | Path,
    target: str | Path,
    x: float,
    y: float,
    crs: CRS | str | None = None,
) -> None:
    """Map how much alike the embeddings of patches are to that at a coordinate.

    Embeddings are compared after the mean of the map is taken away: what all places
    have in common says nothing.

    Args:
        path: A map of :func:`~torchgeo_sigmae.maps.embedding_map`.
        target: The GeoTIFF to be: cosine similarity in [-1, 1], NaN where there is no
            embedding.
        x: Easting or longitude; a column of the image where the map has no system.
        y: Northing or latitude; a row where it has none.
        crs: The system of *x* and *y*; None for that of the map.

    Raises:
        OSError: If the map cannot be read, or the other not be written.
        ValueError: If the coordinate lies outside the map, or where it has no
            embedding, or *crs* is given for a map without a system.
    """
    with opened(str(path)) as file:
        place = CRS.from_user_input(file.crs) if file.crs else None
        if crs is not None and place is None:
            raise ValueError(
                f'crs: {path} has no coordinate reference system. Pass columns and '
                'rows of the image, without crs.'
            )
        if crs is not None and place is not None:
            x, y = Transformer.from_crs(crs, place, always_xy=True).transform(x, y)
        column, row = (int(n // 1) for n in ~file.transform @ (x, y))
        if not (0 <= row < file.height and 0 <= column < file.width):
            west, south, east, north = file.bounds
            raise ValueError(
                f'at: ({x:.6g}, {y:.6g}) lies outside {path}, which reaches from '
                f'{west:.6g} to {east:.6g} and from {south:.6g} to {north:.6g}.'
            )
        wanted = file.read(window=Window(column, row, 1, 1))[:, 0, 0].astype(float)
        if not np.isfinite(wanted).all():
            raise ValueError(f'at: {path} has no embedding at ({x:.6g}, {y:.6g}).')
        mean = _mean(file)
        wanted -= mean
        wanted /= np.linalg.norm(wanted)
        results = (
            (window, _cosine(values, wanted, mean)) for window, values in _blocks(file)
        )
        tags = {'x': str(x), 'y': str(y), 'row': str(row), 'column': str(column)}
        write_map(
            Path(target), results, file.shape, file.transform, place, ['similarity'],
            tags,
        )  # fmt: skip


def _blocks(file: rasterio.DatasetReader) -> Iterator[tuple[Window, np.ndarray]]:
    """Read a map by windows."""
    for row in range(0, file.height, _SIDE):
        for column in range(0, file.width, _SIDE):
            high, wide = min(_SIDE, file.height - row), min(_SIDE, file.width - column)
            window = Window(column, row, wide, high)
            yield window, file.read(window=window)


def _mean(file: rasterio.DatasetReader) -> np.ndarray:
    """Mean of all embeddings, ``(D,)``."""
    total, count = np.zeros(file.count), 0
    for _, values in _blocks(file):
        known = values[:, np.isfinite(values).all(axis=0)].astype(float)
        total += known.sum(axis=1)
        count += known.shape[1]
    return total / count


def _cosine(values: np.ndarray, wanted: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Cosine of embeddings ``(D, h, w)`` with a unit vector, ``(1, h, w)``."""
    centred = values - mean[:, None, None]
    length = np.linalg.norm(centred, axis=0)
    cosine = np.tensordot(wanted, centred, 1) / np.maximum(length, 1e-12)
    result: np.ndarray = cosine[None].astype('float32')
    return result
