# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Models that torch.compile wrapped save plain keys, load, resume and fine-tune."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch.utils.data import DataLoader

from helpers.downstream import torchgeo_task
from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import FineTuning, SIGMAETask
from torchgeo_sigmae._compat import Classification
from torchgeo_sigmae.callbacks.layers import parameter_groups, set_drop_path
from torchgeo_sigmae.weights import load_weights, read_weights

pytestmark = pytest.mark.usefixtures('narrow_models')

MODEL = 'sigmae_vit_tiny_patch8'


def wrap(module: Any) -> Any:
    """Wrap a module as a compiled one, without the compiler's time."""
    return torch.compile(module, backend='eager')


def wrap_model(task: Any) -> None:
    task.model = wrap(task.model)


def wrap_encoder(task: Any) -> None:
    task.model.encoder = wrap(task.model.encoder)


def wrap_blocks(task: Any) -> None:
    blocks = getattr(task.model, 'encoder', task.model).blocks
    for i, block in enumerate(blocks):
        blocks[i] = wrap(block)


def raw(count: int = 2) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = 3000 + 2000 * torch.randn(count, 10, 32, 32, generator=generator)
    return DataLoader([{'image': image} for image in images], 2)


def plain(keys: Any) -> bool:
    return not any('_orig_mod' in key for key in keys)


@pytest.mark.parametrize('compiled', [wrap_model, wrap_encoder])
def test_pretraining(compiled: Callable[[Any], None], tmp_path: Path) -> None:
    task = small_task()
    compiled(task)
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(task, raw())
    trainer.save_checkpoint(tmp_path / 'x.ckpt')
    assert plain(torch.load(tmp_path / 'x.ckpt')['state_dict'])
    again = SIGMAETask.load_from_checkpoint(tmp_path / 'x.ckpt')
    for key, value in again.state_dict().items():
        assert torch.equal(value, task.state_dict()[key])
    task.export(tmp_path / 'x.pth')
    for path in (tmp_path / 'x.ckpt', tmp_path / 'x.pth'):
        Classification(MODEL, weights=str(path), in_channels=10, num_classes=2)
    load_weights(task.model, tmp_path / 'x.ckpt')
    # Compiled or not, either resumes from the other.
    for change in (compiled, lambda task: None):
        resumed = small_task()
        change(resumed)
        trainer = quiet_trainer(max_steps=2)
        trainer.fit(resumed, raw(), ckpt_path=tmp_path / 'x.ckpt')
        assert trainer.global_step == 2


def test_a_checkpoint_with_wrapped_keys_loads(tmp_path: Path) -> None:
    """As they were written before."""
    task = small_task()
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(task, raw())
    trainer.save_checkpoint(tmp_path / 'x.ckpt')
    content = torch.load(tmp_path / 'x.ckpt')
    content['state_dict'] = {
        key.replace('model.', 'model._orig_mod.', 1): value
        for key, value in content['state_dict'].items()
    }
    torch.save(content, tmp_path / 'wrapped.ckpt')
    again = SIGMAETask.load_from_checkpoint(tmp_path / 'wrapped.ckpt')
    for key, value in task.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


classification = partial(torchgeo_task, 'classification', MODEL)
segmentation = partial(torchgeo_task, 'unet', MODEL)


@pytest.mark.parametrize(
    ('make', 'compiled'),
    [
        (classification, wrap_model),
        (classification, wrap_blocks),
        (segmentation, wrap_model),
        (segmentation, wrap_encoder),
    ],
)
def test_fine_tuning_has_the_same_groups(
    make: Callable[[], Any], compiled: Callable[[Any], None]
) -> None:
    task = make()
    before = parameter_groups(task, 1e-3, 0.05, 0.75)
    compiled(task)
    after = parameter_groups(task, 1e-3, 0.05, 0.75)
    assert len(after) == 28
    for one, other in zip(before, after, strict=True):
        assert {k: v for k, v in one.items() if k != 'params'} == {
            k: v for k, v in other.items() if k != 'params'
        }
        assert set(map(id, one['params'])) == set(map(id, other['params']))


def test_stochastic_depth_reaches_compiled_blocks() -> None:
    task = classification()
    wrap_blocks(task)
    set_drop_path(task.model, 0.1)
    drops = [m for m in task.modules() if isinstance(m, DropPath)]
    assert len(drops) == 22


@pytest.mark.parametrize('weights_only', [False, True])
def test_fine_tuned_checkpoints(weights_only: bool, tmp_path: Path) -> None:
    image = torch.randn(10, 64, 64)
    data = DataLoader([{'image': image, 'label': torch.tensor(i % 2)} for i in (0, 1)])
    task = classification()
    wrap_model(task)
    trainer = quiet_trainer(max_steps=1, callbacks=[FineTuning(lr=1e-3)])
    trainer.fit(task, data)
    (optimizer,) = trainer.optimizers
    assert len(optimizer.param_groups) == 28
    trainer.save_checkpoint(tmp_path / 'x.ckpt', weights_only)
    assert plain(torch.load(tmp_path / 'x.ckpt')['state_dict'])
    loaded = Classification.load_from_checkpoint(tmp_path / 'x.ckpt')
    assert torch.equal(loaded.model.head.weight, task.model.head.weight)
    assert plain(read_weights(tmp_path / 'x.ckpt').encoder)
    Classification(
        MODEL, weights=str(tmp_path / 'x.ckpt'), in_channels=10, num_classes=3
    )
    if not weights_only:
        trainer = quiet_trainer(max_steps=2, callbacks=[FineTuning(lr=1e-3)])
        trainer.fit(task, data, ckpt_path=tmp_path / 'x.ckpt')
        assert trainer.global_step == 2


def test_pretraining_is_refused_compiled_too() -> None:
    task = small_task()
    wrap_model(task)
    with pytest.raises(TypeError, match='FineTuning is not for SIGMAETask'):
        quiet_trainer(max_steps=1, callbacks=[FineTuning()]).fit(task, raw())


def test_other_models_are_named_by_their_own_class() -> None:
    task = Classification('resnet18', in_channels=10, num_classes=2)
    task.model = wrap(task.model)
    assert isinstance(task.model, nn.Module)
    image = torch.randn(10, 64, 64)
    data = DataLoader([{'image': image, 'label': torch.tensor(0)}])
    with pytest.raises(ValueError, match='ResNet has no transformer blocks'):
        quiet_trainer(max_steps=1, callbacks=[FineTuning()]).fit(task, data)
