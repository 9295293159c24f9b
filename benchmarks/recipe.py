# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The recipe of pretraining: change one thing at a time, and probe the features.

    PYTHONPATH=examples python -m benchmarks.recipe --only spectral window [--seeds 2]
    PYTHONPATH=examples python -m benchmarks.recipe --probe ENCODER CHECKPOINT ...

Needs the real data. A row pretrains an encoder on ``scenes/`` (without haze), ``pool/``
and the bark-beetle training sites, from the same first weights and chips as all other
rows of its seed, either for ``--seconds`` of processor time (so that cheap steps may be
many) or for ``--steps``. The encoder is then probed as it is, at each block of
``--depths``:

- land cover of single patches, which come from all positions in a chip: accuracy over
  spatial folds;
- bark-beetle damage of single patches: average precision on the test sites;
- EuroSAT: a linear probe on all 200 chips, stratified folds, by mean and standard
  deviation of the patch tokens, with all labels and with 1, 5 and 10 of each class;
- the share of position in the variance of tokens, which should be low;
- the validation loss under a random mask of 75 %, relative to that of predicting the
  mean of the visible tokens.

The table has the difference to the first row of the axis, seed by seed, and the 95 %
confidence interval of its mean (Student's t over seeds; none for one seed).

Finished rows are kept in OUTPUT/rows, so the command can be stopped and given again;
``--part 0 2`` and ``--part 1 2`` share the rows between two processes. Writes
OUTPUT/table.md.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import seed_everything
from rasterio.errors import NotGeoreferencedWarning
from scipy.stats import t as student
from sklearn.model_selection import RepeatedStratifiedKFold
from torchgeo.datasets import EuroSAT

from torchgeo_sigmae import SceneDataModule, SIGMAETask, adapt_bands
from torchgeo_sigmae.bands import BandSet
from torchgeo_sigmae.evaluation import (
    FrozenEncoder,
    extract_features,
    few_labels,
    probe_scores,
)
from torchgeo_sigmae.masking import MASKINGS, MaskSchedule, sample_noise
from torchgeo_sigmae.metrics import VisibilityRatio
from torchgeo_sigmae.models.spectral import encoder_arguments
from torchgeo_sigmae.tasks.augmentation import default_transform
from torchgeo_sigmae.weights import read_weights

from .dense_probe import cover_accuracy, damage_precision
from .measure import DATA, Clock, quiet, quiet_trainer, where
from .rows import finished_row, row_path

TOKENS = 64

#: What every row passes to SIGMAETask, but for ``batch_size`` and ``crop``, the least
#: share of a chip that an augmentation crops.
DEFAULT: dict[str, Any] = {
    'model': 'sigmae_vit_tiny_patch8',
    'size': 64,
    'batch_size': 64,
    'crop': 0.2,
    'masking': 'random',
    'mask_ratio': 0.75,
    'predict_ratio': 0.5,
    'decoder_dim': 128,
    'decoder_depth': 2,
    'decoder_num_heads': 4,
    'norm_pix_loss': True,
    'lr': 1e-3,
}

#: The other families.
S2MAE = {'model': 's2mae_vit_tiny_patch8'}
SATMAE = {'model': 'satmae_vit_tiny_patch8'}

#: How many times more likely the least salient tenth is visible than the most salient.
GUIDED = {'masking': 'saliency', 'favor': 4}


def window(size: int, mask_ratio: float, batch_size: int) -> dict[str, Any]:
    """Say what a row of another window changes."""
    return {'size': size, 'mask_ratio': mask_ratio, 'batch_size': batch_size}


#: What is changed, to what; the first of an axis is what the others are measured
#: against. The same setting under two names is run once.
AXES: dict[str, dict[str, dict[str, Any]]] = {
    'spectral': {
        'pixels alone': {},
        'weight 0.5': {'spectral_weight': 0.5},
        'weight 2': {'spectral_weight': 2.0},
    },
    'bands': {
        'all': {},
        'dropout 30 %': {'band_dropout': 0.3},
        'dropout 60 %': {'band_dropout': 0.6},
    },
    'rotary': {'rotary': {}, 'learnable': {'positions': 'learnable'}},
    'window': {
        '64 px, 75 %': {},
        '64 px, 90 %': {'mask_ratio': 0.9},
        '96 px, 75 %': window(96, 0.75, 32),
        '96 px, 90 %': window(96, 0.9, 64),
        '128 px, 75 %': window(128, 0.75, 16),
        '128 px, 90 %': window(128, 0.9, 32),
    },
    'decoder': {
        'cross 128 x 2': {},
        'cross 128 x 1': {'decoder_depth': 1},
        'cross 128 x 4': {'decoder_depth': 4},
        'self 128 x 2': {'decoder': 'self'},
    },
    'batch': {'64': {}, '32': {'batch_size': 32}, '128': {'batch_size': 128}},
    'lr': {'0.001': {}, '0.0005': {'lr': 5e-4}, '0.002': {'lr': 2e-3}},
    'crop': {'0.2': {}, '0.5': {'crop': 0.5}, '1': {'crop': 1.0}},
    'size': {'ViT-T': {}, 'ViT-S': {'model': 'sigmae_vit_small_patch8', 'lr': 7e-4}},
    'masking': {
        'random': {},
        'guided': GUIDED,
    },
    'family': {
        'SIGMAE': {},
        'S2MAE': S2MAE,
        'SatMAE': SATMAE,
    },
    's2mae-masks': {masking: {**S2MAE, 'masking': masking} for masking in MASKINGS},
    'satmae-masks': {masking: {**SATMAE, 'masking': masking} for masking in MASKINGS},
    'cubes': {
        '2 bands': S2MAE,
        '1 band': {**S2MAE, 'cube_bands': 1},
        '5 bands': {**S2MAE, 'cube_bands': 5},
        '10 bands': {**S2MAE, 'cube_bands': 10},
    },
    'positions': {
        'learnable': {**S2MAE, 'positions': 'learnable'},
        'sincos': {**S2MAE, 'positions': 'sincos'},
        'vanilla': {**S2MAE, 'positions': 'vanilla'},
    },
}

#: Training and validation files, as in examples/pretrain_sentinel2.yaml.
PATHS = ['scenes/*.tif', 'pool/*.tif', 'barkbeetle/*[234789]/20??.tif']
VAL_PATHS = ['scenes/nora*', 'scenes/ravaen*', 'scenes/dsen2*49JGM*']
EXCLUDE = ['*T33NZA*']

#: Columns of the table.
METRICS = {
    'landcover': 'land cover',
    'damage': 'damage',
    'linear': 'EuroSAT',
    'one': 'EuroSAT, 1 a class',
    'five': 'EuroSAT, 5 a class',
    'ten': 'EuroSAT, 10 a class',
    'position': 'position',
    'landcover_5': 'land cover, five bands',
    'linear_5': 'EuroSAT, five bands',
    'landcover_4': 'land cover, four bands',
    'linear_4': 'EuroSAT, four bands',
}

#: What many users have: the bands of 10 m, with and without short-wave infrared.
FEW_BANDS = {5: ('B02', 'B03', 'B04', 'B08', 'B11'), 4: ('B02', 'B03', 'B04', 'B08')}

#: Labels per class, where there are few.
LABELS = {'one': 1, 'five': 5, 'ten': 10}


@cache
def beta_for(favor: float | None, mask_ratio: float) -> float:
    """Find the strength of the guidance."""
    if favor is None:
        return 1e6
    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(4096, TOKENS, generator=generator)
    noise = sample_noise(0, torch.arange(4096), TOKENS)
    low, high = 0.0, 20.0
    for _ in range(20):
        beta = (low + high) / 2
        schedule = MaskSchedule('saliency', mask_ratio, (beta, beta))
        mask = schedule.mask(saliency, noise, 1.0)
        ratio = VisibilityRatio()
        ratio.update(saliency, mask.keep)
        low, high = (beta, high) if ratio.compute() < favor else (low, beta)
    return round(beta, 2)


def arguments_of(change: dict[str, Any]) -> dict[str, Any]:
    """Arguments of SIGMAETask, ``batch_size`` and ``crop`` of a row."""
    setting = {**DEFAULT, **change}
    if 'favor' in setting:
        beta = beta_for(setting.pop('favor'), setting['mask_ratio'])
        setting['guidance'] = {'strength': (0.0, beta)}
    return setting


def datamodule(
    arguments: argparse.Namespace, setting: dict[str, Any], seed: int
) -> SceneDataModule:
    """Make the datamodule."""
    return SceneDataModule(
        arguments.data, size=setting['size'], batch_size=setting['batch_size'],
        seed=seed, paths=PATHS, val_paths=VAL_PATHS, exclude=EXCLUDE,
    )  # fmt: skip


def make_task(setting: dict[str, Any], seed: int) -> SIGMAETask:
    """Make the task."""
    seed_everything(seed, verbose=False)
    options = dict(setting)
    transform = default_transform(options['size'], options.pop('crop'))
    del options['batch_size']
    encoder = {
        name: options.pop(name)
        for name in ('cube_bands', 'positions')
        if name in options
    }
    return SIGMAETask(
        transform=transform, seed=seed, encoder_kwargs=encoder or None, **options
    )


def steps_in(
    arguments: argparse.Namespace, setting: dict[str, Any], seconds: float
) -> int:
    """Count the steps that fit into a time, by measuring a few."""
    clock = Clock(time.process_time)
    quiet_trainer(arguments, max_steps=24, limit_val_batches=0, callbacks=[clock]).fit(
        make_task(setting, 0), datamodule(arguments, setting, 0)
    )
    return max(round(seconds / float(np.median(np.diff(clock.times)[4:]))), 1)


def run(
    arguments: argparse.Namespace, setting: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Pretrain and measure once."""
    start = time.perf_counter()
    steps = arguments.steps
    if arguments.seconds:
        steps = steps_in(arguments, setting, arguments.seconds)
    task, data = make_task(setting, seed), datamodule(arguments, setting, seed)
    trainer = quiet_trainer(arguments, max_steps=steps, limit_val_batches=0)
    begin = time.process_time()
    trainer.fit(task, data)
    trained = time.process_time() - begin
    task.mask_schedule = replace(task.mask_schedule, ratio=0.75)
    losses = quiet_trainer(arguments).validate(task, data, verbose=False)[0]
    with tempfile.TemporaryDirectory() as folder:
        task.export(f'{folder}/encoder.pth')
        blocks = probe(arguments, f'{folder}/encoder.pth')
    return {
        'blocks': blocks,
        'relative_loss': losses['val_loss'] / losses['val_baseline_loss'],
        'steps': steps,
        'training_seconds': trained,
        'seconds': time.perf_counter() - start,
    }


def probe(arguments: argparse.Namespace, path: str) -> dict[str, dict[str, float]]:
    """Measure the features of every block of ``--depths``, and with few bands."""
    blocks = probe_encoder(arguments, path, whole=True)
    cube = encoder_arguments(read_weights(path).encoder)
    for count, bands in FEW_BANDS.items():
        if count % cube.get('cube_bands', 1):
            continue  # Bands are in whole cubes.
        with tempfile.TemporaryDirectory() as folder:
            few = f'{folder}/few.pth'
            adapt_bands(path, bands, few)
            for depth, values in probe_encoder(arguments, few, whole=False).items():
                blocks[depth] |= {f'{name}_{count}': values[name] for name in values}
    return blocks


def probe_encoder(
    arguments: argparse.Namespace, path: str, whole: bool
) -> dict[str, dict[str, float]]:
    """Measure land cover and EuroSAT by the features of blocks, or everything."""
    encoder = FrozenEncoder.load(path, pooling='mean+std')
    blocks = {}
    for depth in arguments.depths:
        encoder.depth = depth
        samples, folds = eurosat(encoder, arguments)
        scores = {
            'landcover': cover_accuracy(encoder, arguments.data, arguments.repeats),
            'linear': probe_scores(*samples, folds),
        }
        if whole:
            scores['damage'] = damage_precision(encoder, arguments.data)
            for name, count in LABELS.items():
                few = few_labels(samples[1], folds[:5], count)
                scores[name] = probe_scores(*samples, few)
        blocks[str(depth)] = {name: float(one.mean()) for name, one in scores.items()}
    if whole:
        shares = encoder.position_shares(chips(encoder, arguments))
        for depth in arguments.depths:
            blocks[str(depth)]['position'] = shares[depth - 1]
    return blocks


def eurosat(
    encoder: FrozenEncoder, arguments: argparse.Namespace
) -> tuple[tuple[np.ndarray, np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Features and classes of all EuroSAT chips, and folds of them."""
    features = extract_features(
        encoder, 'EuroSAT', arguments.data / 'eurosat', ('train', 'val', 'test'),
        progress=False,
    )  # fmt: skip
    splitter = RepeatedStratifiedKFold(
        n_splits=5, n_repeats=arguments.repeats, random_state=0
    )
    samples = features.values, features.labels
    return samples, list(splitter.split(*samples))


def chips(encoder: FrozenEncoder, arguments: argparse.Namespace) -> torch.Tensor:
    """EuroSAT's training chips, in the encoder's bands."""
    order = BandSet(EuroSAT.all_band_names).channels(encoder.bands)
    names = [EuroSAT.all_band_names[i] for i in order]
    dataset = EuroSAT(arguments.data / 'eurosat', 'train', bands=names)
    return torch.stack([dataset[i]['image'] for i in range(len(dataset))])


def interval(differences: Sequence[float]) -> str:
    """Write the mean of differences in points, with its confidence interval."""
    values = 100 * np.asarray(differences)
    mean = f'{values.mean():+.1f}'
    if len(values) < 2:
        return mean
    half = values.std(ddof=1) / len(values) ** 0.5 * student.ppf(0.975, len(values) - 1)
    return f'{mean} [{values.mean() - half:+.1f}, {values.mean() + half:+.1f}]'


def asked(arguments: argparse.Namespace, setting: dict[str, Any]) -> dict[str, Any]:
    """Everything a row depends on, as plain values."""
    options = ('steps', 'seconds', 'precision', 'depths', 'repeats')
    chosen = {name: vars(arguments)[name] for name in options}
    plain: dict[str, Any] = json.loads(json.dumps({**chosen, **setting}))
    return plain


def finished(
    arguments: argparse.Namespace, change: dict[str, Any]
) -> dict[int, dict[str, Any]]:
    """Read the finished rows of a setting."""
    wanted, rows = asked(arguments, arguments_of(change)), {}
    for seed in range(arguments.seeds):
        path = row_path(arguments, key_of(change), seed)
        if path.exists() and (row := json.loads(path.read_text()))['asked'] == wanted:
            rows[seed] = row['found']
    return rows


def tables(arguments: argparse.Namespace) -> str:
    """Write the tables of all axes, as far as rows are finished."""
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
            titles += ['loss', 'steps', 'seconds', 'seeds']
            lines += ['', f'| {" | ".join(titles)} |', f'{"|---" * len(titles)}|']
            for name, rows in kept.items():
                if not rows:
                    continue
                cells = [name]
                for metric in METRICS:
                    values, base = (
                        {
                            seed: row['blocks'][depth][metric]
                            for seed, row in part.items()
                            if metric in row['blocks'][depth]
                        }
                        for part in (rows, first)
                    )
                    if not values:
                        cells.append('')
                        continue
                    cell = f'{100 * np.mean(list(values.values())):.1f}'
                    both = sorted(values.keys() & base.keys())
                    if both and rows is not first:
                        cell += f' ({interval([values[s] - base[s] for s in both])})'
                    cells.append(cell)
                for metric, digits in (
                    ('relative_loss', 3),
                    ('steps', 0),
                    ('training_seconds', 0),
                ):
                    mean = np.mean([row[metric] for row in rows.values()])
                    cells.append(f'{mean:.{digits}f}')
                lines.append(f'| {" | ".join([*cells, str(len(rows))])} |')
    length = f'{arguments.steps} steps'
    if arguments.seconds:
        length = f'{arguments.seconds} s of processor time'
    how = (
        f'{length}, {arguments.precision}; percent, in brackets the '
        f'difference to the first row and its 95 % interval; {where()}.'
    )
    return '\n'.join([*lines, '', how]).strip()


def key_of(change: dict[str, Any]) -> str:
    """Name a setting by what it changes."""
    named = [f'{name}={change[name]}' for name in sorted(change)]
    return ','.join(named).replace(' ', '') or 'default'


def probe_files(arguments: argparse.Namespace) -> None:
    """Probe encoders that are trained already, and print a table."""
    print(f'| encoder, block | {" | ".join(METRICS.values())} |')
    print('|---' * (len(METRICS) + 1) + '|')
    for path in arguments.probe:
        for depth, scores in probe(arguments, path).items():
            cells = (
                f'{100 * scores[metric]:.1f}' if metric in scores else ''
                for metric in METRICS
            )
            print(f'| {path}, {depth} | {" | ".join(cells)} |', flush=True)
    print(f'\nPercent; {where()}.')


def main(arguments: argparse.Namespace) -> None:
    """Run what is not finished, and write the tables."""
    torch.set_num_threads(arguments.threads)
    if arguments.probe:
        probe_files(arguments)
        return
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
        row, before = finished_row(
            row_path(arguments, key, seed),
            asked(arguments, setting),
            partial(run, arguments, setting, seed),
        )
        took = 'finished before' if before else f'{row["seconds"]:.0f} s'
        last = row['blocks'][str(arguments.depths[-1])]
        figures = ', '.join(
            f'{METRICS[m]} {100 * last[m]:.1f}' for m in METRICS if m in last
        )
        print(f'[{number + 1}/{len(todo)}] {key}, seed {seed}: {figures} ({took})',
              flush=True)  # fmt: skip
        (arguments.output / 'table.md').write_text(tables(arguments) + '\n')
    print(f'\n{tables(arguments)}\n\nWrote {arguments.output / "table.md"}.')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/recipe'))
    parser.add_argument('--only', nargs='+', choices=list(AXES), default=list(AXES))
    parser.add_argument('--probe', nargs='+', help='encoders: only probe them')
    parser.add_argument('--steps', type=int, default=1000)
    parser.add_argument('--seconds', type=float, help='processor time, not steps')
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--depths', nargs='+', type=int, default=[6, 12])
    parser.add_argument('--repeats', type=int, default=2, help='of folds')
    parser.add_argument('--part', nargs=2, type=int, default=[0, 1])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--precision', default='bf16-mixed')
    warnings.simplefilter('ignore', NotGeoreferencedWarning)
    quiet()
    main(parser.parse_args())
