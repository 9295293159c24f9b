# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Match bands by name, else by wavelength."""

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

#: How far center wavelengths may be apart, as a share of the source band's, for one
#: band to stand in for another. 4 % tells all bands of Sentinel-2 apart but B08 and
#: B8A (3.8 %; the next, B05 and B06, are 5.0 % apart), and joins every reflective band
#: of Landsat-8 but the panchromatic one with Sentinel-2's (at most 2 %).
TOLERANCE = 0.04

#: What happens to bands without a counterpart of the same name.
METHODS = ('auto', 'name', 'zero')


@dataclass(frozen=True)
class AdaptedBand:
    """The source of the weights of one input channel.

    Attributes:
        band: Name of the target band.
        sources: The source bands it stands in for, each with its share in [0, 1];
            empty for a band without counterpart, which starts at zero.
        named: Whether a source band has the same name and sensor. Its mean and std
            are then carried over.
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
    """Report of :func:`~torchgeo_sigmae.weights.adapt_bands`.

    Attributes:
        bands: One entry per target band, in order.
        left_out: Source bands that no target band stands in for. A plain ViT sees them
            at their mean.
        dates: Number of dates.
        divided: Whether every weight was divided by it.
    """

    bands: tuple[AdaptedBand, ...]
    left_out: tuple[str, ...]
    dates: int
    divided: bool = True

    def __str__(self) -> str:
        """One line a band, and what was left out."""
        lines = [str(band) for band in self.bands]
        if self.left_out:
            left_out = ', '.join(self.left_out)
            how = ', seen at their mean' if self.divided else ''
            lines.append(f'Left out{how}: {left_out}.')
        if self.dates > 1:
            weight = f'weight 1/{self.dates}' if self.divided else 'token'
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
        normalize_bands([name for name in bands if sensor.find(name)], sensor)
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
        One entry per target band, in order.
    """
    same = source_sensor.name == target_sensor.name
    wavelengths = {
        name: band.wavelength
        for name in target
        if (band := target_sensor.find(name)) is not None
    }
    shares: dict[str, dict[str, float]] = {name: {} for name in target}
    for origin in source:
        if same and origin in shares:
            nearest = [origin]
        elif method == 'name' or (described := source_sensor.find(origin)) is None:
            nearest = []
        else:
            center = described.wavelength
            distance = {n: abs(w - center) for n, w in wavelengths.items()}
            least = min(distance.values(), default=float('inf'))
            near = least <= TOLERANCE * center
            nearest = [name for name in distance if distance[name] == least and near]
        for name in nearest:
            shares[name][origin] = 1 / len(nearest)
    taken = {band for sources in shares.values() for band in sources}
    return BandReport(
        tuple(
            AdaptedBand(name, sources, same and name in sources)
            for name, sources in shares.items()
        ),
        tuple(band for band in source if band not in taken),
        dates,
    )
