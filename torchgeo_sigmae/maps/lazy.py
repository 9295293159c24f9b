# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of xarray objects, lazily on Dask arrays.

Needs ``pip install 'torchgeo-sigmae[xarray]'``.

Convention: *data* is what ``odc.stac.load`` returns, a Dataset with one variable per
band, or what ``stackstac`` and ``rioxarray`` return, a DataArray with a dimension
``band`` whose coordinate holds names or common names (``'B04'``, ``'red'``). Its CRS is
where rioxarray, odc or stackstac put it. All other dimensions, for example time, are
kept: every image is a scene of its own.

The maps are those of :func:`~torchgeo_sigmae.maps.saliency_map`,
:func:`~torchgeo_sigmae.maps.embedding_map` and
:func:`~torchgeo_sigmae.maps.reconstruction_map`: saliency to the bit, the others to
rounding. Images without a valid pixel become NaN. Dask arrays stay lazy, with one task
per window for the map, and the encoder is a task of its own: a cluster sends it once to
each worker. Arrays in memory are mapped at once.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry
from torch import Tensor, nn

try:
    import dask.array
    import rioxarray  # noqa: F401
    import xarray
except ImportError as error:
    raise ImportError(
        'torchgeo_sigmae.maps.lazy needs xarray, Dask and rioxarray: '
        'pip install "torchgeo-sigmae[xarray]".'
    ) from error

from ..bands import BandSet, Sensor
from ..evaluation import FrozenEncoder
from ..tasks import SIGMAETask
from ..transforms import DEFAULT_INDICES, SpectralIndex, get_index
from ..transforms.saliency import check_combination
from .arrays import ArrayScene, LazyScene, check_values, read_windows
from .embedding import (
    check_chips,
    chip_sample,
    copy_encoder,
    count_features,
    embed_window,
    encoder_patch_size,
    fit_encoder,
)
from .reconstruction import check_task, reconstruct_window
from .saliency import Limits, add_saliency, check_ranked, needed_bands, patch_layers
from .windows import patch_grid

__all__ = ('embed', 'reconstruct', 'saliency')


def saliency(
    data: xarray.DataArray | xarray.Dataset,
    patch_size: int = 8,
    indices: Sequence[str | SpectralIndex] = DEFAULT_INDICES,
    alpha: float = 0.5,
    combine: str = 'minmax',
    *,
    sensor: str | Sensor = 'sentinel2',
    nodata: float | None = None,
    scale: float | None = None,
    offset: float | None = None,
    aoi: str | Path | BaseGeometry | None = None,
    window: int | None = None,
) -> xarray.DataArray:
    """Map spectral indices and saliency of patches.

    Args:
        data: Images in the bands that the indices need, and any others.
        patch_size: Side of a patch in pixels.
        indices: Spectral indices to use.
        alpha: Weight of richness against heterogeneity, in [0, 1].
        combine: ``'minmax'``, ``'rank'`` or ``'product'``, see
            :func:`~torchgeo_sigmae.transforms.patch_saliency`.
        sensor: The sensor of the bands.
        nodata: Value of missing values; None for that of *data*, or else 0. With 0,
            pixels are missing where all bands that are used are 0.
        scale: Reflectance per unit: reflectance = value x scale + offset. None for the
            attributes ``scale_factor`` and ``add_offset``, or else 1e-4.
        offset: Reflectance at 0; None as *scale*, or else 0.
        aoi: Area of interest: a file of polygons in any system, or a geometry in that
            of *data*. The map is that of the part around it, where pixels outside are
            missing.
        window: Side in pixels of the windows that become tasks, a multiple of
            *patch_size*; None for about 1024. The map does not depend on it.

    Returns:
        The map ``(..., band, y, x)`` in float32, one cell per patch. Its bands: the
        mean of every index, ``richness``, ``heterogeneity``, and ``saliency`` in
        [0, 1]. NaN where a patch has no valid pixel.

    Raises:
        ValueError: If *data* has no band names, or lacks a band or the system that
            *aoi* needs, its chunks are smaller than a patch, or another argument is out
            of range.

    Warns:
        UserWarning: While it is computed, if the values are no plausible reflectance.
    """
    check_combination(alpha, combine)
    if patch_size < 1:
        raise ValueError(f'patch_size: {patch_size} is not at least 1.')
    resolved = [get_index(index) for index in indices]
    lazy = LazyScene.open(
        data, needed_bands(resolved, sensor), patch_size, nodata, scale, offset, aoi
    )
    check_ranked(lazy.scene, patch_grid(lazy.scene, patch_size), combine)
    count = len(resolved) + 2
    compute = partial(patch_layers, patch_size=patch_size, indices=resolved)
    maps = []
    for image in lazy.images():
        layers = lazy.map_windows(image, compute, (), count, patch_size, window)
        ends = None
        if combine == 'rank':
            layers = layers.rechunk(-1)
        else:
            # Not through a task of its own, which would compute the layers again.
            joint = layers[-2:]
            missing = dask.array.isnan(joint)
            low = dask.array.where(missing, np.float32(np.inf), joint).min((1, 2))
            high = dask.array.where(missing, np.float32(-np.inf), joint).max((1, 2))
            ends = dask.array.stack([low, high]).rechunk(-1)
        maps.append(
            dask.array.map_blocks(
                _add_saliency,
                layers,
                ends,
                lazy.checked(image),
                alpha=alpha,
                combine=combine,
                dtype=np.float32,
                meta=np.empty((0, 0, 0), np.float32),
                chunks=((count + 1,), *layers.chunks[1:]),
            )
        )
    names = [*(index.name for index in resolved), 'richness', 'heterogeneity']
    return lazy.wrap(
        maps,
        'saliency',
        [*names, 'saliency'],
        patch_size,
        {'patch_size': patch_size, 'alpha': alpha, 'combine': combine},
    )


