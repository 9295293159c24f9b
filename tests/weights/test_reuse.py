# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Checkpoints of TorchGeo's tasks, without FineTuning, as weights of other tasks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.downstream import torchgeo_task
from helpers.training import quiet_trainer
from torchgeo_sigmae import SIGMAETask, adapt_bands
from torchgeo_sigmae._compat import (
    Classification,
)
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.weights import read_weights

pytestmark = pytest.mark.usefixtures('narrow_models')

LANDSAT = BandSet(['B2', 'B3', 'B4', 'B5', 'B6', 'B7'], 'landsat8')


def saved(task: Any, path: Path) -> str:
    """Write a checkpoint with Lightning, without training."""
    trainer = quiet_trainer()
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    return str(path)


def encoder_of(task: Any) -> dict[str, Tensor]:
    model = task.model
    state = getattr(model, 'encoder', model).state_dict()
    return {key: x for key, x in state.items() if not key.startswith('head.')}


DENSE = ('upernet', 'pixelwise', 'fcsiamdiff')


@pytest.mark.parametrize('family', ['sigmae', 's2mae', 'satmae'])
def test_a_classifier_is_weights_for_every_task(family: str, tmp_path: Path) -> None:
    model = f'{family}_vit_tiny_patch8'
    made = torchgeo_task('classification', model, num_classes=4)
    path = saved(made, tmp_path / 'x.ckpt')
    expected = encoder_of(made)
    for kind in ('classification', 'regression', *DENSE):
        loaded = encoder_of(torchgeo_task(kind, model, weights=path))
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(loaded[key], x) for key, x in expected.items())


@pytest.mark.parametrize('kind', DENSE)
def test_a_dense_model_is_weights_for_every_dense_task(
    kind: str, tmp_path: Path
) -> None:
    model = 'sigmae_vit_tiny_patch8'
    made = torchgeo_task(
        kind, model, **({'num_classes': 4} if kind == 'upernet' else {})
    )
    path = saved(made, tmp_path / 'x.ckpt')
    expected = encoder_of(made)
    for other in DENSE:
        loaded = encoder_of(torchgeo_task(other, model, weights=path))
        assert all(torch.equal(loaded[key], x) for key, x in expected.items())
    # Others take the encoder alone, TorchGeo looks for plain keys there.
    adapt_bands(
        path,
        SENTINEL2_TEN_BANDS,
        tmp_path / 'encoder.pth',
        source_bands=SENTINEL2_TEN_BANDS,
    )
    path = str(tmp_path / 'encoder.pth')
    loaded = encoder_of(torchgeo_task('regression', model, weights=path))
    assert all(torch.equal(loaded[key], x) for key, x in expected.items())


@pytest.mark.parametrize('kind', ['classification', 'upernet'])
def test_bands_that_a_checkpoint_does_not_name(kind: str, tmp_path: Path) -> None:
    made = torchgeo_task(kind, 'sigmae_vit_tiny_patch8')
    path = saved(made, tmp_path / 'x.ckpt')
    weights, expected = read_weights(path), encoder_of(made)
    assert weights.info['model'] == 'sigmae_vit_tiny_patch8'
    assert weights.decoder == {}
    assert weights.encoder.keys() == expected.keys()
    assert all(torch.equal(weights.encoder[key], x) for key, x in expected.items())
    SIGMAETask('sigmae_vit_tiny_patch8', weights=path)
    with pytest.raises(ValueError, match=r'does not name its bands.*: bands=, --bands'):
        FrozenEncoder.load(path)
    with pytest.raises(ValueError, match='source_bands=, --source-bands'):
        adapt_bands(path, ['B04'], tmp_path / 'rgb.pth')
    frozen = FrozenEncoder.load(path, SENTINEL2_TEN_BANDS)
    assert frozen.bands == SENTINEL2_TEN_BANDS
    named = read_weights(path, BandSet(SENTINEL2_TEN_BANDS))
    assert named.bands is not None
    assert named.bands.matches(frozen.bands)
    target = tmp_path / 'landsat.pth'
    main(
        [
            *('adapt-bands', path, '-o', str(target)),
            *('--bands', *LANDSAT, '--sensor', 'landsat8'),
            *('--source-bands', *SENTINEL2_TEN_BANDS),
        ]
    )
    landsat = read_weights(target)
    assert landsat.bands is not None
    assert landsat.bands.matches(LANDSAT)
    assert FrozenEncoder.load(target).bands.matches(LANDSAT)
    # And on from there, to any task.
    Classification(
        'sigmae_vit_tiny_patch8', weights=str(target), in_channels=6, num_classes=2
    )
