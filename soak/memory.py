# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Is the memory of a long run flat, and the number of its open files?

    python -m soak.memory [--steps 2000] [--only RUN ...] [--output FOLDER]

Trains a small model on synthetic chips and on windows of GeoTIFF scenes, each without
workers and with two, with validation, a log and checkpoints, and looks every few steps
at the resident memory of the process, with what its workers have of their own, and at
their open files. The slope is that of Theil and Sen over the time after a warm-up, the
median over all pairs of moments, of the least of every 200 steps: workers grow, and
start anew every epoch.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from rasterio.transform import from_origin

from benchmarks.measure import quiet
from torchgeo_sigmae import (
    ResumableCheckpoint,
    SceneDataModule,
    SIGMAETask,
    SyntheticSentinel2DataModule,
)
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS

from .children import join, start
from .trial import conclude, trial_parser

#: MB per 1,000 steps that a flat run may seem to grow by: chance of the allocator.
BOUND = 5.0

#: Share of a run that is its warm-up: the optimiser's state, caches, the first epochs.
WARM_UP = 0.3

#: Runs by name: datamodule and workers.
RUNS = {
    'synthetic chips': ('synthetic', 0),
    'synthetic chips, 2 workers': ('synthetic', 2),
    'scenes': ('scenes', 0),
    'scenes, 2 workers': ('scenes', 2),
}


