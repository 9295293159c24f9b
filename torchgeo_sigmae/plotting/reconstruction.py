# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of reconstructions: beside the saliency, and at several mask ratios."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .canvas import (
    clear_ticks,
    colors,
    empty_figure,
    explain_nodata,
    image_title,
    rgb_channels,
    stretch,
    visible,
)

__all__ = ('plot_mask_ratios', 'plot_reconstruction')


def reconstruction_panels(
    image: Tensor | np.ndarray,
    reconstruction: Tensor | np.ndarray,
    mask: Tensor | np.ndarray,
    channels: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colors ``(H, W, 3)`` of an image, its visible part and its reconstruction.

    All are stretched alike, from the 2nd to the 98th percentile of every color of the
    image. *channels* are red, green and blue; the rest as in
    :func:`plot_reconstruction`, for one image.
    """
    image, reconstruction, mask = (
        np.asarray(x.float() if isinstance(x, Tensor) else x)
        for x in (image, reconstruction, mask)
    )
    limits = stretch(image[channels])
    shown = colors(image[channels], limits)
    hidden = mask.astype(bool)
    if hidden.ndim == 3:
        hidden = np.moveaxis(hidden[channels], 0, -1)
    return shown, visible(shown, hidden), colors(reconstruction[channels], limits)


def plot_reconstruction(
    image: Tensor,
    reconstruction: Tensor,
    mask: Tensor,
    saliency: Tensor,
    bands: Sequence[str],
    oracle: bool = False,
    max_images: int = 4,
) -> Figure:
    """Draw images, their saliency, what was visible, and the reconstruction.

    Args:
        image: Reflectance ``(B, C, H, W)``; NaN where data are missing.
        reconstruction: Reflectance, same shape.
        mask: Hidden pixels, boolean ``(B, H, W)``; ``(B, C, H, W)`` if bands are hidden
            one by one: the colors that are visible are then shown.
        saliency: Saliency in [0, 1], ``(B, H / p, W / p)``.
        bands: Names of the C bands.
        oracle: Whether the reconstruction used the hidden patches' true mean and
            standard deviation; the figure then says so.
        max_images: Largest number of images to draw, one a row.
    """
    rows = min(len(image), max_images)
    channels = rgb_channels(bands)
    titles = (
        image_title(bands),
        'Patch saliency',
        'Visible to the encoder',
        'Reconstruction' + (' (oracle statistics)' if oracle else ''),
    )
    panels: list[list[np.ndarray | None]] = []
    for row in range(rows):
        natural, seen, rebuilt = reconstruction_panels(
            image[row], reconstruction[row], mask[row], channels
        )
        panels.append([natural, None, seen, rebuilt])
    figure, axes = _grid(panels, titles, (2.6 * len(titles) + 0.5, 2.6 * rows + 0.4))
    height, width = image.shape[-2:]
    for row in range(rows):
        heat = axes[row, 1].imshow(
            saliency[row].float().numpy(),
            cmap='viridis',
            vmin=0,
            vmax=1,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        share = mask[row].bool().float().mean()
        axes[row, 2].set_xlabel(f'{share:.0%} masked', fontsize=8)
    figure.colorbar(heat, ax=axes[:, 1], fraction=0.05, pad=0.02)
    explain_nodata(figure, bool(torch.isnan(image[:rows]).any()))
    return figure


def plot_mask_ratios(
    predictions: Mapping[float, Mapping[str, Tensor]],
    bands: Sequence[str],
    oracle: bool = False,
    max_images: int = 3,
) -> Figure:
    """Draw images, their visible part and the reconstruction at several mask ratios.

    After the figure in S2MAE's slides: two rows per image. *predictions* are results of
    ``SIGMAETask.reconstruct`` for the same images, by mask ratio. The rest is as in
    :func:`plot_reconstruction`.
    """
    images = next(iter(predictions.values()))['image']
    rows = min(len(images), max_images)
    channels = rgb_channels(bands)
    panels: list[list[np.ndarray | None]] = []
    for row in range(rows):
        drawn = [
            reconstruction_panels(
                images[row], one['reconstruction'][row], one['mask'][row], channels
            )
            for one in predictions.values()
        ]
        panels.append([drawn[0][0], *(seen for _, seen, _ in drawn)])
        panels.append([None, *(rebuilt for *_, rebuilt in drawn)])
    titles = [image_title(bands), *(f'{r:.0%} masked' for r in predictions)]
    figure, axes = _grid(panels, titles, (1.9 * len(titles), 3.8 * rows + 0.4))
    for row in range(rows):
        axes[2 * row, 1].set_ylabel('visible', fontsize=8)
        axes[2 * row + 1, 1].set_ylabel('reconstruction', fontsize=8)
        axes[2 * row + 1, 0].set_axis_off()
    notes = []
    if torch.isnan(images[:rows]).any():
        notes.append('magenta: no data')
    if oracle:
        notes.append('hidden patches keep their true mean and standard deviation')
    figure.supxlabel('; '.join(notes), fontsize=8)
    return figure


def _grid(
    panels: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[str],
    inches: tuple[float, float],
) -> tuple[Figure, np.ndarray]:
    """Draw colors ``(H, W, 3)`` row by row, below titles; None leaves a panel empty."""
    figure = empty_figure(*inches)
    axes: np.ndarray = figure.subplots(len(panels), len(titles), squeeze=False)
    for axis, panel in zip(axes.flat, chain(*panels), strict=True):
        clear_ticks(axis)
        if panel is not None:
            axis.imshow(panel)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    return figure, axes
