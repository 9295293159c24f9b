# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Sensors: names of bands, common names and wavelengths.

Common names follow the STAC ``eo`` extension; its newer spellings are aliases. Center
wavelengths are in nanometers.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

__all__ = (
    'ANY',
    'BUILT_IN',
    'ETM',
    'LANDSAT8',
    'NAIP',
    'PLANETSCOPE',
    'SENTINEL1',
    'SENTINEL2',
    'TM',
    'Band',
    'Sensor',
    'enmap',
    'get_sensor',
    'sensors_with',
)


@dataclass(frozen=True)
class Band:
    """One band: canonical name (``'B8A'``), common name (``'nir08'``), center in nm.

    The wavelength is None where there is none, as for an elevation model.
    """

    name: str
    common: str
    wavelength: float | None = None


@dataclass(frozen=True)
class Sensor:
    """The bands of one sensor.

    Attributes:
        name: Name of the sensor, for example ``'sentinel2'``.
        bands: Its bands, in the order of its own numbering.
        aliases: Further common names, mapped to those of *bands*.
        prefixes: What may stand before a canonical name, for example ``'SR_'``.
        any_name: Whether names outside *bands* are bands as well.
    """

    name: str
    bands: tuple[Band, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    any_name: bool = False

    @classmethod
    def from_wavelengths(cls, name: str, wavelengths: Mapping[str, float]) -> Self:
        """Describe a sensor by its center wavelengths in nanometers, by band name.

        The band nearest to the center of one of Sentinel-2's within 2 % of it gets its
        common name, so spectral indices can be computed.
        """
        commons: dict[str, str] = {}
        for reference in SENTINEL2.bands:
            center = reference.wavelength or 0.0
            nearest = min(wavelengths, key=lambda n: abs(wavelengths[n] - center))
            if abs(wavelengths[nearest] - center) <= 0.02 * center:
                commons.setdefault(nearest, reference.common)
        return cls(
            name,
            tuple(
                Band(band, commons.get(band, band.lower()), float(wavelength))
                for band, wavelength in wavelengths.items()
            ),
        )

    def find(self, name: str) -> Band | None:
        """Find a band by any of its spellings; None where there is no such band.

        A band name (``b4``, ``B04``, ``B8a``; ``SR_B4`` of Landsat) or a common name
        (``red``, ``nir``), in upper or lower case.
        """
        common = name.strip().lower()
        common = self.aliases.get(common, common)
        spelled = self._spell(name)
        for band in self.bands:
            if band.common == common or _without_zeros(band.name) == spelled:
                return band
        if self.any_name and name.strip():
            return Band(name.strip(), common)
        return None

    def band(self, name: str) -> Band:
        """Look up a band as in :meth:`find`; a missing one is an error."""
        band = self.find(name)
        if band is None:
            raise ValueError(
                f'bands: {name!r} is not a band of {self.name}. {self._advice(name)}'
            )
        return band

    def plain(self) -> str | dict[str, Any]:
        """Describe the sensor for a checkpoint, as :func:`get_sensor` reads it.

        The name of a built-in, or all of it.
        """
        try:
            if get_sensor(self.name) == self:
                return self.name
        except ValueError:
            pass
        return {
            'name': self.name,
            'bands': [[b.name, b.common, b.wavelength] for b in self.bands],
            'aliases': dict(self.aliases),
            'prefixes': list(self.prefixes),
            'any_name': self.any_name,
        }

    def _spell(self, name: str) -> str:
        """A name in upper case, without zeros and prefixes."""
        spelled = name.strip().upper()
        for prefix in self.prefixes:
            spelled = spelled.removeprefix(prefix)
        return _without_zeros(spelled)

    def _advice(self, name: str) -> str:
        """Suggest a name instead of *name*."""
        others = [s.name for s in sensors_with([name]) if s.name != self.name]
        if others and name.strip().upper().startswith(LANDSAT_PREFIXES):
            return (
                'Landsat numbers its bands differently on each satellite. Pass '
                f'sensor= one of {", ".join(others)}.'
            )
        names = [band.name for band in self.bands]
        commons = [*(band.common for band in self.bands), *self.aliases]
        close = difflib.get_close_matches(name.lower(), commons, n=1) or (
            difflib.get_close_matches(self._spell(name), names, n=1)
        )
        hint = f'Did you mean {close[0]!r}? ' if close else ''
        other = f" Or pass sensor={others[0]!r}, or sensor='any'." if others else ''
        return (
            f'{hint}Use one of {_shortened(names)}, or a common name: '
            f'{_shortened(list(dict.fromkeys(commons)))}.{other}'
        )


def _without_zeros(name: str) -> str:
    """``b4``, ``B04`` become ``B4``; ``B08A``, ``B8a`` become ``B8A``."""
    spelled = re.fullmatch(r'B0*(\d+)(A?)', name.strip().upper())
    return f'B{spelled[1]}{spelled[2]}' if spelled else name.strip().upper()


def _shortened(names: Sequence[str]) -> str:
    """Names as text, a long list by its ends."""
    if len(names) > 40:
        return f'{", ".join(names[:5])}, ..., {names[-1]} ({len(names)} names)'
    return ', '.join(names)


#: What Collection 2 writes before the number of a surface reflectance or temperature.
LANDSAT_PREFIXES = ('SR_', 'ST_')

_LANDSAT_ALIASES = {
    'nir08': 'nir',
    'swir16': 'swir1',
    'swir22': 'swir2',
    'panchromatic': 'pan',
}

#: Sentinel-2 MSI. Center wavelengths of Sentinel-2A in nm, to the nearest nanometer
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
    # So2Sat's.
    ('S2_',),
)

