# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Training and evaluation from a pack."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchgeo.datasets import EuroSAT

from helpers.geotiffs import write
from helpers.training import quiet_trainer
from torchgeo_sigmae import PackedDataModule, SceneDataModule, SIGMAETask
from torchgeo_sigmae._compat import Classification
from torchgeo_sigmae.bands import EUROSAT_BANDS, SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.datasets import PackedChips, is_resumable
from torchgeo_sigmae.datasets.chip_saliency import ChipSaliency
from torchgeo_sigmae.datasets.pack_sources import DatasetSource, SceneSource
from torchgeo_sigmae.datasets.packing import write_pack

FEW = ('B03', 'B04', 'B08')


def test_evaluation_is_that_of_scenes(synthetic_root: Path, tmp_path: Path) -> None:
    """The same loss to the last bit, with values and whole bands missing."""
    bands = list(SENTINEL2_TEN_BANDS)
    image = np.arange(10 * 32 * 96).reshape(10, 32, 96).astype('uint16') % 5000
    holes = image.copy()
    holes[:, 3:20, :40] = 0
    write(tmp_path / 'train.tif', image, bands, east=5e5)
    write(tmp_path / 'val_holes.tif', holes, bands, nodata=0, east=6e5)
    write(tmp_path / 'val_less.tif', image[:8], bands[:8], nodata=0, east=7e5)

    scenes = SceneDataModule(
        tmp_path, size=32, paths='train*', val_paths='val*', allow_missing_bands=True
    )
    index = write_pack(SceneSource(scenes.find_splits(), 32), tmp_path / 'pack')
    packed = PackedDataModule(tmp_path / 'pack', batch_size=2)
    scenes = SceneDataModule(
        tmp_path, size=32, paths='train*', val_paths='val*', allow_missing_bands=True,
        mean=index.mean, std=index.std, batch_size=2,
    )  # fmt: skip
    task = SIGMAETask('sigmae_vit_tiny_patch8', size=32, decoder_depth=1)
    trainer = quiet_trainer()
    one, other = (
        trainer.validate(task, data, verbose=False)[0] for data in (scenes, packed)
    )
    assert one == other
    assert one['val_loss'] > 0


def test_batches_stay_as_stored_until_the_device(packed_root: Path) -> None:
    """The task sees the raw batch after the transfer, and marks what is missing."""
    seen: list[torch.Tensor] = []

    class Watching(SIGMAETask):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            seen.append(batch['image'])
            return super().on_before_batch_transfer(batch, dataloader_idx)

    data = PackedDataModule(packed_root, FEW, 32, batch_size=4, length=10)
    assert is_resumable(data)
    task = Watching('sigmae_vit_tiny_patch8', size=32, bands=FEW, decoder_depth=1)
    quiet_trainer(max_epochs=1, limit_val_batches=1, num_sanity_val_steps=0).fit(
        task, data
    )
    assert {image.dtype for image in seen} == {torch.float32}
    assert [tuple(image.shape) for image in seen] == [(4, 3, 32, 32)] * 3
    (batch,) = data.train_dataset.gather([0, 1], 0)
    assert batch['image'].dtype == torch.uint16
    assert data.bands == FEW
    assert task.statistics.mean == pytest.approx(data.mean.tolist())


def test_sources_are_drawn_by_weight(packed_root: Path) -> None:
    weights = {'*/train/000*': 3.0, '*/train/00[5-9]*': 0.0}
    data = PackedDataModule(
        packed_root, size=32, batch_size=50, length=5000, source_weights=weights
    )
    data.setup('fit')
    drawn = [index for _, index in data.train_dataloader().sampler]
    assert len(drawn) == 5000
    counts = np.bincount(drawn, minlength=256)
    assert (counts[50:100] == 0).all()
    assert counts[:10].mean() / counts[100:].mean() == pytest.approx(3, rel=0.3)
    # Without weights, every chip once before any is seen again.
    data = PackedDataModule(packed_root, length=300)
    data.setup('fit')
    drawn = [index for _, index in data.train_dataloader().sampler]
    counts = np.bincount(drawn, minlength=256)
    assert (counts.min(), counts.max(), counts.sum()) == (1, 2, 300)
    with pytest.raises(ValueError, match=r'leaves no chip to train on. Sources are'):
        PackedDataModule(packed_root, source_weights={'*': 0.0}).setup('fit')


