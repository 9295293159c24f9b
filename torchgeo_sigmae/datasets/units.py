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
    'describe_implausible',
    'reflectance_problem',
    'sample_values',
    'sample_windows',
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


def sample_windows(scene: RasterScene) -> list[Window]:
    """Cut some windows out of a scene, spread evenly."""
    height, width = min(_SIDE, scene.height), min(_SIDE, scene.width)
    rows, columns = (
        [round(max(side - _SIDE, 0) * n / (_WINDOWS - 1)) for n in range(_WINDOWS)]
        for side in (scene.height, scene.width)
    )
    return [Window(column, row, width, height) for row in rows for column in columns]


def sample_values(scene: RasterScene) -> np.ndarray:
    """Read some windows of a scene, spread evenly, ``(C, N)``."""
    chips = [scene.read(window) for window in sample_windows(scene)]
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
    if problem := reflectance_problem(values, bands, name, unit):
        rank_zero_warn(problem, stacklevel=6)


def reflectance_problem(
    values: np.ndarray,
    bands: BandSet,
    name: str,
    unit: tuple[float, float] = (UNIT, 0.0),
) -> str | None:
    """Word the warning of :func:`check_reflectance`; None for plausible values."""
    optical = [w is not None and w < _LONGEST for w in bands.wavelengths]
    return describe_implausible(
        values[optical] * unit[0] + unit[1],
        f'scale, offset: the reflectance of {name}',
        'Pass scale= and offset=, reflectance = value x scale + offset: 0.0001 and 0 '
        'for digital numbers of Sentinel-2, 0.0000275 and -0.2 for Landsat Collection '
        '2, 1 and 0 for reflectance.',
    )


def describe_implausible(
    reflectance: np.ndarray, subject: str, remedy: str
) -> str | None:
    """Say if the median is above 2 or below -0.05, or no value is above 0.002.

    Clouds reflect less, and deep water more.
    """
    reflectance = reflectance[np.isfinite(reflectance)]
    if not reflectance.size:
        return None
    middle, brightest = float(np.median(reflectance)), float(reflectance.max())
    if -0.05 <= middle <= 2 and brightest >= 0.002:
        return None
    return (
        f'{subject} is {middle:.4g} in the median and {brightest:.4g} at most, which '
        f'is implausible. {remedy}'
    )
