# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretraining on a stream without length: TorchGeo's CopernicusPretrain as it comes."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset
from torchgeo.datasets import CopernicusPretrain
from torchgeo.datasets.errors import DependencyNotFoundError

from helpers.shards import write_shards
from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import BatchSpec, ResumableCheckpoint, SIGMAETask, resumable
from torchgeo_sigmae.bands import SENTINEL2_BANDS, SENTINEL2_TEN_BANDS
from torchgeo_sigmae.callbacks import newest_checkpoint
from torchgeo_sigmae.tasks.batch import select_image

S2 = BatchSpec(key='s2_toa.pth', mean=2000.0, std=1000.0, normalize=True)


@pytest.fixture(scope='module')
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp('shards'))


def stream(urls: str, **kwargs: Any) -> CopernicusPretrain:
    return CopernicusPretrain(urls, **{'shardshuffle': False, **kwargs})


class Watching(SIGMAETask):
    """Keeps what every training step used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: dict[int, dict[str, Any]] = {}

    def _draw(self, batch: dict[str, Any]) -> Any:
        drawn = super()._draw(batch)
        self.steps[self.global_step] = {
            'keys': set(batch),
            'names': batch['filename'],
            'keep': drawn.keep,
            'valid': drawn.tokens.valid,
            'pixels': drawn.tokens.pixels,
            'beta': self.mask_schedule.strength_at(self.progress),
            'lr': self.optimizers().param_groups[0]['lr'],
        }
        return drawn


def test_it_trains_as_it_comes(urls: str) -> None:
    task = small_task(kind=Watching, batch=S2)
    assert task.bands == SENTINEL2_TEN_BANDS
    assert task.statistics.data_bands == SENTINEL2_BANDS
    loader = DataLoader(stream(urls), batch_size=5)
    before = [p.detach().clone() for p in task.model.parameters()]
    # 12 samples make three batches, so five steps go through the stream twice.
    trainer = quiet_trainer(max_steps=5)
    trainer.fit(task, loader)
    assert trainer.global_step == 5
    after = task.model.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert [len(step['keep']) for step in task.steps.values()] == [5, 5, 2, 5, 5]
    for step in task.steps.values():
        # The other modalities do not travel to the device.
        assert {'s1_grd.pth', 'dem.pth'}.isdisjoint(step['keys'])
        assert all(name.isdigit() for name in step['names'])
    # A corner of every image has no data.
    assert any(not step['pixels'].all() for step in task.steps.values())


@pytest.mark.parametrize(
    ('key', 'bands', 'sensor'),
    [
        ('s1_grd.pth', ['VV', 'VH'], None),
        ('s3_olci.pth', ['Oa17', 'Oa08', 'Oa06'], 'any'),
        ('s5p_no2.pth', ['NO2'], 'any'),
        ('dem.pth', ['DEM'], 'any'),
    ],
)
def test_every_modality_trains_by_its_key(
    urls: str, key: str, bands: list[str], sensor: str | None
) -> None:
    batch = BatchSpec(key=key, mean=0.0, std=1.0, normalize=True)
    # No warning of values that are no reflectance: there is none.
    task = small_task(kind=Watching, bands=bands, sensor=sensor, batch=batch)
    quiet_trainer(max_steps=1).fit(task, DataLoader(stream(urls), batch_size=4))
    assert list(task.bands) == bands
    # The NaN in Sentinel-3's corner is missing on its own.
    missing = ~task.steps[0]['pixels']
    assert missing.any() == (key == 's3_olci.pth')


def test_length_comes_from_the_trainer(urls: str) -> None:
    task, loader = small_task(batch=S2), DataLoader(stream(urls), batch_size=4)
    with pytest.raises(ValueError, match=r'max_steps: .* no length.* Pass max_steps='):
        quiet_trainer(max_epochs=2).fit(task, loader)
    trainer = quiet_trainer(max_epochs=2, limit_train_batches=2)
    trainer.fit(task, loader)
    assert trainer.global_step == 4


def test_batches_of_webdataset_need_a_learning_rate(urls: str) -> None:
    batched = stream(urls).dataset.batched(4)
    loader = webdataset.WebLoader(batched, batch_size=None, num_workers=0)
    with pytest.raises(ValueError, match=r'lr: .* no batch_size.* Pass lr='):
        quiet_trainer(max_steps=2).fit(small_task(batch=S2, lr=None), loader)
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(small_task(batch=S2), loader)
    assert trainer.global_step == 2


def test_workers_and_validation(urls: str) -> None:
    loader = DataLoader(stream(urls), batch_size=4, num_workers=2)
    held_out = DataLoader(stream(urls), batch_size=4)
    trainer = quiet_trainer(max_steps=4, val_check_interval=2)
    trainer.fit(small_task(batch=S2), loader, held_out)
    assert trainer.callback_metrics['val_loss'].isfinite()


def test_a_wrong_key_is_named(urls: str) -> None:
    loader = DataLoader(stream(urls), batch_size=4)

    def fit(**spec: Any) -> None:
        batch = BatchSpec(mean=0.0, std=1.0, normalize=True, **spec)
        quiet_trainer(max_steps=1).fit(small_task(batch=batch), loader)

    with pytest.raises(ValueError, match=r"no 'image'.* batch=BatchSpec\(key="):
        fit()
    with pytest.raises(ValueError, match=r"under 's2\.pth', but under .*'s2_toa\.pth'"):
        fit(key='s2.pth')
    with pytest.raises(ValueError, match=r"batch\.key: 's1_grd\.pth' .*'VV', 'VH'"):
        fit(key='s1_grd.pth')
    with pytest.raises(ValueError, match='has 2 channels'):
        fit(key='s1_grd.pth', bands=SENTINEL2_BANDS)


def test_images_under_a_key() -> None:
    plane = torch.ones(2, 8, 8, dtype=torch.int16)
    batch = {'a': plane, 'b': torch.zeros(2, 3, 8, 8), '__key__': ['x', 'y'], 'n': 1}
    image = select_image(batch, 'a')
    assert list(image) == ['__key__', 'n', 'filename', 'image']
    assert image['filename'] == ['x', 'y']
    assert torch.equal(image['image'], torch.ones(2, 1, 8, 8))
    assert select_image(batch, 'b')['image'] is batch['b']
    for key in ('n', 'c'):
        with pytest.raises(ValueError, match=r"but under \['a', 'b'\]"):
            select_image(batch, key)


def test_a_batch_without_data_names_its_samples() -> None:
    class Empty(IterableDataset[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            image = torch.zeros(13, 32, 32, dtype=torch.int16)
            return iter([{'s2_toa.pth': image, '__key__': '0772176'}] * 2)

    with pytest.raises(ValueError, match='Its files: 0772176'):
        quiet_trainer(max_steps=1).fit(
            small_task(batch=S2), DataLoader(Empty(), batch_size=2)
        )


def test_a_resumed_run_goes_on_with_all_but_the_stream(
    urls: str, tmp_path: Path
) -> None:
    """Masks depend on seed, step and place in the batch; schedules on the step."""

    def fit(path: Path, checkpoint: Path | None = None) -> Watching:
        batch = BatchSpec(key='s1_grd.pth', mean=0.0, std=1.0, normalize=True)
        task = small_task(
            kind=Watching, bands=['VV', 'VH'], masking='random', batch=batch
        )
        trainer = quiet_trainer(
            path,
            max_steps=6,
            callbacks=[ResumableCheckpoint(every_n_train_steps=2, keep=9)],
        )
        loader = DataLoader(stream(urls, resampled=True), batch_size=4)
        trainer.fit(task, loader, ckpt_path=checkpoint)
        assert trainer.global_step == 6
        return task

    whole = fit(tmp_path)
    checkpoint = tmp_path / 'resume' / 'step=000000004.ckpt'
    with pytest.warns(UserWarning, match=r'A stream .* begins anew'):
        rest = fit(tmp_path / 'rest', checkpoint)
    assert list(rest.steps) == [4, 5]
    for number, step in rest.steps.items():
        known = whole.steps[number]
        assert step['lr'] == known['lr']
        assert step['beta'] == known['beta']
        assert torch.equal(step['keep'], known['keep'])
    newest = newest_checkpoint(tmp_path / 'rest' / 'resume')
    assert newest is not None
    assert newest[0].name == 'step=000000006.ckpt'


def test_streams_are_not_resumable(urls: str) -> None:
    datamodule = LightningDataModule.from_datasets(stream(urls), batch_size=4)
    with pytest.raises(
        TypeError, match=r'a CopernicusPretrain, .* Train without resumable\(\)'
    ):
        quiet_trainer(max_steps=1).fit(small_task(batch=S2), resumable(datamodule))
    plain = LightningDataModule.from_datasets(stream(urls), batch_size=4)
    quiet_trainer(max_steps=1).fit(small_task(batch=S2), plain)


def test_the_key_is_part_of_a_checkpoint(urls: str, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(small_task(batch=S2), DataLoader(stream(urls), batch_size=4))
    trainer.save_checkpoint(tmp_path / 'run.ckpt')
    again = SIGMAETask.load_from_checkpoint(tmp_path / 'run.ckpt', weights_only=True)
    assert again.batch.key == 's2_toa.pth'
    assert again.statistics.data_bands == SENTINEL2_BANDS


def test_without_webdataset(urls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchGeo says what to install."""
    monkeypatch.setitem(sys.modules, 'webdataset', None)
    with pytest.raises(DependencyNotFoundError, match='pip install webdataset'):
        stream(urls)
