# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What runs in the processes that trials kill: the command line, and what it tells."""

import csv
import os
import signal
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from torchgeo_sigmae import SIGMAETask
from torchgeo_sigmae.__main__ import main

__all__ = ('PLACES', 'HashedTask', 'Tell', 'die_in_log', 'fit', 'told')

#: Places of a run, in the order it comes to them.
PLACES = ('start', 'training', 'validation', 'epoch end', 'end')

#: Where it is, and how often it came to each place.
_RECORD = struct.Struct(f'<{1 + len(PLACES)}q')


class HashedTask(SIGMAETask):
    """Logs what it hides, and names the chips it has seen.

    ``masks`` in the log is a hash of the masks of all samples of a step, of the
    predicted tokens and of the augmented chips. Where ``SOAK_TOLD`` names a folder, a
    line for every sample goes to a file of the process: epoch, step, hash of the raw
    chip, hash of its mask.
    """

    def on_before_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Name the raw chips.

        Args:
            batch: The output of the DataLoader.
            dataloader_idx: Index of the current dataloader.

        Returns:
            The batch as the task wants it.
        """
        self._names = [_hash(chip) for chip in batch['image']]
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def _draw(self, batch: dict[str, Any]) -> Any:
        """Hash what was drawn."""
        drawn = super()._draw(batch)
        tokens, keep, predicted, counts = drawn
        hashed = zlib.crc32(
            b''.join(map(_bytes, (tokens.image, keep, predicted, counts)))
        )
        # 24 bits are what a float32 of the log holds.
        self.log('masks', torch.tensor(float(hashed >> 8)), batch_size=len(keep))
        if folder := os.environ.get('SOAK_TOLD'):
            with open(f'{folder}/{self.global_rank}.txt', 'a') as file:
                for name, one, other in zip(self._names, keep, predicted, strict=True):
                    mask = _hash(torch.cat([one, other]))
                    place = self.current_epoch, self.global_step
                    file.write(' '.join(map(str, (*place, name, mask))) + '\n')
        return drawn


def _hash(tensor: torch.Tensor) -> int:
    """Hash the values of a tensor."""
    return zlib.crc32(_bytes(tensor))


def _bytes(tensor: torch.Tensor) -> bytes:
    """The values of a tensor."""
    return bytes(tensor.contiguous().numpy().tobytes())


class Tell(Callback):
    """Tells those outside where a run is, in a file that outlives it."""

    def __init__(self, path: str) -> None:
        """Initialize a new Tell instance.

        Args:
            path: The file, see :func:`told`.
        """
        self.file = os.open(path, os.O_RDWR | os.O_CREAT)
        self.place = 0
        self.counts = [1] + [0] * (len(PLACES) - 1)

    def _enter(self, name: str) -> None:
        """Come to a place."""
        place = PLACES.index(name)
        if place != self.place:
            self.place = place
            self.counts[place] += 1
            if os.environ.get('LOCAL_RANK', '0') == '0':
                os.pwrite(self.file, _RECORD.pack(place, *self.counts), 0)

    def on_train_batch_start(self, *args: Any) -> None:
        """A batch begins.

        Args:
            *args: What Lightning tells.
        """
        self._enter('training')

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        """A validation begins.

        Args:
            trainer: The trainer.
            *args: What else Lightning tells.
        """
        if not trainer.sanity_checking:
            self._enter('validation')

    def on_train_epoch_end(self, *args: Any) -> None:
        """An epoch ends, until the first batch of the next is there.

        Args:
            *args: What Lightning tells.
        """
        self._enter('epoch end')

    def on_train_end(self, *args: Any) -> None:
        """The training is done; not called where it is interrupted.

        Args:
            *args: What Lightning tells.
        """
        self._enter('end')


def told(path: Path) -> tuple[str, dict[str, int]]:
    """Read what :class:`Tell` wrote.

    Args:
        path: Its file.

    Returns:
        The place, and how often the run came to each.
    """
    content = path.read_bytes() if path.exists() else b''
    if len(content) < _RECORD.size:
        return PLACES[0], dict.fromkeys(PLACES, 0)
    place, *counts = _RECORD.unpack(content)
    return PLACES[place], dict(zip(PLACES, counts, strict=True))


class _LethalWriter(csv.DictWriter):  # type: ignore[type-arg]
    """Kills its process in the midst of the n-th write to a log."""

    left = 0

    def __init__(self, file: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(file, *args, **kwargs)
        self.file = file

    def writerows(self, rows: Any) -> None:
        """Write rows, the last time half of them.

        Args:
            rows: The rows.
        """
        super().writerows(rows)
        type(self).left -= 1
        if self.left <= 0:
            self.file.flush()
            size = os.path.getsize(self.file.name)
            os.truncate(self.file.name, size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def die_in_log(writes: int) -> None:
    """Have this process killed in the midst of a write to a ``CSVLogger``'s file.

    Args:
        writes: The how many-th.
    """
    _LethalWriter.left = writes
    csv.DictWriter = _LethalWriter  # type: ignore[misc]


def fit(arguments: list[str]) -> None:
    """Run the command line as a shell would.

    Args:
        arguments: What stands behind its name.
    """
    torch.set_num_threads(1)
    # What a shell starts in the background ignores it, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if writes := os.environ.get('SOAK_DIE_IN_LOG'):
        die_in_log(int(writes))
    main(arguments)
