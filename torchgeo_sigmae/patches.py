# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Patches of images: valid values, cutting, putting back together, ranking."""

import torch
from torch import Tensor

__all__ = (
    'cut_patches',
    'patchify',
    'rank_patches',
    'unpatchify',
    'valid_patches',
    'valid_values',
)


def valid_values(image: Tensor, nodata: float | None = None) -> Tensor:
    """Find the values that are data.

    Args:
        image: Raw values ``(..., C, H, W)``, before any normalization.
        nodata: A pixel is missing where *all* its bands equal this value, but for
            those that are missing anyway; None if no value marks missing data. One
            band alone may have this value: dark water is 0 in some bands.

    Returns:
        Boolean mask ``(..., C, H, W)``: False at nodata, NaN and infinity.
    """
    # NaN and infinity survive minimum and maximum, and only equal bands have the same:
    # two reductions instead of a mask as large as the image, where nothing is missing.
    low, high = image.amin(dim=-3, keepdim=True), image.amax(dim=-3, keepdim=True)
    finite = low.isfinite() & high.isfinite()
    if finite.all():
        if nodata is not None:
            finite &= (low != nodata) | (high != nodata)
        return finite.expand_as(image)
    valid = image.isfinite()
    if nodata is not None:
        valid &= (valid & (image != nodata)).any(dim=-3, keepdim=True)
    return valid


def valid_patches(valid: Tensor, patch_size: int) -> Tensor:
    """Find the patches of ``(..., H, W)`` with at least one valid value."""
    return cut_patches(valid, patch_size).flatten(-2).any(dim=-1)


def cut_patches(x: Tensor, patch_size: int, argument: str = 'image') -> Tensor:
    """Cut into patches, without copying.

    Args:
        x: ``(..., H, W)``.
        patch_size: Side p of a patch in pixels; must divide H and W.
        argument: Name of *x* in the error message.

    Returns:
        A view ``(..., H / p, W / p, p, p)``.

    Raises:
        ValueError: If *patch_size* does not divide H and W.
    """
    height, width = x.shape[-2:]
    if height % patch_size or width % patch_size or not height or not width:
        sizes = [max(n // patch_size * patch_size, patch_size) for n in (height, width)]
        raise ValueError(
            f'{argument}: {height} x {width} pixels cannot be cut into patches of '
            f'{patch_size} x {patch_size}. Crop or pad to multiples of {patch_size}, '
            f'for example {sizes[0]} x {sizes[1]}.'
        )
    h, w = height // patch_size, width // patch_size
    x = x.reshape(*x.shape[:-2], h, patch_size, w, patch_size)
    return x.transpose(-3, -2)


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """Cut images into flat patches, channel first: the layout of a convolution kernel.

    Args:
        image: ``(B, C, H, W)``.
        patch_size: Side p of a patch in pixels; must divide H and W.

    Returns:
        Patches ``(B, N, C * p * p)`` in row-major order, N = H / p * W / p.
    """
    patches = cut_patches(image, patch_size).movedim(1, 3)
    return patches.flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Put flat patches ``(B, N, C * p * p)`` back together: undo :func:`patchify`.

    *grid* is ``(H / p, W / p)``.
    """
    h, w = grid
    x = patches.reshape(len(patches), h, w, -1, patch_size, patch_size)
    x = x.permute(0, 3, 1, 4, 2, 5)  # (B, C, h, p, w, p)
    return x.reshape(len(x), -1, h * patch_size, w * patch_size)


def rank_patches(score: Tensor, valid: Tensor | None = None) -> Tensor:
    """Rank the valid patches of every image from 0 (lowest score) to 1 (highest).

    Scores are ``(..., N)``; equal ones share the mean of their ranks. Invalid patches
    get rank 1. Ranks are float32.
    """
    if valid is None:
        valid = torch.ones_like(score, dtype=torch.bool)
    ordered, order = torch.where(valid, score, torch.inf).sort(dim=-1)
    # The first and the last position of each run of equal scores.
    position = torch.arange(score.shape[-1], device=score.device)
    starts = torch.ones_like(valid)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends = starts.roll(-1, dims=-1)
    first = torch.where(starts, position, 0).cummax(dim=-1).values
    last = torch.where(ends, position, position[-1]).flip(-1).cummin(dim=-1).values
    mean = (first + last.flip(-1)) / 2
    highest = (valid.sum(dim=-1, keepdim=True) - 1).clamp(min=1)
    ranks = torch.empty_like(mean).scatter(-1, order, mean / highest)
    return torch.where(valid, ranks, 1)
