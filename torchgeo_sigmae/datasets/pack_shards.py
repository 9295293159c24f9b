# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Write the shards of a pack, each with a note of what is in it."""

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from .._files import atomic_path, write_text
from ..bands import BandSet
from .chip_saliency import ChipSaliency
from .pack_index import Shard
from .shard_files import Moments, ShardFile, sha256

__all__ = ('PACKING', 'Chip', 'ChipSource', 'ChipStream', 'ShardWriter')

#: Folder of the notes of finished shards, until the index is written.
PACKING = 'packing'

#: So many chips are read before the first of them is appended.
_AHEAD = 8


class Chip(NamedTuple):
    """A chip to be packed.

    Attributes:
        values: Raw values in float32 ``(C, H, W)``, NaN where missing.
        source: Index of its source.
        window: First row and column in the file of the source.
        label: A number or a vector; None if there is none.
    """

    values: np.ndarray
    source: int
    window: tuple[int, int] = (0, 0)
    label: np.ndarray | None = None


class ChipStream(Protocol):
    """What chips come from, in order.

    Attributes:
        bands: The bands, in order.
        shape: Channels, height and width of a chip.
        scale: Reflectance = value x scale + offset.
        offset: Reflectance at 0.
        sources: What chips are cut from, see :class:`.PackIndex`.
        settings: What decides about the chips; a pack is resumed with the same only.
    """

    bands: BandSet
    shape: tuple[int, int, int]
    scale: float
    offset: float
    sources: list[dict[str, Any]]
    settings: dict[str, Any]

    def read(self, start: int, stop: int, skipped: set[str]) -> Iterator[Chip | None]:
        """Read a range of chips; None for one that is left out.

        The names of files that cannot be read are added to *skipped*.
        """


class ChipSource(ChipStream, Protocol):
    """What any range of chips can be read from; processes get copies."""

    def __len__(self) -> int:
        """Number of chips, with those that are left out."""


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards; processes get copies.

    Attributes:
        source: What chips come from.
        root: Folder of the pack.
        saliency: Measures every chip; None to leave it out.
    """

    source: ChipStream
    root: Path
    saliency: ChipSaliency | None = None

    def _note_path(self, number: int) -> Path:
        """File of what is known of a shard, written after the shard."""
        return self.root / PACKING / f'{number:05}.json'

    def finished(self, number: int) -> dict[str, Any] | None:
        """What is known of a shard that was written to the end."""
        try:
            note = json.loads(self._note_path(number).read_text(encoding='utf-8'))
            shard = note['shard']
            if shard and (self.root / shard['file']).stat().st_size != shard['bytes']:
                return None
        except (KeyError, OSError, TypeError, ValueError):
            return None
        return dict(note)

    def write(
        self, number: int, start: int, stop: int, advance: Callable[[int], Any]
    ) -> None:
        """Write a shard of a range of chips, then what is known of it.

        Args:
            number: Number of the shard.
            start: First chip.
            stop: Chip behind the last one.
            advance: Called with 1 for every chip.

        Raises:
            OSError: If something cannot be read or written.
        """
        path = self.root / f'shard-{number:05}.npy'
        moments, skipped = Moments(self.source.shape[0]), set[str]()
        columns: dict[str, list[Any]] = {
            name: [] for name in ('source', 'window', 'label', 'saliency')
        }
        shard = None

        def append(chip: Chip) -> None:
            file.append(chip.values)
            moments.add(chip.values)
            columns['source'].append(chip.source)
            columns['window'].append(list(chip.window))
            if chip.label is not None:
                columns['label'].append(chip.label.tolist())
            if self.saliency is not None:
                columns['saliency'].append(self.saliency(chip.values))

        try:
            with atomic_path(path, 'output', remedy='Is there space?') as part:
                file = ShardFile(part, self.source.shape)
                # GDAL and NumPy let another thread work: chips are appended while
                # others are read.
                with closing(file), ThreadPoolExecutor(1) as thread:
                    waiting: deque[Future[None]] = deque()
                    for chip in self._read(start, stop, skipped):
                        advance(1)
                        if chip is not None:
                            waiting.append(thread.submit(append, chip))
                        if len(waiting) > _AHEAD:
                            waiting.popleft().result()
                    for future in waiting:
                        future.result()
        except _ReadError as error:
            raise error.args[0] from None
        if file.count:
            size = path.stat().st_size
            shard = asdict(Shard(path.name, file.count, file.dtype, size, sha256(path)))
        else:
            path.unlink()
        note = {
            'shard': shard,
            'columns': columns,
            'moments': [
                moments.count.tolist(),
                moments.mean.tolist(),
                moments.m2.tolist(),
            ],
            'skipped': sorted(skipped),
        }
        write_text(self._note_path(number), json.dumps(note))

    def _read(self, start: int, stop: int, skipped: set[str]) -> Iterator[Chip | None]:
        """Read chips; their errors are told apart from those of writing."""
        try:
            yield from self.source.read(start, stop, skipped)
        except OSError as error:
            raise _ReadError(error) from error


class _ReadError(Exception):
    """Chips cannot be read, which is no failure of the file that is written."""
