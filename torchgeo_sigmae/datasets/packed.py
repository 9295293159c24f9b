# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Packed chips: memory-mapped arrays, gathered a batch at a time."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from ..masking.noise import sample_noise
from .base import ChipDataset
from .pack_index import MISSING, PackIndex, Shard, choose_bands
from .paths import clean_path, is_remote
from .remote import RemotePack

__all__ = ('PackedChips', 'decode')


def decode(image: Tensor) -> Tensor:
    """Turn stored values into float32, NaN where missing.

    Args:
        image: Values as stored, ``(..., H, W)``, on any device.

    Returns:
        The values; the same tensor if they are stored as float32.
    """
    if image.dtype == torch.float32:
        return image
    missing = MISSING[str(image.dtype).removeprefix('torch.')]
    if image.device.type == 'cpu':
        # NumPy converts and compares these types several times as fast.
        stored = image.numpy()
        values = torch.from_numpy(stored.astype(np.float32))
        if not (stored == missing).any():
            return values
    else:
        values = image.float()
    return values.masked_fill_(values == missing, torch.nan)


class Batch(dict[str, Any]):
    """A batch that was gathered at once, which ``default_collate`` leaves as it is."""


# PyTorch's way to extend default_collate, which loaders call on what a dataset returns.
default_collate_fn_map[Batch] = lambda batch, **_: dict(batch[0])


