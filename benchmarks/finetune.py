# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

r"""Fine-tune with and without a pretrained encoder, several seeds of each.

    PYTHONPATH=examples python -m benchmarks.finetune \
        examples/segment_barkbeetle.yaml --encoder ENCODER \
        --metrics test_iou_positive test_f1_positive --data.init_args.root PATH

Pretrained and from scratch differ in nothing but the weights: same network, recipe,
order of the data and augmentation. After the last epoch both are validated, for the
choice of a recipe, and tested: metrics start with ``val_`` or ``test_``. With
``--frozen``, the encoder is not trained, be it pretrained or random. Other arguments go
to the command line.

With ``--labels N``, N training images of every class (N in all, where pixels have the
classes) are all there is, other ones for every seed, the same for all rows of a seed.

Finished rows are kept in OUTPUT/rows and not run again, unless the options have
changed or, where it is used, the encoder. Writes OUTPUT/<config>.md.
"""

import argparse
import hashlib
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import Subset
from torchgeo.datamodules import NonGeoDataModule

from torchgeo_sigmae import resumable
from torchgeo_sigmae.cli import run_cli
from torchgeo_sigmae.evaluation import few_labels

from .measure import write_table
from .rows import finished_row, row_path

#: Titles of what is compared, with a trained and with a frozen encoder, and whether it
#: is pretrained.
CONTENDERS = {
    False: {'from scratch': False, 'pretrained': True},
    True: {'random': False, 'pretrained': True},
}


def draw_labels(datamodule: NonGeoDataModule, count: int, seed: int) -> None:
    """Let a datamodule have a few training images only."""
    setup = datamodule.setup

    def fewer(stage: str) -> None:
        setup(stage)
        if stage == 'fit':
            whole = datamodule.train_dataset
            # Segmentation has no label for an image: all are of one class.
            labels = np.array([int(sample.get('label', 0)) for sample in whole])
            everything = [(np.arange(len(labels)), np.arange(0))]
            draws = few_labels(labels, everything, count, draws=seed + 1)
            datamodule.train_dataset = Subset(whole, draws[seed][0].tolist())

    datamodule.setup = fewer


def run(
    config: Path,
    weights: str,
    seed: int,
    extra: list[str],
    labels: int | None = None,
) -> dict[str, float]:
    """Fine-tune and test once."""
    cli = run_cli(
        [
            f'--config={config}',
            f'--seed_everything={seed}',
            f'--model.init_args.weights={weights}',
            '--trainer.logger=false',
            '--trainer.enable_checkpointing=false',
            '--trainer.enable_progress_bar=false',
            '--trainer.enable_model_summary=false',
            # Never while training.
            '--trainer.check_val_every_n_epoch=1000000',
            '--trainer.num_sanity_val_steps=0',
            *extra,
        ],
        run=False,
    )
    if labels:
        draw_labels(cli.datamodule, labels, seed)
    start = time.perf_counter()
    cli.trainer.fit(cli.model, resumable(cli.datamodule, seed))
    seconds = time.perf_counter() - start
    val = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)[0]
    test = cli.trainer.test(cli.model, cli.datamodule, verbose=False)[0]
    return {**val, **test, 'seconds': seconds}


def main(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Run what is not finished, and write the table."""
    name = arguments.config.stem
    if arguments.labels:
        name += f'-{arguments.labels}-labels'
    config = arguments.config.read_text()
    encoder = hashlib.sha256(arguments.encoder.read_bytes()).hexdigest()
    if arguments.frozen:
        name += '-frozen'
        extra = ['--model.init_args.freeze_backbone=true', *extra]
    shown = CONTENDERS[arguments.frozen]
    results: dict[str, list[dict[str, float]]] = {title: [] for title in shown}
    for seed in range(arguments.seeds):
        for title, pretrained in shown.items():
            weights = str(arguments.encoder) if pretrained else 'null'
            asked = {
                'config': config,
                'encoder': encoder if pretrained else None,
                'extra': extra,
            }
            slug = title.replace(' ', '-')
            row, before = finished_row(
                row_path(arguments, f'{name}-{slug}', seed),
                asked,
                partial(run, arguments.config, weights, seed, extra, arguments.labels),
            )
            results[title].append(row)
            values = ', '.join(f'{m} {row[m]:.4f}' for m in arguments.metrics)
            took = 'finished before' if before else f'{row["seconds"]:.0f} s'
            print(f'seed {seed}, {title}: {values} ({took})', flush=True)
    lines = [f'| {name} | {" | ".join(results)} |', '|---' * (len(shown) + 1) + '|']
    for metric in arguments.metrics:
        cells = [summary([row[metric] for row in rows]) for rows in results.values()]
        lines.append(f'| {metric} | {" | ".join(cells)} |')
    note = f'{arguments.seeds} seeds'
    write_table(arguments.output / f'{name}.md', lines, note)


def summary(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):.3f} ± {spread:.3f}'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=Path)
    parser.add_argument('--encoder', type=Path, required=True)
    parser.add_argument('--metrics', nargs='+', required=True)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--labels', type=int)
    parser.add_argument('--frozen', action='store_true')
    parser.add_argument('--output', type=Path, default=Path('outputs/finetune'))
    arguments, extra = parser.parse_known_args()
    # LightningCLI warns about arguments given twice.
    sys.argv = sys.argv[:1]
    main(arguments, extra)
