# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of one image: its spectral indices, its saliency, its masks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

from ..bands import SENTINEL2, Sensor
from ..patches import valid_pixels
from ..transforms import DEFAULT_INDICES, SpectralIndex, get_index, spectral_indices
from ..transforms.indices import require_float
from .canvas import (
    NODATA_COLOUR,
    colour_bar,
    colours,
    image_title,
    panel_grid,
    rgb_channels,
    stretch,
    visible,
)

__all__ = ('plot_indices', 'plot_mask', 'plot_saliency')


def plot_indices(
    image: Tensor,
    bands: Sequence[str],
    indices: Sequence[str | SpectralIndex] = DEFAULT_INDICES,
    sensor: str | Sensor = SENTINEL2,
    scale: float = 1e-4,
    offset: float = 0.0,
    nodata: float | None = 0.0,
) -> Figure:
    """Draw an image and maps of its spectral indices.

    Args:
        image: Raw values ``(C, H, W)``, floating point.
        bands: Names of the C bands.
        indices: Indices to draw.
        sensor: The sensor the band names belong to.
        scale: Reflectance per unit of the image; 1e-4 for Sentinel-2 digital numbers,
            1 for reflectance.
        offset: Reflectance at 0.
        nodata: Pixels whose bands all equal this value are missing, as are those that
            are not finite; None if no value marks missing pixels.

    Returns:
        A figure with natural colours, then one map an index, four panels a row. A
        colour bar spans the index's ``value_range`` and is centred on 0 where the range
        lies on both sides of it; for an index without limits it spans the 2nd to the
        98th percentile. The title tells the smallest and largest value found.

    Raises:
        TypeError: If *image* holds integers.
        ValueError: If *image* is not one image of these bands, no index is given, an
            index is unknown, or a band it needs is missing.
    """
    valid = _check_image(image, bands, nodata)
    resolved = [get_index(index) for index in indices]
    if not resolved:
        raise ValueError(
            'indices: none given. Pass at least one, for example '
            f'{list(DEFAULT_INDICES)}.'
        )
    # Zeros, not NaN: what is missing must not reach the formulas.
    reflectance = torch.where(valid, image.detach().float() * scale + offset, 0)
    layers = spectral_indices(reflectance, bands, resolved, sensor)
    missing = not bool(valid.all())
    figure, axes = panel_grid(1 + len(resolved), valid.shape, missing, bars=True)
    axes[0].imshow(_natural_colours(reflectance, valid, bands, sensor))
    axes[0].set_title(image_title(bands, sensor), fontsize=10)
    for axis, index, layer in zip(axes[1:], resolved, layers, strict=True):
        values = torch.where(valid, layer, torch.nan).cpu().numpy()
        found = values[np.isfinite(values)]
        digits = '.2f' if all(map(math.isfinite, index.value_range)) else '.3g'
        # z: a small negative number must not read -0.00.
        spread = (
            f'{found.min():z{digits}} to {found.max():z{digits}}'
            if found.size
            else 'no data'
        )
        typical = np.percentile(found, (2, 98)) if found.size else (0.0, 1.0)
        low, high = (
            limit if math.isfinite(limit) else float(usual)
            for limit, usual in zip(index.value_range, typical, strict=True)
        )
        draw_map(axis, values, low, high)
        axis.set_title(f'{index.name}, {spread}', fontsize=10)
    return figure


def plot_saliency(
    image: Tensor,
    saliency: Tensor,
    bands: Sequence[str],
    sensor: str | Sensor = SENTINEL2,
    richness: Tensor | None = None,
    heterogeneity: Tensor | None = None,
    nodata: float | None = 0.0,
) -> Figure:
    """Draw an image and the saliency of its patches.

    Args:
        image: Reflectance ``(C, H, W)``, floating point.
        saliency: Saliency in [0, 1], ``(H / p, W / p)``.
        bands: Names of the C bands.
        sensor: The sensor they belong to.
        richness: Semantic richness ``(H / p, W / p)``, 0 or more, to be drawn too; see
            :func:`~torchgeo_sigmae.transforms.patch_statistics`.
        heterogeneity: Internal heterogeneity, likewise.
        nodata: As in :func:`plot_indices`.

    Returns:
        A figure with natural colours, saliency over a pale grey image, and the
        statistics given, each from 0 to the largest value found.

    Raises:
        TypeError: If *image* holds integers.
        ValueError: If *image* is not one image of these bands, *saliency* is not in
            [0, 1], or the grid of a map does not fit the image.
    """
    valid = _check_image(image, bands, nodata)
    if not bool(((saliency >= 0) & (saliency <= 1)).all()):
        raise ValueError(
            f'saliency: values from {saliency.min():.3g} to {saliency.max():.3g} are '
            'not in [0, 1]. Pass what PatchSaliency(...).saliency(image) returns.'
        )
    given = {'richness': richness, 'heterogeneity': heterogeneity}
    maps = {}
    for name, grid in {'saliency': saliency, **given}.items():
        if grid is not None:
            pixels = _to_pixels(grid.float(), valid, name)
            maps[name] = torch.where(valid, pixels, torch.nan).cpu().numpy()
    natural = _natural_colours(image.detach().float(), valid, bands, sensor)
    missing = not bool(valid.all())
    figure, axes = panel_grid(1 + len(maps), valid.shape, missing, bars=True)
    axes[0].imshow(natural)
    axes[0].set_title(image_title(bands, sensor), fontsize=10)
    known = valid.cpu().numpy()[..., None]
    # Light and of little contrast: dark ground must not look like low saliency.
    grey = (0.6 + 0.3 * natural.mean(axis=-1, keepdims=True)).repeat(3, axis=-1)
    axes[1].imshow(np.where(known, grey, natural))
    drawn = axes[1].imshow(
        maps.pop('saliency'), cmap='viridis', vmin=0, vmax=1, alpha=0.6
    )
    axes[1].set_title('Patch saliency', fontsize=10)
    colour_bar(axes[1], drawn)
    titles = {'richness': 'Semantic richness', 'heterogeneity': 'Heterogeneity'}
    for axis, (name, values) in zip(axes[2:], maps.items(), strict=True):
        draw_map(axis, values, 0, np.nan_to_num(values).max())
        axis.set_title(titles[name], fontsize=10)
    return figure


