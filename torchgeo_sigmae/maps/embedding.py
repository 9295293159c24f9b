# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of patch embeddings."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from rasterio.windows import Window
from sklearn.decomposition import IncrementalPCA

from ..datasets.scenes import RasterScene
from ..evaluation import FrozenEncoder
from ..patches import valid_patches, valid_values
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
from .write import require_pyarrow, stored_layers, write_geoparquet, write_map

__all__ = (
    'check_chips',
    'chip_sample',
    'copy_encoder',
    'count_features',
    'embed_window',
    'embedding_map',
    'encoder_patch_size',
    'fit_encoder',
)

#: Chips of a scene from which the position bias of the encoder is estimated.
_SAMPLE = 64


def embedding_map(
    scene: RasterScene,
    target: str | Path,
    encoder: FrozenEncoder,
    size: int = 64,
    pca: int | None = None,
    batch_size: int = 64,
    window: int | None = None,
) -> None:
    """Map the embeddings of the patches of a scene of any size.

    The encoder sees chips that overlap by half. A patch is in up to four of them, and
    its embedding is the mean of theirs, weighted by a squared Hann window: a chip
    counts most for the patches in its middle, and no border between chips remains.
    Chips lie on one grid, for any window. The encoder sees missing pixels as the mean
    of pretraining.

    Features of a transformer depend on the position of the patch in the chip, most of
    all in the last blocks. Positions in chips mean nothing on a map, so this part is
    removed, see :meth:`.FrozenEncoder.remove_position_bias`.

    Weights without mean and std, such as those for another sensor, get those of
    the scene. A GeoTIFF that exists already, of the same scene and settings, is left
    alone.

    Args:
        scene: The scene, in the encoder's bands.
        target: The GeoTIFF to write. It has one cell per patch, and one layer in
            float32 per feature, or with *pca* per component; NaN where a patch has no
            valid pixel. If its name ends in ``.parquet``, a GeoParquet with one row per
            patch that has a valid pixel: footprint, ``row``, ``column``,
            ``embedding``.
        encoder: The encoder; its position bias becomes that of this scene.
        size: Side of the chips in pixels, best that of pretraining.
        pca: Number of principal components to map; None for the features themselves.
        batch_size: Number of chips that are encoded at a time.
        window: Side of the windows that are read in pixels, a multiple of the patch
            size; None for about 1024.
    """
    target, patch = Path(target), encoder_patch_size(encoder)
    scene = replace(scene, unit=encoder.unit)
    if target.suffix == '.parquet':
        require_pyarrow()
    check_chips(scene, encoder, size, patch, pca)
    windows = patch_windows(scene, patch, window)
    grid = patch_grid(scene, patch)
    key = map_key(
        scene, map='embedding', encoder=encoder.name, depth=encoder.depth, size=size,
        weights=weights_hash(encoder.encoder), pca=pca,
    )  # fmt: skip
    if is_finished(target, key):
        return
    side = size // patch
    encoder.position_bias = None
    count = count_features(encoder, grid, side, patch)
    if pca is not None and pca > count:
        raise ValueError(f'pca: {pca} is more than the {count} features.')
    if encoder.transform is None:
        rank_zero_info(
            f'{encoder.name} has no mean and std of its bands: the map uses those of '
            f'{Path(scene.path).name}.'
        )
        encoder = copy_encoder(encoder)
    chips = (scene.read(part) for part in chip_sample(scene, grid, side, patch))
    fit_encoder(encoder, chips, batch_size)
    parts = compute_windows(
        scene,
        windows,
        patch,
        lambda part: embed_window(scene, part, encoder, side, patch, batch_size, count),
        f'Embeddings of {Path(scene.path).name}',
    )
    tags = {'encoder': encoder.name, 'patch_size': str(patch), 'made_from': key}
    names = [f'feature {i}' for i in range(count)]
    with stored_layers(target, parts, grid, count) as stored:
        layers = stored()
        if pca is not None:
            reducer = _fit(stored(), pca)
            layers = _reduced(layers, reducer)
            names = [f'component {i}' for i in range(1, pca + 1)]
            shares = reducer.explained_variance_ratio_
            tags['explained_variance'] = ' '.join(f'{share:.4f}' for share in shares)
        if target.suffix == '.parquet':
            write_geoparquet(target, layers, grid, tags)
        else:
            write_map(target, layers, grid, names, tags)


