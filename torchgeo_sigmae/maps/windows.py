# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps are computed window by window, unless they exist already."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from affine import Affine
from rasterio import CRS
from rasterio.windows import Window
from torch import nn
from tqdm import tqdm

from ..datasets.band_files import opened
from ..datasets.paths import file_state
from ..datasets.scenes import RasterScene

__all__ = (
    'Grid',
    'Part',
    'compute_windows',
    'is_finished',
    'map_key',
    'patch_grid',
    'patch_windows',
    'weights_hash',
)

#: A window of a map in cells, and its layers ``(D, h, w)``, NaN without a value.
Part = tuple[Window, np.ndarray]

#: Side of a window in pixels, about: ten bands of it take 42 MB.
_WINDOW = 1024


@dataclass(frozen=True)
class Grid:
    """Rows and columns of a map, and where they are.

    A map has ground control points (row, column, x, y, z) if its scene has no
    geotransform but them.
    """

    rows: int
    columns: int
    transform: Affine
    crs: CRS | None
    gcps: tuple[tuple[float, ...], ...] = ()
    gcps_crs: CRS | None = None


def patch_grid(scene: RasterScene, patch_size: int) -> Grid:
    """Grid of the patches of a scene; those that extend over the edge count."""
    return Grid(
        math.ceil(scene.height / patch_size),
        math.ceil(scene.width / patch_size),
        scene.transform @ Affine.scale(patch_size),
        scene.crs,
        tuple(
            (row / patch_size, column / patch_size, *coordinates)
            for row, column, *coordinates in scene.gcps
        ),
        scene.gcps_crs,
    )


def patch_windows(
    scene: RasterScene, patch_size: int, side: int | None = None
) -> list[Window]:
    """Cut a scene into windows of whole patches, of *side* or about 1024 pixels."""
    usual = max(_WINDOW // patch_size, 1) * patch_size
    side = usual if side is None else side
    if side < patch_size or side % patch_size:
        raise ValueError(
            f'window: {side} is not a multiple of the {patch_size} pixels of a patch. '
            f'Use, for example, {usual}.'
        )
    grid = patch_grid(scene, patch_size)
    height, width = grid.rows * patch_size, grid.columns * patch_size
    return [
        Window(column, row, min(side, width - column), min(side, height - row))
        for row in range(0, height, side)
        for column in range(0, width, side)
    ]


def compute_windows(
    scene: RasterScene,
    windows: Sequence[Window],
    patch_size: int,
    function: Callable[[Window], np.ndarray],
    title: str,
) -> Iterator[Part]:
    """Compute the parts of a map with *function*, with a progress bar.

    A map without any finite value is refused after the last window.
    """
    finite = False
    for window in tqdm(windows, title, disable=None, delay=2):
        layers = function(window)
        finite = finite or bool(np.isfinite(layers).any())
        yield Window(*(int(n) // patch_size for n in window.flatten())), layers
    if not finite:
        raise ValueError(
            f'scene: {scene.path} has no valid pixel'
            + (' in the area of interest.' if scene.aoi is not None else '.')
        )


def map_key(scene: RasterScene, **settings: object) -> str:
    """Identify a map by its scene, the state of the scene's files, and its settings."""
    files = [(path, file_state(path)) for path in scene.paths]
    aoi = None if scene.aoi is None else scene.aoi.wkt
    text = json.dumps([repr(scene), aoi, files, settings], default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of the parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def is_finished(target: Path, key: str) -> bool:
    """Find out whether a GeoTIFF is the map of a :func:`map_key`."""
    try:
        with opened(str(target)) as file:
            return bool(file.tags().get('made_from') == key)
    except OSError:
        return False
