# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of the similarity to one patch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from pyproj import CRS, Transformer
from rasterio.windows import Window

from ..datasets.band_files import opened
from .windows import Grid, Part
from .write import write_map

__all__ = ('similarity_map',)

#: Side of the windows that are read, in patches.
_WINDOW = 256


def similarity_map(
    path: str | Path,
    target: str | Path,
    x: float,
    y: float,
    crs: CRS | str | None = None,
) -> None:
    """Map the similarity of the embeddings of patches to that at a coordinate.

    Embeddings are compared after the mean of the map is subtracted, because all patches
    share it.

    Args:
        path: A map of :func:`~torchgeo_sigmae.maps.embedding_map`.
        target: The GeoTIFF to write: cosine similarity in [-1, 1], NaN where there is
            no embedding.
        x: Easting or longitude; a column of the scene if the map has no system.
        y: Northing or latitude; a row of the scene if the map has no system.
        crs: The system of *x* and *y*; None for that of the map.
    """
    with opened(str(path)) as file:
        if crs is not None and not file.crs:
            raise ValueError(
                f'crs: {path} has no coordinate reference system. Pass column and row '
                'of the scene, without crs.'
            )
        if crs is not None:
            to_map = Transformer.from_crs(crs, file.crs, always_xy=True)
            x, y = to_map.transform(x, y)
        column, row = (int(n // 1) for n in ~file.transform @ (x, y))
        if not (0 <= row < file.height and 0 <= column < file.width):
            west, south, east, north = file.bounds
            raise ValueError(
                f'at: ({x:.6g}, {y:.6g}) lies outside {path}, which reaches from '
                f'{west:.6g} to {east:.6g} and from {south:.6g} to {north:.6g}.'
            )
        query = file.read(window=Window(column, row, 1, 1))[:, 0, 0].astype(float)
        if not np.isfinite(query).all():
            raise ValueError(f'at: {path} has no embedding at ({x:.6g}, {y:.6g}).')
        mean = _mean(file)
        parts = (
            (window, _cosine(values, query - mean, mean))
            for window, values in _parts(file)
        )
        tags = {'x': str(x), 'y': str(y), 'row': str(row), 'column': str(column)}
        points, points_crs = file.gcps
        gcps = tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in points)
        grid = Grid(file.height, file.width, file.transform, file.crs, gcps, points_crs)
        write_map(Path(target), parts, grid, ['similarity'], tags)


def _parts(file: rasterio.DatasetReader) -> Iterator[Part]:
    """Read a map by windows."""
    for row in range(0, file.height, _WINDOW):
        for column in range(0, file.width, _WINDOW):
            height = min(_WINDOW, file.height - row)
            width = min(_WINDOW, file.width - column)
            window = Window(column, row, width, height)
            yield window, file.read(window=window)


def _mean(file: rasterio.DatasetReader) -> np.ndarray:
    """Mean of all embeddings, ``(D,)``."""
    total, count = np.zeros(file.count), 0
    for _, values in _parts(file):
        valid = values[:, np.isfinite(values).all(axis=0)].astype(float)
        total += valid.sum(axis=1)
        count += valid.shape[1]
    return total / count


def _cosine(values: np.ndarray, query: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Cosine of centered embeddings ``(D, h, w)`` with one, ``(1, h, w)``."""
    centered = values - mean[:, None, None]
    lengths = np.linalg.norm(centered, axis=0) * np.linalg.norm(query)
    cosine = np.tensordot(query, centered, 1) / np.maximum(lengths, 1e-12)
    return cosine[None].astype('float32')
