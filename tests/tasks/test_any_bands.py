# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands that are not Sentinel-2's: pretrained, exported, fine-tuned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from helpers.training import quiet_trainer
from torchgeo_sigmae import BatchSpec, SIGMAETask
from torchgeo_sigmae._compat import Classification
from torchgeo_sigmae.bands import Band, BandSet, Sensor
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.weights import read_weights

PLANET = Sensor(
    'superdove',
    (
        Band('blue', 'blue', 490.0),
        Band('green', 'green', 565.0),
        Band('red', 'red', 665.0),
        Band('nir', 'nir', 865.0),
    ),
)
CUBE = Sensor.from_wavelengths('cube', {f'c{i}': 420.0 + 10 * i for i in range(200)})
CASES: dict[str, dict[str, Any]] = {
    'RGB': {'bands': ['B02', 'B03', 'B04']},
    'one band': {'bands': ['B04']},
    'radar': {'bands': ['VV', 'VH'], 'sensor': 'sentinel1'},
    'custom sensor': {'bands': ['blue', 'green', 'red', 'nir'], 'sensor': PLANET},
    '200 bands': {'bands': [band.name for band in CUBE.bands], 'sensor': CUBE},
    'names of any kind': {'bands': ['slope', 'dem', 'vh', 'x'], 'sensor': 'any'},
}
INDICES = {'custom sensor': ['NDVI', 'NDWI'], '200 bands': ['NDVI', 'NDWI', 'NDBI']}


@pytest.mark.usefixtures('narrow_models')
@pytest.mark.parametrize(
    ('case', 'family'),
    [
        *((case, 'sigmae') for case in CASES),
        *((case, 's2mae') for case in ('one band', '200 bands')),
        *((case, 'satmae') for case in ('custom sensor', 'names of any kind')),
    ],
)
def test_pretrain_export_and_fine_tune(case: str, family: str, tmp_path: Path) -> None:
    count = len(CASES[case]['bands'])
    options: dict[str, Any] = {}
    if family == 's2mae':
        options['encoder_kwargs'] = {'cube_bands': 40 if count == 200 else 1}
    task = SIGMAETask(
        f'{family}_vit_tiny_patch8', size=16, mask_ratio=0.5, decoder_dim=32,
        decoder_depth=1, decoder_num_heads=2, **CASES[case], **options,
        batch=BatchSpec(mean=0.5, std=0.3, scale=1.0, normalize=True),
    )  # fmt: skip
    assert task.hparams['indices'] == INDICES.get(case, [])
    assert task.hparams['masking'] == ('saliency' if case in INDICES else 'random')
    samples = [{'image': torch.rand(count, 16, 16), 'label': i % 2} for i in range(8)]
    loader = DataLoader(samples, batch_size=4)
    trainer = quiet_trainer(tmp_path, max_steps=2, limit_val_batches=1)
    trainer.fit(task, loader, loader)
    assert trainer.callback_metrics['train_loss'].isfinite()
    assert trainer.callback_metrics['val_loss'].isfinite()
    assert trainer.predict(task, loader)[0]['reconstruction'].isfinite().any()
    path = tmp_path / 'encoder.pth'
    task.export(path)
    trainer.save_checkpoint(tmp_path / 'task.ckpt')
    again = SIGMAETask.load_from_checkpoint(tmp_path / 'task.ckpt')
    assert again.bands.matches(task.bands)
    assert again.bands.sensor == task.bands.sensor
    stored = read_weights(path).bands
    assert stored is not None
    assert stored.matches(task.bands)
    assert FrozenEncoder.load(path)(samples[0]['image'][None]).isfinite().all()
    weights: dict[str, Any] = {'weights': str(path), 'in_channels': count}
    fine = Classification(f'{family}_vit_tiny_patch8', **weights, num_classes=2)
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(fine, loader)


def test_saliency_asks_for_an_index() -> None:
    with pytest.raises(ValueError, match='indices: none given'):
        SIGMAETask('sigmae_vit_tiny_patch8', bands=['B04'], masking='saliency')
    with pytest.raises(ValueError, match=r'spectral_weight: 0.5, but .* no index'):
        SIGMAETask('sigmae_vit_tiny_patch8', bands=['B04'], spectral_weight=0.5)


def test_a_band_set_brings_its_sensor() -> None:
    bands = BandSet(['B4', 'B5'], 'landsat8')
    task = SIGMAETask('sigmae_vit_tiny_patch8', bands=bands)
    assert task.bands.matches(bands)
    assert task.hparams['sensor'] == 'landsat8'
    assert list(task.hparams['bands']) == ['B4', 'B5']
    assert task.hparams['indices'] == ['NDVI']
