# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import re
import warnings
from pathlib import Path

import kornia.augmentation as K
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torchgeo.datamodules import (
    BigEarthNetDataModule,
    EuroSATDataModule,
    OSCDDataModule,
)

from torchgeo_sigmae import BatchSpec, SyntheticSentinel2DataModule
from torchgeo_sigmae.bands import (
    BIGEARTHNET_BANDS,
    EUROSAT_BANDS,
    OSCD_BANDS,
    SENTINEL2_TEN_BANDS,
    BandSet,
)
from torchgeo_sigmae.datamodules.inspect import (
    datamodule_bands,
    datamodule_normalization,
    normalizes,
)
from torchgeo_sigmae.tasks.statistics import BatchStatistics, resolve_statistics

TEN = SENTINEL2_TEN_BANDS


def resolve(
    datamodule: object = None, earlier: BatchStatistics | None = None, **spec
) -> BatchStatistics:
    return resolve_statistics(BatchSpec(**spec), BandSet(TEN), datamodule, earlier)


@pytest.mark.parametrize(
    ('datamodule', 'bands'),
    [
        (EuroSATDataModule(), EUROSAT_BANDS),
        (EuroSATDataModule(bands=('B04', 'B8A')), ('B04', 'B8A')),
        (OSCDDataModule(), OSCD_BANDS),
        (OSCDDataModule(bands=('B04', 'B8A')), ('B04', 'B8A')),
        (BigEarthNetDataModule(bands='s2'), BIGEARTHNET_BANDS),
        (BigEarthNetDataModule(), ('VV', 'VH', *BIGEARTHNET_BANDS)),
        (BigEarthNetDataModule(bands='s1'), ('VV', 'VH')),
        (SyntheticSentinel2DataModule(), TEN),
        (LightningDataModule(), None),
        (None, None),
    ],
)
def test_the_channel_order_of_torchgeos_datamodules(datamodule, bands) -> None:
    assert datamodule_bands(datamodule) == bands


def test_eurosat_bands_are_selected_by_name() -> None:
    statistics = resolve(EuroSATDataModule())
    assert statistics.channels == (1, 2, 3, 4, 5, 6, 7, 12, 10, 11)
    image = torch.arange(13.0).view(1, 13, 1, 1)
    assert statistics.select(image).flatten().tolist() == list(statistics.channels)
    means = [EuroSATDataModule().mean[i].item() for i in statistics.channels]
    assert statistics.model_mean == pytest.approx(means)


def test_bigearthnets_twelve_bands_become_ten_and_min_range_is_undone() -> None:
    datamodule = BigEarthNetDataModule(bands='s2')
    statistics = resolve(datamodule)
    assert len(statistics.channels) == 10
    raw = torch.rand(2, 12, 4, 4) * 9000
    batch = (raw - datamodule.mean.view(-1, 1, 1)) / datamodule.std.view(-1, 1, 1)
    actual = statistics.reflectance(statistics.select(batch))
    torch.testing.assert_close(actual, statistics.select(raw) * 1e-4)
    torch.testing.assert_close(statistics.normalize(raw), batch)


def test_radar_channels_are_left_alone() -> None:
    statistics = resolve(BigEarthNetDataModule())
    assert statistics.data_bands[:2] == ('VV', 'VH')
    assert min(statistics.channels) >= 2


def test_arguments_come_before_the_datamodule() -> None:
    statistics = resolve(EuroSATDataModule(bands=TEN), mean=1.0, std=[2.0] * 10)
    assert set(statistics.mean) == {1.0}
    assert set(statistics.std) == {2.0}
    assert resolve(mean=0, std=1).data_bands == TEN


def test_reflectance_has_scale_and_offset_and_any_dimension() -> None:
    statistics = resolve(mean=100.0, std=2.0, scale=1e-4, offset=-0.1)
    x = torch.randn(5, 10)
    torch.testing.assert_close(
        statistics.reflectance(x, dim=-1), (x * 2 + 100) * 1e-4 - 0.1
    )


