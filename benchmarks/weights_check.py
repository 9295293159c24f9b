# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Recompute every figure of the model card from the file that ships.

    make weights-check
    PYTHONPATH=examples python -m benchmarks.weights_check [--beside ENCODER ...]

Needs the real data, none of which the weights were trained on: EuroSAT, land cover and
the bark-beetle test sites. Probes the frozen encoder beside the mean and standard
deviation of the bands and beside the same encoder with random weights:

- EuroSAT, all 200 chips, five stratified folds five times: logistic regression on mean
  and standard deviation of the patch tokens, 5 nearest neighbors, and logistic
  regression that learns from 1, 5, 10 and 14 chips of every class (five draws);
- land cover and damage of single patches, see ``benchmarks.dense_probe``.

Differences come with 95 % confidence intervals, from a bootstrap over chips, over
spatial blocks and over sites. Compares all figures with those between the marks in
CARD, and fails where one differs by more than TOLERANCE points; with ``--write``,
writes them there. ``--beside`` measures other encoders as well, and prints all without
comparing.
"""

import argparse
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rasterio.errors import NotGeoreferencedWarning
from sklearn.metrics import average_precision_score
from sklearn.model_selection import RepeatedStratifiedKFold

from torchgeo_sigmae.evaluation import (
    BandStatistics,
    FrozenEncoder,
    extract_features,
    few_labels,
    probe_scores,
)
from torchgeo_sigmae.evaluation.probes import make_probe, percent

from .dense_probe import cover_patches, damage_patches
from .measure import DATA, where
from .paired import bootstrap, correct
from .patch_features import grouped_folds

WEIGHTS = 'SIGMAE_Weights.SENTINEL2'

#: Where the figures stand in the card.
MARKS = '<!-- figures: make weights-check -->', '<!-- end of figures -->'

NUMBER = re.compile(r'[-+]?\d+(?:\.\d+)?')


@dataclass
class Measured:
    """The measurements of an encoder.

    Attributes:
        scores: Percent, by the title of their column.
        right: How often every chip and every land-cover patch was classified correctly.
        decisions: Decision values of the patches of the test sites.
        groups: Units of the bootstrap: chips, blocks, sites.
        damage: Whether the patches of the test sites are damaged.
    """

    scores: dict[str, str]
    right: tuple[np.ndarray, np.ndarray]
    decisions: np.ndarray
    groups: tuple[np.ndarray, np.ndarray, np.ndarray]
    damage: np.ndarray


def measure(
    encoder: FrozenEncoder | BandStatistics, arguments: argparse.Namespace
) -> Measured:
    """Probe an encoder."""
    chips = extract_features(
        encoder, 'EuroSAT', arguments.data / 'eurosat', ('train', 'val', 'test'),
        progress=False,
    )  # fmt: skip
    samples = chips.values, chips.labels
    splitter = RepeatedStratifiedKFold(
        n_splits=5, n_repeats=arguments.repeats, random_state=0
    )
    folds = list(splitter.split(*samples))
    right = correct(*samples, folds)
    scores = {
        'EuroSAT': f'{100 * right.mean():.1f}',
        '5-NN': percent(probe_scores(*samples, folds, 'knn')),
    }
    for count in arguments.labels:
        # A draw of every fold, once.
        drawn = few_labels(chips.labels, folds[:5], count)
        scores[f'{count} a class'] = percent(probe_scores(*samples, drawn))
    patches = cover_patches(encoder, arguments.data)
    blocks = grouped_folds(patches.labels, patches.groups, repeats=arguments.repeats)
    cover = patches.values, patches.labels
    covered = correct(*cover, blocks, 'ridge')
    scores['land cover'] = f'{100 * covered.mean():.1f}'
    sites, ((train, test),) = damage_patches(encoder, arguments.data)
    ridge = make_probe('ridge', len(train)).fit(
        sites.values[train], sites.labels[train]
    )
    decisions = ridge.decision_function(sites.values[test])
    damage = sites.labels[test]
    scores['damage'] = f'{100 * average_precision_score(damage, decisions):.1f}'
    groups = np.arange(len(right)), patches.groups, sites.groups[test]
    return Measured(scores, (right, covered), decisions, groups, damage)


def differences(ours: Measured, other: Measured) -> dict[str, str]:
    """Compare two encoders on the same samples."""
    chips, cover = (a - b for a, b in zip(ours.right, other.right, strict=True))

    def precision(drawn: np.ndarray) -> float:
        damage = ours.damage[drawn]
        if not damage.any():
            return 0.0
        first, second = (
            average_precision_score(damage, one.decisions[drawn])
            for one in (ours, other)
        )
        return float(first - second)

    measures = {
        'EuroSAT': lambda drawn: float(chips[drawn].mean()),
        'land cover': lambda drawn: float(cover[drawn].mean()),
        'damage': precision,
    }
    return {
        title: str(bootstrap(measure, groups))
        for (title, measure), groups in zip(measures.items(), ours.groups, strict=True)
    }


def contenders(
    arguments: argparse.Namespace,
) -> Iterator[FrozenEncoder | BandStatistics]:
    """The weights by block, other encoders, random weights, band statistics."""
    sources = [arguments.weights, *arguments.beside]
    for source in sources:
        for block in arguments.blocks:
            encoder = FrozenEncoder.load(
                source,
                depth=block,
                pooling='mean+std',
                magnification=arguments.magnification,
            )
            encoder.name = f'{Path(source).name}, block {block}'
            yield encoder
    torch.manual_seed(0)
    random = encoder.untrained()
    assert random is not None
    name = random.name
    for block in arguments.blocks:
        random.depth, random.name = block, f'{name}, block {block}'
        yield random
    yield BandStatistics(encoder.bands)


def figures(arguments: argparse.Namespace) -> str:
    """Measure everything."""
    start, measured = time.perf_counter(), {}
    for encoder in contenders(arguments):
        measured[encoder.name] = measure(encoder, arguments)
        took = time.perf_counter() - start
        print(f'{encoder.name}: measured after {took:.0f} s', file=sys.stderr)
    ours, *others = measured
    titles = measured[ours].scores
    lines = head('features', titles)
    lines += [row(name, one.scores.values()) for name, one in measured.items()]
    compared = {name: differences(measured[ours], measured[name]) for name in others}
    lines += ['', *head(f'{ours}, minus', compared[others[0]])]
    lines += [row(name, one.values()) for name, one in compared.items()]
    return '\n'.join([*lines, '', f'Percent and points; {where()}.'])


def head(name: str, titles: Iterable[str]) -> list[str]:
    """Begin a table."""
    first = row(name, titles)
    return [first, '|---' * (first.count('|') - 1) + '|']


def row(name: str, cells: Iterable[str]) -> str:
    """Write a row of a table."""
    return f'| {" | ".join([name, *cells])} |'


def compare(card: str, measured: str, tolerance: float) -> list[str]:
    """Find what differs between the card and what was measured."""
    # All but the last line, which tells machine and versions.
    before, after = (
        [line for line in text.strip().splitlines() if line.startswith('|')]
        for text in (card, measured)
    )
    if len(before) != len(after):
        return [f'The card has {len(before)} rows, {len(after)} were measured.']
    wrong = []
    for old, new in zip(before, after, strict=True):
        pairs = list(zip(NUMBER.findall(old), NUMBER.findall(new), strict=False))
        same_words = NUMBER.sub('#', old) == NUMBER.sub('#', new)
        if not same_words or any(
            abs(float(a) - float(b)) > tolerance + 1e-9 for a, b in pairs
        ):
            wrong.append(f'card:     {old}\nmeasured: {new}')
    return wrong


def main(arguments: argparse.Namespace) -> None:
    """Measure, and compare or write."""
    card = arguments.card.read_text()
    if not all(card.count(mark) == 1 for mark in MARKS):
        raise SystemExit(f'{arguments.card}: needs {MARKS[0]} and {MARKS[1]}, once.')
    if not (arguments.data / 'landcover').is_dir():
        raise SystemExit(
            f'There are no real data in {arguments.data}: set SIGMAE_DATA, or pass '
            '--data.'
        )
    measured = figures(arguments)
    print(measured)
    if arguments.beside:
        return
    # Minutes have passed: somebody may have edited the rest of the card.
    before, rest = arguments.card.read_text().split(MARKS[0])
    old, after = rest.split(MARKS[1])
    if arguments.write:
        parts = [before, MARKS[0], f'\n{measured}\n', MARKS[1], after]
        arguments.card.write_text(''.join(parts))
        print(f'\nWrote {arguments.card}.')
        return
    if wrong := compare(old, measured, arguments.tolerance):
        raise SystemExit('\n'.join(['', f'{arguments.card} differs:', *wrong]))
    print(f'\nAll figures of {arguments.card} were confirmed.')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--weights', default=WEIGHTS)
    parser.add_argument('--beside', nargs='+', default=[])
    parser.add_argument('--card', type=Path, default=Path('docs/dev/weights.md'))
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument(
        '--blocks', nargs='+', type=int, default=[12, 6],
        help='differences are those of the first',
    )  # fmt: skip
    parser.add_argument('--labels', nargs='+', type=int, default=[1, 5, 10, 14])
    parser.add_argument('--magnification', type=float, default=1.0)
    parser.add_argument('--repeats', type=int, default=5, help='of folds')
    parser.add_argument('--tolerance', type=float, default=1.0, help='in points')
    parser.add_argument('--write', action='store_true')
    # The real data have no georeference.
    warnings.simplefilter('ignore', NotGeoreferencedWarning)
    main(parser.parse_args())