def embed(
    data: xarray.DataArray | xarray.Dataset,
    encoder: FrozenEncoder,
    size: int = 64,
    batch_size: int = 64,
    *,
    nodata: float | None = None,
    scale: float | None = None,
    offset: float | None = None,
    aoi: str | Path | BaseGeometry | None = None,
    window: int | None = None,
) -> xarray.DataArray:
    """Map the embeddings of patches.

    The position bias of the encoder, and mean and std of the bands if its weights have
    none, are estimated from 64 chips of every image, when it is computed.

    Args:
        data: Images in the encoder's bands, and any others.
        encoder: The encoder.
        size: Side of the chips in pixels, best that of pretraining.
        batch_size: Number of chips that are encoded at a time.
        nodata: As in :func:`saliency`.
        scale: As in :func:`saliency`.
        offset: As in :func:`saliency`.
        aoi: As in :func:`saliency`.
        window: Side in pixels of the windows that become tasks, a multiple of the patch
            size and at least *size*; None for about 1024.

    Returns:
        The map ``(..., band, y, x)`` in float32, one cell per patch, and one band per
        feature. NaN where a patch has no valid pixel.

    Raises:
        ValueError: As in :func:`saliency`, or if the encoder has no patches.

    Warns:
        UserWarning: While it is computed, if the values are no plausible reflectance.
    """
    patch = encoder_patch_size(encoder)
    lazy = LazyScene.open(
        data, encoder.bands, patch, nodata, scale, offset, aoi, encoder.unit
    )
    check_chips(lazy.scene, encoder, size, patch, None)
    grid, side = patch_grid(lazy.scene, patch), size // patch
    encoder = copy_encoder(encoder)
    count = count_features(encoder, grid, side, patch)
    chips = chip_sample(lazy.scene, grid, side, patch)
    node = dask.delayed(encoder, traverse=False)
    compute = partial(
        _embed, side=side, patch=patch, batch_size=batch_size, count=count
    )
    maps = []
    for image in lazy.images():
        fitted = dask.delayed(_fit)(
            lazy.node, lazy.sample(image, chips), chips, node, batch_size
        )
        maps.append(
            lazy.map_windows(
                image, compute, (node, fitted), count, patch, window, halo=size
            )
        )
    return lazy.wrap(
        maps,
        'embedding',
        [f'feature {i}' for i in range(count)],
        patch,
        {'encoder': encoder.name, 'patch_size': patch},
    )


