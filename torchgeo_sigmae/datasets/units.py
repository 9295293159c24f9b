# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Warn of a wrong scale and of mixed processing baselines."""

import warnings
from collections.abc import Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rasterio.windows import Window

from ..bands import BandSet
from .band_files import UNIT
from .scenes import RasterScene

__all__ = (
    'check_baselines',
    'check_reflectance',
    'sample_values',
    'warn_if_implausible',
)

#: Processing baseline since which digital numbers of Sentinel-2 are 1000 larger.
FIRST_WITH_OFFSET = 400

#: Windows per side of a scene, and their side in pixels, that are looked at.
_WINDOWS, _SIDE = 3, 64

#: Thermal bands and radar hold no reflectance.
_LONGEST = 3000.0


def check_baselines(scenes: Sequence[RasterScene]) -> None:
    """Report Sentinel-2 scenes whose names say that they may hold an offset.

    Names alone are no proof: the offset may have been removed from a copy. Scenes whose
    scale and offset are known do not count. Scenes of before and after baseline 04.00
    together are a warning.
    """
    newer: list[str] = []
    older: list[str] = []
    for scene in scenes:
        file = scene.files[0]
        if file.baseline is not None and file.offsets is None:
            (newer if file.baseline >= FIRST_WITH_OFFSET else older).append(scene.path)
    advice = (
        'Pass offset=-0.1 where it is there (or write scale and offset tags into those '
        'files, 0.0001 and -0.1), or offset=0 where it is not.'
    )
    if newer and older:
        warnings.warn(
            f'offset: {newer[0]} is of processing baseline 04.00 or later, whose '
            f'digital numbers are 1000 larger, and {older[0]} of an earlier one '
            f'({len(newer)} and {len(older)} files). They are read as they are. '
            + advice,
            stacklevel=3,
        )
    elif newer:
        rank_zero_info(
            f'{newer[0]} is of processing baseline 04.00 or later, whose digital '
            f'numbers are 1000 larger. It is read as it is. {advice}'
        )


def sample_values(scene: RasterScene) -> np.ndarray:
    """Read some windows of a scene, spread evenly, ``(C, N)``."""
    chips = []
    for i in range(_WINDOWS):
        for j in range(_WINDOWS):
            row, column = (
                round(max(side - _SIDE, 0) * n / (_WINDOWS - 1))
                for side, n in ((scene.height, i), (scene.width, j))
            )
            height, width = min(_SIDE, scene.height), min(_SIDE, scene.width)
            chips.append(scene.read(Window(column, row, width, height)))
    return np.concatenate([chip.reshape(len(chip), -1) for chip in chips], axis=1)


def check_reflectance(
    values: np.ndarray,
    bands: BandSet,
    name: str,
    unit: tuple[float, float] = (UNIT, 0.0),
) -> None:
    """Warn where values seem to be no reflectance in a unit.

    Args:
        values: Values of bands ``(C, N)``; NaN where missing.
        bands: The bands.
        name: The scene or folder that holds the values.
        unit: Scale and offset: reflectance = value x scale + offset.
    """
    optical = [w is not None and w < _LONGEST for w in bands.wavelengths]
    warn_if_implausible(
        values[optical] * unit[0] + unit[1],
        f'scale, offset: the reflectance of {name}',
        'Pass scale= and offset=, reflectance = value x scale + offset: 0.0001 and 0 '
        'for digital numbers of Sentinel-2, 0.0000275 and -0.2 for Landsat Collection '
        '2, 1 and 0 for reflectance.',
    )


def warn_if_implausible(reflectance: np.ndarray, subject: str, remedy: str) -> None:
    """Warn if the median is above 2 or below -0.05, or no value is above 0.002.

    Clouds reflect less, and deep water more.
    """
    reflectance = reflectance[np.isfinite(reflectance)]
    if not reflectance.size:
        return
    middle, brightest = float(np.median(reflectance)), float(reflectance.max())
    if not -0.05 <= middle <= 2 or brightest < 0.002:
        rank_zero_warn(
            f'{subject} is {middle:.4g} in the median and {brightest:.4g} at most, '
            f'which is implausible. {remedy}',
            # The caller of a task or datamodule, not these.
            stacklevel=7,
        )
