# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""How fast batches come: packs beside files, a plain gather, and a copy of memory.

    python -m benchmarks.loading [--data PATH] [--output PATH] [--chips N]

Every source hands out shuffled batches through its own loader, and they take turns of
``--batches`` batches, more than its workers prepare while others have their turn:

- ``memcpy``: one block of memory of the same size is copied;
- ``gather``: the rows of the batch are copied from a memory-mapped ``.npy`` file;
- ``pack``: ``PackedDataModule``, as it hands batches to the device, on chips that
  are generated here (ten bands, ``uint16``);
- ``pack, decoded``: the same, with values in float32, NaN where missing;
- ``scenes``: windows of GeoTIFFs, ``SceneDataModule`` without its cache;
- ``eurosat``, ``bigearthnet``: TorchGeo's datasets, a file or twelve a chip.

Packs with 0, 1 and 2 workers, files with none and in batches of 32. ``--cold`` drops
the pack from the page cache before every turn: then the disk is measured. Writes
tables and OUTPUT/loading.json.

``--packing`` measures something else: packing ``scenes/`` and ``pool/``, or
BigEarthNet's patches again and again, against reading the same chips once, in turn.
Writes OUTPUT/packing.json.
"""

import argparse
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader
from torchgeo.datasets import BigEarthNet, EuroSAT
from tqdm import tqdm

from torchgeo_sigmae.bands import BIGEARTHNET_BANDS, SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.datasets import SceneChips, find_scenes
from torchgeo_sigmae.datasets.pack_shards import Chip, ChipSource
from torchgeo_sigmae.datasets.pack_sources import DatasetSource, SceneSource
from torchgeo_sigmae.datasets.packed import PackedChips
from torchgeo_sigmae.datasets.packing import write_pack

from .measure import DATA, interleave, quartiles, where, write_record

BANDS = BandSet(SENTINEL2_TEN_BANDS)

#: Chips in a batch of a source that reads files.
FEW = 32


class Generated:
    """Chips of random numbers, to be packed."""

    bands = BANDS
    scale, offset = 1e-4, 0.0

    def __init__(self, count: int, size: int) -> None:
        self.count, self.shape = count, (len(BANDS), size, size)
        self.sources = [{'name': 'generated', 'place': 0}]
        self.settings = {'count': count, 'size': size}

    def __len__(self) -> int:
        """Return the number of chips."""
        return self.count

    def read(self, start: int, stop: int, skipped: set[str]) -> Iterator[Chip]:
        """Generate a range of chips."""
        for i in range(start, stop):
            values = np.random.default_rng(i).integers(1, 10_000, self.shape)
            yield Chip(values.astype(np.float32), 0)


def batches(dataset: Any, size: int, workers: int = 0) -> Iterator[Any]:
    """Yield the images of shuffled batches for ever."""
    loader: DataLoader[Any] = DataLoader(
        dataset, size, shuffle=True, num_workers=workers,
        drop_last=len(dataset) >= size, persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        yield from (batch['image'] for batch in loader)


def timed(
    source: Iterator[Any], count: int, before: Callable[[], None]
) -> Callable[[], float]:
    """Make a call that takes some batches and returns chips per second."""

    def call() -> float:
        before()
        start = time.perf_counter()
        chips = sum(len(next(source)) for _ in range(count))
        return chips / (time.perf_counter() - start)

    return call


def gather(path: Path, arguments: argparse.Namespace) -> Iterator[Any]:
    """Copy the rows of shuffled batches from a memory-mapped file."""
    array = np.asarray(np.load(path, mmap_mode='c'))
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(len(array))
        for start in range(0, len(order), arguments.batch_size):
            yield array[np.sort(order[start : start + arguments.batch_size])]


def copies(shape: tuple[int, ...], arguments: argparse.Namespace) -> Iterator[Any]:
    """Copy a block of memory as large as a batch."""
    block = np.ones((arguments.batch_size, *shape), np.uint16)
    while True:
        yield block.copy()


def sources(
    arguments: argparse.Namespace, root: Path, size: int, workers: int
) -> dict[str, Iterator[Any]]:
    """List what is measured."""
    shards = sorted(root.glob('shard-*.npy'))
    shape = (len(BANDS), size, size)
    size_of_batch = arguments.batch_size
    listed: dict[str, Iterator[Any]] = {
        'memcpy': copies(shape, arguments),
        'gather': gather(shards[0], arguments),
        'pack': batches(PackedChips(root, stored=True), size_of_batch, workers),
        'pack, decoded': batches(PackedChips(root), size_of_batch, workers),
    }
    if workers:
        return listed
    data = arguments.data
    if (data / 'scenes').is_dir():
        scenes = find_scenes(data, 'scenes/*.tif')
        chips = SceneChips(scenes, BANDS, size, random=True, length=100_000)
        listed['scenes'] = batches(chips, FEW)
    if (data / 'eurosat').is_dir():
        listed['eurosat, 64 px'] = batches(
            EuroSAT(str(data / 'eurosat'), 'train', BANDS), FEW
        )
    if (data / 'bigearthnet').is_dir():
        listed['bigearthnet, 120 px'] = batches(
            BigEarthNet(str(data / 'bigearthnet'), 'train', 's2'), FEW
        )
    return listed


def forget(root: Path) -> None:
    """Drop the files of a pack from the page cache."""
    for path in root.glob('shard-*.npy'):
        with path.open('rb') as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def packing(arguments: argparse.Namespace) -> None:
    """Measure packing against reading, and print a table."""
    data, parts = arguments.data, dict[str, ChipSource]()
    if (data / 'scenes').is_dir():
        scenes = find_scenes(data, ['scenes/*.tif', 'pool/*.tif'])
        parts['scenes and pool'] = SceneSource({'': scenes}, 128)
    if (data / 'bigearthnet').is_dir():
        patches = BigEarthNet(str(data / 'bigearthnet'), 'train', 's2')
        many = ConcatDataset([patches] * max(100 // len(patches), 1))
        parts['bigearthnet'] = DatasetSource(
            {'train': many}, BandSet(BIGEARTHNET_BANDS)
        )
    print('| source | chips | reading, s | packing, s | ratio |\n|---|---|---|---|---|')
    records = []
    for name, source in parts.items():
        with tempfile.TemporaryDirectory(dir=arguments.temporary) as folder:
            roots = (Path(folder, str(number)) for number in count())
            calls: list[Callable[[], Any]] = [
                lambda source=source: deque(source.read(0, len(source), set()), 0),
                lambda source=source, roots=roots: write_pack(source, next(roots)),
            ]
            reading, writing = interleave(
                arguments, [seconds(call) for call in calls], name
            )
        ratios = [w / r for r, w in zip(reading, writing, strict=True)]
        read, write, ratio = (
            quartiles(values)[1] for values in (reading, writing, ratios)
        )
        print(f'| {name} | {len(source)} | {read:.2f} | {write:.2f} | {ratio:.2f} |')
        records.append({'source': name, 'reading': reading, 'packing': writing})
    write_record(arguments, 'packing', sources=records)


def seconds(call: Callable[[], Any]) -> Callable[[], float]:
    """Make a call that returns how long it takes."""

    def timed() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return timed


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the tables."""
    torch.set_num_threads(1)
    if arguments.packing:
        packing(arguments)
        return
    print(f'Batches of {arguments.batch_size}; {where()}.')
    records = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=arguments.temporary) as folder:
            root = Path(folder, 'pack')
            write_pack(Generated(arguments.chips, size), root, 2**34)
            for workers in arguments.workers:
                records += measure(arguments, root, size, workers)
    write_record(arguments, 'loading', sources=records)


