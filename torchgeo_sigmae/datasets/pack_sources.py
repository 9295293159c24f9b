# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What packs are made from: scenes, and map-style datasets."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rasterio.windows import Window
from torch.utils.data import Dataset

from ..bands import BandSet
from .band_files import UNIT, opened
from .find import skip_on_error
from .pack_index import choose_bands
from .pack_shards import Chip
from .paths import file_state
from .scenes import RasterScene
from .splits import label_places

__all__ = ('DatasetSource', 'SceneSource')

#: So many bytes of a scene are read at a time.
_READ_BYTES = 2**26

#: A day in the name of a file.
_DATE = re.compile(
    r'(?<!\d)((?:19|20)\d\d)([-_]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)'
)


class SceneSource:
    """Chips side by side from scenes.

    Where half a chip or more is left at the right or lower border, another chip there
    overlaps with the one before. A scene smaller than a chip is padded with NaN.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[RasterScene]],
        size: int,
        min_valid: float = 0.25,
        on_error: str = 'raise',
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Initialize a new SceneSource instance.

        Args:
            splits: Scenes with the same bands, by the split they belong to; ``''``
                for scenes without one.
            size: Side of the chips in pixels.
            min_valid: Chips with a smaller share of pixels with data are left out.
            on_error: What happens to a scene that cannot be read: ``'raise'``, or
                ``'skip'`` to leave it out with a warning.
            settings: What decides about the chips beside the scenes.
        """
        scenes = [(split, scene) for split, part in splits.items() for scene in part]
        self.scenes = [_sharing(scene) for _, scene in scenes]
        self.bands = self.scenes[0].bands
        self.shape = len(self.bands), size, size
        self.scale, self.offset = self.scenes[0].unit
        self.min_valid = min_valid
        self.on_error = on_error
        self._rows = [_starts(scene.height, size) for scene in self.scenes]
        self._columns = [_starts(scene.width, size) for scene in self.scenes]
        counts = [
            len(rows) * len(columns)
            for rows, columns in zip(self._rows, self._columns, strict=True)
        ]
        self._ends = np.cumsum(counts)
        self.sources = [
            _describe(scene, split, int(place))
            for (split, scene), place in zip(
                scenes, label_places(self.scenes), strict=True
            )
        ]
        absent = [set(each.get('missing_bands', ())) for each in self.sources]
        if never := [b for b in self.bands if all(b in one for one in absent)]:
            raise ValueError(
                f'bands: no scene has {", ".join(never)}. Leave them out of bands=.'
            )
        states = [
            [file_state(path) for path in scene.paths]
            + [scene.row, scene.column, scene.height, scene.width]
            for scene in self.scenes
        ]
        self.settings = {
            **(settings or {}),
            'bands': list(self.bands),
            'size': size,
            'min_valid': min_valid,
            'on_error': on_error,
            'scenes': len(self.scenes),
            'files': _digest([self.sources, states]),
        }

    def __len__(self) -> int:
        """Return the number of chips, with those that are left out."""
        return int(self._ends[-1])

    def read(self, start: int, stop: int, skipped: set[str]) -> Iterator[Chip | None]:
        """Read a range of chips, see :class:`.ChipSource`."""
        first = int(np.searchsorted(self._ends, start, 'right'))
        last = int(np.searchsorted(self._ends, stop - 1, 'right'))
        for number in range(first, last + 1):
            begin = int(self._ends[number - 1]) if number else 0
            inside = range(
                max(start, begin) - begin, min(stop, int(self._ends[number])) - begin
            )
            done = 0
            scene = self.scenes[number]
            with (
                skip_on_error(scene.path, self.on_error, skipped),
                ExitStack() as open_,
            ):
                for path in scene.paths:
                    # Blocks are decoded once, not for every chip they touch.
                    open_.enter_context(opened(path, sharing=True))
                for chip in self._chips(number, inside):
                    done += 1
                    yield chip
            yield from [None] * (len(inside) - done)

    def _chips(self, number: int, cells: range) -> Iterator[Chip | None]:
        """Chips of a scene, row by row."""
        scene, size = self.scenes[number], self.shape[1]
        columns = self._columns[number]
        most = max(_READ_BYTES // (4 * int(np.prod(self.shape))), 1)
        room = min(scene.height, size) * min(scene.width, size)
        cell = cells.start
        while cell < cells.stop:
            row, column = divmod(cell, len(columns))
            count = min(most, len(columns) - column, cells.stop - cell)
            top, left = self._rows[number][row], columns[column]
            width = columns[column + count - 1] + size - left
            strip = scene.read(Window(left, top, width, size))
            for start in columns[column : column + count]:
                values = strip[:, :, start - left : start - left + size]
                share = np.isfinite(values).any(0).sum() / room
                window = scene.row + top, scene.column + start
                enough = share > 0 and share >= self.min_valid
                yield Chip(values, number, window) if enough else None
            cell += count


class DatasetSource:
    """Samples of map-style datasets; every date of a sample is a chip."""

    def __init__(
        self,
        parts: Mapping[str, Dataset[Any]],
        bands: BandSet,
        chosen: Sequence[str] | None = None,
        dates: int = 1,
        scale: float = UNIT,
        offset: float = 0.0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Initialize a new DatasetSource instance.

        Args:
            parts: Datasets by name, which is that of their split. A sample is a
                dictionary with ``'image'``, ``(C, H, W)``, ``(dates * C, H, W)`` or
                ``(T, C, H, W)``, of one size, and perhaps ``'label'``.
            bands: Names of the channels of one date, in order.
            chosen: Bands to pack, in order; None for all.
            dates: Number of dates in the channels of an image.
            scale: Reflectance = value x scale + offset.
            offset: Reflectance at 0.
            settings: What decides about the samples.

        Raises:
            TypeError: If a dataset is not map-style.
            ValueError: If a dataset is empty, or images do not fit *bands*.
        """
        for name, part in parts.items():
            if not hasattr(part, '__len__') or not hasattr(part, '__getitem__'):
                raise TypeError(
                    f'source: {type(part).__name__} has no length and no indices '
                    f'({name}). Pack a map-style dataset, or a folder of scenes.'
                )
        self.parts = {name: part for name, part in parts.items() if len(part)}  # type: ignore[arg-type]
        if not self.parts:
            raise ValueError('source: the dataset is empty.')
        name = ', '.join(parts)
        self.bands, self._channels = choose_bands(
            bands, chosen, f'the dataset ({name})'
        )
        self._count = len(bands)
        self.scale, self.offset = scale, offset
        self._ends = np.cumsum([len(part) for part in self.parts.values()])  # type: ignore[arg-type]
        first = self._sample(0)['image']
        self._check(first, 0)
        self.dates = max(dates, first.shape[0] if first.ndim == 4 else 1)
        height, width = first.shape[-2:]
        self.shape = len(self.bands), height, width
        self.sources = [
            {'name': name, 'split': name, 'dates': self.dates} for name in self.parts
        ]
        self.settings = {
            **(settings or {}),
            'bands': list(self.bands),
            'samples': {name: len(part) for name, part in self.parts.items()},  # type: ignore[arg-type]
            'shape': list(self.shape),
        }

    def __len__(self) -> int:
        """Return the number of chips."""
        return int(self._ends[-1]) * self.dates

    def read(self, start: int, stop: int, skipped: set[str]) -> Iterator[Chip | None]:
        """Read a range of chips, see :class:`.ChipSource`."""
        chip = start
        while chip < stop:
            number, date = divmod(chip, self.dates)
            sample = self._sample(number)
            images = self._images(sample['image'], number)
            label = sample.get('label')
            if label is not None:
                label = np.asarray(label)
                label = label.astype(
                    'int64' if label.dtype.kind in 'biu' else 'float32'
                )
            source = int(np.searchsorted(self._ends, number, 'right'))
            for image in images[date : date + stop - chip]:
                yield Chip(image, source, label=label)
                chip += 1

    def _sample(self, number: int) -> dict[str, Any]:
        """A sample of one of the datasets."""
        part = int(np.searchsorted(self._ends, number, 'right'))
        begin = int(self._ends[part - 1]) if part else 0
        dataset: Any = list(self.parts.values())[part]
        sample = dataset[number - begin]
        if not isinstance(sample, dict) or 'image' not in sample:
            raise ValueError(
                f"source: sample {number} has no 'image', as TorchGeo's samples have."
            )
        return sample

    def _images(self, image: torch.Tensor, number: int) -> np.ndarray:
        """Images ``(dates, C, H, W)`` of a sample."""
        self._check(image, number)
        images = image.float().numpy().reshape(-1, self._count, *image.shape[-2:])
        images = images[:, self._channels]
        if images.shape != (self.dates, *self.shape):
            raise ValueError(
                f'source: the image of sample {number} is {tuple(images.shape)}, that '
                f'of sample 0 {(self.dates, *self.shape)} (dates, bands, height, '
                'width). Crop or pad the images in a transform of the dataset.'
            )
        return images

    def _check(self, image: torch.Tensor, number: int) -> None:
        """Refuse an image whose channels are not the bands."""
        if image.ndim not in (3, 4) or image.shape[-3] % self._count:
            raise ValueError(
                f'bands: {self._count} names for the image {tuple(image.shape)} of '
                f'sample {number}. Pass one name for every channel of a date.'
            )


def _sharing(scene: RasterScene) -> RasterScene:
    """A scene whose reads share decoded blocks."""
    files = tuple(replace(file, sharing=True) for file in scene.files)
    return replace(scene, files=files)


def _starts(side: int, size: int) -> list[int]:
    """First pixels of chips along a side."""
    count = max(int(side / size + 0.5), 1)
    return [max(min(size * number, side - size), 0) for number in range(count)]


def _describe(scene: RasterScene, split: str, place: int) -> dict[str, Any]:
    """What an index tells of a scene."""
    known = {channel for file in scene.files for channel in file.channels}
    missing = [b for channel, b in enumerate(scene.bands) if channel not in known]
    date = _DATE.search(scene.path)
    return {
        'name': scene.path,
        'place': place,
        'height': scene.height,
        'width': scene.width,
        **({'split': split} if split else {}),
        **({'date': f'{date[1]}-{date[3]}-{date[4]}'} if date else {}),
        **({'missing_bands': missing} if missing else {}),
        **(
            {
                'crs': scene.crs.to_wkt(),
                'transform': list(scene.transform)[:6],
                'origin': [scene.row, scene.column],
            }
            if scene.crs
            else {}
        ),
    }


def _digest(value: object) -> str:
    """A short name for what decides about chips."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
