# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of spectral indices and patch saliency."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor

from ..bands import SENTINEL2, Sensor
from ..patches import cut_patches, valid_patches, valid_pixels
from ..transforms import (
    DEFAULT_INDICES,
    SpectralIndex,
    get_index,
    patch_statistics,
    spectral_indices,
)
from ..transforms.saliency import check_combination, join_statistics
from .geotiff import write_map
from .parts import Parts
from .raster import Raster

__all__ = ('needed_bands', 'saliency_map')

#: Ranks take all patches at once; so many still fit.
_MOST_RANKED = 50_000_000


def saliency_map(
    raster: Raster,
    target: str | Path,
    patch_size: int = 8,
    indices: Sequence[str | SpectralIndex] = DEFAULT_INDICES,
    alpha: float = 0.5,
    combine: str = 'minmax',
    sensor: str | Sensor = SENTINEL2,
    scale: float = 1e-4,
    window: int | None = None,
) -> None:
    """Map spectral indices and saliency of the patches of an image of any size.

    The image is read by windows, whose results are kept beside *target* until the map
    is written, so that an interrupted call goes on where it was. The map equals
    :func:`~torchgeo_sigmae.transforms.patch_saliency` of the whole image to the bit,
    whatever the window: richness and heterogeneity are scaled by their smallest and
    largest values in the image, which a second sweep over the patches knows.

    Args:
        raster: The image.
        target: The GeoTIFF to be, with a cell a patch and these layers in float32: the
            mean of every index over the valid pixels of the patch, ``richness``,
            ``heterogeneity``, and ``saliency`` in [0, 1]. NaN where a patch has no
            valid pixel.
        patch_size: Side of a patch in pixels.
        indices: Spectral indices to use.
        alpha: Weight of richness against heterogeneity, in [0, 1].
        combine: ``'minmax'``, ``'rank'`` or ``'product'``, see
            :func:`~torchgeo_sigmae.transforms.patch_saliency`.
        sensor: The sensor the bands of the image belong to.
        scale: Reflectance per unit of the image.
        window: Side of the windows in pixels, a multiple of *patch_size*; None for
            about 1024.

    Raises:
        OSError: If the image cannot be read or the map not be written.
        ValueError: If an argument is out of range, a band is missing, no pixel is
            valid, or ranks are asked for of too many patches.
    """
    check_combination(alpha, combine)
    target, resolved = Path(target), [get_index(index) for index in indices]
    if patch_size < 1:
        raise ValueError(f'patch_size: {patch_size} is not at least 1.')
    rows, columns, transform = raster.grid(patch_size)
    if combine == 'rank' and rows * columns > _MOST_RANKED:
        raise ValueError(
            f"combine: 'rank' sorts all patches, and {raster.name} has {rows} x "
            f"{columns}. Use 'minmax', a larger patch_size or an area."
        )

    def describe(place: Window) -> np.ndarray:
        image = torch.from_numpy(raster.read(place))
        valid = valid_pixels(image, nodata=None)
        image = torch.where(valid, image * scale, 0)
        layers = spectral_indices(image, raster.bands, resolved, sensor)
        means = _patch_means(layers, valid, patch_size)
        statistics = patch_statistics(layers, patch_size, valid)
        found = torch.cat([means, torch.stack(statistics)])
        return found.where(valid_patches(valid, patch_size), torch.nan).numpy()

    settings = {
        'map': 'saliency',
        'indices': [[i.name, i.formula, i.value_range] for i in resolved],
        'alpha': alpha,
        'combine': combine,
        'scale': scale,
    }
    parts = Parts(target, raster, patch_size, window, settings)
    if parts.finished:
        return
    parts.compute(describe, f'Saliency of {Path(raster.name).name}')
    limits = _limits(parts)
    names = [*(index.name for index in resolved), 'richness', 'heterogeneity']
    tags = {'patch_size': str(patch_size), 'alpha': str(alpha), 'combine': combine}
    tags['made_from'] = parts.key
    results: Iterable[tuple[Window, np.ndarray]]
    if combine == 'rank':
        whole = np.empty((len(names), rows, columns), np.float32)
        for cells, found in parts:
            whole[(slice(None), *cells.toslices())] = found
        everywhere = Window(0, 0, columns, rows)
        results = [(everywhere, _with_saliency(whole, alpha, combine))]
    else:
        results = (
            (cells, _with_saliency(found, alpha, combine, limits))
            for cells, found in parts
        )
    names.append('saliency')
    write_map(target, results, (rows, columns), transform, raster.crs, names, tags)
    parts.remove()


def needed_bands(
    indices: Sequence[str | SpectralIndex], sensor: Sensor
) -> tuple[str, ...]:
    """Find the bands that indices need.

    Args:
        indices: The indices.
        sensor: The sensor the bands belong to.

    Returns:
        Canonical names, in the order of the sensor.
    """
    wanted = {name for index in indices for name in get_index(index).bands}
    wanted = {sensor.band(name).name for name in wanted}
    return tuple(band.name for band in sensor.bands if band.name in wanted)


def _patch_means(layers: Tensor, valid: Tensor, patch_size: int) -> Tensor:
    """Mean of layers ``(K, H, W)`` over the valid pixels of every patch."""
    counted = cut_patches(valid, patch_size).flatten(-2)
    values = torch.where(counted, cut_patches(layers, patch_size).flatten(-2), 0)
    return values.sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)


def _limits(parts: Parts) -> tuple[tuple[float, float], tuple[float, float]]:
    """Smallest and largest richness, and heterogeneity."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for _, found in parts:
        statistics = found[-2:].reshape(2, -1)
        known = statistics[:, np.isfinite(statistics[0])]
        if known.size:
            low = np.minimum(low, known.min(axis=1))
            high = np.maximum(high, known.max(axis=1))
    (r_low, h_low), (r_high, h_high) = low.tolist(), high.tolist()
    return (r_low, r_high), (h_low, h_high)


def _with_saliency(
    found: np.ndarray,
    alpha: float,
    combine: str,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> np.ndarray:
    """Append saliency to layers that end with richness and heterogeneity."""
    richness, heterogeneity = torch.from_numpy(found[-2:]).nan_to_num(0)
    patches = torch.from_numpy(np.isfinite(found[-1]))
    saliency = join_statistics(
        richness, heterogeneity, patches, alpha, combine, limits
    ).where(patches, torch.nan)
    return np.concatenate([found, saliency.numpy()[None]])
