# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import SGD
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import SyntheticSentinel2DataModule
from torchgeo_sigmae.models import MaskedAutoencoder, build_encoder
from torchgeo_sigmae.optim import (
    build_optimizer,
    scaled_lr,
    total_steps,
    warmup_cosine,
    warmup_steps,
)


def trainer(**kwargs) -> SimpleNamespace:
    loader = DataLoader(list(range(10)), batch_size=4)
    defaults = {
        'estimated_stepping_batches': 100,
        'train_dataloader': loader,
        'num_training_batches': 3,
        'limit_train_batches': 1.0,
        'accumulate_grad_batches': 1,
        'world_size': 1,
        'gradient_clip_val': None,
        'precision': '32-true',
    }
    return SimpleNamespace(**{**defaults, **kwargs})


def test_one_dimensional_parameters_do_not_decay() -> None:
    model = MaskedAutoencoder(build_encoder('sigmae_vit_tiny_patch8', 4, 32))
    optimizer = build_optimizer([model.encoder, model.decoder], 1e-3, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    decays = {
        names[id(p)]: group['weight_decay']
        for group in optimizer.param_groups
        for p in group['params']
    }
    assert set(decays) == set(names.values())
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or name.rsplit('.')[-1] in {
            'pos_embed',
            'cls_token',
            'mask_token',
            'mix',
        }
        assert decays[name] == (0 if plain else 0.05), name
    assert optimizer.defaults['betas'] == (0.9, 0.95)
    assert optimizer.defaults['fused']


def test_clipping_in_mixed_precision_gives_up_the_fused_kernel() -> None:
    module = [torch.nn.Linear(2, 2)]
    mixed = trainer(gradient_clip_val=1.0, precision='bf16-mixed')
    assert not build_optimizer(module, 1e-3, 0, mixed).defaults['fused']
    plain = trainer(gradient_clip_val=1.0)
    assert build_optimizer(module, 1e-3, 0, plain).defaults['fused']


def test_warm_up_then_cosine() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = warmup_cosine(optimizer, 100, 10)
    rates = []
    for _ in range(101):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_too_long_a_warm_up_is_capped_with_a_warning() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.warns(UserWarning, match='warmup_epochs: the warm-up of 400 steps'):
        scheduler = warmup_cosine(optimizer, 100, 400)
    for _ in range(50):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] == 1.0


def test_steps_and_effective_batch() -> None:
    assert total_steps(trainer()) == 100
    # A base_lr of 256 gives the effective batch size.
    assert scaled_lr(trainer(), None, 256) == 4
    many = trainer(accumulate_grad_batches=3, world_size=2)
    assert scaled_lr(many, None, 256) == 24
    sampler = BatchSampler(SequentialSampler(range(10)), 5, drop_last=True)
    loader = DataLoader(list(range(10)), batch_sampler=sampler)
    assert scaled_lr(trainer(train_dataloader=loader), None, 256) == 5


def test_learning_rate_and_warm_up() -> None:
    assert scaled_lr(trainer(accumulate_grad_batches=3), None, 1e-3) == 1e-3 * 12 / 256
    assert scaled_lr(trainer(), 0.1, 1e-3) == 0.1
    assert warmup_steps(trainer(), 100, None) == 5
    assert warmup_steps(trainer(), 100, 4) == 12
    assert warmup_steps(trainer(accumulate_grad_batches=2), 100, 4) == 6


def test_data_are_loaded_where_only_max_steps_is_given() -> None:
    late = trainer(train_dataloader=None)

    def setup_data() -> None:
        late.train_dataloader = DataLoader(list(range(10)), batch_size=5)
        late.num_training_batches = 2

    late.fit_loop = SimpleNamespace(setup_data=setup_data)
    assert warmup_steps(late, 100, 4) == 8
    late.train_dataloader = None
    assert scaled_lr(late, None, 0.256) == pytest.approx(5e-3)


def test_errors() -> None:
    with pytest.raises(ValueError, match='max_steps: the training loader has no len'):
        total_steps(trainer(estimated_stepping_batches=-1))
    with pytest.raises(ValueError, match='warmup_epochs: 2, but the training loader'):
        warmup_steps(trainer(num_training_batches=float('inf')), 100, 2)
    with pytest.raises(ValueError, match='max_epochs: -1 without max_steps'):
        total_steps(trainer(estimated_stepping_batches=float('inf')))
    with pytest.raises(ValueError, match=r'batch_size: 4 is larger .* \(10 samples\)'):
        total_steps(trainer(estimated_stepping_batches=0))
    with pytest.raises(ValueError, match='lr: the training loader has no batch_size'):
        scaled_lr(trainer(train_dataloader=iter([])), None, 1e-3)
    assert total_steps(trainer(estimated_stepping_batches=0, limit_train_batches=0))


def test_gradients_are_freed_before_the_next_forward_pass(
    synthetic_root: Path, tmp_path: Path
) -> None:
    task = small_task('sigmae', mean=None, std=None, normalize=None)
    accumulated = []

    class Look(Callback):
        def on_train_batch_start(self, *args: object) -> None:
            accumulated.append(any(p.grad is not None for p in task.parameters()))

    data = SyntheticSentinel2DataModule(batch_size=2, root=synthetic_root)
    quiet_trainer(
        tmp_path, max_steps=2, accumulate_grad_batches=2, limit_val_batches=0,
        callbacks=[Look()],
    ).fit(task, data)  # fmt: skip
    # What is accumulated stays until the step.
    assert accumulated == [False, True, False, True]
