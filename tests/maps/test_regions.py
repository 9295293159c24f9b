# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Salient regions as polygons: where they are, and how large."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from helpers.geotiffs import write
from torchgeo_sigmae.maps import salient_regions, write_regions

NAMES = ('richness', 'saliency')


def saliency_of(path: Path, values: np.ndarray, crs: str | None = 'EPSG:32632') -> Path:
    """A map with cells of 80 m, or 0.001 degrees."""
    side = 0.001 if crs == 'EPSG:4326' else 80
    place = {'transform': from_origin(9 if side < 1 else 5e5, 48, side, side)}
    stack = np.stack([values * 0, values]).astype('float32')
    return write(path, stack, NAMES, np.nan, **({'crs': crs, **place} if crs else {}))


@pytest.fixture
def values() -> np.ndarray:
    """A square of 3 x 3 cells, a pair and a single one among 100; one is missing."""
    values = np.full((10, 10), 0.1)
    values[1:4, 1:4] = 0.9
    values[6, 2:4] = 0.8
    values[8, 8] = 0.7
    values[0, 9] = np.nan
    # Touches the square by its corner alone.
    values[4, 4] = 0.75
    return values


def test_regions_are_where_saliency_is(tmp_path: Path, values: np.ndarray) -> None:
    path = saliency_of(tmp_path / 'm.tif', values)
    actual = salient_regions(path, 0.87, simplify=0)
    assert actual.patches.tolist() == [9, 2, 1, 1]
    assert actual.area_m2.tolist() == [9 * 6400, 2 * 6400, 6400, 6400]
    assert np.allclose(actual['mean'], [0.9, 0.8, 0.75, 0.7])
    assert np.allclose(actual['max'], actual['mean'])
    assert actual.crs == 'EPSG:32632'
    assert np.array_equal(actual.geometry.area, actual.area_m2)
    west, south, east, north = actual.geometry[0].bounds
    assert (west, north) == (5e5 + 80, 48 - 80)
    assert (east - west, north - south) == (240, 240)


def test_threshold_is_a_quantile(tmp_path: Path, values: np.ndarray) -> None:
    path = saliency_of(tmp_path / 'm.tif', values)
    for share, patches in ((0.0, 99), (0.87, 13), (0.88, 12), (0.9, 11), (0.95, 9)):
        assert salient_regions(path, share).patches.sum() == patches


def test_area_where_the_system_is_in_degrees(
    tmp_path: Path, values: np.ndarray
) -> None:
    path = saliency_of(tmp_path / 'm.tif', values, 'EPSG:4326')
    actual = salient_regions(path, 0.87)
    # A thousandth of a degree at 48 degrees north: 111.2 m by 74.6 m.
    assert actual.area_m2[0] == pytest.approx(9 * 111.2 * 74.6, rel=0.01)


def test_coordinates_off_earth_are_named(tmp_path: Path, values: np.ndarray) -> None:
    stack = values[None].astype('float32')
    place = {'crs': 'EPSG:4326', 'transform': from_origin(170, 300, 10, 10)}
    path = write(tmp_path / 'far.tif', stack, ['saliency'], np.nan, **place)
    with pytest.raises(ValueError, match=r'far\.tif has coordinates outside its'):
        salient_regions(path)


def test_min_area(tmp_path: Path, values: np.ndarray) -> None:
    path = saliency_of(tmp_path / 'm.tif', values)
    assert salient_regions(path, 0.87, min_area=10_000).patches.tolist() == [9, 2]
    bare = saliency_of(tmp_path / 'bare.tif', values, None)
    assert salient_regions(bare, 0.87).area_m2.isna().all()
    with pytest.raises(ValueError, match=r'min_area: .* has no coordinate reference'):
        salient_regions(bare, 0.87, min_area=1)


