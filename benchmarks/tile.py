# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoding of a whole tile, chip by chip, in bounded memory.

    python -m benchmarks.tile [--data PATH] [--output PATH] [--side PIXELS]

A GeoTIFF of ten bands is made of repeated real Sentinel-2 chips. It is read by chips,
side by side, whose features (float16) go to a file row by row, so that memory does not
grow with the tile. What a Sentinel-2 tile of 10980 x 10980 pixels takes is extrapolated
by area, unless --side says that it is to be measured.

Time is that of reading, encoding and writing; memory is the peak above what the process
with the encoder takes. Writes OUTPUT/tile.json. About a minute on 2 CPU cores.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from torch.utils.data import DataLoader
from tqdm import tqdm

from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.datasets import SceneChips, find_scenes
from torchgeo_sigmae.evaluation import FrozenEncoder

from .measure import DATA, megabytes, peak_memory, read_chips, where, write_record

#: Side of a Sentinel-2 tile in pixels of 10 m.
TILE = 10980

#: Side of its blocks.
BLOCK = 256


def make_tile(arguments: argparse.Namespace, path: Path) -> None:
    """Write the tile.

    Args:
        arguments: See the module.
        path: Where to.
    """
    chips, side = read_chips(arguments, BLOCK)[0].nan_to_num(), arguments.side
    known: dict[str, Any] = {
        'driver': 'GTiff', 'count': 10, 'dtype': 'uint16', 'height': side,
        'width': side, 'tiled': True, 'blockxsize': BLOCK, 'blockysize': BLOCK,
        'compress': 'deflate', 'nodata': 0,
    }  # fmt: skip
    with rasterio.open(path, 'w', **known) as file:
        file.descriptions = SENTINEL2_TEN_BANDS
        for row in tqdm(range(0, side, BLOCK), 'Tile', disable=None):
            for column in range(0, side, BLOCK):
                chip = chips[(row + column) // BLOCK % len(chips)].numpy()
                height, width = min(BLOCK, side - row), min(BLOCK, side - column)
                window = Window(column, row, width, height)
                values = chip[:, :height, :width].astype('u2')
                file.write(values, window=window)


def encode(arguments: argparse.Namespace, encoder: FrozenEncoder, path: Path) -> int:
    """Encode the tile.

    Args:
        arguments: See the module.
        encoder: The encoder.
        path: Where the tile is.

    Returns:
        Number of chips.
    """
    scenes = find_scenes(path.parent)
    chips = SceneChips(scenes, size=arguments.size, random=False)
    columns = arguments.side // arguments.size
    # A row of chips makes rows of patches.
    loader = DataLoader(chips, columns)
    half = torch.autocast('cpu', torch.bfloat16, enabled=arguments.precision == 'bf16')
    with path.with_suffix('.features').open('wb') as file, half:
        for batch in tqdm(loader, 'Encoding', disable=None):
            parts = batch['image'].nan_to_num().split(arguments.batch_size)
            maps = torch.cat([encoder.maps(part).half() for part in parts])
            # (chips, D, h, w) to (h, chips, w, D).
            np.asarray(maps.permute(2, 0, 3, 1).contiguous()).tofile(file)
    return len(chips)


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write what was found.

    Args:
        arguments: See the module.
    """
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    encoder = FrozenEncoder.load(arguments.model)
    encoder.standardize(torch.rand(2, 10, 96, 96) * 4000)
    print(f'{arguments.model}, {arguments.precision}; {where()}\n', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'tile.tif'
        make_tile(arguments, path)
        # What libraries set up at first use is not the tile's.
        encoder.maps(torch.rand(arguments.batch_size, 10, *2 * [arguments.size]))
        found = []
        start = time.perf_counter()
        bytes_ = peak_memory(lambda: found.append(encode(arguments, encoder, path)))
        seconds = time.perf_counter() - start
    chips = found[0]
    area = chips * arguments.size**2
    print(
        f'{arguments.side} x {arguments.side} pixels: {chips} chips of '
        f'{arguments.size} px in {seconds:.0f} s ({chips / seconds:.0f} a second), '
        f'{megabytes(bytes_)} of memory.'
    )
    if arguments.side != TILE:
        whole = seconds * TILE**2 / area
        print(f'{TILE} x {TILE}: {whole / 60:.1f} minutes, extrapolated by area.')
    write_record(arguments, 'tile', chips=chips, seconds=seconds, bytes=bytes_)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/benchmarks'))
    parser.add_argument('--side', type=int, default=4096)
    parser.add_argument('--size', type=int, default=96, help='side of a chip')
    parser.add_argument('--model', default='sigmae_vit_small_patch8')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32')
    main(parser.parse_args())
