# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Shared by the figures: natural colors, missing pixels, a grid of panels."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm, to_rgb
from matplotlib.figure import Figure

from ..bands import BandSet

__all__ = ('rgb_channels',)

NODATA_COLOR = '#d62ad0'

#: Brightness of what the encoder does not see.
HIDDEN_GRAY = 0.35

#: Lower and upper end of the values to show, each ``(3, 1, 1)``.
Limits = tuple[np.ndarray, np.ndarray]


def rgb_channels(bands: Sequence[str]) -> list[int]:
    """Choose the channels to show as red, green and blue.

    Those of the first three bands if one of them is missing; the first band three times
    if there are fewer.
    """
    names = BandSet(bands)
    try:
        return names.channels(('red', 'green', 'blue'))
    except ValueError:
        return [0, 1, 2] if len(names) >= 3 else [0, 0, 0]


def image_title(bands: Sequence[str]) -> str:
    """Title of a panel of :func:`rgb_channels`, such as 'Image (B04, B03, B02)'."""
    names = BandSet(bands)
    shown = [names[i] for i in rgb_channels(names)]
    return f'Image ({", ".join(dict.fromkeys(shown))})'


def stretch(image: np.ndarray) -> Limits:
    """2nd and 98th percentile of every band of ``(3, H, W)``; never an empty range.

    Band by band, because the atmosphere brightens blue.
    """
    finite = np.where(np.isfinite(image), image, np.nan).reshape(len(image), -1)
    if np.isnan(finite).all():
        finite = np.zeros_like(finite)
    low, high = np.nanpercentile(finite, (2, 98), axis=1)[..., None, None]
    return low, np.maximum(high, low + 1e-2)


def colors(image: np.ndarray, limits: Limits | None = None) -> np.ndarray:
    """Turn reflectance ``(3, H, W)`` into colors ``(H, W, 3)`` in [0, 1].

    Missing pixels, which are not finite, become magenta. *limits* are the values that
    become 0 and 1; None for those of :func:`stretch`.
    """
    low, high = stretch(image) if limits is None else limits
    shown = np.clip((image - low) / (high - low), 0, 1).transpose(1, 2, 0)
    missing = ~np.isfinite(image).all(axis=0)
    return np.where(missing[..., None], to_rgb(NODATA_COLOR), np.nan_to_num(shown))


def visible(shown: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Gray out the hidden pixels, boolean ``(H, W)`` or ``(H, W, 3)``, of colors."""
    hidden = hidden if hidden.ndim == 3 else hidden[..., None]
    return np.where(hidden, HIDDEN_GRAY, shown)


def empty_figure(width: float, height: float) -> Figure:
    """Start a figure of so many inches that pyplot does not manage."""
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
) -> tuple[Figure, list[Axes]]:
    """Start a figure of *count* image panels, row by row; return it with its axes.

    *shape* is the height and width of the images in pixels. *missing* explains magenta.
    *bars* leaves space for a color bar at the right of all panels but the first,
    *captions* for a line of text below each.
    """
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    # Panels as high as the image asks for, within reason, to leave no gaps. The first
    # panel has no bar, which saves space only if nothing stands below it.
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


def draw_map(axis: Axes, values: np.ndarray, low: float, high: float) -> None:
    """Draw values ``(H, W)`` with a color bar; missing ones are magenta.

    Diverging colors are centered on 0 if it lies between *low* and *high*.
    """
    high = max(high, low + 1e-3)
    diverging = low < 0 < high
    drawn = axis.imshow(
        values,
        cmap=colormaps['BrBG' if diverging else 'viridis'].with_extremes(
            bad=NODATA_COLOR
        ),
        norm=TwoSlopeNorm(0, low, high) if diverging else Normalize(low, high),
    )
    beyond = bool((values < low).any()), bool((values > high).any())
    extend = {(False, False): 'neither', (True, False): 'min', (False, True): 'max'}
    color_bar(axis, drawn, extend.get(beyond, 'both'))


def color_bar(axis: Axes, drawn: ScalarMappable, extend: str = 'neither') -> None:
    """Add a color bar at the right of a panel, as high as the panel."""
    bar = axis.figure.colorbar(
        drawn, cax=axis.inset_axes((1.03, 0, 0.05, 1)), extend=extend
    )
    bar.ax.tick_params(labelsize=8)


def clear_ticks(axis: Axes) -> None:
    """Leave out pixel coordinates."""
    axis.set_xticks([])
    axis.set_yticks([])


def explain_nodata(figure: Figure, missing: bool) -> None:
    """Explain magenta below the figure, if data are missing in any pixel."""
    if missing:
        figure.supxlabel('magenta: no data', fontsize=8)