class Watch(Callback):
    """Notes memory and open files of this process and its workers."""

    def __init__(self, every: int = 20) -> None:
        self.every = every
        self.rows: list[tuple[int, float, int]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Look, every few steps.

        Args:
            trainer: The trainer.
            *args: What else Lightning tells.
        """
        if trainer.global_step % self.every == 0:
            me, others = os.getpid(), workers()
            memory = resident(me) + sum(resident(other, own=True) for other in others)
            count = sum(map(files, [me, *others]))
            self.rows.append((trainer.global_step, memory, count))


def workers() -> list[int]:
    """Find the child processes of this one.

    Returns:
        Their ids.
    """
    tasks = Path('/proc/self/task').glob('*/children')
    return [int(child) for task in tasks for child in task.read_text().split()]


def resident(process: int, own: bool = False) -> float:
    """Measure the memory of a process.

    Args:
        process: Its id.
        own: Whether to leave out what it shares with others, as workers do with the
            process they were forked from.

    Returns:
        MB; 0 if it is gone.
    """
    wanted = ('Private_Clean:', 'Private_Dirty:') if own else ('Rss:',)
    try:
        lines = Path(f'/proc/{process}/smaps_rollup').read_text().splitlines()
    except OSError:
        return 0.0
    found = sum(int(line.split()[1]) for line in lines if line.startswith(wanted))
    return found * 1024 / 1e6


def files(process: int) -> int:
    """Count the open files of a process.

    Args:
        process: Its id.

    Returns:
        Their number; 0 if it is gone.
    """
    try:
        return len(os.listdir(f'/proc/{process}/fd'))
    except OSError:
        return 0


def train(root: Path, name: str, steps: int) -> None:
    """Train, and write what was seen. For a process of its own.

    Args:
        root: Folder of data and runs.
        name: One of :data:`RUNS`.
        steps: Optimiser steps.
    """
    quiet()
    kind, count = RUNS[name]
    folder = root / name
    data: Any
    if kind == 'synthetic':
        data = SyntheticSentinel2DataModule(
            batch_size=2, num_workers=count, root=str(root / 'synthetic')
        )
    else:
        data = SceneDataModule(
            root / 'scenes', size=32, batch_size=2, num_workers=count, length=200,
            val_length=16, in_memory=False,
        )  # fmt: skip
    task = SIGMAETask(
        'test_vit', size=32, decoder_dim=32, decoder_depth=1,
        decoder_num_heads=2, lr=1e-3,
    )  # fmt: skip
    watch = Watch()
    Trainer(
        accelerator='cpu', max_steps=steps, max_epochs=-1, default_root_dir=folder,
        logger=CSVLogger(folder, name='log'), log_every_n_steps=5,
        limit_val_batches=2, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch, ResumableCheckpoint(every_n_train_steps=250)],
    ).fit(task, data)  # fmt: skip
    (folder / 'rows.json').write_text(json.dumps(watch.rows))


def write_scenes(folder: Path, count: int = 4, side: int = 512) -> None:
    """Write scenes, as many as a run needs.

    Args:
        folder: Where.
        count: Number of files.
        side: Of each, in pixels.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        shape = len(SENTINEL2_TEN_BANDS), side, side
        profile = {
            'driver': 'GTiff', 'count': shape[0], 'height': side, 'width': side,
            'dtype': 'uint16', 'nodata': 0, 'crs': 'EPSG:32632', 'tiled': True,
            'compress': 'deflate', 'blockxsize': 256, 'blockysize': 256,
            'transform': from_origin(500_000 + 10_000 * number, 5_400_000, 10, 10),
        }  # fmt: skip
        with rasterio.open(folder / f'{number}.tif', 'w', **profile) as file:
            file.write(rng.integers(1, 10_000, shape, dtype='uint16'))
            file.descriptions = SENTINEL2_TEN_BANDS


def slope(steps: np.ndarray, values: np.ndarray) -> float:
    """Fit a line that outliers do not move (Theil and Sen).

    Args:
        steps: ``(N,)``, increasing.
        values: ``(N,)``.

    Returns:
        Growth per 1,000 steps: the median over all pairs.
    """
    first, second = np.triu_indices(len(steps), 1)
    return float(
        1e3
        * np.median((values[second] - values[first]) / (steps[second] - steps[first]))
    )


def floor(
    steps: np.ndarray, values: np.ndarray, width: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Take the least of every few moments: workers grow, and start anew every epoch.

    Args:
        steps: ``(N,)``, increasing.
        values: ``(N,)``.
        width: Steps from which one value is taken, two epochs.

    Returns:
        Steps and values, fewer.
    """
    part = steps // width
    lowest = [
        np.flatnonzero(part == number)[values[part == number].argmin()]
        for number in np.unique(part)
    ]
    return steps[lowest], values[lowest]


def judge(name: str, rows: Sequence[Sequence[float]]) -> tuple[str, list[str]]:
    """Tell whether a run was flat.

    Args:
        name: Of the run.
        rows: Steps, MB and open files.

    Returns:
        What was found, and what does not hold.
    """
    steps, memory, opened = np.array(rows, float).T
    late = steps >= WARM_UP * steps[-1]
    growth = slope(*floor(steps[late], memory[late]))
    half = steps[late] < np.median(steps[late])
    before, after = (int(opened[late][part].max()) for part in (half, ~half))
    found = (
        f'{growth:+.2f} MB per 1,000 steps (from {memory[late][0]:.0f} to '
        f'{memory[late][-1]:.0f} MB), at most {max(before, after)} files open'
    )
    failures = []
    if growth > BOUND:
        failures.append(f'{name}: memory grows by {growth:.2f} MB per 1,000 steps')
    if after > before + 2:
        failures.append(f'{name}: {before} files open at first, {after} later')
    return found, failures


def measure(
    root: Path, steps: int, names: Sequence[str], at_once: int = 1, limit: float = 3600
) -> tuple[dict[str, str], list[str]]:
    """Train and look.

    Args:
        root: An empty folder.
        steps: Optimiser steps of a run.
        names: Of :data:`RUNS`.
        at_once: Runs at a time.
        limit: Seconds after which a run is stopped.

    Returns:
        What was found by run, and what does not hold.
    """
    write_scenes(root / 'scenes')
    # Before anybody looks for chips: they are made once.
    SyntheticSentinel2DataModule(root=str(root / 'synthetic')).prepare_data()

    def one(name: str) -> tuple[str, list[str]]:
        (status,) = join([start(train, root, name, steps)], limit)
        if status != 0:
            return f'status {status}', [f'{name}: ended with status {status}']
        return judge(name, json.loads((root / name / 'rows.json').read_text()))

    figures: dict[str, str] = {}
    failures: list[str] = []
    with ThreadPoolExecutor(at_once) as pool:
        for name, (found, wrong) in zip(names, pool.map(one, names), strict=True):
            print(f'{name}: {found}', flush=True)
            figures[name] = found
            failures += wrong
    return figures, failures


def main(arguments: Any) -> Mapping[str, Any]:
    """Run the trial.

    Args:
        arguments: See the module.

    Returns:
        What :func:`conclude` wants.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures, failures = measure(
            root, arguments.steps, arguments.only, arguments.side_by_side
        )
        # To look at where it is not flat.
        rows = {
            p.parent.name: json.loads(p.read_text()) for p in root.glob('*/rows.json')
        }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / 'memory-rows.json').write_text(json.dumps(rows))
    figures = {f'{name}, {arguments.steps} steps': f for name, f in figures.items()}
    return {'figures': figures, 'failures': failures}


if __name__ == '__main__':
    parser = trial_parser(__doc__)
    parser.add_argument('--steps', type=int, default=2000)
    parser.add_argument('--only', nargs='+', choices=list(RUNS), default=list(RUNS))
    parser.add_argument('--side-by-side', type=int, default=1)
    chosen = parser.parse_args()
    if not Path('/proc/self/smaps_rollup').exists():
        sys.exit('soak.memory reads /proc, which only Linux has.')
    conclude(chosen.output, 'memory', **main(chosen))
