# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Training runs that are killed and started again, and a comparison of their ends."""

import os
import random
import signal
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from helpers.processes import join, start, start_group
from torchgeo_sigmae import SIGMAETask
from torchgeo_sigmae.callbacks import newest_checkpoint
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.plotting import read_log

CONFIG = Path(__file__).parents[1] / 'conf' / 'resume.yaml'

#: What a kill can be aimed at; ``'anywhere'`` is a moment drawn from the whole run.
AIMS = (
    *('start', 'training', 'validation', 'epoch end', 'checkpoint', 'log', 'anywhere'),
)


class HashedTask(SIGMAETask):
    """Logs a hash of the chips and masks of every step as ``masks``.

    If *record* is set, each sample gets a line in ``record/RANK.txt``: epoch, step, and
    hashes of the raw chip and of its mask.
    """

    record: Path | None = None

    def on_before_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        self._chips = [_hash(chip) for chip in batch['image']]
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def _draw(self, batch: dict[str, Any]) -> Any:
        drawn = super()._draw(batch)
        tokens, _, keep, predicted, counts = drawn
        # The log holds float32, which is exact up to 24 bits.
        masks = float(_hash(tokens.image, keep, predicted, counts) >> 8)
        self.log('masks', torch.tensor(masks), batch_size=len(keep))
        if self.record is not None:
            with open(self.record / f'{self.global_rank}.txt', 'a') as file:
                for chip, *mask in zip(self._chips, keep, predicted, strict=True):
                    row = self.current_epoch, self.global_step, chip, _hash(*mask)
                    print(*row, file=file)
        return drawn


def _hash(*tensors: torch.Tensor) -> int:
    return zlib.crc32(b''.join(t.contiguous().numpy().tobytes() for t in tensors))


