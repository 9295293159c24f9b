# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Measure and train on a GPU for a few minutes: one command, one file of data.

    python -m benchmarks.pack DATA chips.npz
    python -m benchmarks.gpu chips.npz --output DIR [--minutes 8]
    python -m benchmarks.gpu --join DIR/weights.* --output encoder.pth

1. Whole pretraining steps beside ``torchgeo.tasks.MAE``, in bf16, with and without
   ``torch.compile``, see ``benchmarks/pretrain_step.py``. These are three runs, each of
   at most a fifth of the time.
2. The rest of the time trains a ViT-S by the recipe of
   ``examples/pretrain_sentinel2.yaml`` with large batches. Data and augmentation are on
   the device. The number of steps follows from a measured step, so that the learning
   rate reaches its end.
3. Weights in half precision, with decoder, go to DIR/weights.00 and so on, in parts of
   at most 15 MiB: at half time, and at the end. Figures go to DIR/gpu.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything

from torchgeo_sigmae import BatchSpec, SIGMAETask
from torchgeo_sigmae.weights import read_weights

from .measure import quiet, write_record
from .pack import RECIPE, read_packed
from .windows import Windows

START = time.monotonic()

#: What a ViT-S with large batches changes in the recipe.
CHANGES = {'lr': None, 'decoder_dim': 256, 'decoder_num_heads': 8}

#: Bytes of a part of the weights.
PART = 15 * 2**20

#: Seconds to write the weights and to end.
RESERVE = 15


class Watch(Callback):
    """Notes times and losses of steps; writes the weights at half time."""

    def __init__(self, steps: int, output: Path | None = None) -> None:
        """Initialize a new Watch instance.

        Args:
            steps: Steps of the run.
            output: Folder for the weights; None to write none.
        """
        self.steps, self.output = steps, output
        self.times: list[float] = []
        self.losses: list[tuple[int, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, task: SIGMAETask, outputs: Any, *args: Any
    ) -> None:
        """Note the end of a step."""
        self.times.append(time.monotonic() - START)
        step = trainer.global_step
        if self.output is None:
            return
        if step % max(self.steps // 40, 1) == 0:
            self.losses.append((step, float(outputs['loss'])))
            took = f'{self.times[-1]:.0f} s'
            print(f'step {step} of {self.steps}: {self.losses[-1][1]:.4f}, {took}',
                  flush=True)  # fmt: skip
        if step == self.steps // 2:
            write_parts(task, self.output)


def write_parts(task: SIGMAETask, output: Path) -> None:
    """Write the weights in parts to a folder."""
    with TemporaryDirectory() as folder:
        task.export(f'{folder}/encoder.pth', decoder=True, half=True)
        content = Path(folder, 'encoder.pth').read_bytes()
    for number, start in enumerate(range(0, len(content), PART)):
        part = content[start : start + PART]
        (output / f'weights.{number:02}').write_bytes(part)


def measure_steps(arguments: argparse.Namespace, *more: str) -> list[dict[str, Any]]:
    """Measure pretraining steps in a process that may fail or take too long."""
    with TemporaryDirectory() as folder:
        command = [
            sys.executable, '-m', 'benchmarks.pretrain_step', '--precision', 'bf16',
            '--data', arguments.file, '--output', folder, '--device', arguments.device,
            '--model', arguments.model, '--batch-size', arguments.step_batch_size,
            '--repetitions', arguments.repetitions, '--only', *arguments.only, *more,
        ]  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            limit = 60 * arguments.minutes / 5
            subprocess.run([*map(str, command)], timeout=limit, check=False)  # noqa: S603
        path = Path(folder, 'pretrain_step.json')
        return json.loads(path.read_text())['steps'] if path.exists() else []


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train as long as there is time, and write the weights."""
    recipe = yaml.safe_load(RECIPE.read_text())['model']['init_args'] | CHANGES
    recipe |= {'model': arguments.model, 'base_lr': arguments.base_lr}
    tiles, about = read_packed(arguments.file)
    assert about['bands'] == recipe['bands']
    raw = {name: about[name] for name in ('mean', 'std', 'scale')}
    loader = Windows(tiles, recipe['size'], arguments.batch_size, arguments.device)

    def fit(steps: int, seconds: float, output: Path | None = None) -> Watch:
        seed_everything(0, verbose=False)
        task = SIGMAETask(**recipe, batch=BatchSpec(**raw, normalize=True))
        watch, loader.steps = Watch(steps, output), steps
        trainer = Trainer(
            accelerator=arguments.device, devices=1, precision='bf16-mixed',
            max_epochs=1, max_time=timedelta(seconds=seconds), callbacks=[watch],
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        try:
            trainer.fit(task, loader)
        finally:
            if output is not None:
                write_parts(task, output)
        return watch

    def left() -> float:
        return max(START + 60 * arguments.minutes - RESERVE - time.monotonic(), 1)

    steps = arguments.steps
    if not steps:
        times = fit(40, left()).times
        # The last 3 % make up for steps that are slower.
        steps = max(int(0.97 * left() / np.median(np.diff(times[-20:]))), 2)
    print(f'Training for {steps} steps of {arguments.batch_size} windows.', flush=True)
    watch = fit(steps, left(), arguments.output)
    taken = float(np.median(np.diff(watch.times)))
    return {
        'steps': steps, 'finished': len(watch.times), 'step_seconds': taken,
        'windows_per_second': arguments.batch_size / taken, 'losses': watch.losses,
        'pixels': len(loader.pixels), 'recipe': recipe,
    }  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    """Measure, train, and write."""
    quiet()
    arguments.output.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {'eager': measure_steps(arguments)}
    write_record(arguments, 'gpu', **record)
    if arguments.device == 'cuda':
        # One process each: compilers of two threads do not get along.
        record['compiled'] = [
            step
            for make in ('ours', 'torchgeo')
            for step in measure_steps(arguments, '--compile', '--make', make)
        ]
        write_record(arguments, 'gpu', **record)
    write_record(arguments, 'gpu', **record, training=train(arguments))


def join(parts: Sequence[Path], output: Path) -> None:
    """Join the parts of weights to one file, and read it."""
    output.write_bytes(b''.join(part.read_bytes() for part in sorted(parts)))
    info = read_weights(output).info
    print(f'Wrote {output}: {info["model"]}, trained on {info["trained_on"]}.')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', type=Path, nargs='?')
    parser.add_argument('--join', type=Path, nargs='+')
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--minutes', type=float, default=8)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda')
    parser.add_argument('--steps', type=int, help='of the training')
    parser.add_argument('--model', default='sigmae_vit_small_patch8')
    parser.add_argument('--batch-size', type=int, default=2048)
    parser.add_argument('--base-lr', type=float, default=1.5e-4)
    parser.add_argument('--step-batch-size', type=int, default=512)
    parser.add_argument('--repetitions', type=int, default=9)
    parser.add_argument('--only', nargs='+', default=('equal', 'defaults'))
    given = parser.parse_args()
    join(given.join, given.output) if given.join else main(given)
