# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Pictures of maps beside the image they are of."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
import torch
from affine import Affine
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from rasterio.windows import Window

from ..bands import SENTINEL2, Sensor, band_indices
from ..datasets.scenes import opened
from ..plotting import plot_saliency
from ..plotting.canvas import colors, draw_map, image_title, panel_grid, rgb_channels
from ..plotting.reconstruction import reconstruction_panels
from .raster import Raster

__all__ = ('embedding_picture', 'reconstruction_picture', 'saliency_picture')

#: Longer side of an image in a picture, in pixels, at most.
_SIDE = 1024


def saliency_picture(
    raster: Raster,
    path: str | Path,
    patch_size: int,
    regions: gpd.GeoDataFrame | None = None,
    sensor: str | Sensor = SENTINEL2,
) -> Figure:
    """Draw an image, its saliency map and the outlines of salient regions.

    Args:
        raster: The image, with the bands to be shown.
        path: Its map, made by :func:`~torchgeo_sigmae.maps.saliency_map`.
        patch_size: Side of a patch in pixels.
        regions: What :func:`~torchgeo_sigmae.maps.salient_regions` found, or None.
        sensor: The sensor the bands belong to.

    Returns:
        A figure; large images are shown smaller.
    """
    with opened(str(path)) as file:
        step = math.ceil(max(file.shape) / _SIDE)
        layers = {
            name: torch.from_numpy(file.read(i)[::step, ::step])
            for i, name in enumerate(file.descriptions, 1)
            if name in ('richness', 'heterogeneity', 'saliency')
        }
    rows, columns = layers['saliency'].shape
    image, stride = shown_image(raster, patch_size * step, rows, columns)
    figure = plot_saliency(
        image,
        layers['saliency'].nan_to_num(0),
        raster.bands,
        sensor,
        layers['richness'],
        layers['heterogeneity'],
        nodata=None,
    )
    if regions is not None:
        # From coordinates to pixels of the picture, whose centres are whole numbers.
        backward = Affine.translation(-0.5, -0.5) @ Affine.scale(1 / stride)
        backward = backward @ ~raster.transform
        outlines = [
            np.stack(backward @ shapely.get_coordinates(ring).T, axis=1)
            for region in regions.geometry
            for ring in (region.exterior, *region.interiors)
        ]
        figure.axes[0].add_collection(LineCollection(outlines, colors='yellow', lw=0.8))
    _name(figure, raster)
    return figure


def embedding_picture(
    raster: Raster,
    path: str | Path,
    patch_size: int,
    sensor: str | Sensor = SENTINEL2,
) -> Figure:
    """Draw an image beside three principal components of its embeddings.

    Args:
        raster: The image.
        path: Its map, made by :func:`~torchgeo_sigmae.maps.embedding_map` with
            ``pca=3``.
        patch_size: Side of a patch in pixels.
        sensor: The sensor its bands belong to.

    Returns:
        A figure; large images are shown smaller.
    """
    with opened(str(path)) as file:
        step = math.ceil(max(file.shape) / _SIDE)
        values = file.read([1, 2, 3])[:, ::step, ::step]
        shares = file.tags().get('explained_variance', '').split()
    image, _ = shown_image(raster, patch_size * step, *values.shape[1:])
    channels = rgb_channels(raster.bands, sensor)
    missing = not bool(image.isfinite().all())
    figure, axes = panel_grid(2, values.shape[1:], missing)
    axes[0].imshow(colors(image[channels].numpy()))
    axes[0].set_title(image_title(raster.bands, sensor), fontsize=10)
    axes[1].imshow(colors(values))
    known = ', '.join(f'{float(share):.0%}' for share in shares)
    axes[1].set_title(f'Embeddings ({known})', fontsize=10)
    _name(figure, raster)
    return figure


def reconstruction_picture(
    raster: Raster,
    path: str | Path,
    bands: Sequence[str],
    sensor: str | Sensor = SENTINEL2,
    scale: float = 1e-4,
    offset: float = 0.0,
) -> Figure:
    """Draw an image, what of it was visible, its reconstruction and the error.

    Args:
        raster: The image.
        path: Its map, made by :func:`~torchgeo_sigmae.maps.reconstruction_map`.
        bands: Bands of the map.
        sensor: The sensor they belong to.
        scale: Reflectance per unit of the image.
        offset: Reflectance at 0.

    Returns:
        A figure; of large images the middle.
    """
    with opened(str(path)) as file:
        side = [min(n, _SIDE) for n in file.shape]
        row, column = ((n - s) // 2 for n, s in zip(file.shape, side, strict=True))
        window = Window(column, row, side[1], side[0])
        found = file.read(window=window)
    rebuilt, mask, error = found[:-2], found[-2], found[-1]
    image = raster.read(window)[band_indices(bands, raster.bands, sensor)]
    panels = reconstruction_panels(
        image * scale + offset, rebuilt, mask > 0, rgb_channels(bands, sensor)
    )
    missing = not bool(np.isfinite(image).all())
    figure, axes = panel_grid(4, side, missing, bars=True)
    titles = (image_title(bands, sensor), 'Visible', 'Reconstruction')
    for axis, title, panel in zip(axes, titles, panels, strict=False):
        axis.imshow(panel)
        axis.set_title(title, fontsize=10)
    most = float(np.nanpercentile(error, 98)) if np.isfinite(error).any() else 0.0
    draw_map(axes[3], np.where(mask == 0, 0, error), 0, most)
    axes[3].set_title('RMSE, reflectance', fontsize=10)
    _name(figure, raster)
    return figure


def shown_image(
    raster: Raster, side: int, rows: int, columns: int
) -> tuple[torch.Tensor, int]:
    """Read an image as large as a picture of it needs.

    Args:
        raster: The image.
        side: Side of a cell of its map in pixels.
        rows: Rows of the map.
        columns: Columns of the map.

    Returns:
        The image ``(C, n * rows, n * columns)``, NaN where it ends before its map does,
        and the stride it was read at.
    """
    most = max(_SIDE // max(rows, columns), 1)
    stride = side // max(n for n in range(1, side + 1) if side % n == 0 and n <= most)
    found = torch.from_numpy(raster.overview(stride))
    image = found.new_full(
        (len(found), *(n * side // stride for n in (rows, columns))), torch.nan
    )
    image[:, : found.shape[1], : found.shape[2]] = found
    return image, stride


def _name(figure: Figure, raster: Raster) -> None:
    """Write the name of an image above a figure, in as many lines as it takes."""
    letters = int(figure.get_figwidth() * 10)
    figure.suptitle(textwrap.fill(Path(raster.name).name, letters), fontsize=9)
