# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Reconstructions of whole scenes."""

from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window

from ..masking.masks import check_mask_ratio
from ..tasks import SIGMAETask
from .geotiff import write_map
from .parts import Parts, fingerprint
from .raster import Raster

__all__ = ('reconstruction_map',)


def reconstruction_map(
    raster: Raster,
    target: str | Path,
    task: SIGMAETask,
    mask_ratio: float | None = None,
    size: int = 64,
    batch_size: int = 64,
    window: int | None = None,
) -> None:
    """Mask an image of any size, and map what a model makes of it.

    The image is cut into chips side by side. The place of a chip alone decides what is
    hidden, at random, so that models can be compared, and whatever the windows by which
    the image is read. Chips that hang over the right or lower edge hide what is missing
    first, and so less of the image. Interrupted, the same call goes on where it was;
    finished, it does nothing.

    Args:
        raster: The image, in the bands of the task's data.
        target: The GeoTIFF to be, on the grid of the image: every band of the model in
            reflectance, hidden patches predicted and the others as they are; ``mask``,
            the share of bands that was hidden; ``error``, the root mean squared error
            of the hidden bands in reflectance, NaN where none was. NaN where there is
            no data. With ``norm_pix_loss`` hidden patches borrow their own mean and
            standard deviation, and the error is smaller than it would be.
        task: The pretrained task.
        mask_ratio: Share of masked tokens in (0, 1); None for that of training.
        size: Side of the chips in pixels, best that of pretraining.
        batch_size: Chips at a time.
        window: Side of the windows in pixels, a multiple of *size*; None for about
            1024.

    Raises:
        OSError: If the image cannot be read or the map not be written.
        ValueError: If an argument is out of range, the bands are not the task's, or no
            pixel is valid.
    """
    target, wanted = Path(target), tuple(task.statistics.data_bands)
    if raster.bands != wanted:
        raise ValueError(
            f'raster: its bands are {raster.bands}, the task was trained on {wanted}. '
            'Open it with those.'
        )
    if size < 1 or size % task.model.patch_size:
        raise ValueError(
            f'size: {size} is not a multiple of the {task.model.patch_size} pixels of '
            'a patch.'
        )
    # The ratio is checked before the first window is read.
    if mask_ratio is not None:
        check_mask_ratio(mask_ratio)
    task = task.eval()
    _, columns, _ = raster.grid(size)
    settings = {
        'map': 'reconstruction',
        'model': task.hparams['model'],
        'weights': fingerprint(task.model),
        'mask_ratio': mask_ratio,
    }
    parts = Parts(target, raster, size, window, settings)
    if parts.finished:
        return

    def reconstruct(place: Window) -> np.ndarray:
        image = torch.from_numpy(raster.read(place))
        grid = [n // size for n in image.shape[1:]]
        chips = image.unfold(1, size, size).unfold(2, size, size)
        chips = chips.permute(1, 2, 0, 3, 4).flatten(0, 1)
        row, column = place.row_off // size, place.col_off // size
        numbers = torch.arange(row, row + grid[0])[:, None] * columns
        numbers = (numbers + torch.arange(column, column + grid[1])).flatten()
        found = torch.cat(
            [
                _layers(task.reconstruct(x, mask_ratio, n))
                for x, n in zip(
                    chips.split(batch_size), numbers.split(batch_size), strict=True
                )
            ]
        )
        # (h * w, D, size, size) to (D, H, W).
        found = found.unflatten(0, grid).permute(2, 0, 3, 1, 4)
        layers: np.ndarray = found.flatten(3, 4).flatten(1, 2).numpy()
        return layers

    parts.compute(reconstruct, f'Reconstruction of {Path(raster.name).name}')
    results = (
        _cut(cells, found, size, raster.height, raster.width) for cells, found in parts
    )
    tags = {'model': task.hparams['model'], 'mask_ratio': str(mask_ratio)}
    tags['made_from'] = parts.key
    if task.hparams['norm_pix_loss']:
        tags['oracle'] = 'hidden patches borrowed their own mean and std'
    shape, names = (raster.height, raster.width), [*task.bands, 'mask', 'error']
    write_map(target, results, shape, raster.transform, raster.crs, names, tags)
    parts.remove()


def _layers(prediction: dict[str, torch.Tensor]) -> torch.Tensor:
    """Reconstruction, mask and error of chips, ``(B, C + 2, H, W)``."""
    image, found, hidden = (
        prediction[name].float().cpu() for name in ('image', 'reconstruction', 'mask')
    )
    hidden = hidden if hidden.ndim == 4 else hidden[:, None].expand_as(image)
    counted = (hidden > 0) & image.isfinite() & found.isfinite()
    squared = torch.where(counted, (found - image).square(), 0).sum(1, keepdim=True)
    error = (squared / counted.sum(1, keepdim=True)).sqrt()
    known = found.isfinite().any(1, keepdim=True)
    mask = hidden.mean(1, keepdim=True).where(known, torch.nan)
    return torch.cat([found, mask, error], dim=1)


def _cut(
    cells: Window, found: np.ndarray, size: int, height: int, width: int
) -> tuple[Window, np.ndarray]:
    """A window of chips in pixels, without what lies beyond the image."""
    column, row = cells.col_off * size, cells.row_off * size
    found = found[:, : height - row, : width - column]
    return Window(column, row, found.shape[2], found.shape[1]), found
