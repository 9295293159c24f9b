# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""One page with all maps of a scene, to look at them before reading on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from .._files import require_writable
from ..datasets.band_files import opened
from ..datasets.scenes import RasterScene
from ..evaluation import FrozenEncoder
from ..masking.masks import check_mask_ratio
from ..plotting import view
from ..tasks import SIGMAETask
from ..tasks.building import default_indices
from .embedding import embedding_map, encoder_patch_size
from .reconstruction import reconstruction_map
from .saliency import saliency_map

__all__ = ('view_scene',)


def view_scene(
    scene: RasterScene,
    target: str | Path,
    encoder: FrozenEncoder,
    task: SIGMAETask | None = None,
    mask_ratios: Sequence[float] = (0.5, 0.75, 0.9),
    size: int = 64,
    batch_size: int = 64,
    max_side: int = 768,
    open_browser: bool = False,
) -> None:
    """Write a page with the maps of a scene.

    See :func:`~torchgeo_sigmae.plotting.view` for the page. It shows what
    :func:`.saliency_map`, :func:`.reconstruction_map` and :func:`.embedding_map`
    compute. Where the bands allow no spectral index, there is no saliency; without a
    task, there is no reconstruction.

    Args:
        scene: The scene, in the encoder's bands.
        target: The page to write.
        encoder: The encoder; its position bias becomes that of this scene.
        task: The task whose decoder reconstructs; its data are of the encoder's bands.
        mask_ratios: Mask ratios to choose from, each in (0, 1).
        size: Side of the chips in pixels, best that of pretraining.
        batch_size: Number of chips that are encoded at a time.
        max_side: Largest side of what is shown, in pixels: only the middle of a larger
            scene is read.
        open_browser: Whether to open the page in the browser.

    Raises:
        OSError: If the scene cannot be read or the page cannot be written.
        ValueError: If an argument is out of range, the scene is smaller than a patch,
            the bands are not the encoder's, or no pixel is valid.
    """
    patch = encoder_patch_size(encoder)
    _check_arguments(scene, patch, size, max_side, mask_ratios)
    require_writable(target)
    notes = []
    part = _middle(scene, max_side // size * size)
    if part is not scene:
        notes.append(
            f'Only the middle {part.height} x {part.width} of {scene.height} x '
            f'{scene.width} pixels is shown.'
        )
    saliency, reconstructions = None, {}
    with TemporaryDirectory(prefix='torchgeo-sigmae-') as folder:
        file = Path(folder) / 'map.tif'
        embedding_map(part, file, encoder, size, batch_size=batch_size)
        embeddings = _read(file)
        indices = default_indices(scene.bands)
        if indices:
            saliency_map(part, file, patch, indices)
            saliency = _read(file)[-1]
        else:
            notes.append('The bands allow no spectral index, so there is no saliency.')
        if task is None:
            notes.append('The weights hold no decoder, so there is no reconstruction.')
        else:
            for ratio in mask_ratios:
                reconstruction_map(part, file, task, ratio, size, batch_size)
                reconstructions[ratio] = _read(file)
            if part.height % size or part.width % size:
                notes.append(
                    f'Chips of {size} pixels that extend over the right or lower edge '
                    'hide less.'
                )
            if task.hparams['norm_pix_loss']:
                notes.append('Hidden patches use their true mean and std.')
    if notes:
        rank_zero_info(f'{Path(scene.path).name}: {" ".join(notes)}')
    scale, offset = encoder.unit
    view(
        target,
        replace(part, unit=encoder.unit).read() * scale + offset,
        scene.bands,
        patch,
        saliency,
        reconstructions,
        embeddings,
        f'{Path(scene.path).name}, {encoder.name}',
        notes,
        open_browser,
    )


def _check_arguments(
    scene: RasterScene,
    patch: int,
    size: int,
    max_side: int,
    mask_ratios: Sequence[float],
) -> None:
    """Refuse a scene smaller than a patch, and arguments out of range."""
    if min(scene.height, scene.width) < patch:
        raise ValueError(
            f'scene: {scene.path} has {scene.height} x {scene.width} pixels, less than '
            f'a patch of {patch} x {patch}. Pass a larger scene.'
        )
    if max_side < size:
        raise ValueError(
            f'max_side: {max_side} is less than the {size} pixels of a chip. Use 768 '
            'or so.'
        )
    if not mask_ratios:
        raise ValueError('mask_ratios: none given. Pass at least one, such as 0.75.')
    for ratio in mask_ratios:
        check_mask_ratio(ratio)


def _middle(scene: RasterScene, side: int) -> RasterScene:
    """The middle of a scene that is larger than *side* pixels."""
    height, width = min(scene.height, side), min(scene.width, side)
    if (height, width) == (scene.height, scene.width):
        return scene
    row, column = (scene.height - height) // 2, (scene.width - width) // 2
    return scene.part(row, column, height, width)


def _read(path: Path) -> np.ndarray:
    """All layers of a map."""
    with opened(str(path)) as file:
        layers: np.ndarray = file.read()
    return layers
