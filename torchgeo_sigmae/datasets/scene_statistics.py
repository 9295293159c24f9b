# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Mean and standard deviation of the bands of scenes."""

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..patches import valid_pixels
from .chips import SceneChips
from .scenes import Scene
from .skipping import Skipped

__all__ = ('band_statistics', 'read_statistics')

#: Chips that are read for the statistics, spread evenly over the training scenes.
_SAMPLED = 1000


def band_statistics(
    scenes: Sequence[Scene], bands: Sequence[str], size: int, skipped: Skipped
) -> tuple[list[float], list[float], int, list[str]]:
    """Mean and population standard deviation of each band, and the number of pixels.

    Every scene is looked at; where there are many chips, they are spread evenly. Also
    returns the files of scenes without data, or that cannot be read, which are left out
    if *skipped* says so.
    """
    share = min(1.0, _SAMPLED * size**2 / sum(scene.area for scene in scenes))
    count, total, squares = 0, np.zeros(len(bands)), np.zeros(len(bands))
    shift: np.ndarray | None = None
    left_out = []
    for scene in tqdm(scenes, 'Computing statistics', disable=None, delay=2):
        found: list[np.ndarray] = []
        with skipped.trying(scene.path):
            found = _sample(scene, bands, size, share)
        if not found:
            left_out.append(scene.path)
        for pixels in found:
            # Sums of squares of values far from 0 would lose digits.
            shift = pixels.mean(axis=1) if shift is None else shift
            centred = pixels - shift[:, None]
            count += pixels.shape[1]
            total += centred.sum(axis=1)
            squares += (centred**2).sum(axis=1)
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
            'scenes, and cannot be normalised. Leave it out of bands=.'
        )
    return (shift + total / count).tolist(), std.tolist(), count, left_out


def _sample(
    scene: Scene, bands: Sequence[str], size: int, share: float
) -> list[np.ndarray]:
    """Pixels that hold data, of a share of the chips of a scene."""
    side = min(size, scene.height, scene.width)
    every = SceneChips([scene], bands, side, random=False)
    some = SceneChips([scene], bands, side, False, max(1, round(share * len(every))))
    found = [pixels for pixels in map(_valid, some) if pixels.size]
    if not found:
        # The sample fell into gaps: look on for the first chip that has data.
        found = list(islice((p for p in map(_valid, every) if p.size), 1))
    if not found:
        raise ValueError(
            f'{scene.path} holds no data: all pixels are missing or 0. Exclude it, '
            'or correct nodata=.'
        )
    return found


def read_statistics(
    path: Path, fingerprint: str, count: int
) -> tuple[list[float], list[float], list[str]] | None:
    """Read statistics that were kept.

    Args:
        path: The file.
        fingerprint: What they are to be of.
        count: Number of bands.

    Returns:
        Mean and standard deviation of each band, and the scenes that could not be
        read; None if the file is of something else, or holds no such thing.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        if content['fingerprint'] != fingerprint:
            return None
        mean, std = (
            [float(value) for value in content[key]] for key in ('mean', 'std')
        )
        left_out = [str(name) for name in content.get('left_out', [])]
    except (ArithmeticError, KeyError, OSError, RecursionError, TypeError, ValueError):
        return None
    sound = len(mean) == len(std) == count and all(map(math.isfinite, [*mean, *std]))
    return (mean, std, left_out) if sound and min(std) > 0 else None


def _valid(sample: dict[str, Any]) -> np.ndarray:
    """Pixels of a chip that hold data, float64 ``(C, pixels)``."""
    image = sample['image']
    pixels: np.ndarray = image[:, valid_pixels(image)].double().numpy()
    return pixels
