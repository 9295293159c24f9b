# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The ablations of S2MAE's slides, on little: one thing changed at a time.

    python -m benchmarks.s2mae_ablation [--data PATH] [--steps 300] [--seeds 3]

Needs the real data. Every row pretrains ``s2mae_vit_tiny_patch8`` (or 16) on chips of
64 px as long as all others and is then measured by

- a linear probe: logistic regression on the mean patch token of the frozen encoder,
  EuroSAT's 140 training chips -> its 40 test chips, so one chip is 2.5 points;
- the validation loss relative to that of predicting the mean of the visible tokens,
  and the error in reflectance, on scenes that no row is trained on, under the mask
  ratio of the row: rows of another mask ratio have another task.

The number of bands of a cube, of which the slides say nothing, is varied as well. Data
``both`` is progressive pretraining: scenes for half of the steps, then bark-beetle
training sites.

Finished rows are kept in OUTPUT/rows and not run again, unless the options have
changed. Writes OUTPUT/table.md.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torchgeo.datasets import EuroSAT

from torchgeo_sigmae import SceneDataModule, SIGMAETask
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.evaluation import fixed_split, score

from .finetune import summary
from .measure import DATA, quiet, where
from .rows import finished_row, row_path

DEFAULT: dict[str, Any] = {
    'mask_ratio': 0.9,
    'decoder_depth': 4,
    'patch_size': 8,
    'cube_bands': 2,
    'target': 'unit',
    'positions': 'learnable',
    'data': 'scenes',
    'pretrained': True,
}

AXES: dict[str, tuple[Any, ...]] = {
    'mask_ratio': (0.25, 0.5, 0.75, 0.9),
    'decoder_depth': (2, 4, 8),
    'patch_size': (8, 16),
    'cube_bands': (1, 2, 5, 10),
    'target': ('unit', 'standardized', 'reflectance'),
    'positions': ('vanilla', 'sincos', 'learnable'),
    'data': ('scenes', 'barkbeetle', 'both'),
    'pretrained': (False, True),
}

#: Training and validation files of a folder of the data.
FILES: dict[str, dict[str, Any]] = {
    'scenes': {
        'val_paths': ['nora*', 'ravaen*', 'dsen2*49JGM*'],
        'exclude': ['*T33NZA*'],
    },
    'barkbeetle': {'paths': '*[234789]/20??.tif', 'val_paths': '*[16]/20??.tif'},
}

SIZE = 64