def test_chips_are_drawn_by_saliency(packed_root: Path) -> None:
    """In proportion to saliency squared, beside the weights of sources."""
    weights = {'*/train/00[0-4]*': 0.0}
    data = PackedDataModule(
        packed_root, size=32, length=40_000, source_weights=weights, saliency_power=2
    )
    data.setup('fit')
    drawn = [index for _, index in data.train_dataloader().sampler]
    counts = np.bincount(drawn, minlength=256)
    assert (counts[:50] == 0).all()
    saliency = np.array([_saliency(chip) for chip in PackedChips(packed_root)])
    column = PackedChips(packed_root).column('saliency')
    np.testing.assert_allclose(column, saliency, rtol=1e-4)
    wanted = saliency[50:256] ** 2
    wanted *= 40_000 / wanted.sum()
    # Counts of independent draws have the variance of their mean.
    assert ((counts[50:] - wanted) ** 2 / wanted).mean() == pytest.approx(1, abs=0.4)


def _saliency(chip: dict[str, Any]) -> float:
    """Richness and heterogeneity of patches, in NumPy and float64."""
    names = {name: i for i, name in enumerate(SENTINEL2_TEN_BANDS)}
    image = chip['image'].numpy().astype(float)
    parts = []
    for one, other in (('B08', 'B04'), ('B03', 'B08'), ('B11', 'B08')):
        a, b = image[names[one]], image[names[other]]
        patches = ((a - b) / (a + b)).reshape(len(a) // 8, 8, -1, 8).swapaxes(1, 2)
        parts += [abs(patches).mean((2, 3)), patches.std((2, 3))]
    return float(np.mean(parts))


def test_packs_without_saliency(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.arange(3 * 32 * 64).reshape(3, 32, 64).astype('uint16') % 5000 + 1
    write(tmp_path / 'rgb.tif', image, FEW)
    scenes = SceneDataModule(tmp_path, FEW, size=32, val_fraction=0).find_splits()
    write_pack(SceneSource({'': scenes['train']}, 32), tmp_path / 'pack')
    data = PackedDataModule(tmp_path / 'pack', val_fraction=0, saliency_power=1)
    with pytest.raises(ValueError, match=r'no saliency. .* again with --saliency'):
        data.setup('fit')
    command = f'pack {tmp_path} --output {tmp_path / "other"} --saliency --bands'
    with pytest.raises(SystemExit):
        main([*command.split(), *FEW])
    assert 'NDBI needs B08' in capsys.readouterr().err


def test_saliency_leaves_out_what_is_missing() -> None:
    rng = np.random.default_rng(0)
    chip = rng.integers(1, 5000, (10, 32, 36)).astype(np.float32)
    measure = ChipSaliency(BandSet(SENTINEL2_TEN_BANDS), 1e-4, 0.0)
    whole = measure(chip)
    assert whole == pytest.approx(_saliency({'image': torch.tensor(chip[:, :, :32])}))
    left = measure(chip[:, :, :16])
    chip[:, :, 16:24], chip[:, :, 24:] = np.nan, 0
    assert measure(chip) == pytest.approx(left)
    assert measure(np.full_like(chip, np.nan)) == 0


def test_wrong_arguments(packed_root: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({'val_fraction': 1.0}, 'val_fraction: 1.0 must be in [0, 1)'),
        ({'source_weights': {'a': -1.0}}, "source_weights: -1.0 for 'a' must be 0 or"),
        ({'saliency_power': -1.0}, 'saliency_power: -1.0 must be 0 or more'),
        ({'size': 65}, 'have 64 x 64 pixels. Pass size=64 or less'),
        ({'bands': ['B01']}, 'B01 not in the pack'),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            PackedDataModule(packed_root, **arguments).setup('fit')  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match='is no pack'):
        PackedDataModule(tmp_path).setup('fit')
    index = json.loads((packed_root / 'index.json').read_text())
    for file in packed_root.iterdir():
        (tmp_path / file.name).symlink_to(file)
    index['std'][0] = 0.0
    (tmp_path / 'index.json').unlink()
    (tmp_path / 'index.json').write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r'B02 has no values .* Leave it out'):
        PackedDataModule(tmp_path).setup('fit')


def test_torchgeo_classifies_a_pack(eurosat_root: Path, tmp_path: Path) -> None:
    """Splits and labels of a dataset stay."""
    splits = ('train', 'val', 'test')
    parts = {split: EuroSAT(eurosat_root, split) for split in splits}
    write_pack(DatasetSource(parts, BandSet(EUROSAT_BANDS)), tmp_path)
    data = PackedDataModule(tmp_path, FEW, batch_size=20)
    task = Classification(
        model='sigmae_vit_tiny_patch8', in_channels=3, num_classes=10, lr=1e-3
    )
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(task, data)
    assert trainer.test(task, data, verbose=False)[0]['test_loss'] > 0
    sizes = [len(getattr(data, f'{split}_dataset')) for split in splits]
    assert sizes == [140, 20, 40]
    one, wanted = data.test_dataset[7], parts['test'][7]
    channels = [EUROSAT_BANDS.index(band) for band in FEW]
    assert torch.equal(one['image'], wanted['image'][channels])
    assert one['label'] == wanted['label']
