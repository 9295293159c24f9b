# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Mean and standard deviation of the bands of scenes, stored in a file."""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from tqdm import tqdm

from .._files import write_text
from .chips import SceneChips
from .find import skip_on_error
from .paths import file_state
from .scenes import RasterScene

__all__ = (
    'SceneStatistics',
    'compute_statistics',
    'read_statistics',
    'stored_statistics',
)

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
        pixels: Largest number of values of a band that they were computed from.
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


def stored_statistics(
    file: Path | None,
    scenes: Sequence[RasterScene],
    size: int,
    on_error: str,
    skipped: set[str],
) -> SceneStatistics:
    """Read the statistics of scenes from a file, or compute and store them.

    Arguments as in :func:`compute_statistics`; without a file, nothing is stored.
    """
    stored = None if file is None else read_statistics(file, scenes, size)
    if stored is not None and not (stored.skipped and on_error == 'raise'):
        for path in set(stored.skipped) - skipped:
            warnings.warn(f'Skipped: {path}, as in {file}.', stacklevel=2)
        skipped |= set(stored.skipped)
        return stored
    statistics = compute_statistics(scenes, size, on_error, skipped)
    if file is not None:
        try:
            write_text(file, statistics.to_json(), 'default_root_dir')
        except OSError as error:
            rank_zero_warn(f'The statistics could not be stored: {error}')
    return statistics


def compute_statistics(
    scenes: Sequence[RasterScene],
    size: int,
    on_error: str = 'raise',
    skipped: set[str] | None = None,
) -> SceneStatistics:
    """Compute the statistics of every band.

    Of many chips, about 1000 are read, spread evenly over all scenes.

    Args:
        scenes: The scenes, all with the same bands.
        size: Side of the chips in pixels.
        on_error: ``'raise'``, or ``'skip'`` to leave out scenes that hold no data or
            cannot be read.
        skipped: The names of scenes that are left out are added to this set.

    Raises:
        OSError: If a scene cannot be read, or none of them holds data.
        ValueError: If a scene holds no data, or a band has one value everywhere.
    """
    bands = scenes[0].bands
    share = min(1.0, _MAX_CHIPS * size**2 / sum(scene.num_pixels for scene in scenes))
    count, total, squares = (np.zeros(len(bands)) for _ in range(3))
    shift = np.full(len(bands), np.nan)
    skipped = set() if skipped is None else skipped
    left_out = []
    for scene in tqdm(scenes, 'Computing statistics', disable=None, delay=2):
        chips: list[np.ndarray] = []
        with skip_on_error(scene.path, on_error, skipped):
            chips = _sample(scene, size, share)
        if not chips and not scene.is_part:
            left_out.append(scene.path)
        for pixels in chips:
            valid = np.isfinite(pixels)
            number = valid.sum(axis=1)
            # Sums of squares of values far from 0 would lose digits.
            first = np.where(valid, pixels, 0).sum(axis=1) / np.maximum(number, 1)
            shift = np.where(np.isnan(shift) & (number > 0), first, shift)
            centered = np.where(valid, pixels - shift[:, None], 0)
            count += number
            total += centered.sum(axis=1)
            squares += (centered**2).sum(axis=1)
    if not count.any():
        raise OSError(
            f'None of the {len(scenes)} training scenes holds data, see the warnings '
            'above.'
        )
    if not count.all():
        empty = [band for band, number in zip(bands, count, strict=True) if not number]
        raise ValueError(
            f'bands: no training scene has a value of {", ".join(empty)}. Leave them '
            'out of bands=.'
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
    pixels_seen = int(count.max())
    return SceneStatistics(mean.tolist(), std.tolist(), pixels_seen, left_out, source)


def _source(scenes: Sequence[RasterScene], size: int) -> dict[str, Any]:
    """See :attr:`SceneStatistics.source`."""
    files: dict[str, list[Any]] = {}
    for scene in scenes:
        masks = [] if scene.mask_file is None else [scene.mask_file]
        state = [
            (
                file_state(file.path),
                file.indexes,
                str((file.nodata, file.scales, file.offsets)),
            )
            for file in (*scene.files, *masks)
        ]
        part = [scene.row, scene.column, scene.height, scene.width]
        files.setdefault(scene.path, [state]).append(part)
    # As JSON returns them.
    files = json.loads(json.dumps(files))
    return {'bands': list(scenes[0].bands), 'size': size, 'files': files}


def _sample(scene: RasterScene, size: int, share: float) -> list[np.ndarray]:
    """Values of valid pixels ``(C, N)`` of a share of the chips of a scene."""
    # Faster than many windows, each of which decodes whole blocks of the file.
    if scene.pixels is None and share > _CACHED_SHARE:
        scene = scene.cached()
    side = min(size, scene.height, scene.width)
    every = SceneChips([scene], scene.bands, side, random=False)
    count = max(1, round(share * len(every)))
    some = SceneChips([scene], scene.bands, side, random=False, length=count)
    chips = list(_valid(some))
    if not chips:
        # The sample fell into gaps: look for the first chip that has data.
        chips = list(islice(_valid(every), 1))
    if chips or scene.is_part:
        return chips
    raise ValueError(
        f'{scene.path} holds no data: all pixels are missing or 0. Exclude it, or '
        'correct nodata=.'
    )


def _valid(dataset: SceneChips) -> Iterator[np.ndarray]:
    """Pixels of chips with data, float64 ``(C, N)``; NaN in bands without a value.

    A pixel of zeros counts as missing.
    """
    for i in range(len(dataset)):
        image = dataset[i]['image'].double().numpy()
        valid = (np.isfinite(image) & (image != 0)).any(axis=0)
        if valid.any():
            yield image[:, valid]
