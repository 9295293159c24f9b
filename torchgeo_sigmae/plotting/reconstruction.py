# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The figure of a reconstruction."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..bands import SENTINEL2, Sensor
from .canvas import (
    clear_ticks,
    colours,
    empty_figure,
    explain_nodata,
    image_title,
    rgb_channels,
    stretch,
    visible,
)

__all__ = ('plot_reconstruction',)


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
        mask: Hidden pixels, boolean ``(B, H, W)``; ``(B, C, H, W)`` where bands are
            hidden one by one: the picture then shows the colours that are left.
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
    titles = (
        image_title(bands, sensor),
        'Patch saliency',
        'Visible to the encoder',
        'Reconstruction' + (' (oracle statistics)' if oracle else ''),
    )
    figure = empty_figure(2.6 * len(titles) + 0.5, 2.6 * rows + 0.4)
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for row in range(rows):
        truth = image[row, channels].float().numpy()
        low, high = stretch(truth)
        hidden = mask[row].numpy().astype(bool)
        share = hidden.mean()
        if hidden.ndim == 3:
            hidden = np.moveaxis(hidden[channels], 0, -1)
        true_colours = colours(truth, low, high)
        found = colours(reconstruction[row, channels].float().numpy(), low, high)
        axes[row, 0].imshow(true_colours)
        height, width = hidden.shape[:2]
        heat = axes[row, 1].imshow(
            saliency[row].float().numpy(),
            cmap='viridis',
            vmin=0,
            vmax=1,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        axes[row, 2].imshow(visible(true_colours, hidden))
        axes[row, 2].set_xlabel(f'{share:.0%} masked', fontsize=8)
        axes[row, 3].imshow(found)
        for axis, title in zip(axes[row], titles, strict=True):
            clear_ticks(axis)
            if row == 0:
                axis.set_title(title, fontsize=10)
    figure.colorbar(heat, ax=axes[:, 1], fraction=0.05, pad=0.02)
    explain_nodata(figure, bool(torch.isnan(image[:rows]).any()))
    return figure
