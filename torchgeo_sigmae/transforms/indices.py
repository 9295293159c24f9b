# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Spectral indices by name, computed from named bands.

Convention: reflectance (or anything proportional to it) in, values clamped to the
index's range out; an index that is undefined at a pixel is 0 there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bands import SENTINEL2, Sensor, band_indices, get_sensor

__all__ = (
    'DEFAULT_INDICES',
    'INDICES',
    'SpectralIndex',
    'get_index',
    'normalized_difference',
    'spectral_indices',
)

#: Denominators smaller than this in magnitude leave an index undefined, hence 0.
SAFE_DENOMINATOR = 1e-6


def normalized_difference(a: Tensor, b: Tensor) -> Tensor:
    r"""Normalised difference of two bands.

    .. math::

       I = \frac{a - b}{a + b}

    Args:
        a: First band, any shape, floating point.
        b: Second band, same shape.

    Returns:
        The index, clamped to [-1, 1]; 0 where :math:`|a + b| < 10^{-6}`.
    """
    total = a + b
    undefined = total.abs() < SAFE_DENOMINATOR
    index = (a - b) / torch.where(undefined, torch.ones_like(total), total)
    return torch.where(undefined, torch.zeros_like(total), index).clamp(-1, 1)


@dataclass(frozen=True)
class SpectralIndex:
    r"""A normalised-difference index over common band names.

    .. math::

       I = \frac{positive - negative}{positive + negative} \in [-1, 1]

    Attributes:
        name: Acronym, for example ``'NDVI'``.
        positive: Common name of the band that raises the index.
        negative: Common name of the band that lowers it.
        reference: Where it was published.
    """

    name: str
    positive: str
    negative: str
    reference: str

    @property
    def bands(self) -> tuple[str, str]:
        """Common names of the bands the index needs."""
        return self.positive, self.negative

    def __call__(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Compute the index.

        Args:
            positive: The band :attr:`positive`, any shape.
            negative: The band :attr:`negative`, same shape.

        Returns:
            The index in [-1, 1], same shape.
        """
        return normalized_difference(positive, negative)


#: The built-in indices by name.
INDICES: dict[str, SpectralIndex] = {
    index.name: index
    for index in (
        SpectralIndex(
            'NDVI',
            'nir',
            'red',
            'Rouse et al., 1974, Monitoring vegetation systems in the Great Plains '
            'with ERTS, NASA SP-351',
        ),
        SpectralIndex(
            'NDWI',
            'green',
            'nir',
            'McFeeters, 1996, doi:10.1080/01431169608948714',
        ),
        SpectralIndex(
            'NDBI',
            'swir1',
            'nir',
            'Zha, Gao and Ni, 2003, doi:10.1080/01431160304987',
        ),
    )
}

#: The three indices SIGMAE builds its saliency on.
DEFAULT_INDICES: tuple[str, ...] = ('NDVI', 'NDWI', 'NDBI')


def get_index(index: str | SpectralIndex) -> SpectralIndex:
    """Look up a spectral index.

    Args:
        index: Name of a built-in index in any case, or a :class:`SpectralIndex`.

    Returns:
        The index.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(index, SpectralIndex):
        return index
    try:
        return INDICES[index.upper()]
    except KeyError:
        raise ValueError(
            f'indices: {index!r} is unknown. Use one of {", ".join(INDICES)}, or pass '
            'a torchgeo_sigmae.transforms.SpectralIndex of your own.'
        ) from None


def spectral_indices(
    image: Tensor,
    bands: Sequence[str],
    indices: Sequence[str | SpectralIndex] = DEFAULT_INDICES,
    sensor: str | Sensor = SENTINEL2,
) -> Tensor:
    """Compute several indices at once, in float32.

    Args:
        image: Reflectance or digital numbers proportional to it, ``(..., C, H, W)``,
            floating point. A common factor cancels out; an offset does not.
        bands: Names of the C channels, in order.
        indices: Indices to compute.
        sensor: The sensor the band names belong to.

    Returns:
        The K indices, ``(..., K, H, W)``, each in [-1, 1], float32.

    Raises:
        TypeError: If *image* holds integers.
        ValueError: If an index is unknown, a band it needs is missing, or the number
            of channels differs from the number of bands.
    """
    require_float(image, 'image')
    if image.shape[-3] != len(bands):
        raise ValueError(
            f'image: {image.shape[-3]} channels for {len(bands)} bands {list(bands)}. '
            'Name every channel in bands=, in order.'
        )
    channels = image.float().unbind(dim=-3)
    layers = []
    for index in map(get_index, indices):
        positions = index_channels(index, bands, sensor)
        layers.append(index(*(channels[i] for i in positions)))
    return torch.stack(layers, dim=-3)


def index_channels(
    index: SpectralIndex, bands: Sequence[str], sensor: str | Sensor = SENTINEL2
) -> list[int]:
    """Find the channels an index needs.

    Args:
        index: The index.
        bands: The channel order.
        sensor: The sensor the band names belong to.

    Returns:
        Channel positions, in the order of ``index.bands``.

    Raises:
        ValueError: If a band the index needs is missing, naming index and band.
    """
    resolved = get_sensor(sensor)
    try:
        return band_indices(index.bands, bands, resolved)
    except ValueError as error:
        needed = ', '.join(
            f'{band.name if (band := resolved.find(name)) else "?"} ({name})'
            for name in index.bands
        )
        raise ValueError(
            f'bands: {index.name} needs {needed}, got {list(bands)}. '
            f'Load the missing band, or leave {index.name} out of indices=.'
        ) from error


def require_float(image: Tensor, argument: str) -> None:
    """Refuse integer tensors, on which differences of unsigned bands would wrap.

    Args:
        image: Any tensor.
        argument: Its name, for the message.

    Raises:
        TypeError: If *image* is not floating point.
    """
    if not image.is_floating_point():
        raise TypeError(
            f'{argument}: expected a floating-point tensor, got {image.dtype}. '
            f'Pass {argument}.float().'
        )
