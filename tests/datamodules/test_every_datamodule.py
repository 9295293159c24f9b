# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo's multispectral datamodules, on the data of TorchGeo's own tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torchgeo.datamodules as tg
from lightning.pytorch import LightningDataModule
from torchgeo.datasets.errors import DatasetNotFoundError, DependencyNotFoundError

from helpers.training import quiet_trainer
from torchgeo_sigmae import BatchSpec, SIGMAETask
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.datamodules.inspect import (
    datamodule_bands,
    datamodule_dates,
    datamodule_normalization,
    datamodule_sensor,
)

AUSTRIA = {f'{split}_countries': ['austria'] for split in ('train', 'val', 'test')}
RAW = BatchSpec(mean=0.0, std=1.0, scale=1.0, normalize=True)
TEN = SENTINEL2_TEN_BANDS
THREE = ['NDVI', 'NDWI', 'NDBI']

#: Name, arguments but root, arguments of the task, bands, sensor, indices.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int, str, list[str]]] = {
    'agrifieldnet': (
        'AgriFieldNet', {'patch_size': 16, 'length': 8}, {}, 10, 'sentinel2', THREE,
    ),
    'ftw': (
        'FieldsOfTheWorld', AUSTRIA, {}, 4, 'sentinel2', ['NDVI', 'NDWI'],
    ),
    'hyspecnet': ('HySpecNet11k', {}, {}, 202, 'enmap', THREE),
    'l7irish': ('L7Irish', {'patch_size': 16, 'length': 4}, {}, 9, 'landsat7', THREE),
    'l8biome': ('L8Biome', {'patch_size': 16, 'length': 4}, {}, 11, 'landsat8', THREE),
    'south_africa_crop_type': (
        'SouthAfricaCropType', {'patch_size': 16, 'length': 4}, {}, 10, 'sentinel2',
        THREE,
    ),
    'fire_risk': ('FireRisk', {}, {}, 3, 'naip', []),
    'nasa_marine_debris': ('NASAMarineDebris', {}, {}, 3, 'planetscope', []),
    'treesatai': ('TreeSatAI', {'patch_size': 32}, {}, 10, 'sentinel2', THREE),
    'substation': (
        'Substation',
        {'mask_2d': True, 'timepoint_aggregation': 'concat', 'num_of_timepoints': 4},
        {'batch': RAW}, 10, 'sentinel2', THREE,
    ),
    'cabuar': ('CaBuAr', {}, {}, 10, 'sentinel2', THREE),
    'chabud': ('ChaBuD', {}, {}, 10, 'sentinel2', THREE),
    'so2sat': ('So2Sat', {'band_set': 's2'}, {}, 10, 'sentinel2', THREE),
    'sen12ms': ('SEN12MS', {'band_set': 'all'}, {}, 10, 'sentinel2', THREE),
    'pastis': ('PASTIS', {}, {}, 10, 'sentinel2', THREE),
}  # fmt: skip


def make(name: str, root: Path | str, **options: Any) -> LightningDataModule:
    datamodule = getattr(tg, f'{name}DataModule')
    spatial = issubclass(datamodule, tg.GeoDataModule)
    options = {'paths' if spatial else 'root': root, 'batch_size': 1, **options}
    return datamodule(**options)


# The values of TorchGeo's test data are random numbers.
@pytest.mark.filterwarnings('ignore:batch.scale')
@pytest.mark.usefixtures('narrow_models')
@pytest.mark.parametrize('folder', list(CASES))
def test_pretrains_with_no_more_than_its_root(
    folder: str, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    name, options, arguments, count, sensor, indices = CASES[folder]
    root = real_data('torchgeo') / folder
    task = SIGMAETask(
        'sigmae_vit_tiny_patch8', size=32, decoder_dim=32, decoder_depth=1,
        decoder_num_heads=2, **arguments,
    )  # fmt: skip
    trainer = quiet_trainer(tmp_path, max_steps=2, limit_val_batches=1)
    try:
        datamodule = make(name, root, **options)
        trainer.fit(task, datamodule)
    except (DatasetNotFoundError, DependencyNotFoundError, FileNotFoundError) as error:
        pytest.skip(f'{name}: {str(error).splitlines()[0]}')
    except RuntimeError as error:
        if 'corrupted' not in str(error):
            raise
        pytest.skip(f'{name}: the data are of another version: {error}')
    assert trainer.global_step == 2
    assert len(task.bands) == count
    assert task.bands.sensor.name == sensor
    assert task.hparams['indices'] == indices
    assert task.hparams['masking'] == ('saliency' if indices else 'random')
    assert trainer.callback_metrics['train_loss'].isfinite()
    task.export(tmp_path / 'encoder.pth')


FIRST = {'timepoint_aggregation': 'first'}
LANDSAT7 = ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B6', 'B7', 'B8')


@pytest.mark.parametrize(
    ('name', 'options', 'sensor', 'bands', 'dates'),
    [
        ('SSL4EOL', {'split': 'tm_toa'}, 'landsat5', (*LANDSAT7[:6], 'B7'), 1),
        ('SSL4EOL', {'split': 'etm_sr', 'seasons': 2}, 'landsat7', None, 2),
        ('SSL4EOL', {'split': 'oli_tirs_toa'}, 'landsat8', None, 1),
        ('SSL4EOLBenchmark', {'sensor': 'etm_sr'}, 'landsat7', None, 1),
        ('SSL4EOLBenchmark', {'sensor': 'oli_sr'}, 'landsat8', None, 1),
        ('SeasonalContrastS2', {'seasons': 2}, None, ('B04', 'B03', 'B02'), 2),
        ('BigEarthNet', {'bands': 's1'}, None, ('VV', 'VH'), 1),
        ('SSL4EOS12', {'split': 's1', 'seasons': 4}, None, ('VV', 'VH'), 4),
        ('Substation', {'bands': [3, 2, 1], **FIRST}, None, ('B04', 'B03', 'B02'), 1),
    ],
)
def test_bands_sensor_and_dates_of_a_datamodule(
    name: str,
    options: dict[str, Any],
    sensor: str | None,
    bands: tuple[str, ...] | None,
    dates: int,
) -> None:
    datamodule = make(name, 'nowhere', **options)
    actual = datamodule_bands(datamodule)
    assert actual is not None
    assert bands in (None, actual)
    named = datamodule_sensor(datamodule)
    assert (named and named.name) == sensor
    # Without a name it is guessed, but never Landsat.
    assert actual.sensor.name == (
        sensor or ('sentinel1' if 'VV' in actual else 'sentinel2')
    )
    assert datamodule_dates(datamodule) == dates


def test_normalizations_one_after_the_other_are_one() -> None:
    """SeCo's: to [0, 1], to 8 bit, and by ImageNet's numbers, for every season."""
    datamodule = make('SeasonalContrastS2', 'nowhere', seasons=2)
    mean, std = datamodule_normalization(datamodule)
    raw, low, high = 50.0, 3.0, 88.0
    expected = (((raw - low) / (high - low) * 255) - 0.485) / 0.229
    assert ((raw - mean[0]) / std[0]).item() == pytest.approx(expected, rel=1e-5)
    assert mean.shape == std.shape == (3,)


def test_a_sensor_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    task = SIGMAETask(
        'sigmae_vit_tiny_patch8', bands=['B2', 'B3', 'B4', 'B5', 'B6'], size=32,
        indices=['NDVI'], masking='random', sensor='landsat9',
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"sensor: .* has bands of landsat7.*'landsat7'"
    ):
        task._resolve_statistics(make('SSL4EOL', 'nowhere', split='etm_sr'))
