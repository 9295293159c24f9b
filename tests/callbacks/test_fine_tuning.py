# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""FineTuning with TorchGeo's own, unmodified tasks."""

import copy
import math
import pickle
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from timm.layers import DropPath
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import Dataset

from helpers.downstream import torchgeo_task
from helpers.training import quiet_trainer
from torchgeo_sigmae import FineTuning, ResumableCheckpoint, SIGMAETask, resumable
from torchgeo_sigmae._compat import (
    BaseTask,
    ChangeDetection,
    Classification,
)
from torchgeo_sigmae.callbacks.checkpoint import checkpoints
from torchgeo_sigmae.callbacks.layers import parameter_groups, set_drop_path
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.plotting import read_log

pytestmark = pytest.mark.usefixtures('narrow_models')

CONFIG = Path(__file__).parents[1] / 'conf' / 'finetuning.yaml'
VIT = 'sigmae_vit_tiny_patch16'
BLOCKS = 12
#: Neither layer decay nor drop path, for encoders that are no transformers.
PLAIN = {'layer_decay': 1, 'drop_path': 0}


class Chips(Dataset[dict[str, Tensor]]):
    """Noise of 4 bands, 32 x 32, with a label and a mask."""

    def __init__(self, length: int = 8, dates: int = 0) -> None:
        self.length = length
        self.shape = (dates, 4, 32, 32) if dates else (4, 32, 32)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(self.shape, generator=generator)
        mask = (image.mean(dim=tuple(range(image.ndim - 2))) > 0).long()
        mask = mask[None] if image.ndim == 4 else mask
        return {'image': image, 'label': torch.tensor(index % 2), 'mask': mask}


def chips(batch_size: int = 2, **kwargs: Any) -> LightningDataModule:
    return LightningDataModule.from_datasets(Chips(**kwargs), batch_size=batch_size)


def fit(task: LightningModule, *callbacks: Callback, **kwargs: Any) -> Trainer:
    dates = 2 if isinstance(task, ChangeDetection) else 0
    data = kwargs.pop('data', None) or chips(dates=dates)
    trainer = quiet_trainer(callbacks=list(callbacks), **{'max_steps': 1, **kwargs})
    trainer.fit(task, data)
    return trainer


TASKS = [
    partial(torchgeo_task, kind, VIT, 4)
    for kind in (
        *('classification', 'regression', 'pixelwise'),
        *('upernet', 'fcsiamdiff', 'changevit'),
    )
]
classification = TASKS[0]


def layers_below_head(task: BaseTask, name: str) -> int:
    """From the name alone: what the docstring promises."""
    dense = hasattr(task.model, 'encoder')
    rest = name.removeprefix('model.encoder.' if dense else 'model.')
    if rest == name:
        return 0
    block = re.match(r'blocks\.(\d+)\.', rest)
    if block:
        return BLOCKS - int(block[1])
    if re.match(r'pos_embed$|cls_token$|dist_token$|patch_embed\.', rest):
        return BLOCKS + 1
    return 1 if rest.startswith('norm.') else 0


