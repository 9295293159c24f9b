# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights and data of the same number of bands, but not of the same bands."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kornia import augmentation as K
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from torchgeo.datamodules import EuroSATDataModule, NonGeoDataModule
from torchgeo.models import ResNet50_Weights

from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import FineTuning
from torchgeo_sigmae._compat import Classification, SemanticSegmentation
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.callbacks.batch_values import warn_of_values
from torchgeo_sigmae.callbacks.pretrained_inputs import (
    check_bands,
    match_normalization,
    read_own_weights,
)
from torchgeo_sigmae.datamodules.inspect import datamodule_normalization
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.weights import adapt_bands, read_weights, write_weights

pytestmark = pytest.mark.usefixtures('narrow_models')

MODEL = 'sigmae_vit_tiny_patch8'
S2MAE, SATMAE = 's2mae_vit_tiny_patch8', 'satmae_vit_tiny_patch8'


@pytest.fixture(scope='module')
def encoder(narrow_models: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
            check_bands(read_own_weights(weights), gives(*bands))


@pytest.mark.parametrize(
    'bands',
    [
        SENTINEL2_TEN_BANDS,
        [band.lower().replace('b0', 'b') for band in SENTINEL2_TEN_BANDS],
        # Another number is the task's to refuse.
        SENTINEL2_TEN_BANDS[:3],
        # Names that say nothing.
        [f'channel{i}' for i in range(10)],
    ],
)
def test_equal_and_unidentifiable_bands_pass(encoder: Path, bands: list[str]) -> None:
    check_bands(read_own_weights(encoder), gives(*bands))


def test_weights_without_bands_and_unknown_data_pass(
    encoder: Path, tmp_path: Path
) -> None:
    torch.save({'state_dict': {}}, tmp_path / 'other.pth')
    moco = ResNet50_Weights.SENTINEL2_ALL_MOCO
    for weights in (None, True, False, tmp_path / 'other.pth', 'nothing', moco):
        check_bands(read_own_weights(weights), gives(*SHUFFLED))
    check_bands(read_own_weights(encoder), None)
    check_bands(read_own_weights(encoder), object())


def test_files_without_bands_or_of_a_custom_sensor_pass(
    encoder: Path, tmp_path: Path
) -> None:
    for change in ({'bands': None}, {'sensor': 'drone'}):
        weights = read_weights(encoder)
        weights.info.update(change)
        write_weights(weights, tmp_path / 'changed.pth')
        check_bands(read_own_weights(tmp_path / 'changed.pth'), gives(*SHUFFLED))


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
    """Normalized as in pretraining by small_task."""
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
def test_the_first_layer_makes_up_for_another_normalization(
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
            match_normalization(made.model, read_own_weights(path), datamodule)
        actual = made.model.forward_features(given)
    assert not torch.allclose(before, expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_what_was_trained_since_is_left_alone(encoder: Path) -> None:
    made = Classification(MODEL, weights=str(encoder), in_channels=10, num_classes=10)
    _, _, datamodule = raw_and((500.0, 300.0))
    kernel = made.model.patch_embed.proj.weight
    with torch.no_grad():
        kernel.mul_(1.01)
    before = kernel.clone()
    match_normalization(made.model, read_own_weights(str(encoder)), datamodule)
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
        match_normalization(made.model, read_own_weights(path), datamodule)
    assert torch.equal(made.model.patch_embed.proj.weight, before)


def test_the_first_layer_stays_without_statistics(
    encoder: Path, tmp_path: Path
) -> None:
    made = Classification(MODEL, weights=str(encoder), in_channels=10, num_classes=10)
    before = made.model.patch_embed.proj.weight.clone()
    without = read_weights(encoder)
    without.info['mean'] = None
    write_weights(without, tmp_path / 'changed.pth')
    _, _, datamodule = raw_and((500.0, 300.0))
    for weights, data in (
        (tmp_path / 'changed.pth', datamodule),
        (None, datamodule),
        ('nothing', datamodule),
        (encoder, None),
        (encoder, object()),
    ):
        match_normalization(made.model, read_own_weights(weights), data)
    _, _, same = raw_and((3000.0, 2000.0))
    same.aug = K.AugmentationSequential(
        K.Normalize(torch.full((10,), 3000.0), torch.full((10,), 2000.0)),
        data_keys=None,
    )
    match_normalization(made.model, read_own_weights(encoder), same)
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


class Images(Dataset[dict[str, Any]]):
    """Bands of 2000 on average, with a standard deviation of 900, in any unit."""

    def __init__(self, factor: float = 1.0, shift: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        raw = 2000 + 900 * torch.randn(8, 10, 64, 64, generator=generator)
        raw = raw.clamp(min=1)
        raw[0, :, :8] = 0  # padding
        self.images = (raw - shift) * factor
        self.images[1, 3, 0, 0] = torch.nan if factor < 0 else 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'image': self.images[index], 'label': torch.tensor(index % 2)}


def warnings_of_values(weights: Any, data: Any, **kwargs: Any) -> list[str]:
    """Fine-tune for two steps; what was said about the values."""
    made = Classification(MODEL, weights=weights, in_channels=10, num_classes=2)
    run = quiet_trainer(callbacks=[FineTuning(**kwargs)], max_steps=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        if isinstance(data, Dataset):
            run.fit(made, DataLoader(data, 4))
        else:
            run.fit(made, data)
    return [text for w in caught if 'first training batch' in (text := str(w.message))]


@pytest.mark.parametrize(
    ('factor', 'shift', 'unit', 'datamodule'),
    [
        (1.0, 0.0, r'The mean of the weights is about 3000\.$', False),
        (1.0, 0.0, r'The mean of the weights is about 3000\.$', True),
        (1e-4, 0.0, r'your values 0\.2\d*: convert mean and std to the unit', True),
        (1e-4, 1000.0, 'that of your values', False),
        (255 / 4000, 0.0, 'that of your values', False),
        (1 / 4000, 0.0, 'that of your values', False),
        (1 / 5000, 5000.0, 'that of your values', False),
    ],
)
def test_values_that_are_not_normalized_are_reported(
    encoder: Path, factor: float, shift: float, unit: str, datamodule: bool
) -> None:
    images = Images(factor, shift)
    data: Any = images
    if datamodule:
        data = LightningDataModule.from_datasets(images, batch_size=4)
    (text,) = warnings_of_values(str(encoder), data)
    assert re.search(
        r"weights: '.*encoder.pth' expects bands with mean 0 and standard deviation 1, "
        r'but those of the first training batch have means of \S+ to \S+ and standard '
        r'deviations of \S+ to \S+\. Normalize the images .*read_weights\(',
        text,
    )
    assert re.search(unit, text)
    mean = images.images.mean()
    low, high = re.findall(r'means of (\S+) to (\S+)', text)[0]
    # Without the padding.
    assert float(low) == pytest.approx(float(mean), rel=0.2)
    assert float(low) <= float(high)


def test_normalized_values_are_not(encoder: Path) -> None:
    assert not warnings_of_values(str(encoder), Images(1 / 900, 2000.0))
    assert not warnings_of_values(str(encoder), Images(1 / 2000, 3000.0))
    # Random weights expect nothing.
    assert not warnings_of_values(None, Images())


@pytest.mark.parametrize('wanted', [True, False])
def test_a_datamodule_that_normalizes_is_believed_by_its_values(
    encoder: Path, wanted: bool
) -> None:
    """Divided by 10,000, where the datamodule subtracts digital numbers."""

    class Normalized(NonGeoDataModule):
        def __init__(self, images: Images) -> None:
            super().__init__(Images, 4)
            self.images = images
            self.aug = K.AugmentationSequential(
                K.Normalize(torch.full((10,), 2000.0), torch.full((10,), 900.0)),
                data_keys=None,
                keepdim=True,
            )

        def setup(self, stage: str) -> None:
            self.train_dataset = self.val_dataset = self.images

    data = Normalized(Images())
    assert not warnings_of_values(str(encoder), data, match_normalization=wanted)
    data = Normalized(Images(1e-4))
    assert warnings_of_values(str(encoder), data, match_normalization=wanted)


def test_snow_is_no_mistake(encoder: Path) -> None:
    weights = read_weights(encoder)
    snow = 4 + torch.rand(4, 10, 32, 32)
    none = torch.ones(1), torch.zeros(1)
    assert warn_of_values(snow, weights, *none)
    assert warn_of_values(torch.full((4, 10, 8, 8), torch.nan), weights, *none)


@pytest.mark.parametrize('dense', [False, True])
def test_checkpoints_record_the_bands(
    encoder: Path, eurosat_root: Path, tmp_path: Path, dense: bool
) -> None:
    made: Any = Classification(
        MODEL, weights=str(encoder), in_channels=10, num_classes=10, lr=np.float64(1)
    )
    run = quiet_trainer(
        tmp_path,
        callbacks=[FineTuning(lr=np.float64(1e-3))],
        max_steps=1,
        limit_val_batches=0,
    )
    data: Any = EuroSATDataModule(
        batch_size=2, root=eurosat_root, bands=SENTINEL2_TEN_BANDS
    )
    if dense:
        made = SemanticSegmentation(
            'unet', MODEL, weights=str(encoder), in_channels=10, num_classes=2
        )
        image = torch.randn(10, 64, 64)
        mask = torch.zeros(64, 64, dtype=torch.long)
        data = DataLoader([{'image': image, 'mask': mask}] * 2, 2)
    run.fit(made, data)
    run.save_checkpoint(tmp_path / 'tuned.ckpt')
    tuned = read_weights(tmp_path / 'tuned.ckpt')
    assert tuned.bands is not None
    assert tuned.bands.matches(BandSet(SENTINEL2_TEN_BANDS))
    assert tuned.info['model'] == MODEL
    # The encoder takes what the datamodule gives now.
    mean = [3000.0] * 10 if dense else datamodule_normalization(data)[0].tolist()
    assert tuned.info['mean'] == pytest.approx(mean)
    frozen = FrozenEncoder.load(tmp_path / 'tuned.ckpt')
    raw = 4000 * torch.rand(1, 10, 64, 64)
    if not dense:
        given = data.aug({'image': raw})['image']
        tokens = made.eval().model.forward_features(given)[:, 1:].mean(dim=1)
        torch.testing.assert_close(frozen(raw), tokens, rtol=1e-3, atol=1e-3)
    adapt_bands(tmp_path / 'tuned.ckpt', ['B04', 'B03', 'B02'], tmp_path / 'rgb.pth')
