# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Which bands can stand in for which: by name, else by wavelength."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..bands import Sensor, normalize_bands

__all__ = (
    'METHODS',
    'TOLERANCE',
    'AdaptedBand',
    'BandReport',
    'match_bands',
    'target_bands',
)

#: How far centre wavelengths may be apart, as a share of the source band's, for one
#: band to stand in for another. 4 % tells all bands of Sentinel-2 apart but B08 and
#: B8A (3.8 %; the next, B05 and B06, are 5.0 % apart), and joins every reflective band
#: of Landsat-8 but the panchromatic one with Sentinel-2's (at most 2 %).
TOLERANCE = 0.04

#: How bands without a counterpart of the same name are dealt with.
METHODS = ('auto', 'name', 'zero')


@dataclass(frozen=True)
class AdaptedBand:
    """Where the weights of one input channel come from.

    Attributes:
        band: Name of the target band.
        sources: The source bands it stands in for, each with its share in [0, 1];
            empty for a band without counterpart, which starts at zero.
        named: Whether a source band has the same name and sensor: it is then taken
            with the mean and std of its data.
    """

    band: str
    sources: dict[str, float]
    named: bool

    def __str__(self) -> str:
        """One line in plain words."""
        if not self.sources:
            return f'{self.band}: new, starts at zero.'
        parts = ' + '.join(
            band if share == 1 else f'{share:.3g} x {band}'
            for band, share in self.sources.items()
        )
        return f'{self.band} from {parts}.'


@dataclass(frozen=True)
class BandReport:
    """What :func:`~torchgeo_sigmae.models.adapt_bands` did.

    Attributes:
        bands: One entry a target band, in order.
        left_out: Source bands that no target band stands in for. A plain ViT sees them
            at their mean.
        dates: Number of dates.
        halved: Whether every weight was divided by it.
    """

    bands: tuple[AdaptedBand, ...]
    left_out: tuple[str, ...]
    dates: int
    halved: bool = True

    def __str__(self) -> str:
        """One line a band, and what was left out."""
        lines = [str(band) for band in self.bands]
        if self.left_out:
            left_out = ', '.join(self.left_out)
            how = ', seen at their mean' if self.halved else ''
            lines.append(f'Left out{how}: {left_out}.')
        if self.dates > 1:
            weight = f'weight 1/{self.dates}' if self.halved else 'token'
            lines.append(f'Every {weight}, once for each date.')
        return '\n'.join(lines)


def target_bands(bands: Sequence[str], sensor: Sensor, method: str) -> tuple[str, ...]:
    """Spell target bands.

    Args:
        bands: Names in any spelling.
        sensor: The sensor they belong to.
        method: ``'zero'`` lets names pass that the sensor does not know.

    Returns:
        Canonical names; unknown ones as they are.

    Raises:
        ValueError: If a name is unknown or given twice, or there is none.
        TypeError: If *bands* is one string.
    """
    if method != 'zero' or isinstance(bands, str):
        try:
            names = normalize_bands(bands, sensor)
        except ValueError as error:
            if all(sensor.find(name) for name in bands):
                raise
            raise ValueError(
                f"{error} Pass method='zero' to let channels that are no bands of the "
                'sensor start at zero.'
            ) from None
    else:
        known = [name for name in bands if sensor.find(name)]
        normalize_bands(known, sensor)
        names = sensor.spell(bands)
        if len(set(names)) < len(names):
            raise ValueError(
                f'bands: a name is given more than once in {list(bands)}. Name each '
                'band once.'
            )
    if not names:
        raise ValueError('bands: no band is given. Name at least one.')
    return names


def match_bands(
    source: tuple[str, ...],
    source_sensor: Sensor,
    target: tuple[str, ...],
    target_sensor: Sensor,
    method: str,
    dates: int,
) -> BandReport:
    """Decide which target bands stand in for which source bands.

    Args:
        source: Canonical names of the bands the weights were made with.
        source_sensor: Their sensor.
        target: Canonical names of the bands they are to see.
        target_sensor: Their sensor.
        method: One of :data:`.METHODS`.
        dates: Number of dates, for the report.

    Returns:
        One entry a target band, in order.
    """
    same = source_sensor.name == target_sensor.name
    wavelengths = {
        name: known.wavelength
        for name in target
        if (known := target_sensor.find(name)) is not None
    }
    shares: dict[str, dict[str, float]] = {name: {} for name in target}
    for band in source:
        if same and band in shares:
            nearest = [band]
        elif method == 'name' or (found := source_sensor.find(band)) is None:
            nearest = []
        else:
            distance = {n: abs(w - found.wavelength) for n, w in wavelengths.items()}
            least = min(distance.values(), default=float('inf'))
            near = least <= TOLERANCE * found.wavelength
            nearest = [name for name in distance if distance[name] == least and near]
        for name in nearest:
            shares[name][band] = 1 / len(nearest)
    taken = {band for sources in shares.values() for band in sources}
    return BandReport(
        tuple(
            AdaptedBand(name, sources, same and name in sources)
            for name, sources in shares.items()
        ),
        tuple(band for band in source if band not in taken),
        dates,
    )
