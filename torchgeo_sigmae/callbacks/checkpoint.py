# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Checkpoints to continue from: written atomically, and checked before use."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from .._logs import keep_log
from ..weights.files import load_plain

__all__ = ('ResumableCheckpoint', 'newest_checkpoint')

_NAME = re.compile(r'step=(\d+)\.ckpt')


class ResumableCheckpoint(Callback):
    """Keep the newest states of a run, for continuing it after an interruption.

    With a datamodule that is :func:`~torchgeo_sigmae.resumable`, a run killed at any
    moment continues from them bit by bit as if uninterrupted (on CPU). A file is
    written under another name first and renamed when it is complete, so that a crash
    leaves no half checkpoint under the final name. What the loggers hold is written
    before it, and a copy of the files of ``CSVLogger`` kept, so that the log has no gap
    either: :func:`~torchgeo_sigmae.plotting.read_log` puts them together.

    To keep the best model, use Lightning's ``ModelCheckpoint`` beside it.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every_n_train_steps: int | None = None,
        every_n_minutes: float = 10.0,
        keep: int = 2,
    ) -> None:
        """Initialize a new ResumableCheckpoint instance.

        Args:
            dirpath: Folder of the checkpoints; default ``resume/`` in the trainer's
                ``default_root_dir``.
            every_n_train_steps: Write after so many optimizer steps.
            every_n_minutes: Write after so many minutes, unless *every_n_train_steps*
                is given. The end of the training is written in any case.
            keep: Number of files to keep: a damaged newest leaves the one before.

        Raises:
            ValueError: If a number is not positive.
        """
        for name, value in (
            ('every_n_train_steps', every_n_train_steps),
            ('every_n_minutes', every_n_minutes),
            ('keep', keep),
        ):
            if value is not None and value <= 0:
                raise ValueError(f'{name}: {value} must be positive.')
        self.dirpath = dirpath
        self.every_n_train_steps = every_n_train_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self._written_at = 0.0
        self._written_step = 0
        self._position: str | None = None
        self._order: dict[str, Any] | None = None
        self._logs: dict[int, int | None] = {}

    def folder(self, trainer: Trainer) -> Path:
        """The folder of the checkpoints."""
        return Path(self.dirpath or Path(trainer.default_root_dir) / 'resume')

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove what a crash left half written."""
        self._logs = {}
        if stage == 'fit' and trainer.is_global_zero:
            for half in self.folder(trainer).glob('*.part'):
                _remove(half)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._written_at = time.monotonic()
        self._written_step = trainer.global_step
        now = _data_order(trainer)
        if self._order not in (None, now):
            rank_zero_warn(
                f'The interrupted run drew its data with {self._order}, this one draws '
                f'with {now}: samples may be repeated or left out in this epoch. To '
                'continue exactly, resume with the same data, batch size, seed, '
                'number of processes and cache_size.'
            )
        self._order = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember how the interrupted run drew its data."""
        loop = checkpoint.get('loops', {}).get('fit_loop', {})
        orders = loop.get('state_dict', {}).get('combined_loader')
        self._order = orders[0] if orders else None

    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Write between two epochs, if it is time."""
        if trainer.global_step and self._due(trainer):
            self._save(trainer, 'epoch')

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write between two batches, if it is time.

        Here and not at the end of a batch, because Lightning logs and validates after
        that.
        """
        accumulates = batch_idx % trainer.accumulate_grad_batches != 0
        if batch_idx and not accumulates and self._due(trainer):
            self._save(trainer, 'batch')

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the finished state."""
        if trainer.global_step > self._written_step:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Describe the position in the way that Lightning continues from.

        Lightning writes at the end of a batch or an epoch, before it has logged and
        validated. We write later, when its loop has begun the next one: take that back.
        """
        if self._position is None:
            return
        loop = checkpoint['loops']['fit_loop']
        batches = loop['epoch_loop.batch_progress']
        batches['is_last_batch'] = False
        if self._position == 'epoch':
            for progress in ('current', 'total'):
                loop['epoch_progress'][progress]['ready'] -= 1
            batches['current'] = dict.fromkeys(batches['current'], 0)
        else:
            for progress in ('current', 'total'):
                batches[progress]['ready'] -= 1
                batches[progress]['completed'] -= 1
        # Lightning counts this step again when it continues from the end of a batch,
        # and, with max_steps, also from the end of an epoch.
        if self._position == 'batch' or trainer.max_steps != -1:
            loop['epoch_loop.state_dict']['_batches_that_stepped'] -= 1

    def _due(self, trainer: Trainer) -> bool:
        """Return whether a checkpoint is due; equal on every process."""
        if self.every_n_train_steps is not None:
            passed = trainer.global_step - self._written_step
            return passed >= self.every_n_train_steps
        late = time.monotonic() - self._written_at > 60 * self.every_n_minutes
        return bool(trainer.strategy.broadcast(late))

    def _save(self, trainer: Trainer, position: str | None = None) -> None:
        """Write what was logged, then the checkpoint; remove the oldest."""
        for which, logger in enumerate(trainer.loggers):
            logger.save()
            if trainer.is_global_zero:
                self._logs[which] = keep_log(logger, self._logs.get(which))
        folder = self.folder(trainer)
        path = folder / f'step={trainer.global_step:09}.ckpt'
        part = path.with_suffix('.part')
        self._position = position
        try:
            trainer.save_checkpoint(part)
        finally:
            self._position = None
        if trainer.is_global_zero:
            if part.is_file():
                with open(part, 'rb+') as file:
                    os.fsync(file.fileno())
            os.replace(part, path)
            for old in checkpoints(folder)[self.keep :]:
                _remove(old)
        self._written_at = time.monotonic()
        self._written_step = trainer.global_step


def checkpoints(folder: str | Path) -> list[Path]:
    """List the checkpoints in a folder, newest first."""
    paths = (path for path in Path(folder).glob('*.ckpt') if _NAME.match(path.name))
    return sorted(paths, key=lambda path: path.name, reverse=True)


def newest_checkpoint(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest readable checkpoint of a run.

    Args:
        folder: ``dirpath`` of :class:`.ResumableCheckpoint`.

    Returns:
        The file and its content, or None if there is none. Newer ones that are damaged
        are left out with a warning.

    Raises:
        RuntimeError: If all of them are damaged.
    """
    damaged: list[tuple[Path, Exception]] = []
    for path in checkpoints(folder):
        try:
            content = load_plain(path)
            keys = set(content) if isinstance(content, dict) else set()
            if not {'state_dict', 'loops'} <= keys:
                raise ValueError('no training state in it')
        except ValueError as error:
            damaged.append((path, error))
        else:
            for other, reason in damaged:
                rank_zero_warn(
                    f'{other} cannot be read ({_first_line(reason)}). Continuing from '
                    f'the one before, {path}.'
                )
            return path, content
    if damaged:
        names = ', '.join(f'{path} ({_first_line(why)})' for path, why in damaged)
        raise RuntimeError(
            f'No checkpoint in {folder} can be read: {names}. Remove the folder, or '
            'choose another default_root_dir, to start from the beginning.'
        )
    return None


def _data_order(trainer: Trainer) -> dict[str, Any] | None:
    """Order of the training data, if the loader is resumable."""
    state_dict = getattr(trainer.train_dataloader, 'state_dict', None)
    return None if state_dict is None else state_dict()


def _first_line(error: Exception) -> str:
    """A short reason."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _remove(path: Path) -> None:
    """Remove a checkpoint, which is a folder under sharded strategies."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
