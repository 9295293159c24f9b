# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Groups of bands: what SatMAE shares out by name."""

from collections.abc import Sequence

from ..bands import SENTINEL2, Sensor

__all__ = ('group_bands',)

#: SatMAE's groups of Sentinel-2: 10 m; red edge and narrow infrared; short-wave
#: infrared.
_SATMAE_GROUPS = (
    ('B02', 'B03', 'B04', 'B08'),
    ('B05', 'B06', 'B07', 'B8A'),
    ('B11', 'B12'),
)


def group_bands(
    bands: Sequence[str],
    sensor: Sensor = SENTINEL2,
    groups: Sequence[Sequence[str]] | None = None,
) -> list[list[int]]:
    """Share bands out to groups by their names.

    Args:
        bands: Canonical names of the bands, in order.
        sensor: The sensor they belong to.
        groups: Names of the bands of each group, any spelling; None for SatMAE's
            groups of Sentinel-2, with what is in none of them (B01, B09, B10) as one
            more. Bands of other sensors go with their nearest in wavelength.

    Returns:
        Channel indices of every group, none of them empty.

    Raises:
        ValueError: If *groups* does not name every band once.
    """
    if groups is not None:
        named = [sensor.spell(group) for group in groups]
        if sorted(name for group in named for name in group) != sorted(bands):
            raise ValueError(
                f'groups: {[list(group) for group in groups]} must name each of the '
                f'bands {list(bands)} once.'
            )
        return [sorted(bands.index(name) for name in group) for group in named]
    shared: list[list[int]] = [[] for _ in range(len(_SATMAE_GROUPS) + 1)]
    for channel, name in enumerate(bands):
        shared[_nearest_group(name, sensor)].append(channel)
    return [group for group in shared if group]


def _nearest_group(name: str, sensor: Sensor) -> int:
    """Number of SatMAE's group a band belongs to."""
    if sensor.name != SENTINEL2.name:
        wavelength = sensor.band(name).wavelength
        known = [SENTINEL2.band(n) for group in _SATMAE_GROUPS for n in group]
        name = min(known, key=lambda b: abs(b.wavelength - wavelength)).name
    return next(
        (number for number, group in enumerate(_SATMAE_GROUPS) if name in group),
        len(_SATMAE_GROUPS),
    )