class PackedChips(ChipDataset):
    """Chips of a pack, gathered from memory-mapped files a batch at a time.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        root: str | Path = 'data',
        bands: Sequence[str] | None = None,
        size: int | None = None,
        random: bool = False,
        chips: Sequence[int] | np.ndarray | None = None,
        stored: bool = False,
        index: PackIndex | None = None,
        remote: RemotePack | None = None,
    ) -> None:
        """Initialize a new PackedChips instance.

        Args:
            root: Folder of the pack, or its URL.
            bands: Bands of the images, in order and any spelling; None for all.
            size: Side of the images in pixels; None for whole chips.
            random: Whether images are random crops (for training) or central ones,
                where chips are larger than *size*.
            chips: Which chips of the pack, in order; None for all.
            stored: Whether batches hold values as stored, for :func:`.decode` on
                another device; else float32, NaN where missing.
            index: The index of the pack; None to read it.
            remote: Copies of the files of a remote pack; None for copies of all files
                in the default cache of :class:`.PackedDataModule`.

        Raises:
            FileNotFoundError: If there is no pack, or a file of it is missing.
            OSError: If a file of it has another size than the index says.
            ValueError: If the pack lacks a band or its chips are smaller than *size*,
                or the index is damaged or of another version.
        """
        if remote is None and is_remote(url := clean_path(root)):
            remote = RemotePack(url)
        self._remote = remote
        self.root = os.fspath(root) if remote is None else remote.root
        if remote is not None:
            index = remote.index
        self.index = PackIndex.read(root) if index is None else index
        self.bands, channels = choose_bands(
            self.index.bands, bands, f'the pack {self.root}'
        )
        self.random = random
        self.stored = stored
        _, height, width = self.index.shape
        if size is not None and not 0 < size <= min(height, width):
            raise ValueError(
                f'size: {size}, but the chips of {self.root} have {height} x {width} '
                f'pixels. Pass size={min(height, width)} or less, or pack the data '
                'with larger chips.'
            )
        self.shape = (height, width) if size is None else (size, size)
        self.chips = np.arange(self.index.count) if chips is None else np.array(chips)
        every = channels == list(range(len(self.index.bands)))
        self._channels = None if every else channels
        self._ends = np.cumsum([shard.count for shard in self.index.shards])
        types = {shard.dtype for shard in self.index.shards}
        self._dtype = types.pop() if len(types) == 1 else 'float32'
        self._names = [source['name'] for source in self.index.sources]
        if remote is None:
            for shard in self.index.shards:
                self._check(shard)
        # Mapped when first used, and by every process for itself.
        self._shards: dict[int, np.ndarray] = {}
        self._columns: dict[str, np.ndarray] = {}
        for name in self.index.columns:
            self.column(name)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the mapped files, whose content would be copied."""
        return self.__dict__ | {'_shards': {}, '_columns': {}}

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.chips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a sample.

        ``'image'`` ``(C, H, W)``, float32, NaN where missing; ``'path'``, the name of
        its source; ``'window'`` ``(2,)``, first row and column in it; ``'label'`` if
        the pack has labels.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} chips')
        batch = self.__getitems__([index])[0]
        batch['image'] = decode(batch['image'])
        return {key: values[0] for key, values in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Gather a batch; random crops are drawn from torch's global generator."""
        key = int(torch.randint(2**62, ())) if self.random else 0
        return self.gather(indices, key)

    def gather(self, indices: Sequence[int], key: int) -> list[Batch]:
        """Gather a batch whose random crops depend on a key and each index alone.

        Args:
            indices: Positions in this dataset.
            key: An integer in [0, 2 ** 63).

        Returns:
            One batch as ``default_collate`` takes it, with the keys of a sample.
        """
        positions = np.asarray(indices, np.int64)
        chips = self.chips[positions]
        room = np.subtract(self.index.shape[1:], self.shape)
        corners = np.broadcast_to(room // 2, (len(chips), 2))
        if self.random and room.any():
            noise = sample_noise(key, torch.from_numpy(positions), 2)
            corners = (noise.double().numpy() * (room + 1)).astype(np.int64)
        image = self._gather(chips, corners)
        sources = self.column('source')[chips].tolist()
        batch = Batch(
            image=image if self.stored else decode(image),
            path=[self._names[source] for source in sources],
            window=torch.from_numpy(self.column('window')[chips] + corners),
        )
        if 'label' in self.index.columns:
            batch['label'] = torch.from_numpy(self.column('label')[chips])
        return [batch]

    def follow(
        self, order: np.ndarray, then: Callable[[], np.ndarray]
    ) -> Iterable[int]:
        """Iterate over positions; remote shards are fetched before their turn.

        Args:
            order: Positions in this dataset, in the order of training.
            then: Returns those that come after them.
        """
        if self._remote is None:
            return order
        files, first, begin = list[str](), list[int](), 0
        for part in (order, then()):
            shards = self.index.shard_of(self.chips[part])
            numbers, places = np.unique(shards, return_index=True)
            by_need = np.argsort(places)
            files += [self.index.shards[i].file for i in numbers[by_need]]
            first += (places[by_need] + begin).tolist()
            begin += len(part)
        return self._remote.follow(order, files, first)

    def column(self, name: str) -> np.ndarray:
        """A value for every chip of the pack, see :class:`.PackIndex`."""
        if name not in self._columns:
            file = self.index.columns[name]
            self._columns[name] = self._load(file, self.index.count)
        return self._columns[name]

    def _gather(self, chips: np.ndarray, corners: np.ndarray) -> Tensor:
        """Stored values of crops."""
        shape = (len(chips), len(self.bands), *self.shape)
        image = _empty(shape, self._dtype)
        rows = image.numpy()
        numbers = np.searchsorted(self._ends, chips, 'right')
        # Negative: from the end of the shard.
        inside = (chips - self._ends[numbers]).tolist()
        shards = [self._shard(number) for number in numbers.tolist()]
        height, width = self.shape
        whole = self.shape == self.index.shape[1:]
        channels = self._channels
        places = corners.tolist()
        # In the order of the file, which a disk reads faster.
        for i in np.argsort(chips).tolist():
            chip, row = shards[i][inside[i]], rows[i]
            if not whole:
                top, left = places[i]
                chip = chip[:, top : top + height, left : left + width]
            if chip.dtype != row.dtype:
                chip = decode(torch.from_numpy(chip.copy())).numpy()
            if channels is None:
                row[...] = chip
            else:
                np.take(chip, channels, 0, row, 'clip')
        return image

    def _shard(self, number: int) -> np.ndarray:
        """Map a shard."""
        if number not in self._shards:
            shard = self.index.shards[number]
            array = self._load(shard.file, shard.count)
            expected = (shard.count, *self.index.shape)
            if array.shape != expected or array.dtype != shard.dtype:
                raise OSError(
                    f'{Path(self.root, shard.file)} is damaged: it holds '
                    f'{array.dtype} {array.shape}, and the index says {shard.dtype} '
                    f'{expected}. {_REPAIR}'
                )
            # Mapped files take space although the cache has removed them.
            if self._remote is not None and self._remote.mixed == len(self._shards):
                del self._shards[next(iter(self._shards))]
            self._shards[number] = array
        return self._shards[number]

    def _check(self, shard: Shard) -> None:
        """Refuse a shard of another size than the index says."""
        path = Path(self.root, shard.file)
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing. {_REPAIR}')
        if (size := path.stat().st_size) != shard.bytes:
            raise OSError(
                f'{path} is damaged: it has {size} bytes, and the index says '
                f'{shard.bytes}. {_REPAIR}'
            )

    def _load(self, file: str, count: int) -> np.ndarray:
        """Map a file with so many rows."""
        remote = self._remote
        path = Path(self.root, file) if remote is None else remote.path(file)
        try:
            # The plain array: slices of numpy.memmap take longer.
            array: np.ndarray = np.asarray(np.load(path, mmap_mode='r'))
        except FileNotFoundError as error:
            if remote is not None:
                # Another process has just removed it to make room.
                return self._load(file, count)
            raise FileNotFoundError(f'{path} is missing. {_REPAIR}') from error
        except (OSError, ValueError) as error:
            raise OSError(f'{path} is damaged: {error}. {_REPAIR}') from error
        if array.shape[:1] != (count,):
            raise OSError(
                f'{path} is damaged: it holds {array.shape[:1]} rows, and the index '
                f'says {count}. {_REPAIR}'
            )
        return array


_REPAIR = (
    'Copy the file again, or run torchgeo-sigmae pack --check to see what else is '
    'damaged, and pack the data again.'
)


def _empty(shape: tuple[int, ...], dtype: str) -> Tensor:
    """A tensor to fill; in a worker, in memory that is shared with the main process."""
    if get_worker_info() is None:
        # NumPy's memory comes in huge pages, torch's does not: twice as fast.
        return torch.from_numpy(np.empty(shape, dtype))
    # As default_collate does: saves a copy.
    empty = torch.empty(0, dtype=getattr(torch, dtype))
    storage = empty._typed_storage()._new_shared(math.prod(shape), device='cpu')
    return empty.new(storage).resize_(shape)
