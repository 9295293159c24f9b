# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Files that cannot be read: training stops, or goes on and lists them."""

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affine import Affine
from rasterio.windows import Window

from helpers.geotiffs import RGB, write
from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import SceneDataModule
from torchgeo_sigmae.datasets import RasterScene, SceneChips, find_scenes
from torchgeo_sigmae.maps import open_raster
from torchgeo_sigmae.transforms import SpectralIndex

#: The bands of these scenes make none of the default indices.
_INDEX = SpectralIndex('GRVI', '(green - red) / (green + red)', 'a test')

pytestmark = pytest.mark.usefixtures('narrow_models')


def scene(path: Path, side: int = 64, value: int | None = None) -> Path:
    rng = np.random.default_rng(side)
    array = rng.integers(1000, 3000, (3, side, side)).astype('uint16')
    if value is not None:
        array[:] = value
    return write(
        path, array, tiled=True, blockxsize=16, blockysize=16, compress='deflate'
    )


def spoil(path: Path, start: float = 0.2, share: float = 0.6) -> None:
    """Damage pixels, not the header, which is at the front or the end."""
    data = bytearray(path.read_bytes())
    first = int(start * len(data))
    data[first : first + int(share * len(data))] = b'\xff' * int(share * len(data))
    path.write_bytes(data)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / 'scenes'
    for name in 'abcd':
        scene(root / f'{name}.tif')
    return root


def module(root: Path, **kwargs: Any) -> SceneDataModule:
    return SceneDataModule(
        root, RGB, 32, 4, **{'val_fraction': 0, 'on_error': 'skip', **kwargs}
    )


def test_unknown_words_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="on_error: 'ignore' is unknown"):
        module(root, on_error='ignore')
    with pytest.raises(ValueError, match="on_error: 'ignore' is unknown"):
        SceneChips(find_scenes(root, bands=RGB), RGB, on_error='ignore')


@pytest.mark.parametrize('cache', [True, False])
def test_what_cannot_be_opened_is_left_out(root: Path, cache: bool) -> None:
    (root / 'b.tif').write_bytes(b'no TIFF')
    write(root / 'c.tif', np.ones((2, 64, 64), 'uint16'), ('B02', 'B03'))
    with pytest.raises(OSError, match=r'b\.tif cannot be read'):
        module(root, on_error='raise', cache=cache).setup('fit')
    datamodule = module(root, cache=cache)
    with pytest.warns(UserWarning, match='Skipped: ') as caught:
        datamodule.setup('fit')
    assert [str(w.message)[:9] for w in caught] == ['Skipped: '] * 2
    assert datamodule.skipped == [str(root / 'b.tif'), str(root / 'c.tif')]
    left = {Path(s.path).stem for s in datamodule.train_dataset.scenes}
    assert left == {'a', 'd'}


def test_if_nothing_is_left_it_stops(root: Path) -> None:
    for path in root.iterdir():
        path.write_bytes(b'no TIFF')
    with (
        pytest.warns(UserWarning, match='Skipped'),
        pytest.raises(OSError, match=r'root: none of the 4 files under .*scenes'),
    ):
        module(root).setup('fit')
    for name in 'abcd':
        spoil(scene(root / f'{name}.tif'))
    with (
        pytest.warns(UserWarning, match='Skipped'),
        pytest.raises(OSError, match='None of the 4 train scenes'),
    ):
        module(root, cache=True, mean=[1] * 3, std=[1] * 3).setup('fit')
    scenes = find_scenes(root, bands=RGB)
    for random in (True, False):
        dataset = SceneChips(scenes, RGB, 64, random, on_error='skip')
        with pytest.raises(OSError, match=r'None of the 4 scenes .*\.tif cannot be'):
            dataset[0]


def test_scenes_without_data_are_left_out_and_kept_out(
    root: Path, tmp_path: Path
) -> None:
    """The stored statistics list them: a resumed run must not differ."""
    scene(root / 'b.tif', value=0)
    seen = []
    for _ in range(2):
        datamodule = module(root)
        datamodule.trainer = quiet_trainer(tmp_path / 'run')
        with pytest.warns(UserWarning, match=r'Skipped: .*b\.tif'):
            datamodule.setup('fit')
        seen.append([Path(s.path).stem for s in datamodule.train_dataset.scenes])
    assert seen == [['a', 'c', 'd']] * 2
    stored = json.loads((tmp_path / 'run' / 'scene_statistics.json').read_text())
    assert stored['skipped'] == [str(root / 'b.tif')]
    strict = module(root, on_error='raise')
    strict.trainer = quiet_trainer(tmp_path / 'run')
    with pytest.raises(ValueError, match=r'b\.tif holds no data'):
        strict.setup('fit')
    for name in 'acd':
        scene(root / f'{name}.tif', value=0)
    with (
        pytest.warns(UserWarning, match='Skipped'),
        pytest.raises(OSError, match='None of the 4 training scenes holds data'),
    ):
        module(root).setup('fit')


