# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Training runs of tests: small, and without noise."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from torchgeo_sigmae import SIGMAETask


def trainer(path: Path, **kwargs: Any) -> Trainer:
    """On the CPU; writes and prints nothing unless asked to."""
    return Trainer(
        accelerator='cpu',
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        **kwargs,
    )


def task(family: str = 'sigmae', **arguments: Any) -> SIGMAETask:
    """A small task of one of our families, for raw batches."""
    return SIGMAETask(
        **{
            'model': f'{family}_vit_tiny_patch8',
            'size': 32,
            'decoder_dim': 32,
            'decoder_depth': 1,
            'decoder_num_heads': 2,
            'lr': 1e-3,
            'mean': 3000.0,
            'std': 2000.0,
            'normalize': True,
            **arguments,
        }
    )
