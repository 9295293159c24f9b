# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Match bands by name, else by wavelength."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..bands import BandSet, Sensor, get_sensor

__all__ = (
    'METHODS',
    'TOLERANCE',
    'AdaptedBand',
    'BandReport',
    'match_bands',
    'target_bands',
)

#: How far center wavelengths may be apart, as a share of the source band's, for one
#: band to stand in for another. 4 % separates all bands of Sentinel-2 but B08 and
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


def target_bands(
    bands: Sequence[str], sensor: str | Sensor | None, method: str
) -> BandSet:
    """Spell target bands; ``method='zero'`` lets names pass that the sensor lacks."""
    if method != 'zero' or isinstance(bands, str):
        try:
            names = BandSet(bands, sensor)
        except ValueError as error:
            target = get_sensor(sensor or 'sentinel2')
            if all(target.find(name) for name in bands):
                raise
            raise ValueError(
                f"{error} Pass method='zero' to let channels that are no bands of the "
                'sensor start at zero.'
            ) from None
    else:
        names = BandSet.from_data(bands, sensor)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f'bands: {", ".join(twice)} is given more than once in {list(bands)}. '
                'Name each band once.'
            )
    if not names:
        raise ValueError('bands: no band is given. Name at least one.')
    return names


def match_bands(
    source: BandSet,
    target: BandSet,
    method: str,
    dates: int,
) -> BandReport:
    """Decide which target bands stand in for which source bands."""
    same = source.sensor.name == target.sensor.name
    wavelengths = {
        band.name: band.wavelength for band in target.bands if band.wavelength
    }
    shares: dict[str, dict[str, float]] = {name: {} for name in target}
    for origin in source.bands:
        nearest, center = [], origin.wavelength
        if same and origin.name in shares:
            nearest = [origin.name]
        elif method != 'name' and center:
            distance = {n: abs(w - center) for n, w in wavelengths.items()}
            least = min(distance.values(), default=float('inf'))
            if least <= TOLERANCE * center:
                nearest = [name for name in distance if distance[name] == least]
        for name in nearest:
            shares[name][origin.name] = 1 / len(nearest)
    taken = {band for sources in shares.values() for band in sources}
    return BandReport(
        tuple(
            AdaptedBand(name, sources, same and name in sources)
            for name, sources in shares.items()
        ),
        tuple(band for band in source if band not in taken),
        dates,
    )
