# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae adapt-bands``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

__all__ = ('adapt_bands',)


def adapt_bands(
    weights: str,
    *,
    bands: Sequence[str],
    output: Path,
    dates: int = 1,
    sensor: str = 'sentinel2',
    method: Literal['auto', 'name', 'zero'] = 'auto',
    source_bands: Sequence[str] | None = None,
) -> list[Path]:
    """Write an encoder file for other bands, another sensor or several dates.

    The file is for weights= of any task. A report says what becomes of every band.

    Args:
        weights: An encoder file, or the name of a weight enum.
        bands: Bands of one date, in order and any spelling, for example B04 B03 B02.
        output: The file to write.
        dates: Number of dates whose channels follow each other; 2 for early fusion.
        sensor: Sensor of the bands.
        method: auto matches bands by name and wavelength; name by name alone; zero is
            auto for known bands, and unknown ones (VV, DEM) start at zero.
        source_bands: Bands of the weights in order, where the file does not tell them.
    """
    from ..weights import adapt_bands

    adapt_bands(weights, bands, output, dates, sensor, method, source_bands)
    return [output]