def encoder_patch_size(encoder: FrozenEncoder) -> int:
    """Side in pixels of the patches of an encoder, which must be square."""
    embed = getattr(encoder.encoder, 'patch_embed', None)
    sides = {*getattr(embed, 'patch_size', ())}
    if len(sides) != 1 or encoder.magnification != 1:
        raise ValueError(
            f'weights: {encoder.name} does not cut images into square patches of their '
            'own resolution. Pass a vision transformer, without magnification.'
        )
    return int(sides.pop())


def check_chips(
    scene: RasterScene, encoder: FrozenEncoder, size: int, patch: int, pca: int | None
) -> None:
    """Refuse arguments that :func:`embedding_map` cannot use."""
    if scene.bands != encoder.bands:
        raise ValueError(
            f'scene: its bands are {list(scene.bands)}, {encoder.name} '
            f'takes {list(encoder.bands)}. Open it with those.'
        )
    if size < 2 * patch or size % (2 * patch):
        raise ValueError(
            f'size: {size} is not a multiple of {2 * patch}, two patches: chips '
            'overlap by half.'
        )
    if pca is not None and pca < 1:
        raise ValueError(f'pca: {pca} is not at least 1.')


def _device(encoder: FrozenEncoder) -> torch.device:
    """Device of the encoder."""
    return next(encoder.encoder.parameters()).device


def count_features(encoder: FrozenEncoder, grid: Grid, side: int, patch: int) -> int:
    """Number of features that an encoder has of the chips of a map."""
    height, width = (min(side, n) * patch for n in (grid.rows, grid.columns))
    blank = torch.zeros(1, len(encoder.bands), height, width, device=_device(encoder))
    return int(encoder.patch_features(blank).shape[1])


def copy_encoder(encoder: FrozenEncoder) -> FrozenEncoder:
    """The same encoder, which shares the weights, without a position bias."""
    copied = FrozenEncoder(
        encoder.encoder, encoder.bands, encoder.transform, encoder.name, encoder.depth
    )
    copied.unit = encoder.unit
    return copied


def chip_sample(scene: RasterScene, grid: Grid, side: int, patch: int) -> list[Window]:
    """Random chips from which :func:`fit_encoder` estimates."""
    height, width = (min(side, n) * patch for n in (grid.rows, grid.columns))
    generator = torch.Generator().manual_seed(0)
    windows = []
    for _ in range(_SAMPLE):
        row, column = (
            int(torch.randint(max(whole - side, 0) + 1, (), generator=generator))
            for whole, side in ((scene.height, height), (scene.width, width))
        )
        windows.append(Window(column, row, width, height))
    return windows


def fit_encoder(
    encoder: FrozenEncoder, chips: Iterable[np.ndarray], batch_size: int
) -> None:
    """Estimate the position bias of an encoder, and its normalization if it has none.

    Chips ``(C, H, W)`` of the scene without a valid pixel are left out.
    """
    tensors = [torch.from_numpy(chip) for chip in chips]
    tensors = [chip for chip in tensors if valid_values(chip).any()]
    if not tensors:
        return
    sample = torch.stack(tensors)
    if encoder.transform is None:
        encoder.fit_normalization(sample)
    encoder.remove_position_bias(sample, batch_size=batch_size)


