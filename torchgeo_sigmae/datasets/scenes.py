# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""One's own GeoTIFF scenes: found by name, read by windows, or held in memory."""

import glob
import logging
import math
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from shapely import STRtree, box
from tqdm import tqdm

from ..bands import (
    SENTINEL2,
    SENTINEL2_TEN_BANDS,
    Sensor,
    band_indices,
    normalize_bands,
)
from .skipping import Skipped

__all__ = ('HeldScene', 'Scene', 'find_scenes', 'group_overlapping')

#: Types of pixels that are held as they are; all others are held in float32.
_SMALL = ('int8', 'uint8', 'int16', 'uint16')


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
        dtype: Type that holds every pixel of the wanted bands exactly, as float32 does.
    """

    path: str
    height: int
    width: int
    channels: tuple[int, ...]
    nodata: float | None = None
    footprint: tuple[float, float, float, float] | None = None
    dtype: str = 'float32'

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def nbytes(self) -> int:
        """What :meth:`hold` takes, in bytes."""
        return self.area * len(self.channels) * np.dtype(self.dtype).itemsize

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
        with opened(path, whole=True) as file:
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
            types = {file.dtypes[channel] for channel in channels}
            if any(kind.startswith('complex') for kind in types):
                raise ValueError(
                    f'{path} holds complex numbers, of which the imaginary part would '
                    'be lost. Write amplitudes, or exclude the file.'
                )
            return cls(
                path,
                file.height,
                file.width,
                tuple(channel + 1 for channel in channels),
                file.nodata if nodata is None else nodata,
                _footprint(file),
                types.pop() if len(types) == 1 and types <= {*_SMALL} else 'float32',
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
        found = self._cut(row, column, *inside)
        if self.nodata is not None and not math.isnan(self.nodata):
            # 0 is a fair value of one dark band.
            with np.errstate(over='ignore'):  # of float64, read as infinity too
                equal = found == np.float32(self.nodata)
            found[:, equal.all(0) if self.nodata == 0 else equal.any(0)] = np.nan
        array[:, : inside[0], : inside[1]] = found
        return array

    def hold(self) -> 'HeldScene':
        """Read the scene as a whole.

        Returns:
            The same scene, whose windows are cut from memory.

        Raises:
            OSError: If the file cannot be read; the message names it.
        """
        pixels = self._cut(0, 0, self.height, self.width, self.dtype)
        known = {field.name: getattr(self, field.name) for field in fields(Scene)}
        return HeldScene(**known, pixels=pixels)

    def _cut(
        self, row: int, column: int, height: int, width: int, dtype: str = 'float32'
    ) -> np.ndarray:
        """Values of a window inside the scene, a new array."""
        window = Window(column, row, width, height)
        with opened(self.path) as file:
            found: np.ndarray = file.read(self.channels, window=window, out_dtype=dtype)
        return found


@dataclass(frozen=True, eq=False)
class HeldScene(Scene):
    """A scene in memory, so that no chip waits for a window to be decoded.

    Attributes:
        pixels: Its wanted bands, raw values in its type, ``(C, height, width)``.
    """

    pixels: np.ndarray = field(kw_only=True, repr=False)

    def hold(self) -> 'HeldScene':
        """Do nothing.

        Returns:
            The scene itself.
        """
        return self

    def _cut(
        self, row: int, column: int, height: int, width: int, dtype: str = 'float32'
    ) -> np.ndarray:
        """Values of a window inside the scene, a new array."""
        window = self.pixels[:, row : row + height, column : column + width]
        return window.astype(dtype)


class _Complaints(logging.Handler):
    """Keeps what GDAL says of a damaged header, and reads on without."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.thread = threading.get_ident()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a complaint, if it is about tags that are lost."""
        text = record.getMessage()
        lost = 'tag ignored' in text or 'tag not read' in text or 'corrupt' in text
        if lost and record.thread == self.thread:
            self.found.append(text)


@contextmanager
def opened(path: str, whole: bool = False) -> Iterator[Any]:
    """Open a raster; errors name the file, and none need have a georeference.

    Args:
        path: The file.
        whole: Whether to refuse a header that has lost tags: of a missing nodata value
            nobody would hear again.

    Yields:
        The open file.

    Raises:
        OSError: If it cannot be read.
    """
    heard = _Complaints()
    log = logging.getLogger('rasterio')
    if whole:
        log.addHandler(heard)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                if heard.found:
                    raise RasterioError(heard.found[0])
                yield file
    # A header of nonsense asks for any memory, and has names in no encoding.
    except (RasterioError, CPLE_BaseError, MemoryError, UnicodeError) as error:
        raise OSError(
            f'{path} cannot be read: {error}. It may be damaged or truncated. Replace '
            'it, or exclude it.'
        ) from error
    finally:
        log.removeHandler(heard)


def _footprint(file: Any) -> tuple[float, float, float, float] | None:
    """West, south, east, north in degrees; None if the file does not tell."""
    if file.crs is None:
        return None
    try:
        found = transform_bounds(file.crs, 'EPSG:4326', *file.bounds)
    # Of a local system, or another planet's, nobody knows where on Earth it is.
    except (CPLE_BaseError, RasterioError, CRSError):
        return None
    west, south, east, north = map(float, found)
    return (west, south, east, north) if np.isfinite(found).all() else None


def find_scenes(
    root: str | Path,
    paths: str | Sequence[str] = '**/*.tif',
    bands: Sequence[str] = SENTINEL2_TEN_BANDS,
    file_bands: Sequence[str] | None = None,
    sensor: str | Sensor = SENTINEL2,
    nodata: float | None = None,
    exclude: str | Sequence[str] = (),
    on_error: str | Skipped = 'raise',
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
        on_error: What happens to a file that cannot be read, or lacks a band:
            ``'raise'``, or ``'skip'`` to leave it out with a warning.

    Returns:
        The scenes, by name.

    Raises:
        FileNotFoundError: If there is no such folder, or no file in it matches.
        OSError: If a file cannot be read, or with ``on_error='skip'`` none of them.
        ValueError: If the bands of a file are not known, or lack a wanted one.

    Warns:
        UserWarning: For every file that is left out.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f'root: there is no folder {os.fspath(root)!r}.')
    found = sorted(_match(root, paths) - _match(root, exclude))
    if not found:
        raise FileNotFoundError(
            f'paths: no file under {os.fspath(root)!r} matches {_patterns(paths)}'
            + (f' and not {_patterns(exclude)}.' if exclude else '.')
        )
    skipped = on_error if isinstance(on_error, Skipped) else Skipped(on_error)
    # What is wrong with all of them is wrong with the arguments.
    bands = normalize_bands(bands, sensor)
    scenes = []
    for name in tqdm(found, 'Looking at scenes', disable=None, delay=2):
        path = os.path.join(root, name)
        with skipped.trying(path):
            scenes.append(Scene.open(path, bands, file_bands, sensor, nodata))
    if not scenes:
        raise OSError(
            f'root: none of the {len(found)} files under {os.fspath(root)!r} can be '
            'used, see the warnings above.'
        )
    return scenes


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
