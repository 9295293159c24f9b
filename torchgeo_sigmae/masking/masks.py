# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Masking strategies: which tokens to hide, and which of them to predict.

A strategy is a pure function of ``(score, noise, ratio, beta, valid)``, or of those of
them that it needs. All strategies follow one rule, *mask the M tokens with the highest
keys*, and differ in the keys. Tokens without data are masked before all others and
never predicted.

Convention: *noise* is uniform in (0, 1), an independent number per token, see
:func:`.sample_noise`. Models with G tokens per patch position number them group by
group: token ``g * N + p`` belongs to group g and position p.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..patches import rank_patches
from .noise import gumbel

__all__ = (
    'TokenMask',
    'band_mask',
    'independent_group_mask',
    'num_masked_tokens',
    'random_mask',
    'saliency_mask',
    'select_targets',
    'spatial_mask',
    'whole_group_mask',
)


class TokenMask(NamedTuple):
    """A partition of the N tokens of every sample.

    Attributes:
        keep: Indices of the visible tokens, ``(B, N - M)``.
        masked: Indices of the masked tokens, ``(B, M)``.
    """

    keep: Tensor
    masked: Tensor


def num_masked_tokens(num_tokens: int, ratio: float) -> int:
    """Count the tokens to mask: at least one is masked, at least one stays visible.

    Args:
        num_tokens: Number of tokens N, at least 2.
        ratio: Mask ratio in (0, 1).

    Returns:
        ``min(max(round(ratio * N), 1), N - 1)``.
    """
    check_mask_ratio(ratio)
    if num_tokens < 2:
        raise ValueError(
            f'num_tokens: {num_tokens} token cannot be split into visible and masked. '
            'Use larger images or smaller patches.'
        )
    return min(max(round(ratio * num_tokens), 1), num_tokens - 1)


def check_mask_ratio(ratio: float) -> None:
    """Refuse mask ratios outside (0, 1)."""
    if not 0 < ratio < 1:
        raise ValueError(
            f'mask_ratio: {ratio} is not in (0, 1). It is the share of hidden tokens, '
            'for example 0.75 (MAE) or 0.9 (SIGMAE, S2MAE).'
        )


def check_predict_ratio(ratio: float) -> None:
    """Refuse shares of predicted tokens outside (0, 1]."""
    if not 0 < ratio <= 1:
        raise ValueError(
            f'predict_ratio: {ratio} is not in (0, 1]. 1 predicts every masked token.'
        )


def check_band_dropout(share: float, bands: int) -> None:
    """Refuse shares outside [0, 1), and those that hide no band."""
    if not 0 <= share < 1 or (share and not min(int(share * bands), bands - 1)):
        raise ValueError(
            f'band_dropout: {share} of {bands} bands. Pass 0, or a share in [0, 1) of '
            'at least one band that leaves one, for example 0.6.'
        )


def random_mask(noise: Tensor, ratio: float, valid: Tensor | None = None) -> TokenMask:
    """Mask tokens uniformly at random, as in MAE (arXiv:2111.06377).

    Args:
        noise: Uniform noise, ``(B, N)``.
        ratio: Mask ratio in (0, 1).
        valid: Tokens that hold data, boolean ``(B, N)``; None if all do.
    """
    return mask_highest(noise, ratio, valid)


def saliency_mask(
    score: Tensor,
    noise: Tensor,
    ratio: float,
    beta: float,
    valid: Tensor | None = None,
) -> TokenMask:
    r"""Mask salient tokens more often: weighted sampling without replacement.

    This is the masking step of SSDTM (SIGMAE, arXiv:2603.07463) in our reading. The key
    of a token is made of its saliency rank and Gumbel noise, and the M highest keys are
    masked:

    .. math::

       key_p = \beta \left( \frac{rank_p}{N - 1} - \frac{1}{2} \right) + G_p

    With :math:`\beta = 0` this is exactly :func:`random_mask`; a larger
    :math:`\beta` hides salient tokens more often, yet every token may stay visible.

    Args:
        score: Saliency per token, ``(B, N)``. Only its order within a sample matters;
            tokens of equal saliency are equally likely to be masked.
        noise: Uniform noise, ``(B, N)``.
        ratio: Mask ratio in (0, 1).
        beta: Strength of the guidance; negative hides the *least* salient.
        valid: Tokens that hold data, boolean ``(B, N)``; None if all do.
    """
    keys = beta * (rank_patches(score, valid) - 0.5) + gumbel(noise)
    return mask_highest(keys, ratio, valid)


def spatial_mask(
    score: Tensor,
    noise: Tensor,
    ratio: float,
    beta: float,
    groups: int,
    valid: Tensor | None = None,
) -> TokenMask:
    """Mask the same patch positions in every group.

    With *beta* 0 this is SatMAE's consistent masking (arXiv:2207.08051), else SSDTM on
    patch positions.

    Args:
        score: Saliency per token, ``(B, G * N)``, the same in every group.
        noise: Uniform noise, ``(B, G * N)``, of which the first N are used.
        ratio: Mask ratio in (0, 1).
        beta: Strength of the guidance; 0 for none.
        groups: Tokens per patch position, G.
        valid: Tokens that hold data, boolean ``(B, G * N)``; None if all do.
    """
    positions = score.shape[1] // groups
    if valid is not None:
        valid = valid.unflatten(1, (groups, -1)).any(dim=1)
    mask = saliency_mask(score[:, :positions], noise[:, :positions], ratio, beta, valid)
    return _number_tokens(mask.keep.unsqueeze(1), mask.masked.unsqueeze(1), groups)