def test_plain_values_survive_a_checkpoint(tmp_path: Path) -> None:
    statistics = resolve(EuroSATDataModule())
    torch.save(statistics.as_dict(), tmp_path / 'x.pt')
    values = torch.load(tmp_path / 'x.pt', weights_only=True)
    assert BatchStatistics.from_dict(values) == statistics


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({}, r'mean: not known \(no datamodule is attached\).*mean=0, std=1'),
        ({'mean': 0}, 'std: not known'),
        ({'mean': [0.0, 1.0], 'std': 1}, 'mean: 2 values for the 10 channels'),
        ({'mean': 0, 'std': [1.0] * 9 + [0.0]}, 'std: .* must be finite, and'),
        ({'mean': 0, 'std': 1, 'bands': ['B04']}, 'B02, B03, .* not found in'),
        (
            {'datamodule': LightningDataModule()},
            r'mean: not known \(LightningDataModule has none\)',
        ),
        ({'datamodule': BigEarthNetDataModule(bands='s1')}, 'bands: B02, B03'),
    ],
)
def test_nothing_is_guessed(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(**arguments)


def test_torchgeos_attributes_prove_nothing() -> None:
    """The base class has mean 0 and std 255, whether it normalizes or not."""
    datamodule = EuroSATDataModule()
    datamodule.aug = K.AugmentationSequential(
        K.RandomHorizontalFlip(), data_keys=None, keepdim=True
    )
    assert datamodule_normalization(datamodule) is None
    with pytest.raises(ValueError, match=r'mean: not known .EuroSATDataModule'):
        resolve(datamodule)
    datamodule.train_aug = EuroSATDataModule().aug
    mean, _ = datamodule_normalization(datamodule)
    assert torch.equal(mean, EuroSATDataModule().mean)
    datamodule.val_aug = OSCDDataModule().aug
    with pytest.raises(ValueError, match='normalizes differently in training'):
        resolve(datamodule)
    # What the message advises helps.
    assert resolve(datamodule, mean=1.0, std=2.0).std == (2.0,) * 13
    assert normalizes(datamodule)


def test_negative_std_of_channels_the_model_does_not_see() -> None:
    bands = ('VV', *TEN)
    statistics = resolve(bands=bands, mean=0, std=[-25.0] + [1e4] * 10)
    assert statistics.model_std == [1e4] * 10


def test_statistics_of_an_earlier_run_are_kept() -> None:
    earlier = resolve(EuroSATDataModule())
    assert resolve(LightningDataModule(), earlier=earlier) is earlier
    assert resolve(earlier=earlier, mean=0, std=1).mean == (0.0,) * 10


@pytest.mark.parametrize(
    ('value', 'scale', 'advice'),
    [
        (
            3000.0,
            1.0,
            r'scale 1.0 .* 3000 in the median .*BatchSpec\(scale=1e-4',
        ),
        (
            0.3,
            1e-4,
            r'scale 0.0001 .* 3e-05 at most.* Pass batch=.* scale=1 for refl',
        ),
        (3000.0, 1e-4, None),
        (0.3, 1.0, None),
        (12000.0, 1e-4, None),  # snow and clouds
        (60.0, 1e-4, None),  # deep water
    ],
)
@pytest.mark.parametrize('normalized', [True, False])
def test_digital_numbers_and_reflectance_mixed_up(
    value: float, scale: float, advice: str | None, normalized: bool
) -> None:
    statistics = resolve(mean=500.0, std=200.0, scale=scale)
    image = torch.full((2, 10, 4, 4), value)
    image[0, :, :2] = torch.nan
    if normalized:
        image = statistics.normalize(image)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        statistics.check_scale(image, normalized)
        statistics.check_scale(image * torch.nan, normalized)
    assert len(seen) == (advice is not None)
    if advice is not None:
        assert re.search(advice, str(seen[0].message))
