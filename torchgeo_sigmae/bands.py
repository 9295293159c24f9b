# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands in the order of the channels, and the orders of well-known datasets.

Datasets, weights and papers spell the same band differently (``b4``, ``B4``, ``B04``;
``B8a``, ``B8A``, ``B08A``), and the same spelling means different light on different
sensors (``B5`` is red edge on Sentinel-2, near infrared on Landsat-8). Everything in
this package therefore looks bands up by *name and sensor*, never by position. A
:class:`BandSet` is both in one.
"""

from collections.abc import Iterable
from typing import Any

from .sensors import LANDSAT8, SENTINEL2, Band, Sensor, get_sensor, sensors_with

__all__ = (
    'BIGEARTHNET_BANDS',
    'EUROSAT_BANDS',
    'LANDSAT8',
    'OSCD_BANDS',
    'SENTINEL2',
    'SENTINEL2_BANDS',
    'SENTINEL2_L2A_BANDS',
    'SENTINEL2_TEN_BANDS',
    'Band',
    'BandSet',
    'Sensor',
    'get_sensor',
)


class BandSet(tuple[str, ...]):
    """Canonical names of bands, in the order of the channels, and their sensor.

    It is a tuple of names. Functions of this package take any sequence of names and
    read plain ones as Sentinel-2's.

    Attributes:
        sensor: The sensor that the names belong to.

    Example:
        >>> BandSet(['b4', 'B8a', 'swir1'])
        BandSet(['B04', 'B8A', 'B11'], 'sentinel2')
        >>> BandSet(['red', 'nir'], 'landsat8')
        BandSet(['B4', 'B5'], 'landsat8')
    """

    sensor: Sensor

    def __new__(
        cls, names: Iterable[str], sensor: str | Sensor | None = None
    ) -> 'BandSet':
        """Create a new BandSet instance.

        Args:
            names: Band names in any spelling, or common names.
            sensor: The sensor they belong to; None for that of *names* if they are a
                BandSet, else Sentinel-2, or the only built-in sensor that has them all
                (``VV``, ``VH``).

        Returns:
            The bands; *names* itself if it is a BandSet and no sensor is given.

        Raises:
            ValueError: If a name is unknown, or if a band occurs twice.
            TypeError: If *names* is one string instead of a sequence of names.
        """
        if isinstance(names, BandSet) and sensor is None:
            return names
        names = _sequence(names)
        if sensor is None:
            candidates = sensors_with(names)
            sensor = candidates[0] if len(candidates) == 1 else SENTINEL2
        resolved = get_sensor(sensor)
        bands = cls._create([resolved.band(name).name for name in names], resolved)
        if twice := sorted({name for name in bands if bands.count(name) > 1}):
            raise ValueError(
                f'bands: {", ".join(twice)} is given more than once in {names}. '
                'Name each band once.'
            )
        return bands

    @classmethod
    def from_data(
        cls, names: Iterable[str], sensor: str | Sensor | None = None
    ) -> 'BandSet':
        """Name all channels of data, of which some may be no bands of the sensor.

        Unknown names (``VV``, ``DEM``) stay as they are; a sensor that is not given is
        Sentinel-2.
        """
        if isinstance(names, BandSet) and sensor is None:
            return names
        resolved = get_sensor('sentinel2' if sensor is None else sensor)
        return cls._create(
            [
                band.name if (band := resolved.find(name)) else name
                for name in _sequence(names)
            ],
            resolved,
        )

    @classmethod
    def _create(cls, names: Iterable[str], sensor: Sensor) -> 'BandSet':
        """Create an instance without any check."""
        bands = super().__new__(cls, names)
        bands.sensor = sensor
        return bands

    @property
    def bands(self) -> tuple[Band, ...]:
        """The bands; a channel that is no band of the sensor has no wavelength."""
        return tuple(
            self.sensor.find(name) or Band(name, name.lower()) for name in self
        )

    @property
    def wavelengths(self) -> list[float | None]:
        """Center wavelengths in nanometers, None where there is none."""
        return [band.wavelength for band in self.bands]

    def channels(self, wanted: Iterable[str]) -> list[int]:
        """Find the channels of wanted bands, in any spelling, in their order.

        Raises:
            ValueError: If a wanted band is unknown or not among these.
        """
        names = BandSet(_sequence(wanted), self.sensor)
        if missing := [name for name in names if name not in self]:
            raise ValueError(
                f'bands: {", ".join(missing)} not found in the channel order '
                f'{list(self)}. Load these bands in the dataset, leave them out of '
                'bands=, or correct BatchSpec.bands.'
            )
        return [self.index(name) for name in names]

    def matches(self, other: 'BandSet') -> bool:
        """Return whether names, order and sensor are the same."""
        return self == other and self.sensor.name == other.sensor.name

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickle and copy."""
        return _restore, (list(self), self.sensor)

    def __repr__(self) -> str:
        """Names and sensor."""
        return f'BandSet({list(self)}, {self.sensor.name!r})'


def _restore(names: list[str], sensor: Sensor) -> BandSet:
    """Create a pickled BandSet again."""
    return BandSet._create(names, sensor)


def _sequence(names: Iterable[str]) -> list[str]:
    """Refuse one string, which is a sequence of letters."""
    if isinstance(names, str):
        raise TypeError(
            f'bands: expected a sequence of names, got the string {names!r}. '
            f'Pass [{names!r}] for a single band.'
        )
    return list(names)


#: All thirteen Sentinel-2 bands in wavelength order (Level-1C).
SENTINEL2_BANDS: tuple[str, ...] = tuple(band.name for band in SENTINEL2.bands)

#: The twelve bands of a Level-2A product, which has no B10.
SENTINEL2_L2A_BANDS: tuple[str, ...] = tuple(b for b in SENTINEL2_BANDS if b != 'B10')

#: The ten bands at 10 m and 20 m, what SIGMAE and SatMAE-style models are trained on.
SENTINEL2_TEN_BANDS: tuple[str, ...] = tuple(
    b for b in SENTINEL2_BANDS if b not in {'B01', 'B09', 'B10'}
)

#: Band order of :class:`torchgeo.datasets.EuroSAT`, where B8A stands last.
EUROSAT_BANDS: tuple[str, ...] = (*(b for b in SENTINEL2_BANDS if b != 'B8A'), 'B8A')

#: Band order of :class:`torchgeo.datasets.OSCD`.
OSCD_BANDS: tuple[str, ...] = SENTINEL2_BANDS

#: Band order of :class:`torchgeo.datasets.BigEarthNet` with ``bands='s2'``.
BIGEARTHNET_BANDS: tuple[str, ...] = SENTINEL2_L2A_BANDS
