# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks that reconstruct, from weights that hold a decoder."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import SIGMAE_Weights
from torchgeo_sigmae.tasks import restore_task
from torchgeo_sigmae.weights import adapt_bands, read_weights
from torchgeo_sigmae.weights.files import Weights, write_weights

FIRST_EDITION = Path(__file__).parents[1] / 'data' / 'first_edition'


@pytest.mark.parametrize(
    'settings',
    [
        {'decoder_num_heads': 4},
        {'decoder': 'self', 'norm_pix_loss': True},
        {'target': 'unit', 'spectral_weight': 1.0, 'bands': ['B08', 'B04', 'B03']},
        {'family': 's2mae', 'positions': 'vanilla', 'scale': 1e-3, 'offset': -0.1},
        {'family': 'satmae', 'target': 'reflectance', 'masking': 'spatial'},
        {'family': 's2mae', 'masking': 'channel', 'mask_ratio': 0.6},
    ],
)
def test_reconstructions_are_equal(settings: dict[str, Any], tmp_path: Path) -> None:
    channels = len(settings.get('bands', range(10)))
    task = small_task(**{'mean': [1500.0] * channels, 'std': 900.0, **settings}).eval()
    image = torch.rand(2, channels, 32, 32) * 3000
    wanted = task.reconstruct(image, None, torch.arange(2))
    task.export(tmp_path / 'w.pth', decoder=True)
    run = quiet_trainer(tmp_path)
    run.strategy.connect(task)
    run.save_checkpoint(tmp_path / 'w.ckpt')
    for name in ('w.pth', 'w.ckpt'):
        restored = restore_task(tmp_path / name)
        assert restored.bands == task.bands
        actual = restored.reconstruct(image, None, torch.arange(2))
        for key in ('image', 'reconstruction', 'mask'):
            assert torch.equal(actual[key], wanted[key]), (name, key)


def test_packaged_weights() -> None:
    task = restore_task(SIGMAE_Weights.SENTINEL2)
    assert task.model.decoder.blocks[0].num_heads == 4
    weights = SIGMAE_Weights.SENTINEL2.read()
    assert torch.equal(task.model.decoder.head.weight, weights.decoder['head.weight'])


def test_weights_that_cannot_reconstruct(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='holds no decoder'):
        restore_task(FIRST_EDITION / 'sigmae.pth')
    with pytest.raises(ValueError, match='does not state decoder_num_heads'):
        restore_task(FIRST_EDITION / 'sigmae_decoder.pth')
    stored = read_weights(SIGMAE_Weights.SENTINEL2)
    for name in ('mean', 'bands'):
        info = {key: value for key, value in stored.info.items() if key != name}
        weights = Weights(stored.encoder, stored.decoder, info)
        write_weights(weights, tmp_path / 'w.pth')
        with pytest.raises(ValueError, match=f'does not state {name}'):
            restore_task(tmp_path / 'w.pth')
    adapt_bands(SIGMAE_Weights.SENTINEL2, ['B04', 'B03'], tmp_path / 'rgb.pth')
    with pytest.raises(ValueError, match='holds no decoder'):
        restore_task(tmp_path / 'rgb.pth')
