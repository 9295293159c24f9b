# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Mean and standard deviation of the bands of scenes, stored in a file."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..patches import valid_values
from .chips import SceneChips
from .find import skip_on_error
from .scenes import RasterScene

__all__ = ('SceneStatistics', 'compute_statistics', 'read_statistics')

#: Chips that are read for the statistics, spread evenly over the scenes.
_MAX_CHIPS = 1000

#: Scenes of which a larger share is read are read whole.
_CACHED_SHARE = 0.1


@dataclass(frozen=True)
class SceneStatistics:
    """Statistics of the bands of scenes.

    Attributes:
        mean: Mean of every band.
        std: Population standard deviation of every band.
        pixels: Number of pixels they were computed from.
        skipped: Scenes without data, or that cannot be read.
        source: What they depend on: bands, side of the chips, state of the files.
    """

    mean: list[float]
    std: list[float]
    pixels: int
    skipped: list[str]
    source: dict[str, Any]

    def to_json(self) -> str:
        """Write the statistics for :func:`read_statistics`."""
        return json.dumps(asdict(self), indent=2) + '\n'


def read_statistics(
    path: Path, scenes: Sequence[RasterScene], size: int
) -> SceneStatistics | None:
    """Read statistics; None if they are damaged, or of other scenes, bands or chips."""
    try:
        stored = SceneStatistics(**json.loads(path.read_text(encoding='utf-8')))
        mean, std = np.array([stored.mean, stored.std], float)
    except (ArithmeticError, OSError, RecursionError, TypeError, ValueError):
        return None
    sound = len(mean) == len(scenes[0].bands) and np.isfinite([mean, std]).all()
    same = stored.source == _source(scenes, size)
    return stored if sound and same and (std > 0).all() else None


def compute_statistics(
    scenes: Sequence[RasterScene],
    size: int,
    on_error: str = 'raise',
    skipped: set[str] | None = None,
) -> SceneStatistics:
    """Compute the statistics of every band.

    Every scene is looked at; of many chips, about 1000 are read, spread evenly.

    Args:
        scenes: The scenes, all with the same bands.
        size: Side of the chips in pixels.
        on_error: ``'raise'``, or ``'skip'`` to leave out scenes that hold no data or
            cannot be read.
        skipped: The names of scenes that are left out are added to this set.

    Returns:
        The statistics.

    Raises:
        OSError: If a scene cannot be read, or none of them holds data.
        ValueError: If a scene holds no data, or a band has one value everywhere.

    Warns:
        UserWarning: For every scene that is left out.
    """
    bands = scenes[0].bands
    share = min(1.0, _MAX_CHIPS * size**2 / sum(scene.num_pixels for scene in scenes))
    count, total, squares = 0, np.zeros(len(bands)), np.zeros(len(bands))
    shift: np.ndarray | None = None
    skipped = set() if skipped is None else skipped
    left_out = []
    for scene in tqdm(scenes, 'Computing statistics', disable=None, delay=2):
        chips: list[np.ndarray] = []
        with skip_on_error(scene.path, on_error, skipped):
            chips = _sample(scene, size, share)
        if not chips:
            left_out.append(scene.path)
        for pixels in chips:
            # Sums of squares of values far from 0 would lose digits.
            shift = pixels.mean(axis=1) if shift is None else shift
            centered = pixels - shift[:, None]
            count += pixels.shape[1]
            total += centered.sum(axis=1)
            squares += (centered**2).sum(axis=1)
    if shift is None:
        raise OSError(
            f'None of the {len(scenes)} training scenes holds data, see the warnings '
            'above.'
        )
    std = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    if not std.all():
        flat = [band for band, value in zip(bands, std, strict=True) if not value]
        raise ValueError(
            f'std: {", ".join(flat)} has the same value everywhere in the training '
            'scenes and cannot be normalized. Leave it out of bands=.'
        )
    mean = shift + total / count
    source = _source(scenes, size)
    return SceneStatistics(mean.tolist(), std.tolist(), count, left_out, source)


def _source(scenes: Sequence[RasterScene], size: int) -> dict[str, Any]:
    """See :attr:`SceneStatistics.source`."""
    files: dict[str, list[Any]] = {}
    for scene in scenes:
        status = os.stat(scene.path)
        indexes = [list(file.indexes) for file in scene.files]
        state = [status.st_size, status.st_mtime_ns, indexes, str(scene.nodata)]
        part = [scene.row, scene.column, scene.height, scene.width]
        files.setdefault(scene.path, state).append(part)
    return {'bands': list(scenes[0].bands), 'size': size, 'files': files}


def _sample(scene: RasterScene, size: int, share: float) -> list[np.ndarray]:
    """Valid pixels ``(C, N)`` of a share of the chips of a scene."""
    # Faster than many windows, each of which decodes whole blocks of the file.
    scene = scene.cached() if share > _CACHED_SHARE else scene
    side = min(size, scene.height, scene.width)
    every = SceneChips([scene], scene.bands, side, random=False)
    count = max(1, round(share * len(every)))
    some = SceneChips([scene], scene.bands, side, random=False, length=count)
    chips = list(_valid(some))
    if not chips:
        # The sample fell into gaps: look for the first chip that has data.
        chips = list(islice(_valid(every), 1))
    if chips:
        return chips
    raise ValueError(
        f'{scene.path} holds no data: all pixels are missing or 0. Exclude it, or '
        'correct nodata=.'
    )


def _valid(dataset: SceneChips) -> Iterator[np.ndarray]:
    """Valid pixels of chips, float64 ``(C, N)``, without empty chips."""
    for i in range(len(dataset)):
        image = dataset[i]['image']
        valid = valid_values(image, nodata=0.0).all(dim=0)
        if valid.any():
            yield image[:, valid].double().numpy()
