# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Embedding maps: no border of a chip shows, and no position in one."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch

from helpers.faults import failing_reads
from helpers.geotiffs import write
from helpers.training import narrow_encoder
from torchgeo_sigmae import SIGMAE_Weights, adapt_bands
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.maps import embedding_map, open_raster


@pytest.fixture
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    return narrow_encoder(tmp_path_factory.mktemp('encoder') / 'encoder.pth')


@pytest.fixture
def scene_file(scene: Callable[[int, int], np.ndarray], tmp_path: Path) -> Path:
    """Ten bands of 150 x 180 pixels with a hole."""
    image = scene(0, 180)[[1, 2, 3, 4, 5, 6, 7, 8, 11, 12], :150]
    image[:, 40:60, 100:130] = 0
    return write(tmp_path / 's.tif', image, SENTINEL2_TEN_BANDS, east=5e5)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        actual: np.ndarray = file.read()
    return actual


def steps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute differences of neighbors, across every border of rows, columns."""
    return (
        np.nanmean(np.abs(np.diff(values, axis=1)), axis=(0, 2)),
        np.nanmean(np.abs(np.diff(values, axis=2)), axis=(0, 1)),
    )


def test_windows_do_not_show(
    encoder: FrozenEncoder, scene_file: Path, tmp_path: Path
) -> None:
    raster = open_raster(scene_file, encoder.bands)
    maps = []
    for window in (None, 64):
        target = tmp_path / f'{window}.tif'
        embedding_map(raster, target, encoder, window=window)
        maps.append(read(target))
    assert maps[0].shape == (32, 19, 23)
    np.testing.assert_allclose(*maps, atol=1e-3)
    missing = np.isnan(maps[0])
    assert (missing.all(0) == missing.any(0)).all()
    assert missing[0, 5:7, 13:16].all()
    assert missing[0].sum() == 6


def test_borders_of_windows_are_as_smooth_as_the_rest(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    encoder = FrozenEncoder.load(SIGMAE_Weights.SENTINEL2)
    scene = next(real_data('scenes').glob('majortom*T48QUE*.tif'))
    raster = open_raster(scene, encoder.bands)
    raster = replace(raster, row=200, column=300, height=256, width=256)
    embedding_map(raster, tmp_path / 'm.tif', encoder, window=64)
    differences = steps(read(tmp_path / 'm.tif'))
    border = np.mean([steps[7::8].mean() for steps in differences])
    inside = np.mean([np.delete(steps, np.s_[7::8]).mean() for steps in differences])
    assert border <= 1.05 * inside


def test_positions_in_a_chip_do_not_show(scene_file: Path, tmp_path: Path) -> None:
    encoder = narrow_encoder(tmp_path / 'encoder.pth', 'learnable')
    raster = open_raster(scene_file, encoder.bands)
    embedding_map(raster, tmp_path / 'm.tif', encoder)
    actual = read(tmp_path / 'm.tif')[:, :16, :16].reshape(32, 2, 8, 2, 8)
    left = np.nanmean(actual, axis=(1, 3)).var(axis=(1, 2)).sum()
    bias = encoder.position_bias
    assert bias is not None
    # Nine tenths of the variance before.
    assert left / np.nanvar(actual, axis=(1, 2, 3, 4)).sum() < 0.4
    assert float(bias.var(dim=(1, 2)).sum()) > left


def test_one_chip_is_the_output_of_the_encoder(
    encoder: FrozenEncoder, scene_file: Path, tmp_path: Path
) -> None:
    with rasterio.open(scene_file) as file:
        image = file.read()[:, :32, :40]
    path = write(tmp_path / 'chip.tif', image, SENTINEL2_TEN_BANDS)
    embedding_map(open_raster(path, encoder.bands), tmp_path / 'm.tif', encoder)
    (wanted,) = encoder.patch_features(torch.from_numpy(image.astype('float32'))[None])
    np.testing.assert_allclose(read(tmp_path / 'm.tif'), wanted, atol=1e-4)


def test_components(encoder: FrozenEncoder, scene_file: Path, tmp_path: Path) -> None:
    raster = open_raster(scene_file, encoder.bands)
    embedding_map(raster, tmp_path / 'm.tif', encoder)
    whole = read(tmp_path / 'm.tif').reshape(32, -1).T
    whole = whole[np.isfinite(whole[:, 0])].astype(float)
    embedding_map(raster, tmp_path / 'c.tif', encoder, pca=3)
    values = read(tmp_path / 'c.tif').reshape(3, -1).T
    values = values[np.isfinite(values[:, 0])]
    centered = whole - whole.mean(axis=0)
    left, strength, _ = np.linalg.svd(centered, full_matrices=False)
    wanted = left[:, :3] * strength[:3]
    signs = np.sign((wanted * values).sum(axis=0))
    np.testing.assert_allclose(values, wanted * signs, atol=0.02)
    with rasterio.open(tmp_path / 'c.tif') as file:
        shares = [float(n) for n in file.tags()['explained_variance'].split()]
        assert file.descriptions == ('component 1', 'component 2', 'component 3')
    np.testing.assert_allclose(
        shares, strength[:3] ** 2 / (strength**2).sum(), atol=1e-3
    )


def test_geoparquet(encoder: FrozenEncoder, scene_file: Path, tmp_path: Path) -> None:
    raster = open_raster(scene_file, encoder.bands)
    embedding_map(raster, tmp_path / 'm.tif', encoder, window=64)
    embedding_map(raster, tmp_path / 'm.parquet', encoder, window=64)
    actual = gpd.read_parquet(tmp_path / 'm.parquet')
    values = read(tmp_path / 'm.tif')
    assert len(actual) == np.isfinite(values[0]).sum()
    assert actual.crs == 'EPSG:32632'
    assert actual.geometry.area.eq(6400).all()
    for row in actual.sample(20, random_state=0).itertuples():
        assert np.array_equal(row.embedding, values[:, row.row, row.column])
        x, y = raster.transform @ (8 * row.column + 4, 8 * row.row + 4)
        assert (row.geometry.centroid.x, row.geometry.centroid.y) == (x, y)


def test_geoparquet_without_pyarrow(
    encoder: FrozenEncoder,
    scene_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    raster = open_raster(scene_file, encoder.bands)
    with pytest.raises(ImportError, match=r'pip install .torchgeo-sigmae\[parquet\]'):
        embedding_map(raster, tmp_path / 'm.parquet', encoder)


def test_nothing_but_nodata(encoder: FrozenEncoder, tmp_path: Path) -> None:
    image = np.zeros((10, 64, 64), 'uint16')
    path = write(tmp_path / 's.tif', image, SENTINEL2_TEN_BANDS)
    with pytest.raises(ValueError, match=r's\.tif has no valid pixel'):
        embedding_map(open_raster(path, encoder.bands), tmp_path / 'm.tif', encoder)
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_map_is_left_alone(
    encoder: FrozenEncoder, scene_file: Path, tmp_path: Path
) -> None:
    raster = open_raster(scene_file, encoder.bands)
    target = tmp_path / 'm.tif'
    with failing_reads(64 + 4), pytest.raises(KeyboardInterrupt):
        embedding_map(raster, target, encoder, window=64)
    assert {path.name for path in tmp_path.iterdir()} == {'s.tif'}
    embedding_map(raster, target, encoder, window=64)
    with failing_reads() as reads:
        embedding_map(raster, target, encoder)
    assert not reads
    # Other weights of the same name, although their sum is the same.
    weight = encoder.encoder.blocks[0].mlp.fc1.weight
    weight.data = weight.data.flip(0)
    with failing_reads(1), pytest.raises(KeyboardInterrupt):
        embedding_map(raster, target, encoder)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'size': 40}, 'size: 40 is not a multiple of 16'),
        ({'pca': 0}, 'pca: 0 is not at least 1'),
        ({'pca': 33}, 'pca: 33 is more than the 32 features'),
        ({'window': 60}, 'window: 60 is not a multiple'),
    ],
)
def test_bad_arguments(
    encoder: FrozenEncoder,
    scene_file: Path,
    tmp_path: Path,
    arguments: dict[str, Any],
    message: str,
) -> None:
    raster = open_raster(scene_file, encoder.bands)
    with pytest.raises(ValueError, match=message):
        embedding_map(raster, tmp_path / 'm.tif', encoder, **arguments)


def test_encoders_that_do_not_fit(
    encoder: FrozenEncoder, scene_file: Path, tmp_path: Path
) -> None:
    raster = open_raster(scene_file, ('B04', 'B03', 'B02'))
    with pytest.raises(ValueError, match=r"scene: its bands are \['B04'"):
        embedding_map(raster, tmp_path / 'm.tif', encoder)
    raster = open_raster(scene_file, encoder.bands)
    with pytest.raises(ValueError, match='does not cut images into square patches'):
        embedding_map(raster, tmp_path / 'm.tif', FrozenEncoder.load('resnet18'))


def test_weights_without_mean_and_std_get_those_of_the_scene(
    scene_file: Path, tmp_path: Path
) -> None:
    """As for another sensor, by adapt_bands."""
    bands = BandSet(['B2', 'B3', 'B4', 'B5', 'B6', 'B7'], 'landsat8')
    adapt_bands(SIGMAE_Weights.SENTINEL2, bands, tmp_path / 'landsat.pth')
    encoder = FrozenEncoder.load(tmp_path / 'landsat.pth')
    assert encoder.bands.matches(bands)
    with rasterio.open(scene_file) as file:
        image = file.read()[:6]
    path = write(tmp_path / 'l8.tif', image, bands, east=5e5)
    raster = open_raster(path, encoder.bands)
    embedding_map(raster, tmp_path / 'm.tif', encoder, size=32)
    assert encoder.transform is None
    values = torch.from_numpy(image.astype(float))
    valid = values.where(values > 0, torch.nan)
    encoder.fit_normalization(valid[None])
    embedding_map(raster, tmp_path / 'expected.tif', encoder, size=32)
    actual, expected = (read(tmp_path / name) for name in ('m.tif', 'expected.tif'))
    # From a sample of the scene.
    both = np.isfinite(actual) & np.isfinite(expected)
    assert both.any()
    assert np.corrcoef(actual[both], expected[both])[0, 1] > 0.9