def embed_window(
    scene: RasterScene,
    window: Window,
    encoder: FrozenEncoder,
    side: int,
    patch: int,
    batch_size: int,
    count: int,
) -> np.ndarray:
    """Embeddings of the patches of a window, ``(D, h, w)``; chips of *side* patches."""
    left, top, width, height = (int(n) // patch for n in window.flatten())
    grid = patch_grid(scene, patch)
    high, wide = min(side, grid.rows), min(side, grid.columns)
    # All chips that share a patch with the window, and the patches that they cover.
    tops = [n for n in _starts(grid.rows, high) if top - high < n < top + height]
    lefts = [n for n in _starts(grid.columns, wide) if left - wide < n < left + width]
    first_row, first_column = tops[0], lefts[0]
    shape = tops[-1] + high - first_row, lefts[-1] + wide - first_column
    covered = (first_column, first_row, shape[1], shape[0])
    image = torch.from_numpy(scene.read(Window(*(n * patch for n in covered))))
    valid = valid_patches(valid_values(image).any(dim=0), patch)
    row, column = top - first_row, left - first_column
    inside = slice(row, row + height), slice(column, column + width)
    if not valid[inside].any():
        # Mosaics are often blank, and an encoder is slow.
        return np.full((count, height, width), np.nan, np.float32)
    if encoder.transform is None:
        raise ValueError(
            f'encoder: {encoder.name} has no mean and std of its bands, and the '
            f'{_SAMPLE} chips of {scene.path} from which they are estimated hold no '
            'valid pixel. Pass an area of interest around the valid pixels.'
        )
    cuts = [
        (slice(row, row + high), slice(column, column + wide))
        for row in (n - first_row for n in tops)
        for column in (n - first_column for n in lefts)
    ]
    weight = torch.outer(_hann(high), _hann(wide))
    total, weights = torch.zeros(count, *shape), torch.zeros(shape)
    for start in range(0, len(cuts), batch_size):
        batch = cuts[start : start + batch_size]
        chips = torch.stack(
            [image[:, _pixels(r, patch), _pixels(c, patch)] for r, c in batch]
        )
        features = encoder.patch_features(chips.to(_device(encoder))).float().cpu()
        for (r, c), chip in zip(batch, features, strict=True):
            total[:, r, c] += chip * weight
            weights[r, c] += weight
    mean = (total / weights).where(valid, torch.nan)
    return mean[:, *inside].numpy()


def _starts(count: int, side: int) -> list[int]:
    """Starts of chips of *side* patches that cover *count* patches."""
    return sorted({*range(0, count - side + 1, max(side // 2, 1)), count - side})


def _pixels(cells: slice, patch: int) -> slice:
    """Patches as pixels."""
    return slice(cells.start * patch, cells.stop * patch)


def _hann(count: int) -> torch.Tensor:
    """Weights of the patches of a chip: largest in the middle, nowhere 0.

    Squared, which leaves no border between chips that could be measured: with a lower
    power, steps at the border are larger than others, with a higher one, those in the
    middle.
    """
    return torch.hann_window(count + 2, periodic=False)[1:-1] ** 2


def _fit(parts: Iterator[Part], count: int) -> IncrementalPCA:
    """Find the principal components of all patches."""
    reducer, waiting = IncrementalPCA(count), np.empty((0, 0))
    for _, layers in parts:
        values = layers.reshape(len(layers), -1).T
        values = values[np.isfinite(values).all(axis=1)]
        waiting = np.concatenate([waiting.reshape(-1, len(layers)), values])
        # A batch needs at least as many samples as components.
        if len(waiting) >= count:
            reducer.partial_fit(waiting)
            waiting = waiting[:0]
    if not hasattr(reducer, 'components_'):
        raise ValueError(f'pca: {count} is more than the {len(waiting)} valid patches.')
    return reducer


def _reduced(parts: Iterator[Part], reducer: IncrementalPCA) -> Iterator[Part]:
    """Principal components of embeddings."""
    for cells, layers in parts:
        values = layers.reshape(len(layers), -1).T
        components = np.full((len(values), reducer.n_components_), np.nan, np.float32)
        valid = np.isfinite(values).all(axis=1)
        if valid.any():
            components[valid] = reducer.transform(values[valid])
        yield cells, components.T.reshape(-1, *layers.shape[1:])