def independent_group_mask(
    noise: Tensor, ratio: float, groups: int, valid: Tensor | None = None
) -> TokenMask:
    """Mask as many tokens in every group, at patch positions drawn group by group.

    SatMAE's independent masking (arXiv:2207.08051). *noise* and *valid* are
    ``(B, G * N)``, for G *groups*.
    """
    if valid is not None:
        valid = valid.unflatten(1, (groups, -1))
    mask = mask_highest(noise.unflatten(1, (groups, -1)), ratio, valid)
    return _number_tokens(mask.keep, mask.masked, groups)


def whole_group_mask(
    noise: Tensor, ratio: float, groups: int, valid: Tensor | None = None
) -> TokenMask:
    """Mask whole groups in random order, up to the mask ratio.

    The "channel mask" S2MAE's slides draw for SatMAE, in our reading. The last group is
    masked at random positions in part, so that the ratio of all tokens is exact.
    *noise* and *valid* are ``(B, G * N)``, for G *groups*.
    """
    noise = noise.unflatten(1, (groups, -1))
    # Groups are ordered by their largest number. It says nothing about which of their
    # tokens it belongs to, so tokens are still in random order within a group.
    order = noise.amax(dim=2, keepdim=True).argsort(dim=1, stable=True).argsort(dim=1)
    return mask_highest((noise + order).flatten(1), ratio, valid)


def select_targets(
    masked: Tensor, noise: Tensor, ratio: float, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose the masked tokens that the decoder predicts: a random share of the valid.

    Every sample gets the same number of tokens P, so that the batch is rectangular. In
    samples with fewer valid tokens, the surplus is marked as not counted.

    Args:
        masked: Masked token indices, ``(B, M)``.
        noise: Uniform noise, ``(B, M)``, independent of that of the mask.
        ratio: Share of the valid masked tokens to predict, in (0, 1].
        valid: Tokens that hold data, boolean ``(B, N)``; None if all do.

    Returns:
        Token indices ``(B, P)`` with ``P = max(round(ratio * M), 1)``, and which of
        them count, boolean ``(B, P)``. At least one counts in every sample that has a
        valid masked token.
    """
    check_predict_ratio(ratio)
    if valid is None:
        usable = torch.ones_like(masked, dtype=torch.bool)
    else:
        usable = valid.gather(-1, masked)
    if ratio == 1:
        return masked, usable
    count = max(round(ratio * masked.shape[-1]), 1)
    # Usable tokens first.
    chosen = (noise - usable.float()).argsort(dim=-1, stable=True)[:, :count]
    share = (ratio * usable.sum(dim=-1, keepdim=True)).round().clamp(min=1)
    within_share = torch.arange(count, device=masked.device) < share
    return masked.gather(-1, chosen), usable.gather(-1, chosen) & within_share


def band_mask(noise: Tensor, share: float) -> Tensor:
    """Choose bands to hide from the encoder, in half of the samples.

    This is ours: from samples that lack bands, the encoder learns to work without them.

    Args:
        noise: Uniform noise, ``(B, 2 + C)``: whether, how many, and which.
        share: Largest share of the bands to hide, in [0, 1).

    Returns:
        Hidden bands, boolean ``(B, C)``: from one to ``share * C``, never all, in half
        of the samples; none in the others.
    """
    bands = noise.shape[1] - 2
    most = min(int(share * bands), bands - 1)
    count = 1 + (noise[:, 1] * most).long().clamp(max=most - 1)
    count = torch.where(noise[:, 0] < 0.5, count, 0) if most else count * 0
    return noise[:, 2:].argsort(dim=1).argsort(dim=1) < count.unsqueeze(1)


def mask_highest(keys: Tensor, ratio: float, valid: Tensor | None = None) -> TokenMask:
    """Mask the M highest keys ``(..., N)``, those of invalid tokens before all."""
    count = num_masked_tokens(keys.shape[-1], ratio)
    if valid is not None:
        keys = torch.where(valid, keys, torch.inf)
    # Stable, so that equal keys are in the same order on every device.
    order = keys.argsort(dim=-1, descending=True, stable=True)
    return TokenMask(keep=order[..., count:], masked=order[..., :count])


def _number_tokens(keep: Tensor, masked: Tensor, groups: int) -> TokenMask:
    """Turn positions in the groups ``(B, 1 or G, n)`` into token indices."""
    positions = keep.shape[-1] + masked.shape[-1]
    first = positions * torch.arange(groups, device=keep.device)[:, None]
    return TokenMask((keep + first).flatten(1), (masked + first).flatten(1))
