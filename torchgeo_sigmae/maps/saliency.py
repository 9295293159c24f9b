# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of spectral indices and patch saliency."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window

from ..bands import BandSet, Sensor, get_sensor
from ..datasets.band_files import UNIT
from ..datasets.scenes import RasterScene
from ..patches import valid_patches, valid_values
from ..transforms import (
    DEFAULT_INDICES,
    SpectralIndex,
    get_index,
    patch_statistics,
)
from ..transforms.saliency import (
    check_combination,
    index_moments,
    join_statistics,
    masked_indices,
)
from .windows import (
    Grid,
    Part,
    compute_windows,
    is_finished,
    map_key,
    patch_grid,
    patch_windows,
)
from .write import stored_layers, write_map

__all__ = (
    'Limits',
    'add_saliency',
    'check_ranked',
    'needed_bands',
    'patch_layers',
    'saliency_map',
)

#: Ranks need all patches at once; this many fit into memory.
_MOST_RANKED = 50_000_000

#: Smallest and largest richness, and heterogeneity.
Limits = tuple[tuple[float, float], tuple[float, float]]


def saliency_map(
    scene: RasterScene,
    target: str | Path,
    patch_size: int = 8,
    indices: Sequence[str | SpectralIndex] = DEFAULT_INDICES,
    alpha: float = 0.5,
    combine: str = 'minmax',
    window: int | None = None,
) -> None:
    """Map spectral indices and saliency of the patches of a scene of any size.

    The map equals :func:`~torchgeo_sigmae.transforms.patch_saliency` of the whole scene
    to the bit, for any window: richness and heterogeneity are scaled by their smallest
    and largest values in the scene, which a second pass over the patches uses. A map
    that exists already, of the same scene and settings, is left alone.

    Args:
        scene: The scene.
        target: The GeoTIFF to write. It has one cell per patch and these layers in
            float32: the mean of every index over the valid pixels of the patch,
            ``richness``, ``heterogeneity``, and ``saliency`` in [0, 1]. NaN where a
            patch has no valid pixel.
        patch_size: Side of a patch in pixels.
        indices: Spectral indices to use.
        alpha: Weight of richness against heterogeneity, in [0, 1].
        combine: ``'minmax'``, ``'rank'`` or ``'product'``, see
            :func:`~torchgeo_sigmae.transforms.patch_saliency`.
        window: Side of the windows that are read in pixels, a multiple of *patch_size*;
            None for about 1024.
    """
    check_combination(alpha, combine)
    target, resolved = Path(target), [get_index(index) for index in indices]
    if patch_size < 1:
        raise ValueError(f'patch_size: {patch_size} is not at least 1.')
    windows = patch_windows(scene, patch_size, window)
    grid = patch_grid(scene, patch_size)
    check_ranked(scene, grid, combine)
    formulas = [(index.name, index.formula, index.value_range) for index in resolved]
    key = map_key(
        scene, map='saliency', patch_size=patch_size, indices=formulas, alpha=alpha,
        combine=combine,
    )  # fmt: skip
    if is_finished(target, key):
        return

    names = [*(index.name for index in resolved), 'richness', 'heterogeneity']
    title = f'Saliency of {Path(scene.path).name}'
    parts = compute_windows(
        scene,
        windows,
        patch_size,
        lambda part: patch_layers(scene, part, patch_size, resolved),
        title,
    )
    tags = {'patch_size': str(patch_size), 'alpha': str(alpha), 'combine': combine}
    tags['made_from'] = key
    with stored_layers(target, parts, grid, len(names)) as stored:
        layers = _with_saliency(stored, grid, alpha, combine)
        write_map(target, layers, grid, [*names, 'saliency'], tags)


def check_ranked(scene: RasterScene, grid: Grid, combine: str) -> None:
    """Refuse to rank more patches than fit into memory."""
    if combine == 'rank' and grid.rows * grid.columns > _MOST_RANKED:
        raise ValueError(
            f"combine: 'rank' sorts all patches, and {scene.path} has {grid.rows} x "
            f"{grid.columns}. Use 'minmax', a larger patch_size or an area of interest."
        )


def patch_layers(
    scene: RasterScene,
    window: Window,
    patch_size: int,
    indices: Sequence[SpectralIndex],
) -> np.ndarray:
    """Index means, richness and heterogeneity of a window, ``(K + 2, h, w)``.

    NaN where a patch has no valid pixel.
    """
    image = torch.from_numpy(scene.read(window))
    valid = valid_values(image)
    layers, counted = masked_indices(image * UNIT, scene.bands, indices, valid)
    means, _ = index_moments(layers, patch_size, counted)
    patches = valid_patches(counted, patch_size)
    joint = torch.stack(patch_statistics(layers, patch_size, counted))
    return torch.cat(
        [
            means.where(patches, torch.nan),
            joint.where(patches.any(dim=0), torch.nan),
        ]
    ).numpy()


def add_saliency(
    layers: np.ndarray, alpha: float, combine: str, limits: Limits | None
) -> np.ndarray:
    """Append saliency to layers that end with richness and heterogeneity.

    *limits* are theirs in the scene; None if *layers* are all of it.
    """
    richness, heterogeneity = torch.from_numpy(layers[-2:]).nan_to_num(0)
    patches = torch.from_numpy(np.isfinite(layers[-1]))
    saliency = join_statistics(
        richness, heterogeneity, patches, alpha, combine, limits
    ).where(patches, torch.nan)
    return np.concatenate([layers, saliency.numpy()[None]])


def needed_bands(
    indices: Sequence[str | SpectralIndex], sensor: str | Sensor
) -> BandSet:
    """Bands that indices need, in the order of the sensor."""
    described = get_sensor(sensor)
    needed = [name for index in indices for name in get_index(index).bands]
    wanted = list(dict.fromkeys(described.band(name).name for name in needed))
    order = [band.name for band in described.bands if band.name in wanted]
    return BandSet(order or wanted, described)


def _with_saliency(
    stored: Callable[[], Iterator[Part]], grid: Grid, alpha: float, combine: str
) -> Iterator[Part]:
    """Append saliency to layers that end with richness and heterogeneity."""
    limits = None
    if combine == 'rank':
        parts: Iterator[Part] = iter([_joined(stored(), grid)])
    else:
        parts, limits = stored(), _limits(stored())
    for cells, values in parts:
        yield cells, add_saliency(values, alpha, combine, limits)


def _joined(parts: Iterator[Part], grid: Grid) -> Part:
    """All windows as one."""
    cells, values = next(parts)
    whole = np.empty((len(values), grid.rows, grid.columns), np.float32)
    whole[:, *cells.toslices()] = values
    for cells, values in parts:
        whole[:, *cells.toslices()] = values
    return Window(0, 0, grid.columns, grid.rows), whole


def _limits(parts: Iterator[Part]) -> Limits:
    """Smallest and largest richness, and heterogeneity."""
    low, high = np.full(2, np.inf, np.float32), np.full(2, -np.inf, np.float32)
    for _, values in parts:
        statistics = values[-2:].reshape(2, -1)
        low = np.fmin(low, np.fmin.reduce(statistics, axis=1))
        high = np.fmax(high, np.fmax.reduce(statistics, axis=1))
    (r_low, h_low), (r_high, h_high) = low.tolist(), high.tolist()
    return (r_low, r_high), (h_low, h_high)
