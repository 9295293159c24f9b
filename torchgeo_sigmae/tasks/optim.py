# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Optimisation as the field does it for masked autoencoders."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

__all__ = ('build_optimizer', 'effective_batch_size', 'total_steps', 'warmup_cosine')

#: Share of the steps spent warming up where nothing else is asked for.
DEFAULT_WARMUP = 0.05


def total_steps(trainer: Trainer) -> int:
    """Count the optimiser steps of a run.

    Args:
        trainer: The trainer, with its data attached.

    Returns:
        The number of steps, at least 1.

    Raises:
        ValueError: If the run has no end, or its training loader gives no batch
            because the dataset is smaller than the batch.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError(
            'max_epochs: -1 with no max_steps never ends, so neither the learning rate '
            'nor the curriculum has a course. Pass max_epochs= or max_steps=.'
        )
    loader = trainer.train_dataloader
    if steps == 0 and loader is not None and trainer.limit_train_batches != 0:
        size = _length(getattr(loader, 'dataset', None))
        raise ValueError(
            f'batch_size: {_batch_size(loader)} is larger than the training dataset '
            f'({size} samples), whose loader drops the incomplete batch: there is '
            'nothing to train on. Pass a smaller batch_size.'
        )
    return max(int(steps), 1)


def effective_batch_size(trainer: Trainer) -> int:
    """Count the samples behind one optimiser step, over accumulation and all devices.

    Args:
        trainer: The trainer, with its data attached.

    Returns:
        Batch size x accumulated batches x processes.

    Raises:
        ValueError: If the loader does not tell its batch size.
    """
    size = _batch_size(trainer.train_dataloader)
    if size is None:
        raise ValueError(
            'lr: the training loader does not tell its batch size, so base_lr cannot '
            'be scaled by it. Pass lr= itself.'
        )
    return size * trainer.accumulate_grad_batches * trainer.world_size


def build_optimizer(
    modules: Iterable[nn.Module],
    lr: float,
    weight_decay: float,
    trainer: Trainer | None = None,
) -> AdamW:
    """AdamW (0.9, 0.95) without decay on biases, norms, positions and tokens.

    Args:
        modules: What to train.
        lr: Learning rate.
        weight_decay: Weight decay of matrices and kernels.
        trainer: The trainer, which decides whether the fused kernel can be used.

    Returns:
        The optimiser.
    """
    groups: list[dict[str, Any]] = []
    undecayed = ('pos_embed', 'cls_token', 'reg_token', 'mask_token', 'mix')
    fused = trainer is None or not _clips_in_mixed_precision(trainer)
    for module in modules:
        groups += param_groups_weight_decay(
            module, weight_decay, no_weight_decay_list=undecayed
        )
        fused &= all(p.device.type in {'cpu', 'cuda'} for p in module.parameters())
    return AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=fused)


def warmup_cosine(
    optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int
) -> LambdaLR:
    """Linear warm-up, then a half cosine to 0, per step.

    Args:
        optimizer: The optimiser.
        steps: Steps of the whole run.
        warmup_steps: Steps of the warm-up; capped at half the run, with a warning.

    Returns:
        The scheduler, to be stepped after every optimiser step.
    """
    if warmup_steps > steps / 2:
        capped = steps // 2
        warnings.warn(
            f'warmup_epochs: the warm-up of {warmup_steps} steps is more than half of '
            f'the {steps} steps of this run; using {capped}. Pass warmup_epochs=None '
            f'for {DEFAULT_WARMUP:.0%} of the run.',
            stacklevel=2,
        )
        warmup_steps = capped

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
        return (1 + math.cos(math.pi * min(progress, 1.0))) / 2

    return LambdaLR(optimizer, factor)


def _clips_in_mixed_precision(trainer: Trainer) -> bool:
    """Lightning refuses gradient clipping of fused optimisers in mixed precision."""
    return bool(trainer.gradient_clip_val) and 'mixed' in str(trainer.precision)


def _batch_size(loader: Any) -> int | None:
    """The batch size of a loader, if it tells."""
    size = getattr(loader, 'batch_size', None)
    if size is None:
        size = getattr(getattr(loader, 'batch_sampler', None), 'batch_size', None)
    return size


def _length(dataset: Any) -> int | str:
    """The length of a dataset, if it has one."""
    try:
        return len(dataset)
    except TypeError:
        return 'an unknown number of'
