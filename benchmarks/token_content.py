# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What frozen tokens still say about the pixels of their own patch, block by block.

    PYTHONPATH=examples python -m benchmarks.token_content ENCODER ... [--depths 1 6 12]

Linear regression of single tokens, on chips of 64 px of the land-cover images and of
the training sites of the bark beetle, half to learn from and half to test: the share of
variance that is explained (R2, all bands together) of

- level: the mean of the patch in every band;
- texture: the standard deviation of the patch in every band;
- detail: the means of three of its quarters, minus that of the patch.

Random weights come before trained ones. Writes OUTPUT.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rasterio.errors import NotGeoreferencedWarning
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from torchgeo_sigmae.evaluation import BandStatistics

from .dense_probe import contenders, damage, landcover
from .measure import DATA, write_table

SIZE, PATCH = 64, 8


def read_chips(data: Path, bands: list[str]) -> dict[str, Tensor]:
    """Whole chips ``(N, C, 64, 64)`` without missing pixels, by kind of data."""
    images = {
        'land cover': landcover(data / 'landcover', bands),
        'bark beetle': damage(data / 'barkbeetle', 'train', bands),
    }
    chips = {}
    for name, samples in images.items():
        cut = [
            sample['image'].unfold(1, SIZE, SIZE).unfold(2, SIZE, SIZE).flatten(1, 2)
            for sample in samples
            if min(sample['image'].shape[-2:]) >= SIZE
        ]
        whole = torch.cat(cut, dim=1).movedim(1, 0)
        chips[name] = whole[whole.isfinite().flatten(1).all(dim=1)]
    return chips


def targets(chips: Tensor) -> dict[str, np.ndarray]:
    """What a token may say about its patch, ``(N * h * w, values)`` each."""
    patches = chips.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    quarters = F.avg_pool2d(chips, PATCH // 2).unfold(2, 2, 2).unfold(3, 2, 2)
    level = patches.mean(dim=(-2, -1))
    detail = (quarters.flatten(4) - level[..., None])[..., :3]
    every = {
        'level': level,
        'texture': patches.std(dim=(-2, -1)),
        'detail': detail.movedim(-1, 1).flatten(1, 2),
    }
    return {name: flat(values) for name, values in every.items()}


def flat(maps: Tensor) -> np.ndarray:
    """Single patches ``(N * h * w, D)`` of maps ``(N, D, h, w)``."""
    return maps.movedim(1, -1).flatten(0, 2).double().numpy()


def explained(tokens: np.ndarray, wanted: np.ndarray) -> float:
    """R2 on every other chip, learned from those between."""
    odd = np.arange(len(tokens)) // (SIZE // PATCH) ** 2 % 2 == 1
    model = make_pipeline(StandardScaler(), Ridge(1.0))
    guess = model.fit(tokens[odd], wanted[odd]).predict(tokens[~odd])
    return float(r2_score(wanted[~odd], guess, multioutput='variance_weighted'))


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the table."""
    names = [
        f'{kind}, {name}'
        for kind in ('land cover', 'bark beetle')
        for name in ('level', 'texture', 'detail')
    ]
    lines = [f'| tokens | {" | ".join(names)} |', '|---' * (1 + len(names)) + '|']
    for encoder in contenders(arguments):
        if isinstance(encoder, BandStatistics):
            continue
        shares = []
        for chips in read_chips(arguments.data, encoder.bands).values():
            features = [encoder.patch_features(batch) for batch in chips.split(64)]
            tokens = flat(torch.cat(features))
            shares += [explained(tokens, each) for each in targets(chips).values()]
        cells = [f'{100 * share:.1f}' for share in shares]
        lines.append(f'| {encoder.name} | {" | ".join(cells)} |')
        print(lines[-1], flush=True)
    write_table(arguments.output, lines, 'Percent')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('encoders', nargs='+')
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--depths', nargs='+', type=int, default=[1, 3, 6, 9, 12])
    parser.add_argument('--output', type=Path, default=Path('outputs/token_content.md'))
    # The real data have no georeference.
    warnings.simplefilter('ignore', NotGeoreferencedWarning)
    main(parser.parse_args())
