# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A page for the browser: a scene, its saliency, its reconstructions, similar patches.

The page is one file without a server or a network. Its template, ``view.html``, draws
canvases that move together: libraries for that (OpenSeadragon, panzoom) are larger than
the page, and move one image.
"""

import base64
import io
import json
import math
import webbrowser
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image

from .._files import write_text
from .canvas import NODATA_COLOR, image_title, rgb_channels
from .reconstruction import reconstruction_panels

__all__ = ('view',)

#: Level of values that are missing; the others have levels 0 to 254.
_MISSING = 255


def view(
    path: str | Path,
    image: np.ndarray,
    bands: Sequence[str],
    patch_size: int,
    saliency: np.ndarray | None = None,
    reconstructions: Mapping[float, np.ndarray] | None = None,
    embeddings: np.ndarray | None = None,
    title: str = 'torchgeo-sigmae',
    notes: Sequence[str] = (),
    open_browser: bool = False,
) -> None:
    """Write one page on a scene, to look at it in a browser before reading on.

    Panels stand side by side, and zoom and pan together. A slider changes the mask
    ratio. A click on a patch shows the similarity of all others to it, and outlines the
    20 most similar ones: the cosine of their embeddings after the mean of all patches
    is subtracted, as in :func:`~torchgeo_sigmae.maps.similarity_map`.

    The page is one file that works offline. Pictures are PNG. Saliency, mask and error
    have 255 levels. Embeddings are stored in 8 bits, which changes a cosine by less
    than 0.01.

    Args:
        path: The page to write.
        image: Reflectance ``(C, H, W)``; NaN where data are missing.
        bands: Names of the C bands.
        patch_size: Side of a patch in pixels, p. Patches may extend over the right and
            the lower edge.
        saliency: Saliency in [0, 1], ``(ceil(H / p), ceil(W / p))``; NaN where a patch
            has no data.
        reconstructions: By mask ratio, the layers that
            :func:`~torchgeo_sigmae.maps.reconstruction_map` writes: ``(C + 2, H, W)``,
            the bands, ``mask`` and ``error``.
        embeddings: Embeddings ``(D, ceil(H / p), ceil(W / p))``; NaN where a patch has
            no data.
        title: Title of the page.
        notes: Sentences below the title.
        open_browser: Whether to open the page in the browser.

    Raises:
        OSError: If the page cannot be written.
        ValueError: If the image is smaller than a patch, or an array does not fit it.
    """
    height, width = image.shape[-2:]
    if min(height, width) < patch_size:
        raise ValueError(
            f'image: {height} x {width} pixels are less than a patch of {patch_size} x '
            f'{patch_size}. Pass a larger scene.'
        )
    grid = math.ceil(height / patch_size), math.ceil(width / patch_size)
    reconstructions = dict(sorted((reconstructions or {}).items()))
    _check_shape('image', image, (len(bands), height, width))
    if saliency is not None:
        _check_shape('saliency', saliency, grid)
    if embeddings is not None:
        _check_shape('embeddings', embeddings, (len(embeddings), *grid))
    for ratio, layers in reconstructions.items():
        name = f'reconstructions[{ratio}]'
        _check_shape(name, layers, (len(bands) + 2, height, width))
    largest = _largest_error([layers[-1] for layers in reconstructions.values()])
    nothing = np.zeros((height, width), bool)
    scene, _, _ = reconstruction_panels(image, image, nothing, rgb_channels(bands))
    missing = not np.isfinite(image).all()
    data = {
        'title': title,
        'notes': [*notes, *(['Magenta: no data.'] if missing else [])],
        'caption': image_title(bands),
        'size': [height, width],
        'grid': grid,
        'patch': patch_size,
        'palette': _base64(_palette().tobytes()),
        'scene': _png(scene),
        'saliency': None if saliency is None else _packed(_levels(saliency, 1)),
        'embeddings': None if embeddings is None else _packed(_quantized(embeddings)),
        'largest_error': largest,
        'ratios': [
            _reconstruction(ratio, layers, image, bands, patch_size, largest)
            for ratio, layers in reconstructions.items()
        ],
    }
    template = Path(__file__).with_name('view.html').read_text(encoding='utf-8')
    # A title with </script> must not end the script.
    text = json.dumps(data).replace('<', '\\u003c')
    write_text(path, template.replace('PAGE_DATA', text, 1))
    if open_browser:
        webbrowser.open(Path(path).resolve().as_uri())


def _reconstruction(
    ratio: float,
    layers: np.ndarray,
    image: np.ndarray,
    bands: Sequence[str],
    patch_size: int,
    largest: float,
) -> dict[str, Any]:
    """Pictures of the page at a mask ratio."""
    rebuilt, mask, error = layers[:-2], layers[-2], layers[-1]
    hidden = mask > 0
    _, _, picture = reconstruction_panels(image, rebuilt, hidden, rgb_channels(bands))
    return {
        'ratio': ratio,
        'mask': _packed(_levels(_per_patch(mask, patch_size), 1)),
        'reconstruction': _png(picture),
        'error': _packed(_levels(np.where(mask == 0, 0, error), largest)),
    }


def _check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse an array of another shape."""
    if array.shape != shape:
        raise ValueError(f'{name}: expected {shape}, got {array.shape}.')


