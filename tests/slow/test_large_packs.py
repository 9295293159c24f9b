# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""50,000 chips are packed and trained on, in the memory that 1,250 take."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import Dataset

from helpers.processes import join, start
from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import PackedDataModule
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

#: Chips of 64 px and ten bands in 16 bits: 4.1 GB and 0.1 GB.
MANY, FEW = 50_000, 1_250

STEPS = 300


class ManyChips(Dataset[dict[str, Any]]):
    """Random chips, quickly made."""

    def __init__(self, count: int) -> None:
        self.count = count
        rng = np.random.default_rng(0)
        self.noise = rng.integers(1, 9000, 10 * 64**2 * 2).astype(np.float32)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = index % (10 * 64**2)
        image = self.noise[start : start + 10 * 64**2] + index % 999
        return {'image': torch.from_numpy(image.reshape(10, 64, 64))}


class Watch(Callback):
    """Notes the memory of this process that no file backs, in MB."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step % 20 == 0:
            status = Path('/proc/self/status').read_text()
            (kilobytes,) = re.findall(r'RssAnon:\s+(\d+) kB', status)
            self.megabytes.append(int(kilobytes) / 1000)


def pack_and_train(root: Path, count: int) -> None:
    """Pack by the command, train, and write what was noted."""
    pack = str(root / 'pack')
    given = ['--arguments', f'count={count}', '--bands', *SENTINEL2_TEN_BANDS]
    main(['pack', f'{__name__}.ManyChips', *given, '--output', pack])
    assert join([start(train, root, pack)], 1800) == [0]


def train(root: Path, pack: str) -> None:
    """Train in a process that has packed nothing."""
    data = PackedDataModule(pack, size=32, batch_size=32, val_length=64)
    watch = Watch()
    task = small_task(model='test_vit', mean=None, std=None, normalize=None)
    trainer = quiet_trainer(
        root, max_steps=STEPS, max_epochs=-1, callbacks=[watch], limit_val_batches=1
    )
    trainer.fit(task, data)
    (root / 'memory.json').write_text(json.dumps(watch.megabytes))


def test_memory_depends_little_on_the_pack(tmp_path: Path) -> None:
    ends = []
    for count in (FEW, MANY):
        root = tmp_path / str(count)
        root.mkdir()
        pack_and_train(root, count)
        files = list((root / 'pack').glob('shard-*.npy'))
        assert sum(file.stat().st_size for file in files) > 0.99 * count * 81_920
        for file in files:
            file.unlink()
        memory = json.loads((root / 'memory.json').read_text())
        late = memory[len(memory) // 3 :]
        # Flat after the first third.
        assert late[-1] - late[0] < 20
        ends.append(late[-1])
    assert ends[1] - ends[0] <= 300
