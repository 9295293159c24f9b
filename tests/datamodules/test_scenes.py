# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A folder of GeoTIFF scenes as training data."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from helpers.faults import file_size_limit
from helpers.geotiffs import RGB, numbered, write
from helpers.training import SMALL, quiet_trainer
from torchgeo_sigmae import SceneDataModule, SIGMAETask, resumable
from torchgeo_sigmae.datasets import SceneChips

pytestmark = pytest.mark.usefixtures('narrow_models')


def noise(height: int, width: int, level: int = 2000, count: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return rng.normal(level, 300, (count, height, width)).clip(1).astype('uint16')


def module(root: Path, **kwargs: Any) -> SceneDataModule:
    return SceneDataModule(
        root, **{'bands': RGB, 'size': 16, 'batch_size': 4, **kwargs}
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / 'scenes'
    for i, side in enumerate((40, 48, 56, 64)):
        write(root / f'{i}.tif', noise(side, side, 1000 * (i + 1)))
    return root


def names(dataset: Any) -> set[str]:
    return {Path(scene.path).stem for scene in dataset.scenes}


def test_split_by_scene(root: Path) -> None:
    areas = {'0': 1600, '1': 2304, '2': 3136, '3': 4096}
    chosen = set()
    for seed in range(8):
        datamodule = module(root, seed=seed, val_fraction=0.5)
        datamodule.setup('fit')
        train, val = names(datamodule.train_dataset), names(datamodule.val_dataset)
        assert train | val == set('0123')
        assert not train & val
        assert sum(areas[name] for name in val) == pytest.approx(11136 / 2, rel=0.1)
        chosen.add(str(sorted(val)))
    assert len(chosen) > 1


def test_one_scene_is_split_into_blocks(tmp_path: Path) -> None:
    """No pixel is in both, and statistics and chips come from the right ones."""
    array = numbered(99, 99)
    write(tmp_path / 'a.tif', array)
    for cache in (True, False):
        datamodule = module(tmp_path, cache=cache, val_fraction=0.1, size=8)
        datamodule.setup('fit')
        seen = []
        for dataset in (datamodule.train_dataset, datamodule.val_dataset):
            pixels = set()
            for scene in dataset.scenes:
                pixels |= {*scene.read()[0].flatten().tolist()}
            seen.append(pixels)
            sample = dataset[0]
            row, column = sample['window'].tolist()
            part = array[:, row : row + 8, column : column + 8]
            np.testing.assert_array_equal(sample['image'], part)
        train, val = seen
        assert not train & val
        assert len(val) / len(train | val) == pytest.approx(0.1, rel=0.1)
        assert datamodule.mean[0] == pytest.approx(np.mean([*train]), rel=0.1)


def test_split_by_name(root: Path) -> None:
    datamodule = module(root, val_paths='1*', test_paths=['2*'], exclude='0*')
    datamodule.setup('fit')
    datamodule.setup('test')
    datamodule.setup('predict')
    assert names(datamodule.train_dataset) == {'3'}
    assert names(datamodule.val_dataset) == {'1'}
    assert names(datamodule.test_dataset) == {'2'}
    assert names(datamodule.predict_dataset) == {'1', '2', '3'}
    assert len(datamodule.predict_dataset) == 9 + 9 + 16
    assert len(datamodule.val_dataset) == 9
    assert not datamodule.val_dataset.random
    with pytest.raises(ValueError, match='test_paths: None'):
        module(root).setup('test')


def test_dates_of_one_site_stay_together(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f'here{i}.tif', noise(32, 32), east=500_000 + 10 * i)
    for i in range(3):
        write(tmp_path / f'there{i}.tif', noise(32, 32), east=600_000 + 10 * i)
    datamodule = module(tmp_path, val_fraction=0.2)
    with pytest.warns(
        UserWarning, match=r'val_fraction: 0\.2 was asked for, and 0\.33'
    ):
        datamodule.setup('fit')
    sites = [
        {name[:-1] for name in names(dataset)}
        for dataset in (datamodule.train_dataset, datamodule.val_dataset)
    ]
    assert sorted(map(sorted, sites)) == [['here'], ['there']]
    with pytest.raises(ValueError, match=r'val_fraction: 0\.2, but the 6 scenes'):
        module(tmp_path, val_fraction=0.2, paths='here*').setup('fit')


def test_no_validation(root: Path) -> None:
    datamodule = module(root, val_fraction=0)
    datamodule.setup('fit')
    assert len(names(datamodule.train_dataset)) == 4
    assert datamodule.val_dataloader() == []


def test_at_least_one_batch(root: Path) -> None:
    datamodule = module(root, batch_size=64)
    datamodule.setup('fit')
    assert len(datamodule.train_dataloader()) == 1
    few = module(root, length=8)
    few.setup('fit')
    assert len(few.train_dataset) == 8


# ------------------------------------------------------------------------- statistics


def test_statistics_are_those_of_the_training_scenes(root: Path) -> None:
    datamodule = module(root, val_paths='3*', size=8)
    datamodule.setup('fit')
    arrays = [noise(side, side, 1000 * (i + 1)) for i, side in enumerate((40, 48, 56))]
    pixels = np.concatenate([array.reshape(3, -1) for array in arrays], axis=1)
    np.testing.assert_allclose(datamodule.mean, pixels.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(datamodule.std, pixels.std(axis=1), rtol=1e-6)


def test_statistics_of_large_scenes_are_sampled(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('torchgeo_sigmae.datasets.statistics._MAX_CHIPS', 12)
    read: list[int] = []
    original = SceneChips.__getitem__

    def count(self: SceneChips, index: int) -> dict[str, Any]:
        read.append(index)
        return original(self, index)

    monkeypatch.setattr(SceneChips, '__getitem__', count)
    datamodule = module(root, val_fraction=0, size=8)
    datamodule.setup('fit')
    assert len(read) == pytest.approx(12, abs=4)
    assert datamodule.mean.tolist() == pytest.approx([2800] * 3, rel=0.1)


def test_missing_pixels_do_not_count(tmp_path: Path) -> None:
    array = noise(32, 32)
    write(tmp_path / 'whole.tif', array)
    whole = module(tmp_path, val_fraction=0)
    whole.setup('fit')
    holes = np.concatenate([array, np.zeros_like(array)], axis=2)
    write(tmp_path / 'whole.tif', holes)
    with_holes = module(tmp_path, val_fraction=0)
    with_holes.setup('fit')
    torch.testing.assert_close(with_holes.mean, whole.mean)
    torch.testing.assert_close(with_holes.std, whole.std)


def test_statistics_are_stored_beside_the_run(root: Path, tmp_path: Path) -> None:
    def prepare(**kwargs: Any) -> tuple[SceneDataModule, dict[str, Any]]:
        datamodule = module(root, val_paths='3*', **kwargs)
        datamodule.trainer = Trainer(
            default_root_dir=tmp_path / 'run', logger=False, accelerator='cpu',
            devices=2, strategy='ddp',
        )  # fmt: skip
        before = dict(vars(datamodule))
        datamodule.prepare_data()
        # In a distributed run, it is called in one process only.
        assert vars(datamodule) == before
        stored = tmp_path / 'run' / 'scene_statistics.json'
        content = json.loads(stored.read_text())
        datamodule.setup('fit')
        return datamodule, content

    first, content = prepare()
    assert content['source']['bands'] == list(RGB)
    assert [Path(path).stem for path in content['source']['files']] == ['0', '1', '2']
    assert content['mean'] == pytest.approx(first.mean.tolist())
    # Stored ones are used as they are ...
    path = tmp_path / 'run' / 'scene_statistics.json'
    path.write_text(json.dumps({**content, 'mean': [1.0, 2.0, 3.0]}))
    again, _ = prepare()
    assert again.mean.tolist() == [1, 2, 3]
    # ... unless the data are other ones.
    write(root / '0.tif', noise(40, 40, 9000))
    changed, content = prepare()
    assert changed.mean[0] > first.mean[0]
    assert content['mean'] == pytest.approx(changed.mean.tolist())
    assert not list((tmp_path / 'run').glob('*.part'))
    # Damaged files, and those of others, are replaced.
    for damage in (
        {'mean': [1.0, 2.0]},
        {'mean': [1.0, 2.0, float('nan')]},
        {'std': [1.0, 0.0, 1.0]},
        {'std': [1.0, 10**400, 1.0]},
        {'mean': None},
        {'std': {}},
    ):
        path.write_text(json.dumps({**content, **damage}))
        assert prepare()[0].mean.tolist() == changed.mean.tolist()
    for text in ('', '[]', '{', '[' * 100_000, '\x00', 'null', '{"source": {}}'):
        path.write_text(text)
        assert prepare()[0].mean.tolist() == changed.mean.tolist()


def test_statistics_that_cannot_be_stored(root: Path, tmp_path: Path) -> None:
    datamodule = module(root, val_paths='3*')
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'scene_statistics.json').write_text('before')
    datamodule.trainer = Trainer(default_root_dir=folder, logger=False)
    message = 'could not be stored: default_root_dir: .*scene_statistics.json cannot'
    with file_size_limit(20), pytest.warns(UserWarning, match=message):
        datamodule.setup('fit')
    assert datamodule.mean.isfinite().all()
    assert [path.read_text() for path in folder.iterdir()] == ['before']


def test_given_statistics(root: Path) -> None:
    datamodule = module(root, mean=[1, 2, 3], std=[4, 5, 6])
    datamodule.setup('fit')
    assert datamodule.mean.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match='mean, std: pass both'):
        module(root, mean=[1, 2, 3])
    with pytest.raises(ValueError, match='mean: 2 values for the 3 bands'):
        module(root, mean=[1, 2], std=[1, 2])
    with pytest.raises(ValueError, match=r'val_fraction: 1 must be in \[0, 1\)'):
        module(root, val_fraction=1)


def test_a_scene_without_data_is_named(root: Path) -> None:
    write(root / 'empty.tif', np.zeros((3, 32, 32), 'uint16'))
    with pytest.raises(ValueError, match=r'empty\.tif holds no data: .*Exclude it'):
        module(root, val_fraction=0).setup('fit')
    write(root / 'empty.tif', np.full((3, 32, 32), 9, 'uint16'), nodata=9)
    with pytest.raises(ValueError, match=r'empty\.tif holds no data'):
        module(root, val_fraction=0).setup('fit')


def test_a_scene_with_little_data_is_read_where_it_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data in one corner, where the sample does not look."""
    monkeypatch.setattr('torchgeo_sigmae.datasets.statistics._MAX_CHIPS', 2)
    array = np.zeros((3, 64, 64), 'uint16')
    array[:, 48:, 48:] = noise(16, 16)
    write(tmp_path / 'a.tif', array)
    datamodule = module(tmp_path, val_fraction=0)
    datamodule.setup('fit')
    assert datamodule.mean.tolist() == pytest.approx([2000] * 3, rel=0.05)


def test_a_constant_band_is_refused(tmp_path: Path) -> None:
    array = noise(32, 32)
    array[1] = 5
    write(tmp_path / 'a.tif', array)
    with pytest.raises(ValueError, match='std: B03 has the same value everywhere'):
        module(tmp_path, val_fraction=0).setup('fit')


# ----------------------------------------------------------------------- augmentation


def augmented(datamodule: SceneDataModule, image: torch.Tensor) -> torch.Tensor:
    datamodule.setup('fit')
    assert datamodule.train_aug is not None
    return datamodule.train_aug({'image': image})['image']


def test_flips_and_right_angles_are_exact_and_equally_likely(root: Path) -> None:
    datamodule = module(root, mean=[0] * 3, std=[1] * 3)
    image = torch.from_numpy(numbered(16, 16).astype('float32'))
    image[:, 2:5, 9] = torch.nan
    turned = [torch.rot90(image, k, (1, 2)) for k in range(4)]
    turned += [each.flip(2) for each in turned]
    torch.manual_seed(0)
    out = augmented(datamodule, image.expand(800, -1, -1, -1).clone())
    counts = [0] * 8
    for each in out:
        (which,) = [
            k
            for k, t in enumerate(turned)
            if torch.equal(each.nan_to_num(-1), t.nan_to_num(-1))
        ]
        counts[which] += 1
    # Expected 100 each, standard deviation 9.4.
    assert min(counts) > 60
    assert max(counts) < 140


def test_crop_scale(root: Path) -> None:
    datamodule = module(root, mean=[0] * 3, std=[1] * 3, crop_scale=(0.25, 0.25))
    image = torch.from_numpy(numbered(16, 16).astype('float32'))[None]
    out = augmented(datamodule, image)
    assert out.shape == image.shape
    spread = out[0, 0].max() - out[0, 0].min()
    assert spread < 0.7 * (image[0, 0].max() - image[0, 0].min())


def test_fill(root: Path) -> None:
    """For tasks that cannot take NaN."""
    for fill in (math.nan, 0.0):
        datamodule = module(root, fill=fill)
        datamodule.setup('fit')
        datamodule.trainer = Trainer(logger=False)
        datamodule.trainer.training = True
        image = torch.full((2, 3, 16, 16), 3000.0)
        image[0, :, 3] = torch.nan
        out = datamodule.on_after_batch_transfer({'image': image}, 0)['image']
        assert out.isnan().any() == math.isnan(fill)
        assert (out == 0).any() != math.isnan(fill)


# --------------------------------------------------------------------------- the task


def test_pretraining_on_scenes_with_gaps(tmp_path: Path) -> None:
    bands = ('B03', 'B04', 'B08', 'B11')
    for i in range(4):
        array = noise(50 + i, 70, 1500, 4)
        array[:, :9] = 0
        write(tmp_path / f's{i}.tif', array, bands, nodata=0)
    write(tmp_path / 'small.tif', noise(20, 30, 1500, 4), bands)
    datamodule = SceneDataModule(
        tmp_path, bands, size=32, batch_size=4, val_paths='s0*'
    )
    task = SIGMAETask(**SMALL, bands=bands)
    run = quiet_trainer(tmp_path / 'run', max_epochs=2)
    run.fit(task, datamodule)
    metrics = run.callback_metrics
    assert metrics['val_loss'].isfinite()
    assert metrics['train_loss'].isfinite()
    assert task.statistics.data_bands == bands
    assert task.statistics.mean == tuple(datamodule.mean.tolist())


def test_the_order_is_the_same_again(root: Path) -> None:
    def first() -> Iterator[torch.Tensor]:
        datamodule = module(root, seed=4)
        datamodule.setup('fit')
        return (batch['image'] for batch in datamodule.train_dataloader())

    for one, other in zip(first(), first(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize('workers', [0, 2])
def test_chips_from_memory_are_those_from_the_files(root: Path, workers: int) -> None:
    def batches(cache: bool) -> list[torch.Tensor]:
        datamodule = module(root, cache=cache, num_workers=workers)
        datamodule.setup('fit')
        scenes = datamodule.train_dataset.scenes
        assert {scene.pixels is not None for scene in scenes} == {cache}
        return [batch['image'] for batch in datamodule.train_dataloader()]

    for one, other in zip(batches(True), batches(False), strict=True):
        assert torch.equal(one, other)


def test_small_scenes_are_cached_and_large_ones_are_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(side**2 for side in (40, 48, 56, 64)) * 3 * 2
    for limit, cached in ((size + 1, True), (size, False)):
        monkeypatch.setattr('torchgeo_sigmae.datamodules.scenes._CACHED_BYTES', limit)
        datamodule = module(root, val_fraction=0)
        datamodule.setup('fit')
        scenes = datamodule.train_dataset.scenes
        assert {scene.pixels is not None for scene in scenes} == {cached}


def test_resumable_leaves_it_as_it_is(root: Path) -> None:
    datamodule = module(root)
    assert type(resumable(datamodule, 3)) is SceneDataModule
    assert datamodule.resumable_seed == 3
    assert datamodule.seed == 0


@pytest.mark.parametrize(
    ('folder', 'options'),
    [
        ('scenes', {'val_paths': ['nora*', 'ravaen*']}),
        ('barkbeetle', {'paths': '*[234789]/20??.tif', 'val_paths': '*[16]/20??.tif'}),
    ],
)
def test_real_scenes_train(
    real_data: Callable[[str], Path],
    tmp_path: Path,
    folder: str,
    options: dict[str, Any],
) -> None:
    datamodule = SceneDataModule(
        real_data(folder), size=32, batch_size=16, length=64, val_length=16, **options
    )
    run = quiet_trainer(tmp_path, max_epochs=1)
    run.fit(SIGMAETask(**SMALL), datamodule)
    assert run.global_step == 4
    assert run.callback_metrics['val_loss'].isfinite()
    # Reflectance x 10000 of vegetated land: red below near infrared.
    mean = dict(zip(datamodule.bands, datamodule.mean.tolist(), strict=True))
    assert 100 < mean['B04'] < mean['B08'] < 5000


def test_only_training_sites_of_the_bark_beetle_data_enter(
    real_data: Callable[[str], Path],
) -> None:
    datamodule = SceneDataModule(
        real_data('barkbeetle'),
        paths='*[234789]/20??.tif',
        val_paths='*[16]/20??.tif',
        size=32,
    )
    datamodule.setup('fit')
    for dataset, allowed in (
        (datamodule.train_dataset, {2, 3, 4}),
        (datamodule.val_dataset, {1}),
    ):
        sites = [int(Path(scene.path).parent.name) for scene in dataset.scenes]
        assert len(sites) > 50
        assert {site % 5 for site in sites} == allowed
