# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights and data of the same number of bands, but not of the same bands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchgeo.datamodules import EuroSATDataModule
from torchgeo.models import ResNet50_Weights
from training import task, trainer

from torchgeo_sigmae import FineTuning
from torchgeo_sigmae._compat import Classification, SemanticSegmentation
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.models import read_encoder
from torchgeo_sigmae.models.checkpoint import write_encoder
from torchgeo_sigmae.tasks.agreement import check_bands

MODEL = 'sigmae_vit_tiny_patch8'


@pytest.fixture(scope='module')
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('encoder') / 'encoder.pth'
    task(size=64).export(path)
    return path


def gives(*bands: str) -> Any:
    return SimpleNamespace(bands=bands)


SHUFFLED = SENTINEL2_TEN_BANDS[::-1]


@pytest.mark.parametrize(
    'bands',
    [SHUFFLED, (*SENTINEL2_TEN_BANDS[:-1], 'B09'), [b.lower() for b in SHUFFLED]],
)
def test_other_bands_are_refused(encoder: Path, bands: tuple[str, ...]) -> None:
    message = (
        r"weights: '.*encoder.pth' was made for the bands \['B02', 'B03', .*\], but "
        rf"SimpleNamespace gives \['{bands[0].upper()}', .*\]. Pass bands=.* or write "
        r'a file for its bands: torchgeo-sigmae adapt-bands .*encoder.pth --bands '
        f'{bands[0].upper()} .* -o'
    )
    for weights in (encoder, str(encoder)):
        with pytest.raises(ValueError, match=message):
            check_bands(weights, gives(*bands))


@pytest.mark.parametrize(
    'bands',
    [
        SENTINEL2_TEN_BANDS,
        [band.lower().replace('b0', 'b') for band in SENTINEL2_TEN_BANDS],
        # Another number is the task's to refuse.
        SENTINEL2_TEN_BANDS[:3],
        # What these are nobody can tell.
        [f'channel{i}' for i in range(10)],
    ],
)
def test_what_agrees_or_cannot_be_told_is_not(encoder: Path, bands: list[str]) -> None:
    check_bands(encoder, gives(*bands))


def test_nothing_is_known_about_the_weights_of_others(
    encoder: Path, tmp_path: Path
) -> None:
    torch.save({'state_dict': {}}, tmp_path / 'other.pth')
    moco = ResNet50_Weights.SENTINEL2_ALL_MOCO
    for weights in (None, True, False, tmp_path / 'other.pth', 'nothing', moco):
        check_bands(weights, gives(*SHUFFLED))
    check_bands(encoder, None)
    check_bands(encoder, object())


def test_files_without_bands_or_of_an_own_sensor(encoder: Path, tmp_path: Path) -> None:
    for change in ({'bands': None}, {'sensor': 'drone'}):
        known = read_encoder(encoder)
        known.hyper_parameters.update(change)
        write_encoder(known, tmp_path / 'changed.pth')
        check_bands(tmp_path / 'changed.pth', gives(*SHUFFLED))


def test_fine_tuning_checks(encoder: Path, eurosat_root: Path, tmp_path: Path) -> None:
    """Through TorchGeo's own datamodule and task, before anything is trained."""

    def fit(bands: tuple[str, ...], weights: Path | None) -> None:
        run = trainer(
            tmp_path, callbacks=[FineTuning()], max_steps=1, limit_val_batches=0
        )
        path = None if weights is None else str(weights)
        made = Classification(MODEL, weights=path, in_channels=10, num_classes=10)
        data = EuroSATDataModule(batch_size=2, root=eurosat_root, bands=bands)
        run.fit(made, data)
        assert run.global_step == 1

    with pytest.raises(ValueError, match='EuroSATDataModule gives'):
        fit(SHUFFLED, encoder)
    fit(SENTINEL2_TEN_BANDS, encoder)
    fit(SHUFFLED, None)


def test_every_task_keeps_its_weights_where_they_are_looked_for(encoder: Path) -> None:
    made = SemanticSegmentation(
        'unet', MODEL, weights=str(encoder), in_channels=10, num_classes=2
    )
    assert made.weights == str(encoder)
