# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Chips from scenes: random windows for training, side by side for evaluation."""

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from rasterio.windows import Window

from ..bands import SENTINEL2_TEN_BANDS
from .base import ChipDataset
from .find import check_on_error
from .scenes import RasterScene

__all__ = ('SceneChips',)

#: A random window with a smaller share of valid pixels is drawn again, up to this many
#: times.
_MIN_VALID, _TRIES = 0.25, 8


class SceneChips(ChipDataset):
    """Chips from scenes.

    For training, random windows: every sample stands for the same area of ground, so a
    scene is seen in proportion to its size. They are drawn from torch's global
    generator. For evaluation, windows side by side, the same ones every time.

    Chips are raw values in float32, NaN where data are missing. A scene smaller than a
    chip is padded with NaN.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        scenes: Sequence[RasterScene],
        bands: Sequence[str] = SENTINEL2_TEN_BANDS,
        size: int = 96,
        random: bool = True,
        length: int | None = None,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        on_error: str = 'raise',
    ) -> None:
        """Initialize a new SceneChips instance.

        Args:
            scenes: The scenes, for example from :func:`find_scenes`.
            bands: Names of their bands.
            size: Side of the chips in pixels.
            random: Whether windows are random (for training) or side by side.
            length: Number of chips; default as many as the scenes have room for side
                by side. Fewer of those side by side are spread evenly.
            transforms: A function that takes a sample and returns a changed one.
            on_error: What happens to a scene that cannot be read: ``'raise'``, or
                ``'skip'`` for a chip of another scene in its place, drawn from the
                same generator, or of the next scene side by side.

        Raises:
            ValueError: If there is no scene, none to train on is as large as a chip, or
                *on_error* is unknown.
        """
        check_on_error(on_error)
        if size < 1:
            raise ValueError(f'size: {size} must be positive.')
        if not scenes:
            raise ValueError('scenes: there are none.')
        # Evaluation takes what there is.
        if random and all(min(s.height, s.width) < size for s in scenes):
            largest = max(scenes, key=lambda scene: min(scene.height, scene.width))
            raise ValueError(
                f'size: no scene holds a chip of {size} x {size} pixels. The largest, '
                f'{largest.path}, has {largest.height} x {largest.width}. Pass size= '
                f'{min(largest.height, largest.width)} or less.'
            )
        self.scenes = list(scenes)
        self.bands = tuple(bands)
        self.size = size
        self.random = random
        self.transforms = transforms
        self.on_error = on_error
        # Scenes laid end to end: where each ends, in pixels and in chips side by side.
        self._ends = np.cumsum([scene.num_pixels for scene in self.scenes])
        self._columns = [max(scene.width // size, 1) for scene in self.scenes]
        rows = [max(scene.height // size, 1) for scene in self.scenes]
        self._cells = np.cumsum(np.multiply(rows, self._columns))
        room = int(self._cells[-1])
        if length is None:
            length = math.ceil(int(self._ends[-1]) / size**2) if random else room
        self._length = length if random else min(length, room)
        self._failed = torch.zeros(len(self.scenes), dtype=torch.bool)
        if on_error == 'skip':
            # The workers of a loader write to it.
            self._failed.share_memory_()

    @property
    def skipped(self) -> list[str]:
        """Files that could not be read, in this process and its workers."""
        return [self.scenes[i].path for i in self._failed.nonzero().flatten().tolist()]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a chip.

        ``'image'`` ``(C, size, size)``, raw values in float32; ``'path'``, its file;
        ``'window'`` ``(2,)``, its first row and column in the file.
        """
        if not 0 <= index < self._length:
            raise IndexError(f'index {index} of {self._length} chips')
        failed: set[int] = set()
        while True:
            number, cell = self._choose(index, failed)
            try:
                if cell is None:
                    array, corner = self._draw(number)
                else:
                    array, corner = self._cell(number, cell)
                break
            except OSError as error:
                if self.on_error == 'raise':
                    raise
                if not self._failed[number]:
                    warnings.warn(f'Skipped: {error}', stacklevel=2)
                self._failed[number] = True
                failed.add(number)
                if len(failed) == len(self.scenes):
                    raise OSError(
                        f'None of the {len(failed)} scenes can be read. The last: '
                        f'{error}'
                    ) from error
        scene = self.scenes[number]
        sample: dict[str, Any] = {
            'image': torch.from_numpy(array),
            'path': scene.path,
            'window': torch.tensor([scene.row + corner[0], scene.column + corner[1]]),
        }
        if self.transforms is not None:
            sample = self.transforms(sample)
        return sample

    def __len__(self) -> int:
        """Return the number of chips."""
        return self._length

    def _choose(self, index: int, failed: Collection[int]) -> tuple[int, int | None]:
        """A scene that has not failed, and the number of a window side by side.

        Failures of other samples do not count: a sample depends on its own seed alone.
        """
        if self.random:
            share = (index + torch.rand((), dtype=torch.float64).item()) / self._length
            ends = self._ends
            if failed:
                share = torch.rand((), dtype=torch.float64).item()
                readable = [i not in failed for i in range(len(self.scenes))]
                ends = np.cumsum(np.diff(self._ends, prepend=0) * readable)
            number = int(np.searchsorted(ends, share * ends[-1], side='right'))
            # Rounded to the very end, the last scene that has room.
            last = int(np.searchsorted(ends, ends[-1]))
            return min(number, last), None
        # Spread evenly where there is room for more.
        cell = index * int(self._cells[-1]) // self._length
        number = int(np.searchsorted(self._cells, cell, side='right'))
        cell -= int(self._cells[number - 1]) if number else 0
        while number in failed:
            number = (number + 1) % len(self.scenes)
        return number, cell

    def _draw(self, number: int) -> tuple[np.ndarray, tuple[int, int]]:
        """A random window of a scene; drawn again if it is nearly empty."""
        scene = self.scenes[number]
        best: tuple[float, np.ndarray, tuple[int, int]] | None = None
        for _ in range(_TRIES):
            row, column = (
                int(torch.randint(max(side - self.size, 0) + 1, ()))
                for side in (scene.height, scene.width)
            )
            array = scene.read(Window(column, row, self.size, self.size))
            room = min(scene.height, self.size) * min(scene.width, self.size)
            share = np.isfinite(array).any(0).sum() / room
            if best is None or share > best[0]:
                best = share, array, (row, column)
            if share >= _MIN_VALID or room == scene.num_pixels:
                break
        assert best is not None
        return best[1:]

    def _cell(self, number: int, cell: int) -> tuple[np.ndarray, tuple[int, int]]:
        """One of the windows of a scene that lie side by side."""
        count = int(self._cells[number] - (self._cells[number - 1] if number else 0))
        row, column = divmod(cell % count, self._columns[number])
        row, column = row * self.size, column * self.size
        window = Window(column, row, self.size, self.size)
        return self.scenes[number].read(window), (row, column)
