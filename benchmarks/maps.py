# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Time and memory of the maps of a large scene.

    python -m benchmarks.maps --scene SCENE.tif [--checkpoint RUN.ckpt] [--side 4096]

The scene is repeated, mirrored, up to the side asked for. Every command runs in a
process of its own, whose largest resident memory is that of the whole process: Python,
PyTorch and TorchGeo take 1 GB before the first pixel is read. Reconstruction needs a
checkpoint. Writes OUTPUT.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet

from .measure import run_module, write_table

#: What is measured: title, and arguments of the command line.
COMMANDS = {
    'saliency': ['saliency'],
    'embed, 192 features': ['embedding'],
    'embed, 3 components': ['embedding', '--pca', '3'],
}


def enlarge(scene: Path, side: int, path: Path) -> None:
    """Repeat a scene, mirrored, in its ten bands."""
    with rasterio.open(scene) as file:
        bands = BandSet.from_data(file.descriptions)
        chosen = [i + 1 for i in bands.channels(SENTINEL2_TEN_BANDS)]
        image = file.read(chosen)
    rows, columns = (max(side - n, 0) for n in image.shape[1:])
    image = np.pad(image, ((0, 0), (0, rows), (0, columns)), mode='reflect')
    with rasterio.open(
        path, 'w', driver='GTiff', count=len(image), height=image.shape[1],
        width=image.shape[2], dtype=image.dtype, tiled=True, compress='deflate',
        crs='EPSG:32632', transform=from_origin(5e5, 5.4e6, 10, 10),
    ) as file:  # fmt: skip
        file.write(image)
        file.descriptions = SENTINEL2_TEN_BANDS


def main(arguments: argparse.Namespace) -> None:
    """Run the commands and write the table."""
    side = arguments.side
    lines = [
        f'| {side} x {side} x 10 | seconds | peak GB | map, MB |',
        '|---' * 4 + '|',
    ]
    with tempfile.TemporaryDirectory() as folder:
        scene, target = Path(folder) / 'scene.tif', Path(folder) / 'map.tif'
        enlarge(arguments.scene, side, scene)
        commands = dict(COMMANDS)
        if arguments.checkpoint:
            options = ['--weights', arguments.checkpoint]
            commands['reconstruct'] = ['reconstruction', *options]
        for title in arguments.only or commands:
            name, *options = commands[title]
            seconds, used, _ = run_module(
                'torchgeo_sigmae', 'map', name, scene, '-o', target, *options
            )
            size = target.stat().st_size / 1e6
            lines.append(f'| {title} | {seconds:.0f} | {used:.2f} | {size:.0f} |')
            print(lines[-1], flush=True)
    write_table(arguments.output, lines, 'One run each')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--scene', type=Path, required=True)
    parser.add_argument('--checkpoint', help='of SIGMAETask, to reconstruct by')
    parser.add_argument('--only', nargs='+', help='titles of what to measure')
    parser.add_argument('--side', type=int, default=4096)
    parser.add_argument('--output', type=Path, default=Path('outputs/maps.md'))
    main(parser.parse_args())
