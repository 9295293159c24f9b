# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What the figures share: natural colours, missing pixels, a grid of panels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ..bands import SENTINEL2, Sensor, band_indices, get_sensor, normalize_bands

__all__ = ('rgb_channels',)

NODATA_COLOUR = '#d62ad0'

#: Brightness of what the encoder does not see.
HIDDEN_GREY = 0.35


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


def image_title(bands: Sequence[str], sensor: str | Sensor) -> str:
    """Name the channels that :func:`rgb_channels` shows.

    Args:
        bands: Names of the channels, in order.
        sensor: The sensor they belong to.

    Returns:
        The title of a panel, for example ``'Image (B04, B03, B02)'``.
    """
    shown = [
        get_sensor(sensor).band(bands[i]).name for i in rgb_channels(bands, sensor)
    ]
    return f'Image ({", ".join(dict.fromkeys(shown))})'


def stretch(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the range of values to show.

    Band by band, because the atmosphere brightens blue; never an empty range.

    Args:
        image: Reflectance ``(3, H, W)``, not finite where there is no data.

    Returns:
        2nd and 98th percentile of every band, each ``(3, 1, 1)``.
    """
    finite = np.where(np.isfinite(image), image, np.nan).reshape(len(image), -1)
    if np.isnan(finite).all():
        finite = np.zeros_like(finite)
    low, high = np.nanpercentile(finite, (2, 98), axis=1)[..., None, None]
    return low, np.maximum(high, low + 1e-2)


def colours(image: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Turn reflectance into colours; pixels without data stand out.

    Args:
        image: Reflectance ``(3, H, W)``, not finite where there is no data.
        low: What becomes 0, ``(3, 1, 1)``.
        high: What becomes 1, ``(3, 1, 1)``.

    Returns:
        Colours ``(H, W, 3)`` in [0, 1].
    """
    shown = np.clip((image - low) / (high - low), 0, 1).transpose(1, 2, 0)
    missing = ~np.isfinite(image).all(axis=0)
    return np.where(missing[..., None], to_rgb(NODATA_COLOUR), np.nan_to_num(shown))


def visible(shown: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Grey out what is masked.

    Args:
        shown: Colours ``(H, W, 3)``.
        hidden: Masked pixels, boolean ``(H, W)``, or colour by colour ``(H, W, 3)``.

    Returns:
        Colours ``(H, W, 3)``.
    """
    hidden = hidden if hidden.ndim == 3 else hidden[..., None]
    return np.where(hidden, HIDDEN_GREY, shown)


def empty_figure(width: float, height: float) -> Figure:
    """Start a figure that pyplot does not know of.

    Args:
        width: Width in inches.
        height: Height in inches.

    Returns:
        A figure that lays itself out.
    """
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.set_layout_engine('constrained')
    return figure


def panel_grid(
    count: int,
    shape: Sequence[int],
    missing: bool,
    bars: bool = False,
    captions: bool = False,
    columns: int = 4,
) -> tuple[Figure, list[Any]]:
    """Start a figure of image panels, row by row.

    Args:
        count: Number of panels.
        shape: Height and width of the images in pixels.
        missing: Whether any pixel has no data, which is then explained.
        bars: Whether all panels but the first have a colour bar at their right.
        captions: Whether panels have a line of text below.
        columns: Number of panels in a row at most.

    Returns:
        The figure and its *count* axes.
    """
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    # Panels as high as the image asks for, within reason, so that no gaps remain. The
    # first panel has no bar, which saves space only where nothing stands below it.
    height = 2.4 * min(max(shape[0] / shape[1], 0.4), 2.0)
    width = 2.4 * columns + 0.68 * bars * (columns - (rows == 1))
    height = (height + 0.28 + 0.15 * captions) * rows + 0.15 + 0.2 * missing
    figure = empty_figure(width, height)
    figure.set_layout_engine('compressed')
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        clear_ticks(axis)
    explain_nodata(figure, missing)
    return figure, axes[:count]


def colour_bar(axis: Any, drawn: Any, extend: str = 'neither') -> None:
    """Add a colour bar at the right of a panel, as high as the panel.

    Args:
        axis: The matplotlib axes.
        drawn: The image in it.
        extend: Ends of the bar beyond which values lie: ``'neither'``, ``'min'``,
            ``'max'`` or ``'both'``.
    """
    bar = axis.figure.colorbar(
        drawn, cax=axis.inset_axes((1.03, 0, 0.05, 1)), extend=extend
    )
    bar.ax.tick_params(labelsize=8)


def clear_ticks(axis: Any) -> None:
    """Leave out pixel coordinates, which say nothing about a place.

    Args:
        axis: A matplotlib axes.
    """
    axis.set_xticks([])
    axis.set_yticks([])


def explain_nodata(figure: Figure, missing: bool) -> None:
    """Write below the figure what magenta means.

    Args:
        figure: The figure.
        missing: Whether any pixel shown has no data.
    """
    if missing:
        figure.supxlabel('magenta: no data', fontsize=8)
