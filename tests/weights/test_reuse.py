# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Checkpoints of TorchGeo's tasks, without FineTuning, as weights of other tasks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.training import quiet_trainer
from torchgeo_sigmae import SIGMAETask, adapt_bands
from torchgeo_sigmae._compat import (
    ChangeDetection,
    Classification,
    PixelwiseRegression,
    Regression,
    SemanticSegmentation,
)
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.weights import read_weights

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


def tasks(model: str, weights: str | None = None, classes: int = 3) -> dict[str, Any]:
    """Makers of one task of each kind."""
    shared = {'in_channels': 10, 'weights': weights}
    dense = {'backbone': model, **shared}
    return {
        'classification': lambda: Classification(model, num_classes=classes, **shared),
        'regression': lambda: Regression(model, **shared),
        'segmentation': lambda: SemanticSegmentation(
            'upernet', num_classes=classes, **dense
        ),
        'pixelwise': lambda: PixelwiseRegression('unet', **dense),
        'change': lambda: ChangeDetection('fcsiamdiff', **dense),
    }


@pytest.mark.parametrize('family', ['sigmae', 's2mae', 'satmae'])
def test_a_classifier_is_weights_for_every_task(family: str, tmp_path: Path) -> None:
    model = f'{family}_vit_tiny_patch8'
    made = tasks(model, classes=4)['classification']()
    path = saved(made, tmp_path / 'x.ckpt')
    expected = encoder_of(made)
    for make in tasks(model, path).values():
        loaded = encoder_of(make())
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(loaded[key], x) for key, x in expected.items())


@pytest.mark.parametrize('kind', ['segmentation', 'pixelwise', 'change'])
def test_a_dense_model_is_weights_for_every_dense_task(
    kind: str, tmp_path: Path
) -> None:
    model = 'sigmae_vit_tiny_patch8'
    made = tasks(model, classes=4)[kind]()
    path = saved(made, tmp_path / 'x.ckpt')
    expected = encoder_of(made)
    for name, make in tasks(model, path).items():
        if name in {'segmentation', 'pixelwise', 'change'}:
            loaded = encoder_of(make())
            assert all(torch.equal(loaded[key], x) for key, x in expected.items())
    # Others take the encoder alone, TorchGeo looks for plain keys there.
    adapt_bands(
        path,
        SENTINEL2_TEN_BANDS,
        tmp_path / 'encoder.pth',
        source_bands=SENTINEL2_TEN_BANDS,
    )
    loaded = encoder_of(tasks(model, str(tmp_path / 'encoder.pth'))['regression']())
    assert all(torch.equal(loaded[key], x) for key, x in expected.items())


@pytest.mark.parametrize('kind', ['classification', 'segmentation'])
def test_bands_that_the_file_does_not_tell(kind: str, tmp_path: Path) -> None:
    path = saved(tasks('sigmae_vit_tiny_patch8')[kind](), tmp_path / 'x.ckpt')
    SIGMAETask('sigmae_vit_tiny_patch8', weights=path)
    with pytest.raises(ValueError, match=r'does not tell its bands.*: bands=, --bands'):
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
