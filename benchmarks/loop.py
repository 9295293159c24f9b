# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The whole loop of pretraining: where the time goes, from files to weights.

    python -m benchmarks.loop [--data PATH] [--output PATH] [--only NAME ...]

SIGMAETask at its defaults in ``Trainer.fit``, on

- ``eurosat``: TorchGeo's EuroSAT, a GeoTIFF of 13 bands a chip;
- ``bigearthnet``: TorchGeo's BigEarthNet, twelve files a patch;
- ``scenes``: windows of scenes, decoded for every chip;
- ``scenes in memory``: the same, decoded once (the default for small ones);
- ``pack``: chips of 128 px of the scenes, packed before.

The few samples there are repeated, so that no epoch ends while time is taken. Shares
are those of the wall-clock time of the steps, the first ones left out: *waiting* for
data, *transfer* (missing pixels are marked, the datamodule normalizes), *augmentation*,
*saliency*, *mask*, *model*, *backward*, *optimizer*, and the *rest* (tokens, loss,
log).

Writes a table and OUTPUT/loop.json. About ten minutes on 2 CPU cores.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from kornia import augmentation as K
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import ConcatDataset
from torchgeo.datamodules import (
    BigEarthNetDataModule,
    EuroSATDataModule,
    NonGeoDataModule,
)

from torchgeo_sigmae import (
    PackedDataModule,
    PatchSaliency,
    SceneDataModule,
    SIGMAETask,
)
from torchgeo_sigmae.datasets import find_scenes
from torchgeo_sigmae.datasets.pack_sources import SceneSource
from torchgeo_sigmae.datasets.packing import write_pack
from torchgeo_sigmae.masking import MaskSchedule
from torchgeo_sigmae.models import MaskedAutoencoder
from torchgeo_sigmae.tasks import sigmae
from torchgeo_sigmae.tasks.augmentation import default_transform

from .measure import DATA, Clock, quiet, where, write_record

#: Samples an epoch has, so that none ends while time is taken.
LENGTH = 100_000


class Repeated(NonGeoDataModule):
    """A datamodule whose few samples come many times over."""

    def setup(self, stage: str) -> None:
        """Set up datasets."""
        super().setup(stage)
        dataset: Any = self.train_dataset
        self.train_dataset = ConcatDataset([dataset] * (LENGTH // len(dataset)))


class Eurosat(Repeated, EuroSATDataModule):
    """EuroSAT, repeated."""


class Bigearthnet(Repeated, BigEarthNetDataModule):
    """BigEarthNet, repeated."""


def sources(arguments: argparse.Namespace) -> dict[str, Callable[[int], Any]]:
    """List the sources of data."""
    data, batch = arguments.data, arguments.batch_size

    def scenes(cache: bool) -> Callable[[int], LightningDataModule]:
        return lambda workers: SceneDataModule(
            data / 'scenes', batch_size=batch, num_workers=workers,
            cache=cache, length=LENGTH,
        )  # fmt: skip

    def pack(workers: int) -> LightningDataModule:
        root = arguments.output / 'pack'
        write_pack(SceneSource({'': find_scenes(data / 'scenes')}, 128), root)
        return PackedDataModule(
            root, size=arguments.size, batch_size=batch, num_workers=workers,
            length=LENGTH,
        )  # fmt: skip

    return {
        'eurosat': lambda workers: Eurosat(
            root=str(data / 'eurosat'), batch_size=batch, num_workers=workers
        ),
        'bigearthnet': lambda workers: Bigearthnet(
            root=str(data / 'bigearthnet'), bands='s2', batch_size=batch,
            num_workers=workers,
        ),
        'scenes': scenes(False),
        'scenes in memory': scenes(True),
        'pack': pack,
    }  # fmt: skip


def one_by_one(size: int) -> K.AugmentationSequential:
    """Make our default augmentation as kornia would run it."""
    transform = default_transform(size)
    crop = next(iter(transform.children()))
    crop.flags['cropping_mode'] = 'slice'
    return transform


def run(
    arguments: argparse.Namespace, make: Callable[[int], Any], workers: int
) -> dict[str, float]:
    """Train for some steps."""
    torch.manual_seed(0)
    task = SIGMAETask(
        arguments.model, size=arguments.size, lr=1e-4,
        transform=one_by_one(arguments.size) if arguments.one_by_one else None,
    )  # fmt: skip
    profiler, clock = SimpleProfiler(), Clock(time.perf_counter)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with profiler.profile(name):
                return function(*args, **kwargs)

        return wrapped

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for owner, name in (
            (sigmae, 'augment'),
            (PatchSaliency, 'saliency'),
            (MaskSchedule, 'mask'),
            (MaskedAutoencoder, 'forward'),
        ):
            function = timed(name, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, function))
        Trainer(
            accelerator='cpu', precision=arguments.precision, logger=False,
            max_steps=arguments.skip + arguments.steps, callbacks=[clock],
            limit_val_batches=0, num_sanity_val_steps=0, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, profiler=profiler,
            default_root_dir=folder,
        ).fit(task, make(workers))  # fmt: skip
    total = clock.times[-1] - clock.times[arguments.skip - 1]

    def share(*names: str) -> float:
        return sum(
            sum(seconds[arguments.skip :]) / total
            for action, seconds in profiler.recorded_durations.items()
            if action.split('.')[-1] in names
        )

    parts = {
        'waiting': share('train_dataloader_next'),
        'transfer': share('batch_to_device'),
        'augmentation': share('augment'),
        'saliency': share('saliency'),
        'mask': share('mask'),
        'model': share('forward'),
        'backward': share('backward'),
        'optimizer': share('optimizer_step') - share('training_step', 'backward'),
    }
    return {
        'images_per_second': arguments.batch_size * arguments.steps / total,
        **parts,
        'rest': 1 - sum(parts.values()),
    }


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the table."""
    quiet()
    torch.set_num_threads(arguments.threads)
    print(
        f'{arguments.batch_size} images, {arguments.size} px, {arguments.model}, '
        f'{arguments.precision}; {where()}',
        flush=True,
    )
    records = []
    makers = sources(arguments)
    for name in arguments.only:
        for workers in arguments.workers:
            parts = run(arguments, makers[name], workers)
            records.append({'source': name, 'workers': workers, **parts})
            if len(records) == 1:
                print(f'\n| source | workers | images/s | {" | ".join([*parts][1:])} |')
                print('|---' * (len(parts) + 2) + '|')
            speed, *shares = parts.values()
            cells = ' | '.join(f'{value:.1%}' for value in shares)
            print(f'| {name} | {workers} | {speed:.0f} | {cells} |', flush=True)
    write_record(arguments, 'loop', loops=records)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/benchmarks'))
    names = ('eurosat', 'bigearthnet', 'scenes', 'scenes in memory', 'pack')
    parser.add_argument('--only', nargs='+', choices=names, default=names)
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 2])
    parser.add_argument('--model', default='sigmae_vit_small_patch8')
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--skip', type=int, default=4)
    parser.add_argument(
        '--one-by-one', action='store_true', help="crop as kornia's default does"
    )
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--precision', default='32-true')
    main(parser.parse_args())
