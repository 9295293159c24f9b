# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What the guard against NaN costs a training step.

    python -m benchmarks.guard [--device cuda] [--precision bf16-mixed]

Whole steps in ``Trainer.fit``, SIGMAETask's defaults on random chips of 64 px: with
the guard and without it, a step each in turn, so that what else the machine does falls
on both. Prints the median difference of neighbouring steps with its quartiles, and on
the CPU also the time that is spent in the guard itself, as a share of the step; there
both are processor time.
"""

import argparse
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, Dataset

from torchgeo_sigmae import BatchSpec, FiniteGuard, SIGMAETask

from .measure import quiet, where

#: On a CPU, processor time: what else the machine does takes none of it.
_clock = time.perf_counter if torch.cuda.is_available() else time.process_time


class _Chips(Dataset[dict[str, Any]]):
    """Random chips with names, made once."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.image = torch.rand(10, 64, 64) * 4000 + 1

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'image': self.image, 'path': f'{index % 50}.tif'}


class _Turns(Callback):
    """Turns the guard off in every other step, and takes the time."""

    def __init__(self) -> None:
        self.steps: dict[bool, list[float]] = {True: [], False: []}
        self.inside: dict[int, float] = defaultdict(float)
        self.start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        callbacks = getattr(trainer, 'callbacks')  # noqa: B009
        (guard,) = (call for call in callbacks if isinstance(call, FiniteGuard))
        for name in (
            'on_train_batch_start', 'on_before_backward', 'on_before_optimizer_step',
        ):  # fmt: skip
            setattr(guard, name, self._timed(trainer, getattr(guard, name)))

    def _timed(self, trainer: Trainer, function: Any) -> Any:
        def call(*args: Any) -> None:
            if trainer.global_step % 2:
                start = _clock()
                function(*args)
                self.inside[trainer.global_step] += _clock() - start

        return call

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = _clock()
        if trainer.global_step > 4:
            self.steps[bool((trainer.global_step - 1) % 2)].append(now - self.start)
        self.start = now


def main(arguments: argparse.Namespace) -> None:
    """Measure.

    Args:
        arguments: See the module.
    """
    quiet()
    task = SIGMAETask(
        size=64,
        batch=BatchSpec(mean=2000.0, std=1200.0, normalize=True),
        lr=1e-4,
        model=arguments.model,
    )
    turns = _Turns()
    data = _Chips(arguments.batch_size * arguments.steps)
    Trainer(
        accelerator='gpu' if arguments.device == 'cuda' else 'cpu',
        devices=1, max_epochs=1, precision=arguments.precision, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[turns],
    ).fit(task, DataLoader(data, arguments.batch_size))  # fmt: skip
    count = min(map(len, turns.steps.values()))
    without, guarded = (np.array(turns.steps[key][:count]) for key in (False, True))
    share = (guarded / without - 1) * 100
    low, middle, high = np.percentile(share, [25, 50, 75])
    inside = np.median(list(turns.inside.values()))
    print(
        f'A step without the guard {1e3 * np.median(without):.1f} ms, with it '
        f'{1e3 * np.median(guarded):.1f} ms; neighbours differ by {middle:+.2f} % '
        f'({low:+.2f} to {high:+.2f}); {count} pairs.'
    )
    if arguments.device == 'cpu':
        share = 100 * inside / np.median(without)
        print(f'In the guard {1e3 * inside:.2f} ms, {share:.2f} % of a step.')
    print(where())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--precision', default='32-true')
    parser.add_argument('--model', default='sigmae_vit_small_patch8')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--steps', type=int, default=20)
    main(parser.parse_args())
