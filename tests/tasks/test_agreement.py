# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights and data of the same number of bands, but not of the same bands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kornia import augmentation as K
from torchgeo.datamodules import EuroSATDataModule
from torchgeo.models import ResNet50_Weights

from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import FineTuning
from torchgeo_sigmae._compat import Classification, SemanticSegmentation
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.tasks.agreement import check_bands, match_normalization
from torchgeo_sigmae.weights import read_weights, write_weights

MODEL = 'sigmae_vit_tiny_patch8'
S2MAE, SATMAE = 's2mae_vit_tiny_patch8', 'satmae_vit_tiny_patch8'


@pytest.fixture(scope='module')
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('encoder') / 'encoder.pth'
    small_task(size=64).export(path)
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
        known = read_weights(encoder)
        known.info.update(change)
        write_weights(known, tmp_path / 'changed.pth')
        check_bands(tmp_path / 'changed.pth', gives(*SHUFFLED))


def test_fine_tuning_checks(encoder: Path, eurosat_root: Path, tmp_path: Path) -> None:
    """Through TorchGeo's own datamodule and task, before anything is trained."""

    def fit(bands: tuple[str, ...], weights: Path | None) -> None:
        run = quiet_trainer(
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


def raw_and(normalized_by: tuple[float, float]) -> tuple[Any, torch.Tensor, Any]:
    """Raw images, the same as a datamodule gives them, and the datamodule."""
    raw = 4000 * torch.rand(2, 10, 64, 64)
    mean, std = normalized_by
    means = torch.linspace(mean, 1.5 * mean, 10)
    stds = torch.linspace(std, 2 * std, 10)
    datamodule = EuroSATDataModule(root='nowhere', bands=SENTINEL2_TEN_BANDS)
    datamodule.aug = K.AugmentationSequential(
        K.Normalize(means, stds), data_keys=None, keepdim=True
    )
    return raw, datamodule.aug({'image': raw})['image'], datamodule


def as_pretrained(raw: torch.Tensor) -> torch.Tensor:
    """What training.task tells of its data."""
    return (raw - 3000.0) / 2000.0


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        (MODEL, {}),
        ('vit_tiny_patch16_224', {}),
        (SATMAE, {}),
        (SATMAE, {'positions': 'sincos'}),
    ],
)
def test_the_first_layer_makes_up_for_another_normalisation(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    size = 224 if '224' in name else 96  # those that TorchGeo builds
    pretraining = small_task(model=name, size=size, **options)
    pretraining.export(tmp_path / 'encoder.pth')
    path = str(tmp_path / 'encoder.pth')
    made = Classification(name, weights=path, in_channels=10, num_classes=10)
    raw, given, datamodule = raw_and((500.0, 300.0))
    raw, given = (F.interpolate(x, size) for x in (raw, given))
    pretraining.eval()
    made.eval()
    with torch.no_grad():
        expected = pretraining.model.encoder.forward_features(as_pretrained(raw))
        before = made.model.forward_features(given)
        for _ in range(2):  # the second time there is nothing left to do
            match_normalization(made.model, path, datamodule)
        found = made.model.forward_features(given)
    assert not torch.allclose(before, expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_what_was_trained_since_is_left_alone(encoder: Path) -> None:
    made = Classification(MODEL, weights=str(encoder), in_channels=10, num_classes=10)
    _, _, datamodule = raw_and((500.0, 300.0))
    kernel = made.model.patch_embed.proj.weight
    with torch.no_grad():
        kernel.mul_(1.01)
    before = kernel.clone()
    match_normalization(made.model, str(encoder), datamodule)
    assert torch.equal(kernel, before)


@pytest.mark.parametrize(
    ('normalized_by', 'model', 'options', 'message'),
    [
        ((0.3, 0.2), MODEL, {}, 'raw values are 0.000[0-9]* times theirs'),
        ((500.0, 300.0), S2MAE, {}, 'first layer of S2MAEViT cannot make up'),
        (
            (500.0, 300.0),
            SATMAE,
            {'positions': 'vanilla'},
            'first layer of SatMAEViT cannot make up',
        ),
    ],
)
def test_what_cannot_be_made_up_for_is_said(
    normalized_by: tuple[float, float],
    model: str,
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    path = str(tmp_path / 'encoder.pth')
    small_task(model=model, size=64, **options).export(path)
    made = Classification(model, weights=path, in_channels=10, num_classes=10)
    before = made.model.state_dict()['patch_embed.proj.weight'].clone()
    _, _, datamodule = raw_and(normalized_by)
    with pytest.warns(UserWarning, match=message):
        match_normalization(made.model, path, datamodule)
    assert torch.equal(made.model.patch_embed.proj.weight, before)


def test_where_nothing_is_known_nothing_is_done(encoder: Path, tmp_path: Path) -> None:
    made = Classification(MODEL, weights=str(encoder), in_channels=10, num_classes=10)
    before = made.model.patch_embed.proj.weight.clone()
    known = read_weights(encoder)
    known.info['mean'] = None
    write_weights(known, tmp_path / 'changed.pth')
    _, _, datamodule = raw_and((500.0, 300.0))
    for weights, data in (
        (tmp_path / 'changed.pth', datamodule),
        (None, datamodule),
        ('nothing', datamodule),
        (encoder, None),
        (encoder, object()),
    ):
        match_normalization(made.model, weights, data)
    _, _, same = raw_and((3000.0, 2000.0))
    same.aug = K.AugmentationSequential(
        K.Normalize(torch.full((10,), 3000.0), torch.full((10,), 2000.0)),
        data_keys=None,
    )
    match_normalization(made.model, encoder, same)
    assert torch.equal(made.model.patch_embed.proj.weight, before)


@pytest.mark.parametrize('wanted', [True, False])
def test_fine_tuning_matches(
    encoder: Path, eurosat_root: Path, tmp_path: Path, wanted: bool
) -> None:
    made = Classification(MODEL, weights=str(encoder), in_channels=10, num_classes=10)
    before = made.model.patch_embed.proj.weight.clone()
    tuning = FineTuning(lr=1e-12, weight_decay=0, match_normalization=wanted)
    run = quiet_trainer(tmp_path, callbacks=[tuning], max_steps=1, limit_val_batches=0)
    run.fit(
        made,
        EuroSATDataModule(batch_size=2, root=eurosat_root, bands=SENTINEL2_TEN_BANDS),
    )
    change = (made.model.patch_embed.proj.weight - before).abs().max()
    assert (float(change) > 1e-4) == wanted
