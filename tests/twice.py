# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The same four steps on one process or on two, for test_distributed."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from torchgeo_sigmae import SIGMAETask, SyntheticSentinel2DataModule, resumable


class Told(SIGMAETask):
    """Keeps what a sample is, what is hidden of it, and the loss."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.told: list[list[Any]] = []

    def _draw(self, batch: dict[str, Any]) -> Any:
        drawn = super()._draw(batch)
        names = drawn[0].image.double().sum((1, 2, 3)).tolist()
        self.told.append([names, drawn[1].tolist(), drawn[2].tolist()])
        return drawn

    def training_step(self, *args: Any) -> Any:
        loss = super().training_step(*args)
        self.told[-1].append(loss.item())
        return loss


def fit(root: Path, out: Path) -> None:
    """Train as one of the processes of a group, and write what it told."""
    size = int(os.environ['WORLD_SIZE'])
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    task = Told(
        model='sigmae_vit_tiny_patch8', size=64, decoder_dim=32, decoder_depth=1,
        decoder_num_heads=2, lr=1e-3, predict_ratio=0.5, transform=nn.Identity(),
        saliency_start=1.0,
    )  # fmt: skip
    datamodule = SyntheticSentinel2DataModule(root=str(root), batch_size=16 // size)
    # Augmentation is drawn for a batch.
    datamodule.train_aug = datamodule.aug
    Trainer(
        accelerator='cpu', strategy='ddp', devices=size, max_steps=4, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0,
        enable_model_summary=False, default_root_dir=out,
    ).fit(task, resumable(datamodule))  # fmt: skip
    weights = torch.cat([p.detach().flatten() for p in task.parameters()])
    torch.save((task.told, weights), out / f'{size}-{task.global_rank}.pt')
