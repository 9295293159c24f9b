# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From augmented images to tokens, and from tokens to a masked batch.

Missing values take part in nothing.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from .._random import seed_from
from ..masking import MaskSchedule, TokenMask, band_mask, sample_noise, select_targets
from ..models import TokenLayout
from ..patches import valid_values
from ..transforms import PatchSaliency
from .statistics import BatchStatistics

__all__ = (
    'Draw',
    'MaskedBatch',
    'TokenBatch',
    'final_mask',
    'fixed_mask',
    'hide_bands',
    'make_tokens',
    'mask_tokens',
)


class Draw(IntEnum):
    """First element of every seed key, so that no two draws share randomness."""

    MASK = 0
    AUGMENTATION = 1
    PREDICTION = 2
    TARGETS = 3
    BANDS = 4


class TokenBatch(NamedTuple):
    """A batch as the model sees it.

    Attributes:
        image: Normalized images ``(B, C, H, W)``, 0 at missing values.
        patches: Their tokens, ``(B, G * N, L)``.
        pixels: Which entries of the tokens hold data, boolean, same shape.
        valid: Which tokens hold data, boolean ``(B, G * N)``.
        saliency: Saliency per token in [0, 1], ``(B, G * N)``; 0 if not asked for.
        moments: Mean and standard deviation of the indices of every patch ``(B, N, 2
            K)``, NaN where an index has no valid pixel; None if not asked for.
        layout: What a token is.
        whole: Whether every entry of every token holds data.
    """

    image: Tensor
    patches: Tensor
    pixels: Tensor
    valid: Tensor
    saliency: Tensor
    moments: Tensor | None
    layout: TokenLayout
    whole: bool

    @property
    def positions(self) -> int:
        """Number of patch positions, N."""
        return self.patches.shape[1] // self.layout.num_groups

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        height, width = self.image.shape[-2:]
        return height // self.layout.patch_size, width // self.layout.patch_size


class MaskedBatch(NamedTuple):
    """A batch as a training step uses it.

    Attributes:
        tokens: The batch.
        inputs: Its tokens as the encoder gets them, ``(B, G * N, L)``.
        keep: Indices of the visible tokens, ``(B, V)``.
        predicted: Indices of the tokens to predict, ``(B, P)``.
        counts: Which of them count, boolean ``(B, P)``.
    """

    tokens: TokenBatch
    inputs: Tensor
    keep: Tensor
    predicted: Tensor
    counts: Tensor


@torch.no_grad()
def make_tokens(
    image: Tensor,
    valid: Tensor,
    statistics: BatchStatistics,
    saliency: PatchSaliency | None,
    layout: TokenLayout,
    salient: bool = True,
    spectral: bool = False,
) -> TokenBatch:
    """Select bands, compute saliency in reflectance, and cut into tokens.

    Args:
        image: Normalized batch ``(B, len(data_bands), H, W)``, NaN at missing values.
        valid: Pixels that are no padding, boolean ``(B, 1, H, W)``.
        statistics: What the batch holds.
        saliency: The saliency of the model's bands; None without indices.
        layout: What a token is; each takes the saliency of its patch.
        salient: Whether the saliency is needed.
        spectral: Whether moments of the indices are needed.
    """
    image = statistics.select(image)
    # A sum is not finite where a value is not; one pass where nothing is missing.
    whole = bool(valid.all() & image.sum().isfinite())
    valid = valid.expand_as(image)
    if not whole:
        valid = valid & valid_values(image)
        whole = bool(valid.all())
    scores = moments = None
    if saliency is not None and (salient or spectral):
        reflectance = statistics.reflectance(image)
        if salient:
            gaps = None if whole else valid
            scores = saliency.saliency(reflectance, gaps).flatten(1)
        if spectral:
            moments = saliency.moments(reflectance, valid).flatten(2).transpose(1, 2)
    if not whole:
        image = torch.where(valid, image, 0)
    patches = layout.patchify(image)
    positions = patches.shape[1] // layout.num_groups
    pixels = layout.slots(image.device).repeat_interleave(positions, dim=0)
    some = pixels.any(dim=-1).expand(patches.shape[:2])
    pixels = pixels.expand_as(patches)
    if not whole:
        pixels = pixels & layout.patchify(valid)
        some = pixels.any(dim=-1)
    if scores is None:
        scores = image.new_zeros(len(image), positions)
    return TokenBatch(
        image,
        patches,
        pixels,
        some,
        scores.repeat(1, layout.num_groups),
        moments,
        layout,
        whole and layout.channels == layout.num_groups * layout.group_size,
    )


def mask_tokens(
    tokens: TokenBatch,
    sample_index: Tensor,
    schedule: MaskSchedule,
    progress: float,
    key: tuple[int, ...],
    predict_ratio: float = 1.0,
    band_dropout: float = 0.0,
) -> MaskedBatch:
    """Mask a training batch, choose what is predicted, and hide bands.

    Args:
        tokens: The batch.
        sample_index: Index of every sample among those of all processes, ``(B,)``.
            With *key*, nothing else decides what is drawn for a sample.
        schedule: How to mask.
        progress: Share of training done, in [0, 1].
        key: Seed and number of the batch.
        predict_ratio: Share of the valid masked tokens to predict, in (0, 1].
        band_dropout: Largest share of the bands to hide from the encoder.
    """

    def noise(draw: Draw, count: int) -> Tensor:
        return sample_noise(seed_from(draw, *key), sample_index, count)

    valid = tokens.valid
    mask = schedule.mask(
        tokens.saliency, noise(Draw.MASK, valid.shape[1]), progress, valid
    )
    predicted, counts = select_targets(
        mask.masked, noise(Draw.TARGETS, mask.masked.shape[1]), predict_ratio, valid
    )
    inputs = tokens.patches
    if band_dropout:
        bands = tokens.image.shape[1]
        hidden = band_mask(noise(Draw.BANDS, 2 + bands), band_dropout)
        inputs = hide_bands(tokens, hidden)
    return MaskedBatch(tokens, inputs, mask.keep, predicted, counts)


def final_mask(
    tokens: TokenBatch, schedule: MaskSchedule, key: tuple[int, ...]
) -> TokenMask:
    """Mask as at the end of training, at random by a key."""
    samples, count = tokens.valid.shape
    index = torch.arange(samples, device=tokens.valid.device)
    noise = sample_noise(seed_from(Draw.PREDICTION, *key), index, count)
    return schedule.mask(tokens.saliency, noise, 1.0, tokens.valid)


def fixed_mask(
    tokens: TokenBatch, sample_index: Tensor, schedule: MaskSchedule
) -> TokenMask:
    """Mask as at the end of training, by the sample index and without guidance.

    The mask is the same for every seed, so that runs can be compared.
    """
    noise = sample_noise(0, sample_index, tokens.valid.shape[1])
    unguided = torch.zeros_like(tokens.saliency)
    return schedule.mask(unguided, noise, 1.0, tokens.valid)


def hide_bands(tokens: TokenBatch, hidden: Tensor) -> Tensor:
    """Set hidden bands ``(B, C)`` to 0, their mean, in the tokens ``(B, G * N, L)``."""
    layout = tokens.layout
    values = hidden[:, layout.padded()].unflatten(1, (layout.num_groups, -1))
    values = values.repeat_interleave(layout.patch_size**2, dim=-1)
    values = values.repeat_interleave(tokens.positions, dim=1)
    return tokens.patches.masked_fill(values, 0)
