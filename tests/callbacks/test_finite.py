# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""No NaN reaches the weights, and whoever brings one is named."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import Dataset

from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import FineTuning, FiniteGuard, SIGMAETask, resumable
from torchgeo_sigmae._compat import Classification
from torchgeo_sigmae.callbacks.finite import add_guard, batch_names

pytestmark = pytest.mark.usefixtures('narrow_models')


class Samples(Dataset[dict[str, Any]]):
    """Chips with or without the names of their files."""

    def __init__(self, count: int = 12, named: bool = True) -> None:
        self.image = 1000 + 4000 * torch.rand(count, 10, 32, 32)
        self.named = named

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> dict[str, Any]:
        names = {'path': f'{index}.tif', 'window': torch.tensor([index, 0])}
        return {'image': self.image[index], **(names if self.named else {})}


class Spoiled(SIGMAETask):
    """Goes wrong at one step, in its loss or in a gradient; remembers its weights."""

    what, at = 'loss', 2
    before: dict[str, Tensor]

    def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        loss = super().training_step(batch, batch_idx, dataloader_idx)
        self.before = {k: v.clone() for k, v in self.model.state_dict().items()}
        if batch_idx != self.at:
            return loss
        if self.what == 'loss':
            return loss * torch.inf
        # Finite, with a gradient that is not.
        weight = self.model.encoder.norm.weight
        return loss + (weight - weight.detach()).sum().sqrt()


def spoiled(what: str, **arguments: Any) -> Spoiled:
    made = small_task(**arguments)
    made.__class__ = Spoiled
    made.what = what
    return made


def loaders(dataset: Dataset[Any], batch_size: int = 4) -> LightningDataModule:
    return LightningDataModule.from_datasets(dataset, batch_size=batch_size)


def fit(path: Path, made: SIGMAETask, data: Any, **kwargs: Any) -> None:
    quiet_trainer(path, **{'max_epochs': 1, **kwargs}).fit(made, data)


@pytest.mark.parametrize('what', ['loss', 'gradient'])
@pytest.mark.parametrize('precision', ['32-true', 'bf16-mixed'])
def test_a_step_that_is_not_finite_is_not_taken(
    tmp_path: Path, what: str, precision: str
) -> None:
    made = spoiled(what)
    initial = {k: v.clone() for k, v in made.model.state_dict().items()}
    data = Samples()
    loader = torch.utils.data.DataLoader(data, 4)
    with pytest.raises(RuntimeError, match=rf'Step 2: the {what} is not') as caught:
        fit(tmp_path, made, loader, precision=precision)
    text = str(caught.value)
    assert all(f'{i}.tif (row, column {i}, 0)' in text for i in (8, 9, 10, 11))
    assert '7.tif' not in text
    weights = made.model.state_dict()
    assert all(torch.equal(weights[key], made.before[key]) for key in weights)
    # Steps before it were taken.
    assert any(not torch.equal(weights[key], initial[key]) for key in weights)


@pytest.mark.parametrize(
    ('what', 'batches', 'step', 'named'),
    [
        # The loss is that of one batch, the gradient that of all since the last step.
        ('loss', 4, 0, range(8, 12)),
        ('gradient', 2, 1, range(8, 16)),
    ],
)
def test_samples_of_accumulated_batches_are_named(
    tmp_path: Path, what: str, batches: int, step: int, named: range
) -> None:
    loader = torch.utils.data.DataLoader(Samples(16), 4)
    with pytest.raises(RuntimeError, match=f'Step {step}: the {what}') as caught:
        fit(tmp_path, spoiled(what), loader, accumulate_grad_batches=batches)
    listed = re.findall(r'(\d+)\.tif', str(caught.value))
    assert [*map(int, listed)] == [*named]


