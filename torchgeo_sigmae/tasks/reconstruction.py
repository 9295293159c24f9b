# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What is hidden, what is to be predicted, and how predictions become reflectance.

Pure functions of tensors between the batch and the model, used by every step of
:class:`~torchgeo_sigmae.tasks.SIGMAETask`. Invalid pixels take part in nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..masking import TokenMask
from ..models import (
    MaskedAutoencoder,
    gather_tokens,
    normalize_patches,
    patchify,
    scatter_tokens,
    unpatchify,
)
from ..transforms import PatchSaliency, valid_pixels
from .statistics import BatchStatistics

__all__ = (
    'TokenBatch',
    'baseline_prediction',
    'denormalize',
    'make_tokens',
    'reconstruct',
    'spectra',
    'target_patches',
)


class TokenBatch(NamedTuple):
    """A batch as the model sees it.

    Attributes:
        image: Normalised images ``(B, C, H, W)``, 0 at invalid pixels.
        patches: Their patches, ``(B, N, C * p * p)``.
        pixels: Which entries of the patches hold data, boolean, same shape.
        valid: Which tokens hold data, boolean ``(B, N)``.
        saliency: Saliency per token in [0, 1], ``(B, N)``.
    """

    image: Tensor
    patches: Tensor
    pixels: Tensor
    valid: Tensor
    saliency: Tensor


@torch.no_grad()
def make_tokens(
    image: Tensor, valid: Tensor, statistics: BatchStatistics, saliency: PatchSaliency
) -> TokenBatch:
    """Select bands, find saliency in reflectance, and cut into patches.

    Args:
        image: Normalised batch ``(B, len(data_bands), H, W)``.
        valid: Valid pixels, boolean ``(B, H, W)``.
        statistics: What the batch holds.
        saliency: The saliency of the model's bands.

    Returns:
        The batch as the model sees it.

    Raises:
        ValueError: If the patch size does not divide the images.
    """
    image = statistics.select(image)
    valid = valid & valid_pixels(image, nodata=None)
    scores = saliency.saliency(statistics.reflectance(image), valid)
    image = torch.where(valid.unsqueeze(1), image, 0)
    pixels = patchify(valid.unsqueeze(1).expand_as(image), saliency.patch_size)
    return TokenBatch(
        image,
        patchify(image, saliency.patch_size),
        pixels,
        pixels.any(dim=-1),
        scores.flatten(1),
    )


def target_patches(tokens: TokenBatch, index: Tensor, norm_pix: bool) -> Tensor:
    """Look up what is to be predicted.

    Args:
        tokens: The batch.
        index: Token indices ``(B, P)``.
        norm_pix: Whether every patch is normalised by its own mean and variance.

    Returns:
        Targets ``(B, P, C * p * p)``.
    """
    patches = gather_tokens(tokens.patches, index)
    if norm_pix:
        return normalize_patches(patches, gather_tokens(tokens.pixels, index))[0]
    return patches


def baseline_prediction(
    tokens: TokenBatch, mask: TokenMask, bands: int, norm_pix: bool
) -> Tensor:
    """Predict, for every band, the mean of the image's visible tokens.

    What a model has to beat to have learned anything.

    Args:
        tokens: The batch.
        mask: Its mask.
        bands: Number of bands C.
        norm_pix: As in :func:`target_patches`; the mean is taken over targets.

    Returns:
        Predictions for the masked tokens, ``(B, M, C * p * p)``.
    """
    seen = target_patches(tokens, mask.keep, norm_pix).unflatten(-1, (bands, -1))
    valid = gather_tokens(tokens.pixels, mask.keep).unflatten(-1, (bands, -1))
    count = valid.sum(dim=(1, 3)).clamp(min=1)
    mean = torch.where(valid, seen, 0).sum(dim=(1, 3)) / count
    patch: Tensor = mean.unsqueeze(-1).expand(-1, -1, seen.shape[-1]).flatten(1)
    return patch.unsqueeze(1).expand(-1, mask.masked.shape[1], -1)


def denormalize(
    prediction: Tensor, tokens: TokenBatch, index: Tensor, norm_pix: bool
) -> Tensor:
    """Bring predictions from the space of the target to that of the image.

    Args:
        prediction: ``(B, P, C * p * p)``.
        tokens: The batch.
        index: Token indices ``(B, P)``.
        norm_pix: Whether the target was normalised per patch; undoing that needs the
            hidden patch's own mean and standard deviation, an oracle.

    Returns:
        Predictions in the space of the image, float32.
    """
    if norm_pix:
        patches = gather_tokens(tokens.patches, index)
        pixels = gather_tokens(tokens.pixels, index)
        _, mean, std = normalize_patches(patches, pixels)
        prediction = prediction * std + mean
    return prediction.float()


def spectra(
    patches: Tensor, tokens: TokenBatch, index: Tensor, statistics: BatchStatistics
) -> Tensor:
    """List the spectra of the valid pixels of tokens.

    Args:
        patches: Values in the space of the image, ``(B, P, C * p * p)``.
        tokens: The batch.
        index: Token indices ``(B, P)`` the values belong to.
        statistics: What the batch holds.

    Returns:
        Reflectance ``(pixels, C)``.
    """
    bands = len(statistics.channels)
    valid = gather_tokens(tokens.pixels, index).unflatten(-1, (bands, -1))[:, :, 0]
    values = patches.unflatten(-1, (bands, -1)).transpose(-1, -2)
    return statistics.reflectance(values[valid], dim=-1)


@torch.no_grad()
def reconstruct(
    model: MaskedAutoencoder,
    tokens: TokenBatch,
    mask: TokenMask,
    statistics: BatchStatistics,
    norm_pix: bool,
) -> dict[str, Tensor]:
    """Reconstruct whole images: visible patches as they are, hidden ones predicted.

    Args:
        model: The model.
        tokens: The batch.
        mask: Its mask.
        statistics: What the batch holds.
        norm_pix: As in :func:`denormalize`.

    Returns:
        ``'image'`` and ``'reconstruction'`` in reflectance ``(B, C, H, W)``, NaN where
        there is no data; ``'mask'`` ``(B, H, W)``, True where hidden; ``'saliency'``
        ``(B, H / p, W / p)`` in [0, 1].
    """
    grid, size = model.grid(tokens.image), model.patch_size
    prediction = model(tokens.image, mask.keep, mask.masked, tokens.patches)
    prediction = denormalize(prediction, tokens, mask.masked, norm_pix)
    patches = scatter_tokens(tokens.patches, mask.masked, prediction)
    hidden = torch.zeros_like(tokens.valid).scatter(1, mask.masked, True).unsqueeze(-1)
    # A partly valid patch is predicted whole, a patch without data not at all.
    predicted = (hidden & tokens.valid.unsqueeze(-1)).expand_as(patches)
    known = unpatchify(tokens.pixels, size, grid)
    filled = unpatchify(tokens.pixels | predicted, size, grid)
    image = statistics.reflectance(tokens.image)
    result = statistics.reflectance(unpatchify(patches, size, grid))
    return {
        'image': torch.where(known, image, torch.nan),
        'reconstruction': torch.where(filled, result, torch.nan),
        'mask': unpatchify(hidden.expand(-1, -1, size**2), size, grid)[:, 0],
        'saliency': tokens.saliency.unflatten(-1, grid),
    }
