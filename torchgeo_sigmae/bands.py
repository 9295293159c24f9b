# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Band names: one spelling per sensor, common names, wavelengths, band orders.

Datasets, weights and papers spell the same band differently (``b4``, ``B4``, ``B04``;
``B8a``, ``B8A``, ``B08A``), and the same spelling means different light on different
sensors (``B5`` is red edge on Sentinel-2, near infrared on Landsat-8). Everything in
this package therefore looks bands up by *name and sensor*, never by position.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
    'Sensor',
    'band_indices',
    'get_sensor',
    'normalize_bands',
)


@dataclass(frozen=True)
class Band:
    """One spectral band.

    Attributes:
        name: Canonical name, for example ``'B8A'``.
        common: Common name, for example ``'nir08'``.
        wavelength: Centre wavelength in nanometres.
    """

    name: str
    common: str
    wavelength: float


@dataclass(frozen=True)
class Sensor:
    """The bands of one sensor.

    Attributes:
        name: Name of the sensor, for example ``'sentinel2'``.
        bands: Its bands, in the order of its own numbering.
        aliases: Further common names, mapped to those of *bands*.
    """

    name: str
    bands: tuple[Band, ...]
    aliases: Mapping[str, str]

    def find(self, name: str) -> Band | None:
        """Find a band by any of its spellings.

        Args:
            name: A band name (``b4``, ``B04``, ``B8a``, ``SR_B4``) or a common name
                (``red``, ``nir``), in upper or lower case.

        Returns:
            The band, or None where this sensor has no such band.
        """
        common = name.strip().lower()
        common = self.aliases.get(common, common)
        spelled = _canonical_spelling(name)
        for band in self.bands:
            if band.common == common or _canonical_spelling(band.name) == spelled:
                return band
        return None

    def band(self, name: str) -> Band:
        """Look up a band by any of its spellings.

        Args:
            name: As in :meth:`find`.

        Returns:
            The band.

        Raises:
            ValueError: If this sensor has no such band.
        """
        band = self.find(name)
        if band is None:
            raise ValueError(
                f'bands: {name!r} is not a band of {self.name}. {self._advice(name)}'
            )
        return band

    def spell(self, names: Iterable[str]) -> tuple[str, ...]:
        """Spell names canonically, leaving alone those the sensor does not know.

        Args:
            names: Band names in any spelling, and other channels (``VV``, ``DEM``).

        Returns:
            The names, in the same order.
        """
        return tuple(band.name if (band := self.find(name)) else name for name in names)

    def _advice(self, name: str) -> str:
        """What to write instead of *name*."""
        names = [band.name for band in self.bands]
        commons = [*(band.common for band in self.bands), *self.aliases]
        close = difflib.get_close_matches(name.lower(), commons, n=1) or (
            difflib.get_close_matches(_canonical_spelling(name), names, n=1)
        )
        hint = f'Did you mean {close[0]!r}? ' if close else ''
        return (
            f'{hint}Use one of {", ".join(names)}, or a common name: '
            f'{", ".join(dict.fromkeys(commons))}.'
        )


def _canonical_spelling(name: str) -> str:
    """``b4``, ``B04``, ``SR_B4`` become ``B4``; ``B08A``, ``B8a`` become ``B8A``."""
    spelled = re.fullmatch(r'(?:SR_)?B0*(\d+)(A?)', name.strip().upper())
    return f'B{spelled[1]}{spelled[2]}' if spelled else name.strip().upper()


#: Sentinel-2 MSI. Centre wavelengths of Sentinel-2A in nm, to the nearest nanometre
#: (ESA, Sentinel-2 MSI user guide; Sentinel-2B lies within 4 nm, B12 within 17 nm).
#: Common names follow the STAC ``eo`` extension; its newer spellings are aliases.
SENTINEL2 = Sensor(
    'sentinel2',
    (
        Band('B01', 'coastal', 443.0),
        Band('B02', 'blue', 492.0),
        Band('B03', 'green', 560.0),
        Band('B04', 'red', 665.0),
        Band('B05', 'rededge1', 704.0),
        Band('B06', 'rededge2', 741.0),
        Band('B07', 'rededge3', 783.0),
        Band('B08', 'nir', 833.0),
        Band('B8A', 'nir08', 865.0),
        Band('B09', 'nir09', 945.0),
        Band('B10', 'cirrus', 1374.0),
        Band('B11', 'swir1', 1614.0),
        Band('B12', 'swir2', 2202.0),
    ),
    {
        'aerosol': 'coastal',
        'rededge': 'rededge1',
        'rededge071': 'rededge1',
        'rededge075': 'rededge2',
        'rededge078': 'rededge3',
        'narrow_nir': 'nir08',
        'water_vapour': 'nir09',
        'swir16': 'swir1',
        'swir22': 'swir2',
    },
)