def by_name(task: BaseTask, groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The group of every parameter; each is in one only."""
    names = {id(p): name for name, p in task.named_parameters()}
    parameters = [id(p) for group in groups for p in group['params']]
    assert len(parameters) == len(set(parameters))
    return {names[id(p)]: group for group in groups for p in group['params']}


@pytest.mark.parametrize(
    'make',
    [
        *TASKS,
        lambda: Classification(model='vit_tiny_patch16_224', num_classes=2),
        lambda: Classification(model='deit_tiny_distilled_patch16_224', num_classes=2),
    ],
)
def test_learning_rate_and_decay_of_every_parameter(make: Any) -> None:
    task = make()
    groups = parameter_groups(task, 0.1, 0.05, 0.75)
    actual = by_name(task, groups)
    assert set(actual) == {name for name, _ in task.named_parameters()}
    for name, parameter in task.named_parameters():
        expected = 0.1 * 0.75 ** layers_below_head(task, name)
        assert actual[name]['lr'] == pytest.approx(expected), name
        token = name.endswith(('pos_embed', 'cls_token', 'dist_token'))
        plain = parameter.ndim <= 1 or token
        assert actual[name]['weight_decay'] == (0 if plain else 0.05), name
    assert len({group['lr'] for group in groups}) == BLOCKS + 2
    # From the lowest layer to the head, under different names.
    assert [group['lr'] for group in groups] == sorted(g['lr'] for g in groups)
    names = [group['name'] for group in groups]
    assert len(set(names)) == len(names)
    assert {'head', 'head_no_decay', 'head-1', 'head-13_no_decay'} <= set(names)


@cache
def shared_task() -> BaseTask:
    return classification()


@settings(max_examples=20, deadline=None)
@given(
    decay=st.floats(0.1, 1),
    lr=st.floats(1e-6, 1),
    frozen=st.sets(st.integers(0, BLOCKS - 1)),
)
def test_any_decay_and_any_frozen_blocks(
    decay: float, lr: float, frozen: set[int]
) -> None:
    task = shared_task()
    task.requires_grad_(True)
    for block in frozen:
        task.model.blocks[block].requires_grad_(False)
    actual = by_name(task, parameter_groups(task, lr, 0.05, decay))
    assert set(actual) == {n for n, p in task.named_parameters() if p.requires_grad}
    for name, group in actual.items():
        expected = lr * decay ** layers_below_head(task, name)
        assert group['lr'] == pytest.approx(expected)


@pytest.mark.parametrize('make', TASKS)
def test_a_frozen_encoder_is_left_out(make: Any) -> None:
    task = make(freeze_backbone=True)
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    (optimizer,) = fit(task, FineTuning(lr=1e-2)).optimizers
    actual = by_name(task, optimizer.param_groups)
    assert set(actual) == {n for n, p in task.named_parameters() if p.requires_grad}
    assert {group['initial_lr'] for group in optimizer.param_groups} == {1e-2}
    for name, parameter in task.named_parameters():
        if name not in actual:
            assert torch.equal(parameter, before[name]), name
    assert any(not torch.equal(task.get_parameter(n), before[n]) for n in actual)
    assert not [m for m in task.modules() if isinstance(m, DropPath)]


def drop_rates(task: BaseTask) -> list[list[float]]:
    (vit,) = [m for m in task.modules() if isinstance(m, VisionTransformer)]
    return [
        [m.drop_prob for m in block.modules() if isinstance(m, DropPath)]
        for block in vit.blocks
    ]


@pytest.mark.parametrize('make', [classification, *TASKS[3::2]])
def test_drop_path_grows_with_depth(make: Any) -> None:
    task = make()
    state = list(task.state_dict())
    fit(task, FineTuning(drop_path=0.22))
    rates = drop_rates(task)
    assert rates[0] == []
    for i, block in enumerate(rates[1:], start=1):
        assert block == pytest.approx([0.02 * i, 0.02 * i])
    # Without parameters, so checkpoints do not change.
    assert list(task.state_dict()) == state
    # Another run sets it anew.
    fit(task, FineTuning(drop_path=0))
    assert drop_rates(task) == [[]] * BLOCKS


def test_drop_path_of_a_single_block() -> None:
    vit = VisionTransformer(depth=1, embed_dim=8, num_heads=1)
    set_drop_path(vit, 0.5)
    assert isinstance(vit.blocks[0].drop_path1, nn.Identity)


class Rates(Callback):
    """What the optimizer steps with."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        groups = optimizer.param_groups
        self.steps.append({group['name']: group['lr'] for group in groups})


def test_schedule_and_scaling_by_the_batch() -> None:
    rates = Rates()
    # 8 samples in batches of 2, two of them per step: 2 steps in each of 10 epochs.
    trainer = fit(
        classification(),
        FineTuning(warmup_epochs=2, layer_decay=0.5),
        rates,
        max_epochs=10,
        max_steps=-1,
        accumulate_grad_batches=2,
    )
    top = 5e-4 * 4 / 256
    assert len(rates.steps) == 20
    for step, actual in enumerate(rates.steps):
        share = (step + 1) / 5
        if step >= 4:
            share = (1 + math.cos(math.pi * (step - 4) / 16)) / 2
        assert actual['head'] == pytest.approx(top * share)
        assert actual['head-13'] == pytest.approx(top * share / 2**13)
    (optimizer,) = trainer.optimizers
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0, abs=1e-12)
    assert optimizer.defaults['betas'] == (0.9, 0.999)
    assert optimizer.defaults['fused']
    (config,) = trainer.lr_scheduler_configs
    assert config.interval == 'step'


