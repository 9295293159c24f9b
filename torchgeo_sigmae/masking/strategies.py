# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Which tokens to hide, and which of the hidden ones to predict.

A strategy is a pure function of (score, ratio, generator). All strategies are one rule,
*mask the M highest keys*, and differ only in the keys. Tokens without a valid pixel get
the highest keys of all, so they are masked first and never predicted.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .noise import SampleNoise, gumbel_noise, uniform_noise

__all__ = (
    'TokenMask',
    'num_masked_tokens',
    'random_mask',
    'saliency_mask',
    'saliency_ranks',
    'select_predicted',
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

    Raises:
        ValueError: If *ratio* is not in (0, 1), or N is under 2.
    """
    check_mask_ratio(ratio)
    if num_tokens < 2:
        raise ValueError(
            f'num_tokens: {num_tokens} token cannot be split into visible and masked. '
            'Use larger images or smaller patches.'
        )
    return min(max(round(ratio * num_tokens), 1), num_tokens - 1)


def check_mask_ratio(ratio: float) -> None:
    """Refuse mask ratios outside (0, 1).

    Args:
        ratio: Mask ratio.

    Raises:
        ValueError: If *ratio* is not strictly between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ValueError(
            f'mask_ratio: {ratio} is not in (0, 1). It is the share of hidden tokens, '
            'for example 0.75 (MAE) or 0.9 (SIGMAE, S2MAE).'
        )


def check_predict_ratio(ratio: float) -> None:
    """Refuse shares of predicted tokens outside (0, 1].

    Args:
        ratio: Share of the valid masked tokens to predict.

    Raises:
        ValueError: If *ratio* is not above 0 and at most 1.
    """
    if not 0 < ratio <= 1:
        raise ValueError(
            f'predict_ratio: {ratio} is not in (0, 1]. 1 predicts every masked token.'
        )


def random_mask(
    score: Tensor,
    ratio: float,
    generator: Generator | SampleNoise | None = None,
    valid: Tensor | None = None,
) -> TokenMask:
    """Mask tokens uniformly at random, as in MAE (arXiv:2111.06377).

    Args:
        score: Any value per token, ``(B, N)``; only shape and device are used.
        ratio: Mask ratio in (0, 1).
        generator: Source of randomness; None for torch's global one.
        valid: Tokens that hold data, boolean ``(B, N)``; None if all do.

    Returns:
        Visible and masked token indices.

    Raises:
        ValueError: If *ratio* is not in (0, 1), or N is under 2.
    """
    return mask_highest(gumbel_noise(score, generator), ratio, valid)


def saliency_mask(
    score: Tensor,
    ratio: float,
    generator: Generator | SampleNoise | None = None,
    valid: Tensor | None = None,
    beta: float = 1.0,
) -> TokenMask:
    r"""Mask salient tokens more often: weighted sampling without replacement.

    This is the masking step of SSDTM (SIGMAE, arXiv:2603.07463) in our reading. Each
    token draws a key from its saliency rank and Gumbel noise, and the M highest are
    masked:

    .. math::

       key_p = \beta \left( \frac{rank_p}{N - 1} - \frac{1}{2} \right) + G_p

    With :math:`\beta = 0` this is exactly :func:`random_mask`; a larger
    :math:`\beta` hides salient tokens more often, yet every token keeps a chance to be
    seen.

    Args:
        score: Saliency per token, ``(B, N)``; only its order within a sample matters,
            ties are broken at random.
        ratio: Mask ratio in (0, 1).
        generator: Source of randomness; None for torch's global one.
        valid: Tokens that hold data, boolean ``(B, N)``; None if all do.
        beta: Strength of the guidance; negative hides the *least* salient.

    Returns:
        Visible and masked token indices.

    Raises:
        ValueError: If *ratio* is not in (0, 1), or N is under 2.
    """
    rank = saliency_ranks(score, generator, valid)
    keys = beta * (rank - 0.5) + gumbel_noise(score, generator)
    return mask_highest(keys, ratio, valid)


def saliency_ranks(
    score: Tensor,
    generator: Generator | SampleNoise | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Rank the valid tokens of every sample from 0 (least salient) to 1 (most).

    Args:
        score: Saliency per token, ``(B, N)``.
        generator: Source of randomness for ties; None for torch's global one.
        valid: Tokens that hold data, boolean ``(B, N)``; None if all do.

    Returns:
        Ranks in [0, 1], ``(B, N)``, float32; 1 at invalid tokens.
    """
    if valid is not None:
        score = torch.where(valid, score, torch.inf)
        count = valid.sum(dim=-1, keepdim=True)
    else:
        count = torch.full_like(score[:, :1], score.shape[-1])
    # Shuffling before a stable sort breaks ties at random.
    shuffle = uniform_noise(score, generator).argsort(dim=-1)
    order = shuffle.gather(-1, score.gather(-1, shuffle).argsort(dim=-1, stable=True))
    rank = order.argsort(dim=-1).float()
    return (rank / (count - 1).clamp(min=1)).clamp(max=1)


def select_predicted(
    masked: Tensor,
    valid: Tensor | None = None,
    ratio: float = 1.0,
    generator: Generator | SampleNoise | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose which masked tokens the decoder predicts: a share of the valid.

    Every sample gets the same number of slots P, so that the batch stays rectangular;
    slots a sample has no use for are marked as not to be counted.

    Args:
        masked: Masked token indices, ``(B, M)``.
        valid: Tokens that hold data, boolean ``(B, N)``; None if all do.
        ratio: Share of the valid masked tokens to predict, in (0, 1].
        generator: Source of randomness; None for torch's global one.

    Returns:
        Token indices ``(B, P)`` with ``P = max(round(ratio * M), 1)``, and which of
        them count, boolean ``(B, P)``. At least one counts wherever a sample has a
        valid masked token.

    Raises:
        ValueError: If *ratio* is not in (0, 1].
    """
    check_predict_ratio(ratio)
    if valid is None:
        usable = torch.ones_like(masked, dtype=torch.bool)
    else:
        usable = valid.gather(-1, masked)
    if ratio == 1:
        return masked, usable
    slots = max(round(ratio * masked.shape[-1]), 1)
    draw = uniform_noise(masked, generator) - usable.float()
    chosen = draw.argsort(dim=-1)
    chosen = chosen[:, :slots]
    share = (ratio * usable.sum(dim=-1, keepdim=True)).round().clamp(min=1)
    within_share = torch.arange(slots, device=masked.device) < share
    return masked.gather(-1, chosen), usable.gather(-1, chosen) & within_share


def mask_highest(keys: Tensor, ratio: float, valid: Tensor | None) -> TokenMask:
    """Split tokens into the M highest keys and the rest; invalid tokens go first."""
    count = num_masked_tokens(keys.shape[-1], ratio)
    if valid is not None:
        # Added, not infinite: with more invalid tokens than places, noise decides.
        keys = keys + torch.where(valid, 0.0, 1e4)
    order = keys.argsort(dim=-1, descending=True)
    return TokenMask(keep=order[:, count:], masked=order[:, :count])
