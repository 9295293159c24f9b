# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What is left of an encoder's features when bands are missing.

    python -m benchmarks.adapt_bands ENCODER EUROSAT_ROOT

The share of the variance (R2) of the patch features of all bands that features of an
adapted encoder keep, on the EuroSAT chips (training, validation and test): red,
green, blue and near infrared, and the six bands Landsat has, with the channels as they
are, with stand-ins (``method='auto'``), and scaled by the share of bands that is left.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torchgeo.datasets import EuroSAT

from torchgeo_sigmae import adapt_bands
from torchgeo_sigmae.models import build_encoder
from torchgeo_sigmae.weights import read_weights

TARGETS = {
    'RGB + B08': ['B04', 'B03', 'B02', 'B08'],
    "Landsat's six": ['B02', 'B03', 'B04', 'B8A', 'B11', 'B12'],
}


def features(path: Path, images: Tensor, scale: float = 1.0) -> Tensor:
    """Compute patch features."""
    content = read_weights(path)
    encoder = build_encoder(content.info['model'], images.shape[1], 64)
    encoder.load_state_dict(content.encoder)
    encoder.eval()
    with torch.no_grad():
        encoder.patch_embed.proj.weight *= scale
        parts = [encoder.forward_features(x)[:, 1:] for x in images.split(64)]
    return torch.cat(parts).flatten(0, 1)


def main(encoder: Path, root: Path) -> None:
    """Print the table."""
    bands = list(read_weights(encoder).info['bands'])
    chips = [
        sample['image']
        for split in ('train', 'val', 'test')
        for sample in EuroSAT(root, split, bands=bands)
    ]
    images = torch.stack(chips)
    images = images - images.mean((0, 2, 3), keepdim=True)
    images = images / images.std((0, 2, 3), keepdim=True)
    truth = features(encoder, images)
    spread = (truth - truth.mean(0)).square().sum()
    print(
        f'{len(images)} chips, {encoder}\n| bands | as they are | stand-ins | scaled |'
    )
    print('|---|---|---|---|')
    for title, target in TARGETS.items():
        some = images[:, [bands.index(band) for band in target]]
        cells = []
        with tempfile.TemporaryDirectory() as folder:
            for method, scale in (
                ('name', 1.0),
                ('auto', 1.0),
                ('name', len(bands) / len(target)),
            ):
                path = Path(folder) / f'{method}-{scale}.pth'
                adapt_bands(encoder, target, path, method=method)
                adapted = features(path, some, scale)
                kept = 1 - (adapted - truth).square().sum() / spread
                cells.append(f'{float(kept):.2f}')
        print(f'| {title} | {" | ".join(cells)} |')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('encoder', type=Path)
    parser.add_argument('root', type=Path)
    main(**vars(parser.parse_args()))
