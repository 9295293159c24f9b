# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae report``: how well a model reconstructs what it does not see."""

import argparse
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from ._files import require_writable, write_figure, write_text
from .bands import BandSet
from .datasets import SceneChips, find_scenes
from .masking.masks import check_mask_ratio
from .plotting import plot_mask_ratios
from .tasks import SIGMAETask

__all__ = ('MASK_RATIOS', 'add_arguments', 'reconstruction_report', 'run_report')

#: Mask ratios of the figure in S2MAE's slides, and beyond.
MASK_RATIOS = (0.5, 0.75, 0.9, 0.95)

#: Columns of the table: title, metric, digits.
_COLUMNS = (
    ('loss', 'loss', 4),
    ('mean of visible', 'baseline_loss', 4),
    ('PSNR, dB', 'psnr', 2),
    ('spectral angle, degrees', 'spectral_angle', 2),
    ('SSIM', 'ssim', 4),
    ('RMSE', 'rmse', 4),
)


def reconstruction_report(
    task: SIGMAETask,
    data: LightningDataModule | DataLoader[Any],
    mask_ratios: Sequence[float] = MASK_RATIOS,
    batches: int | None = None,
) -> dict[float, dict[str, float]]:
    """Measure the reconstruction of held-out images at several mask ratios.

    Masks are those of validation: unguided, what was hidden together in training hidden
    together, and fixed by the place of a sample, so that models can be compared. Only
    predicted pixels that hold data count.

    Args:
        task: The pretrained task.
        data: Validation images: a datamodule, or a loader of what the task takes.
        mask_ratios: Shares of masked tokens, in (0, 1).
        batches: Number of batches at most; None for all.

    Returns:
        For every ratio, the metrics of :class:`.ReconstructionMetrics` without prefix:
        losses, PSNR in dB, spectral angle in degrees, SSIM, RMSE in reflectance, of all
        bands and each. With ``norm_pix_loss`` all but the losses start with
        ``oracle_``: hidden patches kept their own mean and standard deviation.

    Raises:
        ValueError: If a ratio is not in (0, 1).
    """
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=batches,
    )
    found = {}
    for ratio in mask_ratios:
        with _masked(task, ratio):
            (values,) = trainer.validate(task, data, verbose=False)
        found[ratio] = {
            name.removeprefix('val_'): value for name, value in values.items()
        }
    return found


@contextmanager
def _masked(task: SIGMAETask, ratio: float) -> Iterator[None]:
    """Mask another share, without guidance, and measure all."""
    before = task.mask_schedule
    task.mask_schedule = replace(before, ratio=ratio, strength=(0.0, 0.0))
    task.val_metrics.structure = True
    try:
        yield
    finally:
        task.mask_schedule = before
        task.val_metrics.structure = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser.

    Args:
        parser: The parser.
    """
    parser.add_argument('checkpoint', type=Path, help='training checkpoint')
    parser.add_argument(
        '--data', type=Path, required=True,
        help='folder of GeoTIFF scenes the model was not trained on, in raw values',
    )  # fmt: skip
    parser.add_argument('--paths', nargs='+', default=['**/*.tif'], help='patterns')
    parser.add_argument('--mask-ratios', nargs='+', type=float, default=MASK_RATIOS)
    parser.add_argument('--size', type=int, help='side of chips; default: as trained')
    parser.add_argument('--chips', type=int, default=256, help='at most so many')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('-o', '--output', type=Path, default=Path('outputs/report'))


def run_report(arguments: argparse.Namespace) -> str:
    """Measure and draw reconstructions of chips of scenes.

    Args:
        arguments: Of :func:`add_arguments`.

    Returns:
        A table. It is also in ``report.md`` of the output, beside ``report.json`` and
        ``report.png``.

    Raises:
        FileNotFoundError: If there is no checkpoint or no scene.
        OSError: If the report cannot be written.
        ValueError: If a scene lacks a band, or a ratio is not in (0, 1).
    """
    task = SIGMAETask.load_from_checkpoint(
        arguments.checkpoint, map_location='cpu', weights_only=True
    )
    task.batch = replace(task.batch, normalize=True)
    bands = BandSet.from_data(task.statistics.data_bands, task.bands.sensor)
    size = arguments.size or task.model.encoder.patch_embed.img_size[0]
    scenes = find_scenes(arguments.data, arguments.paths, bands)
    chips = SceneChips(scenes, bands, size, random=False, length=arguments.chips)
    for ratio in arguments.mask_ratios:
        check_mask_ratio(ratio)
    output: Path = arguments.output
    require_writable(output / 'report.md')
    with _quiet():
        found = reconstruction_report(
            task, DataLoader(chips, arguments.batch_size), arguments.mask_ratios
        )
    oracle = task.hparams['norm_pix_loss']
    lines = [
        f'| masked | {" | ".join(title for title, *_ in _COLUMNS)} |',
        f'|---{"|---" * len(_COLUMNS)}|',
    ]
    for ratio, values in found.items():
        cells = [f'{ratio:.0%}']
        for _, name, digits in _COLUMNS:
            known = values.get(name, values.get(f'oracle_{name}'))
            cells.append('' if known is None else f'{known:.{digits}f}')
        lines.append(f'| {" | ".join(cells)} |')
    lines += ['', f'{len(chips)} chips of {size} px from {len(scenes)} scenes.']
    if oracle:
        lines.append(
            'norm_pix_loss: hidden patches kept their own mean and standard deviation, '
            'so all but the losses are better than they would be.'
        )
    table = '\n'.join(lines)
    write_text(output / 'report.md', f'{table}\n')
    write_text(output / 'report.json', json.dumps(found, indent=2) + '\n')
    places = torch.linspace(0, len(chips) - 1, min(len(chips), 5)).long()[1:-1]
    images = torch.stack([chips[int(i)]['image'] for i in places])
    predictions = {}
    for ratio in arguments.mask_ratios:
        with _masked(task, ratio):
            predictions[ratio] = task.reconstruct(images)
    figure = plot_mask_ratios(predictions, task.bands, oracle)
    write_figure(output / 'report.png', figure)
    return table


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from saying what is no news here."""
    logger = logging.getLogger('lightning.pytorch')
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*does not have many workers')
            yield
    finally:
        logger.setLevel(level)
