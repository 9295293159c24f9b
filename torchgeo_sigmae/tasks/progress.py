# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Reports of a run, and contents of its checkpoint beside the weights."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

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
    """Collect the scalar sums of metrics by name, a value for every process."""
    return {
        name: {
            key: torch.stack(_of_all_processes(value))
            for key, value in metric.metric_state.items()
            if isinstance(value, Tensor)
        }
        for name, metric in metrics.items()
    }


def restore_metrics(
    metrics: Mapping[str, Metric],
    states: Mapping[str, Mapping[str, Tensor]],
    rank: int,
    processes: int,
) -> None:
    """Undo :func:`metric_states`; unknown names are ignored.

    With another number of processes, the first goes on with the sum of all.
    """
    for name in metrics.keys() & states.keys():
        metric, state = metrics[name], states[name]
        for key in metric.metric_state.keys() & state.keys():
            # Files of the first edition hold the sum of all processes.
            values = state[key].reshape(-1)
            if len(values) == processes:
                mine = values[rank]
            elif rank:
                continue
            else:
                mine = values.sum()
            setattr(metric, key, mine.to(metric.device))


def _of_all_processes(value: Tensor) -> list[Tensor]:
    """A value of this process and of all others, in order."""
    if dist.is_available() and dist.is_initialized():
        return gather_all_tensors(value)
    return [value]


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
