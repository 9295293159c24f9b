# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Reports of a run, and contents of its checkpoint beside the weights."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from ..datamodules.inspect import attached_datamodule
from ..datasets.resumable import is_resumable

__all__ = (
    'describe_run',
    'metric_states',
    'report_losses',
    'restore_metrics',
    'warn_of_restarted_epoch',
)


def describe_run(trainer: Trainer) -> dict[str, Any]:
    """Name the datamodule, root and number of samples of a run, None if unknown."""
    datamodule = attached_datamodule(trainer)
    dataset: Any = getattr(trainer.train_dataloader, 'dataset', None)
    root = getattr(datamodule, 'root', None)
    root = getattr(datamodule, 'kwargs', {}).get('root', root)
    return {
        'datamodule': type(datamodule).__name__ if datamodule else None,
        'root': None if root is None else str(root),
        'samples': len(dataset) if hasattr(dataset, '__len__') else None,
    }


def report_losses(metrics: Mapping[str, Tensor]) -> None:
    """Compare the validation loss with that of the baseline, in words."""
    if 'val_loss' in metrics and 'val_baseline_loss' in metrics:
        loss = float(metrics['val_loss'])
        baseline = float(metrics['val_baseline_loss'])
        change = loss / baseline - 1 if baseline else 0.0
        rank_zero_info(
            f'Validation loss {loss:.4f}; predicting the mean of the visible '
            f'tokens gives {baseline:.4f} under the same masks. That is '
            f'{abs(change):.0%} {"lower" if change <= 0 else "HIGHER"}.'
        )


def metric_states(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Tensor]]:
    """Collect what metrics have summed up over all processes, by name."""
    states = {}
    for name, metric in metrics.items():
        with metric.sync_context():
            states[name] = {
                key: value.clone()
                for key, value in metric.metric_state.items()
                if isinstance(value, Tensor)
            }
    return states


def restore_metrics(
    metrics: Mapping[str, Metric], states: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Undo :func:`metric_states`; unknown names are ignored."""
    for name in metrics.keys() & states.keys():
        metric, state = metrics[name], states[name]
        for key in metric.metric_state.keys() & state.keys():
            setattr(metric, key, state[key].to(metric.device))


def warn_of_restarted_epoch(checkpoint: Mapping[str, Any], datamodule: object) -> None:
    """Warn if a checkpoint was written inside an epoch, and the data cannot resume."""
    loop = checkpoint.get('loops', {}).get('fit_loop', {})
    batches = loop.get('epoch_loop.batch_progress', {})
    inside = batches.get('current', {}).get('ready') and not batches['is_last_batch']
    if inside and not is_resumable(datamodule):
        rank_zero_warn(
            'This checkpoint was written in the middle of an epoch. Lightning '
            'restarts the data of the epoch, so a resumed run does not see the '
            'batches that were left. Pass torchgeo_sigmae.resumable(datamodule) to '
            'fit(), now and in the first run, to continue as if uninterrupted, or '
            'resume from a checkpoint written at the end of an epoch. A stream '
            '(IterableDataset) always begins anew.'
        )
