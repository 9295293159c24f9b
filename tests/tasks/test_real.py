# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The user's story on real Sentinel-2, with TorchGeo's own datamodules and tasks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torchgeo.datamodules import BigEarthNetDataModule, EuroSATDataModule
from torchgeo.datasets import BigEarthNet, EuroSAT

from helpers.training import quiet_trainer
from torchgeo_sigmae import PatchSaliency, SIGMAETask
from torchgeo_sigmae._compat import Classification
from torchgeo_sigmae.bands import (
    BIGEARTHNET_BANDS,
    EUROSAT_BANDS,
    SENTINEL2_TEN_BANDS,
)
from torchgeo_sigmae.weights import read_weights

NAME = 'sigmae_vit_tiny_patch8'
SMALL: dict[str, Any] = {
    'model': NAME,
    'decoder_dim': 32,
    'decoder_depth': 1,
    'decoder_num_heads': 2,
    'lr': 1e-3,
}


class Saliency(Callback):
    """Collect the saliency the task finds in batches that went through TorchGeo."""

    def __init__(self) -> None:
        self.saliency: list[torch.Tensor] = []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.saliency.append(pl_module._prepare(batch).saliency)


@pytest.mark.parametrize('bands', [EUROSAT_BANDS, SENTINEL2_TEN_BANDS])
def test_saliency_in_the_task_is_that_of_the_raw_eurosat_chip(
    eurosat_root: Path, tmp_path: Path, bands: tuple[str, ...]
) -> None:
    datamodule = EuroSATDataModule(root=eurosat_root, bands=bands, batch_size=20)
    watch = Saliency()
    task = SIGMAETask(**SMALL, size=64)
    quiet_trainer(tmp_path, callbacks=[watch]).validate(task, datamodule, verbose=False)
    raw = EuroSAT(eurosat_root, split='val')
    images = torch.stack([raw[i]['image'] for i in range(20)])
    expected = PatchSaliency(EUROSAT_BANDS).saliency(images).flatten(1)
    torch.testing.assert_close(torch.cat(watch.saliency), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1


def test_saliency_in_the_task_is_that_of_the_raw_bigearthnet_patch(
    bigearthnet_root: Path, tmp_path: Path
) -> None:
    datamodule = BigEarthNetDataModule(
        root=bigearthnet_root, bands='s2', num_classes=43, batch_size=1
    )
    watch = Saliency()
    task = SIGMAETask(**SMALL, size=120)
    run = quiet_trainer(tmp_path, callbacks=[watch])
    metrics = run.validate(task, datamodule, verbose=False)[0]
    raw = BigEarthNet(bigearthnet_root, split='val', bands='s2', num_classes=43)
    image = raw[0]['image'][None]
    expected = PatchSaliency(BIGEARTHNET_BANDS).saliency(image).flatten(1)
    torch.testing.assert_close(torch.cat(watch.saliency), expected, rtol=0, atol=1e-4)
    assert task.statistics.channels == (1, 2, 3, 4, 5, 6, 7, 8, 10, 11)
    assert 0 < metrics['val_rmse'] < 1


def test_bigearthnet_trains(bigearthnet_root: Path, tmp_path: Path) -> None:
    datamodule = BigEarthNetDataModule(
        root=bigearthnet_root, bands='s2', num_classes=43, batch_size=1
    )
    task = SIGMAETask(**SMALL, size=64)
    run = quiet_trainer(tmp_path, max_epochs=2)
    run.fit(task, datamodule)
    assert run.global_step == 2
    assert run.callback_metrics['val_loss'].isfinite()


@pytest.fixture(scope='module')
def pretrained(
    eurosat_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """An encoder pretrained for an epoch on real EuroSAT."""
    path = tmp_path_factory.mktemp('pretrained')
    torch.manual_seed(0)
    task = SIGMAETask(**SMALL, size=64)
    datamodule = EuroSATDataModule(
        root=eurosat_root, bands=SENTINEL2_TEN_BANDS, batch_size=28
    )
    run = quiet_trainer(path, max_epochs=1)
    run.fit(task, datamodule)
    run.save_checkpoint(path / 'training.ckpt')
    task.export(path / 'encoder.pth')
    return {'export': path / 'encoder.pth', 'training': path / 'training.ckpt'}


def classification(weights: Path, **kwargs: Any) -> Classification:
    return Classification(
        model=NAME, weights=str(weights), in_channels=10, num_classes=10, **kwargs
    )


@pytest.mark.parametrize('kind', ['export', 'training'])
@pytest.mark.parametrize('freeze_backbone', [True, False])
def test_torchgeos_classification_trains_on_the_pretrained_encoder(
    pretrained: dict[str, Path],
    eurosat_root: Path,
    tmp_path: Path,
    kind: str,
    freeze_backbone: bool,
) -> None:
    task = classification(pretrained[kind], freeze_backbone=freeze_backbone)
    expected = read_weights(pretrained['export']).encoder
    loaded = task.model.state_dict()
    # Every pretrained tensor is in the network, and only the head is not pretrained.
    assert set(loaded) - set(expected) == {'head.weight', 'head.bias'}
    for key, value in expected.items():
        assert torch.equal(loaded[key], value), key

    datamodule = EuroSATDataModule(
        root=eurosat_root, bands=SENTINEL2_TEN_BANDS, batch_size=28
    )
    run = quiet_trainer(tmp_path, max_epochs=1)
    run.fit(task, datamodule)
    metrics = run.test(task, datamodule, verbose=False)[0]
    assert 0 <= metrics['test_OverallAccuracy'] <= 1
    trained = task.model.state_dict()
    same = torch.equal(
        trained['blocks.0.attn.qkv.weight'], expected['blocks.0.attn.qkv.weight']
    )
    assert same == freeze_backbone


def test_wrong_band_count_is_refused_instead_of_losing_the_first_layer(
    pretrained: dict[str, Path],
) -> None:
    with (
        pytest.warns(UserWarning, match='input channels'),
        pytest.raises(ValueError, match='weights: this encoder takes a first layer'),
    ):
        Classification(
            model=NAME,
            weights=str(pretrained['export']),
            in_channels=13,
            num_classes=10,
        )
