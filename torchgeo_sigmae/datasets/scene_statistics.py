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

from ..transforms.saliency import valid_pixels
from .chips import SceneChips
from .scenes import Scene

__all__ = ('band_statistics', 'read_statistics')

#: Chips that are read for the statistics, spread evenly over the training scenes.
_SAMPLED = 1000


def band_statistics(
    scenes: Sequence[Scene], bands: Sequence[str], size: int
) -> tuple[list[float], list[float], int]:
    """Mean and population standard deviation of each band, and the number of pixels.

    Every scene is looked at; where there are many chips, they are spread evenly.
    """
    share = min(1.0, _SAMPLED * size**2 / sum(scene.area for scene in scenes))
    count, total, squares = 0, np.zeros(len(bands)), np.zeros(len(bands))
    shift: np.ndarray | None = None
    for scene in tqdm(scenes, 'Computing statistics', disable=None, delay=2):
        side = min(size, scene.height, scene.width)
        every = SceneChips([scene], bands, side, random=False)
        some = SceneChips(
            [scene], bands, side, False, max(1, round(share * len(every)))
        )
        found = [pixels for pixels in map(_valid, some) if pixels.size]
        if not found:
            # The sample fell into gaps: look on for the first chip that has data.
            found = list(islice((p for p in map(_valid, every) if p.size), 1))
        if not found:
            raise ValueError(
                f'{scene.path} holds no data: all pixels are missing or 0. Exclude it, '
                'or correct nodata=.'
            )
        for pixels in found:
            # Sums of squares of values far from 0 would lose digits.
            shift = pixels.mean(axis=1) if shift is None else shift
            centred = pixels - shift[:, None]
            count += pixels.shape[1]
            total += centred.sum(axis=1)
            squares += (centred**2).sum(axis=1)
    assert shift is not None
    std = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    if not std.all():
        flat = [band for band, value in zip(bands, std, strict=True) if not value]
        raise ValueError(
            f'std: {", ".join(flat)} has the same value everywhere in the training '
            'scenes, and cannot be normalised. Leave it out of bands=.'
        )
    return (shift + total / count).tolist(), std.tolist(), count


def read_statistics(
    path: Path, fingerprint: str, count: int
) -> tuple[list[float], list[float]] | None:
    """Read statistics that were kept.

    Args:
        path: The file.
        fingerprint: What they are to be of.
        count: Number of bands.

    Returns:
        Mean and standard deviation of each band; None if the file is of something else,
        or holds no such thing.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        if content['fingerprint'] != fingerprint:
            return None
        mean, std = (
            [float(value) for value in content[key]] for key in ('mean', 'std')
        )
    except (ArithmeticError, KeyError, OSError, RecursionError, TypeError, ValueError):
        return None
    sound = len(mean) == len(std) == count and all(map(math.isfinite, [*mean, *std]))
    return (mean, std) if sound and min(std) > 0 else None


def _valid(sample: dict[str, Any]) -> np.ndarray:
    """Pixels of a chip that hold data, float64 ``(C, pixels)``."""
    image = sample['image']
    pixels: np.ndarray = image[:, valid_pixels(image)].double().numpy()
    return pixels