def reconstruct(
    data: xarray.DataArray | xarray.Dataset,
    task: SIGMAETask,
    mask_ratio: float | None = None,
    size: int = 64,
    batch_size: int = 64,
    *,
    nodata: float | None = None,
    scale: float | None = None,
    offset: float | None = None,
    aoi: str | Path | BaseGeometry | None = None,
    window: int | None = None,
) -> xarray.DataArray:
    """Mask images, and map their reconstruction.

    Args:
        data: Images in the bands of the task's data, and any others.
        task: The pretrained task.
        mask_ratio: Share of masked tokens in (0, 1); None for that of training.
        size: Side of the chips in pixels, best that of pretraining.
        batch_size: Number of chips that are reconstructed at a time.
        nodata: As in :func:`saliency`.
        scale: As in :func:`saliency`.
        offset: As in :func:`saliency`.
        aoi: As in :func:`saliency`.
        window: Side in pixels of the windows that become tasks, a multiple of *size*;
            None for about 1024.

    Returns:
        The map ``(..., band, y, x)`` in float32, on the grid of *data*. Its bands:
        those of the model in reflectance, ``mask`` and ``error``, see
        :func:`~torchgeo_sigmae.maps.reconstruction_map`.

    Raises:
        ValueError: As in :func:`saliency`.

    Warns:
        UserWarning: While it is computed, if the values are no plausible reflectance.
    """
    statistics = task.statistics
    lazy = LazyScene.open(
        data,
        BandSet.from_data(statistics.data_bands, task.bands.sensor),
        task.model.patch_size,
        nodata,
        scale,
        offset,
        aoi,
        (statistics.scale, statistics.offset),
        size,
    )
    check_task(lazy.scene, task, mask_ratio, size)
    names = [*task.bands, 'mask', 'error']
    node = dask.delayed(task.eval(), traverse=False)
    compute = partial(
        _reconstruct, mask_ratio=mask_ratio, size=size, batch_size=batch_size
    )
    maps = [
        lazy.map_windows(
            image,
            compute,
            (node, lazy.checked(image)),
            len(names),
            size,
            window,
            in_pixels=True,
        )
        for image in lazy.images()
    ]
    attributes = {
        'model': task.hparams['model'],
        'mask_ratio': mask_ratio or 'training',
    }
    return lazy.wrap(maps, 'reconstruction', names, 1, attributes)


def _add_saliency(
    layers: np.ndarray,
    ends: np.ndarray | None,
    _checked: None,
    alpha: float,
    combine: str,
) -> np.ndarray:
    """Append saliency to a block; *ends* are the limits of the whole image."""
    limits: Limits | None = None
    if ends is not None:
        (r_low, h_low), (r_high, h_high) = ends.tolist()
        limits = (r_low, r_high), (h_low, h_high)
    return add_saliency(layers, alpha, combine, limits)


def _fit(
    scene: ArrayScene,
    blocks: Sequence[np.ndarray],
    windows: Sequence[Window],
    encoder: FrozenEncoder,
    batch_size: int,
) -> tuple[nn.Module | None, Tensor | None]:
    """Normalization and position bias of an image."""
    chips = list(read_windows(scene, blocks, windows))
    check_values(scene, chips)
    # Other threads use the encoder.
    fitted = copy_encoder(encoder)
    fit_encoder(fitted, chips, batch_size)
    return fitted.transform, fitted.position_bias


def _embed(
    scene: ArrayScene,
    window: Window,
    encoder: FrozenEncoder,
    fitted: tuple[nn.Module | None, Tensor | None],
    side: int,
    patch: int,
    batch_size: int,
    count: int,
) -> np.ndarray:
    """Embeddings of a window."""
    encoder = copy_encoder(encoder)
    encoder.transform, encoder.position_bias = fitted
    return embed_window(scene, window, encoder, side, patch, batch_size, count)


def _reconstruct(
    scene: ArrayScene,
    window: Window,
    task: SIGMAETask,
    _checked: None,
    mask_ratio: float | None,
    size: int,
    batch_size: int,
) -> np.ndarray:
    """Reconstruction of a window, without what lies beyond the scene."""
    columns = patch_grid(scene, size).columns
    image = scene.read(window)
    layers = reconstruct_window(
        task, image, window, columns, mask_ratio, size, batch_size
    )
    column, row = int(window.col_off), int(window.row_off)
    return layers[:, : scene.height - row, : scene.width - column]
