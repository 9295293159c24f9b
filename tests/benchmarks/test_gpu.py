# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Packed imagery, windows of it on a device, and a short training on them."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.measure import DATA
from benchmarks.pack import decode, encode, main, read_packed
from benchmarks.windows import Windows
from helpers.geotiffs import write
from helpers.processes import run
from torchgeo_sigmae import BatchSpec, SIGMAETask
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.weights import read_weights


def write_scenes(root: Path, *shapes: tuple[int, int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    scenes = [
        generator.integers(1, 4000, (10, *shape)).astype('uint16') for shape in shapes
    ]
    for number, scene in enumerate(scenes):
        scene[:, :5, :7] = 0
        # A dark band is no missing pixel.
        scene[0, 10:20, 10:20] = 0
        path = root / 'scenes' / f'{number}.tif'
        write(path, scene, SENTINEL2_TEN_BANDS, nodata=0)
    return scenes


def pack(root: Path, file: Path, mebibytes: float = 40) -> None:
    main(argparse.Namespace(data=root, file=file, mebibytes=mebibytes))


def test_tiles_are_coded_to_the_nearest_step() -> None:
    generator = np.random.default_rng(0)
    tile = (generator.random((3, 50, 40)) ** 4 * 32000).round().astype('float32')
    tile[:, 3:9, 2:5] = np.nan
    found = decode(encode(tile), tile.shape)
    assert found.dtype == np.int16
    missing = np.isnan(tile)
    np.testing.assert_array_equal((found == 0).all(0), missing.any(0))
    error = np.abs(found - tile)[~missing]
    # Half a step, and rounding to whole numbers.
    assert (error <= np.sqrt(tile[~missing]) / 4 + 0.6).all()


def test_pack_keeps_a_share_of_every_scene(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = write_scenes(tmp_path, (600, 512), (100, 90))
    write(tmp_path / 'scenes' / 'nora.tif', scenes[1], SENTINEL2_TEN_BANDS)
    pack(tmp_path, tmp_path / 'all.npz')
    assert '5 of 5 tiles, 100.0% of the area of 2 scenes' in capsys.readouterr().out
    tiles, about = read_packed(tmp_path / 'all.npz')
    assert sorted(tile.shape for tile in tiles) == [
        (10, 100, 90), *4 * [(10, 300, 256)]
    ]  # fmt: skip
    valid = np.concatenate(
        [scene[:, scene.any(0)].astype('float64') for scene in scenes], axis=1
    )
    np.testing.assert_allclose(about['mean'], valid.mean(1))
    np.testing.assert_allclose(about['std'], valid.std(1))
    small = about['names'].index('scenes/1.tif')
    assert (tiles[small][:, :5, :7] == 0).all()
    assert np.abs(tiles[small] - scenes[1].astype(int)).max() < 17
    # Half of the room, half of the tiles; the first of them can be read alone.
    size = (tmp_path / 'all.npz').stat().st_size / 2**20
    half = tmp_path / 'half.npz'
    pack(tmp_path, half, size / 2)
    assert ' of 5 tiles, ' in capsys.readouterr().out
    assert half.stat().st_size < size / 2 * 2**20
    few, about = read_packed(half)
    assert 2 <= len(few) <= 3
    assert 'scenes/0.tif' in about['names']
    assert len(read_packed(half, 1)[0]) == 1


def test_windows_are_cut_at_random_from_all_tiles() -> None:
    # Every value tells its tile, row and column, every channel another.
    tiles = [
        np.arange(1, 1 + rows * columns, dtype=np.int16).reshape(1, rows, columns)
        + np.array([1000, 5000], np.int16)[:, None, None]
        + np.int16(10000 * number)
        for number, (rows, columns) in enumerate([(20, 30), (8, 5)])
    ]
    loader = Windows(tiles, 8, 500, 'cpu')
    loader.steps = 2
    first, second = (batch['image'] for batch in loader)
    assert first.shape == (500, 2, 8, 8)
    assert first.dtype == torch.float32
    assert not first.equal(second)
    whole = (first[:, 0] < 10000).all(dim=(1, 2)) & (first[:, 0] > 0).all(dim=(1, 2))
    # In proportion to the area; what a tile lacks is missing.
    assert whole.float().mean() == pytest.approx(600 / 640, abs=0.05)
    for image in first[~whole]:
        assert sorted(image[0].count_nonzero(d).max() for d in (0, 1)) == [5, 8]
    turned, corners = 0, set()
    for image in first[whole]:
        one = image[0] - 1001
        assert image[1].equal(image[0] + 4000)
        if one[0, 1] - one[0, 0] == 30:
            one, turned = one.T, turned + 1
        row, column = divmod(int(one[0, 0]), 30)
        corners.add((row, column))
        np.testing.assert_array_equal(
            one, tiles[0][0, row : row + 8, column : column + 8] - 1001
        )
    assert 150 < turned < 350
    assert {corner[0] for corner in corners} == set(range(13))
    assert {corner[1] for corner in corners} == set(range(23))


def test_weights_travel_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, 'PART', 2**22)
    task = SIGMAETask(
        'sigmae_vit_tiny_patch8', batch=BatchSpec(mean=1000.0, std=500.0)
    )  # fmt: skip
    gpu.write_parts(task, tmp_path)
    parts = sorted(tmp_path.glob('weights.*'))
    assert len(parts) > 2
    gpu.join(parts[::-1], tmp_path / 'encoder.pth')
    weights = read_weights(tmp_path / 'encoder.pth')
    assert weights.decoder
    for key, value in task.model.encoder.state_dict().items():
        torch.testing.assert_close(weights.encoder[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_gpu(tmp_path: Path) -> None:
    real = sorted((DATA / 'scenes').glob('bigearthnet__*.tif'))[:2]
    if real:
        (tmp_path / 'scenes').mkdir()
        for path in real:
            os.symlink(path.absolute(), tmp_path / 'scenes' / path.name)
    else:
        write_scenes(tmp_path, (120, 130))
    packed, output = tmp_path / 'chips.npz', tmp_path / 'out'
    pack(tmp_path, packed)
    said = run(
        'benchmarks.gpu', packed, '--output', output, '--device', 'cpu', '--steps', 2,
        '--model', 'sigmae_vit_tiny_patch8', '--batch-size', 2, '--step-batch-size', 2,
        '--repetitions', 1, '--only', 'equal', '--minutes', 20,
    )  # fmt: skip
    assert 'real Sentinel-2 chips of chips.npz' in said
    assert 'step 2 of 2: ' in said
    record = json.loads((output / 'gpu.json').read_text())
    for row in record['eager']:
        assert sum(row['shares'].values()) == pytest.approx(1)
        assert row['shares']['products'] > 0.02
    training = record['training']
    assert training['finished'] == 2
    assert np.isfinite(training['losses']).all()
    parts = sorted(output.glob('weights.*'))
    run('benchmarks.gpu', '--join', *parts, '--output', tmp_path / 'encoder.pth')
    info = read_weights(tmp_path / 'encoder.pth').info
    assert info['trained_on'][-1]['steps'] == 2
    assert info['size'] == 64
