# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What a large pretraining run would take: a prediction from parts, not a measurement.

    python -m benchmarks.scaling [--data PATH] [--output PATH]

Counted: floating-point operations of a step, per image; gradients to be added up over
the GPUs, per step. Measured here, on one core: reading a BigEarthNet patch (twelve
files) by TorchGeo's dataset, and, with ``--pack PATH``, a chip of a pack. Assumed, and
to be changed by options: what a GPU does in a second (``--peak``, of which
``--utilisation`` is reached), the slowest link between GPUs (``--link``), loader
processes per GPU (``--workers``) and the batch of a GPU.

A step takes as long as computing and then adding up (a ring: every GPU sends and
receives ``2 (n - 1) / n`` times the gradients; nothing overlaps), or as loading where
that takes longer. Validation, checkpoints and failures are left out.

Writes a table and OUTPUT/scaling.json.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from torchgeo.datasets import BigEarthNet
from tqdm import tqdm

from torchgeo_sigmae import BatchSpec, SIGMAETask
from torchgeo_sigmae.datasets.packed import PackedChips

from .measure import DATA, count_flop, inside, where, write_record

#: Runs that are predicted: images of the data, and epochs.
RUNS = {'BigEarthNet, 590,326 patches': (590_326, 200), '10 million chips': (10**7, 50)}

#: Numbers of GPUs.
GPUS = (1, 2, 4, 8, 16, 32, 64)


def count(arguments: argparse.Namespace) -> tuple[float, int]:
    """Count what a step takes."""
    task = SIGMAETask(
        arguments.model, size=arguments.size, batch=BatchSpec(mean=0.0, std=1.0)
    )
    model, images = task.model, 2
    tokens = (arguments.size // model.patch_size) ** 2
    order = torch.stack([torch.randperm(tokens) for _ in range(images)])
    hidden = round(0.9 * tokens)
    image = torch.randn(images, model.in_channels, arguments.size, arguments.size)

    def step() -> None:
        model(image, order[:, hidden:], order[:, :hidden]).square().mean().backward()

    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return count_flop(partial(inside, step)) / images, 4 * parameters


def read_seconds(data: Path, count: int) -> float | None:
    """Measure how long reading a BigEarthNet patch takes."""
    root = data / 'bigearthnet'
    if not root.is_dir():
        return None
    dataset = BigEarthNet(str(root), split='train', bands='s2')
    seconds = []
    for i in tqdm(range(count), 'Reading', disable=None, delay=2):
        start = time.perf_counter()
        dataset[i % len(dataset)]
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[count // 2]


def pack_seconds(root: Path, count: int, batch: int = 256) -> float:
    """Measure how long reading a chip of a pack takes, in shuffled batches."""
    dataset = PackedChips(root, stored=True)
    seconds = []
    for _ in range(count):
        chips = torch.randint(len(dataset), (batch,)).tolist()
        start = time.perf_counter()
        dataset.gather(chips, 0)
        seconds.append((time.perf_counter() - start) / batch)
    return sorted(seconds)[count // 2]


def predict(
    arguments: argparse.Namespace,
    images: int,
    gpus: int,
    flop: float,
    gradients: int,
    read: float,
) -> tuple[float, str]:
    """Predict how long a run takes."""
    batch = arguments.batch_size
    compute = batch * flop / (arguments.peak * arguments.utilisation)
    reduce = 2 * (gpus - 1) / gpus * gradients / arguments.link
    load = batch * read / arguments.workers
    steps = images / (batch * gpus)
    parts = {'compute': compute, 'gradients': reduce, 'reading': load}
    if load < compute + reduce:
        del parts['reading']
    seconds = steps * max(compute + reduce, load)
    return seconds / 3600, max(parts, key=parts.__getitem__)


def main(arguments: argparse.Namespace) -> None:
    """Count, measure, predict, and write the table."""
    flop, gradients = count(arguments)
    measured = read_seconds(arguments.data, arguments.reads)
    read = {'files': arguments.read_seconds if measured is None else measured}
    if arguments.pack is not None:
        read['pack'] = pack_seconds(arguments.pack, arguments.reads)
    times = ', '.join(f'{1e3 * value:.3g} ms ({name})' for name, value in read.items())
    print(
        f'Counted: {flop / 1e9:.1f} GFLOP an image, {gradients / 2**20:.0f} MiB of '
        f'gradients ({arguments.model}, {arguments.size} px, 90 % masked).\n'
        + ('Assumed' if measured is None else 'Measured')
        + f': {times} to read an image on one core ({where()}).\n'
        f'Assumed: {arguments.peak / 1e12:.0f} TFLOP/s a GPU of which '
        f'{arguments.utilisation:.0%} are reached, {arguments.link / 1e9:.0f} GB/s '
        f'between GPUs, {arguments.workers} loaders and a batch of '
        f'{arguments.batch_size} a GPU.'
    )
    print(f'\n| hours, predicted | {" | ".join(f"{n} GPU" for n in GPUS)} |')
    print('|---' * (1 + len(GPUS)) + '|')
    records = []
    for name, (images, epochs) in RUNS.items():
        for source, seconds in read.items():
            cells = []
            for gpus in GPUS:
                hours, longest = predict(
                    arguments, images * epochs, gpus, flop, gradients, seconds
                )
                cells.append(f'{hours:.1f} ({longest})')
                records.append(
                    {
                        'run': name, 'source': source, 'gpus': gpus, 'hours': hours,
                        'longest': longest,
                    }
                )  # fmt: skip
            print(f'| {name}, {epochs} epochs, {source} | {" | ".join(cells)} |')
    write_record(
        arguments, 'scaling', flop=flop, gradients=gradients, read_seconds=read,
        predicted=records,
    )  # fmt: skip


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/benchmarks'))
    parser.add_argument('--pack', type=Path, help='a pack whose chips are as large')
    parser.add_argument('--model', default='sigmae_vit_base_patch8')
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--peak', type=float, default=989e12)
    parser.add_argument('--utilisation', type=float, default=0.3)
    parser.add_argument('--link', type=float, default=25e9)
    parser.add_argument('--workers', type=int, default=8)
    parser.add_argument('--reads', type=int, default=101)
    parser.add_argument('--read-seconds', type=float, default=0.02)
    main(parser.parse_args())
