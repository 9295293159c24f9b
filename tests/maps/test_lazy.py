# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Lazy maps of xarray objects are those of files, whatever the chunks."""

import importlib
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.transform import from_origin
from rasterio.windows import Window
from shapely.geometry import box

from helpers.geotiffs import write
from helpers.training import narrow_encoder, small_task
from torchgeo_sigmae import SIGMAE_Weights
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.maps import (
    embedding_map,
    open_raster,
    reconstruction_map,
    saliency_map,
)
from torchgeo_sigmae.maps.saliency import needed_bands

try:
    import dask.array
    import rioxarray
    import xarray

    from helpers.blocks import Marker, logged
    from torchgeo_sigmae.maps import lazy
except ImportError:
    pytest.skip('needs the extra xarray', allow_module_level=True)

#: Names of Sentinel-2's assets on Earth Search, in the order of the ten bands.
ASSETS = (
    'blue', 'green', 'red', 'rededge1', 'rededge2', 'rededge3', 'nir', 'nir08',
    'swir16', 'swir22',
)  # fmt: skip
DATES = np.array(['2020-06-01', '2020-06-11', '2020-06-21'], 'datetime64[ns]')


@pytest.fixture(scope='module')
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    return narrow_encoder(tmp_path_factory.mktemp('encoder') / 'encoder.pth')


