# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The figure of reconstructions at several mask ratios."""

from collections.abc import Mapping, Sequence

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

__all__ = ('plot_mask_ratios',)


def plot_mask_ratios(
    predictions: Mapping[float, Mapping[str, Tensor]],
    bands: Sequence[str],
    sensor: str | Sensor = SENTINEL2,
    oracle: bool = False,
    max_images: int = 3,
) -> Figure:
    """Draw images, what was left of them, and the reconstruction, ratio by ratio.

    In the manner of the figure in S2MAE's slides.

    Args:
        predictions: What ``SIGMAETask.reconstruct`` makes of the same images, by mask
            ratio: ``'image'``, ``'reconstruction'`` and ``'mask'``.
        bands: Names of the bands.
        sensor: The sensor they belong to.
        oracle: Whether the reconstructions used the hidden patches' own mean and
            standard deviation; the figure then says so.
        max_images: Number of images to draw at most.

    Returns:
        A figure, two rows an image (what was visible, and the reconstruction). Colours
        are stretched from the 2nd to the 98th percentile of the image.
    """
    first = next(iter(predictions.values()))
    rows, columns = min(len(first['image']), max_images), 1 + len(predictions)
    channels = rgb_channels(bands, sensor)
    figure = empty_figure(1.9 * columns, 3.8 * rows + 0.4)
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for row in range(rows):
        truth = first['image'][row, channels].float().numpy()
        low, high = stretch(truth)
        shown = colours(truth, low, high)
        above, below = axes[2 * row], axes[2 * row + 1]
        above[0].imshow(shown)
        below[0].set_axis_off()
        for column, (ratio, prediction) in enumerate(predictions.items(), start=1):
            hidden = prediction['mask'][row].bool()
            hidden = hidden[channels].movedim(0, -1) if hidden.ndim == 3 else hidden
            above[column].imshow(visible(shown, hidden.numpy()))
            found = prediction['reconstruction'][row, channels].float().numpy()
            below[column].imshow(colours(found, low, high))
            if row == 0:
                above[column].set_title(f'{ratio:.0%} masked', fontsize=10)
        above[1].set_ylabel('visible', fontsize=8)
        below[1].set_ylabel('reconstruction', fontsize=8)
        for axis in (*above, *below):
            clear_ticks(axis)
    axes[0, 0].set_title(image_title(bands, sensor), fontsize=10)
    if oracle:
        axes[1, 0].text(
            0.5, 0.5, 'Hidden patches keep\ntheir own mean and\nstandard deviation\n'
            '(norm_pix_loss).', ha='center', va='center', fontsize=8,
            transform=axes[1, 0].transAxes,
        )  # fmt: skip
    missing = torch.isnan(first['image'][:rows]).any()
    explain_nodata(figure, bool(missing))
    return figure
