# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Small, quiet training runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Trainer

from torchgeo_sigmae import BatchSpec, Guidance, SIGMAETask
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.models.registry import Architecture

#: Arguments of a small task for data that their datamodule normalizes.
SMALL: dict[str, Any] = {
    'model': 'sigmae_vit_tiny_patch8',
    'size': 32,
    'decoder_dim': 32,
    'decoder_depth': 1,
    'decoder_num_heads': 2,
    'lr': 1e-3,
}


#: Options of the command ``fit`` for one quiet epoch on the CPU.
ONE_EPOCH = [
    *('--trainer.max_epochs=1', '--trainer.check_val_every_n_epoch=1'),
    *('--trainer.accelerator=cpu', '--trainer.enable_progress_bar=false'),
    '--trainer.enable_model_summary=false',
]


def quiet_trainer(path: Path | None = None, **kwargs: Any) -> Trainer:
    """A trainer on the CPU that writes and prints nothing unless asked to."""
    quiet = {
        'accelerator': 'cpu',
        'logger': False,
        'enable_checkpointing': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
        'default_root_dir': path,
    }
    return Trainer(**{**quiet, **kwargs})


@contextmanager
def narrow_encoders() -> Iterator[None]:
    """Our names with a sixth of their width: the same code, a fraction of the time."""
    arguments = Architecture.arguments

    def narrow(architecture: Architecture) -> dict[str, Any]:
        full = arguments(architecture)
        width = full['embed_dim'] // 6 // 16 * 16
        return {**full, 'embed_dim': width, 'num_heads': 2}

    with mock.patch.object(Architecture, 'arguments', narrow):
        yield


def small_task(
    family: str = 'sigmae', kind: type[SIGMAETask] = SIGMAETask, **kwargs: Any
) -> SIGMAETask:
    """A small task of one of our families, for batches of raw values."""
    raw = {'mean': 3000.0, 'std': 2000.0, 'normalize': True}
    model = f'{family}_vit_tiny_patch8'
    return kind(**grouped(**{**SMALL, **raw, 'model': model, **kwargs}))


def grouped(**kwargs: Any) -> dict[str, Any]:
    """Arguments of a task, with those of its groups collected from flat keywords.

    A group that is given as such comes first.
    """
    groups = {'batch': BatchSpec, 'guidance': Guidance}
    for group, kind in groups.items():
        names = {field.name for field in fields(kind)} - {'bands'}
        flat = {name: kwargs.pop(name) for name in names & kwargs.keys()}
        if flat:
            kwargs.setdefault(group, kind(**flat))
    encoder = {'cube_bands', 'groups', 'positions'} & kwargs.keys()
    if encoder:
        kwargs['encoder_kwargs'] = {name: kwargs.pop(name) for name in encoder}
    return kwargs


def narrow_encoder(
    path: Path, positions: str = 'rotary', **kwargs: Any
) -> FrozenEncoder:
    """A narrow encoder with random weights, exported and loaded.

    Learnable positions are ten times as strong as usual: features are mostly position.
    """
    torch.manual_seed(0)
    with narrow_encoders():
        task = SIGMAETask(
            'sigmae_vit_tiny_patch8', size=64, encoder_kwargs={'positions': positions},
            batch=BatchSpec(mean=[1500.0] * 10, std=[1000.0] * 10),
        )  # fmt: skip
        if positions == 'learnable':
            with torch.no_grad():
                task.model.encoder.pos_embed *= 10
        task.export(path)
        return FrozenEncoder.load(path, **kwargs)
