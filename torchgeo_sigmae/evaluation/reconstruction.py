# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Metrics of the reconstruction of hidden patches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from ..tasks import SIGMAETask

__all__ = ('MASK_RATIOS', 'masked', 'reconstruction_report')

#: Mask ratios of the figure in S2MAE's slides, and beyond.
MASK_RATIOS = (0.5, 0.75, 0.9, 0.95)


def reconstruction_report(
    task: SIGMAETask,
    data: LightningDataModule | DataLoader[Any],
    mask_ratios: Sequence[float] = MASK_RATIOS,
    batches: int | None = None,
) -> dict[float, dict[str, float]]:
    """Measure the reconstruction of held-out images at several mask ratios.

    Masks are those of validation: unguided, what was hidden together in training hidden
    together, and fixed by the sample index, so that models can be compared. Only
    predicted pixels that hold data count.

    Args:
        task: The pretrained task.
        data: Validation images: a datamodule, or a loader of what the task takes.
        mask_ratios: Shares of masked tokens, in (0, 1).
        batches: Number of batches at most; None for all.

    Returns:
        For every ratio, the metrics of :class:`.ReconstructionMetrics` without prefix.
        With ``norm_pix_loss`` all but the losses start with ``oracle_``: hidden patches
        kept their own mean and standard deviation.
    """
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=batches,
    )
    metrics = {}
    for ratio in mask_ratios:
        with masked(task, ratio):
            (values,) = trainer.validate(task, data, verbose=False)
        metrics[ratio] = {
            name.removeprefix('val_'): value for name, value in values.items()
        }
    return metrics


@contextmanager
def masked(task: SIGMAETask, ratio: float) -> Iterator[None]:
    """Mask another share, without guidance, and measure all, for a while."""
    before = task.mask_schedule
    task.mask_schedule = replace(before, ratio=ratio, strength=(0.0, 0.0))
    task.val_metrics.structure = True
    try:
        yield
    finally:
        task.mask_schedule = before
        task.val_metrics.structure = False
