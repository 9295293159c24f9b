# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Fine-tuning of pretrained transformers, for TorchGeo's own tasks."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from .._compiled import keep_plain_keys, unwrap
from .._methods import replace_method, restore_method
from ..datamodules.inspect import attached_datamodule
from ..models import MaskedAutoencoder
from ..optim import adamw, scaled_lr, total_steps, warmup_cosine, warmup_steps
from ..weights import Weights
from ..weights.files import ENCODER_KEY, plain
from .batch_values import warn_of_values
from .finite import add_guard
from .layers import find_transformers, parameter_groups, set_drop_path
from .pretrained_inputs import (
    check_bands,
    encoder_record,
    match_normalization,
    read_own_weights,
)

__all__ = ('FineTuning',)


class FineTuning(Callback):
    """Train a task of TorchGeo as masked autoencoders are fine-tuned.

    Replaces the optimizer and the schedule of any task of TorchGeo, and with them its
    ``lr`` and ``patience``: classification, regression, segmentation, change detection.

    * Learning rates by layer, as in ELECTRA (https://arxiv.org/abs/2003.10555) and BEiT
      (https://arxiv.org/abs/2106.08254): what is new (head, decoder) learns with
      ``lr``, block i = 1 ... L of the transformer with ``lr * layer_decay ** (L + 1 -
      i)``, its patch embedding, positions and tokens with ``lr * layer_decay ** (L +
      1)``, and its last norm like its last block.
    * AdamW without weight decay of biases, norms, positions and tokens.
    * Linear warm-up, then a half cosine to 0, by optimizer steps.
    * Stochastic depth (https://arxiv.org/abs/1603.09382): in training, a residual
      branch is dropped for a sample with a probability that grows linearly from 0 in
      the first block to ``drop_path`` in the last.

    Weights that were made for other bands than the datamodule gives, or for another
    order of them, are refused: TorchGeo's tasks only count bands. If the datamodule
    normalizes differently from pretraining, the first layer of the encoder makes up for
    it, exactly and before the first step. A warning says if the values of the first
    batch are not normalized as the weights expect.

    Checkpoints record bands, sensor, mean and std of the encoder, so they are weights
    for any other task.

    A :class:`.FiniteGuard` stops the run before a NaN reaches the weights.

    Frozen parameters are left out, and a frozen transformer gets no stochastic depth.
    The defaults are those of MAE's fine-tuning (https://arxiv.org/abs/2111.06377, Table
    9), but for the warm-up of 5 % of the run, as in our pretraining, and ``base_lr``,
    which is that of its released recipe for ViT-B.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        lr: float | None = None,
        base_lr: float = 5e-4,
        layer_decay: float = 0.75,
        drop_path: float = 0.1,
        weight_decay: float = 0.05,
        warmup_epochs: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        match_normalization: bool = True,
    ) -> None:
        """Initialize a new FineTuning instance.

        Args:
            lr: Learning rate of the head; None for *base_lr* x effective batch / 256.
            base_lr: Learning rate of 256 samples per step.
            layer_decay: Factor from each layer to the one below, in (0, 1]; 1 for one
                learning rate for all, which is what encoders without transformer
                blocks take.
            drop_path: Probability in [0, 1) of dropping a branch of the last block.
            weight_decay: Weight decay of matrices and kernels.
            warmup_epochs: Epochs of the warm-up; None for 5 % of the run.
            betas: AdamW's decay of the running means of the gradient and of its square.
            match_normalization: Whether the first layer of pretrained weights makes up
                for a datamodule that normalizes differently from pretraining.

        Raises:
            ValueError: If an argument is outside its range.
        """
        for name, value, allowed, description in (
            ('lr', lr, lr is None or lr > 0, 'positive'),
            ('base_lr', base_lr, base_lr > 0, 'positive'),
            ('layer_decay', layer_decay, 0 < layer_decay <= 1, 'in (0, 1]'),
            ('drop_path', drop_path, 0 <= drop_path < 1, 'in [0, 1)'),
            ('weight_decay', weight_decay, weight_decay >= 0, 'at least 0'),
            ('warmup_epochs', warmup_epochs, (warmup_epochs or 0) >= 0, 'at least 0'),
        ):
            if not allowed:
                raise ValueError(f'{name}: {value} must be {description}.')
        self.lr = None if lr is None else float(lr)
        self.base_lr = float(base_lr)
        self.layer_decay = layer_decay
        self.drop_path = drop_path
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.betas = betas
        self.match_normalization = match_normalization
        self._weights: Weights | None = None
        self._expected: tuple[Tensor, Tensor] | None = None
        self._normalized = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the optimizer; set stochastic depth."""
        if stage != 'fit':
            return
        model = getattr(pl_module, 'model', pl_module)
        if isinstance(unwrap(model), MaskedAutoencoder):
            raise TypeError(
                f'callbacks: FineTuning is not for {type(pl_module).__name__}, which '
                'pretrains and has arguments of its own for the same (lr, base_lr, '
                'weight_decay, warmup_epochs). Leave FineTuning out.'
            )
        if 'configure_optimizers' in vars(pl_module):
            raise ValueError(
                'callbacks: something replaced the optimizer of this task before '
                'FineTuning: another FineTuning, or optimizer: in the configuration. '
                'Keep one of them.'
            )
        self._check_encoder(pl_module)
        keep_plain_keys(pl_module)
        datamodule = attached_datamodule(trainer)
        weights = read_own_weights(getattr(pl_module, 'weights', None))
        check_bands(weights, datamodule)
        self._weights = weights
        self._expected = (torch.ones(1), torch.zeros(1)) if weights else None
        self._normalized = True
        for transformer in find_transformers(pl_module).values():
            if self.match_normalization and weights:
                self._expected = match_normalization(transformer, weights, datamodule)
            if any(p.requires_grad for p in transformer.blocks.parameters()):
                set_drop_path(transformer, self.drop_path)
        replace_method(pl_module, 'configure_optimizers', self._configure_optimizers)
        add_guard(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the values of the first batch."""
        _convert(batch, pl_module)
        if self._weights is None or self._expected is None:
            return
        image = batch.get('image') if isinstance(batch, dict) else None
        if isinstance(image, Tensor) and image.is_floating_point():
            self._normalized = warn_of_values(image, self._weights, *self._expected)
        self._expected = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: object
    ) -> None:
        """Bring images to the precision of the model."""
        _convert(batch, pl_module)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: object
    ) -> None:
        """Bring images to the precision of the model."""
        _convert(batch, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record what must be known to use the encoder elsewhere."""
        arguments = checkpoint['hyper_parameters'] = plain(
            checkpoint.get('hyper_parameters', {})
        )
        model = arguments.get('backbone') or arguments.get('model')
        encoder = next(iter(find_transformers(pl_module).values()), None)
        if encoder is None or not isinstance(model, str):
            return
        datamodule = attached_datamodule(trainer)
        if record := encoder_record(encoder, model, self._weights, datamodule):
            if not self._normalized:
                record.update(mean=None, std=None)
            checkpoint[ENCODER_KEY] = plain(record)

    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Give the optimizer back."""
        restore_method(pl_module, 'configure_optimizers', self._configure_optimizers)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the optimizer back."""
        restore_method(pl_module, 'configure_optimizers', self._configure_optimizers)

    def _check_encoder(self, pl_module: LightningModule) -> None:
        """Refuse arguments that would have no effect."""
        asked = [f'layer_decay: {self.layer_decay}'] * (self.layer_decay != 1)
        asked += [f'drop_path: {self.drop_path}'] * (self.drop_path != 0)
        frozen = pl_module.hparams.get('freeze_backbone', False)
        if asked and not frozen and not find_transformers(pl_module):
            model = unwrap(getattr(pl_module, 'model', pl_module))
            encoder = unwrap(getattr(model, 'encoder', model))
            raise ValueError(
                f'{", ".join(asked)}: {type(encoder).__name__} has no transformer '
                'blocks. Pass layer_decay=1 and drop_path=0 to FineTuning, which '
                'leaves the rest of the recipe, or use an encoder that has, for '
                "example 'sigmae_vit_small_patch8'."
            )

    def _configure_optimizers(
        self, pl_module: LightningModule, original: Callable[[], OptimizerLRScheduler]
    ) -> OptimizerLRScheduler:
        """Make the optimizer, in place of the task's own method."""
        trainer = pl_module.trainer
        steps = total_steps(trainer)
        lr = scaled_lr(trainer, self.lr, self.base_lr)
        warmup = warmup_steps(trainer, steps, self.warmup_epochs)
        groups = parameter_groups(pl_module, lr, self.weight_decay, self.layer_decay)
        optimizer = adamw(groups, lr, self.betas, trainer)
        scheduler = warmup_cosine(optimizer, steps, warmup)
        rank_zero_info(
            f'FineTuning: {steps} steps, {warmup} of them warm-up; lr {lr:.3g} at the '
            f'head, {min(scheduler.base_lrs):.3g} at the lowest '
            "layer that is trained. The task's own lr and patience are not used."
        )
        return {
            'optimizer': optimizer,
            'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'},
        }


def _convert(batch: Any, pl_module: LightningModule) -> None:
    """Bring integers and float64, which NumPy makes, to the precision of the model."""
    image = batch.get('image') if isinstance(batch, dict) else None
    if not isinstance(image, Tensor):
        return
    if image.dtype == torch.float64 or not image.is_floating_point():
        batch['image'] = image.to(next(pl_module.parameters()).dtype)
