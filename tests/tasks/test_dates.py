# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Image pairs and seasons: TorchGeo's own datamodules, every date an image."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader
from torchgeo.datamodules import (
    OSCDDataModule,
    SSL4EOLDataModule,
    SSL4EOS12DataModule,
)
from torchgeo.datasets import OSCD, SSL4EOS12

from helpers.training import SMALL as SMALL_32
from helpers.training import quiet_trainer
from torchgeo_sigmae import (
    BatchSpec,
    BitemporalAugmentation,
    PatchSaliency,
    SIGMAETask,
    bitemporal,
)
from torchgeo_sigmae._compat import ChangeDetection
from torchgeo_sigmae.bands import OSCD_BANDS
from torchgeo_sigmae.datamodules.inspect import datamodule_bands, datamodule_dates
from torchgeo_sigmae.masking import sample_noise
from torchgeo_sigmae.tasks.batch import VALID_KEY, mark_missing
from torchgeo_sigmae.tasks.statistics import BatchStatistics

pytestmark = pytest.mark.usefixtures('narrow_models')

SMALL: dict[str, Any] = {**SMALL_32, 'size': 64}


class Watch(Callback):
    """Keep the batches of a validation and what the task makes of them."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.tokens: list[Any] = []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(batch)
        self.tokens.append(pl_module._prepare(batch))

    def joined(self, name: str) -> torch.Tensor:
        return torch.cat([getattr(tokens, name) for tokens in self.tokens])


def watch_validation(
    path: Path, datamodule: Any, task: SIGMAETask | None = None
) -> tuple[SIGMAETask, Watch]:
    task = task or SIGMAETask(**SMALL)
    watch = Watch()
    quiet_trainer(path, callbacks=[watch]).validate(task, datamodule, verbose=False)
    return task, watch


@pytest.mark.parametrize('bands', [OSCD_BANDS, ('B03', 'B04', 'B08', 'B11')])
def test_oscds_saliency_in_the_task_is_that_of_the_raw_dates(
    oscd_root: Path, tmp_path: Path, bands: tuple[str, ...]
) -> None:
    datamodule = OSCDDataModule(
        root=oscd_root, bands=bands, batch_size=3, patch_size=80, val_split_pct=0.6
    )
    task = SIGMAETask(**SMALL, bands=('B03', 'B04', 'B08', 'B11'))
    task, watch = watch_validation(tmp_path, datamodule, task)
    assert isinstance(datamodule.dataset.transforms, BitemporalAugmentation)
    raw = OSCD(oscd_root, bands=bands)
    images = torch.stack([raw[i]['image'] for i in datamodule.val_dataset.indices])
    expected = PatchSaliency(bands).saliency(images.flatten(0, 1)).flatten(1)
    actual = watch.joined('saliency')
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    assert actual.shape == (6, 100)
    assert expected.std() > 0.1
    assert not torch.equal(actual[0], actual[1]), 'both dates look the same'
    assert task.statistics.dates == 1


def test_dates_of_oscd_are_cropped_alike_and_have_separate_gaps(
    oscd_root: Path, tmp_path: Path
) -> None:
    datamodule = OSCDDataModule(root=oscd_root, batch_size=5, val_split_pct=1.0)
    task, watch = watch_validation(tmp_path, datamodule)
    batch = watch.batches[0]
    raw = task.statistics.reflectance(
        task.statistics.select(batch['image'].flatten(0, 1))
    )
    before, after = (raw * 1e4).unflatten(0, (-1, 2)).unbind(1)
    seen = before.isfinite().all(dim=1)
    gain = (after - before).permute(0, 2, 3, 1)[seen]
    change = batch['mask'][:, 0][seen].unsqueeze(-1)
    expected = 20.0 + 500 * change.expand_as(gain)
    torch.testing.assert_close(gain, expected, rtol=0, atol=0.01)
    assert 0 < change.float().mean() < 0.5
    assert after.isfinite().all()
    # Region 0 lacks a stripe of 8 pixels on the first date.
    assert (~seen).sum(dim=(1, 2)).sort().values.tolist()[-2:] == [0, 8 * 64]
    pixels = watch.joined('pixels').unflatten(0, (-1, 2))
    assert (~pixels[:, 0]).sum() == 10 * 8 * 64
    assert pixels[:, 1].all()


@pytest.mark.parametrize(('split', 'seasons'), [('s2c', 1), ('s2c', 2), ('s2a', 2)])
def test_ssl4eos_saliency_in_the_task_is_that_of_the_raw_seasons(
    ssl4eo_root: Path, tmp_path: Path, split: str, seasons: int
) -> None:
    datamodule = SSL4EOS12DataModule(
        root=ssl4eo_root, split=split, seasons=seasons, batch_size=2
    )
    task, watch = watch_validation(tmp_path, datamodule)
    raw = SSL4EOS12(ssl4eo_root, split, seasons)
    bands = SSL4EOS12.metadata[split]['bands']
    images = torch.stack([raw[i]['image'] for i in range(3)])
    assert images.shape == (3, seasons * len(bands), 264, 264)
    images = images.view(3 * seasons, len(bands), 264, 264)
    expected = PatchSaliency(bands).saliency(images).flatten(1)
    actual = watch.joined('saliency')
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    assert actual.shape == (3 * seasons, 33 * 33)
    assert task.statistics.dates == seasons
    assert (
        task.statistics.data_bands == OSCD_BANDS[:10] + OSCD_BANDS[-len(bands) + 10 :]
    )
    # The first season of place 0 lacks the northernmost 24 pixels.
    pixels = watch.joined('pixels').sum(dim=(1, 2))
    full = 10 * 264 * 264
    assert pixels.tolist() == [full * 240 // 264] + [full] * (3 * seasons - 1)


def test_the_fixed_mask_of_a_date_is_the_same_in_one_process_and_in_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places: list[torch.Tensor] = []

    def spy(key: int, place: torch.Tensor, count: int) -> torch.Tensor:
        places.append(place)
        return sample_noise(key, place, count)

    monkeypatch.setattr('torchgeo_sigmae.tasks.token_batch.sample_noise', spy)
    bands = ('B03', 'B04', 'B08', 'B11')
    task = SIGMAETask(**SMALL, bands=bands, batch=BatchSpec(mean=0.0, std=1e4))
    batch = {'image': torch.rand(2, 3, 4, 64, 64)}
    actual = {}
    for world, rank in ((1, 0), (2, 0), (2, 1)):
        task._trainer = SimpleNamespace(world_size=world, global_rank=rank)
        task.on_validation_epoch_start()
        for _ in range(2 // world):
            task._evaluate(batch, task.val_metrics)
        actual[world, rank] = torch.cat(places).view(-1, 3).tolist()
        places.clear()
    alone = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(4)]
    assert actual == {(1, 0): alone, (2, 0): alone[::2], (2, 1): alone[1::2]}


def test_torchgeos_change_detection_trains_on_a_repaired_datamodule(
    oscd_root: Path, tmp_path: Path
) -> None:
    datamodule = bitemporal(OSCDDataModule(root=oscd_root, batch_size=2))
    task = ChangeDetection('fcsiamdiff', 'resnet18', in_channels=13)
    run = quiet_trainer(tmp_path, max_epochs=1)
    run.fit(task, datamodule)
    assert run.global_step == 2
    assert run.callback_metrics['val_loss'].isfinite()
    run.test(task, datamodule, verbose=False)


def statistics(dates: int) -> BatchStatistics:
    return BatchStatistics(
        ('B03', 'B04', 'B08'),
        (0, 1, 2),
        (1.0, 2.0, 3.0),
        (2.0, 4.0, 5.0),
        1e-4,
        0,
        dates,
    )


def test_seasons_are_normalized_and_marked_separately() -> None:
    raw = torch.rand(4, 6, 8, 8) + 5
    raw[0, :3, 2] = 0
    raw[1, 4, 3, 3] = torch.nan
    raw[2, 3, 1] = 0  # one dark band is no gap
    marked = mark_missing({'image': raw}, statistics(2), 0.0)
    valid = marked[VALID_KEY]
    assert valid.shape == (4, 2, 8, 8)
    assert (1 - valid).sum(dim=(2, 3)).tolist() == [[8, 0], [0, 0], [0, 0], [0, 0]]
    dates = marked['image'].view(4, 2, 3, 8, 8)
    assert torch.equal(dates.isnan().all(dim=2), valid == 0)
    assert dates.isnan().sum(dim=(2, 3, 4)).tolist() == [
        [24, 0],
        [0, 1],
        [0, 0],
        [0, 0],
    ]
    expected = torch.cat([statistics(1).normalize(x) for x in raw.split(3, 1)], 1)
    actual = statistics(2).normalize(raw)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    again = mark_missing({'image': actual}, statistics(2), 0.0, normalized=True)
    assert torch.equal(again[VALID_KEY], valid)


@pytest.mark.parametrize('channels', [3, 4, 9])
def test_another_number_of_dates_is_refused(channels: int) -> None:
    image = torch.zeros(1, channels, 8, 8)
    with pytest.raises(
        ValueError,
        match=rf'batch.bands: the batch has {channels} channels, but 3 names are given '
        r'for them on each of 2 dates: .*one name per channel, in the order',
    ):
        statistics(2).check(image)
    # A time axis counts for itself.
    statistics(2).check(torch.zeros(1, 5, 3, 8, 8))


def test_seasons_without_a_datamodule_are_not_guessed(
    ssl4eo_root: Path, tmp_path: Path
) -> None:
    loader = DataLoader(SSL4EOS12(ssl4eo_root, seasons=2), batch_size=3)
    task = SIGMAETask(
        **SMALL, batch=BatchSpec(OSCD_BANDS, mean=0, std=1e4, normalize=True)
    )
    with pytest.raises(ValueError, match=r'26 channels.*attach the TorchGeo datamod'):
        quiet_trainer(tmp_path).validate(task, loader, verbose=False)


@pytest.mark.parametrize(
    ('datamodule', 'count', 'dates'),
    [
        (SSL4EOS12DataModule(), 13, 1),
        (SSL4EOS12DataModule(seasons=4, split='s2a'), 12, 4),
        (SSL4EOS12DataModule(seasons=2, split='s1'), 2, 2),
        (SSL4EOLDataModule(seasons=3), 7, 3),
        (SSL4EOLDataModule(split='oli_tirs_toa'), 11, 1),
        (OSCDDataModule(), 13, 1),
        (None, None, 1),
    ],
)
def test_bands_and_dates_of_torchgeos_datamodules(datamodule, count, dates) -> None:
    bands = datamodule_bands(datamodule)
    assert bands is None if count is None else len(bands) == count
    assert datamodule_dates(datamodule) == dates


def test_landsats_seasons_need_only_the_sensor() -> None:
    task = SIGMAETask(**SMALL, sensor='landsat8', bands=('B2', 'B3', 'B4', 'B5', 'B6'))
    actual = task._resolve_statistics(SSL4EOLDataModule(seasons=2))
    assert actual.channels == (1, 2, 3, 4, 5)
    assert actual.dates == 2
    assert set(actual.std) == {255.0}


def test_checkpoints_from_before_dates_are_read() -> None:
    values = statistics(1).as_dict()
    del values['dates']
    assert BatchStatistics.from_dict(values) == statistics(1)
    assert BatchStatistics.from_dict(statistics(3).as_dict()) == statistics(3)


@pytest.mark.parametrize(
    'layout', [lambda x: x, lambda x: x.unsqueeze(1), lambda x: x.repeat(1, 2, 1, 1)]
)
def test_reconstruct_takes_one_date_a_time_axis_or_all_dates(
    layout: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    bands = ('B03', 'B04', 'B08', 'B11')
    task = SIGMAETask(**SMALL, bands=bands, batch=BatchSpec(mean=0.0, std=1e4))
    assert task.statistics.dates == 1
    task._statistics = BatchStatistics(
        bands, (0, 1, 2, 3), (0.0,) * 4, (1e4,) * 4, 1e-4, 0.0, dates=2
    )
    raw = torch.rand(3, 4, 64, 64) * 5000 + 1
    out = task.reconstruct(layout(raw))
    torch.testing.assert_close(
        out['image'], (raw * 1e-4).repeat_interleave(len(out['image']) // 3, 0)
    )
