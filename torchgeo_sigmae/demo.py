# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The demo: the whole story on the embedded default, in minutes on two cores."""

import argparse
import math
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from ._compat import TORCHGEO_VERSION
from .datasets import SyntheticSentinel2, SyntheticSentinel2DataModule
from .tasks import SIGMAETask

__all__ = ('add_arguments', 'run_demo')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's arguments to a parser.

    Args:
        parser: The parser.
    """
    parser.add_argument('--output', type=Path, default=Path('outputs/demo'))
    parser.add_argument('--steps', type=int, default=400, help='optimiser steps')


def run_demo(output: Path, steps: int) -> Path:
    """Pretrain on synthetic chips; write a picture, a checkpoint and the encoder.

    Args:
        output: Folder for ``reconstruction.png``, ``last.ckpt`` and ``encoder.pth``.
        steps: Number of optimiser steps.

    Returns:
        The picture.
    """
    seed_everything(0, verbose=False)
    datamodule = SyntheticSentinel2DataModule(root=output / 'data', batch_size=32)
    task = SIGMAETask(
        model='sigmae_vit_tiny_patch8',
        size=64,
        mask_ratio=0.75,
        decoder_dim=128,
        decoder_depth=2,
        decoder_num_heads=4,
        lr=1e-3,
    )
    epochs = math.ceil(steps * 32 / 256)
    trainer = Trainer(
        accelerator='cpu',
        max_steps=steps,
        max_epochs=epochs,
        check_val_every_n_epoch=max(epochs // 5, 1),
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=output,
    )
    before = trainer.validate(task, datamodule, verbose=False)[0]
    trainer.fit(task, datamodule)
    after = trainer.validate(task, datamodule, verbose=False)[0]

    trainer.save_checkpoint(output / 'last.ckpt', weights_only=False)
    task.export(output / 'encoder.pth')
    picture = output / 'reconstruction.png'
    chips = SyntheticSentinel2(output / 'data', 'test')
    image = torch.stack([chips[i]['image'] for i in range(4)])
    task.plot(task.reconstruct(image)).savefig(picture, dpi=120)

    print(
        f'Validation loss before {before["val_loss"]:.4f}, '
        f'after {after["val_loss"]:.4f} (mean of the visible tokens '
        f'{after["val_baseline_loss"]:.4f}).'
    )
    print(f'Wrote {picture}, {output / "last.ckpt"} and {output / "encoder.pth"}.')
    print(f'TorchGeo {TORCHGEO_VERSION}, torch {torch.__version__}.')
    return picture
