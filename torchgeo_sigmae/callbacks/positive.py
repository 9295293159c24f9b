# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Metrics of one class that mean the same in every task and version of TorchGeo."""

import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from torchmetrics.classification import BinaryConfusionMatrix

__all__ = ('PositiveClassMetrics',)

#: Marks the pixels that do not count, in a target that is 0 or 1 otherwise.
_IGNORED = -1


class PositiveClassMetrics(Callback):
    r"""IoU, F1, precision and recall of the positive class.

    From a single confusion matrix over all pixels of the validation or test data (of
    all loaders and processes), for segmentation and change detection with
    ``task='binary'`` or ``'multiclass'``. Everything but the positive class counts as
    negative:

    .. math::

        \mathrm{IoU} = \frac{TP}{TP + FP + FN}, \quad
        F_1 = \frac{2 TP}{2 TP + FP + FN}, \quad
        \mathrm{precision} = \frac{TP}{TP + FP}, \quad
        \mathrm{recall} = \frac{TP}{TP + FN}

    Logged as ``val_iou_positive``, ``val_f1_positive``, ``val_precision_positive`` and
    ``val_recall_positive``, or ``test_...``, all in [0, 1], higher is better. They can
    be monitored, for example by ``ModelCheckpoint(monitor='val_iou_positive',
    mode='max')``. TorchGeo's own metrics are named and averaged in other ways in every
    version, and in most the negative class, which is nearly everything, counts as well.

    A model that finds nothing has a precision of 0, by convention, like the other
    three: the worst value, and finite, because this is how most trainings begin. If the
    data hold no positive pixel, though, there is nothing to measure: all four are NaN,
    with a warning, so that they spoil any average instead of passing for a result.

    .. versionadded:: 0.1
    """

    def __init__(self, positive: int = 1, ignore_index: int | None = None) -> None:
        """Initialize a new PositiveClassMetrics instance.

        Args:
            positive: The positive class: 0 or 1 for ``task='binary'``, an index under
                ``num_classes`` for ``task='multiclass'``.
            ignore_index: Value of the pixels in the mask that do not count; None for
                the task's own ``ignore_index``.

        Raises:
            ValueError: If *positive* is negative or is the class to ignore.
        """
        if positive < 0:
            raise ValueError(f'positive: {positive} must be the index of a class.')
        _check_ignored(positive, ignore_index)
        self.positive = positive
        self.ignore_index = ignore_index
        self._ignore_index = ignore_index
        self._task = ''
        self._confusion: BinaryConfusionMatrix | None = None
        self._handle: RemovableHandle | None = None
        self._outputs: list[Tensor] = []
        self._mask: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out what the task predicts.

        Args:
            trainer: The trainer.
            pl_module: The task.
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            ValueError: If the task predicts no classes that exclude each other, the
                positive one is none of them, or it is ignored.
        """
        hparams = pl_module.hparams
        self._task = str(hparams.get('task'))
        if self._task not in {'binary', 'multiclass'}:
            raise ValueError(
                f'task: {self._task!r}, but PositiveClassMetrics takes segmentation '
                "and change detection with task='binary' or 'multiclass'. Leave it "
                f'out of the callbacks of {type(pl_module).__name__}.'
            )
        count = 2 if self._task == 'binary' else hparams.get('num_classes')
        if count is not None and self.positive >= count:
            raise ValueError(
                f'positive: {self.positive} is not among the {count} classes of '
                f'{type(pl_module).__name__} with task={self._task!r}. Pass '
                f'positive=0 to {count - 1}.'
            )
        self._ignore_index = self.ignore_index
        if self._ignore_index is None:
            self._ignore_index = hparams.get('ignore_index')
        _check_ignored(self.positive, self._ignore_index)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        if not trainer.sanity_checking:
            self._begin(pl_module)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remember the truth.

        Args:
            trainer: The trainer.
            pl_module: The task.
            batch: The batch.
            batch_idx: Its place.
            dataloader_idx: Index of its loader.
        """
        self._expect(batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count what the task found.

        Args:
            trainer: The trainer.
            pl_module: The task.
            outputs: What its step returned.
            batch: The batch.
            batch_idx: Its place.
            dataloader_idx: Index of its loader.
        """
        self._count(pl_module)

    def on_validation_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Log.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._log(pl_module, 'test' if trainer.testing else 'val')

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._end()

    # Tests go the same way.
    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop listening.

        Args:
            trainer: The trainer.
            pl_module: The task.
            exception: What stopped the run.
        """
        self._end()

    def _begin(self, pl_module: LightningModule) -> None:
        """Listen to the task's own forward pass, instead of doing it a second time."""
        self._end()
        self._handle = pl_module.register_forward_hook(self._listen)
        # A new one each time: a state born in inference mode could not be reset and
        # updated outside of it.
        self._confusion = BinaryConfusionMatrix(
            ignore_index=_IGNORED, validate_args=False
        ).to(pl_module.device)

    def _listen(self, module: Any, inputs: Any, output: Any) -> None:
        """Keep the logits.

        Some strategies also send the whole validation step through forward; what that
        returns is no image.
        """
        if isinstance(output, Tensor) and output.ndim > 2:
            self._outputs.append(output)

    def _expect(self, batch: Any) -> None:
        """Keep the mask before the task's figures change the batch."""
        self._outputs.clear()
        self._mask = batch.get('mask') if isinstance(batch, dict) else None

    def _count(self, pl_module: LightningModule) -> None:
        """Add a batch to the confusion matrix."""
        if self._confusion is None:
            return
        name = type(pl_module).__name__
        if self._mask is None or len(self._outputs) != 1:
            held = 'no mask' if self._mask is None else 'a mask'
            raise RuntimeError(
                f"batch['mask']: the batch holds {held}, and the forward pass of "
                f'{name} ran {len(self._outputs)} times on it; PositiveClassMetrics '
                'takes a task that predicts a mask with one forward pass, like '
                "TorchGeo's segmentation and change detection. Leave it out of the "
                'callbacks.'
            )
        logits, mask = self._outputs.pop().detach(), self._mask
        if self._task == 'binary':
            # As TorchGeo draws it: sigmoid(logit) >= 0.5.
            found = (logits.squeeze(1) >= 0).long()
        else:
            found = logits.argmax(dim=1)
        if mask.ndim == found.ndim + 1:
            mask = mask.squeeze(1)
        if mask.shape != found.shape:
            raise RuntimeError(
                f"batch['mask']: its shape {tuple(self._mask.shape)} does not go with "
                f'what {name} predicts, {tuple(logits.shape)}. PositiveClassMetrics '
                'takes (B, H, W) or (B, 1, H, W) with (B, classes, H, W).'
            )
        target = (mask == self.positive).long()
        if self._ignore_index is not None:
            target = target.masked_fill(mask == self._ignore_index, _IGNORED)
        self._confusion.update((found == self.positive).long(), target)
        self._mask = None

    def _log(self, pl_module: LightningModule, stage: str) -> None:
        """Compute over all processes, and log."""
        if self._confusion is None:
            return
        with warnings.catch_warnings():
            # Every process computes, also one whose share held no data.
            warnings.filterwarnings('ignore', message='The ``compute`` method')
            matrix: Tensor = self._confusion.compute()
        _, false_positive, false_negative, positive = matrix.flatten().tolist()
        truth, predicted = positive + false_negative, positive + false_positive
        if not truth:
            rank_zero_warn(
                f'positive: the {stage} masks hold no pixel of class {self.positive}, '
                'so there is nothing to measure and its metrics are NaN. Pass another '
                'positive=, or other data.'
            )
        values = {
            'iou': (positive, truth + false_positive),
            'f1': (2 * positive, truth + predicted),
            'precision': (positive, predicted),
            'recall': (positive, truth),
        }
        for name, (part, whole) in values.items():
            value = part / max(whole, 1) if truth else float('nan')
            # The same on every process: sync_dist leaves it, and Lightning content.
            pl_module.log(
                f'{stage}_{name}_positive',
                torch.tensor(value, device=pl_module.device),
                sync_dist=True,
            )

    def _end(self) -> None:
        """Forget what was counted, and stop listening."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._confusion = None
        self._outputs.clear()
        self._mask = None


def _check_ignored(positive: int, ignore_index: int | None) -> None:
    """A class that is ignored has no metrics."""
    if positive == ignore_index:
        raise ValueError(
            f'ignore_index: {ignore_index} is the positive class, whose pixels would '
            'not count. Pass another positive=, or another ignore_index.'
        )
