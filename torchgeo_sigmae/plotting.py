# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from .bands import SENTINEL2, Sensor, band_indices, get_sensor, normalize_bands

__all__ = ('plot_reconstruction', 'rgb_channels')

_NODATA_COLOUR = '#d62ad0'


def rgb_channels(bands: Sequence[str], sensor: str | Sensor = SENTINEL2) -> list[int]:
    """Choose the channels to show as red, green and blue.

    Args:
        bands: Names of the channels, in order.
        sensor: The sensor they belong to.

    Returns:
        Positions of red, green and blue where all three are there, else those of the
        first three bands (the first band alone where there are fewer).
    """
    names = normalize_bands(bands, sensor)
    try:
        return band_indices(('red', 'green', 'blue'), names, sensor)
    except ValueError:
        return [0, 1, 2] if len(names) >= 3 else [0, 0, 0]


def plot_reconstruction(
    image: Tensor,
    reconstruction: Tensor,
    mask: Tensor,
    saliency: Tensor,
    bands: Sequence[str],
    sensor: str | Sensor = SENTINEL2,
    oracle: bool = False,
    max_images: int = 4,
) -> Figure:
    """Draw images, their saliency, what was masked, and the reconstruction.

    Args:
        image: Reflectance ``(B, C, H, W)``; NaN where there is no data.
        reconstruction: Reflectance, same shape.
        mask: Hidden pixels, boolean ``(B, H, W)``.
        saliency: Saliency in [0, 1], ``(B, H / p, W / p)``.
        bands: Names of the C bands.
        sensor: The sensor they belong to.
        oracle: Whether the reconstruction used the hidden patches' own mean and
            standard deviation; the figure then says so.
        max_images: Number of images to draw at most.

    Returns:
        A figure, one row an image. Every colour is stretched from the 2nd to the
        98th percentile of the image, alike for image and reconstruction.
    """
    rows = min(len(image), max_images)
    channels = rgb_channels(bands, sensor)
    shown = [get_sensor(sensor).band(bands[i]).name for i in channels]
    titles = (
        f'Image ({", ".join(dict.fromkeys(shown))})',
        'Patch saliency',
        'Visible to the encoder',
        'Reconstruction' + (' (oracle statistics)' if oracle else ''),
    )
    figure = Figure(figsize=(2.6 * len(titles) + 0.5, 2.6 * rows + 0.4))
    FigureCanvasAgg(figure)
    figure.set_layout_engine('constrained')
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for row in range(rows):
        truth = image[row, channels].float().numpy()
        low, high = _stretch(truth)
        hidden = mask[row].numpy().astype(bool)
        true_colours = _colours(truth, low, high)
        visible = np.where(hidden[..., None], 0.35, true_colours)
        found = _colours(reconstruction[row, channels].float().numpy(), low, high)
        axes[row, 0].imshow(true_colours)
        height, width = hidden.shape
        heat = axes[row, 1].imshow(
            saliency[row].float().numpy(),
            cmap='viridis',
            vmin=0,
            vmax=1,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        axes[row, 2].imshow(visible)
        axes[row, 2].set_xlabel(f'{hidden.mean():.0%} masked', fontsize=8)
        axes[row, 3].imshow(found)
        for axis, title in zip(axes[row], titles, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=10)
    figure.colorbar(heat, ax=axes[:, 1], fraction=0.05, pad=0.02)
    if bool(torch.isnan(image[:rows]).any()):
        figure.supxlabel('magenta: no data', fontsize=8)
    return figure


def _stretch(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2nd and 98th percentile of every band of ``(3, H, W)``, as ``(3, 1, 1)``.

    Band by band, because the atmosphere brightens blue; never an empty range.
    """
    finite = np.where(np.isfinite(image), image, np.nan).reshape(len(image), -1)
    if np.isnan(finite).all():
        finite = np.zeros_like(finite)
    low, high = np.nanpercentile(finite, (2, 98), axis=1)[..., None, None]
    return low, np.maximum(high, low + 1e-2)


def _colours(image: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Stretch ``(3, H, W)`` to colours ``(H, W, 3)``; pixels without data stand out."""
    colours = np.clip((image - low) / (high - low), 0, 1).transpose(1, 2, 0)
    missing = ~np.isfinite(image).all(axis=0)
    return np.where(missing[..., None], to_rgb(_NODATA_COLOUR), np.nan_to_num(colours))
