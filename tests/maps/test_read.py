# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes to be mapped: one file, a file per band, a TorchGeo dataset, an area."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window
from shapely import Point, box
from torchgeo.datasets import Sentinel2

from helpers.geotiffs import numbered, write
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.maps import (
    crop,
    dataset_raster,
    open_raster,
    read_aoi,
    saliency_map,
)
from torchgeo_sigmae.maps.windows import patch_windows
from torchgeo_sigmae.transforms import SpectralIndex

RGB = ('B04', 'B03', 'B02')
TILE = 'T32TQM_20220301T101010'
METADATA = '<a><n1:B><{0} band_id="0">-1000</{0}><{0} band_id="1">{1}</{0}></n1:B></a>'


def write_band(path: Path, values: np.ndarray, meters: int, driver: str = '') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, 'w', driver=driver or 'GTiff', count=1, height=len(values),
        width=values.shape[1], dtype=values.dtype, crs='EPSG:32632',
        transform=from_origin(5e5, 5.4e6, meters, meters),
        **({'QUALITY': 100, 'REVERSIBLE': 'YES'} if driver else {}),
    ) as file:  # fmt: skip
        file.write(values[None])


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    """A Sentinel-2 product: JPEG 2000, three resolutions, previews."""
    root = tmp_path / 'S2A_MSIL2A_20220301T101010_N0400.SAFE'
    images = root / 'GRANULE' / 'L2A' / 'IMG_DATA'
    for band, meters in (('B04', 10), ('B8A', 20), ('B01', 60)):
        side = 240 // meters * 10
        values = np.arange(side * side, dtype='uint16').reshape(side, side) + 1001
        for coarse in (1, 2) if meters == 10 else (1,):
            size = meters * coarse
            path = images / f'R{size}m' / f'{TILE}_{band}_{size}m.jp2'
            write_band(path, values[::coarse, ::coarse].copy(), size, 'JP2OpenJPEG')
    write_band(root / 'preview' / f'{TILE}_B04.tif', np.zeros((9, 9), 'uint16'), 270)
    (root / 'MTD_MSIL2A.xml').write_text(METADATA.format('BOA_ADD_OFFSET', -1000))
    return root


def test_reads_any_window(tmp_path: Path) -> None:
    image = numbered(20, 30)
    raster = open_raster(write(tmp_path / 's.tif', image, east=5e5), ('red', 'blue'))
    assert raster.bands == ('B04', 'B02')
    actual = raster.read(Window(-3, -2, 40, 30))
    assert actual.shape == (2, 30, 40)
    assert np.array_equal(actual[:, 2:22, 3:33], image[[0, 2]])
    actual[:, 2:22, 3:33] = np.nan
    assert np.isnan(actual).all()
    assert np.isnan(raster.read(Window(30, 0, 8, 8))).all()


def test_windows_cover_every_patch_once(tmp_path: Path) -> None:
    raster = open_raster(write(tmp_path / 's.tif', numbered(20, 30)), RGB)
    seen = np.zeros((24, 32), int)
    for window in patch_windows(raster, 8, 16):
        seen[window.toslices()] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize('nodata', [None, 0, 10203])
def test_what_is_missing(tmp_path: Path, nodata: float | None) -> None:
    image = numbered(20, 30)
    image[:, 5, 5] = 0
    # A dark band alone is no reason.
    image[0, 6, 6] = 0
    raster = open_raster(write(tmp_path / 's.tif', image, nodata=nodata), RGB)
    actual = np.isnan(raster.read(Window(0, 0, 30, 20)))
    # Another nodata value than 0 counts in its band alone.
    missing = [[1, 2, 2]] if nodata else [[band, 5, 5] for band in range(3)]
    assert np.argwhere(actual).tolist() == missing


def test_bands_of_a_product_share_the_finest_grid(safe: Path) -> None:
    raster = open_raster(safe, ('B01', 'B04', 'B8A'))
    assert (raster.height, raster.width) == (240, 240)
    assert raster.transform.a == 10
    assert raster.files[1].offsets == (-0.1,)
    actual = raster.read(Window(0, 0, 240, 240))
    for i, (coarse, side) in enumerate(((6, 40), (1, 240), (2, 120))):
        fine = np.arange(side * side).reshape(side, side) + 1.0
        assert np.array_equal(actual[i], fine.repeat(coarse, 0).repeat(coarse, 1))
    part = raster.read(Window(13, 57, 31, 8))
    assert np.array_equal(part, actual[:, 57:65, 13:44])


