# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Masks where several tokens stand at every place: cubes (S2MAE) or groups (SatMAE).

Tokens are numbered group by group: token ``g * N + p`` is place p of group g.
"""

import torch
from torch import Generator, Tensor

from .noise import SampleNoise, uniform_noise
from .strategies import TokenMask, mask_highest, saliency_mask

__all__ = ('channel_mask', 'column_mask', 'group_mask')


def column_mask(
    score: Tensor,
    ratio: float,
    groups: int,
    generator: Generator | SampleNoise | None = None,
    valid: Tensor | None = None,
    beta: float = 0.0,
) -> TokenMask:
    """Mask the same places in every group: whole columns of the spectrum.

    SatMAE's consistent masking (arXiv:2207.08051), and with *beta* SSDTM on columns.

    Args:
        score: Saliency per token ``(B, G * N)``, the same in every group.
        ratio: Mask ratio in (0, 1), of places.
        groups: Tokens at every place, G.
        generator: Source of randomness; None for torch's global one.
        valid: Tokens that hold data, boolean ``(B, G * N)``; None if all do.
        beta: Strength of the guidance by saliency; 0 for none.

    Returns:
        Visible and masked token indices.
    """
    count = score.shape[1] // groups
    known = None if valid is None else valid[:, :count]
    mask = saliency_mask(score[:, :count], ratio, generator, known, beta)
    return in_columns(mask, groups)


def group_mask(
    score: Tensor,
    ratio: float,
    groups: int,
    generator: Generator | SampleNoise | None = None,
    valid: Tensor | None = None,
) -> TokenMask:
    """Mask every group at places of its own: as many in each.

    SatMAE's independent masking (arXiv:2207.08051).

    Args:
        score: Any value per token ``(B, G * N)``; only shape and device are used.
        ratio: Mask ratio in (0, 1), of every group.
        groups: Tokens at every place, G.
        generator: Source of randomness; None for torch's global one.
        valid: Tokens that hold data, boolean ``(B, G * N)``; None if all do.

    Returns:
        Visible and masked token indices.
    """
    return mask_groups(uniform_noise(score, generator), ratio, groups, valid)


def channel_mask(
    score: Tensor,
    ratio: float,
    groups: int,
    generator: Generator | SampleNoise | None = None,
    valid: Tensor | None = None,
) -> TokenMask:
    """Mask whole groups, chosen at random for every sample, as far as the ratio goes.

    The "channel mask" S2MAE's slides draw for SatMAE, in our reading. The last group
    chosen is masked at random places, so that the ratio is kept exactly.

    Args:
        score: Any value per token ``(B, G * N)``; only shape and device are used.
        ratio: Mask ratio in (0, 1), of all tokens.
        groups: Tokens at every place, G.
        generator: Source of randomness; None for torch's global one.
        valid: Tokens that hold data, boolean ``(B, G * N)``; None if all do.

    Returns:
        Visible and masked token indices.
    """
    chance = uniform_noise(score[:, :groups], generator)
    return mask_channels(uniform_noise(score, generator), chance, ratio, valid)


def in_columns(mask: TokenMask, groups: int) -> TokenMask:
    """Take the same places in every group."""
    return _as_tokens(mask.keep.unsqueeze(1), mask.masked.unsqueeze(1), groups)


def mask_groups(
    noise: Tensor, ratio: float, groups: int, valid: Tensor | None
) -> TokenMask:
    """Mask every group by its own noise."""
    apart = noise.unflatten(1, (groups, -1)).flatten(0, 1)
    known = None if valid is None else valid.unflatten(1, (groups, -1)).flatten(0, 1)
    mask = mask_highest(apart, ratio, known)
    keep, masked = (places.unflatten(0, (-1, groups)) for places in mask)
    return _as_tokens(keep, masked, groups)


def _as_tokens(keep: Tensor, masked: Tensor, groups: int) -> TokenMask:
    """Number places ``(B, 1 or G, N')`` as tokens of their groups."""
    places = keep.shape[-1] + masked.shape[-1]
    shift = places * torch.arange(groups, device=keep.device)[:, None]
    return TokenMask((keep + shift).flatten(1), (masked + shift).flatten(1))


def mask_channels(
    noise: Tensor, chance: Tensor, ratio: float, valid: Tensor | None
) -> TokenMask:
    """Mask group by group, in the order of the groups' chance ``(B, G)``."""
    order = chance.argsort(dim=1).argsort(dim=1).unsqueeze(-1)
    keys = (noise.unflatten(1, (chance.shape[1], -1)) + order).flatten(1)
    return mask_highest(keys, ratio, valid)
