# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Training curves, from the files of Lightning's ``CSVLogger``."""

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .._logs import log_files
from .canvas import empty_figure

__all__ = ('plot_training', 'read_log')

#: Optimizer steps and values, by name.
Log = dict[str, tuple[np.ndarray, np.ndarray]]

#: Label and style of a curve.
Style = tuple[str, dict[str, Any]]

#: Curves by panel, and by name in the log.
_PANELS: dict[str, dict[str, Style]] = {
    'Loss': {
        'train_loss_step': ('training, per step', {'color': 'C0'}),
        'train_loss': ('training', {'color': 'C0'}),
        'train_loss_epoch': ('training, per epoch', {'color': 'C0'}),
        'val_loss': ('validation', {'color': 'C1'}),
        'val_baseline_loss': (
            'mean of visible tokens',
            {'color': 'C1', 'linestyle': '--'},
        ),
    },
    'Curriculum': {
        'mask_ratio': ('mask ratio', {'color': 'C2'}),
        'saliency_beta': ('saliency beta', {'color': 'C3'}),
        'visibility_ratio': ('visibility ratio (right axis)', {'color': 'C4'}),
    },
}

#: A curve of fewer points gets markers: a single point has no line.
_FEW = 30

#: A folder of CSVLogger.
_VERSION = re.compile(r'version_(\d+)')

#: A panel of more curves (learning rates of many groups) gets no legend.
_LEGEND = 5


def read_log(path: str | os.PathLike[str]) -> Log:
    """Read the metrics that Lightning's ``CSVLogger`` wrote.

    Args:
        path: A folder with the ``version_*`` folders of one run, one per restart; or
            one of them, or its ``metrics.csv``. Restarts are merged in the order of
            their numbers; if two have a value of the same name at the same step, the
            later one counts.

    Returns:
        For every name with at least one value the optimizer steps, int64 ``(N,)``,
        strictly increasing, and the values, float64 ``(N,)``, without NaN.
    """
    curves: dict[str, dict[int, float]] = {}
    for folder in _log_folders(Path(path)):
        # With the copies that ResumableCheckpoint keeps.
        for file in log_files(folder):
            for step, values in _read_rows(file):
                for name, value in values.items():
                    curves.setdefault(name, {})[step] = value
    log: Log = {}
    for name, points in curves.items():
        steps = sorted(step for step, value in points.items() if value == value)
        if steps:
            log[name] = (np.array(steps), np.array([points[step] for step in steps]))
    return log


def plot_training(path: str | os.PathLike[str]) -> Figure:
    """Draw losses, masking and learning rates of a run, one panel below the other.

    *path* is that of :func:`read_log`. A panel without data is left out.
    """
    log = read_log(path)
    panels = {
        title: {name: style for name, style in curves.items() if name in log}
        for title, curves in {**_PANELS, 'Learning rate': _rates(log)}.items()
    }
    panels = {title: curves for title, curves in panels.items() if curves}
    if not panels:
        raise ValueError(
            f'path: {path} holds no loss, mask ratio or learning rate, only '
            f'{sorted(log)}. Train with Trainer(logger=CSVLogger(...), '
            'log_every_n_steps=...) and fewer steps between two rows than the run has.'
        )
    figure = empty_figure(7.2, 2.1 * len(panels) + 0.4)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        axis.set_title(title, fontsize=10, loc='left')
        axis.grid(alpha=0.25)
        _draw_curves(axis, curves, log)
    axes[-1].set_xlabel('optimizer step', fontsize=9)
    return figure


def _draw_curves(axis: Axes, curves: dict[str, Style], log: Log) -> None:
    """Draw the curves of a panel, and their legend above it."""
    lines = []
    for name, (label, style) in curves.items():
        steps, values = log[name]
        target = axis
        # A factor that grows with exp(beta) would flatten shares beside it.
        if name == 'visibility_ratio':
            target = axis.twinx()
            target.set_yscale('log' if values.max() > 10 * values.min() else 'linear')
        # Single batches scatter; beside their mean they are the background.
        pale = (
            name in {'train_loss', 'train_loss_step'} and 'train_loss_epoch' in curves
        )
        lines += target.plot(
            steps,
            values,
            label=label,
            marker='.' if len(steps) < _FEW else None,
            alpha=0.35 if pale else 1,
            **style,
        )
        # Plain numbers: a factor above the axis would overlap the title.
        target.yaxis.set_major_formatter('{x:g}')
        target.tick_params(labelsize=8)
        target.spines['top'].set_visible(False)
        target.spines['right'].set_visible(target is not axis)
    if len(lines) <= _LEGEND:
        axis.legend(
            handles=lines,
            ncols=len(lines),
            loc='lower right',
            bbox_to_anchor=(1, 1),
            borderaxespad=0.2,
            fontsize=8,
            frameon=False,
        )


def _rates(log: Log) -> dict[str, Style]:
    """Find the learning rates; parameter groups with the same rate share a curve."""
    same: dict[bytes, list[str]] = {}
    for name, (steps, values) in log.items():
        # LearningRateMonitor also logs lr-AdamW-momentum and the like.
        if name.startswith('lr-') and not name.endswith(('-momentum', '-weight_decay')):
            same.setdefault(steps.tobytes() + values.tobytes(), []).append(name)
    return {
        first: (f'{first} and {len(others)} more' if others else first, {})
        for first, *others in same.values()
    }


def _log_folders(path: Path) -> list[Path]:
    """Find the folders ``version_*`` of one run, in the order of its restarts."""
    root = path.parent if path.name == 'metrics.csv' else path
    folders = {file.parent for file in root.rglob('metrics*.csv')}
    if root not in folders:
        folders = {folder for folder in folders if _VERSION.fullmatch(folder.name)}
    if not folders:
        raise FileNotFoundError(
            f'path: no metrics.csv at {path} or in a folder version_* under it. '
            'Train with Trainer(logger=CSVLogger(...)), and pass its root_dir.'
        )
    runs = sorted({str(folder.parent) for folder in folders})
    if len(runs) > 1:
        raise ValueError(
            f'path: {path} holds the logs of several runs: {", ".join(runs)}. Pass one.'
        )
    return sorted(folders, key=_number)


def _number(folder: Path) -> int:
    """The number of a restart; 0 of a folder of another name."""
    match = _VERSION.fullmatch(folder.name)
    return int(match[1]) if match else 0


def _read_rows(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Read the step and the values of every row."""
    lines = file.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True)
    # A kill may cut off the last line, even within a number.
    if lines and not lines[-1].endswith('\n'):
        del lines[-1]
    rows = csv.DictReader(lines)
    for row in rows:
        try:
            step = int(row.pop('step'))
            yield step, {name: float(text) for name, text in row.items() if text}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'path: {file}, line {rows.line_num}: {error!r}. Remove that line, or '
                "pass the folder of Lightning's CSVLogger."
            ) from error
