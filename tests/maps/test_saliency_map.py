# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Saliency maps equal the saliency of the whole image, whatever the windows."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.faults import failing_reads, file_size_limit
from helpers.geotiffs import write
from torchgeo_sigmae.bands import EUROSAT_BANDS
from torchgeo_sigmae.maps import open_raster, saliency_map
from torchgeo_sigmae.transforms import patch_saliency, patch_statistics

BANDS = ('B03', 'B04', 'B08', 'B11')


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Digital numbers of :data:`BANDS` with a hole."""
    generator = np.random.default_rng(seed)
    image = generator.integers(1, 6000, (4, height, width)).astype('uint16')
    image[:, 3:14, 5:22] = 0
    return image


def padded(image: np.ndarray, patch_size: int) -> torch.Tensor:
    """Reflectance of an image filled up to whole patches, missing pixels NaN."""
    height, width = (math.ceil(n / patch_size) * patch_size for n in image.shape[1:])
    whole = torch.full((len(image), height, width), torch.nan)
    actual = torch.from_numpy(image.astype('float32'))
    actual[:, (actual == 0).all(0)] = torch.nan
    whole[:, : image.shape[1], : image.shape[2]] = actual
    return whole * 1e-4


def read(path: Path) -> dict[str, np.ndarray]:
    with rasterio.open(path) as file:
        return dict(zip(file.descriptions, file.read(), strict=True))


@settings(max_examples=10, deadline=None)
@given(
    height=st.integers(17, 70),
    width=st.integers(23, 70),
    patch_size=st.sampled_from([4, 8]),
    windows=st.integers(1, 10),
    combine=st.sampled_from(['minmax', 'rank', 'product']),
    seed=st.integers(0, 9),
)
def test_equals_the_saliency_of_the_whole_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    patch_size: int,
    windows: int,
    combine: str,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp('map')
    image = image_of(height, width, seed)
    raster = open_raster(write(folder / 'scene.tif', image, BANDS, east=5e5), BANDS)
    saliency_map(
        raster, folder / 'map.tif', patch_size, combine=combine, alpha=0.3,
        window=windows * patch_size,
    )  # fmt: skip
    actual = read(folder / 'map.tif')
    wanted = patch_saliency(
        padded(image, patch_size), BANDS, patch_size, alpha=0.3, combine=combine
    )
    valid = np.isfinite(actual['saliency'])
    assert np.array_equal(actual['saliency'][valid], wanted.numpy()[valid])
    assert not wanted.numpy()[~valid].any()
    assert {path.name for path in folder.iterdir()} == {'map.tif', 'scene.tif'}


def test_layers_say_what_the_patches_hold(tmp_path: Path) -> None:
    image = image_of(30, 41)
    raster = open_raster(write(tmp_path / 's.tif', image, BANDS, east=5e5), BANDS)
    saliency_map(raster, tmp_path / 'm.tif', indices=['NDVI', 'NDBI'], window=16)
    actual = read(tmp_path / 'm.tif')
    assert list(actual) == ['NDVI', 'NDBI', 'richness', 'heterogeneity', 'saliency']
    _, red, nir, swir = padded(image, 8).double()
    ndvi, ndbi = (nir - red) / (nir + red), (swir - nir) / (swir + nir)
    for name, layer in (('NDVI', ndvi), ('NDBI', ndbi)):
        for row in range(4):
            for column in range(6):
                patch = layer[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                assert actual[name][row, column] == pytest.approx(
                    float(patch.nanmean()), abs=1e-6, nan_ok=True
                )
    layers = torch.stack([ndvi, ndbi])
    richness, heterogeneity = patch_statistics(
        layers.nan_to_num(0), 8, layers[0].isfinite()
    )
    for name, layer in (('richness', richness), ('heterogeneity', heterogeneity)):
        valid = np.isfinite(actual[name])
        np.testing.assert_allclose(actual[name][valid], layer[valid], atol=1e-6)


def test_is_a_cloud_optimized_geotiff_on_the_grid_of_the_patches(
    tmp_path: Path,
) -> None:
    scene = write(tmp_path / 's.tif', image_of(50, 60), BANDS, east=5e5)
    saliency_map(open_raster(scene, BANDS), tmp_path / 'm.tif')
    with rasterio.open(scene) as old, rasterio.open(tmp_path / 'm.tif') as new:
        assert new.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
        assert new.compression.name == 'deflate'
        assert new.profile['tiled']
        assert math.isnan(new.nodata)
        assert new.crs == old.crs
        assert new.transform.almost_equals(old.transform @ old.transform.scale(8))
        assert new.shape == (7, 8)
        assert new.tags()['patch_size'] == '8'


def test_eurosat_keeps_its_place(
    eurosat_root: Path, tmp_path: Path, real_data: Any
) -> None:
    chip = next(eurosat_root.rglob('River_*.tif'))
    raster = open_raster(chip, BANDS, EUROSAT_BANDS)
    saliency_map(raster, tmp_path / 'm.tif')
    with rasterio.open(chip) as old, rasterio.open(tmp_path / 'm.tif') as new:
        assert new.crs == old.crs
        np.testing.assert_allclose(new.bounds, old.bounds)
        image = torch.from_numpy(old.read().astype('float32'))
        assert np.array_equal(
            new.read(6), patch_saliency(image * 1e-4, EUROSAT_BANDS, 8).numpy()
        )


def test_real_scenes_without_georeference(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    scene = next(real_data('scenes').glob('majortom*T48QUE*.tif'))
    raster = open_raster(scene, BANDS)
    assert raster.crs is None
    maps = []
    for window in (None, 200):
        target = tmp_path / f'{window}.tif'
        saliency_map(raster, target, window=window)
        with rasterio.open(target) as file:
            maps.append(file.read())
            assert file.crs is None
    assert np.array_equal(*maps, equal_nan=True)
    assert maps[0].shape == (6, 134, 134)


def test_an_interrupted_map_leaves_nothing(tmp_path: Path) -> None:
    scene = write(tmp_path / 's.tif', image_of(64, 64), BANDS, east=5e5)
    with failing_reads(3) as reads, pytest.raises(KeyboardInterrupt):
        saliency_map(open_raster(scene, BANDS), tmp_path / 'm.tif', window=32)
    assert len(reads) == 3
    assert list(tmp_path.iterdir()) == [scene]


def test_finished_it_does_nothing(tmp_path: Path) -> None:
    scene = write(tmp_path / 's.tif', image_of(64, 64), BANDS, east=5e5)
    target = tmp_path / 'm.tif'
    saliency_map(open_raster(scene, BANDS), target)
    with failing_reads() as reads:
        saliency_map(open_raster(scene, BANDS), target)
    assert not reads
    write(scene, image_of(64, 64, seed=7), BANDS, east=5e5)
    saliency_map(open_raster(scene, BANDS), target)
    wanted = patch_saliency(padded(image_of(64, 64, seed=7), 8), BANDS, 8)
    assert np.array_equal(read(target)['saliency'], wanted)
    for changes in ({'alpha': 0.7}, {'indices': ['NDVI']}, {'combine': 'rank'}):
        with failing_reads() as reads:
            saliency_map(open_raster(scene, BANDS), target, **changes)
        assert reads


@pytest.mark.parametrize('changes', [{'nodata': 7.0}, {'bands_in_file': BANDS[::-1]}])
def test_the_same_file_read_differently_is_another_scene(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    scene = write(tmp_path / 's.tif', image_of(64, 64), BANDS, east=5e5)
    target = tmp_path / 'm.tif'
    saliency_map(open_raster(scene, BANDS), target)
    with failing_reads() as reads:
        saliency_map(open_raster(scene, BANDS, **changes), target)
    assert reads


def test_full_disk_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    image = image_of(512, 512)
    scene = write(tmp_path / 's.tif', image, BANDS, east=5e5)
    target = tmp_path / 'm.tif'
    target.write_text('before')
    for limit in (1000, 50_000):
        with file_size_limit(limit), pytest.raises(OSError, match='cannot be written'):
            saliency_map(open_raster(scene, BANDS), target, window=128)
        assert target.read_text() == 'before'
    saliency_map(open_raster(scene, BANDS), target, window=128)
    wanted = patch_saliency(padded(image, 8), BANDS, 8)
    assert np.array_equal(read(target)['saliency'], wanted)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'window': 100}, 'window: 100 is not a multiple of the 8 pixels'),
        ({'patch_size': 0}, 'patch_size: 0 is not at least 1'),
        ({'alpha': 2.0}, r'alpha: 2.0 is not in \[0, 1\]'),
        ({'combine': 'sum'}, "combine: 'sum' is unknown"),
        ({'indices': ['NBR']}, 'bands: NBR needs B08'),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    raster = open_raster(write(tmp_path / 's.tif', image_of(30, 30), BANDS), BANDS)
    with pytest.raises(ValueError, match=message):
        saliency_map(raster, tmp_path / 'm.tif', **arguments)
    assert not (tmp_path / 'm.tif').exists()


def test_nothing_but_nodata(tmp_path: Path) -> None:
    image = np.zeros((4, 30, 30), 'uint16')
    path = write(tmp_path / 's.tif', image, BANDS)
    with pytest.raises(ValueError, match=r's\.tif has no valid pixel'):
        saliency_map(open_raster(path, BANDS), tmp_path / 'm.tif')
    assert list(tmp_path.iterdir()) == [path]


def test_ranks_of_too_many_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('torchgeo_sigmae.maps.saliency._MOST_RANKED', 10)
    raster = open_raster(write(tmp_path / 's.tif', image_of(30, 30), BANDS), BANDS)
    with pytest.raises(ValueError, match="combine: 'rank' sorts all patches"):
        saliency_map(raster, tmp_path / 'm.tif', combine='rank')