def fast(name: str) -> bool:
    """Say whether a source comes at the speed of memory."""
    return name in ('memcpy', 'gather', 'pack', 'pack, decoded')


def measure(
    arguments: argparse.Namespace, root: Path, size: int, workers: int
) -> list[dict[str, Any]]:
    """Measure all sources in turn, and print a table."""

    def before() -> None:
        if arguments.cold:
            forget(root)

    named = sources(arguments, root, size, workers)
    calls = [
        timed(source, arguments.batches if fast(name) else 1, before)
        for name, source in named.items()
    ]
    title = f'{size} px, {workers} workers'
    if not arguments.cold:
        # The whole pack into the page cache.
        for path in tqdm(sorted(root.glob('*.npy')), 'Reading', disable=None):
            np.load(path, mmap_mode='r').max()
    speeds = interleave(arguments, calls, title)
    base = quartiles(speeds[list(named).index('gather')])[1]
    chip = 2 * len(BANDS) * size**2
    print(
        f'\n| {title} | chips/s | quartiles | GB/s | of gather |\n|---|---|---|---|---|'
    )
    records = []
    for name, values in zip(named, speeds, strict=True):
        low, middle, high = quartiles(values)
        rate = f'{middle * chip / 1e9:.2f}' if fast(name) else ''
        print(
            f'| {name} | {middle:.0f} | {low:.0f} to {high:.0f} | {rate} | '
            f'{middle / base:.3g} |'
        )
        records.append(
            {'source': name, 'size': size, 'workers': workers, 'chips': values}
        )
    return records


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/benchmarks'))
    parser.add_argument('--temporary', help='folder of the generated pack')
    parser.add_argument('--chips', type=int, default=20_000)
    parser.add_argument('--sizes', type=int, nargs='+', default=[64, 96, 120])
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--batches', type=int, default=16)
    parser.add_argument('--repetitions', type=int, default=20)
    parser.add_argument('--warm-up', type=int, default=3)
    parser.add_argument('--packing', action='store_true', help='pack, and read')
    parser.add_argument('--cold', action='store_true', help='read from the disk')
    main(parser.parse_args())
