# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Reconstructions of scenes: visible patches as they are, hidden ones predicted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from helpers.geotiffs import write
from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import SIGMAETask
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.maps import open_raster, reconstruction_map

pytestmark = pytest.mark.usefixtures('narrow_models')


def trained(family: str, **changes: object) -> SIGMAETask:
    """A task with the statistics of its data."""
    torch.manual_seed(0)
    made = small_task(family, mean=[1500.0] * 10, std=[900.0] * 10, **changes)
    return made.eval()


@pytest.fixture
def pixels(scene: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Ten bands of 70 x 100 pixels with a hole."""
    image = scene(1, 100)[[1, 2, 3, 4, 5, 6, 7, 8, 11, 12], :70]
    image[:, 10:30, 40:50] = 0
    return image


@pytest.fixture
def scene_file(pixels: np.ndarray, tmp_path: Path) -> Path:
    return write(tmp_path / 's.tif', pixels, SENTINEL2_TEN_BANDS, east=5e5)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        assert file.descriptions == (*SENTINEL2_TEN_BANDS, 'mask', 'error')
        actual: np.ndarray = file.read()
    return actual


@pytest.mark.parametrize('family', ['sigmae', 's2mae', 'satmae'])
def test_layers(
    family: str, scene_file: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    made = trained(family)
    raster = open_raster(scene_file, SENTINEL2_TEN_BANDS)
    maps = []
    for window in (None, 32):
        target = tmp_path / f'{window}.tif'
        reconstruction_map(raster, target, made, 0.75, 32, window=window)
        maps.append(read(target))
    np.testing.assert_allclose(*maps, atol=1e-5)
    bands, mask, error = maps[0][:10], maps[0][10], maps[0][11]
    assert bands.shape == (10, 70, 100)
    truth = np.where((pixels == 0).all(0), np.nan, pixels * 1e-4)
    plain = mask == 0
    np.testing.assert_allclose(bands[:, plain], truth[:, plain], atol=1e-5)
    assert np.isnan(error[plain]).all()
    whole = mask[:64, :96]
    assert np.nanmean(whole) == pytest.approx(0.75, abs=0.06)
    hidden = mask == 1
    if hidden.any():
        wanted = np.sqrt(((bands - truth)[:, hidden] ** 2).mean(axis=0))
        np.testing.assert_allclose(error[hidden], wanted, atol=1e-5)
    # Predicted: not what the image holds.
    assert np.nanmean(error) > 1e-3
    # A patch without data stays without.
    assert np.isnan(bands[:, 16:24, 40:48]).all()


def test_masks_depend_on_the_position_alone(scene_file: Path, tmp_path: Path) -> None:
    raster = open_raster(scene_file, SENTINEL2_TEN_BANDS)
    masks = []
    for guided in ('random', 'saliency'):
        made = trained('sigmae', masking=guided)
        target = tmp_path / f'{guided}.tif'
        reconstruction_map(raster, target, made, 0.5, 32)
        masks.append(read(target)[10])
    assert np.array_equal(*masks, equal_nan=True)
    first, second = masks[0][:32, :32], masks[0][:32, 64:96]
    assert not np.array_equal(first, second)


def test_the_command(
    scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = trained('sigmae')
    run = quiet_trainer(tmp_path)
    run.strategy.connect(made)
    run.save_checkpoint(tmp_path / 'x.ckpt')
    out = tmp_path / 'r.tif'
    main(
        ['map', 'reconstruction', str(scene_file), '-o', str(out), '--weights',
         f'{tmp_path}/x.ckpt', '--mask-ratio', '0.9', '--png']
    )  # fmt: skip
    assert capsys.readouterr().out == f'Wrote {out}, {out.with_suffix(".png")}.\n'
    with rasterio.open(out) as file:
        assert file.tags()['mask_ratio'] == '0.9'
        assert file.crs.to_epsg() == 32632


def test_nothing_but_nodata(tmp_path: Path) -> None:
    image = np.zeros((10, 64, 64), 'uint16')
    path = write(tmp_path / 's.tif', image, SENTINEL2_TEN_BANDS)
    raster = open_raster(path, SENTINEL2_TEN_BANDS)
    with pytest.raises(ValueError, match=r's\.tif has no valid pixel'):
        reconstruction_map(raster, tmp_path / 'm.tif', trained('sigmae'), 0.75, 32)
    assert list(tmp_path.iterdir()) == [path]


def test_bad_arguments(scene_file: Path, tmp_path: Path) -> None:
    made = trained('sigmae')
    raster = open_raster(scene_file, SENTINEL2_TEN_BANDS)
    for arguments, message in (
        ({'size': 30}, 'size: 30 is not a multiple of the 8 pixels'),
        ({'mask_ratio': 1.5}, 'mask_ratio: 1.5'),
        ({'size': 32, 'window': 40}, 'window: 40 is not a multiple'),
    ):
        with pytest.raises(ValueError, match=message):
            reconstruction_map(raster, tmp_path / 'm.tif', made, **arguments)
    raster = open_raster(scene_file, ('B04', 'B03', 'B02'))
    with pytest.raises(ValueError, match='Open it with those'):
        reconstruction_map(raster, tmp_path / 'm.tif', made)
