# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Pictures of maps beside their scene."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
import torch
from affine import Affine
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from rasterio.windows import Window

from ..bands import BandSet
from ..datasets.band_files import opened
from ..datasets.scenes import RasterScene
from ..plotting import plot_saliency
from ..plotting.canvas import colors, draw_map, image_title, panel_grid, rgb_channels
from ..plotting.reconstruction import reconstruction_panels

__all__ = ('embedding_picture', 'reconstruction_picture', 'saliency_picture')

#: Largest side of an image in a picture, in pixels.
_SIDE = 1024


def saliency_picture(
    scene: RasterScene,
    path: str | Path,
    patch_size: int,
    regions: gpd.GeoDataFrame | None = None,
) -> Figure:
    """Draw a scene, its :func:`.saliency_map` and the outlines of salient regions."""
    with opened(str(path)) as file:
        step = math.ceil(max(file.shape) / _SIDE)
        layers = {
            name: torch.from_numpy(file.read(i)[::step, ::step])
            for i, name in enumerate(file.descriptions, 1)
            if name in ('richness', 'heterogeneity', 'saliency')
        }
    rows, columns = layers['saliency'].shape
    image, stride = _preview(scene, patch_size * step, rows, columns)
    figure = plot_saliency(
        torch.from_numpy(image),
        layers['saliency'].nan_to_num(0),
        scene.bands,
        layers['richness'],
        layers['heterogeneity'],
        nodata=None,
    )
    if regions is not None:
        # From coordinates to pixels of the picture, whose centers are whole numbers.
        to_picture = Affine.translation(-0.5, -0.5) @ Affine.scale(1 / stride)
        to_picture = to_picture @ ~scene.transform
        outlines = [
            np.stack(to_picture @ shapely.get_coordinates(ring).T, axis=1)
            for region in regions.geometry
            for ring in (region.exterior, *region.interiors)
        ]
        figure.axes[0].add_collection(LineCollection(outlines, colors='yellow', lw=0.8))
    _add_name(figure, scene)
    return figure


def embedding_picture(
    scene: RasterScene,
    path: str | Path,
    patch_size: int,
) -> Figure:
    """Draw a scene beside its :func:`.embedding_map` of three principal components."""
    with opened(str(path)) as file:
        step = math.ceil(max(file.shape) / _SIDE)
        components = file.read([1, 2, 3])[:, ::step, ::step]
        shares = file.tags().get('explained_variance', '').split()
    image, _ = _preview(scene, patch_size * step, *components.shape[1:])
    missing = not bool(np.isfinite(image).all())
    figure, axes = panel_grid(2, components.shape[1:], missing)
    axes[0].imshow(colors(image[rgb_channels(scene.bands)]))
    axes[0].set_title(image_title(scene.bands), fontsize=10)
    axes[1].imshow(colors(components))
    percent = ', '.join(f'{float(share):.0%}' for share in shares)
    axes[1].set_title(f'Embeddings ({percent})', fontsize=10)
    _add_name(figure, scene)
    return figure


def reconstruction_picture(
    scene: RasterScene,
    path: str | Path,
    bands: Sequence[str],
    scale: float = 1e-4,
    offset: float = 0.0,
) -> Figure:
    """Draw a scene, its visible part, its :func:`.reconstruction_map` and the error.

    *bands* are those of the map; *scale* and *offset* turn the scene's values into
    reflectance. Only the middle of large scenes is drawn.
    """
    with opened(str(path)) as file:
        side = [min(n, _SIDE) for n in file.shape]
        row, column = ((n - s) // 2 for n, s in zip(file.shape, side, strict=True))
        window = Window(column, row, side[1], side[0])
        layers = file.read(window=window)
    rebuilt, mask, error = layers[:-2], layers[-2], layers[-1]
    scene = replace(scene, unit=(scale, offset))
    image = scene.read(window)[BandSet.from_data(scene.bands).channels(bands)]
    panels = reconstruction_panels(
        image * scale + offset, rebuilt, mask > 0, rgb_channels(bands)
    )
    missing = not bool(np.isfinite(image).all())
    figure, axes = panel_grid(4, side, missing, bars=True)
    titles = (image_title(bands), 'Visible', 'Reconstruction')
    for axis, title, panel in zip(axes, titles, panels, strict=False):
        axis.imshow(panel)
        axis.set_title(title, fontsize=10)
    most = float(np.nanpercentile(error, 98)) if np.isfinite(error).any() else 0.0
    draw_map(axes[3], np.where(mask == 0, 0, error), 0, most)
    axes[3].set_title('RMSE, reflectance', fontsize=10)
    _add_name(figure, scene)
    return figure


def _preview(
    scene: RasterScene, cell: int, rows: int, columns: int
) -> tuple[np.ndarray, int]:
    """Read a scene ``(C, n * rows, n * columns)``, as large as a picture needs.

    Returns the image, NaN where the scene ends before its map of *rows* and *columns*
    of *cell* pixels, and the stride it was read at.
    """
    most = max(_SIDE // max(rows, columns), 1)
    per_cell = max(n for n in range(1, cell + 1) if cell % n == 0 and n <= most)
    stride = cell // per_cell
    values = scene.preview(stride)
    shape = len(values), rows * per_cell, columns * per_cell
    image = np.full(shape, np.nan, np.float32)
    image[:, : values.shape[1], : values.shape[2]] = values
    return image, stride


def _add_name(figure: Figure, scene: RasterScene) -> None:
    """Write the name of a scene above a figure, in as many lines as it takes."""
    letters = int(figure.get_figwidth() * 10)
    figure.suptitle(textwrap.fill(Path(scene.path).name, letters), fontsize=9)
