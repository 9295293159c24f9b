# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Every model with every mask that makes sense with it, pretrained for real.

    python -m benchmarks.pairs [--data PATH] [--steps STEPS]

Needs the real data. Pretrains tiny models on chips of 64 px of the scenes and of
EuroSAT, and compares the loss on held-out data with that of predicting, for every band,
the mean of the visible tokens under the same masks: below 1 something was learned.
Compare rows of one model whose masks hide the same kind of thing, no others: with
several tokens at a place, most places stay visible in part.

Finished rows are kept in OUTPUT/rows and not run again. Writes OUTPUT/table.md.
"""

import argparse
import time
from functools import partial
from pathlib import Path

from lightning.pytorch import LightningDataModule, seed_everything
from torchgeo.datamodules import EuroSATDataModule

from torchgeo_sigmae import SIGMAETask
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.masking import MASKINGS

from .measure import DATA, quiet, where
from .rows import finished_row
from .s2mae_ablation import quiet_trainer, scenes

MODELS = ('sigmae', 's2mae', 'satmae')

PAIRS = [
    *(('sigmae', masking) for masking in ('random', 'saliency')),
    *((family, masking) for family in MODELS[1:] for masking in MASKINGS),
]


def datamodule(arguments: argparse.Namespace, name: str) -> LightningDataModule:
    """Make the datamodule of a dataset.

    Args:
        arguments: See the module.
        name: 'scenes' or 'eurosat'.

    Returns:
        The datamodule.
    """
    if name == 'scenes':
        return scenes(arguments, name, seed=0)
    return EuroSATDataModule(
        batch_size=arguments.batch_size,
        root=arguments.data / 'eurosat',
        bands=SENTINEL2_TEN_BANDS,
    )


def run(
    arguments: argparse.Namespace, name: str, family: str, masking: str
) -> dict[str, float]:
    """Pretrain and validate once.

    Args:
        arguments: See the module.
        name: Name of the dataset.
        family: Whose model.
        masking: The mask.

    Returns:
        Losses, and the seconds it took.
    """
    start = time.perf_counter()
    seed_everything(0, verbose=False)
    task = SIGMAETask(
        f'{family}_vit_tiny_patch8', size=64, masking=masking,
        mask_ratio=arguments.mask_ratio, predict_ratio=0.5, decoder_dim=128,
        decoder_depth=2, decoder_num_heads=4, lr=1e-3,
    )  # fmt: skip
    trainer = quiet_trainer(
        arguments, name, max_steps=arguments.steps, limit_val_batches=0
    )
    data = datamodule(arguments, name)
    trainer.fit(task, data)
    found = quiet_trainer(arguments, name).validate(task, data, verbose=False)[0]
    return {
        'val_loss': found['val_loss'],
        'val_baseline_loss': found['val_baseline_loss'],
        'seconds': time.perf_counter() - start,
    }


def main(arguments: argparse.Namespace) -> None:
    """Run what is not finished, and write the table.

    Args:
        arguments: See the module.
    """
    lines = [
        '| data | model | masking | loss / baseline | seconds |',
        '|---' * 5 + '|',
    ]
    options = ('steps', 'batch_size', 'mask_ratio')
    asked = {key: vars(arguments)[key] for key in options}
    for name in arguments.datasets:
        for family, masking in PAIRS:
            if family not in arguments.models:
                continue
            found, _ = finished_row(
                arguments.output / 'rows' / f'{name}-{family}-{masking}.json',
                asked,
                partial(run, arguments, name, family, masking),
            )
            ratio = found['val_loss'] / found['val_baseline_loss']
            lines.append(
                f'| {name} | {family} | {masking} '
                f'| {ratio:.2f} | {found["seconds"]:.0f} |'
            )
            print(lines[-1], flush=True)
    setting = (
        f'{arguments.steps} steps of {arguments.batch_size} chips, '
        f'{arguments.mask_ratio:.0%} masked, {arguments.precision}; {where()}.'
    )
    lines += ['', setting]
    (arguments.output / 'table.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(['', *lines, '', f'Wrote {arguments.output / "table.md"}.']))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/pairs'))
    parser.add_argument('--datasets', nargs='+', default=['scenes', 'eurosat'])
    parser.add_argument('--models', nargs='+', default=MODELS)
    parser.add_argument('--steps', type=int, default=1000)
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--mask-ratio', type=float, default=0.75)
    parser.add_argument('--precision', default='bf16-mixed')
    quiet()
    main(parser.parse_args())