def offset_of(path: Path, **arguments: float) -> float | None:
    offsets = open_raster(path, ['B04'], **arguments).files[0].offsets
    return None if offsets is None else offsets[0]


def test_offset(safe: Path) -> None:
    (safe / 'MTD_MSIL2A.xml').write_text(METADATA.format('BOA_ADD_OFFSET', -900))
    with pytest.raises(ValueError, match=r'offset: .*MTD_MSIL2A.xml has several'):
        open_raster(safe, ['B04'])
    assert offset_of(safe, offset=-0.7) == -0.7
    (safe / 'MTD_MSIL2A.xml').unlink()
    assert offset_of(safe) is None
    text = METADATA.format('RADIO_ADD_OFFSET', -1000)
    (safe / 'MTD_MSIL1C.xml').write_text(text)
    assert offset_of(safe) == -0.1
    folder = safe / 'GRANULE' / 'L2A' / 'IMG_DATA' / 'R10m'
    assert offset_of(folder) == -0.1


def test_folders_that_lack_something(safe: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'has no file of B02, B03\. '):
        open_raster(safe, ('B02', 'B03', 'B04'))
    for name in ('a', 'b'):
        write_band(tmp_path / 'two' / f'{name}_B04.tif', np.ones((8, 8), 'uint16'), 10)
    with pytest.raises(ValueError, match=r'has several files of B04: a_B04.tif'):
        open_raster(tmp_path / 'two', ['B04'])
    write_band(tmp_path / 'far' / 'B04.tif', np.ones((8, 8), 'uint16'), 10)
    write_band(tmp_path / 'far' / 'B03.tif', np.ones((8, 8), 'uint16'), 20)
    with pytest.raises(ValueError, match='does not show the same ground as'):
        open_raster(tmp_path / 'far', ('B03', 'B04'))


def test_no_raster(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"there is no file or folder '.*x.tif'"
    ):
        open_raster(tmp_path / 'x.tif', RGB)
    (tmp_path / 'x.tif').write_text('not a raster')
    with pytest.raises(OSError, match=r'x\.tif cannot be read'):
        open_raster(tmp_path / 'x.tif', RGB)
    path = write(tmp_path / 's.tif', numbered(8, 8), bands=None)
    with pytest.raises(ValueError, match=r'bands_in_file: .* has no band descriptions'):
        open_raster(path, RGB)
    with pytest.raises(ValueError, match=r'bands: .*B8A'):
        open_raster(path, ['B8A'], RGB)


def test_bigearthnet(bigearthnet_root: Path) -> None:
    patch = next(path for path in bigearthnet_root.glob('*/*') if path.is_dir())
    raster = open_raster(patch, SENTINEL2_TEN_BANDS)
    assert (raster.height, raster.width, raster.crs.is_projected) == (120, 120, True)
    actual = raster.read(Window(0, 0, 120, 120))
    assert np.isfinite(actual).all()
    with rasterio.open(patch / f'{patch.name}_B11.tif') as file:
        assert np.array_equal(actual[8, ::2, ::2], file.read(1))


