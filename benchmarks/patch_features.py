# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Features and labels of patches: thousands of samples where images are few."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor
from tqdm import tqdm

from torchgeo_sigmae.evaluation import BandStatistics, FrozenEncoder
from torchgeo_sigmae.patches import cut_patches, valid_patches

__all__ = ('PatchFeatures', 'extract_patches', 'grouped_folds', 'patch_labels')


@dataclass(frozen=True)
class PatchFeatures:
    """Features of labeled patches.

    Attributes:
        values: ``(N, D)``, float32.
        labels: Class of every patch, ``(N,)``.
        groups: Block of neighbors of every patch, ``(N,)``. A block must not be divided
            between training and test samples.
    """

    values: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


def patch_labels(
    mask: Tensor, patch_size: int, ignore: int | None = None, purity: float = 0.75
) -> tuple[Tensor, Tensor]:
    """Label patches by the class of most of their pixels.

    Args:
        mask: Classes of pixels, integers ``(H, W)``.
        patch_size: Side of a patch in pixels; must divide H and W.
        ignore: Class of pixels without label; patches that hold one are not used.
        purity: Share of the pixels of a patch that must be of its class, in (0, 1].

    Returns:
        Classes ``(H / patch_size, W / patch_size)``, and which of them can be used.
    """
    if not 0 < purity <= 1:
        raise ValueError(f'purity: {purity} is not in (0, 1]. 0.75 is the default.')
    pixels = cut_patches(mask, patch_size, 'mask').flatten(-2)
    label = pixels.mode(dim=-1).values
    share = (pixels == label.unsqueeze(-1)).float().mean(dim=-1)
    usable = share >= purity
    if ignore is not None:
        usable &= (pixels != ignore).all(dim=-1)
    return label, usable


def extract_patches(
    encoder: FrozenEncoder | BandStatistics,
    samples: Iterable[Mapping[str, Any]],
    patch_size: int = 8,
    ignore: int | None = None,
    purity: float = 0.75,
    block: int | None = None,
    chip: int | None = 64,
    context: bool = False,
    progress: bool = True,
) -> PatchFeatures:
    """Compute the features of all labeled patches of images.

    Images are encoded chip by chip, so labeled patches come from all positions in a
    chip: features that tell the position of a patch instead of its content do badly.

    Args:
        encoder: The encoder. Coarser or finer features are resampled bilinearly.
            Without a normalization, the statistics of the first image are used.
        samples: ``'image'``, raw values ``(C, H, W)`` in the encoder's bands, and
            ``'mask'``, classes ``(H, W)``; sizes may differ. Pixels beyond a multiple
            of *patch_size* and patches with missing (NaN) pixels are left out.
        patch_size: Side of a patch in pixels.
        ignore: See :func:`patch_labels`.
        purity: See :func:`patch_labels`.
        block: Side of a block of neighbors in patches; None for the whole image.
        chip: Side of a chip in pixels, a multiple of *patch_size*; None to encode whole
            images.
        context: Whether the mean features of the chip follow those of a patch.
        progress: Whether to show a progress bar.
    """
    values, labels, groups = [], [], []
    first = 0
    for sample in tqdm(
        samples, f'Patches of {encoder.name}', disable=None if progress else True
    ):
        mask = torch.as_tensor(sample['mask'])
        height, width = (side // patch_size * patch_size for side in mask.shape[-2:])
        label, usable = patch_labels(mask[:height, :width], patch_size, ignore, purity)
        image = sample['image'][:, :height, :width].float()
        missing = image.isnan().any(dim=0)
        mean = torch.nan_to_num(image.nanmean(dim=(1, 2), keepdim=True))
        image = torch.where(missing, mean, image).unsqueeze(0)
        usable &= ~valid_patches(missing, patch_size)
        if isinstance(encoder, FrozenEncoder) and encoder.transform is None:
            encoder.fit_normalization(image)
        side = chip or max(image.shape)
        maps = _chip_maps(encoder, image, patch_size, side, context)
        group, count = _blocks(label, block)
        values.append(maps[:, usable].T)
        labels.append(label[usable])
        groups.append(first + group[usable])
        first += count
    arrays = (torch.cat(parts).numpy() for parts in (values, labels, groups))
    return PatchFeatures(*arrays)


def grouped_folds(
    labels: np.ndarray, groups: np.ndarray, folds: int = 5, repeats: int = 5
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide samples into stratified folds, several times, but never a group."""
    return [
        split
        for seed in range(repeats)
        for split in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
            labels, labels, groups
        )
    ]


def _chip_maps(
    encoder: FrozenEncoder | BandStatistics,
    image: Tensor,
    patch_size: int,
    chip: int,
    context: bool,
) -> Tensor:
    """Describe the patches of an image ``(1, C, H, W)``, chip by chip.

    Chips lie edge to edge; the last of a row or column is moved inside the image.
    """
    height, width = (min(side, chip) for side in image.shape[-2:])
    corners = [
        (min(row, image.shape[-2] - height), min(column, image.shape[-1] - width))
        for row in range(0, image.shape[-2], height)
        for column in range(0, image.shape[-1], width)
    ]
    chips = [image[0, :, r : r + height, c : c + width] for r, c in corners]
    described = encoder.patch_features(torch.stack(chips)).float()
    if context:
        mean = described.mean(dim=(-2, -1), keepdim=True)
        described = torch.cat([described, mean.expand_as(described)], dim=1)
    h, w = height // patch_size, width // patch_size
    if described.shape[-2:] != (h, w):
        described = F.interpolate(described, (h, w), mode='bilinear')
    rows, columns = (side // patch_size for side in image.shape[-2:])
    maps = described.new_empty(described.shape[1], rows, columns)
    for (row, column), one in zip(corners, described, strict=True):
        r, c = row // patch_size, column // patch_size
        maps[:, r : r + h, c : c + w] = one
    return maps


def _blocks(label: Tensor, block: int | None) -> tuple[Tensor, int]:
    """Number the blocks of an image; say how many there are."""
    rows, columns = label.shape
    side = block or max(rows, columns)
    across = -(-columns // side)
    row, column = torch.arange(rows) // side, torch.arange(columns) // side
    return row[:, None] * across + column, across * -(-rows // side)
