# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Time and memory of lazy maps, scaled to 100 km x 100 km.

    python -m benchmarks.lazy --scene SCENE.tif [--side 2048]

The scene is repeated, mirrored, up to the side asked for, and read in chunks. Maps are
stored chunk by chunk; each runs in a process of its own with one thread. Time is that
of the processor, without imports: other programs do not change it much. It is scaled by
the number of pixels, 100 million at 10 m. Memory is the largest resident memory of the
process, which does not depend on the region but for chunks of which chips are sampled.
Writes OUTPUT.
"""

import argparse
import tempfile
import time
from pathlib import Path

import dask
import dask.array
import numpy as np
import rioxarray
import torch

from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.maps import lazy

from .maps import enlarge
from .measure import run_module, write_table

MAPS = ('saliency', 'embed')


def run(name: str, scene: Path, chunk: int) -> None:
    """Map the scene, and print the seconds of the processor."""
    torch.set_num_threads(1)
    encoder = FrozenEncoder.load('SIGMAE_Weights.SENTINEL2')
    data = rioxarray.open_rasterio(scene, chunks={'x': chunk, 'y': chunk})
    data = data.assign_coords(band=list(SENTINEL2_TEN_BANDS))
    start = time.process_time()
    found = lazy.saliency(data) if name == 'saliency' else lazy.embed(data, encoder)
    with (
        tempfile.NamedTemporaryFile() as file,
        dask.config.set(scheduler='synchronous'),
    ):
        target = np.memmap(file, 'float32', 'w+', shape=found.shape)
        dask.array.store(found.data, target, lock=False)
    print(time.process_time() - start)


def main(arguments: argparse.Namespace) -> None:
    """Run every map and write the table."""
    if arguments.run:
        run(arguments.run, arguments.scene, arguments.chunk)
        return
    side = arguments.side
    lines = [
        f'| {side} x {side} x 10 | CPU seconds | peak GB | CPU h, 100 km x 100 km |',
        '|---' * 4 + '|',
    ]
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / 'scene.tif'
        enlarge(arguments.scene, side, scene)
        for name in MAPS:
            finished = run_module(
                'benchmarks.lazy', '--scene', scene, '--run', name,
                '--chunk', arguments.chunk,
            )  # fmt: skip
            seconds = float(finished.output)
            hours = seconds * 1e8 / side**2 / 3600
            used = finished.peak_gigabytes
            lines.append(f'| {name} | {seconds:.1f} | {used:.2f} | {hours:.2f} |')
            print(lines[-1], flush=True)
    note = f'Chunks of {arguments.chunk} px, one run each'
    write_table(arguments.output, lines, note)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--scene', type=Path, required=True)
    parser.add_argument('--side', type=int, default=2048)
    parser.add_argument('--chunk', type=int, default=1024)
    parser.add_argument('--run', choices=MAPS, help='one map, in this process')
    parser.add_argument('--output', type=Path, default=Path('outputs/lazy.md'))
    main(parser.parse_args())
