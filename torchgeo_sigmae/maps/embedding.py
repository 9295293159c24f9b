# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of patch embeddings."""

from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window
from sklearn.decomposition import IncrementalPCA

from ..evaluation import FrozenEncoder
from ..patches import valid_patches, valid_pixels
from .geoparquet import require_pyarrow, write_geoparquet
from .geotiff import write_map
from .parts import Parts, fingerprint
from .raster import Raster

__all__ = ('embedding_map', 'patch_side')

#: Chips of an image by which the encoder learns what places do to embeddings.
_SAMPLE = 64


def embedding_map(
    raster: Raster,
    target: str | Path,
    encoder: FrozenEncoder,
    size: int = 64,
    pca: int | None = None,
    batch_size: int = 64,
    window: int | None = None,
) -> None:
    """Map the embeddings of the patches of an image of any size.

    The encoder sees chips that overlap by half. A patch is in up to four of them, and
    its embedding is the mean of theirs, weighted by a squared Hann window: a chip
    counts most for the patches in its middle, whose surroundings it shows, and no
    border between chips remains. Chips lie on one grid, whatever the windows by which
    the image is read. The encoder sees missing pixels as the mean of pretraining.

    Features of a transformer tell where in the chip a patch is, most of all in the last
    blocks. That has no meaning on a map and is taken away, see
    :meth:`.FrozenEncoder.remove_position_bias`.

    Interrupted, the same call goes on where it was; finished, it does nothing.

    Args:
        raster: The image, in the encoder's bands.
        target: The GeoTIFF to be, with a cell a patch, and a layer a feature in
            float32, or with *pca* a layer a component; NaN where a patch has no valid
            pixel. Where its name ends in ``.parquet``, a GeoParquet with a row for
            every patch that has one: footprint, ``row``, ``column``, ``embedding``.
        encoder: The encoder; it learns what places are in this image.
        size: Side of the chips in pixels, best that of pretraining.
        pca: Number of principal components to map; None for the features themselves.
        batch_size: Chips at a time.
        window: Side of the windows in pixels, a multiple of the patch size; None for
            about 1024.

    Raises:
        ImportError: If a GeoParquet is asked for without pyarrow.
        OSError: If the image cannot be read or the map not be written.
        ValueError: If an argument is out of range, the bands are not the encoder's, it
            does not know how to normalise them or has no patches, or no pixel is valid.
    """
    target, patch = Path(target), patch_side(encoder)
    if target.suffix == '.parquet':
        require_pyarrow()
    _check(raster, encoder, size, patch, pca)
    rows, columns, transform = raster.grid(patch)
    settings = {
        'map': 'embedding',
        'encoder': encoder.name,
        'depth': encoder.depth,
        'weights': fingerprint(encoder.encoder),
        'size': size,
        'pca': pca,
    }
    parts = Parts(target, raster, patch, window, settings)
    if parts.finished:
        return
    side = size // patch
    sample = _sample(raster, *(min(side, n) * patch for n in (rows, columns)))
    encoder.position_bias = None
    if len(sample):
        encoder.remove_position_bias(sample, batch_size=batch_size)
    parts.compute(
        lambda place: _embed(raster, place, encoder, side, patch, batch_size),
        f'Embeddings of {Path(raster.name).name}',
    )
    tags = {'encoder': encoder.name, 'patch_size': str(patch), 'made_from': parts.key}
    reduce = None
    names = [f'feature {i}' for i in range(len(next(iter(parts))[1]))]
    if pca is not None:
        if pca > len(names):
            raise ValueError(f'pca: {pca} is more than the {len(names)} features.')
        reduce = _fit(parts, pca)
        names = [f'component {i}' for i in range(1, pca + 1)]
        shares = reduce.explained_variance_ratio_
        tags['explained_variance'] = ' '.join(f'{share:.4f}' for share in shares)
    results = ((cells, _reduced(found, reduce)) for cells, found in parts)
    if target.suffix == '.parquet':
        write_geoparquet(target, results, transform, raster.crs, tags)
    else:
        shape = (rows, columns)
        write_map(target, results, shape, transform, raster.crs, names, tags)
    parts.remove()


def patch_side(encoder: FrozenEncoder) -> int:
    """Find the side of the patches of an encoder.

    Args:
        encoder: The encoder.

    Returns:
        The side in pixels of the image.

    Raises:
        ValueError: If it does not cut images into square patches.
    """
    embed = getattr(encoder.encoder, 'patch_embed', None)
    sides = {*getattr(embed, 'patch_size', ())}
    if len(sides) != 1 or encoder.scale != 1:
        raise ValueError(
            f'weights: {encoder.name} does not cut images into square patches as they '
            'are. Pass a vision transformer, without scale.'
        )
    return int(sides.pop())


