# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""One's own GeoTIFF scenes: found by name, cut into chips by windowed reading."""

import glob
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from matplotlib.figure import Figure
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from shapely import STRtree, box
from torch import Tensor
from torchgeo.datasets import NonGeoDataset
from tqdm import tqdm

from ..bands import SENTINEL2, SENTINEL2_TEN_BANDS, Sensor, band_indices, get_sensor
from ..plotting.canvas import clear_ticks, colours, empty_figure, rgb_channels, stretch

__all__ = ('Scene', 'SceneChips', 'find_scenes', 'group_overlapping')

#: A random window with a smaller share of valid pixels is drawn again, so often.
_MIN_VALID, _TRIES = 0.25, 8


@dataclass(frozen=True)
class Scene:
    """A GeoTIFF scene, known from its header.

    Attributes:
        path: The file.
        height: Height in pixels.
        width: Width in pixels.
        channels: Where the wanted bands stand in the file, from 1.
        nodata: Value of missing pixels, or None.
        footprint: West, south, east, north in degrees, or None without georeference.
    """

    path: str
    height: int
    width: int
    channels: tuple[int, ...]
    nodata: float | None = None
    footprint: tuple[float, float, float, float] | None = None

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @classmethod
    def open(
        cls,
        path: str,
        bands: Sequence[str],
        file_bands: Sequence[str] | None = None,
        sensor: str | Sensor = SENTINEL2,
        nodata: float | None = None,
    ) -> 'Scene':
        """Read the header of a scene.

        Args:
            path: The file.
            bands: Wanted bands, in any spelling.
            file_bands: Names of the bands in the file, in order; None to take the
                descriptions in the file.
            sensor: The sensor the names belong to.
            nodata: Value of missing pixels; None for what the file says.

        Returns:
            The scene.

        Raises:
            OSError: If the file cannot be read; the message names it.
            ValueError: If the bands of the file are not known, or lack a wanted one.
        """
        with _opened(path) as file:
            names = file_bands or file.descriptions
            if not any(names):
                raise ValueError(
                    f'file_bands: {path} has no band descriptions. Pass file_bands= '
                    f'with the names of its {file.count} bands in order.'
                )
            if len(names) != file.count:
                raise ValueError(
                    f'file_bands: {len(names)} names {list(names)} for the '
                    f'{file.count} bands of {path}. Pass one name a band, or exclude '
                    'the file.'
                )
            try:
                channels = band_indices(bands, [name or '' for name in names], sensor)
            except ValueError as error:
                raise ValueError(
                    f'bands: {path} has the bands {list(names)}. {error} Or exclude '
                    'the file.'
                ) from error
            footprint = None
            if file.crs is not None:
                footprint = transform_bounds(file.crs, 'EPSG:4326', *file.bounds)
            return cls(
                path,
                file.height,
                file.width,
                tuple(channel + 1 for channel in channels),
                file.nodata if nodata is None else nodata,
                footprint,
            )

    def read(self, row: int, column: int, height: int, width: int) -> np.ndarray:
        """Read a window, and no more.

        Args:
            row: First row.
            column: First column.
            height: Height of the window in pixels.
            width: Width of the window in pixels.

        Returns:
            Raw values in float32, ``(C, height, width)``; NaN in all bands where a
            pixel is missing: where it lies outside the scene, where all bands are the
            nodata value, if that is 0, or any band is, if it is another.

        Raises:
            OSError: If the file cannot be read; the message names it.
        """
        array = np.full((len(self.channels), height, width), np.nan, np.float32)
        inside = (min(height, self.height - row), min(width, self.width - column))
        with _opened(self.path) as file:
            window = Window(column, row, inside[1], inside[0])
            found = file.read(self.channels, window=window, out_dtype='float32')
        if self.nodata is not None and not math.isnan(self.nodata):
            # 0 is a fair value of one dark band.
            equal = found == np.float32(self.nodata)
            found[:, equal.all(0) if self.nodata == 0 else equal.any(0)] = np.nan
        array[:, : inside[0], : inside[1]] = found
        return array


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a raster; errors name the file, and none need have a georeference."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                yield file
    except RasterioError as error:
        raise OSError(
            f'{path} cannot be read: {error}. It may be damaged or truncated. Replace '
            'it, or exclude it.'
        ) from error


