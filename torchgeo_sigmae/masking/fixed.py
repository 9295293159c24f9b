# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Masks that hang on a sample's place in its dataset alone, for validation."""

from torch import Tensor

from .noise import hashed_noise
from .spectral import in_columns, mask_channels, mask_groups
from .strategies import TokenMask, mask_highest

__all__ = ('fixed_mask',)


def fixed_mask(
    index: Tensor,
    num_tokens: int,
    ratio: float,
    valid: Tensor | None = None,
    masking: str = 'random',
    groups: int = 1,
) -> TokenMask:
    """Mask uniformly, by a sample's place in its dataset alone.

    The ground on which runs are compared: the same sample gets the same mask whatever
    the seed, the batch size, the number of processes or the machine.

    Args:
        index: Places of the samples in their dataset, integers ``(B,)``.
        num_tokens: Number of tokens, ``G * N``.
        ratio: Mask ratio in (0, 1).
        valid: Tokens that hold data, boolean ``(B, G * N)``; None if all do.
        masking: ``'random'``, or ``'spatial'``, ``'group'``, ``'channel'`` as in
            :func:`.column_mask`, :func:`.group_mask` and :func:`.channel_mask`.
        groups: Tokens at every place, G.

    Returns:
        Visible and masked token indices.

    Raises:
        ValueError: If *ratio* is not in (0, 1), *masking* is not one of these, or N is
            under 2.
    """
    noise = hashed_noise(index, num_tokens + groups)
    noise, chance = noise[:, :num_tokens], noise[:, num_tokens:]
    match masking:
        case 'random':
            return mask_highest(noise, ratio, valid)
        case 'spatial':
            count = num_tokens // groups
            known = None if valid is None else valid[:, :count]
            return in_columns(mask_highest(noise[:, :count], ratio, known), groups)
        case 'group':
            return mask_groups(noise, ratio, groups, valid)
        case 'channel':
            return mask_channels(noise, chance, ratio, valid)
    raise ValueError(
        f'masking: {masking!r} cannot be fixed. Use random, spatial, group or channel.'
    )
