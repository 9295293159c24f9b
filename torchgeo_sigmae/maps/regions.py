# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Areas in and out: an area of interest, and salient regions as polygons."""

import os
import warnings
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS
from rasterio.features import shapes
from scipy import ndimage
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from .._files import atomic_path
from ..datasets.scenes import opened

__all__ = ('read_area', 'salient_regions', 'write_regions')

#: How files of polygons are written, by suffix.
_DRIVERS = {'.geojson': 'GeoJSON', '.gpkg': 'GPKG'}


def read_area(path: str | Path, crs: CRS | None) -> BaseGeometry:
    """Read an area of interest.

    Args:
        path: A GeoJSON, GeoPackage or another file with polygons, in any system.
        crs: The system wanted; None to take the coordinates as they are.

    Returns:
        All polygons of the file as one area.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or holds no polygon.
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
        frame = frame.to_crs(crs)
    area = shapely.make_valid(frame.geometry.union_all())
    if not area.area:
        raise ValueError(f'aoi: {os.fspath(path)!r} holds no polygon.')
    return area


def salient_regions(
    path: str | Path,
    threshold: float = 0.9,
    min_area: float = 0.0,
    simplify: float = 0.71,
    layer: str = 'saliency',
) -> gpd.GeoDataFrame:
    """Outline the most salient patches of a saliency map.

    Or of another layer: of the ``'similarity'`` of
    :func:`~torchgeo_sigmae.maps.similar_map`, the patches most like a place.

    Args:
        path: A map of :func:`~torchgeo_sigmae.maps.saliency_map`.
        threshold: Quantile of saliency in [0, 1): 0.9 takes the most salient tenth of
            the patches, and those that are as salient.
        min_area: Smaller regions are left out, in m2.
        simplify: Largest distance by which outlines are simplified, in patches; 0.71
            turns stairs into slopes, 0 leaves them alone.
        layer: The layer to take.

    Returns:
        Regions of patches that share a side, largest first, in the system of the map,
        as polygons with the columns ``area_m2`` (before they were simplified; NaN where
        the map has no system), ``patches`` (their number), ``mean`` and ``max``
        (saliency).

    Raises:
        ValueError: If an argument is out of range, the map has no such layer or no
            values, or has no system while an area is asked for.
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
    known = np.isfinite(values)
    if not known.any():
        raise ValueError(f'{path} has no values.')
    chosen = known & (values >= np.quantile(values[known], threshold, method='higher'))
    labels, count = ndimage.label(chosen)
    outlines = dict[int, BaseGeometry]()
    for outline, number in shapes(labels.astype('int32'), chosen, transform=transform):
        outlines[int(number)] = shape(outline)
    numbers = np.arange(1, count + 1)
    frame = gpd.GeoDataFrame(
        {
            'area_m2': np.nan,
            'patches': ndimage.sum_labels(chosen, labels, numbers).astype(int),
            'mean': ndimage.mean(values, labels, numbers),
            'max': ndimage.maximum(values, labels, numbers),
        },
        geometry=[outlines[number] for number in numbers],
        crs=crs and crs.to_wkt(),
    )
    if crs is not None:
        try:
            frame['area_m2'] = _square_metres(frame.geometry)
        except RuntimeError as error:
            raise ValueError(
                f'{path} has coordinates that its system does not: {error}. Correct '
                'the georeference of the scene.'
            ) from error
        frame = frame[frame.area_m2 >= min_area]
    side = max(abs(transform.a), abs(transform.b))
    # A single patch would become a triangle.
    frame.geometry = frame.geometry.where(
        frame.patches == 1, frame.geometry.simplify(simplify * side)
    )
    return frame.sort_values('patches', ascending=False, ignore_index=True)


def write_regions(frame: gpd.GeoDataFrame, target: str | Path) -> None:
    """Write regions, whole or not at all.

    Args:
        frame: The regions.
        target: A file that ends in ``.geojson`` (in degrees, as its standard asks,
            where the regions have a system) or ``.gpkg``.

    Raises:
        OSError: If it cannot be written.
        ValueError: If the suffix is another one.
    """
    target = Path(target)
    check_suffix(target)
    if target.suffix == '.geojson' and frame.crs is not None:
        frame = frame.to_crs('EPSG:4326')
    errors = (DataLayerError, DataSourceError)
    with atomic_path(target, 'polygons', errors) as part, warnings.catch_warnings():
        # Maps of scenes without georeference have none either.
        warnings.filterwarnings('ignore', message="'crs' was not provided")
        frame.to_file(part, driver=_DRIVERS[target.suffix], layer='regions')


def check_suffix(target: Path) -> None:
    """Refuse files that regions cannot be written to.

    Args:
        target: The file.

    Raises:
        ValueError: If it ends otherwise than expected.
    """
    if target.suffix not in _DRIVERS:
        raise ValueError(
            f'polygons: {str(target)!r} should end in {" or ".join(_DRIVERS)}.'
        )


def _square_metres(outlines: gpd.GeoSeries) -> gpd.GeoSeries:
    """Areas, in the UTM zone of the place where the system is in degrees."""
    if not outlines.crs.is_projected:
        outlines = outlines.to_crs(outlines.estimate_utm_crs())
    return outlines.area * outlines.crs.axis_info[0].unit_conversion_factor ** 2
