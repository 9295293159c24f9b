# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What frozen encoders know about single patches: land cover, and bark-beetle damage.

    PYTHONPATH=examples python -m benchmarks.dense_probe ENCODER ... [--depths 3 6 9 12]

Images are encoded in chips of 64 px, so patches come from all positions in a chip.
Needs the real data, none of which an encoder may have been trained on: the Level-2A
images of ``landcover/`` and the test sites of ``barkbeetle/``. Ridge regression on the
features of single patches of 8 px:

- land cover: accuracy over five spatial folds, five times; blocks of 7 x 7 patches
  (560 m) are not parted. A patch is of the class of more than half of its pixels;
- damage in 2020: average precision on the test sites, learned from the training sites.
  Patches that are partly damaged, or not wholly inside a site, are left out.

Beside them the same by the mean and standard deviation of the bands, and by each kind
of encoder with random weights. Writes OUTPUT.
"""

import argparse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import timm
import torch
from barkbeetle import IGNORE, BarkBeetle
from rasterio.errors import NotGeoreferencedWarning

from torchgeo_sigmae.datasets import RasterScene
from torchgeo_sigmae.evaluation import (
    BandStatistics,
    FrozenEncoder,
    Score,
    fixed_split,
    grouped_folds,
    score,
)
from torchgeo_sigmae.evaluation.frozen import Frozen
from torchgeo_sigmae.evaluation.probes import Split

from .measure import DATA, where
from .patch_features import PatchFeatures, extract_patches

#: Side of a block of land cover that is not parted, in patches.
BLOCK = 7


def landcover(root: Path, bands: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read the Level-2A images and their land cover.

    Args:
        root: Folder of the places.
        bands: Bands to read.

    Yields:
        Samples with ``'image'`` and ``'mask'``.
    """
    for path in sorted(root.glob('*/L2A.tif')):
        image = RasterScene.open(str(path), bands).read()
        with rasterio.open(path.with_name('lulc.tif')) as file:
            mask = file.read(1).astype(np.int64)
        yield {'image': torch.from_numpy(image), 'mask': torch.from_numpy(mask)}


def damage(root: Path, split: str, bands: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read the images of 2020 and their damage, sites whole.

    Args:
        root: Folder of the sites.
        split: 'train' or 'test'.
        bands: Bands to read.

    Yields:
        Samples with ``'image'`` and ``'mask'``.
    """
    dataset = BarkBeetle(root, split, bands, dates=('2020',))
    dataset.size = None
    for i in range(len(dataset)):
        sample = dataset[i]
        yield {'image': sample['image'][0], 'mask': sample['mask'][0]}


def cover_patches(encoder: Frozen, data: Path) -> PatchFeatures:
    """Describe the patches of land cover.

    Args:
        encoder: The encoder.
        data: Folder of the real data.

    Returns:
        Features, classes and blocks.
    """
    samples = landcover(data / 'landcover', encoder.bands)
    return extract_patches(encoder, samples, ignore=0, purity=0.5, block=BLOCK)


def damage_patches(encoder: Frozen, data: Path) -> tuple[PatchFeatures, Split]:
    """Describe the patches of the bark-beetle sites.

    Args:
        encoder: The encoder.
        data: Folder of the real data.

    Returns:
        Features, damage and sites; which of them are to be learned from and tested on.
    """
    train, test = (
        extract_patches(
            encoder, damage(data / 'barkbeetle', split, encoder.bands), ignore=IGNORE
        )
        for split in ('train', 'test')
    )
    first = train.groups.max() + 1
    whole = PatchFeatures(
        np.concatenate([train.values, test.values]),
        np.concatenate([train.labels, test.labels]),
        np.concatenate([train.groups, first + test.groups]),
    )
    (split,) = fixed_split(len(train.labels), len(test.labels))
    return whole, split


def measure(encoder: Frozen, data: Path, repeats: int = 5) -> tuple[Score, Score]:
    """Probe an encoder.

    Args:
        encoder: The encoder.
        data: Folder of the real data.
        repeats: How often land cover is folded anew.

    Returns:
        Accuracy of land cover, average precision of damage.
    """
    found = cover_patches(encoder, data)
    folds = grouped_folds(found.labels, found.groups, repeats=repeats)
    cover = score(found.values, found.labels, folds, 'ridge')
    found, split = damage_patches(encoder, data)
    precision = 'average_precision'
    return cover, score(found.values, found.labels, [split], 'ridge', precision)


def contenders(arguments: argparse.Namespace) -> Iterator[Frozen]:
    """Make what is compared.

    Args:
        arguments: See the module.

    Yields:
        Band statistics, then every encoder at every depth, each kind of encoder with
        random weights before the first of its kind.
    """
    yield BandStatistics()
    known: set[str] = set()
    for source in arguments.encoders:
        encoder = FrozenEncoder.load(source)
        torch.manual_seed(0)
        random = None if timm.is_model(source) else encoder.untrained()
        shown = [encoder]
        if random and random.name not in known:
            known.add(random.name)
            shown.insert(0, random)
        for one in shown:
            name = one.name
            for depth in arguments.depths:
                one.depth, one.name = depth, f'{name}, block {depth}'
                yield one


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the table.

    Args:
        arguments: See the module.
    """
    lines = ['| features | land cover | damage |', '|---|---|---|']
    for encoder in contenders(arguments):
        cover, found = measure(encoder, arguments.data)
        lines.append(f'| {encoder.name} | {cover} | {found} |')
        print(lines[-1], flush=True)
    lines += ['', f'Percent; {where()}.']
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text('\n'.join(lines) + '\n')
    print('\n'.join(['', *lines, '', f'Wrote {arguments.output}.']))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('encoders', nargs='+')
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--depths', nargs='+', type=int, default=[3, 6, 9, 12])
    parser.add_argument('--output', type=Path, default=Path('outputs/dense_probe.md'))
    # The real data have no georeference.
    warnings.simplefilter('ignore', NotGeoreferencedWarning)
    main(parser.parse_args())
