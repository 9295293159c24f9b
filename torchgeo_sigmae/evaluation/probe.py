# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae probe``: frozen encoders side by side on labelled images."""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from sklearn.model_selection import PredefinedSplit, RepeatedStratifiedKFold

from .._files import require_writable, write_text
from .baseline import POOLS, BandStatistics
from .encoders import FrozenEncoder
from .features import Features, extract_features, first_images, open_split
from .probes import (
    PROBES,
    TOKEN_PROBES,
    Splits,
    few_labels,
    percent,
    probe_scores,
)

__all__ = ('add_arguments', 'run_probe')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser.

    Args:
        parser: The parser.
    """
    parser.add_argument(
        'encoders',
        nargs='+',
        help='encoder files, training checkpoints, names of weight enums, or timm '
        'names of models, which then have random weights',
    )
    parser.add_argument(
        '--dataset', default='EuroSAT', help='class in torchgeo.datasets'
    )
    parser.add_argument('--root', type=Path, required=True, help='where it is')
    parser.add_argument(
        '--splits', nargs='+', default=['train', 'test'],
        help='its splits: the first is learned from, the last tested on; with --folds, '
        'all that are given are put together',
    )  # fmt: skip
    parser.add_argument(
        '--folds', type=int, help='stratified folds instead of the own split'
    )
    parser.add_argument('--repeats', type=int, default=5, help='how often to fold anew')
    parser.add_argument(
        '--labels', nargs='*', type=int, default=[],
        help='learn from so few samples of each class as well, for example 1 5 10',
    )  # fmt: skip
    parser.add_argument(
        '--probes', nargs='+', choices=PROBES, default=['knn', 'linear']
    )
    parser.add_argument('--depth', type=int, help='block to take, from 1; default: all')
    parser.add_argument(
        '--pooling',
        choices=POOLS,
        default='mean',
        help='of all places, for all probes but attentive',
    )
    parser.add_argument(
        '--scale', type=float, default=1.0,
        help='make images so much larger before they are encoded',
    )  # fmt: skip
    parser.add_argument(
        '--remove-places', action='store_true',
        help='take away what features tell of the place in the image alone',
    )  # fmt: skip
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--num-workers', type=int, default=0)
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of folds and random weights'
    )
    parser.add_argument('-o', '--output', type=Path, default=Path('outputs/probe.json'))


def run_probe(arguments: argparse.Namespace) -> str:
    """Probe encoders, beside what they have to beat.

    That is the mean and standard deviation of every band, and the first encoder with
    random weights.

    Args:
        arguments: Of :func:`add_arguments`.

    Returns:
        A table in percent, mean and standard deviation over splits; and a table of the
        share of position in the variance of single tokens, block by block.

    Raises:
        FileNotFoundError: If there is no such file, weight enum or model.
        OSError: If the figures cannot be written.
        ValueError: If an argument does not fit the data.
    """
    require_writable(arguments.output)
    options = {
        'depth': arguments.depth,
        'pooling': arguments.pooling,
        'magnification': arguments.scale,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        encoders = [
            FrozenEncoder.load(source, **options) for source in arguments.encoders
        ]
        named = timm.is_model(arguments.encoders[0])
        random = None if named else encoders[0].untrained()
    rows: dict[str, dict[str, np.ndarray]] = {}
    shares: dict[str, list[float]] = {}
    contenders: list[FrozenEncoder | BandStatistics] = [
        BandStatistics(encoders[0].bands),
        *([random] if random else []),
        *encoders,
    ]
    for encoder in contenders:
        features = extract_features(
            encoder,
            arguments.dataset,
            arguments.root,
            arguments.splits,
            arguments.batch_size,
            arguments.num_workers,
            arguments.device,
            tokens=not TOKEN_PROBES.isdisjoint(arguments.probes),
            remove_position_bias=arguments.remove_places,
        )
        scores = {}
        for title, probe, splits in _plan(arguments, features):
            tokens = features.tokens if probe in TOKEN_PROBES else None
            values = features.values if tokens is None else tokens
            scores[title] = probe_scores(values, features.labels, splits, probe)
        name = _unique(encoder.name, rows)
        rows[name] = scores
        if isinstance(encoder, FrozenEncoder):
            dataset = open_split(
                arguments.dataset, arguments.root, arguments.splits[0], encoder.bands
            )
            shares[name] = encoder.position_shares(first_images(dataset))
    _write(arguments, rows, shares)
    titles = list(next(iter(rows.values())))
    lines = [
        f'| {arguments.dataset} | {" | ".join(titles)} |',
        '|---' * (len(titles) + 1) + '|',
    ]
    for name, scores in rows.items():
        lines.append(f'| {name} | {" | ".join(percent(scores[t]) for t in titles)} |')
    count = max(map(len, shares.values()))
    blocks = ' | '.join(str(block + 1) for block in range(count))
    lines += [
        '',
        f'| position in tokens, block | {blocks} |',
        '|---' * (count + 1) + '|',
    ]
    for name, by_block in shares.items():
        cells = [f'{100 * share:.0f}' for share in by_block]
        cells += [''] * (count - len(cells))
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _plan(
    arguments: argparse.Namespace, features: Features
) -> list[tuple[str, str, Splits]]:
    """List what is measured: title, probe and splits."""
    if arguments.folds:
        splitter = RepeatedStratifiedKFold(
            n_splits=arguments.folds,
            n_repeats=arguments.repeats,
            random_state=arguments.seed,
        )
    else:
        if len(arguments.splits) != 2:
            raise ValueError(
                f'splits: {arguments.splits} must be two, one to learn from and one to '
                'be tested on. Or pass --folds, which puts all together.'
            )
        splitter = PredefinedSplit(features.split - 1)
    splits = list(splitter.split(features.values, features.labels))
    plan: list[tuple[str, str, Splits]] = [
        (probe, probe, splits) for probe in arguments.probes
    ]
    for count in arguments.labels:
        few = few_labels(features.labels, splits, count)
        plan += [
            (f'{probe}, {count} a class', probe, few) for probe in arguments.probes
        ]
    return plan


def _unique(name: str, taken: dict[str, Any]) -> str:
    """A name that no row has yet."""
    return name if name not in taken else f'{name} ({len(taken)})'


def _write(
    arguments: argparse.Namespace,
    rows: dict[str, dict[str, np.ndarray]],
    shares: dict[str, list[float]],
) -> None:
    """Write all figures."""
    content = {
        'arguments': {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(arguments).items()
        },
        'versions': {
            name: version(name)
            for name in ('torchgeo-sigmae', 'torchgeo', 'torch', 'timm', 'scikit-learn')
        },
        'accuracy': {
            name: {title: values.tolist() for title, values in scores.items()}
            for name, scores in rows.items()
        },
        'position_shares': shares,
    }
    write_text(arguments.output, json.dumps(content, indent=2) + '\n')
