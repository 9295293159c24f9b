# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""SIGMAE's choices, one changed at a time: does guided masking give better features?

    PYTHONPATH=examples python -m benchmarks.ablation [--data PATH] [--only AXIS ...]

Needs the real data. Every row pretrains ``sigmae_vit_tiny_patch8`` on chips of 64 px of
the scenes and of the bark-beetle training sites, with as many steps, the same chips in
the same order and the same first weights as all other rows of its seed. It is then
measured frozen, at every block of ``--depths``:

- land cover of single patches: accuracy over spatial folds;
- bark-beetle damage of single patches: average precision on the test sites;
- EuroSAT: a linear probe and 5 nearest neighbours on all 200 chips, stratified folds,
  by mean and standard deviation of the patch tokens;
- the validation loss under a random mask of 75 %, relative to that of predicting the
  mean of the visible tokens; comparable between rows of one target only.

The table has the difference to the first row of the axis, seed by seed, and the 95 %
confidence interval of its mean (Student's t over seeds; none of one seed).

Finished rows are kept in OUTPUT/rows and not run again, so the command can be stopped
and given again at any time; ``--part 0 2`` and ``--part 1 2`` share the rows between
two processes. Writes OUTPUT/table.md. A row of 1000 steps takes about seven minutes on
one core.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import seed_everything
from rasterio.errors import NotGeoreferencedWarning
from scipy.stats import t as student

from torchgeo_sigmae import SceneDataModule, SIGMAETask
from torchgeo_sigmae.evaluation import (
    FrozenEncoder,
    extract_features,
    repeated_folds,
    score,
)
from torchgeo_sigmae.masking import Curriculum, VisibilityRatio

from .dense_probe import measure
from .measure import DATA, quiet, where
from .rows import finished_row, row_path
from .s2mae_ablation import quiet_trainer

SIZE, TOKENS = 64, 64

DEFAULT: dict[str, Any] = {
    'masking': 'random',
    'mask_ratio': 0.75,
    'predict_ratio': 0.5,
    'decoder_dim': 128,
    'decoder_depth': 2,
    'decoder_num_heads': 4,
    'norm_pix_loss': True,
    'lr': 1e-3,
}

#: How many times likelier the least salient tenth is visible than the most salient.
GUIDED = {'masking': 'saliency', 'likelier': 4}

NINETY = {'mask_ratio': 0.9}

SELF = {'decoder': 'self'}

LARGE = {'decoder_dim': 512, 'decoder_depth': 8, 'decoder_num_heads': 16}

#: What is changed, to what; the first of an axis is what the others are measured
#: against. The same setting under two names is run once.
AXES: dict[str, dict[str, dict[str, Any]]] = {
    'masking': {
        'random': {},
        'twice': {**GUIDED, 'likelier': 2},
        '4 times': GUIDED,
        '16 times': {**GUIDED, 'likelier': 16},
        '4 times, constant': {**GUIDED, 'curriculum': 'constant'},
        '16 times, constant': {**GUIDED, 'likelier': 16, 'curriculum': 'constant'},
        'most salient always': {**GUIDED, 'likelier': None, 'curriculum': 'constant'},
    },
    'alpha': {
        '0.5': GUIDED,
        '0, heterogeneity alone': {**GUIDED, 'alpha': 0.0},
        '1, richness alone': {**GUIDED, 'alpha': 1.0},
    },
    'combine': {
        'minmax': GUIDED,
        'rank': {**GUIDED, 'combine': 'rank'},
        'product': {**GUIDED, 'combine': 'product'},
        'minmax, without NDWI': {**GUIDED, 'indices': ('NDVI', 'NDBI')},
    },
    'mask_ratio': {'0.75': {}, '0.6': {'mask_ratio': 0.6}, '0.9': NINETY},
    'masking_ninety': {
        'random': NINETY,
        '4 times': {**NINETY, **GUIDED},
        '16 times': {**NINETY, **GUIDED, 'likelier': 16},
    },
    'predict_ratio': {
        '0.5': {},
        '1': {'predict_ratio': 1.0},
        '0.25': {'predict_ratio': 0.25},
        '0.5, the most salient': {'predict_by': 'saliency'},
        '0.25, the most salient': {'predict_ratio': 0.25, 'predict_by': 'saliency'},
    },
    'decoder': {
        'cross 128 x 2': {},
        'cross 128 x 1': {'decoder_depth': 1},
        'cross 128 x 4': {'decoder_depth': 4},
        'self 128 x 1': {**SELF, 'decoder_depth': 1},
        'self 128 x 2': SELF,
        'cross 512 x 8': LARGE,
        'self 512 x 8': {**SELF, **LARGE},
    },
    'target': {
        'norm_pix_loss': {},
        'standardized': {'norm_pix_loss': False},
        'norm_pix_loss, visible 0.5': {'visible_weight': 0.5},
        'standardized, visible 0.5': {'norm_pix_loss': False, 'visible_weight': 0.5},
    },
    'lr': {'0.001': {}, '0.0003': {'lr': 3e-4}, '0.003': {'lr': 3e-3}},
}  # fmt: skip

#: Training and validation files, as in examples/pretrain_pool.yaml.
PATHS = ['scenes/*.tif', 'barkbeetle/*[234789]/20??.tif']
VAL_PATHS = ['scenes/nora*', 'scenes/ravaen*', 'scenes/dsen2*49JGM*']

#: Columns of the table.
METRICS = {
    'landcover': 'land cover',
    'damage': 'damage',
    'linear': 'EuroSAT, linear',
    'knn': 'EuroSAT, 5-NN',
}


@cache
def beta_for(likelier: float | None, mask_ratio: float) -> float:
    """Find the strength of the guidance.

    Args:
        likelier: How many times likelier the least salient tenth is visible than the
            most salient; None for a strength that leaves nothing to chance.
        mask_ratio: Share of masked tokens.

    Returns:
        The ``saliency_end`` of SIGMAETask, by bisection on simulated masks.
    """
    if likelier is None:
        return 1e6
    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(4096, TOKENS, generator=generator)
    low, high = 0.0, 20.0
    for _ in range(20):
        beta = (low + high) / 2
        curriculum = Curriculum('saliency', mask_ratio, (beta, beta))
        mask = curriculum.mask(saliency, 1.0, generator)
        ratio = VisibilityRatio()
        ratio.update(saliency, mask.keep)
        low, high = (beta, high) if ratio.compute() < likelier else (low, beta)
    return round(beta, 2)


def arguments_of(change: dict[str, Any]) -> dict[str, Any]:
    """Say what a row passes to SIGMAETask.

    Args:
        change: What is changed.

    Returns:
        All arguments that are not those of every row.
    """
    setting = {**DEFAULT, **change}
    if 'likelier' in setting:
        beta = beta_for(setting.pop('likelier'), setting['mask_ratio'])
        setting['saliency_end'] = beta
    return setting


def datamodule(arguments: argparse.Namespace, seed: int) -> SceneDataModule:
    """Make the datamodule.

    Args:
        arguments: See the module.
        seed: Seed of order and windows.

    Returns:
        The datamodule.
    """
    return SceneDataModule(
        arguments.data, size=SIZE, batch_size=arguments.batch_size, seed=seed,
        paths=PATHS, val_paths=VAL_PATHS,
    )  # fmt: skip


def run(
    arguments: argparse.Namespace, setting: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Pretrain and measure once.

    Args:
        arguments: See the module.
        setting: Arguments of the task.
        seed: Seed of weights, order and masks.

    Returns:
        What was measured; of every block a record.
    """
    start = time.perf_counter()
    seed_everything(seed, verbose=False)
    task = SIGMAETask('sigmae_vit_tiny_patch8', size=SIZE, seed=seed, **setting)
    data = datamodule(arguments, seed)
    trainer = quiet_trainer(
        arguments, 'pool', max_steps=arguments.steps, limit_val_batches=0
    )
    trainer.fit(task, data)
    trained = time.perf_counter()
    task.curriculum = Curriculum('random', 0.75)
    losses = quiet_trainer(arguments, 'pool').validate(task, data, verbose=False)[0]
    with tempfile.TemporaryDirectory() as folder:
        task.export(f'{folder}/encoder.pth')
        blocks = {
            str(depth): probe(arguments, f'{folder}/encoder.pth', depth)
            for depth in arguments.depths
        }
    return {
        'blocks': blocks,
        'relative_loss': losses['val_loss'] / losses['val_baseline_loss'],
        'training_seconds': trained - start,
        'seconds': time.perf_counter() - start,
    }


def probe(arguments: argparse.Namespace, path: str, depth: int) -> dict[str, float]:
    """Measure the features of a block.

    Args:
        arguments: See the module.
        path: The encoder.
        depth: Number of the block.

    Returns:
        One value for each of :data:`METRICS`.
    """
    encoder = FrozenEncoder.load(path, depth=depth, pooling='mean+std')
    cover, damage = measure(encoder, arguments.data, arguments.repeats)
    chips = extract_features(
        encoder, 'EuroSAT', arguments.data / 'eurosat', ('train', 'val', 'test'),
        progress=False,
    )  # fmt: skip
    folds = repeated_folds(chips.labels, 5, arguments.repeats)
    linear, knn = (
        score(chips.values, chips.labels, folds, name).mean
        for name in ('linear', 'knn')
    )
    return {
        'landcover': cover.mean, 'damage': damage.mean, 'linear': linear, 'knn': knn,
    }  # fmt: skip


def interval(differences: Sequence[float]) -> str:
    """Write the mean of differences in points, with its confidence interval.

    Args:
        differences: One a seed.

    Returns:
        For example ``+1.2 [-0.3, +2.7]``.
    """
    values = 100 * np.asarray(differences)
    mean = f'{values.mean():+.1f}'
    if len(values) < 2:
        return mean
    half = values.std(ddof=1) / len(values) ** 0.5 * student.ppf(0.975, len(values) - 1)
    return f'{mean} [{values.mean() - half:+.1f}, {values.mean() + half:+.1f}]'


def asked(arguments: argparse.Namespace, setting: dict[str, Any]) -> dict[str, Any]:
    """Say what a row depends on.

    Args:
        arguments: See the module.
        setting: Arguments of the task.

    Returns:
        Plain values, as they come back from JSON.
    """
    options = ('steps', 'batch_size', 'precision', 'depths', 'repeats')
    chosen = {name: vars(arguments)[name] for name in options}
    known: dict[str, Any] = json.loads(json.dumps({**chosen, **setting}))
    return known


def finished(
    arguments: argparse.Namespace, change: dict[str, Any]
) -> dict[int, dict[str, Any]]:
    """Read the finished rows of a setting.

    Args:
        arguments: See the module.
        change: What is changed.

    Returns:
        What was measured, by seed.
    """
    known, found = asked(arguments, arguments_of(change)), {}
    for seed in range(arguments.seeds):
        path = row_path(arguments, key_of(change), seed)
        if path.exists() and (row := json.loads(path.read_text()))['asked'] == known:
            found[seed] = row['found']
    return found


def tables(arguments: argparse.Namespace) -> str:
    """Write the tables of all axes, as far as rows are finished.

    Args:
        arguments: See the module.

    Returns:
        A table for every axis and block.
    """
    lines = []
    for axis in AXES:
        kept = {
            name: finished(arguments, change) for name, change in AXES[axis].items()
        }
        first = next(iter(kept.values()))
        if sum(map(len, kept.values())) == len(first):
            continue
        for depth in map(str, arguments.depths):
            titles = [f'{axis}, block {depth}', *METRICS.values()]
            titles += ['loss', 'seconds', 'seeds']
            lines += ['', f'| {" | ".join(titles)} |', f'{"|---" * len(titles)}|']
            for name, rows in kept.items():
                if not rows:
                    continue
                cells = [name]
                for metric in METRICS:
                    values, base = (
                        {s: row['blocks'][depth][metric] for s, row in found.items()}
                        for found in (rows, first)
                    )
                    cell = f'{100 * np.mean(list(values.values())):.1f}'
                    both = sorted(values.keys() & base.keys())
                    if both and rows is not first:
                        cell += f' ({interval([values[s] - base[s] for s in both])})'
                    cells.append(cell)
                for metric, digits in (('relative_loss', 3), ('training_seconds', 0)):
                    mean = np.mean([row[metric] for row in rows.values()])
                    cells.append(f'{mean:.{digits}f}')
                lines.append(f'| {" | ".join([*cells, str(len(rows))])} |')
    how = (
        f'{arguments.steps} steps of {arguments.batch_size} chips, '
        f'{arguments.precision}; percent, in brackets the '
        f'difference to the first row and its 95 % interval; {where()}.'
    )
    return '\n'.join([*lines, '', how]).strip()


def key_of(change: dict[str, Any]) -> str:
    """Name a setting by what it changes.

    Args:
        change: What is changed.

    Returns:
        For example ``masking=saliency,likelier=4``, or ``default``.
    """
    named = [f'{name}={change[name]}' for name in sorted(change)]
    return ','.join(named).replace(' ', '') or 'default'


def main(arguments: argparse.Namespace) -> None:
    """Run what is not finished, and write the tables.

    Args:
        arguments: See the module.
    """
    torch.set_num_threads(arguments.threads)
    settings = {
        key_of(change): change
        for axis in arguments.only
        for change in AXES[axis].values()
    }
    part, parts = arguments.part
    todo = [(seed, key) for seed in range(arguments.seeds) for key in settings]
    for number, (seed, key) in enumerate(todo):
        if number % parts != part:
            continue
        setting = arguments_of(settings[key])
        found, before = finished_row(
            row_path(arguments, key, seed),
            asked(arguments, setting),
            partial(run, arguments, setting, seed),
        )
        took = 'finished before' if before else f'{found["seconds"]:.0f} s'
        blocks: Any = found['blocks']
        last = blocks[str(arguments.depths[-1])]
        figures = ', '.join(f'{METRICS[m]} {100 * last[m]:.1f}' for m in METRICS)
        print(f'[{number + 1}/{len(todo)}] {key}, seed {seed}: {figures} ({took})',
              flush=True)  # fmt: skip
        (arguments.output / 'table.md').write_text(tables(arguments) + '\n')
    print(f'\n{tables(arguments)}\n\nWrote {arguments.output / "table.md"}.')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/ablation'))
    parser.add_argument('--only', nargs='+', choices=list(AXES), default=list(AXES))
    parser.add_argument('--steps', type=int, default=1000)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--depths', nargs='+', type=int, default=[6, 12])
    parser.add_argument('--repeats', type=int, default=2, help='of folds')
    parser.add_argument('--part', nargs=2, type=int, default=[0, 1])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--precision', default='bf16-mixed')
    warnings.simplefilter('ignore', NotGeoreferencedWarning)
    quiet()
    main(parser.parse_args())
