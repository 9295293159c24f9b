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

__all__ = (
    'adamw',
    'build_optimizer',
    'effective_batch_size',
    'scaled_lr',
    'total_steps',
    'warmup_cosine',
    'warmup_steps',
)

#: Share of the steps spent warming up where nothing else is asked for.
DEFAULT_WARMUP = 0.05

#: Positions and tokens: they do not decay, though they have more than one dimension.
UNDECAYED = (
    'pos_embed',
    'spectral_embed',
    'cls_token',
    'reg_token',
    'mask_token',
    'mix',
)


def total_steps(trainer: Trainer) -> int:
    """Count the optimiser steps of a run.

    Args:
        trainer: The trainer, with its data attached.

    Returns:
        The number of steps, at least 1.

    Raises:
        ValueError: If the run has no end or none that is known, or its training loader
            gives no batch because the dataset is smaller than the batch.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError(
            'max_epochs: -1 with no max_steps never ends, so neither the learning rate '
            'nor the curriculum has a course. Pass max_epochs= or max_steps=.'
        )
    if steps < 0:
        raise ValueError(
            'max_steps: the training data do not tell how long an epoch is, so neither '
            'the learning rate nor the curriculum has a course. Pass max_steps=.'
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
    _load_data(trainer)
    size = _batch_size(trainer.train_dataloader)
    if size is None:
        raise ValueError(
            'lr: the training loader does not tell its batch size, so base_lr cannot '
            'be scaled by it. Pass lr= itself.'
        )
    return size * trainer.accumulate_grad_batches * trainer.world_size


def scaled_lr(trainer: Trainer, lr: float | None, base_lr: float) -> float:
    """The learning rate: as given, or in proportion to the batch.

    Args:
        trainer: The trainer, with its data attached.
        lr: The learning rate itself; None for *base_lr* x effective batch / 256.
        base_lr: Learning rate of 256 samples per step.

    Returns:
        The learning rate.

    Raises:
        ValueError: If *lr* is None and the loader does not tell its batch size.
    """
    return base_lr * effective_batch_size(trainer) / 256 if lr is None else lr


def warmup_steps(trainer: Trainer, steps: int, warmup_epochs: float | None) -> int:
    """Count the optimiser steps of the warm-up.

    Args:
        trainer: The trainer, with its data attached.
        steps: Steps of the whole run.
        warmup_epochs: Epochs of the warm-up; None for 5 % of the run.

    Returns:
        The number of steps.

    Raises:
        ValueError: If *warmup_epochs* is given and the data do not tell their length.
    """
    if warmup_epochs is None:
        return round(DEFAULT_WARMUP * steps)
    _load_data(trainer)
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise ValueError(
            f'warmup_epochs: {warmup_epochs}, but the training data do not tell how '
            f'long an epoch is. Pass warmup_epochs=None for {DEFAULT_WARMUP:.0%} of '
            'the run.'
        )
    return round(warmup_epochs * batches / trainer.accumulate_grad_batches)


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
    for module in modules:
        groups += param_groups_weight_decay(
            module, weight_decay, no_weight_decay_list=UNDECAYED
        )
    return adamw(groups, lr, (0.9, 0.95), trainer)


def adamw(
    groups: list[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    trainer: Trainer | None = None,
) -> AdamW:
    """AdamW with the fused kernel wherever it can be used.

    Args:
        groups: Parameter groups.
        lr: Learning rate of the groups that have none of their own.
        betas: Decay of the running means of the gradient and of its square.
        trainer: The trainer, which decides whether the fused kernel can be used.

    Returns:
        The optimiser.
    """
    fused = trainer is None or not _clips_in_mixed_precision(trainer)
    for group in groups:
        fused &= all(p.device.type in {'cpu', 'cuda'} for p in group['params'])
    return AdamW(groups, lr=lr, betas=betas, fused=fused)


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


def _load_data(trainer: Trainer) -> None:
    """Lightning loads them late where max_steps alone tells the length of the run."""
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()


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
