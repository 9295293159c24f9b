# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Time and memory of a pretraining step: SIGMAE, S2MAE and SatMAE at one setting.

    python -m benchmarks.models [--data PATH] [--output PATH]

A step is what the model does with a batch that is there: tokens with their saliency,
mask, forward, loss, backward, AdamW. Loader and augmentation are left out, as they are
the same for all.

How time, memory and FLOP are measured: ``benchmarks/measure.py``.
Writes tables and OUTPUT/models.json. About ten minutes on 2 CPU cores.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchgeo_sigmae import BatchSpec, SIGMAETask
from torchgeo_sigmae.masking import sample_noise, select_targets
from torchgeo_sigmae.models import gather_tokens, masked_mse
from torchgeo_sigmae.optim import build_optimizer
from torchgeo_sigmae.tasks.reconstruction import make_tokens

from .measure import (
    DATA,
    count_flop,
    environment,
    inside,
    interleave,
    matmul_rate,
    measure_memory,
    megabytes,
    now,
    product,
    quartiles,
    read_chips,
    write_record,
)

#: Families of encoders, and how they are masked.
CONTENDERS = (
    ('sigmae', 'saliency'),
    ('sigmae', 'random'),
    ('s2mae', 'random'),
    ('satmae', 'spatial'),
    ('satmae', 'group'),
)


