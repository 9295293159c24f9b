# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

r"""Fine-tune with and without a pretrained encoder, several seeds of each.

    PYTHONPATH=examples python -m benchmarks.finetune \
        examples/segment_barkbeetle.yaml --encoder ENCODER \
        --metrics test_iou_positive test_f1_positive --data.init_args.root PATH

Pretrained and from scratch differ in nothing but the weights: same network, recipe,
order of the data and augmentation. The last epoch is tested. Other arguments go to the
command line. Writes a table and OUTPUT/<config>.json.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from torchgeo_sigmae import resumable
from torchgeo_sigmae.cli import run_cli


def run(config: Path, weights: str, seed: int, extra: list[str]) -> dict[str, float]:
    """Fine-tune and test once.

    Args:
        config: The configuration.
        weights: An encoder file, or 'null'.
        seed: Seed of decoder, order and augmentation.
        extra: Further arguments of the command line.

    Returns:
        What the test logs, and the seconds it took.
    """
    cli = run_cli(
        [
            f'--config={config}',
            f'--seed_everything={seed}',
            f'--model.init_args.weights={weights}',
            '--trainer.logger=false',
            '--trainer.enable_checkpointing=false',
            '--trainer.enable_progress_bar=false',
            '--trainer.enable_model_summary=false',
            '--trainer.limit_val_batches=0',
            *extra,
        ],
        run=False,
    )
    start = time.perf_counter()
    cli.trainer.fit(cli.model, resumable(cli.datamodule, seed))
    found = cli.trainer.test(cli.model, cli.datamodule, verbose=False)[0]
    return {**found, 'seconds': time.perf_counter() - start}


def main(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Run all seeds of both, and write the table.

    Args:
        arguments: See the module.
        extra: Further arguments of the command line.
    """
    results: dict[str, list[dict[str, float]]] = {'pretrained': [], 'scratch': []}
    for seed in range(arguments.seeds):
        for name, weights in (
            ('pretrained', str(arguments.encoder)),
            ('scratch', 'null'),
        ):
            found = run(arguments.config, weights, seed, extra)
            results[name].append(found)
            shown = ', '.join(f'{m} {found[m]:.4f}' for m in arguments.metrics)
            print(
                f'seed {seed}, {name}: {shown} ({found["seconds"]:.0f} s)', flush=True
            )
    print(f'\n| {arguments.config.stem} | from scratch | pretrained |\n|---|---|---|')
    for metric in arguments.metrics:
        cells = [
            summary([found[metric] for found in results[name]])
            for name in ('scratch', 'pretrained')
        ]
        print(f'| {metric} | {" | ".join(cells)} |')
    arguments.output.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        'config': str(arguments.config),
        'encoder': str(arguments.encoder),
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'versions': {
            name: version(name) for name in ('torch', 'torchgeo', 'lightning', 'kornia')
        },
        'results': results,
    }
    path = arguments.output / f'{arguments.config.stem}.json'
    path.write_text(json.dumps(content, indent=2) + '\n')
    print(f'Wrote {path}.')


def summary(values: list[float]) -> str:
    """Mean and standard deviation over seeds.

    Args:
        values: One value a seed.

    Returns:
        For example ``0.512 ± 0.013``.
    """
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):.3f} ± {spread:.3f}'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=Path)
    parser.add_argument('--encoder', type=Path, required=True)
    parser.add_argument('--metrics', nargs='+', required=True)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--output', type=Path, default=Path('outputs/finetune'))
    known, extra = parser.parse_known_args()
    # LightningCLI warns about arguments given twice.
    sys.argv = sys.argv[:1]
    main(known, extra)