@pytest.fixture(scope='module')
def real_scene(
    real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Ten bands of 300 x 410 pixels in UTM, with a hole."""
    source = next(real_data('scenes').glob('majortom*T48QUE*.tif'))
    with rasterio.open(source) as file:
        window = Window(300, 200, 410, 300)
        channels = BandSet.from_data(file.descriptions).channels(SENTINEL2_TEN_BANDS)
        image = file.read([i + 1 for i in channels], window=window)
    image[:, 40:90, 100:190] = 0
    return write(
        tmp_path_factory.mktemp('scene') / 'scene.tif', image, SENTINEL2_TEN_BANDS,
        nodata=0, crs='EPSG:32648', transform=from_origin(353_000, 2_340_000, 10, 10),
    )  # fmt: skip


@pytest.fixture
def pixels(scene: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Ten bands of 70 x 100 pixels with a hole."""
    image = scene(1, 100)[[1, 2, 3, 4, 5, 6, 7, 8, 11, 12], :70]
    image[:, 10:30, 40:50] = 0
    return image


def opened(path: Path, chunk: int | None = 128) -> Any:
    """A file as rioxarray opens it, with names of bands."""
    chunks = {'band': 1, 'y': chunk, 'x': chunk} if chunk else None
    data = rioxarray.open_rasterio(path, chunks=chunks)
    return data.assign_coords(band=list(data.attrs['long_name']))


def odc(images: np.ndarray, chunk: int = 32) -> Any:
    """What ``odc.stac.load`` returns: a variable per band ``(time, y, x)``."""
    height, width = images.shape[2:]
    coordinates = {
        'time': DATES[: len(images)],
        'y': 5_400_000 - 10 * (np.arange(height) + 0.5),
        'x': 500_000 + 10 * (np.arange(width) + 0.5),
    }
    variables = {
        name: (
            ('time', 'y', 'x'),
            dask.array.from_array(np.ascontiguousarray(band), (1, chunk, chunk)),
            {'units': '1', 'nodata': 0},
        )
        for name, band in zip(ASSETS, images.swapaxes(0, 1), strict=True)
    }
    clouds = (('time', 'y', 'x'), dask.array.ones((len(images), height, width)))
    actual = xarray.Dataset({'scl': clouds, **variables}, coordinates)
    return actual.rio.write_crs(32632)


def stackstac(images: np.ndarray, chunk: int = 32) -> Any:
    """What ``stackstac.stack`` returns: reflectance, NaN, corners of pixels."""
    values = np.where((images == 0).all(1, keepdims=True), np.nan, images * 1e-4)
    height, width = images.shape[2:]
    return xarray.DataArray(
        dask.array.from_array(values, (1, 1, chunk, chunk)),
        {
            'time': DATES[: len(images)],
            'id': ('time', [f'S2B_{i}' for i in range(len(images))]),
            'band': list(SENTINEL2_TEN_BANDS),
            'x': 500_000 + 10.0 * np.arange(width),
            'y': 5_400_000 - 10.0 * np.arange(height),
            'common_name': ('band', list(ASSETS)),
            'raster:bands': ('band', [{'scale': 1e-4, 'offset': 0}] * 10),
            'constellation': 'sentinel-2',
            'epsg': 32632,
        },
        ('time', 'band', 'y', 'x'),
        'stackstac-0123',
        {
            'spec': object(),
            'crs': 'epsg:32632',
            'transform': Affine(10, 0, 500_000, 0, -10, 5_400_000),
            'resolution': 10,
        },
    )


def read(path: Path) -> Any:
    """A map that a command wrote, with the same coordinates."""
    data = rioxarray.open_rasterio(path)
    return data.assign_coords(band=list(data.attrs['long_name']))


def assert_same(actual: Any, wanted: Any, atol: float = 0.0) -> None:
    """Same values, layers and georeference."""
    assert actual.dtype == np.float32
    assert actual.dims == wanted.dims
    assert actual['band'].values.tolist() == wanted['band'].values.tolist()
    assert actual.rio.crs == wanted.rio.crs
    for name in ('x', 'y'):
        np.testing.assert_allclose(actual[name], wanted[name], rtol=0, atol=1e-6)
    assert actual.rio.transform().almost_equals(wanted.rio.transform(), 1e-6)
    if atol:
        np.testing.assert_allclose(actual.values, wanted.values, atol=atol)
    else:
        assert np.array_equal(actual.values, wanted.values, equal_nan=True)


@pytest.mark.parametrize('combine', ['minmax', 'rank', 'product'])
@pytest.mark.parametrize(('chunk', 'window'), [(None, None), (100, 64), (41, 8 * 13)])
def test_saliency_is_that_of_the_map_to_the_bit(
    real_scene: Path, tmp_path: Path, combine: str, chunk: int | None, window: int
) -> None:
    actual = lazy.saliency(
        opened(real_scene, chunk), alpha=0.3, combine=combine, window=window
    )
    assert dask.is_dask_collection(actual) == (chunk is not None)
    bands = needed_bands(('NDVI', 'NDWI', 'NDBI'), 'sentinel2')
    raster = open_raster(real_scene, bands)
    saliency_map(raster, tmp_path / 'm.tif', alpha=0.3, combine=combine)
    assert_same(actual, read(tmp_path / 'm.tif'))
    assert np.isnan(actual.values).any()


def test_embeddings_are_those_of_the_map(
    real_scene: Path, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    embedding_map(open_raster(real_scene, encoder.bands), tmp_path / 'm.tif', encoder)
    wanted = read(tmp_path / 'm.tif')
    for chunk, window in ((100, 128), (None, None)):
        actual = lazy.embed(opened(real_scene, chunk), encoder, window=window)
        assert_same(actual.compute(), wanted, 1e-3)


@pytest.mark.parametrize('count', [2, 10])
def test_an_encoder_without_statistics_takes_those_of_the_image(
    real_scene: Path, tmp_path: Path, count: int
) -> None:
    bands = BandSet(SENTINEL2_TEN_BANDS[:count])
    torch.manual_seed(0)
    encoder = FrozenEncoder.load('sigmae_vit_tiny_patch16', bands)
    embedding_map(open_raster(real_scene, bands), tmp_path / 'm.tif', encoder)
    actual = lazy.embed(opened(real_scene), encoder, window=128)
    assert_same(actual.compute(), read(tmp_path / 'm.tif'), 1e-3)
    assert encoder.transform is None


@pytest.mark.parametrize('family', ['sigmae', 's2mae'])
def test_reconstructions_are_those_of_the_map(
    real_scene: Path, tmp_path: Path, family: str
) -> None:
    torch.manual_seed(0)
    task = small_task(family, mean=[1500.0] * 10, std=[900.0] * 10)
    raster = open_raster(real_scene, SENTINEL2_TEN_BANDS)
    reconstruction_map(raster, tmp_path / 'm.tif', task, 0.75, 32)
    data = opened(real_scene, 100)
    actual = lazy.reconstruct(data, task, 0.75, 32, window=96).compute()
    assert_same(actual, read(tmp_path / 'm.tif'), 1e-4)
    # On the same coordinates, so arithmetic with the data works.
    error = actual.sel(band=['B02', 'B11']) - data.sel(band=['B02', 'B11']) * 1e-4
    assert error.shape == (2, 300, 410)


@pytest.mark.parametrize('form', ['odc', 'stackstac'])
def test_every_date_is_a_scene(
    pixels: np.ndarray, encoder: FrozenEncoder, tmp_path: Path, form: str
) -> None:
    blank = np.zeros_like(pixels)
    images = np.stack([pixels, pixels[:, ::-1] + (pixels[:, ::-1] > 0) * 100, blank])
    data = odc(images) if form == 'odc' else stackstac(images)
    given: dict[str, Any] = {} if form == 'odc' else {'scale': 1, 'offset': 0}
    bands = needed_bands(('NDVI', 'NDWI', 'NDBI'), 'sentinel2')
    task = small_task(mean=[1500.0] * 10, std=[900.0] * 10)
    saliency = lazy.saliency(data, window=32, **given)
    embeddings = lazy.embed(data, encoder, 32, window=32, **given)
    rebuilt = lazy.reconstruct(data, task, 0.75, 32, window=32, **given)
    for actual in (saliency, embeddings, rebuilt):
        assert actual.dims == ('time', 'band', 'y', 'x')
        assert (actual['time'].values == DATES).all()
        assert ('id' in actual.coords) == (form == 'stackstac')
        assert 'common_name' not in actual.coords
        assert actual.rio.crs.to_epsg() == 32632
    for actual in (saliency, embeddings):
        assert actual.rio.transform().c == 500_000
        assert actual.rio.transform().f == 5_400_000
    assert saliency['x'].values[:2].tolist() == [500_040, 500_120]
    for i in range(2):
        path = write(
            tmp_path / f'{i}.tif', images[i], SENTINEL2_TEN_BANDS, nodata=0, east=5e5
        )
        target = tmp_path / f'{i}_map.tif'
        saliency_map(open_raster(path, bands), target)
        atol = 0.0 if form == 'odc' else 1e-5
        actual = saliency[i].compute()
        np.testing.assert_allclose(actual, read(target), rtol=0, atol=atol)
        embedding_map(open_raster(path, encoder.bands), target, encoder, 32)
        assert_same(embeddings[i].compute(), read(target), 2e-3)
        reconstruction_map(
            open_raster(path, SENTINEL2_TEN_BANDS), target, task, 0.75, 32
        )
        actual = rebuilt[i].compute()
        np.testing.assert_allclose(actual, read(target), atol=1e-4)
    for actual in (saliency, embeddings, rebuilt):
        assert np.isnan(actual[2].values).all()


def test_nothing_is_read_before_it_is_computed(
    pixels: np.ndarray, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    log = tmp_path / 'log'
    log.touch()
    values = logged(pixels, 32, log)
    data = xarray.DataArray(
        values, {'band': list(ASSETS)}, ('band', 'northing', 'easting')
    ).rename(northing='y', easting='x')
    task = small_task(mean=[1500.0] * 10, std=[900.0] * 10)
    maps = (
        lazy.saliency(data, window=32),
        lazy.embed(data, encoder, 32, window=32),
        lazy.reconstruct(data, task, 0.75, 32, window=32),
    )
    assert not log.read_text()
    for actual in maps:
        assert actual.rio.crs is None
        assert 'x' not in actual.coords
        actual.compute(scheduler='synchronous')
        # Once for the map, once for the sample.
        counts = Counter(log.read_text().splitlines()).values()
        assert set(counts) <= {1, 2}
        log.write_text('')


def test_windows_are_computed_once(
    pixels: np.ndarray, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_task(mean=[1500.0] * 10, std=[900.0] * 10)
    for name, compute in (
        ('patch_layers', lambda x: lazy.saliency(x, window=32)),
        ('embed_window', lambda x: lazy.embed(x, encoder, 32, window=32)),
        (
            'reconstruct_window',
            lambda x: lazy.reconstruct(x, task, 0.75, 32, window=32),
        ),
    ):
        counted = mock.Mock(wraps=getattr(lazy, name))
        monkeypatch.setattr(lazy, name, counted)
        compute(odc(pixels[None])).compute(scheduler='synchronous')
        # The last row and column of windows are too narrow for a halo of 32 pixels.
        assert counted.call_count == (2 * 3 if name == 'embed_window' else 3 * 4)


def test_few_tasks_per_window(encoder: FrozenEncoder) -> None:
    task = small_task(mean=[1500.0] * 10, std=[900.0] * 10)
    sides, counts = (512, 1024), []
    for side in sides:
        values = dask.array.zeros((10, side, side), chunks=(10, 128, 128))
        data = xarray.DataArray(values, {'band': list(ASSETS)}, ('band', 'y', 'x'))
        maps = (
            lazy.saliency(data, window=128),
            lazy.embed(data, encoder, window=128),
            lazy.reconstruct(data, task, window=128),
        )
        counts.append([len(actual.__dask_graph__().to_dict()) for actual in maps])
    for few, many in zip(*counts, strict=True):
        # 48 windows more.
        assert many - few <= 25 * 48


def test_an_area_of_interest_is_that_of_the_command(
    real_scene: Path, tmp_path: Path
) -> None:
    with rasterio.open(real_scene) as file:
        left, top = file.transform @ (83, 61)
        right, bottom = file.transform @ (291, 222)
    area = box(left, bottom, right, top)
    frame = importlib.import_module('geopandas').GeoSeries(
        [area], crs=rasterio.open(real_scene).crs
    )
    frame.to_crs('EPSG:4326').to_file(tmp_path / 'area.geojson')
    main([
        'map', 'saliency', str(real_scene), '--output', str(tmp_path / 'm.tif'),
        '--aoi', str(tmp_path / 'area.geojson'),
    ])  # fmt: skip
    wanted = read(tmp_path / 'm.tif')
    actual = lazy.saliency(opened(real_scene), aoi=tmp_path / 'area.geojson', window=64)
    assert_same(actual, wanted)
    assert actual.shape == (6, 21, 27)
    inside = lazy.saliency(opened(real_scene), aoi=area, window=64)
    assert inside.shape == actual.shape


def test_units_are_as_told(pixels: np.ndarray, tmp_path: Path) -> None:
    """EVI depends on the unit, unlike normalized differences."""
    data = odc(pixels[None])
    wanted = lazy.saliency(data, indices=['EVI']).values
    assert np.isfinite(wanted[0, 0, 0, 0])
    shifted = data[list(ASSETS)] * 2 + 3000
    shifted = shifted.where((data[list(ASSETS)] != 0).to_dataarray().any('variable'))
    actual = lazy.saliency(shifted, indices=['EVI'], scale=5e-5, offset=-0.15)
    np.testing.assert_allclose(actual, wanted, atol=1e-3)
    for name in ASSETS:
        shifted[name].attrs = {'scale_factor': 5e-5, 'add_offset': -0.15}
    actual = lazy.saliency(shifted, indices=['EVI'])
    np.testing.assert_allclose(actual, wanted, atol=1e-3)
    shifted['red'].attrs['scale_factor'] = 1e-4
    with pytest.raises(ValueError, match='scale, offset: the bands have different'):
        lazy.saliency(shifted, indices=['EVI'])


def test_another_sensor(pixels: np.ndarray) -> None:
    names = ['blue', 'green', 'red', 'nir08', 'swir16']
    data = odc(pixels[None])
    wanted = lazy.saliency(
        data.drop_vars('nir08').rename(nir='nir08'), sensor='landsat8'
    )
    chosen = odc(pixels[None])[['blue', 'green', 'red', 'nir', 'swir16']]
    assert np.array_equal(wanted, lazy.saliency(chosen), equal_nan=True)
    assert len(names) == len(chosen)


@pytest.mark.parametrize('scheduler', ['synchronous', 'threads'])
def test_implausible_values_warn(
    pixels: np.ndarray, encoder: FrozenEncoder, scheduler: str
) -> None:
    data = stackstac(pixels[None])
    task = small_task(mean=[1500.0] * 10, std=[900.0] * 10)
    for actual in (
        lazy.saliency(data),
        lazy.embed(data, encoder, 32),
        lazy.reconstruct(data, task, 0.75, 32),
    ):
        with pytest.warns(UserWarning, match='reflectance of data is .* Pass scale='):
            actual.compute(scheduler=scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        lazy.saliency(data, scale=1).compute(scheduler=scheduler)


def without_names(data: Any) -> Any:
    return data.drop_vars(['band', 'common_name', 'raster:bands'])


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    'no dimension': (lambda x: x.sel(band='B04'), "no dimension 'band'"),
    'no names': (without_names, "'band' holds nothing, no names"),
    'numbers': (
        lambda x: without_names(x).assign_coords(band=range(10)),
        r"'band' holds \[0, 1, 2\], no names",
    ),
    'unknown': (
        lambda x: x.assign_coords(band=[*'abcdefghij']),
        r'data: no band B03 \(green\), B04 \(red\)',
    ),
    'missing': (lambda x: x.isel(band=slice(3)), r'no band B08 \(nir\), B11 \(swir1\)'),
    'twice': (
        lambda x: x.isel(band=[0, 1, 2, 2, *range(3, 10)]),
        r"data: \['B04', 'B04'\] are all B04",
    ),
    'empty': (lambda x: x.isel(time=[]), "no values in {'time': 0, 'band': 4"),
    'chunks': (lambda x: x.chunk(y=4, x=100), r"chunks of 4 x 100 .*data.chunk\({'y'"),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD)
def test_bad_data_gives_an_error(pixels: np.ndarray, name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        lazy.saliency(change(stackstac(pixels[None])))


def test_bad_arguments_give_an_error(
    pixels: np.ndarray, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    data = odc(pixels[None])
    area = tmp_path / 'area.geojson'
    importlib.import_module('geopandas').GeoSeries(
        [box(9.0, 48.0, 9.1, 48.1)], crs='EPSG:4326'
    ).to_file(area)
    nowhere = data.drop_vars('spatial_ref')
    for name in nowhere.data_vars:
        nowhere[name].encoding = {}
    for call, message in (
        (lambda: lazy.saliency(nowhere, aoi=area), 'no coordinate reference system'),
        (lambda: lazy.saliency(data, aoi=box(0, 0, 9, 9)), 'aoi: the area .* outside'),
        (lambda: lazy.saliency(data, patch_size=0), 'patch_size: 0'),
        (lambda: lazy.saliency(data, window=12), 'window: 12 is not a multiple'),
        (lambda: lazy.saliency(data, scale=0), 'scale: 0 is not positive'),
        (lambda: lazy.embed(data, encoder, window=32), 'window: 32 is smaller than'),
        (lambda: lazy.embed(data, encoder, 24), 'size: 24 is not a multiple of 16'),
        (lambda: lazy.embed(data[['red']], encoder), r'no band B02 \(blue\)'),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    data['red'].attrs['nodata'] = 65535
    with pytest.raises(ValueError, match='nodata: the bands have different values'):
        lazy.saliency(data)
    assert lazy.saliency(data, nodata=0).shape == (1, 6, 9, 13)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('lazy', 'arrays'):
        monkeypatch.delitem(sys.modules, f'torchgeo_sigmae.maps.{name}')
    monkeypatch.setitem(sys.modules, 'rioxarray', None)
    with pytest.raises(ImportError, match=r'pip install "torchgeo-sigmae\[xarray\]"'):
        importlib.import_module('torchgeo_sigmae.maps.lazy')


@pytest.mark.slow
def test_a_cluster_gets_the_encoder_once_and_survives_a_lost_worker(
    scene: Callable[[int, int], np.ndarray], tmp_path: Path
) -> None:
    distributed = pytest.importorskip('distributed', reason='needs the extra tests')
    log, encoders = tmp_path / 'log', tmp_path / 'encoders'
    log.touch()
    encoders.touch()
    encoder = FrozenEncoder.load(SIGMAE_Weights.SENTINEL2)
    image = scene(1, 256)[[1, 2, 3, 4, 5, 6, 7, 8, 11, 12]]
    names = {'band': list(ASSETS)}
    memory = xarray.DataArray(image, names, ('band', 'y', 'x'))
    wanted = {
        'embed': lazy.embed(memory, encoder, 32, window=64),
        'saliency': lazy.saliency(memory),
    }
    encoder.encoder.marker = Marker(encoders)

    def warned(caught: list[warnings.WarningMessage]) -> bool:
        return any('reflectance of data is' in str(one.message) for one in caught)

    def slow(seconds: float, factor: int = 1) -> Any:
        values = logged(image.astype('float32'), 32, log, seconds) * factor
        return xarray.DataArray(values, names, ('band', 'y', 'x'))

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
        warnings.catch_warnings(),
    ):
        # The encoder is larger than what Dask takes for a graph of tasks.
        warnings.filterwarnings('ignore', 'Sending large graph')
        workers = set(client.run(os.getpid).values())
        actual = lazy.embed(slow(0), encoder, 32, window=64).compute()
        np.testing.assert_allclose(actual, wanted['embed'], atol=1e-3)
        arrived = Counter(int(line) for line in encoders.read_text().split())
        assert {pid: arrived[pid] for pid in workers} == dict.fromkeys(workers, 1)
        # Warnings of workers arrive at the client.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            lazy.saliency(slow(0, 50)).compute()
            until = time.monotonic() + 10
            while time.monotonic() < until and not warned(caught):
                time.sleep(0.1)
        assert warned(caught)
        for name in ('saliency', 'embed'):
            log.write_text('')
            data = slow(0.2)
            lost = min(client.run(os.getpid).values())
            if name == 'embed':
                future = client.compute(lazy.embed(data, encoder, 32, window=64))
            else:
                future = client.compute(lazy.saliency(data, window=32))
            done = 0
            while done < 30:
                time.sleep(0.1)
                done = len(log.read_text().splitlines())
            os.kill(lost, signal.SIGKILL)
            values = future.result(timeout=300).values
            np.testing.assert_allclose(
                values, wanted[name], atol=1e-3 if name == 'embed' else 0
            )
            loads = [int(line.split()[0]) for line in log.read_text().splitlines()]
            # 64 chunks, read again for the sample.
            assert 30 < len(loads) <= 64 + 64 + 3 * loads.count(lost)
            assert loads.count(lost) > 5