class Progress(Callback):
    """Appends a line to a file whenever the run comes to another phase."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.phase = 'start'

    def _enter(self, phase: str) -> None:
        if phase != self.phase and os.environ.get('LOCAL_RANK', '0') == '0':
            self.phase = phase
            os.write(self.file, f'{phase}\n'.encode())

    def on_train_batch_start(self, *args: Any) -> None:
        self._enter('training')

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._enter('validation')

    def on_train_epoch_end(self, *args: Any) -> None:
        self._enter('epoch end')

    def on_train_end(self, *args: Any) -> None:
        self._enter('end')


class DyingLogger(CSVLogger):
    """Is killed in the middle of its n-th write; never if *writes* is 0."""

    def __init__(self, save_dir: str, name: str, writes: int) -> None:
        super().__init__(save_dir, name)
        self.writes = writes

    def save(self) -> None:
        new = bool(self.experiment.metrics)
        super().save()
        self.writes -= new
        if new and self.writes == 0:
            path = self.experiment.metrics_file_path
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Run:
    """A run of the command line that can be started again.

    Attributes:
        chips: Folder of the chips, packed or not.
        folder: Folder of the run.
        workers: Number of loader workers of a process.
        epochs: Number of epochs: four batches and a validation each.
        processes: Number of processes, of which the first is killed.
    """

    chips: Path
    folder: Path
    workers: int = 0
    epochs: int = 8
    processes: int = 1

    def start(self, log_writes: int = 0) -> list[BaseProcess]:
        """Start or continue the run; it dies in the given write to its log, if any."""
        self.folder.mkdir(parents=True, exist_ok=True)
        progress = self.folder / 'progress'
        progress.unlink(missing_ok=True)
        packed = (self.chips / 'index.json').exists()
        arguments = [
            'fit',
            f'--config={CONFIG}',
            *(['--data=torchgeo_sigmae.PackedDataModule'] if packed else []),
            '--data.init_args.batch_size=8',
            f'--data.init_args.num_workers={self.workers}',
            f'--data.{"init_args" if packed else "dict_kwargs"}.root={self.chips}',
            '--model.class_path=helpers.killed_runs.HashedTask',
            '--trainer.limit_train_batches=4',
            '--trainer.check_val_every_n_epoch=1',
            f'--trainer.max_epochs={self.epochs}',
            f'--trainer.default_root_dir={self.folder}',
            '--trainer.logger=helpers.killed_runs.DyingLogger',
            f'--trainer.logger.save_dir={self.folder}',
            '--trainer.logger.name=log',
            f'--trainer.logger.writes={log_writes}',
            '--trainer.callbacks+=helpers.killed_runs.Progress',
            f'--trainer.callbacks.path={progress}',
            '--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor',
        ]
        if self.processes == 1:
            return [start(main, arguments)]
        arguments += ['--trainer.strategy=ddp', f'--trainer.devices={self.processes}']
        return start_group(self.processes, main, arguments)

    def survive(
        self,
        aims: Sequence[str],
        how: signal.Signals = signal.SIGKILL,
        seed: int = 0,
    ) -> Counter[str]:
        """Kill the run once at each aim, and let it end at last.

        Args:
            aims: Of :data:`AIMS`.
            how: The signal.
            seed: Seed of the moments.

        Returns:
            The phases in which the signals landed.
        """
        chance = random.Random(seed)
        landed: Counter[str] = Counter()
        for aim in aims:
            log_writes = chance.randint(1, 4) if aim == 'log' else 0
            first, *others = self.start(log_writes)
            if aim != 'log':
                self._wait_for(aim, first, chance)
                assert first.exitcode is None, f'ended before it came to {aim}'
                _send(how, first)
            first.join(600)
            status, phase = first.exitcode, self._phase(aim)
            if how is signal.SIGKILL:
                assert status == -how, f'{aim}: status {status}'
            assert status is not None, f'{aim}: {how.name} did not end the run'
            assert (status, phase) != (0, 'end'), f'{aim}: the run went on to its end'
            landed[phase] += 1
            for process in (first, *others):
                _wait_for_group(process)
        assert join(self.start()) == [0] * self.processes
        return landed

    def _phases(self) -> list[str]:
        progress = self.folder / 'progress'
        return [
            'start',
            *(progress.read_text().split('\n') if progress.exists() else ()),
        ]

    def _phase(self, aim: str) -> str:
        """The phase in which the run died."""
        if aim == 'log':
            return aim
        if list((self.folder / 'resume').glob('*.part')):
            return 'checkpoint'
        return [phase for phase in self._phases() if phase][-1]

    def _wait_for(self, aim: str, process: BaseProcess, chance: random.Random) -> None:
        """Wait for the moment of a kill, or the end."""
        start = time.monotonic() + chance.uniform(0, 4)
        times, epochs = chance.randint(1, 2), chance.randint(0, 2)
        parts: set[str] = set()
        while process.exitcode is None:
            phases = self._phases()
            if aim == 'start':
                there = time.monotonic() > start
            elif aim == 'checkpoint':
                files = (self.folder / 'resume').glob('*.part')
                parts |= {part.name for part in files}
                there = len(parts) >= times
            elif aim == 'anywhere':
                there = len(phases) > 1 and phases.count('epoch end') >= epochs
            else:
                there = phases[-2:] == [aim, ''] and phases.count(aim) >= times
            if there:
                longest = {'start': 0.0, 'anywhere': 0.5}.get(aim, 0.02)
                time.sleep(chance.uniform(0, longest))
                return
            time.sleep(0.001)


def _send(how: signal.Signals, process: BaseProcess) -> None:
    """Send a signal; SIGINT again until it is heeded, since Python may drop one."""
    while process.exitcode is None:
        os.kill(process.pid or 0, how)
        if how is not signal.SIGINT:
            return
        process.join(3)


def _wait_for_group(process: BaseProcess) -> None:
    """Wait until the workers of a killed process have ended, too."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            os.killpg(process.pid or 0, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid or 0, signal.SIGKILL)
    raise AssertionError('processes of a killed run are alive after two minutes')


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the ends of two runs, bit by bit."""
    ends = [newest_checkpoint(path / 'resume') for path in (one, other)]
    assert None not in ends
    (path, actual), (expected_path, expected) = ends  # type: ignore[misc]
    assert path.name == expected_path.name
    parts = (
        'state_dict',
        'optimizer_states',
        'lr_schedulers',
        'epoch_metrics',
        'loops',
    )
    wrong = [part for part in parts if not _equal(actual[part], expected[part])]
    log, expected_log = (read_log(path / 'log') for path in (one, other))
    wrong += [f'{name} in one log' for name in sorted(set(log) ^ set(expected_log))]
    for name in set(log) & set(expected_log):
        if not all(map(np.array_equal, log[name], expected_log[name])):
            wrong.append(f'{name} in the log')
    return wrong


def _equal(actual: Any, expected: Any) -> bool:
    """Whether nested containers hold the same values, bit by bit."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(actual, expected)
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(
            _equal(actual[key], expected[key]) for key in expected
        )
    if isinstance(expected, list | tuple):
        return len(actual) == len(expected) and all(map(_equal, actual, expected))
    return bool(actual == expected)
