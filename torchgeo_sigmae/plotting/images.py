# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of one image: its spectral indices, its saliency, its masks."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..patches import valid_values
from ..transforms import DEFAULT_INDICES, SpectralIndex, get_index
from ..transforms.indices import require_float
from ..transforms.saliency import masked_indices
from .canvas import (
    color_bar,
    colors,
    draw_map,
    image_title,
    panel_grid,
    rgb_channels,
    visible,
)

__all__ = ('plot_image', 'plot_indices', 'plot_mask', 'plot_saliency')


def plot_image(
    image: Tensor,
    bands: Sequence[str],
    title: str | None = None,
    suptitle: str | None = None,
) -> Figure:
    """Draw an image ``(C, H, W)`` in natural colors; NaN where data are missing.

    Each color is stretched from its 2nd to its 98th percentile. *title* is that of the
    panel, *suptitle* that of the figure.
    """
    shown = image.detach().cpu().float().numpy()[rgb_channels(bands)]
    missing = not bool(np.isfinite(shown).all())
    figure, (axis,) = panel_grid(1, shown.shape[1:], missing)
    axis.imshow(colors(shown))
    if title is not None:
        axis.set_title(title, fontsize=10)
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure


def plot_indices(
    image: Tensor,
    bands: Sequence[str],
    indices: Sequence[str | SpectralIndex] = DEFAULT_INDICES,
    scale: float = 1e-4,
    offset: float = 0.0,
    nodata: float | None = 0.0,
) -> Figure:
    """Draw an image and maps of its spectral indices.

    A color bar spans the index's ``value_range`` and is centered on 0 if the range lies
    on both sides of it; for an index without limits it spans the 2nd to the 98th
    percentile. The title shows the smallest and the largest value.

    Args:
        image: Raw values ``(C, H, W)``, floating point.
        bands: Names of the C bands.
        indices: Indices to draw.
        scale: Reflectance per unit of the image; 1e-4 for Sentinel-2 digital numbers,
            1 for reflectance.
        offset: Reflectance at 0.
        nodata: Pixels whose bands all equal this value are missing, as are those that
            are not finite; None if no value marks missing pixels.
    """
    valid = _check_image(image, bands, nodata)
    resolved = [get_index(index) for index in indices]
    if not resolved:
        raise ValueError(
            'indices: none given. Pass at least one, for example '
            f'{list(DEFAULT_INDICES)}.'
        )
    reflectance = image.detach().float() * scale + offset
    layers, counted = masked_indices(reflectance, bands, resolved, valid)
    figure, axes, _ = _start(reflectance, valid, bands, len(resolved), bars=True)
    layers = torch.where(counted, layers, torch.nan)
    for axis, index, layer in zip(axes, resolved, layers, strict=True):
        values = layer.cpu().numpy()
        finite = values[np.isfinite(values)]
        digits = '.2f' if all(map(math.isfinite, index.value_range)) else '.3g'
        # z: a small negative number must not read -0.00.
        spread = (
            f'{finite.min():z{digits}} to {finite.max():z{digits}}'
            if finite.size
            else 'no data'
        )
        typical = np.percentile(finite, (2, 98)) if finite.size else (0.0, 1.0)
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
    richness: Tensor | None = None,
    heterogeneity: Tensor | None = None,
    nodata: float | None = 0.0,
) -> Figure:
    """Draw an image and the saliency of its patches over a pale gray image.

    Args:
        image: Reflectance ``(C, H, W)``, floating point.
        saliency: Saliency in [0, 1], ``(H / p, W / p)``.
        bands: Names of the C bands.
        richness: Semantic richness ``(H / p, W / p)``, 0 or more; see
            :func:`~torchgeo_sigmae.transforms.patch_statistics`. None not to draw it.
        heterogeneity: Internal heterogeneity ``(H / p, W / p)``, 0 or more. None not to
            draw it.
        nodata: As in :func:`plot_indices`.
    """
    valid = _check_image(image, bands, nodata)
    if not bool(((saliency >= 0) & (saliency <= 1)).all()):
        raise ValueError(
            f'saliency: values from {saliency.min():.3g} to {saliency.max():.3g} are '
            'not in [0, 1]. Pass what PatchSaliency(...).saliency(image) returns.'
        )
    grids = {
        'saliency': saliency, 'richness': richness, 'heterogeneity': heterogeneity,
    }  # fmt: skip
    maps = {}
    for name, grid in grids.items():
        if grid is not None:
            pixels = _to_pixels(grid.float(), valid, name)
            maps[name] = torch.where(valid.any(dim=0), pixels, torch.nan).cpu().numpy()
    image = image.detach().float()
    figure, axes, natural = _start(image, valid, bands, len(maps), bars=True)
    # Light and of little contrast: dark ground must not look like low saliency.
    gray = (0.6 + 0.3 * natural.mean(axis=-1, keepdims=True)).repeat(3, axis=-1)
    axes[0].imshow(np.where(valid.any(dim=0).cpu().numpy()[..., None], gray, natural))
    drawn = axes[0].imshow(
        maps.pop('saliency'), cmap='viridis', vmin=0, vmax=1, alpha=0.6
    )
    axes[0].set_title('Patch saliency', fontsize=10)
    color_bar(axes[0], drawn)
    titles = {'richness': 'Semantic richness', 'heterogeneity': 'Heterogeneity'}
    for axis, (name, values) in zip(axes[1:], maps.items(), strict=True):
        draw_map(axis, values, 0, np.nan_to_num(values).max())
        axis.set_title(titles[name], fontsize=10)
    return figure