class Step:
    """A training step on one batch."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        family: str,
        masking: str,
        images: Tensor,
        variant: str,
    ) -> None:
        """Initialize a new Step instance.

        Args:
            arguments: See the module.
            family: ``'sigmae'``, ``'s2mae'`` or ``'satmae'``.
            masking: The masking strategy.
            images: Raw images ``(B, 10, H, W)``.
            variant: Width of the encoder, for example ``'small'``.
        """
        mean = images.nanmean((0, 2, 3))
        std = (images - mean[:, None, None]).square().nanmean((0, 2, 3)).sqrt()
        torch.manual_seed(0)
        self.task = SIGMAETask(
            f'{family}_vit_{variant}_patch8', size=images.shape[-1], masking=masking,
            mask_ratio=0.9, predict_ratio=1.0,
            batch=BatchSpec(mean=mean.tolist(), std=std.tolist()),
        ).to(arguments.device)  # fmt: skip
        self.task.train()
        model = self.task.model
        self.optimizer = build_optimizer([model.encoder, model.decoder], 1e-4, 0.05)
        self.images = self.task.statistics.normalize(images).to(arguments.device)
        self.valid = torch.ones_like(self.images[:, :1], dtype=torch.bool)
        self.bf16 = arguments.precision == 'bf16'
        places = (images.shape[-1] // model.patch_size) ** 2
        self.tokens = model.layout.num_groups * places
        self.parameters = sum(p.numel() for p in model.parameters())

    def __call__(self) -> tuple[float, float]:
        """Take the step.

        Returns:
            Seconds it took, and of these until the mask was there.
        """
        task, device = self.task, self.images.device.type
        start = now(device)
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            tokens = make_tokens(
                self.images, self.valid, task.statistics, task.patch_saliency,
                task.model.layout,
            )  # fmt: skip
            # At the end of training, where the guidance is at its strongest.
            index = torch.arange(len(tokens.image), device=tokens.image.device)
            noise = sample_noise(0, index, tokens.valid.shape[1])
            mask = task.mask_schedule.mask(tokens.saliency, noise, 1.0, tokens.valid)
            noise = sample_noise(1, index, mask.masked.shape[1])
            predicted, counts = select_targets(mask.masked, noise, 1, tokens.valid)
            masked = now(device)
            prediction = task.model(tokens.image, mask.keep, predicted, tokens.patches)
            target = task.target.encode(tokens, predicted)
            pixels = gather_tokens(tokens.pixels, predicted) & counts.unsqueeze(-1)
            loss = masked_mse(prediction, target, pixels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.visible = mask.keep.shape[1]
        return now(device) - start, masked - start


def build(
    arguments: argparse.Namespace, family: str, masking: str, size: int, small: bool
) -> Step:
    """Make a contender's step, to measure its memory.

    Args:
        arguments: See the module.
        family: Of the encoder.
        masking: The masking strategy.
        size: Side of the images.
        small: Whether one small image and encoder do.

    Returns:
        The step.
    """
    images, _ = read_chips(arguments, size)
    if small:
        return Step(arguments, family, masking, images[:1, :, :16, :16], 'tiny')
    return Step(arguments, family, masking, images, arguments.model_size)


def measure(
    arguments: argparse.Namespace, jobs: Sequence[tuple[str, str, int]], title: str
) -> list[dict[str, Any]]:
    """Measure contenders.

    Args:
        arguments: See the module.
        jobs: Family, masking and size of each.
        title: Title of the progress bar.

    Returns:
        What was measured, a record each.
    """
    memory = measure_memory(arguments, build, jobs)
    steps = [
        Step(
            arguments, family, masking, read_chips(arguments, size)[0],
            arguments.model_size,
        )
        for family, masking, size in jobs
    ]  # fmt: skip
    *times, products = interleave(arguments, [*steps, product(arguments)], title)
    rate = matmul_rate(products, arguments.device)
    records = []
    for job, step, bytes_, found in zip(jobs, steps, memory, times, strict=True):
        seconds, masked = np.array(found).T
        low, middle, high = quartiles(seconds)
        flop = count_flop(partial(inside, step))
        records.append(
            {
                'family': job[0],
                'masking': job[1],
                'size': job[2],
                'tokens': step.tokens,
                'visible': step.visible,
                'parameters': step.parameters,
                'seconds': seconds.tolist(),
                'median': middle,
                'quartiles': [low, high],
                'until_masked': float(np.median(masked)),
                'bytes': bytes_,
                'flop': flop,
                'flop_per_second': flop / middle,
                'matmul_flop_per_second': rate,
            }
        )
    return records


def print_models(records: Sequence[dict[str, Any]]) -> None:
    """Print the table of the models.

    Args:
        records: What was measured.
    """
    print(
        '\n| model | mask | tokens | visible | parameters | step, ms (quartiles) | '
        'to the first | until masked, ms | memory | GFLOP | GFLOP/s | of matmul |\n'
        f'{"|---" * 12}|'
    )
    for row in records:
        low, high = (f'{1e3 * value:.0f}' for value in row['quartiles'])
        cells = (
            row['family'],
            row['masking'],
            row['tokens'],
            row['visible'],
            f'{row["parameters"] / 1e6:.1f} M',
            f'{1e3 * row["median"]:.0f} ({low} to {high})',
            f'{row["median"] / records[0]["median"]:.2f}',
            f'{1e3 * row["until_masked"]:.1f}',
            megabytes(row['bytes']),
            f'{row["flop"] / 1e9:.1f}',
            f'{row["flop_per_second"] / 1e9:.0f}',
            f'{row["flop_per_second"] / row["matmul_flop_per_second"]:.0%}',
        )
        print(f'| {" | ".join(map(str, cells))} |')
    rate = records[0]['matmul_flop_per_second'] / 1e9
    print(f'\nMatrix products: {rate:.0f} GFLOP/s.')


def print_tokens(records: Sequence[dict[str, Any]]) -> None:
    """Print how S2MAE grows with the number of tokens.

    Args:
        records: What was measured, by size.
    """
    print(
        '\n| S2MAE, size | tokens | step, ms | ms a token | memory | '
        'KiB a further token | GFLOP | MFLOP a token |\n'
        f'{"|---" * 8}|'
    )
    for last, row in zip([None, *records], records, strict=False):
        more = ''
        if last and None not in (last['bytes'], row['bytes']):
            grown = (row['bytes'] - last['bytes']) / (row['tokens'] - last['tokens'])
            more = f'{grown / 1024:.0f}'
        cells = (
            f'{row["size"]} px',
            row['tokens'],
            f'{1e3 * row["median"]:.0f}',
            f'{1e3 * row["median"] / row["tokens"]:.2f}',
            megabytes(row['bytes']),
            more,
            f'{row["flop"] / 1e9:.1f}',
            f'{row["flop"] / row["tokens"] / 1e6:.0f}',
        )
        print(f'| {" | ".join(map(str, cells))} |')
    print('\nTokens are those of an image; times and memory are those of a batch.')


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the tables.

    Args:
        arguments: See the module.
    """
    torch.set_num_threads(arguments.threads)
    title = read_chips(arguments, arguments.size)[1]
    known = environment()
    print(
        f'{arguments.batch_size} {title} of {arguments.size} px, ViT '
        f'{arguments.model_size}, {arguments.precision}, {arguments.device}, '
        f'{known["threads"]} threads, {known["cpu"]}, torch '
        f'{known["versions"]["torch"]}',
        flush=True,
    )
    models = measure(
        arguments, [(*pair, arguments.size) for pair in CONTENDERS], 'Models'
    )
    print_models(models)
    tokens = measure(
        arguments, [('s2mae', 'random', size) for size in arguments.sizes], 'Tokens'
    )
    print_tokens(tokens)
    write_record(arguments, 'models', data=title, models=models, tokens=tokens)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/benchmarks'))
    parser.add_argument('--model-size', default='small')
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--sizes', type=int, nargs='+', default=[64, 96, 128, 160])
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--repetitions', type=int, default=9)
    parser.add_argument('--warm-up', type=int, default=2)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32')
    main(parser.parse_args())
