# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The example of a user's image pairs, and the tasks on it."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import rasterio
import torch

from helpers.geotiffs import write
from helpers.training import ONE_EPOCH
from torchgeo_sigmae import BatchSpec, SIGMAETask
from torchgeo_sigmae.bands import SENTINEL2_L2A_BANDS, SENTINEL2_TEN_BANDS
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.plotting import read_log

pytestmark = pytest.mark.usefixtures('narrow_models')

EXAMPLES = Path(__file__).parents[1] / 'examples'


@pytest.fixture
def barkbeetle(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, as PYTHONPATH=examples finds it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module('barkbeetle')


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """Ten sites of twelve bands; every pixel of a label says where it is."""
    root = tmp_path / 'sites'
    rng = np.random.default_rng(0)
    for site in range(100, 110):
        height, width = 40 + site % 7, 70 + site % 3
        for year in (2019, 2020):
            array = rng.integers(500, 3000, (12, height, width)).astype('uint16')
            array[3] = np.arange(height * width).reshape(height, width) % 2000 + 1
            path = root / str(site) / f'{year}.tif'
            write(path, array, SENTINEL2_L2A_BANDS)
        label = (array[3] % 3 == 0).astype('uint8')[None]
        write(root / str(site) / 'mask.tif', label, ('damage',))
    return root


def test_the_split_is_that_of_the_data(barkbeetle: ModuleType, sites: Path) -> None:
    actual = {
        split: {int(path.name) for path in barkbeetle.BarkBeetle(sites, split).sites}
        for split in ('train', 'val', 'test')
    }
    assert actual['test'] == {100, 105}
    assert actual['val'] == {101, 106}
    assert actual['train'] == set(range(100, 110)) - {100, 101, 105, 106}
    with pytest.raises(FileNotFoundError, match=r'root: no <site>/mask\.tif under'):
        barkbeetle.BarkBeetle(sites / '100')


@pytest.mark.parametrize('split', ['train', 'val'])
def test_image_and_label_stay_together(
    barkbeetle: ModuleType, sites: Path, split: str
) -> None:
    dataset = barkbeetle.BarkBeetle(sites, split)
    for index in range(len(dataset)):
        sample = dataset[index]
        image, mask = sample['image'], sample['mask']
        size = (64, 64) if split == 'train' else (64, 96)
        assert image.shape == (2, 10, *size)
        assert mask.shape == (1, *size)
        valid = image.isfinite().all(1)
        assert torch.equal(valid[0], mask[0] != barkbeetle.IGNORE)
        red = image[1, 2]
        assert torch.equal(red[valid[1]] % 3 == 0, mask[0][valid[1]] == 1)
        assert not valid.all()


def test_augmentation_moves_image_and_label_alike(
    barkbeetle: ModuleType, sites: Path
) -> None:
    datamodule = barkbeetle.BarkBeetleDataModule(sites, change=True, batch_size=6)
    datamodule.setup('fit')
    (batch,) = datamodule.train_dataloader()
    moved = datamodule.train_aug(batch)
    assert moved['mask'].dtype == torch.int64
    mean, std = datamodule.mean[2], datamodule.std[2]
    for image, mask in zip(moved['image'], moved['mask'], strict=True):
        valid = mask[0] != barkbeetle.IGNORE
        red = (image[1, 2] * std + mean).round()
        assert torch.equal(red[valid] % 3 == 0, mask[0][valid] == 1)
        assert torch.equal(image[1, 2].isfinite(), valid)


def test_plot(barkbeetle: ModuleType, sites: Path) -> None:
    dataset = barkbeetle.BarkBeetle(sites, 'val')
    sample = dataset[0]
    sample['prediction'] = sample['mask']
    figure = dataset.plot(sample, suptitle='A site')
    assert len(figure.axes) == 4
    assert [axis.get_title() for axis in figure.axes[2:]] == ['Damage', 'Prediction']


def run(name: str, root: Path, path: Path, *arguments: str) -> dict[str, float]:
    """What a fit of one epoch logs at its end."""
    main(
        [
            'fit',
            f'--config={EXAMPLES / name}.yaml',
            f'--data.init_args.root={root}',
            f'--trainer.default_root_dir={path}',
            f'--trainer.logger.init_args.save_dir={path}',
            '--trainer.limit_train_batches=2',
            *ONE_EPOCH,
            *arguments,
        ]
    )
    return {name: float(values[-1]) for name, (_, values) in read_log(path).items()}


@pytest.mark.parametrize(
    'name', ['segment_barkbeetle', 'extract_barkbeetle', 'change_barkbeetle']
)
def test_finetuning_from_the_example_config(
    barkbeetle: ModuleType,
    real_data: Callable[[str], Path],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    task = SIGMAETask(
        'sigmae_vit_tiny_patch8', batch=BatchSpec(
            mean=barkbeetle.BarkBeetleDataModule.band_mean,
            std=barkbeetle.BarkBeetleDataModule.band_std,
        ), decoder_dim=16,
        decoder_depth=1, decoder_num_heads=1,
    )  # fmt: skip
    task.export(tmp_path / 'encoder.pth')
    weights = f'--model.init_args.weights={tmp_path / "encoder.pth"}'
    log = run(name, real_data('barkbeetle'), tmp_path, weights)
    assert 0 <= log['val_iou_positive'] <= 1
    assert np.isfinite(log['val_loss'])
    (path,) = tmp_path.rglob('*.ckpt')
    trained = torch.load(path, weights_only=True)['state_dict']
    blocks = {key for key in trained if 'encoder.blocks.0.attn.qkv' in key}
    assert blocks


def test_statistics_of_the_module_are_those_of_the_training_sites(
    barkbeetle: ModuleType, real_data: Callable[[str], Path]
) -> None:
    root = real_data('barkbeetle')
    total, squares, count = np.zeros(10), np.zeros(10), 0
    places = [SENTINEL2_L2A_BANDS.index(band) + 1 for band in SENTINEL2_TEN_BANDS]
    for site in barkbeetle.BarkBeetle(root).sites:
        for year in (2019, 2020):
            with rasterio.open(site / f'{year}.tif') as file:
                pixels = file.read(places).reshape(10, -1).astype(float)
            pixels = pixels[:, pixels.any(0)]
            total += pixels.sum(1)
            squares += (pixels**2).sum(1)
            count += pixels.shape[1]
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    module = barkbeetle.BarkBeetleDataModule
    np.testing.assert_allclose(module.band_mean, mean, rtol=0.02)
    np.testing.assert_allclose(module.band_std, std, rtol=0.05)