def test_dataset_of_torchgeo_equals_the_folder(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for band in ('B02', 'B03', 'B04', 'B08'):
        values = generator.integers(0, 4000, (70, 90)).astype('uint16')
        values[3:5, 7:30] = 0
        write_band(tmp_path / 'R10m' / f'{TILE}_{band}_10m.tif', values, 10)
    dataset = Sentinel2(tmp_path, bands=['B02', 'B03', 'B04', 'B08'], res=10)
    one, other = dataset_raster(dataset, RGB), open_raster(tmp_path, RGB)
    assert one.crs == other.crs
    assert one.transform.almost_equals(other.transform)
    assert (one.height, one.width) == (70, 90)
    for window in (Window(0, 0, 90, 70), Window(-5, 30, 64, 64), Window(80, 2, 8, 8)):
        actual, wanted = one.read(window), other.read(window)
        assert np.array_equal(actual, wanted, equal_nan=True)
    area = box(500_205, 5_399_500, 500_600, 5_399_800)
    window = Window(0, 0, 40, 40)
    actual, wanted = (crop(r, area, 8).read(window) for r in (one, other))
    assert np.array_equal(actual, wanted, equal_nan=True)
    assert np.isfinite(actual).any()
    greenness = SpectralIndex('G', '(green - red) / (green + red)', 'made up')
    maps = []
    for name, raster, side in (('a', one, 32), ('b', other, 72)):
        target = tmp_path / f'{name}.tif'
        saliency_map(raster, target, indices=[greenness], window=side)
        with rasterio.open(target) as file:
            maps.append(file.read())
            assert file.crs == 'EPSG:32632'
    assert np.array_equal(*maps, equal_nan=True)


class TestArea:
    @pytest.fixture
    def scene(self, tmp_path: Path) -> Path:
        return write(tmp_path / 's.tif', numbered(60, 80), east=5e5)

    def test_any_system(self, scene: Path, tmp_path: Path) -> None:
        circle = Point(500_405, 5_399_700).buffer(152)
        wanted = gpd.GeoSeries([circle], crs='EPSG:32632')
        raster = open_raster(scene, RGB)
        maps = []
        for system in ('EPSG:32632', 'EPSG:4326', 'EPSG:3857'):
            path = tmp_path / f'{system[5:]}.gpkg'
            wanted.segmentize(5).to_crs(system).to_file(path)
            cut = crop(raster, read_aoi(path, raster.crs), 8)
            assert (cut.row, cut.column, cut.height, cut.width) == (8, 24, 40, 32)
            maps.append(cut.read(Window(0, 0, 32, 40)))
        inside = np.isfinite(maps[0][0])
        assert abs(inside.sum() * 100 / circle.area - 1) < 0.02
        for actual in maps[1:]:
            assert (np.isfinite(actual[0]) != inside).sum() < 5
        whole = raster.read(Window(24, 8, 32, 40))
        assert np.array_equal(maps[0][:, inside], whole[:, inside])

    def test_outside(self, scene: Path, tmp_path: Path) -> None:
        path = tmp_path / 'far.geojson'
        gpd.GeoSeries([box(20, 40, 21, 41)], crs='EPSG:4326').to_file(path)
        raster = open_raster(scene, RGB)
        with pytest.raises(ValueError, match=r'aoi: the area .* lies outside'):
            crop(raster, read_aoi(path, raster.crs), 8)

    def test_bad_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match='aoi: there is no file'):
            read_aoi(tmp_path / 'none.geojson', None)
        bad = tmp_path / 'bad.geojson'
        bad.write_text('{"type":')
        with pytest.raises(ValueError, match=r"aoi: '.*bad.geojson' cannot be read"):
            read_aoi(bad, None)
        gpd.GeoSeries([Point(0, 0)], crs='EPSG:4326').to_file(tmp_path / 'p.gpkg')
        with pytest.raises(ValueError, match='holds no polygon'):
            read_aoi(tmp_path / 'p.gpkg', None)
        empty = {'type': 'FeatureCollection', 'features': []}
        bad.write_text(json.dumps(empty))
        with pytest.raises(ValueError, match='holds no'):
            read_aoi(bad, None)


@pytest.mark.parametrize('cache', [False, True])
def test_preview_shows_every_part_of_the_scene(tmp_path: Path, cache: bool) -> None:
    image = numbered(50, 70)
    image[:, 40:] = 0
    scene = open_raster(write(tmp_path / 's.tif', image, east=5e5), RGB)
    preview = (scene.cached() if cache else scene).preview(4)
    assert preview.shape == (3, 13, 18)
    assert np.isnan(preview[:, 11:]).all()
    # The value says its row and column.
    rows, columns = np.divmod(preview[0, :10] - 1, 100)
    assert (abs(rows - np.arange(10)[:, None] * 4 - 1.5) < 3).all()
    assert (abs(columns - np.arange(18) * 4 - 1.5) < 3).all()


def test_preview_of_an_area_of_a_product(safe: Path) -> None:
    scene = open_raster(safe, ('B01', 'B04'))
    square = box(5e5 + 600, 5.4e6 - 1200, 5e5 + 1200, 5.4e6 - 600)
    preview = crop(scene, square, 8).preview(8)
    assert preview.shape == (2, 8, 8)
    whole = crop(scene, square, 8).read()
    valid = np.isfinite(preview[0])
    assert valid[1:7, 1:7].all()
    wanted = whole[:, ::8, ::8]
    assert abs(preview - wanted)[:, valid & np.isfinite(wanted[0])].max() < 8 * 241


def test_preview_of_a_dataset(tmp_path: Path) -> None:
    values = np.arange(64 * 64, dtype='uint16').reshape(64, 64) + 1
    for band in ('B02', 'B03'):
        write_band(tmp_path / 'R10m' / f'{TILE}_{band}_10m.tif', values, 10)
    dataset = Sentinel2(tmp_path, bands=['B02', 'B03'], res=10)
    scene = dataset_raster(dataset, ('B03', 'B02'))
    preview = scene.preview(8)
    assert preview.shape == (2, 8, 8)
    assert abs(preview - values[4::8, 4::8]).max() <= 4 * 65