def test_stairs_become_slopes_and_single_patches_stay(tmp_path: Path) -> None:
    values = np.tril(np.ones((10, 10))) + 0.0
    values[0, 9] = 1
    path = saliency_of(tmp_path / 'm.tif', values)
    rough, smooth = (salient_regions(path, 0.5, simplify=n) for n in (0, 0.71))
    assert len(rough.geometry[0].exterior.coords) > 20
    assert len(smooth.geometry[0].exterior.coords) < 7
    assert smooth.geometry[1].equals(rough.geometry[1])
    assert smooth.area_m2.equals(rough.area_m2)
    assert smooth.geometry.is_valid.all()


@pytest.mark.parametrize('suffix', ['.geojson', '.gpkg'])
def test_files(tmp_path: Path, values: np.ndarray, suffix: str) -> None:
    wanted = salient_regions(saliency_of(tmp_path / 'm.tif', values), 0.87)
    target = tmp_path / f'regions of 2020{suffix}'
    for _ in range(2):
        write_regions(wanted, target)
    actual = gpd.read_file(target)
    assert actual.crs == ('EPSG:4326' if suffix == '.geojson' else 'EPSG:32632')
    assert actual.area_m2.tolist() == wanted.area_m2.tolist()
    again = actual.to_crs('EPSG:32632').geometry
    assert again.geom_equals_exact(wanted.geometry, 0.1).all()
    assert {path.name for path in tmp_path.iterdir()} == {'m.tif', target.name}


@pytest.mark.parametrize(
    ('crs', 'corner'),
    [
        ('EPSG:32601', (376_900, 7_600_000)),  # UTM zone 1, with its west over the line
        ('EPSG:32660', (622_200, 7_600_000)),
        ('EPSG:4326', (179.995, 48)),
        ('EPSG:4326', (-180.005, 48)),
        ('EPSG:4326', (200, 48)),
        ('EPSG:3832', (29.995 * 111_319.49, 5_000_000)),
    ],
)
def test_polygons_are_cut_at_the_date_line(
    tmp_path: Path, crs: str, corner: tuple[float, float]
) -> None:
    """As RFC 7946 asks: no region spans the Earth, and none is lost."""
    side = 0.001 if crs == 'EPSG:4326' else 80
    stack = np.ones((1, 10, 10), 'float32')
    stack[0, 3, 3] = 0
    place = {'crs': crs, 'transform': from_origin(*corner, side, side)}
    path = write(tmp_path / 'm.tif', stack, ['saliency'], np.nan, **place)
    regions = salient_regions(path, 0.5, simplify=0)
    target = tmp_path / 'regions.geojson'
    write_regions(regions, target)
    actual = gpd.read_file(target)
    assert actual.is_valid.all()
    assert len(actual) == len(regions) == 1
    pieces = actual.explode().bounds
    assert len(pieces) == (1 if corner[0] == 200 else 2)
    assert (pieces.minx >= -180).all()
    assert (pieces.maxx <= 180).all()
    assert ((pieces.maxx - pieces.minx) < 0.1).all()
    area = actual.to_crs('EPSG:6933').area.sum()
    if crs != 'EPSG:3832':  # stretched
        assert area == pytest.approx(regions.area_m2.sum(), rel=0.02)


def test_bad_arguments(tmp_path: Path, values: np.ndarray) -> None:
    path = saliency_of(tmp_path / 'm.tif', values)
    for name, value in (('threshold', 1.0), ('min_area', -1.0), ('simplify', -1.0)):
        with pytest.raises(ValueError, match=f'{name}: {value} is not'):
            salient_regions(path, **{name: value})
    with pytest.raises(ValueError, match=r"layer: .* but no 'NDVI'"):
        salient_regions(path, layer='NDVI')
    empty = saliency_of(tmp_path / 'empty.tif', np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match=r'empty\.tif has no values'):
        salient_regions(empty)
    actual = salient_regions(path)
    with pytest.raises(ValueError, match=r"polygons: '.*x.shp' should end in"):
        write_regions(actual, tmp_path / 'x.shp')
    with pytest.raises(OSError, match=r'polygons: .* cannot be written'):
        write_regions(actual, path / 'x.gpkg')
    with rasterio.open(path) as file:
        assert file.count == 2