def test_without_names_samples_are_named(tmp_path: Path) -> None:
    data = Samples(named=False)
    data.image[:, :, :16, :16] = 0
    seen: list[list[int]] = []

    class Watch(Spoiled):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            first = batch['image'][:, 0, -1, -1]
            normalized = (data.image[:, 0, -1, -1] - 3000) / 2000
            seen.append([int((normalized - one).abs().argmin()) for one in first])

    made = spoiled('loss', transform=torch.nn.Identity())
    made.__class__ = Watch
    with pytest.raises(RuntimeError, match='is not finite') as caught:
        fit(tmp_path, made, resumable(loaders(data)))
    assert f'samples {", ".join(map(str, seen[-1]))} of the dataset' in str(
        caught.value
    )
    with pytest.raises(RuntimeError, match='the dataset gives no file names'):
        fit(tmp_path, spoiled('loss'), torch.utils.data.DataLoader(data, 4))


def test_an_overflow_of_large_values_is_stopped(tmp_path: Path) -> None:
    """The real thing: values of 1e30 are finite, their squares are not."""
    data = Samples()
    data.image[5] = 1e30
    with pytest.raises(RuntimeError, match=r'Step 1: .*5\.tif'):
        fit(tmp_path, small_task(), torch.utils.data.DataLoader(data, 4))


def test_steps_a_gradient_scaler_leaves_out_are_no_error(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**127)
    plugin = MixedPrecision('16-mixed', 'cpu', scaler)
    made = small_task()
    before = made.model.encoder.norm.weight.clone()
    fit(tmp_path, made, torch.utils.data.DataLoader(Samples(), 4), plugins=[plugin])
    assert scaler.get_scale() < 2.0**127
    assert torch.equal(made.model.encoder.norm.weight, before)


def test_a_gradient_scaler_that_finds_no_scale_is_stopped(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**-16)
    plugin = MixedPrecision('16-mixed', 'cpu', scaler)
    with pytest.raises(RuntimeError, match='no gradient was finite for many steps'):
        fit(
            tmp_path, spoiled('gradient'), torch.utils.data.DataLoader(Samples(), 4),
            plugins=[plugin],
        )  # fmt: skip


def test_samples_without_a_valid_pixel_are_no_error(tmp_path: Path) -> None:
    data = Samples()
    for i, filler in enumerate((0.0, torch.nan, torch.inf)):
        data.image[4 * i : 4 * i + 3] = filler
    for norm in (False, True):
        task = small_task(norm_pix_loss=norm, spectral_weight=0.5)
        trainer = quiet_trainer(tmp_path, max_epochs=1)
        loader = torch.utils.data.DataLoader(data, 4)
        trainer.fit(task, loader, loader)
        assert 0 < trainer.callback_metrics['train_loss_epoch'] < torch.inf
        assert trainer.callback_metrics['val_loss'].isfinite()
        assert all(p.isfinite().all() for p in task.parameters())


@pytest.mark.parametrize('callback', [FiniteGuard, FineTuning])
def test_tasks_of_torchgeo_are_guarded(tmp_path: Path, callback: Any) -> None:
    model = 'sigmae_vit_tiny_patch8'
    classify = Classification(model, in_channels=10, num_classes=3)
    data = [
        {'image': torch.randn(10, 32, 32), 'label': torch.tensor(i % 3)}
        for i in range(8)
    ]
    data[5]['image'][3, 0, 0] = torch.nan
    given = [callback()]
    run = quiet_trainer(tmp_path, max_epochs=1, callbacks=given)
    with pytest.raises(RuntimeError, match='Step 1: the loss is not finite') as caught:
        run.fit(classify, torch.utils.data.DataLoader(data, 4))
    assert 'samples that are not known' in str(caught.value)
    assert all(p.isfinite().all() for p in classify.parameters())
    # One guard, whoever added it.
    add_guard(run)
    assert sum(isinstance(call, FiniteGuard) for call in run.callbacks) == 1


def test_names() -> None:
    batch = {'path': ['a', 'b', 'a'], 'window': torch.tensor([[0, 1], [2, 3], [4, 5]])}
    assert batch_names(batch) == 'a (row, column 0, 1 and 4, 5), b (row, column 2, 3)'
    assert batch_names({'filename': ['x', 'y', 'x']}) == 'x, y'
    assert not batch_names({'image': torch.zeros(1)})
    assert not batch_names({'path': torch.zeros(1)})
