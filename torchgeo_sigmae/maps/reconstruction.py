# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of reconstructions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window

from ..bands import BandSet
from ..datasets.scenes import RasterScene
from ..masking.masks import check_mask_ratio
from ..tasks import SIGMAETask
from .windows import (
    Grid,
    Part,
    compute_windows,
    is_finished,
    map_key,
    patch_grid,
    patch_windows,
    weights_hash,
)
from .write import write_map

__all__ = ('check_task', 'reconstruct_window', 'reconstruction_map')


def reconstruction_map(
    scene: RasterScene,
    target: str | Path,
    task: SIGMAETask,
    mask_ratio: float | None = None,
    size: int = 64,
    batch_size: int = 64,
    window: int | None = None,
) -> None:
    """Mask a scene of any size, and map the reconstruction of a model.

    The scene is cut into chips side by side. The position of a chip alone decides which
    patches are hidden, at random: models can be compared, and the window does not
    matter. Chips that extend over the right or lower edge hide missing patches first,
    and therefore less of the scene. A map that exists already, of the same scene and
    settings, is left alone.

    Args:
        scene: The scene, in the bands of the task's data.
        target: The GeoTIFF to write, on the grid of the scene: every band of the model
            in reflectance, hidden patches predicted and the others unchanged; ``mask``,
            the share of bands that were hidden; ``error``, the root mean squared error
            of the hidden bands in reflectance, NaN where none was. NaN where data are
            missing. With ``norm_pix_loss`` hidden patches use their true mean and
            standard deviation, which makes the error smaller.
        task: The pretrained task.
        mask_ratio: Share of masked tokens in (0, 1); None for that of training.
        size: Side of the chips in pixels, best that of pretraining.
        batch_size: Number of chips that are reconstructed at a time.
        window: Side of the windows that are read in pixels, a multiple of *size*; None
            for about 1024.
    """
    target = Path(target)
    scene = replace(scene, unit=(task.statistics.scale, task.statistics.offset))
    check_task(scene, task, mask_ratio, size)
    windows = patch_windows(scene, size, window)
    model = task.hparams['model']
    key = map_key(
        scene, map='reconstruction', model=model, weights=weights_hash(task.model),
        mask_ratio=mask_ratio, size=size,
    )  # fmt: skip
    if is_finished(target, key):
        return
    task.eval()
    columns = patch_grid(scene, size).columns
    parts = compute_windows(
        scene,
        windows,
        size,
        lambda part: reconstruct_window(
            task, scene.read(part), part, columns, mask_ratio, size, batch_size
        ),
        f'Reconstruction of {Path(scene.path).name}',
    )
    tags = {'model': model, 'mask_ratio': str(mask_ratio), 'made_from': key}
    if task.hparams['norm_pix_loss']:
        tags['oracle'] = 'hidden patches use their true mean and standard deviation'
    grid = patch_grid(scene, 1)
    parts = (_in_pixels(*part, size, grid) for part in parts)
    write_map(target, parts, grid, [*task.bands, 'mask', 'error'], tags)


def check_task(
    scene: RasterScene, task: SIGMAETask, mask_ratio: float | None, size: int
) -> None:
    """Refuse arguments that :func:`reconstruction_map` cannot use."""
    bands = BandSet.from_data(task.statistics.data_bands, task.bands.sensor)
    if scene.bands != bands:
        raise ValueError(
            f'scene: its bands are {list(scene.bands)}, the task was trained on '
            f'{list(bands)}. '
            'Open it with those.'
        )
    if size < 1 or size % task.model.patch_size:
        raise ValueError(
            f'size: {size} is not a multiple of the {task.model.patch_size} pixels of '
            'a patch.'
        )
    if mask_ratio is not None:
        check_mask_ratio(mask_ratio)


def reconstruct_window(
    task: SIGMAETask,
    image: np.ndarray,
    window: Window,
    columns: int,
    mask_ratio: float | None,
    size: int,
    batch_size: int,
) -> np.ndarray:
    """Reconstruction, mask and error of a window ``(C, H, W)``, ``(C + 2, H, W)``."""
    rows, cols = (n // size for n in image.shape[1:])
    chips = (
        torch.from_numpy(image).unflatten(2, (cols, size)).unflatten(1, (rows, size))
    )
    # (C, rows, size, cols, size) to (rows * cols, C, size, size).
    chips = chips.permute(1, 3, 0, 2, 4).flatten(0, 1)
    row, column = window.row_off // size, window.col_off // size
    indices = torch.arange(row, row + rows)[:, None] * columns
    indices = (indices + torch.arange(column, column + cols)).flatten()
    layers = torch.cat(
        [
            _layers(task.reconstruct(batch, mask_ratio, batch_indices))
            for batch, batch_indices in zip(
                chips.split(batch_size), indices.split(batch_size), strict=True
            )
        ]
    )
    layers = layers.unflatten(0, (rows, cols)).permute(2, 0, 3, 1, 4)
    return layers.flatten(3, 4).flatten(1, 2).numpy()


def _layers(prediction: dict[str, torch.Tensor]) -> torch.Tensor:
    """Reconstruction, mask and error of chips, ``(B, C + 2, H, W)``."""
    image, rebuilt, hidden = (
        prediction[name].float().cpu() for name in ('image', 'reconstruction', 'mask')
    )
    hidden = hidden if hidden.ndim == 4 else hidden[:, None].expand_as(image)
    counted = (hidden > 0) & image.isfinite() & rebuilt.isfinite()
    squared = torch.where(counted, (rebuilt - image).square(), 0).sum(1, keepdim=True)
    error = (squared / counted.sum(1, keepdim=True)).sqrt()
    valid = rebuilt.isfinite().any(1, keepdim=True)
    mask = hidden.mean(1, keepdim=True).where(valid, torch.nan)
    return torch.cat([rebuilt, mask, error], dim=1)


def _in_pixels(cells: Window, values: np.ndarray, size: int, grid: Grid) -> Part:
    """A window of chips in pixels, without what lies beyond the scene."""
    column, row = cells.col_off * size, cells.row_off * size
    values = values[:, : grid.rows - row, : grid.columns - column]
    return Window(column, row, values.shape[2], values.shape[1]), values
