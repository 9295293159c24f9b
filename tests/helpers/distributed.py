# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Distributed runs of small tasks, and what their processes report."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from torchgeo.datamodules import NonGeoDataModule

from helpers.killed_runs import HashedTask
from helpers.processes import join, start_group
from helpers.training import SMALL, narrow_encoders, quiet_trainer
from torchgeo_sigmae import (
    FineTuning,
    PackedDataModule,
    PositiveClassMetrics,
    SIGMAETask,
    SyntheticSentinel2DataModule,
    resumable,
)
from torchgeo_sigmae._compat import SemanticSegmentation


@dataclass(frozen=True)
class Outcome:
    """How a fit ended in one process.

    Attributes:
        error: The error that ended it, if any.
        losses: The loss of every step.
        weights: All parameters in one vector.
    """

    error: str
    losses: list[float]
    weights: Tensor


class KeepLosses(HashedTask):
    """Keeps the loss of every step."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.losses: list[float] = []

    def training_step(self, *args: Any) -> Tensor:
        loss = super().training_step(*args)
        self.losses.append(loss.item())
        return loss


class Sharded(SIGMAETask):
    """Its parameters are shared out by FSDP2, block by block."""

    def configure_model(self) -> None:
        mesh = self.device_mesh['data_parallel']
        blocks: Sequence[nn.Module] = self.model.encoder.blocks
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)


def make_trainer(size: int, folder: Path, **kwargs: Any) -> Trainer:
    """A trainer of all processes of the group."""
    # Lightning removes it at the end of every fit.
    os.environ['WORLD_SIZE'] = str(size)
    options = {'strategy': 'ddp', 'limit_val_batches': 0, 'max_epochs': 1}
    return quiet_trainer(folder, devices=size, **{**options, **kwargs})


def make_data(
    size: int, chips: Path, batch_size: int = 16, augment: bool = True
) -> NonGeoDataModule:
    """Resumable chips, packed or not; *batch_size* is that of all processes."""
    packed = (chips / 'index.json').exists()
    kind = PackedDataModule if packed else SyntheticSentinel2DataModule
    data = kind(root=chips, batch_size=batch_size // size)
    if packed:
        data.setup('fit')
    if not augment:
        data.train_aug = data.aug
    return resumable(data)


def fit_group(
    size: int,
    chips: Path,
    folder: Path,
    jobs: Mapping[str, Mapping[str, Any]],
    limit: int | None = None,
) -> dict[str, list[Outcome]]:
    """Fit one task after the other with so many processes.

    Args:
        size: Number of processes.
        chips: Folder of the chips.
        folder: Folder of the records.
        jobs: Arguments of tasks by name. Beside them, ``augment=False`` turns
            augmentation off, ``unused=True`` adds a parameter without a gradient,
            ``batch_size`` is that of all processes (16 if not given), and ``chips``
            another folder of chips.
        limit: Batches of the one epoch; None for all.

    Returns:
        The outcomes of all processes, by the name of the job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = start_group(size, _fit_jobs, size, chips, folder, jobs, limit)
    assert join(processes) == [0] * size
    ends = [
        torch.load(folder / f'{rank}.pt', weights_only=False) for rank in range(size)
    ]
    return {name: [end[name] for end in ends] for name in jobs}


def samples(folder: Path) -> list[tuple[str, ...]]:
    """Epoch, step, chip and mask of every sample of a job of :func:`fit_group`."""
    return sorted(
        tuple(line.split())
        for path in folder.glob('*.txt')
        for line in path.read_text().splitlines()
    )


def fit_forever(size: int, chips: Path, folder: Path, timeout: float | None) -> None:
    """Fit until another process dies, or does not answer for so many seconds."""
    options = {} if timeout is None else {'timeout': timedelta(seconds=timeout)}
    strategy = DDPStrategy(**options)
    task = HashedTask(**SMALL)
    task.record = folder
    trainer = make_trainer(size, folder, strategy=strategy, max_epochs=10_000)
    trainer.fit(task, make_data(size, chips))


