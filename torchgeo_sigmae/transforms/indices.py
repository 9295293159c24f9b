# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Spectral indices by name, computed from named bands.

Convention: reflectance in (for normalized differences anything proportional to it),
values clamped to the index's range out; an index that is undefined at a pixel is 0
there.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from ..bands import BandSet
from .formula import Formula

__all__ = (
    'DEFAULT_INDICES',
    'INDICES',
    'AppendSpectralIndices',
    'SpectralIndex',
    'get_index',
    'spectral_indices',
)


@dataclass(frozen=True)
class SpectralIndex:
    """A spectral index over common band names.

    Attributes:
        name: Acronym, for example ``'NDVI'``.
        formula: Arithmetic over common band names (:class:`.Band`), for example
            ``'(nir - red) / (nir + red)'``, for reflectance in [0, 1].
        reference: Where it was published.
        value_range: Smallest and largest value; results are clamped to it.
        bands: Common names of the bands it needs, found in the formula.
    """

    name: str
    formula: str
    reference: str
    value_range: tuple[float, float] = (-1.0, 1.0)
    bands: tuple[str, ...] = field(init=False)
    _formula: Formula = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Parse the formula, once."""
        parsed = Formula(self.formula)
        object.__setattr__(self, '_formula', parsed)
        object.__setattr__(self, 'bands', parsed.names)

    def __call__(self, bands: Mapping[str, Tensor], clamp: bool = True) -> Tensor:
        """Compute the index of bands of one shape, by common name; 0 where undefined.

        *clamp* keeps it in :attr:`value_range`.
        """
        value = self._formula(bands)
        return value.clamp(*self.value_range) if clamp else value


def _normalized_difference(name: str, a: str, b: str, reference: str) -> SpectralIndex:
    """Define an index of the form (a - b) / (a + b)."""
    return SpectralIndex(name, f'({a} - {b}) / ({a} + {b})', reference)


#: The built-in indices by name.
INDICES: dict[str, SpectralIndex] = {
    index.name: index
    for index in (
        _normalized_difference('NDVI', 'nir', 'red', 'Rouse et al., 1974, NASA SP-351'),
        _normalized_difference(
            'NDWI', 'green', 'nir', 'McFeeters, 1996, doi:10.1080/01431169608948714'
        ),
        _normalized_difference(
            'MNDWI', 'green', 'swir1', 'Xu, 2006, doi:10.1080/01431160600589179'
        ),
        _normalized_difference(
            'NDBI', 'swir1', 'nir', 'Zha et al., 2003, doi:10.1080/01431160304987'
        ),
        _normalized_difference(
            'NDMI',
            'nir',
            'swir1',
            'Wilson and Sader, 2002, doi:10.1016/S0034-4257(01)00318-2',
        ),
        _normalized_difference(
            'NBR', 'nir', 'swir2', 'Key and Benson, 2006, USDA RMRS-GTR-164'
        ),
        _normalized_difference(
            'NDSI',
            'green',
            'swir1',
            'Riggs et al., 1994, doi:10.1109/IGARSS.1994.399618',
        ),
        _normalized_difference(
            'NDRE',
            'nir',
            'rededge1',
            'Gitelson and Merzlyak, 1994, doi:10.1016/1011-1344(93)06963-4',
        ),
        SpectralIndex(
            'EVI',
            '2.5 * (nir - red) / (nir + 6 * red - 7.5 * blue + 1)',
            'Liu and Huete, 1995, doi:10.1109/TGRS.1995.8746027',
        ),
        SpectralIndex(
            'SAVI',
            '1.5 * (nir - red) / (nir + red + 0.5)',
            'Huete, 1988, doi:10.1016/0034-4257(88)90106-X',
        ),
        SpectralIndex(
            'BSI',
            '((swir1 + red) - (nir + blue)) / ((swir1 + red) + (nir + blue))',
            'Rikimaru et al., 2002, Tropical Ecology 43(1), 39-47',
        ),
    )
}

#: The three indices SIGMAE builds its saliency on.
DEFAULT_INDICES: tuple[str, ...] = ('NDVI', 'NDWI', 'NDBI')

#: spyndex's band letters as common names.
_SPYNDEX_BANDS = {
    'A': 'coastal',
    'B': 'blue',
    'G': 'green',
    'R': 'red',
    'RE1': 'rededge1',
    'RE2': 'rededge2',
    'RE3': 'rededge3',
    'N': 'nir',
    'N2': 'nir08',
    'WV': 'nir09',
    'S1': 'swir1',
    'S2': 'swir2',
}


def get_index(index: str | SpectralIndex | Mapping[str, Any]) -> SpectralIndex:
    """Look up a spectral index.

    Args:
        index: Name of a built-in index in any case, the name of an index of the spyndex
            catalogue where that package is installed, a :class:`SpectralIndex`, or the
            arguments of one, as files hold it.

    Returns:
        The index. One of spyndex has its default constants and no range.
    """
    if isinstance(index, SpectralIndex):
        return index
    if isinstance(index, Mapping):
        return SpectralIndex(**index)
    if index.upper() in INDICES:
        return INDICES[index.upper()]
    try:
        import spyndex
    except ImportError:
        spyndex = None
    if spyndex is not None and index in spyndex.indices:
        return _from_spyndex(spyndex, index)
    more = (
        'No such index is in the spyndex catalogue either.'
        if spyndex is not None
        else "pip install 'torchgeo-sigmae[spyndex]' adds its whole catalogue."
    )
    raise ValueError(
        f'indices: {index!r} is unknown. Use one of {", ".join(INDICES)}, or pass a '
        f'torchgeo_sigmae.transforms.SpectralIndex of your own. {more}'
    )


def _from_spyndex(spyndex: Any, name: str) -> SpectralIndex:
    """Translate an index of spyndex: letters to common names, constants to numbers."""
    entry = spyndex.indices[name]
    formula = Formula(entry.formula)
    symbols = dict(_SPYNDEX_BANDS)
    for symbol in formula.names:
        constant = spyndex.constants.get(symbol)
        if symbol not in symbols and constant and constant.default is not None:
            symbols[symbol] = f'({float(constant.default)!r})'
    if missing := [symbol for symbol in formula.names if symbol not in symbols]:
        raise ValueError(
            f'indices: {name} of spyndex needs {", ".join(missing)}, which are no '
            'optical bands we know. Use another index.'
        )
    text = formula.substitute(symbols)
    return SpectralIndex(name, text, entry.reference, (-math.inf, math.inf))


def spectral_indices(
    image: Tensor,
    bands: Sequence[str],
    indices: Sequence[str | SpectralIndex] = DEFAULT_INDICES,
) -> Tensor:
    """Compute several indices at once, in float32.

    Args:
        image: Reflectance ``(..., C, H, W)``, floating point. In normalized
            differences a common factor cancels out; an offset does not.
        bands: Names of the C channels, in order; a
            :class:`~torchgeo_sigmae.bands.BandSet` for another sensor than Sentinel-2.
        indices: Indices to compute.

    Returns:
        The K indices, ``(..., K, H, W)``, each in its range.
    """
    require_float(image, 'image')
    if image.shape[-3] != len(bands):
        raise ValueError(
            f'image: {image.shape[-3]} channels for {len(bands)} bands {list(bands)}. '
            'Name every channel in bands=, in order.'
        )
    bands = BandSet.from_data(bands)
    channels = image.float().unbind(dim=-3)
    layers = []
    for index in map(get_index, indices):
        positions = index_channels(index, bands)
        named = zip(index.bands, positions, strict=True)
        layers.append(index({name: channels[i] for name, i in named}))
    return torch.stack(layers, dim=-3)


class AppendSpectralIndices(IntensityAugmentationBase2D):
    """Append spectral indices to an image as further channels.

    Like TorchGeo's ``AppendNDVI`` and the rest, with names instead of positions and
    reflectance instead of whatever the image holds: EVI and SAVI have constants that
    mean nothing for digital numbers.

    Convention: input ``(C, H, W)`` or ``(B, C, H, W)`` of raw values, output with K
    channels more, the indices, each in its range.

    Example:
        >>> import torch
        >>> transform = AppendSpectralIndices(('NDVI', 'EVI'), ('B02', 'B04', 'B08'))
        >>> transform(torch.rand(3, 64, 64) * 10000).shape
        torch.Size([5, 64, 64])
    """

    def __init__(
        self,
        indices: Sequence[str | SpectralIndex],
        bands: Sequence[str],
        scale: float = 1e-4,
        offset: float = 0.0,
    ) -> None:
        """Initialize a new AppendSpectralIndices instance.

        Args:
            indices: Names of indices, or indices of one's own.
            bands: Names of the image's channels, in order and any spelling; a
                :class:`~torchgeo_sigmae.bands.BandSet` for another sensor than
                Sentinel-2.
            scale: Reflectance per unit of the image; 1e-4 for Sentinel-2 digital
                numbers, 1 for reflectance.
            offset: Reflectance at 0.
        """
        super().__init__(p=1, keepdim=True)
        self._check = NormalizedImageCheck()
        resolved = tuple(get_index(index) for index in indices)
        named = BandSet.from_data(bands)
        for index in resolved:
            index_channels(index, named)
        self.flags = {
            'indices': resolved,
            'bands': named,
            'scale': scale,
            'offset': offset,
        }

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Append the indices of images ``(B, C, H, W)``."""
        self._check(input, type(self).__name__)
        reflectance = input * flags['scale'] + flags['offset']
        layers = spectral_indices(reflectance, flags['bands'], flags['indices'])
        return torch.cat([input, layers.to(input.dtype)], dim=-3)