def _check(
    raster: Raster, encoder: FrozenEncoder, size: int, patch: int, pca: int | None
) -> None:
    """Refuse what :func:`embedding_map` cannot work with."""
    if raster.bands != tuple(encoder.bands):
        raise ValueError(
            f'raster: its bands are {raster.bands}, {encoder.name} takes '
            f'{tuple(encoder.bands)}. Open it with those.'
        )
    if not encoder.ready:
        raise ValueError(
            f'weights: {encoder.name} does not tell mean and std of its bands. Pass '
            'what SIGMAETask.export wrote, or a weight enum.'
        )
    if size < 2 * patch or size % (2 * patch):
        raise ValueError(
            f'size: {size} is not a multiple of {2 * patch}, two patches: chips '
            'overlap by half.'
        )
    if pca is not None and pca < 1:
        raise ValueError(f'pca: {pca} is not at least 1.')


def _sample(raster: Raster, high: int, wide: int) -> torch.Tensor:
    """Chips of an image from anywhere in it, those without a valid pixel left out."""
    generator = torch.Generator().manual_seed(0)
    chips = []
    for _ in range(_SAMPLE):
        row, column = (
            int(torch.randint(max(length - side, 0) + 1, (), generator=generator))
            for length, side in ((raster.height, high), (raster.width, wide))
        )
        chip = torch.from_numpy(raster.read(Window(column, row, wide, high)))
        if valid_pixels(chip, nodata=None).any():
            chips.append(chip)
    return torch.stack(chips) if chips else torch.empty(0)


def _embed(
    raster: Raster,
    window: Window,
    encoder: FrozenEncoder,
    side: int,
    patch: int,
    batch_size: int,
) -> np.ndarray:
    """Embeddings of the patches of a window, ``(D, h, w)``; chips of *side* patches."""
    left, top, width, height = (int(n) // patch for n in window.flatten())
    rows, columns, _ = raster.grid(patch)
    high, wide = min(side, rows), min(side, columns)
    tops = [n for n in _starts(rows, high) if n + high > top and n < top + height]
    lefts = [n for n in _starts(columns, wide) if n + wide > left and n < left + width]
    first, shape = (tops[0], lefts[0]), (tops[-1] + high, lefts[-1] + wide)
    shape = (shape[0] - first[0], shape[1] - first[1])
    seen = [n * patch for n in (first[1], first[0], shape[1], shape[0])]
    image = torch.from_numpy(raster.read(Window(*seen)))
    weight = torch.outer(_hann(high), _hann(wide))
    places = [(row - first[0], column - first[1]) for row in tops for column in lefts]
    cuts = [
        (slice(row, row + high), slice(column, column + wide)) for row, column in places
    ]
    device = next(encoder.encoder.parameters()).device
    total, weights = torch.zeros(()), torch.zeros(shape)
    for start in range(0, len(cuts), batch_size):
        batch = cuts[start : start + batch_size]
        chips = [image[:, _pixels(r, patch), _pixels(c, patch)] for r, c in batch]
        found = encoder.maps(torch.stack(chips).to(device)).float().cpu()
        if not total.ndim:
            total = torch.zeros(found.shape[1], *shape)
        for (r, c), chip in zip(batch, found, strict=True):
            total[:, r, c] += chip * weight
            weights[r, c] += weight
    held = valid_patches(valid_pixels(image, nodata=None), patch)
    mean = (total / weights).where(held, torch.nan)
    row, column = top - first[0], left - first[1]
    return mean[:, row : row + height, column : column + width].numpy()


def _starts(count: int, side: int) -> list[int]:
    """Where chips of *side* patches start that cover *count* patches."""
    return sorted({*range(0, count - side + 1, max(side // 2, 1)), count - side})


def _pixels(cells: slice, patch: int) -> slice:
    """Patches as pixels."""
    return slice(cells.start * patch, cells.stop * patch)


def _hann(count: int) -> torch.Tensor:
    """Weights of the patches of a chip: most in the middle, nowhere 0.

    Squared, which leaves no border between chips that could be measured: by less, steps
    at the border are larger than others, by more, those in the middle.
    """
    return torch.hann_window(count + 2, periodic=False)[1:-1] ** 2


def _fit(parts: Parts, count: int) -> IncrementalPCA:
    """Find the principal components of all patches."""
    reduce, waiting = IncrementalPCA(count), np.empty((0, 0))
    for _, found in parts:
        values = found.reshape(len(found), -1).T
        values = values[np.isfinite(values).all(axis=1)]
        waiting = np.concatenate([waiting.reshape(-1, len(found)), values])
        if len(waiting) >= count:
            reduce.partial_fit(waiting)
            waiting = waiting[:0]
    if not hasattr(reduce, 'components_'):
        raise ValueError(f'pca: {count} is more than the {len(waiting)} valid patches.')
    return reduce


def _reduced(found: np.ndarray, reduce: IncrementalPCA | None) -> np.ndarray:
    """Principal components of embeddings ``(D, h, w)``."""
    if reduce is None:
        return found
    values = found.reshape(len(found), -1).T
    result = np.full((len(values), reduce.n_components_), np.nan, np.float32)
    known = np.isfinite(values).all(axis=1)
    if known.any():
        result[known] = reduce.transform(values[known])
    return result.T.reshape(-1, *found.shape[1:])