def fit_sharded(size: int, chips: Path, folder: Path, sharded: bool) -> None:
    """Fit four steps under FSDP2 or DDP; write the number of shards and the weights."""
    seed_everything(0, verbose=False)
    task = (Sharded if sharded else SIGMAETask)(**SMALL)
    strategy: Any = 'ddp'
    if sharded:
        strategy = ModelParallelStrategy(
            data_parallel_size=size, tensor_parallel_size=1
        )
    trainer = make_trainer(size, folder, strategy=strategy, max_steps=4)
    trainer.fit(task, make_data(size, chips))
    count = sum(isinstance(p, DTensor) for p in task.parameters())
    weights = [
        (p.full_tensor() if isinstance(p, DTensor) else p).detach()
        for p in task.parameters()
    ]
    torch.save((count, weights), folder / f'{os.environ["LOCAL_RANK"]}.pt')


@narrow_encoders()
def fit_and_draw(size: int, chips: Path, folder: Path) -> None:
    """Fit two steps; write metrics, weights, learning rate and what is drawn next."""
    seed_everything(0, verbose=False)
    task = SIGMAETask(**{**SMALL, 'lr': None}, predict_ratio=0.5)
    trainer = make_trainer(
        size, folder, limit_train_batches=2, limit_val_batches=1.0,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, SyntheticSentinel2DataModule(root=chips, batch_size=16))
    # All processes get the same images.
    images = torch.rand(4, 10, 64, 64, generator=torch.Generator().manual_seed(0))
    with mock.patch.object(task, 'log'):
        tokens, _, keep, _, _ = task._draw({'image': images})
    record = {
        'drawn': [float(tokens.image.double().sum()), keep.flatten().tolist()],
        'metrics': {k: float(v) for k, v in trainer.callback_metrics.items()},
        'weights': float(sum(p.double().abs().sum() for p in task.parameters())),
        'initial_lr': trainer.optimizers[0].param_groups[0]['initial_lr'],
    }
    (folder / f'{trainer.global_rank}.json').write_text(json.dumps(record))


def count_positives(size: int, folder: Path) -> None:
    """Segment with PositiveClassMetrics and FineTuning; write metrics and a count."""
    samples = []
    for index in range(4):
        generator = torch.Generator().manual_seed(index)
        mask = torch.rand(32, 32, generator=generator) < 0.2 * (index + 1)
        image = torch.randn(3, 32, 32, generator=generator)
        samples.append({'image': image, 'mask': mask.long()})
    seed_everything(0, verbose=False)
    task = SemanticSegmentation(
        model='fcn', num_filters=4, in_channels=3, task='binary', loss='bce'
    )
    callbacks = [FineTuning(layer_decay=1, drop_path=0), PositiveClassMetrics()]
    trainer = make_trainer(size, folder, limit_val_batches=1.0, callbacks=callbacks)
    loader = DataLoader(samples, batch_size=1)
    trainer.fit(task, loader, loader)
    task.eval()
    matrix = torch.zeros(2, 2, dtype=torch.long)
    for sample in samples:
        predicted = (task.model(sample['image'][None])[0, 0] >= 0).long()
        for pair in zip(sample['mask'].flatten(), predicted.flatten(), strict=True):
            matrix[pair] += 1
    record = {
        'matrix': matrix.flatten().tolist(),
        'metrics': {k: float(v) for k, v in trainer.callback_metrics.items()},
        'lr': [group['initial_lr'] for group in trainer.optimizers[0].param_groups],
    }
    (folder / f'{trainer.global_rank}.json').write_text(json.dumps(record))


@narrow_encoders()
def _fit_jobs(
    size: int,
    chips: Path,
    folder: Path,
    jobs: Mapping[str, Mapping[str, Any]],
    limit: int | None,
) -> None:
    """What a process of :func:`fit_group` does."""
    outcomes = {}
    for name, arguments in jobs.items():
        job = {**SMALL, **arguments}
        augment, unused = job.pop('augment', True), job.pop('unused', False)
        root = job.pop('chips', chips)
        data = make_data(size, root, job.pop('batch_size', 16), augment)
        seed_everything(0, verbose=False)
        task = KeepLosses(transform=None if augment else nn.Identity(), **job)
        if unused:
            task.model.encoder.unused = nn.Linear(2, 2)
        task.record = folder / name
        task.record.mkdir(exist_ok=True)
        error = ''
        try:
            make_trainer(size, folder, limit_train_batches=limit).fit(task, data)
        except RuntimeError as failure:
            error = str(failure)
        weights = torch.cat([p.detach().flatten() for p in task.parameters()])
        outcomes[name] = Outcome(error, task.losses, weights)
    torch.save(outcomes, folder / f'{os.environ["LOCAL_RANK"]}.pt')