def plot_mask(
    image: Tensor,
    mask: Tensor | Mapping[str, Tensor],
    bands: Sequence[str],
    sensor: str | Sensor = SENTINEL2,
    nodata: float | None = 0.0,
) -> Figure:
    """Draw an image and what the encoder sees of it.

    Args:
        image: Reflectance ``(C, H, W)``, floating point.
        mask: Hidden pixels, boolean ``(H, W)``, or hidden patches ``(H / p, W / p)``;
            or several masks by the title of their panel, for example those at the start
            and at the end of a curriculum.
        bands: Names of the C bands.
        sensor: The sensor they belong to.
        nodata: As in :func:`plot_indices`.

    Returns:
        A figure with natural colours, then one panel a mask with hidden pixels in grey
        and their share written below, four panels a row.

    Raises:
        TypeError: If *image* holds integers, or a mask is not boolean.
        ValueError: If *image* is not one image of these bands, no mask is given, or the
            grid of a mask does not fit the image.
    """
    valid = _check_image(image, bands, nodata)
    masks = (
        dict(mask) if isinstance(mask, Mapping) else {'Visible to the encoder': mask}
    )
    if not masks:
        raise ValueError(
            "mask: none given. Pass a mask, or masks by title: {'Start': mask, ...}."
        )
    hidden = {}
    for title, one in masks.items():
        if one.dtype != torch.bool:
            raise TypeError(
                f'mask: expected a boolean tensor for {title!r}, got {one.dtype}. Pass '
                'mask.bool(), True where hidden.'
            )
        hidden[title] = _to_pixels(one, valid, f'mask: {title!r}').cpu().numpy()
    natural = _natural_colours(image.detach().float(), valid, bands, sensor)
    missing = not bool(valid.all())
    figure, axes = panel_grid(1 + len(hidden), valid.shape, missing, captions=True)
    axes[0].imshow(natural)
    axes[0].set_title(image_title(bands, sensor), fontsize=10)
    for axis, (title, pixels) in zip(axes[1:], hidden.items(), strict=True):
        axis.imshow(visible(natural, pixels))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f'{pixels.mean():.0%} masked', fontsize=8)
    return figure


def _check_image(image: Tensor, bands: Sequence[str], nodata: float | None) -> Tensor:
    """Refuse what is not one image of these bands; find its valid pixels ``(H, W)``."""
    if image.ndim != 3 or len(image) != len(bands):
        raise ValueError(
            f'image: expected ({len(bands)}, H, W), one image of the bands '
            f'{list(bands)}, got {tuple(image.shape)}. Pass one image of a batch, '
            'image[0], and name every channel in bands=, in order.'
        )
    if not image.numel():
        raise ValueError(
            f'image: {tuple(image.shape)} has no pixels. Pass at least one.'
        )
    require_float(image, 'image')
    return valid_pixels(image.detach(), nodata)


def _natural_colours(
    image: Tensor, valid: Tensor, bands: Sequence[str], sensor: str | Sensor
) -> np.ndarray:
    """Stretch reflectance ``(C, H, W)`` to colours ``(H, W, 3)``."""
    shown = torch.where(valid, image, torch.nan)[rgb_channels(bands, sensor)]
    values = shown.cpu().numpy()
    return colours(values, *stretch(values))


def _to_pixels(grid: Tensor, valid: Tensor, argument: str) -> Tensor:
    """Repeat the values of patches ``(H / p, W / p)`` over their pixels ``(H, W)``."""
    height, width = valid.shape
    side = height // max(len(grid), 1) if grid.ndim == 2 else 0
    if (len(grid) * side, grid.shape[-1] * side) != (height, width):
        raise ValueError(
            f'{argument}: a grid of {tuple(grid.shape)} does not fit an image of '
            f'{height} x {width} pixels. Pass one value a patch, (H / p, W / p), of '
            'this very image.'
        )
    pixels = grid.detach().to(valid.device)
    return pixels.repeat_interleave(side, 0).repeat_interleave(side, 1)


def draw_map(axis: Any, values: np.ndarray, low: float, high: float) -> None:
    """Draw values between two limits, with a colour bar; missing ones stand out.

    Args:
        axis: The matplotlib axes.
        values: What to draw, ``(H, W)``.
        low: Lower end of the colours.
        high: Upper end; diverging colours are centred on 0 where it lies between.
    """
    high = max(high, low + 1e-3)
    diverging = low < 0 < high
    drawn = axis.imshow(
        values,
        cmap=colormaps['BrBG' if diverging else 'viridis'].with_extremes(
            bad=NODATA_COLOUR
        ),
        norm=TwoSlopeNorm(0, low, high) if diverging else Normalize(low, high),
    )
    beyond = bool((values < low).any()), bool((values > high).any())
    extend = {(False, False): 'neither', (True, False): 'min', (False, True): 'max'}
    colour_bar(axis, drawn, extend.get(beyond, 'both'))