def test_the_warm_up_is_a_twentieth_by_default() -> None:
    rates = Rates()
    fit(classification(), FineTuning(lr=1e-3), rates, max_steps=20, max_epochs=-1)
    head = [step['head'] for step in rates.steps]
    assert head[:2] == pytest.approx([1e-3 / 2, 1e-3])
    assert head[2] < head[1]


class Look(Callback):
    """Look at the task while it is trained."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert is_overridden('configure_optimizers', pl_module)
        twin = copy.deepcopy(pl_module)
        assert twin.configure_optimizers.args[0] is twin
        pickled = pickle.loads(pickle.dumps(pl_module))
        assert pickled.configure_optimizers.args[0] is pickled
        assert dict(pickled.hparams) == dict(pl_module.hparams)


class Stop(Callback):
    """Fail in the middle."""

    def on_train_batch_end(self, *args: Any) -> None:
        raise RuntimeError('stopped')


def test_the_task_is_left_as_it_was() -> None:
    task = classification()
    hparams = dict(task.hparams)
    fit(task, FineTuning(), Look())
    assert 'configure_optimizers' not in vars(task)
    assert dict(task.hparams) == hparams
    with pytest.raises(RuntimeError, match='stopped'):
        fit(task, FineTuning(), Stop())
    assert 'configure_optimizers' not in vars(task)
    # Other stages do not touch it, nor a replacement of others.
    replacement = task.configure_optimizers
    task.configure_optimizers = replacement
    FineTuning().setup(Trainer(logger=False), task, 'test')
    FineTuning().teardown(Trainer(logger=False), task, 'test')
    assert vars(task)['configure_optimizers'] is replacement


@pytest.mark.parametrize(
    'make',
    [
        lambda: torchgeo_task('unet', 'resnet18', 4),
        lambda: torchgeo_task('fcsiamdiff', 'resnet18', 4),
        lambda: torchgeo_task('classification', 'resnet18', 4),
        # Has blocks, but not of a transformer.
        lambda: torchgeo_task('classification', 'efficientnet_b0', 4),
    ],
)
def test_other_encoders_take_the_rest_of_the_recipe(make: Any) -> None:
    task = make()
    with pytest.raises(
        ValueError, match=r'layer_decay: 0\.75, drop_path: 0\.1: \w+ has no transformer'
    ):
        fit(task, FineTuning())
    with pytest.raises(ValueError, match=r'^drop_path: 0\.1: .* Pass layer_decay=1'):
        fit(task, FineTuning(layer_decay=1))
    (optimizer,) = fit(task, FineTuning(lr=1e-3, **PLAIN)).optimizers
    actual = by_name(task, optimizer.param_groups)
    assert [group['name'] for group in optimizer.param_groups] == [
        'head_no_decay',
        'head',
    ]
    for name, parameter in task.named_parameters():
        assert actual[name]['initial_lr'] == 1e-3
        assert actual[name]['weight_decay'] == (0.05 if parameter.ndim > 1 else 0)


def test_a_frozen_encoder_of_another_kind_needs_no_arguments() -> None:
    (optimizer,) = fit(
        torchgeo_task('unet', 'resnet18', 4, freeze_backbone=True), FineTuning()
    ).optimizers
    assert len(optimizer.param_groups) == 2


def fit_and_keep(folder: Path, checkpoint: Path | None = None) -> Any:
    """Train with stochastic depth; weights and the optimizer's state at the end."""
    torch.manual_seed(0 if checkpoint is None else 1)
    data = resumable(chips())
    torch.manual_seed(5)
    task = classification()
    trainer = quiet_trainer(
        folder,
        callbacks=[
            FineTuning(lr=1e-3, drop_path=0.5),
            ResumableCheckpoint(every_n_train_steps=99 if checkpoint else 2, keep=99),
        ],
        max_epochs=2,
    )
    trainer.fit(task, data, ckpt_path=checkpoint)
    (optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
    return task.state_dict(), optimizer.state_dict(), config.scheduler.state_dict()


def test_resumed_runs_are_exact(tmp_path: Path) -> None:
    state, optimizer, scheduler = fit_and_keep(tmp_path / 'whole')
    actual = checkpoints(tmp_path / 'whole' / 'resume')[::-1]
    assert len(actual) == 4
    for path in actual[:-1]:
        resumed = fit_and_keep(tmp_path / path.stem, path)
        assert all(torch.equal(resumed[0][key], value) for key, value in state.items())
        groups = resumed[1]['param_groups']
        assert groups == optimizer['param_groups']
        for index, moments in optimizer['state'].items():
            for name, value in moments.items():
                assert torch.equal(resumed[1]['state'][index][name], value)
        assert resumed[2] == scheduler


def test_from_a_configuration(oscd_root: Path, tmp_path: Path) -> None:
    main(
        [
            'fit',
            f'--config={CONFIG}',
            f'--data.dict_kwargs.root={oscd_root}',
            f'--trainer.default_root_dir={tmp_path}',
            f'--trainer.logger.init_args.save_dir={tmp_path}',
        ]
    )
    log = read_log(tmp_path)
    rates = {
        name.removeprefix('lr-AdamW/'): values
        for name, (_, values) in log.items()
        if name.startswith('lr-AdamW/')
    }
    assert len(rates) == 2 * (BLOCKS + 2)
    # Four images in batches of two, two epochs: four steps, no warm-up.
    cosine = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    for layer in (0, -1, -BLOCKS - 1):
        expected = [1e-3 * 0.65**-layer * share for share in cosine]
        assert rates[f'head{layer or ""}'].tolist() == pytest.approx(expected, 1e-3)
    for name in ('iou', 'f1', 'precision', 'recall'):
        values = log[f'val_{name}_positive'][1]
        assert len(values) == 2
        assert ((values >= 0) & (values <= 1)).all()


def test_refusals() -> None:
    pretraining = SIGMAETask(VIT, size=32, decoder_dim=16, decoder_num_heads=1)
    with pytest.raises(TypeError, match='FineTuning is not for SIGMAETask'):
        fit(pretraining, FineTuning())
    with pytest.raises(ValueError, match='replaced the optimizer of this task'):
        fit(classification(), FineTuning(), FineTuning())
    task = torchgeo_task('unet', 'resnet18', 4, freeze_backbone=True)
    task.requires_grad_(False)
    with pytest.raises(ValueError, match='freeze_backbone, freeze_decoder: everything'):
        fit(task, FineTuning())


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ({'lr': 0.0}, 'lr: 0.0 must be positive'),
        ({'base_lr': -1.0}, 'base_lr: -1.0 must be positive'),
        ({'layer_decay': 0.0}, r'layer_decay: 0.0 must be in \(0, 1\]'),
        ({'layer_decay': 1.1}, r'layer_decay: 1.1 must be in \(0, 1\]'),
        ({'drop_path': 1.0}, r'drop_path: 1.0 must be in \[0, 1\)'),
        ({'weight_decay': -0.1}, 'weight_decay: -0.1 must be at least 0'),
        ({'warmup_epochs': -1.0}, 'warmup_epochs: -1.0 must be at least 0'),
    ],
)
def test_arguments_out_of_range(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuning(**argument)
