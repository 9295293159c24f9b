# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What ``index.json`` of a pack tells.

A pack is a folder with ``index.json``, shards and columns. A shard is a plain ``.npy``
file ``(n, C, H, W)``; a column, a plain ``.npy`` file ``(N, ...)`` with a value per
chip. ``torchgeo-sigmae pack`` writes it.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..bands import BandSet, get_sensor
from .paths import clean_path, is_remote

__all__ = (
    'FORMAT',
    'INDEX',
    'MISSING',
    'VERSION',
    'PackIndex',
    'Shard',
    'choose_bands',
)

FORMAT, VERSION, INDEX = 'torchgeo-sigmae pack', 1, 'index.json'

#: The types of shards, in order of preference, and the stored value of missing values.
MISSING: dict[str, float] = {'uint16': 65535, 'int16': -32768, 'float32': math.nan}


@dataclass(frozen=True)
class Shard:
    """A file of a pack.

    Attributes:
        file: Its name in the folder of the pack.
        count: Number of chips.
        dtype: ``'uint16'`` or ``'int16'`` if all values are such integers, else
            ``'float32'``.
        bytes: Size of the file.
        sha256: Checksum of the file.
    """

    file: str
    count: int
    dtype: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PackIndex:
    """What ``index.json`` of a pack tells.

    Attributes:
        bands: The bands of the chips, in order, and their sensor.
        shape: Channels, height and width of a chip.
        count: Number of chips.
        scale: Reflectance = value x scale + offset.
        offset: Reflectance at 0.
        mean: Mean of the valid values of every band.
        std: Their population standard deviation.
        shards: The shards, in the order of the chips.
        columns: Files of the columns by name: ``'source'``, the index in *sources*;
            ``'window'``, first row and column in the file of the source; ``'label'``
            where the data have labels; ``'saliency'``, see :class:`.ChipSaliency`,
            where it was asked for.
        checksums: SHA-256 of the files of the columns.
        sources: What the chips were cut from. ``'name'``; and where known ``'place'``
            (sources that overlap on the ground have the same number), ``'split'``,
            ``'date'``, ``'dates'`` (chips of a sample), ``'missing_bands'``,
            ``'height'`` and ``'width'``; ``'crs'`` and ``'transform'`` of the part of
            the file that starts at row and column ``'origin'``.
        settings: What the pack was made from and how.
        skipped: Files that could not be read.
    """

    bands: BandSet
    shape: tuple[int, int, int]
    count: int
    scale: float
    offset: float
    mean: list[float]
    std: list[float]
    shards: tuple[Shard, ...]
    columns: dict[str, str]
    checksums: dict[str, str]
    sources: list[dict[str, Any]] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    skipped: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Write the index for :meth:`read`."""
        content = vars(self) | {
            'bands': list(self.bands),
            'sensor': self.bands.sensor.plain(),
            'shards': [asdict(shard) for shard in self.shards],
        }
        return json.dumps({'format': FORMAT, 'version': VERSION} | content, indent=1)

    @classmethod
    def read(cls, root: str | Path) -> 'PackIndex':
        """Read the index of a pack.

        Args:
            root: Folder of the pack.

        Returns:
            The index.

        Raises:
            FileNotFoundError: If there is no such folder, or no pack in it.
            ValueError: If it is damaged, or of another version.
        """
        path = Path(root, INDEX)
        if not path.is_file():
            raise FileNotFoundError(_no_index(Path(root)))
        return cls.from_json(path.read_bytes(), path)

    @classmethod
    def from_json(cls, text: str | bytes, path: str | Path) -> 'PackIndex':
        """Read what :meth:`to_json` has written to *path*; see :meth:`read`."""
        try:
            content = json.loads(text)
            known = isinstance(content, dict) and content.pop('format', None) == FORMAT
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f'root: {path} is damaged: {error}. Pack the data again.'
            ) from error
        if not known:
            raise ValueError(
                f'root: {path} does not belong to a pack. Pass a folder that '
                'torchgeo-sigmae pack has written.'
            )
        if (version := content.pop('version', None)) != VERSION:
            raise ValueError(
                f'root: {path} has version {version!r} of the format, and this '
                f'torchgeo-sigmae reads version {VERSION}. Install the version that '
                'wrote it, or pack the data again.'
            )
        try:
            sensor = get_sensor(content.pop('sensor'))
            content['bands'] = BandSet.from_data(content['bands'], sensor)
            content['shape'] = tuple(content['shape'])
            content['shards'] = tuple(Shard(**shard) for shard in content['shards'])
            index = cls(**content)
            sound = (
                sum(shard.count for shard in index.shards) == index.count
                and all(shard.dtype in MISSING for shard in index.shards)
                and len(index.bands) == len(index.mean) == len(index.std)
                and len(index.bands) == index.shape[0]
            )
            files = [*(shard.file for shard in index.shards), *index.columns.values()]
            # Remote files are copied to these names.
            strange = [f for f in files if not re.fullmatch(r'[\w-]+\.npy', f)]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'root: {path} is damaged: {error!r}. Pack the data again.'
            ) from error
        if not sound:
            raise ValueError(
                f'root: {path} is damaged: its numbers of chips or bands do not agree. '
                'Pack the data again.'
            )
        if strange:
            raise ValueError(
                f'root: {path} is damaged: {strange[0]!r} is no name of a file of a '
                'pack. Pack the data again.'
            )
        return index

    def shard_of(self, chips: np.ndarray) -> np.ndarray:
        """Return the number of the shard of every chip."""
        ends = np.cumsum([shard.count for shard in self.shards])
        return np.searchsorted(ends, chips, 'right')


def choose_bands(
    bands: BandSet, wanted: Sequence[str] | None, name: str
) -> tuple[BandSet, list[int]]:
    """Choose bands of data by name; channels may be no bands of the sensor.

    Args:
        bands: Bands of the data.
        wanted: Bands to choose, in order; None for all.
        name: Name of the data, for the message.

    Returns:
        The bands, and where each of them is.

    Raises:
        ValueError: If the data lack a band; the message lists those that they have.
    """
    chosen = bands if wanted is None else BandSet.from_data(wanted, bands.sensor)
    if missing := [band for band in chosen if band not in bands]:
        raise ValueError(
            f'bands: {", ".join(missing)} not in {name}, which has '
            f'{", ".join(bands)} of {bands.sensor.name}. Choose among these.'
        )
    return chosen, [bands.index(band) for band in chosen]


def _no_index(root: Path) -> str:
    """Say why there is no index in a folder."""
    if is_remote(url := clean_path(root)):
        return f'root: {url} is remote. Copy the pack to a local folder.'
    if not root.is_dir():
        return f'root: there is no folder {str(root)!r}.'
    if (root / 'packing').is_dir():
        return (
            f'root: {root} is not packed to the end. Run the same torchgeo-sigmae pack '
            'command again to go on.'
        )
    return (
        f'root: {root} is no pack: it has no {INDEX}. Pass a folder that '
        'torchgeo-sigmae pack has written.'
    )