@pytest.mark.filterwarnings('ignore:Skipped')
def test_another_chip_is_drawn_from_the_same_seed(root: Path) -> None:
    scenes = find_scenes(root, bands=RGB)
    whole = SceneChips(scenes, RGB, 32, length=40)
    spoil(root / 'c.tif', 0.3, 0.5)
    dataset = SceneChips(scenes, RGB, 32, length=40, on_error='skip')

    def draw(chips: SceneChips, index: int) -> dict[str, Any]:
        torch.manual_seed(index)
        return chips[index]

    replaced = 0
    for index in range(40):
        first, again = draw(dataset, index), draw(dataset, index)
        assert first['path'] == again['path']
        assert torch.equal(first['image'], again['image'])
        with contextlib.suppress(OSError):
            assert torch.equal(first['image'], draw(whole, index)['image'])
            continue
        replaced += 1
        assert first['path'] != str(root / 'c.tif')
        row, column = first['window'].tolist()
        (source,) = [s for s in scenes if s.path == first['path']]
        expected = source.read(Window(column, row, 32, 32))
        np.testing.assert_array_equal(first['image'], expected)
    assert 0 < replaced <= 11
    assert dataset.skipped == [str(root / 'c.tif')]


@pytest.mark.filterwarnings('ignore:Skipped')
def test_the_next_scene_steps_in_side_by_side(root: Path) -> None:
    scenes = find_scenes(root, bands=RGB)
    spoil(root / 'd.tif')
    dataset = SceneChips(scenes, RGB, 32, False, on_error='skip')
    paths = [Path(dataset[i]['path']).stem for i in range(16)]
    assert ''.join(paths[:12]) == 'aaaabbbbcccc'
    assert 'd' not in paths[12:]
    assert 'a' in paths[12:]
    with pytest.raises(OSError, match=r'd\.tif cannot be read'):
        [SceneChips(scenes, RGB, 32, False)[i] for i in range(16)]


@pytest.mark.parametrize('workers', [0, 2])
def test_files_skipped_in_training_are_listed(root: Path, workers: int) -> None:
    """Damaged after the start, read by windows: those of all workers."""

    def run() -> tuple[list[str], list[str], torch.Tensor]:
        scene(root / 'c.tif')
        datamodule = module(
            root, cache=False, num_workers=workers, length=32,
            mean=[2000] * 3, std=[500] * 3, seed=1,
        )  # fmt: skip
        datamodule.setup('fit')
        spoil(root / 'c.tif')
        torch.manual_seed(0)
        made = small_task(
            bands=RGB, mean=None, std=None, normalize=None, indices=[_INDEX]
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            quiet_trainer(root.parent / 'run', max_epochs=1).fit(made, datamodule)
        text = [str(w.message) for w in caught if 'kipped' in str(w.message)]
        weights = torch.cat([p.flatten() for p in made.parameters()]).detach()
        return datamodule.skipped, text, weights

    first, again = run(), run()
    (path,) = first[0]
    assert path == str(root / 'c.tif')
    *warned, report = first[1]
    assert report == f'Skipped 1 files that could not be read: {path}.'
    # The workers write theirs to the standard error.
    assert len(warned) == (workers == 0)
    assert all(text.startswith(f'Skipped: {path} cannot be read') for text in warned)
    assert again[0] == first[0]
    assert torch.equal(again[2], first[2])


# ----------------------------------------------------------------- what files hold


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', np.ones((3, 8, 8), 'complex64'))
    with pytest.raises(ValueError, match=r'a\.tif holds complex numbers'):
        RasterScene.open(str(path), RGB)


def test_nodata_of_float64_overflows_quietly(tmp_path: Path) -> None:
    """GDAL's usual one; both it and the pixels become infinite."""
    lowest = float(np.finfo('float64').min)
    array = np.ones((3, 8, 8))
    array[:, 2] = lowest
    path = write(tmp_path / 'a.tif', array, nodata=lowest)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        image = RasterScene.open(str(path), RGB).read()
    assert np.isnan(image[:, 2]).all()
    assert (np.delete(image, 2, axis=1) == 1).all()


@pytest.mark.parametrize(
    'crs',
    [
        'LOCAL_CS["mine",UNIT["metre",1]]',
        'IAU_2015:30100',
    ],
)
def test_systems_that_are_nowhere_on_earth(tmp_path: Path, crs: str) -> None:
    transform = Affine(10.0, 0.0, 5.0, 0.0, -10.0, 5.0)
    array = np.ones((3, 8, 8), 'uint16')
    path = write(tmp_path / 'a.tif', array, crs=crs, transform=transform)
    (actual,) = find_scenes(tmp_path, bands=RGB)
    assert actual.footprint is None
    assert open_raster(path, RGB).height == 8


def test_coordinates_that_are_not_finite(tmp_path: Path) -> None:
    transform = Affine(10.0, 0.0, np.inf, 0.0, -10.0, 5e6)
    array = np.ones((3, 8, 8), 'uint16')
    path = write(tmp_path / 'a.tif', array, crs='EPSG:32632', transform=transform)
    assert RasterScene.open(str(path), RGB).footprint is None
    with pytest.raises(ValueError, match=r'a\.tif has the geotransform .*inf'):
        open_raster(path, RGB)