#: Landsat-8 and Landsat-9. Center wavelengths in nm, of OLI from Barsi et al. (2014,
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
    {'aerosol': 'coastal', **_LANDSAT_ALIASES},
    LANDSAT_PREFIXES,
)

#: Thematic Mapper of Landsat-4 and -5. Center wavelengths of Landsat-5 from Chander et
#: al. (2009, doi:10.1016/j.rse.2009.01.007).
TM = Sensor(
    'landsat5',
    (
        Band('B1', 'blue', 485.0),
        Band('B2', 'green', 569.0),
        Band('B3', 'red', 660.0),
        Band('B4', 'nir', 840.0),
        Band('B5', 'swir1', 1676.0),
        Band('B6', 'lwir', 11435.0),
        Band('B7', 'swir2', 2223.0),
    ),
    _LANDSAT_ALIASES,
    LANDSAT_PREFIXES,
)

#: Enhanced Thematic Mapper Plus of Landsat-7. Center wavelengths as for :data:`TM`.
ETM = Sensor(
    'landsat7',
    (
        Band('B1', 'blue', 483.0),
        Band('B2', 'green', 560.0),
        Band('B3', 'red', 662.0),
        Band('B4', 'nir', 835.0),
        Band('B5', 'swir1', 1648.0),
        Band('B6', 'lwir', 11335.0),
        Band('B62', 'lwir_high_gain', 11335.0),
        Band('B7', 'swir2', 2206.0),
        Band('B8', 'pan', 706.0),
    ),
    {
        **_LANDSAT_ALIASES,
        # Older products count in tens.
        'b10': 'blue',
        'b20': 'green',
        'b30': 'red',
        'b40': 'nir',
        'b50': 'swir1',
        'b70': 'swir2',
        'b80': 'pan',
        'b60': 'lwir',
        'b61': 'lwir',
        'b6_vcid_1': 'lwir',
        'b6_vcid_2': 'lwir_high_gain',
    },
    LANDSAT_PREFIXES,
)