def find_scenes(
    root: str | Path,
    paths: str | Sequence[str] = '**/*.tif',
    bands: Sequence[str] = SENTINEL2_TEN_BANDS,
    file_bands: Sequence[str] | None = None,
    sensor: str | Sensor = SENTINEL2,
    nodata: float | None = None,
    exclude: str | Sequence[str] = (),
) -> list[Scene]:
    """Find scenes and read their headers.

    Args:
        root: Folder of the scenes.
        paths: Patterns of file names under *root*, as in :mod:`glob`; ``**`` stands for
            any number of folders.
        bands: Wanted bands.
        file_bands: See :meth:`Scene.open`.
        sensor: The sensor the names belong to.
        nodata: See :meth:`Scene.open`.
        exclude: Patterns of files to leave out.

    Returns:
        The scenes, by name.

    Raises:
        FileNotFoundError: If there is no such folder, or no file in it matches.
        OSError: If a file cannot be read.
        ValueError: If the bands of a file are not known, or lack a wanted one.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f'root: there is no folder {os.fspath(root)!r}.')
    found = sorted(_match(root, paths) - _match(root, exclude))
    if not found:
        raise FileNotFoundError(
            f'paths: no file under {os.fspath(root)!r} matches {_patterns(paths)}'
            + (f' and not {_patterns(exclude)}.' if exclude else '.')
        )
    return [
        Scene.open(os.path.join(root, name), bands, file_bands, sensor, nodata)
        for name in tqdm(found, 'Looking at scenes', disable=None, delay=2)
    ]


def _match(root: str | Path, patterns: str | Sequence[str]) -> set[str]:
    """File names under *root* that match any of the patterns."""
    return {
        name
        for pattern in _patterns(patterns)
        for name in glob.glob(pattern, root_dir=root, recursive=True)
        if os.path.isfile(os.path.join(root, name))
    }


def _patterns(patterns: str | Sequence[str]) -> list[str]:
    """One pattern or several, as a list."""
    return [patterns] if isinstance(patterns, str) else list(patterns)


def group_overlapping(scenes: Sequence[Scene]) -> list[list[int]]:
    """Group scenes that show the same ground, so that a split does not part them.

    Args:
        scenes: The scenes. One without georeference is a group of its own.

    Returns:
        Positions of the scenes of each group.
    """
    places = [i for i, scene in enumerate(scenes) if scene.footprint]
    boxes: list[Any] = []
    for scene in scenes:
        if scene.footprint:
            west, south, east, north = scene.footprint
            # Across the date line the west is larger than the east.
            boxes.append(box(west, south, east + 360 * (east < west), north))
    first = list(range(len(scenes)))

    def leader(i: int) -> int:
        while first[i] != i:
            i = first[i] = first[first[i]]
        return i

    for one, other in (
        STRtree(boxes).query(np.array(boxes, object), predicate='intersects').T
    ):
        # Neighbours that share a border show different ground.
        if one < other and boxes[one].intersection(boxes[other]).area:
            first[leader(places[other])] = leader(places[one])
    members: dict[int, list[int]] = {}
    for i in range(len(scenes)):
        members.setdefault(leader(i), []).append(i)
    return list(members.values())


class SceneChips(NonGeoDataset):
    """Chips from GeoTIFF scenes.

    For training, random windows: every sample stands for the same area of ground, so
    that a scene is seen in proportion to its size. They are drawn from torch's global
    generator. For evaluation, windows side by side that are always the same.

    Chips are float32 raw values, NaN where there is no data. A scene smaller than a
    chip is padded with NaN.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        bands: Sequence[str] = SENTINEL2_TEN_BANDS,
        size: int = 96,
        random: bool = True,
        length: int | None = None,
        sensor: str | Sensor = SENTINEL2,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        """Initialize a new SceneChips instance.

        Args:
            scenes: What :func:`find_scenes` returns.
            bands: The bands it was given.
            size: Side of the chips in pixels.
            random: Whether windows are random (for training) or side by side.
            length: Number of chips; default as many as the scenes have room for side
                by side. Fewer of those side by side are spread evenly.
            sensor: The sensor the band names belong to.
            transforms: A function that takes a sample and returns a changed one.

        Raises:
            ValueError: If there is no scene, or none to train on is as large as a chip.
        """
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
        self.sensor = get_sensor(sensor)
        self.transforms = transforms
        # Where the area of each scene ends, all of them laid end to end.
        self._ends = np.cumsum([scene.area for scene in self.scenes])
        rows = [max(scene.height // size, 1) for scene in self.scenes]
        columns = [max(scene.width // size, 1) for scene in self.scenes]
        self._columns = columns
        self._cells = np.cumsum(np.multiply(rows, columns))
        room = int(self._cells[-1])
        area = math.ceil(int(self._ends[-1]) / size**2)
        if length is None:
            length = area if random else room
        self._length = length if random else min(length, room)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an index within the dataset.

        Args:
            index: Index to return.

        Returns:
            ``{'image': (C, size, size)}``, raw values in float32.

        Raises:
            IndexError: If there are fewer chips.
            OSError: If the scene cannot be read; the message names it.
        """
        if not 0 <= index < self._length:
            raise IndexError(f'index {index} of {self._length} chips')
        array = self._draw(index) if self.random else self._cell(index)
        sample: dict[str, Any] = {'image': torch.from_numpy(array)}
        if self.transforms is not None:
            sample = self.transforms(sample)
        return sample

    def __len__(self) -> int:
        """Return the number of chips in the dataset.

        Returns:
            Length of the dataset.
        """
        return self._length

    def _draw(self, index: int) -> np.ndarray:
        """A random window; drawn again where it is nearly empty."""
        place = (index + torch.rand((), dtype=torch.float64).item()) / self._length
        number = int(np.searchsorted(self._ends, place * self._ends[-1], side='right'))
        scene = self.scenes[min(number, len(self.scenes) - 1)]
        best: tuple[float, np.ndarray] | None = None
        for _ in range(_TRIES):
            row, column = (
                int(torch.randint(max(side - self.size, 0) + 1, ()))
                for side in (scene.height, scene.width)
            )
            array = scene.read(row, column, self.size, self.size)
            room = min(scene.height, self.size) * min(scene.width, self.size)
            share = np.isfinite(array).all(0).sum() / room
            if best is None or share > best[0]:
                best = share, array
            if share >= _MIN_VALID or room == scene.area:
                break
        assert best is not None
        return best[1]

    def _cell(self, index: int) -> np.ndarray:
        """One of the windows side by side."""
        # Spread evenly where there is room for more.
        cell = index * int(self._cells[-1]) // self._length
        number = int(np.searchsorted(self._cells, cell, side='right'))
        first = int(self._cells[number - 1]) if number else 0
        row, column = divmod(cell - first, self._columns[number])
        place = row * self.size, column * self.size
        return self.scenes[number].read(*place, self.size, self.size)

    def plot(
        self,
        sample: dict[str, Any],
        show_titles: bool = True,
        suptitle: str | None = None,
    ) -> Figure:
        """Plot a sample from the dataset.

        Args:
            sample: A sample returned by :meth:`__getitem__`.
            show_titles: Whether to show a title above the image.
            suptitle: Optional string to use as a suptitle.

        Returns:
            A figure in natural colours, each stretched from the 2nd to the 98th
            percentile; pixels without data are magenta.
        """
        image: Tensor = sample['image'].detach().cpu().float()
        shown = image[rgb_channels(self.bands, self.sensor)].numpy()
        figure = empty_figure(4, 4)
        axis = figure.subplots()
        axis.imshow(colours(shown, *stretch(shown)))
        clear_ticks(axis)
        if show_titles:
            axis.set_title('Image')
        if suptitle is not None:
            figure.suptitle(suptitle)
        return figure
