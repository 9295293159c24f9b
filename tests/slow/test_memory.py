# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The memory of a long run is flat, and so is the number of its open files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from scipy.stats import theilslopes

from helpers.geotiffs import write
from helpers.processes import join, start
from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import (
    ResumableCheckpoint,
    SceneDataModule,
    SyntheticSentinel2DataModule,
)
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS = 2000

#: Workers grow, and start anew every epoch: the least of so many steps counts.
WINDOW = 100

#: MB per 1,000 steps that a flat run may seem to grow by: chance of the allocator.
BOUND = 5.0


class Watch(Callback):
    """Notes step, memory in MB and open files of this process and its workers."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, int]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step % 20 == 0:
            this = psutil.Process()
            memory, files = this.memory_info().rss, this.num_fds()
            for worker in this.children(recursive=True):
                # Without the pages that it shares with the process that forked it.
                memory += worker.memory_full_info().uss
                files += worker.num_fds()
            self.rows.append((trainer.global_step, memory / 1e6, files))


def train(root: Path, kind: str, workers: int) -> None:
    """Train with validation, a log and checkpoints, and write what was noted."""
    data: LightningDataModule
    if kind == 'scenes':
        data = SceneDataModule(
            root / 'scenes', size=32, batch_size=2, num_workers=workers, length=200,
            val_length=16, cache=False,
        )  # fmt: skip
    else:
        data = SyntheticSentinel2DataModule(
            root=root / 'chips', batch_size=2, num_workers=workers
        )
    task = small_task(model='test_vit', mean=None, std=None, normalize=None)
    watch = Watch()
    quiet_trainer(
        root, max_steps=STEPS, max_epochs=-1, limit_val_batches=2,
        logger=CSVLogger(root, name='log'), log_every_n_steps=5,
        callbacks=[watch, ResumableCheckpoint(every_n_train_steps=250)],
    ).fit(task, data)  # fmt: skip
    (root / 'rows.json').write_text(json.dumps(watch.rows))


@pytest.mark.parametrize(('kind', 'workers'), [('chips', 0), ('scenes', 2)])
def test_memory_and_open_files_do_not_grow(
    kind: str, workers: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        image = rng.integers(1, 10_000, (10, 512, 512), dtype='uint16')
        path = tmp_path / 'scenes' / f'{number}.tif'
        write(path, image, SENTINEL2_TEN_BANDS, 0, 5e5 + 1e4 * number, tiled=True)
    SyntheticSentinel2DataModule(root=tmp_path / 'chips').prepare_data()
    assert join([start(train, tmp_path, kind, workers)], 1000) == [0]
    rows = json.loads((tmp_path / 'rows.json').read_text())
    # What comes before fills caches and the optimizer's state; workers come to own
    # ten MB of the pages that they were forked with.
    late = np.array([row for row in rows if row[0] > 0.5 * STEPS])
    parts = np.split(late, np.flatnonzero(np.diff(late[:, 0] // WINDOW)) + 1)
    lowest = np.array([part[part[:, 1].argmin()] for part in parts])
    slope = theilslopes(lowest[:, 1], lowest[:, 0]).slope
    assert 1000 * slope < BOUND
    first, second = np.array_split(late[:, 2], 2)
    assert second.max() <= first.max() + 2