def plot_mask(
    image: Tensor,
    mask: Tensor | Mapping[str, Tensor],
    bands: Sequence[str],
    nodata: float | None = 0.0,
) -> Figure:
    """Draw an image and the part of it that the encoder sees; hidden pixels are gray.

    Args:
        image: Reflectance ``(C, H, W)``, floating point.
        mask: Hidden pixels, boolean ``(H, W)``, or hidden patches ``(H / p, W / p)``;
            or several masks by the title of their panel, for example those at the start
            and at the end of training.
        bands: Names of the C bands.
        nodata: As in :func:`plot_indices`.
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
    image = image.detach().float()
    figure, axes, natural = _start(image, valid, bands, len(hidden), captions=True)
    for axis, (title, pixels) in zip(axes, hidden.items(), strict=True):
        axis.imshow(visible(natural, pixels))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f'{pixels.mean():.0%} masked', fontsize=8)
    return figure


def _check_image(image: Tensor, bands: Sequence[str], nodata: float | None) -> Tensor:
    """Refuse what is not one image of these bands; find its valid values."""
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
    return valid_values(image.detach(), nodata)


def _start(
    image: Tensor,
    valid: Tensor,
    bands: Sequence[str],
    panels: int,
    **options: bool,
) -> tuple[Figure, list[Axes], np.ndarray]:
    """Start a figure with the image; return its further panels, and its colors."""
    natural = colors(
        torch.where(valid, image, torch.nan)[rgb_channels(bands)].cpu().numpy()
    )
    missing = not bool(valid.all())
    figure, axes = panel_grid(1 + panels, valid.shape[1:], missing, **options)
    axes[0].imshow(natural)
    axes[0].set_title(image_title(bands), fontsize=10)
    return figure, axes[1:], natural


def _to_pixels(grid: Tensor, valid: Tensor, argument: str) -> Tensor:
    """Repeat the values of patches ``(H / p, W / p)`` over their pixels ``(H, W)``."""
    height, width = valid.shape[-2:]
    side = height // max(len(grid), 1) if grid.ndim == 2 else 0
    if (len(grid) * side, grid.shape[-1] * side) != (height, width):
        raise ValueError(
            f'{argument}: a grid of {tuple(grid.shape)} does not fit an image of '
            f'{height} x {width} pixels. Pass one value per patch of this image, '
            '(H / p, W / p).'
        )
    pixels = grid.detach().to(valid.device)
    return pixels.repeat_interleave(side, 0).repeat_interleave(side, 1)