#: Landsat-8 and Landsat-9. Centre wavelengths in nm, of OLI from Barsi et al. (2014,
#: doi:10.3390/rs61010232), TIRS the middle of the ranges in the USGS band designations.
LANDSAT8 = Sensor(
    'landsat8',
    (
        Band('B1', 'coastal', 443.0),
        Band('B2', 'blue', 482.0),
        Band('B3', 'green', 561.0),
        Band('B4', 'red', 655.0),
        Band('B5', 'nir', 865.0),
        Band('B6', 'swir1', 1609.0),
        Band('B7', 'swir2', 2201.0),
        Band('B8', 'pan', 590.0),
        Band('B9', 'cirrus', 1373.0),
        Band('B10', 'lwir11', 10895.0),
        Band('B11', 'lwir12', 12005.0),
    ),
    {
        'aerosol': 'coastal',
        'nir08': 'nir',
        'swir16': 'swir1',
        'swir22': 'swir2',
        'panchromatic': 'pan',
    },
)

_SENSORS = {
    'sentinel2': SENTINEL2,
    'sentinel-2': SENTINEL2,
    'landsat8': LANDSAT8,
    'landsat-8': LANDSAT8,
    'landsat9': LANDSAT8,
    'landsat-9': LANDSAT8,
}

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


def get_sensor(sensor: str | Sensor) -> Sensor:
    """Look up a sensor.

    Args:
        sensor: ``'sentinel2'``, ``'landsat8'``, ``'landsat9'`` (with or without a
            hyphen), or a :class:`Sensor` of one's own.

    Returns:
        The sensor.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(sensor, Sensor):
        return sensor
    try:
        return _SENSORS[sensor.lower()]
    except KeyError:
        raise ValueError(
            f'sensor: {sensor!r} is unknown. Use one of {", ".join(sorted(_SENSORS))}, '
            'or pass a torchgeo_sigmae.bands.Sensor that lists your bands.'
        ) from None


def normalize_bands(
    bands: Iterable[str], sensor: str | Sensor = SENTINEL2
) -> tuple[str, ...]:
    """Spell band names canonically.

    Args:
        bands: Band names in any spelling, or common names.
        sensor: The sensor they belong to.

    Returns:
        Canonical names in the same order. ``('b4', 'B8a', 'swir1')`` gives
        ``('B04', 'B8A', 'B11')`` on Sentinel-2.

    Raises:
        ValueError: If a name is unknown, or if a band occurs twice.
        TypeError: If *bands* is one string instead of a sequence of names.
    """
    if isinstance(bands, str):
        raise TypeError(
            f'bands: expected a sequence of names, got the string {bands!r}. '
            f'Pass [{bands!r}] for a single band.'
        )
    resolved = get_sensor(sensor)
    names = tuple(resolved.band(name).name for name in bands)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f'bands: {", ".join(twice)} is given more than once in {list(bands)}. '
            'Name each band once.'
        )
    return names


def band_indices(
    wanted: Iterable[str],
    available: Sequence[str],
    sensor: str | Sensor = SENTINEL2,
) -> list[int]:
    """Find where bands stand in a channel order.

    Names of *available* that the sensor does not know (``VV``, ``DEM``) are allowed:
    they simply match nothing.

    Args:
        wanted: Bands to find, in any spelling.
        available: The channel order, in any spelling.
        sensor: The sensor the names belong to.

    Returns:
        One channel index for each wanted band, in the order of *wanted*.

    Raises:
        ValueError: If a wanted band is unknown or not among *available*.
    """
    resolved = get_sensor(sensor)
    found = [resolved.find(name) for name in available]
    position = {band.name: i for i, band in enumerate(found) if band is not None}
    names = normalize_bands(wanted, resolved)
    missing = [name for name in names if name not in position]
    if missing:
        raise ValueError(
            f'bands: {", ".join(missing)} not found in the channel order '
            f'{list(available)}. Load these bands in the dataset, leave them out of '
            'bands=, or correct data_bands=.'
        )
    return [position[name] for name in names]
