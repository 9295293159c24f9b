# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Rasters as users have them: masks, units, missing bands, names, archives."""

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from helpers.geotiffs import RGB, numbered, write
from torchgeo_sigmae import SceneDataModule
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.datasets import RasterScene, find_scenes
from torchgeo_sigmae.datasets.paths import clean_path, find_band
from torchgeo_sigmae.maps import open_raster
from torchgeo_sigmae.sensors import get_sensor


def holes(path: Path, **arguments: Any) -> np.ndarray:
    """Which values are missing; from memory and by windows they are the same."""
    scene = RasterScene.open(path, **{'bands': RGB, **arguments})
    image = scene.read()
    np.testing.assert_array_equal(scene.cached().read(), image)
    part = Window(3, 2, 9, 8)
    np.testing.assert_array_equal(scene.cached().read(part), image[:, 2:10, 3:12])
    np.testing.assert_array_equal(scene.read(part), image[:, 2:10, 3:12])
    return np.isnan(image)


# ------------------------------------------------------------------------------ masks

LEFT = np.arange(20) < 10


@pytest.mark.parametrize('internal', [True, False])
@pytest.mark.parametrize('nodata', [None, 0, 9])
def test_masks_of_a_file(tmp_path: Path, internal: bool, nodata: float | None) -> None:
    """Inside the file, or beside it as ``.msk``; nodata counts as well."""
    array = numbered(20, 20)
    array[:, :, LEFT] = 7
    array[:, 5, 15] = 9
    path = write(tmp_path / 'a.tif', array, nodata=nodata)
    mask = np.where(LEFT, 0, 255).astype('uint8')
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(path, 'r+') as file,
    ):
        file.write_mask(np.broadcast_to(mask, (20, 20)).copy())
    assert (tmp_path / 'a.tif.msk').exists() != internal
    expected = np.broadcast_to(LEFT, (3, 20, 20)).copy()
    if nodata == 9:
        expected[:, 5, 15] = True
    assert np.array_equal(holes(path), expected)


@pytest.mark.parametrize('nodata', [None, 0])
@pytest.mark.parametrize('given', [None, RGB])
def test_alpha_is_a_mask_and_no_band(
    tmp_path: Path, nodata: float | None, given: tuple[str, ...] | None
) -> None:
    alpha = np.where(LEFT, 0, 65535) * np.ones((20, 1))
    array = np.concatenate([numbered(20, 20), alpha[None].astype('uint16')])
    names = None if given else (*RGB, 'alpha')
    path = write(tmp_path / 'a.tif', array, names, nodata=nodata)
    with rasterio.open(path, 'r+') as file:
        kinds = [ColorInterp.gray] + 2 * [ColorInterp.undefined]
        file.colorinterp = [*kinds, ColorInterp.alpha]
    assert np.array_equal(
        holes(path, bands_in_file=given), np.broadcast_to(LEFT, (3, 20, 20))
    )


def test_four_bands_of_eight_bits_are_no_alpha(tmp_path: Path) -> None:
    """GDAL calls the fourth one alpha, but near infrared is 0 over water."""
    array = (numbered(20, 20, 4) % 250 + 1).astype('uint8')
    array[3, :5] = 0
    path = write(tmp_path / 'a.tif', array, (*RGB, 'B08'))
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    assert not holes(path, bands=(*RGB, 'B08')).any()
    path = write(tmp_path / 'b.tif', array, None)
    assert not holes(path, bands_in_file=(*RGB, 'B08')).any()