#: C-band radar of 5.405 GHz, a wavelength of 55.47 mm.
SENTINEL1 = Sensor(
    'sentinel1',
    tuple(Band(name, name.lower(), 55.47e6) for name in ('VV', 'VH', 'HH', 'HV')),
)

#: SuperDove with eight bands; the older four-band satellites are part of it (Planet,
#: PlanetScope product specification).
PLANETSCOPE = Sensor(
    'planetscope',
    (
        Band('coastal_blue', 'coastal', 443.0),
        Band('blue', 'blue', 490.0),
        Band('green_i', 'green05', 531.0),
        Band('green', 'green', 565.0),
        Band('yellow', 'yellow', 610.0),
        Band('red', 'red', 665.0),
        Band('rededge', 'rededge1', 705.0),
        Band('nir', 'nir', 865.0),
    ),
    {'nir08': 'nir'},
)

#: Aerial photographs of the United States; middles of the ranges of the Leica ADS.
NAIP = Sensor(
    'naip',
    (
        Band('R', 'red', 635.0),
        Band('G', 'green', 560.0),
        Band('B', 'blue', 460.0),
        Band('NIR', 'nir', 860.0),
    ),
    {'n': 'nir', 'near_infrared': 'nir'},
)

#: Bands of any names, without wavelengths. Common names serve spectral indices.
ANY = Sensor('any', (), any_name=True)


@cache
def enmap() -> Sensor:
    """Describe EnMAP, bands B1 to B224, by the wavelengths that TorchGeo lists."""
    from torchgeo.datasets import EnMAP

    micrometers = EnMAP.wavelengths.items()
    return Sensor.from_wavelengths('enmap', {n: 1000 * w for n, w in micrometers})


#: The built-in sensors by name, without hyphens. :func:`enmap` is one more. HLS numbers
#: the bands of its two products as the satellites do.
BUILT_IN: dict[str, Sensor] = {
    'sentinel2': SENTINEL2,
    'hlss30': SENTINEL2,
    'landsat8': LANDSAT8,
    'landsat9': LANDSAT8,
    'hlsl30': LANDSAT8,
    'landsat7': ETM,
    'landsat5': TM,
    'landsat4': TM,
    'sentinel1': SENTINEL1,
    'planetscope': PLANETSCOPE,
    'naip': NAIP,
    'any': ANY,
}


def get_sensor(sensor: str | Sensor | Mapping[str, Any]) -> Sensor:
    """Look up a sensor.

    Args:
        sensor: Name of a built-in sensor (:data:`torchgeo_sigmae.sensors.BUILT_IN`),
            with or without a hyphen; ``'any'`` for bands of any names; a
            :class:`Sensor` of one's own, or what :meth:`Sensor.plain` returned.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(sensor, Sensor):
        return sensor
    if isinstance(sensor, Mapping):
        bands = tuple(Band(*band) for band in sensor['bands'])
        return Sensor(
            sensor['name'],
            bands,
            sensor['aliases'],
            tuple(sensor['prefixes']),
            sensor['any_name'],
        )
    name = re.sub(r'[-_ ]', '', sensor.lower())
    if name == 'enmap':
        return enmap()
    if name not in BUILT_IN:
        raise ValueError(
            f'sensor: {sensor!r} is unknown. Use one of '
            f'{", ".join([*BUILT_IN, "enmap"])}, or pass a '
            'torchgeo_sigmae.bands.Sensor that lists your bands.'
        )
    return BUILT_IN[name]


def sensors_with(names: Sequence[str]) -> list[Sensor]:
    """Find the built-in sensors that have all bands; Sentinel-2 alone if it does."""
    if all(SENTINEL2.find(name) for name in names):
        return [SENTINEL2]
    sensors = {id(sensor): sensor for sensor in BUILT_IN.values()}.values()
    return [
        sensor
        for sensor in sensors
        if not sensor.any_name and all(sensor.find(name) for name in names)
    ]
