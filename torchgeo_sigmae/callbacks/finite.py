# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Stop a training before a NaN reaches the weights, and name the files."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ..datasets.resumable import batches_begun, samples_of

__all__ = ('FiniteGuard', 'batch_names')

#: Keys under which datasets name their files.
_PATHS = ('path', 'filename', 'filepath')

#: A GradScaler starts at 2**16 and halves at every step it leaves out. Below this, it
#: has left out 32 in a row, and will never find a scale.
_SMALLEST_SCALE = 2.0**-16


class FiniteGuard(Callback):
    """Stop before a loss or gradient that is not finite reaches the weights.

    The error names the step, and the files or samples of the batch. Works with any
    task; :class:`~torchgeo_sigmae.SIGMAETask` and :class:`.FineTuning` add one to their
    trainer. Losses and gradients are checked together, with a single transfer from the
    device per step.

    .. versionadded:: 0.1
    """

    def __init__(self) -> None:
        """Initialize a new FiniteGuard instance."""
        self._losses: list[Tensor] = []
        # Names and windows of each batch, and its number.
        self._batches: list[tuple[dict[str, Any], int]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which samples the batch holds."""
        # Batches since the last optimizer step belong to the next step.
        del self._batches[len(self._losses) :]
        # Turned into words only on failure: windows may be on a device.
        content = batch if isinstance(batch, dict) else {}
        names = {key: content[key] for key in (*_PATHS, 'window') if key in content}
        self._batches.append((names, batches_begun(trainer) - 1))

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Note the loss of the batch."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Stop if a loss or a gradient since the last step is not finite.

        Raises:
            RuntimeError: If so; names the step and the files of the batches.
        """
        losses, batches = self._losses, self._batches
        self._losses, self._batches = [], []
        values = [loss.float() for loss in losses]
        # A scaler tries scales until gradients fit, and skips a step meanwhile.
        if _scaler(trainer) is None:
            values.append(_gradient_norm(optimizer).float())
        if not values or bool(torch.stack(values).isfinite().all()):
            return
        wrong = [
            batch
            for loss, batch in zip(losses, batches, strict=True)
            if not loss.isfinite()
        ]
        what = 'loss' if wrong else 'gradient'
        raise RuntimeError(
            f'Step {trainer.global_step}: the {what} is not finite'
            + f' on process {trainer.global_rank}' * (trainer.world_size > 1)
            + '. The weights are those before the step. The batch holds '
            + '; '.join(_in_words(trainer, *batch) for batch in wrong or batches)
            + '. Look at these files, and exclude what is damaged; if they are sound, '
            'the training diverged: pass a smaller lr=, or gradient_clip_val= to the '
            'Trainer.'
        )

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        """Stop where a gradient scaler skips every step.

        Raises:
            RuntimeError: If no scale makes the gradients finite.
        """
        scaler = _scaler(trainer)
        if scaler is not None and scaler.get_scale() < _SMALLEST_SCALE:
            raise RuntimeError(
                f'Step {trainer.global_step}: no gradient was finite for many steps, '
                'whatever they were scaled by, so that none was taken. Pass '
                "precision='bf16-mixed' or '32-true' to the Trainer."
            )


def add_guard(trainer: Trainer) -> None:
    """Give a trainer a guard, unless it has one."""
    callbacks: list[Callback] = getattr(trainer, 'callbacks')  # noqa: B009
    if not any(isinstance(callback, FiniteGuard) for callback in callbacks):
        # At the end: the trainer may be going through the list.
        callbacks.append(FiniteGuard())


def _scaler(trainer: Trainer) -> Any:
    """The gradient scaler of fp16 training, if there is one."""
    return getattr(trainer.precision_plugin, 'scaler', None)


def _in_words(trainer: Trainer, batch: dict[str, Any], number: int) -> str:
    """Say which samples a batch holds."""
    if names := batch_names(batch):
        return names
    if indices := samples_of(trainer, number):
        which = ', '.join(map(str, indices))
        return f'samples {which} of the dataset, which gives no file names'
    return 'samples that are not known: the dataset gives no file names'


def batch_names(batch: dict[str, Any]) -> str:
    """Name the files of a batch in words; nothing if the dataset names none.

    Args:
        batch: A batch, in which ``'path'`` or ``'filename'`` may hold the name of every
            sample, and ``'window'`` its first row and column, ``(B, 2)``.
    """
    paths = next((batch[key] for key in _PATHS if key in batch), None)
    if not isinstance(paths, list | tuple):
        return ''
    windows = batch.get('window')
    corners: dict[str, list[str]] = {str(path): [] for path in paths}
    if isinstance(windows, Tensor):
        for path, (row, column) in zip(paths, windows.tolist(), strict=True):
            corners[str(path)].append(f'{int(row)}, {int(column)}')
    return ', '.join(
        f'{path} (row, column {" and ".join(windows)})' if windows else path
        for path, windows in corners.items()
    )


def _gradient_norm(optimizer: Optimizer) -> Tensor:
    """The norm of all gradients, whose overflow would fill AdamW's squares with inf."""
    grads = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group['params']
        if parameter.grad is not None
    ]
    # The largest magnitude would take eight times as long on a CPU.
    return get_total_norm(grads)