def test_nodata_in_a_sidecar(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', numbered(20, 20), None)
    bands = ''.join(
        f'<PAMRasterBand band="{i}"><Description>{name}</Description>'
        f'<NoDataValue>{10_000 * (i - 1) + 1}</NoDataValue></PAMRasterBand>'
        for i, name in enumerate(RGB, 1)
    )
    Path(f'{path}.aux.xml').write_text(f'<PAMDataset>{bands}</PAMDataset>')
    assert np.argwhere(holes(path)).tolist() == [[band, 0, 0] for band in range(3)]


def test_zero_is_missing_where_all_bands_of_the_file_are_zero(tmp_path: Path) -> None:
    """Wanted or not, but for bands that are not spectral, and never one alone."""
    array = numbered(20, 20, 5)
    array[:, 1, 1] = 0
    array[:3, 2, 2] = 0  # B11 has a value there
    array[1, 3, 3] = 0
    array[4] = 1  # a fill value of its own
    names = (*RGB, 'B11', 'QA_PIXEL')
    path = write(tmp_path / 'a.tif', array, names, nodata=0)
    assert np.argwhere(holes(path)).tolist() == [[band, 1, 1] for band in range(3)]


def test_other_nodata_is_missing_in_its_band_alone(tmp_path: Path) -> None:
    array = numbered(20, 20).astype('float32')
    array[1, 4, 4] = -9999
    path = write(tmp_path / 'a.tif', array, nodata=-9999)
    assert np.argwhere(holes(path)).tolist() == [[1, 4, 4]]


@pytest.mark.parametrize('where', ['band', 'file', 'folder'])
@pytest.mark.parametrize(
    ('mask_band', 'values', 'clear'),
    [
        ('SCL', [*range(12)], [2, 4, 5, 6, 7, 11]),
        ('QA_PIXEL', [1, 2, 4, 8, 16, 32, 64, 128, 21824], [32, 64, 128, 21824]),
    ],
)
def test_clouds(
    tmp_path: Path, where: str, mask_band: str, values: list[int], clear: list[int]
) -> None:
    flags = np.resize(values, (20, 20)).astype('uint16')
    array = numbered(20, 20)
    if where == 'band':
        stack = np.concatenate([array, flags[None]])
        path = write(tmp_path / 'a.tif', stack, (*RGB, mask_band), east=5e5)
    elif where == 'file':
        path = write(tmp_path / 'a.tif', array, east=5e5)
        write(tmp_path / f'a_{mask_band}.tif', flags[None], None, east=5e5)
    else:
        path = tmp_path / 'product'
        for name, band in zip((*RGB, mask_band), (*array, flags), strict=True):
            write(path / f'x_{name}.TIF', band[None], None, east=5e5)
    assert not holes(path).any()
    expected = np.broadcast_to(~np.isin(flags, clear), (3, 20, 20))
    assert np.array_equal(holes(path, mask_band=mask_band), expected)


def test_clouds_that_nobody_tells(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', numbered(8, 8))
    with pytest.raises(ValueError, match=r'mask_band: .*a\.tif has no band SCL, and'):
        RasterScene.open(path, RGB, mask_band='SCL')
    with pytest.raises(ValueError, match="mask_band: 'clouds' is unknown"):
        RasterScene.open(path, RGB, mask_band='clouds')


# ------------------------------------------------------------------------------ units


def scaled(path: Path, array: np.ndarray, scale: float, offset: float) -> Path:
    write(path, array)
    with rasterio.open(path, 'r+') as file:
        file.scales = (scale,) * len(array)
        file.offsets = (offset,) * len(array)
    return path


def test_scale_and_offset_mean_reflectance(tmp_path: Path) -> None:
    plain = write(tmp_path / 'plain.tif', numbered(20, 20))
    expected = RasterScene.open(plain, RGB).read()
    np.testing.assert_array_equal(expected, numbered(20, 20))
    tagged = scaled(tmp_path / 'a.tif', numbered(20, 20) + np.uint16(1000), 1e-4, -0.1)
    untold = write(tmp_path / 'b.tif', numbered(20, 20) + np.uint16(1000))
    landsat = np.round((numbered(20, 20) * 1e-4 + 0.2) / 2.75e-5).astype('uint32')
    for path, arguments, error in (
        (tagged, {}, 0),
        (untold, {'scale': 1e-4, 'offset': -0.1}, 0),
        (untold, {'offset': -0.1}, 0),
        (scaled(tmp_path / 'c.tif', landsat, 2.75e-5, -0.2), {}, 0.2),
        (write(tmp_path / 'd.tif', landsat), {'scale': 2.75e-5, 'offset': -0.2}, 0.2),
        (write(tmp_path / 'e.tif', numbered(20, 20) * 1e-4), {'scale': 1}, 0.01),
    ):
        for opened in (RasterScene.open, open_raster):
            scene = opened(path, RGB, **arguments)
            for image in (scene.read(), scene.cached().read()):
                np.testing.assert_allclose(image, expected, atol=error)
    # What is given is believed, not the tags.
    image = RasterScene.open(tagged, RGB, scale=1e-4, offset=0).read()
    np.testing.assert_array_equal(image, numbered(20, 20) + 1000)


def test_nodata_is_a_value_of_the_file(tmp_path: Path) -> None:
    array = numbered(20, 20) + np.uint16(1000)
    array[:, 1, 1] = 0
    path = scaled(tmp_path / 'a.tif', array, 1e-4, -0.1)
    scene = RasterScene.open(path, RGB, nodata=0)
    assert np.argwhere(np.isnan(scene.read()[0])).tolist() == [[1, 1]]


def test_chips_of_files_with_different_units_are_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(500, 3000, (3, 32, 32)).astype('uint16')
    write(tmp_path / 'a.tif', array)
    scaled(tmp_path / 'b.tif', array + np.uint16(1000), 1e-4, -0.1)
    scaled(tmp_path / 'c.tif', array * 1e-4, 1.0, 1e-9)
    datamodule = SceneDataModule(tmp_path, RGB, size=16, val_fraction=0)
    datamodule.setup('fit')
    expected = array.reshape(3, -1).mean(1)
    np.testing.assert_allclose(datamodule.mean, expected, rtol=1e-4)
    for scene in datamodule.train_dataset.scenes:
        np.testing.assert_allclose(scene.read(), array, rtol=1e-4)


OLD = 'S2A_MSIL2A_20200706T085611_N0214_R007_T33NZA_20200706T153419.tif'
NEW = 'S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419.tif'


def test_mixed_processing_baselines_are_told(tmp_path: Path) -> None:
    write(tmp_path / OLD, numbered(8, 8))
    write(tmp_path / NEW, numbered(8, 8))
    with pytest.warns(UserWarning, match=f'offset: .*{NEW} is of .* and .*{OLD} of an'):
        find_scenes(tmp_path, bands=RGB)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        find_scenes(tmp_path, bands=RGB, offset=0)
    # Those whose offset is known mix well.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        scaled(tmp_path / NEW, numbered(8, 8), 1e-4, -0.1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        find_scenes(tmp_path, bands=RGB)


def test_baseline_in_tags(tmp_path: Path) -> None:
    for name, baseline in (('a', '03.01'), ('b', '05.10')):
        path = write(tmp_path / f'{name}.tif', numbered(8, 8))
        with rasterio.open(path, 'r+') as file:
            file.update_tags(PROCESSING_BASELINE=baseline)
    with pytest.warns(UserWarning, match=r'offset: .*b\.tif is of .* and .*a\.tif of'):
        find_scenes(tmp_path, bands=RGB)


def test_a_product_name_tells_the_offset_of_a_folder(tmp_path: Path) -> None:
    for name, offset in ((OLD, 0), (NEW, 1000)):
        folder = tmp_path / name.replace('.tif', '.SAFE')
        for band, values in zip(RGB, numbered(8, 8), strict=True):
            write(folder / 'IMG_DATA' / f'T33_{band}_10m.jp2', values[None], None)
        image = RasterScene.open(folder, RGB).read()
        np.testing.assert_array_equal(image, numbered(8, 8).astype(float) - offset)


@pytest.mark.parametrize(('level', 'told'), [(3e4, 'median'), (5e-4, 'at most')])
def test_implausible_reflectance_is_told(
    tmp_path: Path, level: float, told: str
) -> None:
    rng = np.random.default_rng(0)
    array = (level * rng.uniform(0.5, 1, (3, 32, 32))).astype('float32')
    write(tmp_path / 'a.tif', array)
    with pytest.warns(UserWarning, match=f'scale, offset: .* {told}'):
        SceneDataModule(tmp_path, RGB, size=16, val_fraction=0).setup('fit')


# ---------------------------------------------------------------------- missing bands


def test_files_that_lack_bands(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', numbered(20, 20))
    write(tmp_path / 'b.tif', numbered(20, 20, 2) + np.uint16(5), ('B02', 'B04'))
    with pytest.raises(ValueError, match=r'b\.tif has the bands .*allow_missing_bands'):
        find_scenes(tmp_path, bands=RGB)
    whole, part = find_scenes(tmp_path, bands=RGB, allow_missing_bands=True)
    assert np.isfinite(whole.read()).all()
    for scene in (part, part.cached()):
        image = scene.read(Window(0, 0, 4, 4))
        assert np.isnan(image[1]).all()
        np.testing.assert_array_equal(image[2], numbered(4, 4)[0] + 5)
        np.testing.assert_array_equal(image[0], numbered(4, 4)[1] + 5)
    write(tmp_path / 'c.tif', numbered(20, 20, 1), ('B11',))
    with pytest.raises(ValueError, match=r'c\.tif has the bands'):
        find_scenes(tmp_path, bands=RGB, allow_missing_bands=True)


def test_statistics_count_what_exists(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(500, 3000, (3, 32, 32)).astype('uint16')
    write(tmp_path / 'a.tif', array)
    write(tmp_path / 'b.tif', array[[1]] + np.uint16(900), ('B03',))
    datamodule = SceneDataModule(
        tmp_path, RGB, size=16, val_fraction=0, allow_missing_bands=True
    )
    datamodule.setup('fit')
    expected = array.reshape(3, -1).mean(1)
    expected[1] += 450
    np.testing.assert_allclose(datamodule.mean, expected, rtol=1e-5)
    both = np.concatenate([array[1], array[1] + 900])
    assert datamodule.std[1] == pytest.approx(both.std(), rel=1e-5)
    assert datamodule.std[0] == pytest.approx(array[0].std(), rel=1e-5)
    lacking = SceneDataModule(
        tmp_path, (*RGB, 'B11'), size=16, val_fraction=0, allow_missing_bands=True
    )
    with pytest.raises(ValueError, match='no training scene has a value of B11'):
        lacking.setup('fit')


def test_real_scenes_that_lack_bands(real_data: Callable[[str], Path]) -> None:
    root = real_data('partial')
    with pytest.raises(ValueError, match='allow_missing_bands'):
        find_scenes(root)
    datamodule = SceneDataModule(
        root.parent,
        size=64,
        paths=('partial/sen2ships*.tif', 'scenes/ravaen*.tif'),
        allow_missing_bands=True,
    )
    datamodule.setup('fit')
    assert all(100 < value < 5000 for value in datamodule.mean.tolist())
    for scene in datamodule.train_dataset.scenes:
        seen = np.isfinite(scene.read()).any((1, 2))
        names = set(np.array(SENTINEL2_TEN_BANDS)[seen])
        if 'sen2ships' in scene.path:
            assert len(names) == 5
            assert {'B03', 'B04', 'B08', 'B11'} < names
        else:
            assert len(names) == 10


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ('name', 'band'),
    [
        ('B4, central wavelength 665 nm', 'B04'),
        ('B8A_20m', 'B8A'),
        ('sur_refl_B02', 'B02'),
        ('S2_B12', 'B12'),
        ('B11_median', 'B11'),
        ('b8a (narrow near infrared)', 'B8A'),
        ('Red', 'B04'),
        ('Red edge 1', 'B05'),
        ('SWIR 2', 'B12'),
        ('red_mean', 'B04'),
        ('red and blue', None),
        ('B04 minus B03', None),
        ('SR_B5', None),
        ('cloud probability', None),
        ('', None),
        (None, None),
    ],
)
def test_descriptions(name: str | None, band: str | None) -> None:
    found = find_band(name, get_sensor('sentinel2'))
    assert (found and found.name) == band


@pytest.mark.parametrize(
    ('pattern', 'names', 'sensor'),
    [
        ('HLS.S30.T33NZA.2022187T085611.v2.0.{}.tif', ('B04', 'B8A'), 'sentinel2'),
        ('{}.tif', ('red', 'nir08'), 'sentinel2'),
        ('{}.TIF', ('B04', 'B8A'), 'sentinel2'),
        ('T33NZA_20220706T085611_{}_20m.jp2', ('B04', 'B8A'), 'sentinel2'),
        ('{}_clear.tiff', ('B4', 'b8a'), 'sentinel2'),
        ('LC09_L2SP_186055_20220706_02_T1_{}.TIF', ('SR_B4', 'SR_B5'), 'landsat8'),
    ],
)
def test_files_of_bands(
    tmp_path: Path, pattern: str, names: tuple[str, ...], sensor: str
) -> None:
    for name, values in zip(names, numbered(8, 8), strict=False):
        write(tmp_path / 'x' / pattern.format(name), values[None], None)
    write(tmp_path / 'x' / pattern.format('Fmask'), numbered(8, 8, 1), None)
    bands = BandSet(('red', 'nir08'), sensor)
    image = RasterScene.open(tmp_path / 'x', bands).read()
    np.testing.assert_array_equal(image, numbered(8, 8)[:2])


def test_landsat_names_are_no_bands_of_sentinel2(tmp_path: Path) -> None:
    write(tmp_path / 'x' / 'LC09_SR_B5.TIF', numbered(8, 8, 1), None)
    with pytest.raises(FileNotFoundError, match='has no file of B05'):
        RasterScene.open(tmp_path / 'x', ['B05'])


@pytest.mark.parametrize('name', ['LE07_L2SP_186055_T1.tif', 'x/LT05_186055_T1'])
def test_the_name_of_a_landsat_product_tells_its_satellite(
    tmp_path: Path, name: str
) -> None:
    bands = ('SR_B3', 'SR_B4')
    if name.endswith('.tif'):
        write(tmp_path / name, numbered(8, 8)[:2], bands)
    else:
        for band in bands:
            write(tmp_path / name / f'{band}.TIF', numbered(8, 8, 1), None)
    satellite = f'landsat{name.split("_")[0][-1]}'
    with pytest.raises(ValueError, match=f'sensor: .* Pass sensor={satellite!r}'):
        RasterScene.open(tmp_path / name, BandSet(('red', 'nir'), 'landsat8'))
    scene = RasterScene.open(tmp_path / name, BandSet(('red', 'nir'), satellite))
    assert scene.bands.sensor.find('red').name == 'B3'


def test_a_forgotten_sensor_is_named(tmp_path: Path) -> None:
    names = [f'SR_B{i}' for i in range(1, 8)]
    write(tmp_path / 'a.tif', np.zeros((7, 8, 8), 'uint16'), names)
    with pytest.raises(ValueError, match="Pass sensor='landsat8' or 'landsat7'"):
        RasterScene.open(tmp_path / 'a.tif', ['red', 'nir'])


def test_repeated_bands_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', numbered(8, 8), ('B04', 'Red', 'B02'))
    with pytest.raises(
        ValueError, match=r"a\.tif has B04 more than once: band 1, 'B04', .*2, 'Red'"
    ):
        RasterScene.open(path, ['B04'])
    # Not those that nobody asked for; an exact name is preferred.
    assert RasterScene.open(path, ['B02']).files[0].indexes == (3,)
    path = write(tmp_path / 'b.tif', numbered(8, 8), ('B04_std', 'B04', 'B02'))
    assert RasterScene.open(path, ['B04']).files[0].indexes == (2,)
    for name in ('red.tif', 'T33_B04.tif'):
        write(tmp_path / 'x' / name, numbered(8, 8, 1), None)
    with pytest.raises(ValueError, match=r'several files of B04: T33_B04\.tif, red'):
        RasterScene.open(tmp_path / 'x', ['B04'])


def test_suffixes_in_any_case(tmp_path: Path) -> None:
    for name in ('a.TIF', 'b.Tiff', 'c.tif', 'd.txt'):
        write(tmp_path / name.replace('txt', 'tif'), numbered(8, 8)).rename(
            tmp_path / name
        )
    scenes = find_scenes(tmp_path, bands=RGB)
    assert [Path(scene.path).name for scene in scenes] == ['a.TIF', 'b.Tiff', 'c.tif']
    assert len(find_scenes(tmp_path, '*.tif', RGB)) == 2


@pytest.mark.parametrize(
    'path',
    [
        'https://example.com/a//b.tif',
        's3://bucket/key/b.tif',
        '/vsicurl/https://example.com/b.tif',
        '/vsizip//data/x.zip/b.tif',
    ],
)
def test_remote_paths_keep_their_slashes(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def refuse(name: str, sharing: bool) -> None:
        seen.append(name)
        raise rasterio.errors.RasterioIOError('offline')

    monkeypatch.setattr(rasterio, 'open', refuse)
    for way in (
        lambda: open_raster(path, RGB),
        lambda: find_scenes('nowhere', path, RGB),
    ):
        with pytest.raises(OSError, match='cannot be read: offline'):
            way()
    assert seen == [path, path]
    if path.count('//') == 1 and '://' in path:
        assert clean_path(Path(path)) == path


def test_archives(tmp_path: Path) -> None:
    plain = write(tmp_path / 'plain.tif', numbered(8, 8))
    with zipfile.ZipFile(tmp_path / 'one.zip', 'w') as file:
        file.write(plain, 'in/plain.tif')
    folder = tmp_path / NEW.replace('.tif', '.SAFE')
    for band, values in zip(RGB, numbered(8, 8) + np.uint16(1000), strict=True):
        image = folder / 'GRANULE' / 'IMG_DATA' / f'T33_{band}_10m.jp2'
        write(image, values[None], None)
    (folder / 'MTD_MSIL2A.xml').write_text(
        '<a><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>'
        '<BOA_ADD_OFFSET band_id="0">-1000</BOA_ADD_OFFSET></a>'
    )
    with zipfile.ZipFile(tmp_path / 'product.zip', 'w') as file:
        for path in folder.rglob('*.*'):
            file.write(path, path.relative_to(tmp_path))
    for name in (
        tmp_path / 'one.zip',
        f'/vsizip/{tmp_path}/one.zip/in/plain.tif',
        f'zip://{tmp_path}/one.zip!in/plain.tif',
        folder,
        tmp_path / 'product.zip',
        f'/vsizip/{tmp_path}/product.zip/{folder.name}',
    ):
        image = open_raster(name, RGB).read()
        np.testing.assert_array_equal(image, numbered(8, 8))
    scenes = find_scenes(tmp_path, ('*.zip', '*.SAFE'), RGB)
    assert len(scenes) == 3
    for scene in scenes:
        np.testing.assert_array_equal(scene.read(), numbered(8, 8))
