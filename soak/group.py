# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What runs in the processes of distributed trials."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from benchmarks.measure import quiet
from torchgeo_sigmae import SIGMAETask, SyntheticSentinel2DataModule, resumable

from .runs import HashedTask

__all__ = ('fit_all', 'fit_forever', 'fit_sharded', 'make_data', 'make_trainer')

#: A task small enough for many processes on one core.
SMALL = {
    'size': 32, 'decoder_dim': 32, 'decoder_depth': 1, 'decoder_num_heads': 2,
    'lr': 1e-3,
}  # fmt: skip


@cache
def _size() -> int:
    """Number of processes of the group."""
    return int(os.environ['WORLD_SIZE'])


def make_trainer(folder: Path, **options: Any) -> Trainer:
    """A trainer of all processes of the group."""
    quiet()
    torch.set_num_threads(1)
    size = _size()
    # Lightning removes it at the end of every fit.
    os.environ['WORLD_SIZE'] = str(size)
    known = {
        'accelerator': 'cpu', 'strategy': 'ddp', 'devices': size,
        'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False,
        'enable_model_summary': False, 'limit_val_batches': 0, 'max_epochs': 1,
        'default_root_dir': folder,
    }  # fmt: skip
    return Trainer(**{**known, **options})


def make_data(root: Path, batch_size: int, plain: bool = False) -> Any:
    """Chips; *batch_size* is that of all processes together."""
    data = SyntheticSentinel2DataModule(
        root=str(root), batch_size=batch_size // _size()
    )
    if plain:
        # Augmentation is drawn for a batch of a process.
        data.train_aug = data.aug
    return resumable(data)


def fit_all(
    root: Path, folder: Path, jobs: Mapping[str, Mapping[str, Any]], limit: int | None
) -> None:
    """Fit one task after the other, and write how each ended.

    Args:
        root: Folder of the chips.
        folder: Folder of the records: ``NAME/RANK.txt`` as :class:`HashedTask` tells,
            and ``RANK.json``, the error of every fit or its last loss.
        jobs: Arguments of tasks by name. ``plain`` for no augmentation, ``unused`` for
            a parameter nobody uses, ``batch_size`` of all processes (default 16).
        limit: Batches of the one epoch; None for all.
    """
    found = {}
    for name, arguments in jobs.items():
        job = dict(arguments)
        plain, unused = job.pop('plain', False), job.pop('unused', False)
        data = make_data(root, job.pop('batch_size', 16), plain)
        os.environ['SOAK_TOLD'] = str(folder / name)
        (folder / name).mkdir(parents=True, exist_ok=True)
        seed_everything(0, verbose=False)
        task = HashedTask(
            **{'model': 'sigmae_vit_tiny_patch8', **SMALL, **job},
            transform=nn.Identity() if plain else None,
        )
        if unused:
            task.model.encoder.nobody = nn.Linear(2, 2)
        trainer = make_trainer(folder, limit_train_batches=limit or 1.0)
        try:
            trainer.fit(task, data)
        except RuntimeError as error:
            found[name] = str(error)[:300]
        else:
            weights = [p.detach().double().abs().sum() for p in task.parameters()]
            found[name] = float(torch.stack(weights).sum())
    rank = os.environ['LOCAL_RANK']
    (folder / f'{rank}.json').write_text(json.dumps(found))


def fit_forever(root: Path, folder: Path, timeout: float | None) -> None:
    """Fit until somebody dies.

    Args:
        root: Folder of the chips.
        folder: Where :class:`HashedTask` tells.
        timeout: Seconds a collective may take; None for Lightning's default.
    """
    os.environ['SOAK_TOLD'] = str(folder)
    known = {} if timeout is None else {'timeout': timedelta(seconds=timeout)}
    trainer = make_trainer(folder, strategy=DDPStrategy(**known), max_epochs=10_000)
    trainer.fit(HashedTask('sigmae_vit_tiny_patch8', **SMALL), make_data(root, 16))


class Sharded(SIGMAETask):
    """Its parameters are shared out by FSDP2, block by block."""

    def configure_model(self) -> None:
        """Shard."""
        mesh = self.device_mesh['data_parallel']
        blocks: Sequence[nn.Module] = self.model.encoder.blocks
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)


def fit_sharded(root: Path, folder: Path, sharded: bool) -> None:
    """Fit a few steps under FSDP2, or under DDP to compare, and write the weights.

    Args:
        root: Folder of the chips.
        folder: Where ``RANK.pt`` goes.
        sharded: Whether to shard.
    """
    seed_everything(0, verbose=False)
    kind = Sharded if sharded else SIGMAETask
    task = kind('sigmae_vit_tiny_patch8', **SMALL)
    strategy: Any = 'ddp'
    if sharded:
        strategy = ModelParallelStrategy(
            data_parallel_size=_size(), tensor_parallel_size=1
        )
    make_trainer(folder, strategy=strategy, max_steps=4).fit(task, make_data(root, 16))
    count = sum(isinstance(p, DTensor) for p in task.parameters())
    weights = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach()
        for name, p in task.named_parameters()
    }
    torch.save((count, weights), folder / f'{os.environ["LOCAL_RANK"]}.pt')
