# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Metrics of one class that mean the same in every task and version of TorchGeo."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAveragePrecision, BinaryConfusionMatrix

__all__ = ('PositiveClassMetrics',)

#: Marks the pixels that do not count, in a target that is 0 or 1 otherwise.
_IGNORED = -1

#: Shares of the confusion matrix.
_SHARES = ('iou', 'f1', 'precision', 'recall')


class PositiveClassMetrics(Callback):
    r"""IoU, F1, precision, recall and average precision of the positive class.

    Adds metrics to the ``val_metrics`` and ``test_metrics`` of TorchGeo's tasks for
    classification, segmentation and change detection, with ``task='binary'`` or
    ``'multiclass'``. All other classes count as negative:

    .. math::

        \mathrm{IoU} = \frac{TP}{TP + FP + FN}, \quad
        F_1 = \frac{2 TP}{2 TP + FP + FN}, \quad
        \mathrm{precision} = \frac{TP}{TP + FP}, \quad
        \mathrm{recall} = \frac{TP}{TP + FN}

    They come from one confusion matrix over all pixels, batches and processes. Average
    precision, the area under the curve of precision over recall, needs no threshold: it
    ranks the pixels by the probability of the positive class, in 101 steps.

    Logged as ``val_iou_positive``, ``val_f1_positive``, ``val_precision_positive``,
    ``val_recall_positive`` and ``val_average_precision_positive``, or ``test_...``; all
    in [0, 1], higher is better. They can be monitored, for example by
    ``ModelCheckpoint(monitor='val_iou_positive', mode='max')``. TorchGeo's own metrics
    differ in name and average between versions, and most count the negative class, too.

    A model that predicts no positive pixel has a precision of 0. If the data hold no
    positive pixel, all five are NaN, and a warning says so.

    .. versionadded:: 0.1
    """

    def __init__(self, positive: int = 1, ignore_index: int | None = None) -> None:
        """Initialize a new PositiveClassMetrics instance.

        Args:
            positive: The positive class: 0 or 1 for ``task='binary'``, an index below
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the metrics to those of the task."""
        name, hparams = type(pl_module).__name__, pl_module.hparams
        task = hparams.get('task')
        metrics = [
            getattr(pl_module, f'{part}_metrics', None) for part in ('val', 'test')
        ]
        collections = [each for each in metrics if isinstance(each, MetricCollection)]
        if task not in {'binary', 'multiclass'} or len(collections) < 2:
            raise ValueError(
                f'task: {name} has task={task!r}, but PositiveClassMetrics needs a '
                'TorchGeo task for classification, segmentation or change detection '
                "with task='binary' or 'multiclass'. Remove it from the callbacks."
            )
        count = 2 if task == 'binary' else hparams.get('num_classes')
        if count is not None and self.positive >= count:
            raise ValueError(
                f'positive: {self.positive} is not one of the {count} classes of '
                f'{name} with task={task!r}. Pass positive=0 to {count - 1}.'
            )
        ignore_index = self.ignore_index
        if ignore_index is None:
            ignore_index = hparams.get('ignore_index')
        _check_ignored(self.positive, ignore_index)
        options = (self.positive, task == 'binary', ignore_index)
        for collection in collections:
            added: dict[str, Metric | MetricCollection] = {
                f'{share}_positive': _Share(share, *options) for share in _SHARES
            }
            added['average_precision_positive'] = _AveragePrecision(*options)
            collection.add_metrics(added)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if there was nothing to measure."""
        stage = 'test' if trainer.testing else 'val'
        recall = trainer.callback_metrics.get(f'{stage}_recall_positive')
        if recall is not None and recall.isnan() and not trainer.sanity_checking:
            rank_zero_warn(
                f'positive: the {stage} data contain no sample of class '
                f'{self.positive}, so its metrics are NaN. Pass another positive=, or '
                'other data.'
            )

    on_test_end = on_validation_end


class _Share(BinaryConfusionMatrix):
    """A share of the confusion matrix."""

    def __init__(
        self, share: str, positive: int, binary: bool, ignore_index: int | None
    ) -> None:
        super().__init__(ignore_index=_IGNORED, validate_args=False)
        self.share, self.positive, self.binary = share, positive, binary
        self.ignored = ignore_index

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch of logits."""
        # TorchGeo's threshold: sigmoid(logit) >= 0.5.
        labels = (preds >= 0).long() if self.binary else preds.argmax(dim=1)
        predicted = (labels == self.positive).long()
        target = _binary_target(target, self.positive, self.ignored)
        super().update(predicted, target.reshape(predicted.shape))

    def compute(self) -> Tensor:
        """The share; NaN without a positive sample."""
        _, false_positive, false_negative, positive = self.confmat.flatten()
        wrong = false_positive + false_negative
        part, whole = {
            'iou': (positive, positive + wrong),
            'f1': (2 * positive, 2 * positive + wrong),
            'precision': (positive, positive + false_positive),
            'recall': (positive, positive + false_negative),
        }[self.share]
        value: Tensor = part / whole.clamp(min=1)
        return value.masked_fill(positive + false_negative == 0, torch.nan)


class _AveragePrecision(BinaryAveragePrecision):
    """Average precision from counts at fixed probabilities."""

    def __init__(self, positive: int, binary: bool, ignore_index: int | None) -> None:
        # Even steps of the logit: a rare class has probabilities close to 0.
        steps = torch.linspace(-10, 10, 101).sigmoid()
        super().__init__(thresholds=steps, ignore_index=_IGNORED, validate_args=False)
        self.positive, self.binary, self.ignored = positive, binary, ignore_index

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch of logits."""
        preds = preds.float()
        if self.binary:
            scores = (preds if self.positive else -preds).sigmoid()
        else:
            scores = preds.softmax(dim=1)[:, self.positive]
        target = _binary_target(target, self.positive, self.ignored)
        super().update(scores, target.reshape(scores.shape))

    def compute(self) -> Tensor:  # type: ignore[override]
        """Average precision; NaN without a positive sample."""
        value: Tensor = super().compute()
        return value.masked_fill(self.confmat[0, 1].sum() == 0, torch.nan)


def _binary_target(target: Tensor, positive: int, ignore_index: int | None) -> Tensor:
    """1 where positive, 0 where not, :data:`_IGNORED` where it does not count."""
    binary = (target == positive).long()
    if ignore_index is None:
        return binary
    return binary.masked_fill(target == ignore_index, _IGNORED)


def _check_ignored(positive: int, ignore_index: int | None) -> None:
    """A class that is ignored has no metrics."""
    if positive == ignore_index:
        raise ValueError(
            f'ignore_index: {ignore_index} is the positive class, whose pixels would '
            'not count. Pass another positive=, or another ignore_index.'
        )
