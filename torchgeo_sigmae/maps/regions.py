# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Polygons: areas of interest, and salient regions."""

import os
import warnings
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio import CRS
from rasterio.features import shapes
from scipy import ndimage
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from .._files import atomic_path
from ..datasets.band_files import opened

__all__ = ('check_suffix', 'read_aoi', 'salient_regions', 'write_regions')

#: Drivers of files of polygons, by suffix.
_DRIVERS = {'.geojson': 'GeoJSON', '.gpkg': 'GPKG'}


def read_aoi(path: str | Path, crs: CRS | None) -> BaseGeometry:
    """Read all polygons of a file as one area of interest.

    Args:
        path: A GeoJSON, GeoPackage or another file with polygons, in any system.
        crs: The system to return it in; None to take the coordinates as they are.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f'aoi: there is no file {os.fspath(path)!r}.')
    try:
        frame = gpd.read_file(path)
    except DataSourceError as error:
        raise ValueError(
            f'aoi: {os.fspath(path)!r} cannot be read: {error}. Pass a GeoJSON or '
            'GeoPackage.'
        ) from error
    if not isinstance(frame, gpd.GeoDataFrame) or frame.geometry.isna().all():
        raise ValueError(f'aoi: {os.fspath(path)!r} holds no geometry.')
    if crs is not None and frame.crs is not None:
        frame = frame.to_crs(crs.to_wkt())
    aoi = shapely.make_valid(frame.geometry.union_all())
    if not aoi.area:
        raise ValueError(f'aoi: {os.fspath(path)!r} holds no polygon.')
    return aoi


def salient_regions(
    path: str | Path,
    threshold: float = 0.9,
    min_area: float = 0.0,
    simplify: float = 0.71,
    layer: str = 'saliency',
) -> gpd.GeoDataFrame:
    """Outline the patches with the highest values of a map.

    Args:
        path: A map of :func:`~torchgeo_sigmae.maps.saliency_map`, or of
            :func:`~torchgeo_sigmae.maps.similarity_map`.
        threshold: Quantile in [0, 1): 0.9 takes the highest tenth of the patches, and
            those with the same value.
        min_area: Smaller regions are left out, in m2.
        simplify: Largest distance by which outlines are simplified, in patches; 0.71
            turns stairs into slopes, 0 leaves them as they are.
        layer: The layer to use: ``'saliency'``, ``'similarity'`` or another one.

    Returns:
        Regions of patches that share a side, largest first, in the system of the map,
        as polygons with the columns ``area_m2`` (before simplification; NaN if the map
        has no system), ``patches`` (their number), ``mean`` and ``max`` of the layer.
    """
    if not 0 <= threshold < 1:
        raise ValueError(
            f'threshold: {threshold} is not in [0, 1). 0.9 takes a tenth of the '
            'patches.'
        )
    for name, value in (('min_area', min_area), ('simplify', simplify)):
        if not value >= 0:
            raise ValueError(f'{name}: {value} is not at least 0.')
    with opened(str(path)) as file:
        if layer not in file.descriptions:
            raise ValueError(
                f'layer: {path} has {list(file.descriptions)}, but no {layer!r}.'
            )
        values = file.read(file.descriptions.index(layer) + 1)
        transform, crs = file.transform, file.crs
    if min_area and crs is None:
        raise ValueError(
            f'min_area: {path} has no coordinate reference system, so areas in m2 are '
            'not known. Leave it out, or georeference the scene.'
        )
    valid = np.isfinite(values)
    if not valid.any():
        raise ValueError(f'{path} has no values.')
    chosen = valid & (values >= np.quantile(values[valid], threshold, method='higher'))
    frame = _outline(values, chosen, transform, crs)
    if crs is not None:
        try:
            frame['area_m2'] = _square_meters(frame.geometry)
        except RuntimeError as error:
            raise ValueError(
                f'{path} has coordinates outside its coordinate reference system: '
                f'{error}. Correct the georeference of the scene.'
            ) from error
        frame = frame[frame.area_m2 >= min_area]
    side = max(abs(transform.a), abs(transform.b))
    # A single patch would become a triangle.
    frame.geometry = frame.geometry.where(
        frame.patches == 1, frame.geometry.simplify(simplify * side)
    )
    return frame.sort_values('patches', ascending=False, ignore_index=True)


def _outline(
    values: np.ndarray, chosen: np.ndarray, transform: Affine, crs: CRS | None
) -> gpd.GeoDataFrame:
    """Polygons around chosen cells that share a side, with statistics of the values."""
    labels, count = ndimage.label(chosen)
    numbers = np.arange(1, count + 1)
    outlines = {
        int(number): shape(outline)
        for outline, number in shapes(labels.astype('int32'), chosen, 4, transform)
    }
    return gpd.GeoDataFrame(
        {
            'area_m2': np.nan,
            'patches': ndimage.sum_labels(chosen, labels, numbers).astype(int),
            'mean': ndimage.mean(values, labels, numbers),
            'max': ndimage.maximum(values, labels, numbers),
        },
        geometry=[outlines[number] for number in numbers],
        crs=crs and crs.to_wkt(),
    )


def write_regions(frame: gpd.GeoDataFrame, target: str | Path) -> None:
    """Write regions to a GeoJSON or GeoPackage, by suffix; replace an old file whole.

    GeoJSON is in degrees and cut at the date line, as RFC 7946 asks, if the regions
    have a system.
    """
    target = Path(target)
    check_suffix(target)
    if target.suffix == '.geojson' and frame.crs is not None:
        frame = frame.to_crs('EPSG:4326')
        frame.geometry = frame.geometry.map(_cut_at_date_line)
    errors = (DataLayerError, DataSourceError)
    with atomic_path(target, 'polygons', errors) as part, warnings.catch_warnings():
        # Maps of scenes without georeference have none either.
        warnings.filterwarnings('ignore', message="'crs' was not provided")
        frame.to_file(part, driver=_DRIVERS[target.suffix], layer='regions')


def _cut_at_date_line(outline: BaseGeometry) -> BaseGeometry:
    """Cut an outline in degrees where longitudes leave -180 to 180."""
    west, _, east, _ = outline.bounds
    if east - west > 180:
        # One that crosses the line, not one that spans half of the Earth.
        outline = shapely.transform(
            outline, lambda xy: np.stack([xy[:, 0] % 360, xy[:, 1]], axis=1)
        )
        west, _, east, _ = outline.bounds
    if west >= -180 and east <= 180:
        return outline
    parts: list[BaseGeometry] = []
    for turn in (-360, 0, 360):
        moved = shapely.transform(outline, lambda xy, t=turn: xy + np.array((t, 0)))
        parts += shapely.get_parts(
            shapely.intersection(moved, shapely.box(-180, -90, 180, 90))
        ).tolist()
    polygons = [part for part in parts if part.geom_type == 'Polygon']
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


def check_suffix(target: Path) -> None:
    """Refuse files that regions cannot be written to."""
    if target.suffix not in _DRIVERS:
        raise ValueError(
            f'polygons: {str(target)!r} should end in {" or ".join(_DRIVERS)}.'
        )


def _square_meters(outlines: gpd.GeoSeries) -> gpd.GeoSeries:
    """Areas; those of a system in degrees are measured in the UTM zone."""
    if not outlines.crs.is_projected:
        if outlines.total_bounds[0] > 180:
            # Longitudes of 0 to 360 degrees.
            outlines = outlines.translate(-360)
        outlines = outlines.to_crs(outlines.estimate_utm_crs())
    return outlines.area * outlines.crs.axis_info[0].unit_conversion_factor ** 2