def _largest_error(errors: Sequence[np.ndarray]) -> float:
    """98th percentile of errors at all mask ratios, which share their colors."""
    finite = [error[np.isfinite(error)] for error in errors]
    if not any(len(values) for values in finite):
        return 1.0
    return max(float(np.percentile(np.concatenate(finite), 98)), 1e-6)


def _per_patch(mask: np.ndarray, size: int) -> np.ndarray:
    """The share of bands that are hidden, per patch; NaN without a valid pixel."""
    # Of a partly valid patch that is visible, some pixels are NaN.
    rows, columns = (range(0, side, size) for side in mask.shape)
    return np.fmax.reduceat(np.fmax.reduceat(mask, rows, axis=0), columns, axis=1)


def _levels(values: np.ndarray, highest: float) -> np.ndarray:
    """Values from 0 to *highest* as levels 0 to 254; 255 where there is none."""
    levels = np.rint(np.clip(np.nan_to_num(values) / highest, 0, 1) * 254)
    return np.where(np.isfinite(values), levels, _MISSING).astype(np.uint8)


def _quantized(embeddings: np.ndarray) -> np.ndarray:
    """Centered embeddings in 8 bits, ``(h, w, D)``; 0 where there is none.

    Each has a scale of its own, which does not change cosines.
    """
    vectors = np.moveaxis(embeddings, 0, -1).astype(np.float32)
    valid = np.isfinite(vectors).all(axis=-1)
    mean = vectors[valid].mean(axis=0) if valid.any() else 0
    vectors = np.where(valid[..., None], vectors - mean, 0)
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    return np.rint(127 * vectors / np.maximum(largest, 1e-12)).astype(np.int8)


def _palette() -> np.ndarray:
    """Red, green and blue of every level, ``(256, 3)``."""
    colors = colormaps['viridis'](np.linspace(0, 1, _MISSING))[:, :3]
    return _bytes(np.concatenate([colors, [to_rgb(NODATA_COLOR)]]))


def _bytes(colors: np.ndarray) -> np.ndarray:
    """Colors in [0, 1] in 8 bits."""
    return np.rint(colors * 255).astype(np.uint8)


def _png(colors: np.ndarray) -> str:
    """Colors ``(H, W, 3)`` in [0, 1] as a picture."""
    buffer = io.BytesIO()
    Image.fromarray(_bytes(colors)).save(buffer, 'png', optimize=True)
    return _base64(buffer.getvalue())


def _packed(array: np.ndarray) -> str:
    """An array of bytes, compressed."""
    return _base64(zlib.compress(array.tobytes(), 9))


def _base64(content: bytes) -> str:
    """Bytes as text."""
    return base64.b64encode(content).decode('ascii')
