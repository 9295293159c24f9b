# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""AdamW with linear warm-up and cosine decay, as is usual for masked autoencoders."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ._compiled import unwrap

__all__ = (
    'adamw',
    'build_optimizer',
    'require_one_loader',
    'scaled_lr',
    'total_steps',
    'warmup_cosine',
    'warmup_steps',
)

#: Default share of the run that is spent warming up.
DEFAULT_WARMUP = 0.05

#: Positions and tokens: not decayed, although they have more than one dimension.
UNDECAYED = (
    'pos_embed',
    'spectral_embed',
    'cls_token',
    'reg_token',
    'mask_token',
    'mix',
)


def total_steps(trainer: Trainer) -> int:
    """Count the optimizer steps of a run, at least 1.

    Raises:
        ValueError: If the run has no end, the training loader has no length, or the
            training dataset is smaller than one batch.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError(
            'max_epochs: -1 without max_steps never ends, so the learning-rate and '
            'masking schedules cannot be computed. Pass max_epochs= or max_steps=.'
        )
    if steps < 0:
        raise ValueError(
            'max_steps: the training loader has no length, so the learning-rate and '
            'masking schedules cannot be computed. Pass max_steps= to the Trainer.'
        )
    loader = trainer.train_dataloader
    if steps == 0 and loader is not None and trainer.limit_train_batches != 0:
        size = sized_len(getattr(loader, 'dataset', None))
        raise ValueError(
            f'batch_size: {_batch_size(loader)} is larger than the training dataset '
            f'({"?" if size is None else size} samples), and the loader drops the '
            'incomplete batch, so no batch is left. Pass a smaller batch_size.'
        )
    return max(int(steps), 1)


def scaled_lr(trainer: Trainer, lr: float | None, base_lr: float) -> float:
    """Return *lr*, or scale *base_lr*, that of 256 samples a step, with the batch.

    The batch is that of all processes and accumulated batches.
    """
    if lr is not None:
        return lr
    _load_data(trainer)
    size = _batch_size(trainer.train_dataloader)
    if size is None:
        raise ValueError(
            'lr: the training loader has no batch_size, so base_lr cannot be scaled by '
            'it. Pass lr=.'
        )
    size *= trainer.accumulate_grad_batches * trainer.world_size
    return base_lr * size / 256


def require_one_loader(trainer: Trainer) -> None:
    """Refuse several training loaders, whose batches come together."""
    _load_data(trainer)
    if isinstance(trainer.train_dataloader, list | tuple | dict):
        raise ValueError(
            'train_dataloaders: several loaders, but a step takes one batch. Join '
            'their datasets: DataLoader(ConcatDataset([a, b]), batch_size=..., '
            'shuffle=True).'
        )


def warmup_steps(trainer: Trainer, steps: int, warmup_epochs: float | None) -> int:
    """Count the optimizer steps of the warm-up; *warmup_epochs* None is 5 % of all."""
    if warmup_epochs is None:
        return round(DEFAULT_WARMUP * steps)
    _load_data(trainer)
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise ValueError(
            f'warmup_epochs: {warmup_epochs}, but the training loader has no length. '
            f'Pass warmup_epochs=None for {DEFAULT_WARMUP:.0%} of the run.'
        )
    return round(warmup_epochs * batches / trainer.accumulate_grad_batches)


def build_optimizer(
    modules: Iterable[nn.Module],
    lr: float,
    weight_decay: float,
    trainer: Trainer | None = None,
) -> AdamW:
    """AdamW (0.9, 0.95) without decay of biases, norms, positions and tokens."""
    groups: list[dict[str, Any]] = []
    for module in modules:
        groups += param_groups_weight_decay(
            unwrap(module), weight_decay, no_weight_decay_list=UNDECAYED
        )
    return adamw(groups, lr, (0.9, 0.95), trainer)


def adamw(
    groups: list[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    trainer: Trainer | None = None,
) -> AdamW:
    """AdamW, with the fused kernel where possible; without trainer in any case."""
    fused = all(p.device.type in {'cpu', 'cuda'} for g in groups for p in g['params'])
    if trainer is not None and trainer.gradient_clip_val:
        # Lightning refuses to clip gradients of fused optimizers in mixed precision.
        fused &= 'mixed' not in str(trainer.precision)
    return AdamW(groups, lr=lr, betas=betas, fused=fused)


def warmup_cosine(optimizer: Optimizer, steps: int, warmup_steps: int) -> LambdaLR:
    """Linear warm-up, then a half cosine to 0, to be stepped after every step.

    A warm-up of more than half of the run is capped there, with a warning.
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
    """Load the data, which Lightning does late if max_steps is given."""
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()


def _batch_size(loader: Any) -> int | None:
    """Batch size of a loader, or of several together; None if one has none."""
    if isinstance(loader, list | tuple | dict):
        parts = loader.values() if isinstance(loader, dict) else loader
        sizes = [_batch_size(part) for part in parts]
        return None if None in sizes else sum(size or 0 for size in sizes)
    size = getattr(loader, 'batch_size', None)
    if size is None:
        size = getattr(getattr(loader, 'batch_sampler', None), 'batch_size', None)
    return size