def run(
    arguments: argparse.Namespace, setting: dict[str, Any], seed: int
) -> dict[str, float]:
    """Pretrain and measure once.

    Args:
        arguments: See the module.
        setting: What is ablated.
        seed: Seed of weights, order and masks.

    Returns:
        What was measured.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        stages = {'both': ('scenes', 'barkbeetle')}.get(
            setting['data'], (setting['data'],)
        )
        previous = None
        for stage in stages:
            seed_everything(seed, verbose=False)
            task = build(setting, seed, previous)
            if setting['pretrained']:
                steps = max(arguments.steps // len(stages), 1)
                trainer = quiet_trainer(
                    arguments, stage, max_steps=steps, limit_val_batches=0
                )
                trainer.fit(task, scenes(arguments, stage, seed))
                previous = f'{folder}/{stage}.ckpt'
                trainer.save_checkpoint(previous)
    held_out = scenes(arguments, 'scenes', seed, task if previous else None)
    found = quiet_trainer(arguments, 'scenes').validate(task, held_out, verbose=False)
    loss, baseline = found[0]['val_loss'], found[0]['val_baseline_loss']
    return {
        'accuracy': probe(task, arguments.data / 'eurosat', arguments.every),
        'val_loss': loss,
        'val_baseline_loss': baseline,
        'relative_loss': loss / baseline,
        'val_rmse': found[0]['val_rmse'],
        'seconds': time.perf_counter() - start,
    }


def build(setting: dict[str, Any], seed: int, previous: str | None) -> SIGMAETask:
    """Build the task of a stage.

    Args:
        setting: What is ablated.
        seed: Seed of the masks.
        previous: Checkpoint of the stage before, if any.

    Returns:
        The task.
    """
    own = dict(setting)
    for key in ('data', 'pretrained'):
        del own[key]
    model = f's2mae_vit_tiny_patch{own.pop("patch_size")}'
    encoder = {name: own.pop(name) for name in ('cube_bands', 'positions')}
    return SIGMAETask(
        model, weights=previous, size=SIZE, masking='random',
        decoder_dim=128, decoder_num_heads=4, lr=1e-3,
        encoder_kwargs=encoder, seed=seed, **own,
    )  # fmt: skip


def scenes(
    arguments: argparse.Namespace,
    name: str,
    seed: int,
    task: SIGMAETask | None = None,
) -> SceneDataModule:
    """Make the datamodule of a folder of the data.

    Args:
        arguments: See the module.
        name: One of :data:`FILES`.
        seed: Seed of order and windows.
        task: A task whose normalisation to take; None for that of the data.

    Returns:
        The datamodule.
    """
    known: dict[str, Any] = {}
    if task is not None:
        known = {'mean': task.statistics.mean, 'std': task.statistics.std}
    return SceneDataModule(
        arguments.data / name, size=SIZE, batch_size=arguments.batch_size, seed=seed,
        **FILES[name], **known,
    )  # fmt: skip


def quiet_trainer(arguments: argparse.Namespace, data: str, **kwargs: Any) -> Trainer:
    """Make a trainer that says nothing and keeps no checkpoints.

    Args:
        arguments: See the module.
        data: Name of the data, whose statistics are kept.
        **kwargs: Passed to the trainer.

    Returns:
        The trainer.
    """
    return Trainer(
        devices=1,
        precision=arguments.precision,
        default_root_dir=arguments.output / 'statistics' / data,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def probe(task: SIGMAETask, root: Path, every: int = 1) -> float:
    """Classify EuroSAT's chips by the features of the frozen encoder.

    Args:
        task: The pretrained task.
        root: Folder of EuroSAT.
        every: Which chips to take: every so many-th.

    Returns:
        Accuracy on the test chips.
    """
    features, labels = [], []
    for split in ('train', 'test'):
        dataset = EuroSAT(root, split, bands=SENTINEL2_TEN_BANDS)
        chips = [dataset[i] for i in range(0, len(dataset), every)]
        images = task.statistics.normalize(torch.stack([c['image'] for c in chips]))
        features.append(embed(task, images).numpy())
        labels.append(torch.stack([c['label'] for c in chips]).numpy())
    splits = fixed_split(*map(len, labels))
    return score(np.concatenate(features), np.concatenate(labels), splits).mean


@torch.no_grad()
def embed(task: SIGMAETask, images: Tensor) -> Tensor:
    """Compute the mean patch tokens of images.

    Args:
        task: The pretrained task.
        images: Normalised images ``(N, 10, 64, 64)``.

    Returns:
        Features ``(N, D)``.
    """
    task.eval()
    return torch.cat([task(some) for some in images.split(32)])


def plan(arguments: argparse.Namespace) -> list[tuple[str, dict[str, Any], int]]:
    """List what is to be run; the default stands on every axis, and is run once.

    Args:
        arguments: See the module.

    Returns:
        Name, setting and seed of each run, all rows of a seed before the next seed.
    """
    settings = {
        row_name(axis, value): {**DEFAULT, axis: value}
        for axis in arguments.only
        for value in AXES[axis]
    }
    return [
        (name, setting, seed)
        for seed in range(arguments.seeds)
        for name, setting in settings.items()
    ]


def row_name(axis: str, value: Any) -> str:
    """Name a row.

    Args:
        axis: What is changed.
        value: To what.

    Returns:
        For example ``mask_ratio-0.5``, or ``default``.
    """
    return 'default' if DEFAULT[axis] == value else f'{axis}-{value}'


def write_table(arguments: argparse.Namespace) -> str:
    """Write the table of all rows.

    Args:
        arguments: See the module.

    Returns:
        The table.
    """
    lines = [
        '| | | linear probe | loss / baseline | RMSE, reflectance | seconds |',
        '|---|---|---|---|---|---|',
    ]
    for axis in arguments.only:
        for value in AXES[axis]:
            name = row_name(axis, value)
            rows = [
                json.loads(row_path(arguments, name, seed).read_text())['found']
                for seed in range(arguments.seeds)
            ]
            cells = [
                summary([row[key] for row in rows])
                for key in ('accuracy', 'relative_loss')
            ]
            rmse, seconds = (
                sum(row[key] for row in rows) / len(rows)
                for key in ('val_rmse', 'seconds')
            )
            title = f'{value} (default)' if name == 'default' else value
            cells += [f'{rmse:.4f}', f'{seconds:.0f}']
            lines.append(f'| {axis} | {title} | {" | ".join(cells)} |')
    how = (
        f'{arguments.steps} steps of {arguments.batch_size} chips, {arguments.seeds} '
        f'seeds (mean ± standard deviation), {arguments.precision}; {where()}.'
    )
    table = '\n'.join([*lines, '', how])
    (arguments.output / 'table.md').write_text(f'{table}\n')
    return table


def main(arguments: argparse.Namespace) -> None:
    """Run what is not finished, and write the table.

    Args:
        arguments: See the module.
    """
    todo = plan(arguments)
    options = ('steps', 'batch_size', 'precision', 'every')
    for number, (name, setting, seed) in enumerate(todo, start=1):
        found, before = finished_row(
            row_path(arguments, name, seed),
            {**setting, **{key: vars(arguments)[key] for key in options}},
            partial(run, arguments, setting, seed),
        )
        took = 'finished before' if before else f'{found["seconds"]:.0f} s'
        print(
            f'[{number}/{len(todo)}] {name}, seed {seed}: '
            f'probe {found["accuracy"]:.3f}, loss / baseline '
            f'{found["relative_loss"]:.3f} ({took})',
            flush=True,
        )
    print(f'\n{write_table(arguments)}\nWrote {arguments.output / "table.md"}.')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/s2mae_ablation'))
    parser.add_argument('--only', nargs='+', choices=list(AXES), default=list(AXES))
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--every', type=int, default=1, help='for tests')
    parser.add_argument('--precision', default='bf16-mixed')
    quiet()
    main(parser.parse_args())
