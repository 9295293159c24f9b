# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A pretraining step, beside what a TorchGeo user would take instead.

    python -m benchmarks.pretrain_step [--data PATH] [--output PATH] [--only NAME ...]

Whole steps, as Lightning runs them in ``Trainer.fit``: what happens to a batch that is
in memory and normalized, augmentation, mask, forward, loss, backward, AdamW, logging.
Every contender has a trainer of its own; they hand on the turn after every batch.

- ``equal``: the same timm ViT, decoder (MAE's, 512 x 1), mask (random), loss
  (``norm_pix_loss``), batch and augmentation as ``torchgeo.tasks.MAE``;
- ``model``: the same without Lightning and augmentation, against lightly's modules;
- ``defaults``: SIGMAETask's, in fp32 and bf16; with learnable positions; without the
  check for NaN; the decoder of the papers, 512 x 8; and ``torchgeo.tasks.MAE`` at its
  own (512 x 1, 75 % masked);
- ``families``: SIGMAE, S2MAE and SatMAE, 90 % masked, all hidden tokens decoded;
- ``sizes``: S2MAE with more and more tokens.

On a CPU, a profiled step shows where the time goes, by kinds of operators. Memory and
FLOP: see ``benchmarks/measure.py``. Writes tables and
OUTPUT/pretrain_step.json. About half an hour on 2 CPU cores.

On a GPU: ``--device cuda --precision bf16``, also ``--compile``; another encoder with
``--model sigmae_vit_base_patch16 --size 224``. ``--data`` may be a file of
``benchmarks.pack``, where nothing but the repository travels.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .measure import (
    DATA,
    count_flop,
    interleave,
    matmul_rate,
    measure_memory,
    megabytes,
    peak_memory,
    product,
    quartiles,
    quiet,
    read_batch,
    shares,
    where,
    write_record,
)
from .steps import KINDS, MAE, Contender, Fit, share_memory

#: Arguments of SIGMAETask whose encoder adds its positions to the tokens.
LEARNABLE: dict[str, Any] = {'encoder_kwargs': {'positions': 'learnable'}}

#: Arguments of SIGMAETask that make it do what torchgeo.tasks.MAE does.
EQUAL: dict[str, Any] = {
    **LEARNABLE,
    'masking': 'random',
    'decoder': 'self',
    'decoder_dim': 512,
    'decoder_depth': 1,
    'decoder_num_heads': 8,
    'norm_pix_loss': True,
}

#: The decoder of MAE, SatMAE and S2MAE.
LARGE: dict[str, Any] = {
    'decoder': 'self',
    'decoder_dim': 512,
    'decoder_depth': 8,
    'decoder_num_heads': 16,
}

#: Precisions, by name.
PRECISIONS = ('fp32', 'bf16')

#: What the families have in common.
WHOLE: dict[str, Any] = {'mask_ratio': 0.9, 'predict_ratio': 1.0}

#: On every device.
FAMILIES = (
    *(
        Contender(
            f'{name}, {masking}',
            'families',
            'ours',
            {**WHOLE, 'masking': masking},
            family=name.lower(),
        )
        for name, masking in (
            ('SIGMAE', 'saliency'),
            ('SIGMAE', 'random'),
            ('SatMAE', 'spatial'),
            ('SatMAE', 'group'),
            ('S2MAE', 'random'),
        )
    ),
    *(
        Contender(
            f'S2MAE, {size} px',
            'sizes',
            'ours',
            {**WHOLE, 'masking': 'random'},
            family='s2mae',
            size=size,
        )
        for size in (64, 96, 128, 160)
    ),
)

#: What is compared. The first of a table is what the others are measured against.
CONTENDERS = {
    'cpu': (
        Contender('SIGMAETask', 'equal', 'ours', EQUAL),
        Contender('torchgeo.tasks.MAE', 'equal', 'torchgeo', {'mask_ratio': 0.9}),
        Contender('our modules', 'model', 'modules', EQUAL),
        Contender("lightly's modules", 'model', 'lightly'),
        Contender('SIGMAETask', 'defaults', 'ours', None, 'fp32'),
        Contender('with decoder 512 x 8', 'defaults', 'ours', LARGE, 'fp32'),
        Contender('torchgeo.tasks.MAE', 'defaults', 'torchgeo', None, 'fp32'),
        Contender('SIGMAETask, bf16', 'defaults', 'ours', None, 'bf16'),
        Contender('with fused attention, bf16', 'defaults', 'fused', None, 'bf16'),
        Contender(
            'with learnable positions, bf16', 'defaults', 'ours', LEARNABLE, 'bf16'
        ),
        Contender(
            'without the check for NaN, bf16', 'defaults', 'unguarded', None, 'bf16'
        ),
        *FAMILIES,
    ),
    'cuda': (
        Contender('SIGMAETask', 'equal', 'ours', EQUAL),
        Contender('torchgeo.tasks.MAE', 'equal', 'torchgeo', {'mask_ratio': 0.9}),
        Contender('SIGMAETask', 'defaults', 'ours'),
        Contender('without NaN check', 'defaults', 'unguarded'),
        Contender('with decoder 512 x 8', 'defaults', 'ours', LARGE),
        Contender('torchgeo.tasks.MAE', 'defaults', 'torchgeo'),
        *FAMILIES,
    ),
}


def build(
    arguments: argparse.Namespace, contender: Contender, small: bool
) -> Callable[[], float]:
    """Make the step of a contender."""
    quiet()
    images, _ = read_batch(arguments, contender.size)
    kind = KINDS.get(contender.make, Fit)
    step: Callable[[], float] = kind(
        arguments, contender, images[:2] if small else images
    )
    return step


def measure(
    arguments: argparse.Namespace, contenders: Sequence[Contender]
) -> list[dict[str, Any]]:
    """Measure contenders."""
    cuda = arguments.device == 'cuda'
    memory = (
        [] if cuda else measure_memory(arguments, build, [(c,) for c in contenders])
    )
    steps: list[Any] = [build(arguments, c, small=False) for c in contenders]
    if cuda:
        # A GPU counts what is allocated, so one process does. Compiles, if asked for.
        memory = [peak_memory(lambda s=step: (s(), s()), 'cuda') for step in steps]
    rates = [product(arguments, precision) for precision in PRECISIONS]
    *times, fp32, bf16 = interleave(arguments, [*steps, *rates], 'Steps')
    products = dict(zip(PRECISIONS, (fp32, bf16), strict=True))
    records = []
    for contender, step, bytes_, seconds in zip(
        contenders, steps, memory, times, strict=True
    ):
        parts = {} if cuda else shares(step)
        if arguments.compile:
            # Compiled, it does the same products, which are not counted.
            step.close()
            plain = argparse.Namespace(**{**vars(arguments), 'compile': False})
            step = build(plain, contender, small=False)
        flop = count_flop(step)
        step.close()
        low, middle, high = quartiles(seconds)
        records.append(
            {
                'name': contender.name,
                'table': contender.table,
                'seconds': seconds,
                'median': middle,
                'quartiles': [low, high],
                'images_per_second': arguments.batch_size / middle,
                'tokens': step.tokens,
                'bytes': bytes_,
                'flop': flop,
                'shares': parts,
                'flop_per_second': flop / middle,
                'matmul_flop_per_second': matmul_rate(
                    products[contender.precision or arguments.precision],
                    arguments.device,
                ),
            }
        )
    return records


def print_table(title: str, records: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    print(
        f'\n| {title} | tokens | step, ms (quartiles) | images/s | to the first | '
        f'memory | GFLOP | of matmul |\n{"|---" * 8}|'
    )
    for row in records:
        low, high = (f'{1e3 * value:.0f}' for value in row['quartiles'])
        cells = (
            row['name'],
            str(row['tokens'] or ''),
            f'{1e3 * row["median"]:.0f} ({low} to {high})',
            f'{row["images_per_second"]:.1f}',
            f'{records[0]["median"] / row["median"]:.2f}',
            megabytes(row['bytes']),
            f'{row["flop"] / 1e9:.0f}',
            f'{row["flop_per_second"] / row["matmul_flop_per_second"]:.0%}',
        )
        print(f'| {" | ".join(cells)} |')


def print_shares(title: str, records: Sequence[dict[str, Any]]) -> None:
    """Print where the time of a step goes."""
    groups = list(records[0]['shares'])
    if groups:
        print(f'\n| {title} | {" | ".join(groups)} |\n{"|---" * (len(groups) + 1)}|')
    for row in records if groups else ():
        cells = [f'{share:.0%}' for share in row['shares'].values()]
        print(f'| {" | ".join([row["name"], *cells])} |')


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the tables."""
    quiet()
    share_memory()
    torch.set_num_threads(arguments.threads)
    title = read_batch(arguments)[1]
    print(
        f'{arguments.batch_size} {title} of {arguments.size} px, {arguments.model}; '
        f'{where()}',
        flush=True,
    )
    records = []
    for table in arguments.only:
        contenders = [
            contender
            for contender in CONTENDERS[arguments.device]
            if contender.table == table
            and contender.make in (arguments.make or [contender.make])
            and (contender.make != 'torchgeo' or MAE is not None)
        ]
        if contenders:
            rows = measure(arguments, contenders)
            records += rows
            print_table(table, rows)
            print_shares(table, rows)
            # After every table: the next one may fail.
            write_record(arguments, 'pretrain_step', data=title, steps=records)
    rates = {row['matmul_flop_per_second'] / 1e9 for row in records}
    print(f'\nMatrix products: {", ".join(f"{r:.0f}" for r in sorted(rates))} GFLOP/s.')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    tables = ('equal', 'model', 'defaults', 'families', 'sizes')
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/benchmarks'))
    parser.add_argument('--only', nargs='+', choices=tables, default=tables)
    parser.add_argument('--make', nargs='+', help='ours, torchgeo, ...; default all')
    parser.add_argument('--model', default='sigmae_vit_small_patch8')
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--repetitions', type=int, default=9)
    parser.add_argument('--warm-up', type=int, default=2)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32')
    parser.add_argument('--compile', action='store_true')
    main(parser.parse_args())
