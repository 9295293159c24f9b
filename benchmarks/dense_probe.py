# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What frozen encoders know about single patches: land cover, and bark-beetle damage.

    PYTHONPATH=examples python -m benchmarks.dense_probe ENCODER ... [--depths 3 6 9 12]

Images are encoded in chips of 64 px, so patches come from all positions in a chip.
Needs the real data, on none of which an encoder may have been trained: the Level-2A
images of ``landcover/`` and the test sites of ``barkbeetle/``. Ridge regression on the
features of single patches of 8 px:

- land cover: accuracy over five spatial folds, five times; blocks of 7 x 7 patches
  (560 m) stay together. The class of a patch is that of more than half of its pixels.
  Measured again with the mean features of the chip beside those of the patch: a token
  that holds much of its surroundings gains from that by itself;
- damage in 2020: average precision on the test sites, learned from the training sites.
  Patches that are partly damaged, or not wholly inside a site, are left out.

The same is measured for the mean and standard deviation of the bands, and for each kind
of encoder with random weights. The last row classifies land cover by all features
together, to show what these labels allow at most. Writes OUTPUT.
"""

import argparse
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import timm
import torch
from barkbeetle import IGNORE, BarkBeetle
from rasterio.errors import NotGeoreferencedWarning
from sklearn.model_selection import PredefinedSplit

from torchgeo_sigmae.datasets import RasterScene
from torchgeo_sigmae.evaluation import BandStatistics, FrozenEncoder, probe_scores
from torchgeo_sigmae.evaluation.probes import percent

from .measure import DATA, write_table
from .patch_features import PatchFeatures, extract_patches, grouped_folds

__all__ = ('cover_accuracy', 'cover_patches', 'damage_patches', 'damage_precision')

#: Side of a block of land cover that stays together, in patches.
BLOCK = 7


def landcover(root: Path, bands: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read the Level-2A images and their land cover."""
    for path in sorted(root.glob('*/L2A.tif')):
        image = RasterScene.open(str(path), bands).read()
        with rasterio.open(path.with_name('lulc.tif')) as file:
            mask = file.read(1).astype(np.int64)
        yield {'image': torch.from_numpy(image), 'mask': torch.from_numpy(mask)}


def damage(root: Path, split: str, bands: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read the images of 2020 and their damage, whole sites."""
    dataset = BarkBeetle(root, split, bands, dates=('2020',))
    dataset.size = None
    for i in range(len(dataset)):
        sample = dataset[i]
        yield {'image': sample['image'][0], 'mask': sample['mask'][0]}


def cover_patches(
    encoder: FrozenEncoder | BandStatistics, data: Path, context: bool = False
) -> PatchFeatures:
    """Features, classes and blocks of the patches of land cover."""
    return extract_patches(
        encoder, landcover(data / 'landcover', encoder.bands), ignore=0, purity=0.5,
        block=BLOCK, context=context,
    )  # fmt: skip


def damage_patches(
    encoder: FrozenEncoder | BandStatistics, data: Path
) -> tuple[PatchFeatures, list[tuple[np.ndarray, np.ndarray]]]:
    """Features, damage and sites of the bark-beetle patches; the one split of them."""
    train, test = (
        extract_patches(
            encoder, damage(data / 'barkbeetle', split, encoder.bands), ignore=IGNORE
        )
        for split in ('train', 'test')
    )
    both = PatchFeatures(
        np.concatenate([train.values, test.values]),
        np.concatenate([train.labels, test.labels]),
        np.concatenate([train.groups, train.groups.max() + 1 + test.groups]),
    )
    fold = np.repeat([-1, 0], [len(train.labels), len(test.labels)])
    return both, list(PredefinedSplit(fold).split())


def cover_accuracy(
    encoder: FrozenEncoder | BandStatistics, data: Path, repeats: int = 5
) -> np.ndarray:
    """Accuracy of land cover on every fold."""
    cover = cover_patches(encoder, data)
    folds = grouped_folds(cover.labels, cover.groups, repeats=repeats)
    return probe_scores(cover.values, cover.labels, folds, 'ridge')


def cover_accuracies(cover: PatchFeatures) -> tuple[np.ndarray, np.ndarray]:
    """The same by patches alone, and with the mean features of their chips."""
    alone, _ = np.split(cover.values, 2, axis=1)
    folds = grouped_folds(cover.labels, cover.groups)
    return (
        probe_scores(alone, cover.labels, folds, 'ridge'),
        probe_scores(cover.values, cover.labels, folds, 'ridge'),
    )


def damage_precision(encoder: FrozenEncoder | BandStatistics, data: Path) -> np.ndarray:
    """Average precision of damage on the test sites."""
    sites, split = damage_patches(encoder, data)
    metric = 'average_precision'
    return probe_scores(sites.values, sites.labels, split, 'ridge', metric)


def contenders(
    arguments: argparse.Namespace,
) -> Iterator[FrozenEncoder | BandStatistics]:
    """Band statistics, then encoders block by block, random weights before trained."""
    yield BandStatistics()
    shown: set[str] = set()
    for source in arguments.encoders:
        encoder = FrozenEncoder.load(source)
        torch.manual_seed(0)
        random = None if timm.is_model(source) else encoder.untrained()
        for one in (random, encoder):
            if one is None or one.name in shown:
                continue
            name = one.name
            shown.add(name)
            for depth in arguments.depths:
                one.depth, one.name = depth, f'{name}, block {depth}'
                yield one


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the table."""
    titles = 'features', 'land cover', 'land cover, with the mean of the chip', 'damage'
    lines = [f'| {" | ".join(titles)} |', '|---|---|---|---|']
    covers = []
    for encoder in contenders(arguments):
        covers.append(cover_patches(encoder, arguments.data, context=True))
        scores = (
            *cover_accuracies(covers[-1]),
            damage_precision(encoder, arguments.data),
        )
        cells = map(percent, scores)
        lines.append(f'| {encoder.name} | {" | ".join(cells)} |')
        print(lines[-1], flush=True)
    # Of every row first the patches, then the means of their chips.
    halves = [cover.values.reshape(len(cover.values), 2, -1) for cover in covers]
    values = np.concatenate(halves, axis=2).reshape(len(halves[0]), -1)
    together = replace(covers[0], values=values)
    cells = map(percent, cover_accuracies(together))
    lines.append(f'| all of these together | {" | ".join(cells)} | |')
    print(lines[-1], flush=True)
    write_table(arguments.output, lines, 'Percent')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('encoders', nargs='+')
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--depths', nargs='+', type=int, default=[3, 6, 9, 12])
    parser.add_argument('--output', type=Path, default=Path('outputs/dense_probe.md'))
    # The real data have no georeference.
    warnings.simplefilter('ignore', NotGeoreferencedWarning)
    main(parser.parse_args())