class NormalizedImageCheck:
    """Look for standardized values in the first images of a transform.

    Reflectance is next to never below -0.1, and digital numbers exceed 100.
    """

    def __init__(self, images: int = 8) -> None:
        """Look at the images of so many calls."""
        self.calls_left = images

    def __call__(self, image: Tensor, transform: str) -> None:
        """Warn once if an image is normalized already; *transform* names the caller."""
        if not self.calls_left:
            return
        self.calls_left -= 1
        values = image.detach().float().nan_to_num(0, 0, 0)
        share = float((values < -0.1).float().mean())
        if share > 0.1 and float(values.abs().max()) < 100:
            self.calls_left = 0
            warnings.warn(
                f'image: {share:.0%} of the values are below -0.1, as if they were '
                f'normalized already. Indices of such values mean nothing. Put '
                f'{transform} before the normalization, where values are reflectance '
                'or digital numbers.',
                stacklevel=2,
            )


def index_channels(index: SpectralIndex, bands: BandSet) -> list[int]:
    """Find the channels an index needs, in the order of ``index.bands``."""
    try:
        return bands.channels(index.bands)
    except ValueError as error:
        needed = ', '.join(
            f'{band.name if (band := bands.sensor.find(name)) else "?"} ({name})'
            for name in index.bands
        )
        raise ValueError(
            f'bands: {index.name} needs {needed}, got {list(bands)}. '
            f'Load the missing band, or leave {index.name} out of indices=.'
        ) from error


def require_float(image: Tensor, argument: str) -> None:
    """Refuse integer tensors, on which differences of unsigned bands would wrap."""
    if not image.is_floating_point():
        raise TypeError(
            f'{argument}: expected a floating-point tensor, got {image.dtype}. '
            f'Pass {argument}.float().'
        )
