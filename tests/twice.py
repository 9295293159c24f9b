# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The same four steps on one process or on two, for test_distributed."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import nn

from soak.group import make_data, make_trainer
from torchgeo_sigmae import SIGMAETask


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
    seed_everything(0, verbose=False)
    task = Told(
        model='sigmae_vit_tiny_patch8', size=64, decoder_dim=32, decoder_depth=1,
        decoder_num_heads=2, lr=1e-3, predict_ratio=0.5, transform=nn.Identity(),
        saliency_start=1.0,
    )  # fmt: skip
    trainer = make_trainer(out, max_steps=4)
    trainer.fit(task, make_data(root, 16, plain=True))
    weights = torch.cat([p.detach().flatten() for p in task.parameters()])
    torch.save(
        (task.told, weights), out / f'{trainer.world_size}-{task.global_rank}.pt'
    )
