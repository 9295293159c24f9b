# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Precisions, float64 images, several loaders, NumPy arguments, fields of predictions.

Each works, or an error names the argument and the remedy.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader

from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import BatchSpec, FineTuning, SIGMAETask
from torchgeo_sigmae._compat import Classification
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.optim import scaled_lr

pytestmark = pytest.mark.usefixtures('narrow_models')


def raw(dtype: torch.dtype = torch.float32, **extra: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = 3000 + 2000 * torch.randn(4, 10, 32, 32, generator=generator)
    samples: Any = [
        {'image': image.to(dtype), 'label': torch.tensor(i % 2), **extra}
        for i, image in enumerate(images)
    ]
    return DataLoader(samples, 4)


@pytest.mark.parametrize(
    ('precision', 'instead'),
    [('bf16-true', 'bf16-mixed'), ('16-true', 'bf16-mixed'), ('64-true', '32-true')],
)
def test_other_precisions_are_refused_by_name(precision: Any, instead: Any) -> None:
    trainer = quiet_trainer(precision=precision, max_steps=1)
    with pytest.raises(
        ValueError, match=f"precision: '{precision}' .* precision='{instead}'"
    ):
        trainer.fit(small_task(), raw())
    trainer = quiet_trainer(precision=instead, max_steps=1)
    trainer.fit(small_task(), raw())
    assert trainer.global_step == 1


@pytest.mark.parametrize('precision', ['bf16-true', '64-true', '32-true'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.int16])
def test_fine_tuning_takes_any_precision_and_type(
    precision: Any, dtype: torch.dtype
) -> None:
    task = Classification('sigmae_vit_tiny_patch8', in_channels=10, num_classes=2)
    trainer = quiet_trainer(
        precision=precision, max_steps=1, callbacks=[FineTuning(lr=1e-3)]
    )
    trainer.fit(task, raw(dtype), raw(dtype))
    trainer.test(task, raw(dtype), verbose=False)
    assert all(parameter.isfinite().all() for parameter in task.parameters())


def test_float64_images_pretrain_as_float32() -> None:
    losses = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        trainer = quiet_trainer(max_steps=1)
        trainer.fit(small_task(), raw(dtype))
        losses.append(float(trainer.callback_metrics['train_loss']))
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize('lr', [None, 1e-3])
@pytest.mark.parametrize(
    'loaders',
    [
        lambda: [raw(), raw()],
        lambda: {'a': raw(), 'b': raw()},
        lambda: CombinedLoader({'a': raw(), 'b': raw()}, 'max_size_cycle'),
    ],
)
def test_several_training_loaders_are_refused(loaders: Any, lr: float | None) -> None:
    with pytest.raises(ValueError, match=r'train_dataloaders: .*ConcatDataset'):
        quiet_trainer(max_steps=1).fit(small_task(lr=lr), loaders())


def test_the_learning_rate_of_a_task_with_several_loaders() -> None:
    class Look(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(1, 1)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch: Any, *args: object) -> Any:
            assert set(batch) == {'a', 'b'}
            rates.append(scaled_lr(self.trainer, None, 1.0))
            return self.model(torch.ones(1, 1)).sum()

    rates: list[float] = []
    quiet_trainer(max_steps=1).fit(Look(), {'a': raw(), 'b': raw()})
    assert rates == [8 / 256]


def test_several_validation_loaders_count_together() -> None:
    task = small_task()
    trainer = quiet_trainer()
    (one, *_) = trainer.validate(task, [raw()], verbose=False)
    both = trainer.validate(task, [raw(), raw()], verbose=False)[0]
    assert both['val_loss'] == pytest.approx(one['val_loss'], rel=0.2)


@pytest.mark.parametrize('batch', [torch.rand(10, 32, 32), (torch.rand(10, 32, 32), 0)])
def test_batches_that_are_no_dictionaries(batch: Any) -> None:
    samples: Any = [batch] * 4
    loader: DataLoader[Any] = DataLoader(samples, batch_size=2)
    with pytest.raises(TypeError, match=r'image: the batch is a \w+, not a dictionary'):
        quiet_trainer(max_steps=1).fit(small_task(), loader)


@pytest.mark.parametrize(
    'arguments',
    [
        {'lr': np.logspace(-4, -3, 3)[0]},
        {'size': np.int64(32)},
        {'mean': np.full(10, 3000.0), 'std': np.full(10, 2000, np.float32)},
        {'mean': torch.full((10,), 3000.0)},
        {'mean': [np.float32(3000)] * 10},
        {'bands': np.array(SENTINEL2_TEN_BANDS)},
        {'bands': [np.str_(name) for name in SENTINEL2_TEN_BANDS]},
        {'mask_ratio': np.float32(0.75)},
    ],
)
def test_numpy_arguments_reach_checkpoints_as_plain_values(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    task = small_task(**arguments)
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(task, raw())
    trainer.save_checkpoint(tmp_path / 'x.ckpt')
    torch.load(tmp_path / 'x.ckpt', weights_only=True)
    again = SIGMAETask.load_from_checkpoint(tmp_path / 'x.ckpt')
    assert again.bands.matches(BandSet(SENTINEL2_TEN_BANDS))
    assert type(again.batch) is BatchSpec


def test_predictions_keep_path_and_bounds() -> None:
    bounds = torch.tensor([0.0, 1.0, 2.0])
    loader = raw(bounds=bounds, path='x.tif', other=1)
    (prediction,) = quiet_trainer().predict(small_task(), loader) or []
    assert torch.equal(prediction['bounds'], bounds.expand(4, -1))
    assert prediction['path'] == ['x.tif'] * 4
    assert {'image', 'reconstruction', 'mask', 'saliency'} < set(prediction)
    assert 'other' not in prediction
