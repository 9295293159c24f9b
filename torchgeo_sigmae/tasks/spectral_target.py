# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The spectral target: what a hidden patch is made of, beside what it looks like.

``norm_pix_loss`` normalizes every patch by its own mean and variance, so the pixel
target says nothing about the level and the spectrum of a patch. The spectral target
says just that: the mean of the patch in every band, and mean and standard deviation of
its spectral indices. It is ours, not the paper's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import gather_tokens
from .reconstruction import TokenBatch

__all__ = ('spectral_loss', 'spectral_target')


def spectral_target(tokens: TokenBatch, index: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the spectral statistics of tokens.

    Args:
        tokens: The batch, with ``moments``.
        index: Token indices ``(B, P)``.

    Returns:
        Statistics ``(B, P, m + 2 K)``: standardized mean in each of the m bands of a
        token, then mean and standard deviation of each of the K indices over the valid
        pixels of its patch; and which of them are defined, boolean, same shape.
    """
    groups, bands = tokens.layout.num_groups, tokens.layout.group_size
    values, valid = (
        gather_tokens(x, index).unflatten(-1, (bands, -1))
        for x in (tokens.patches, tokens.pixels)
    )
    count = valid.sum(dim=-1)
    mean = torch.where(valid, values, 0).sum(dim=-1) / count.clamp(min=1)
    if tokens.moments is None:
        raise ValueError('tokens: no index moments. Make the tokens with them.')
    moments = gather_tokens(tokens.moments.repeat(1, groups, 1), index)
    defined = moments.isfinite()
    target = torch.cat([mean, torch.where(defined, moments, 0)], dim=-1)
    return target, torch.cat([count > 0, defined], dim=-1)


def spectral_loss(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Smooth L1 error over the statistics that count, in float32.

    Args:
        prediction: ``(B, P, S)``.
        target: Same shape.
        counted: Which entries count, boolean, same shape.

    Returns:
        The scalar error; 0, with zero gradients, where nothing counts.
    """
    error = F.smooth_l1_loss(prediction.float(), target.float(), reduction='none')
    return torch.where(counted, error, 0).sum() / counted.sum().clamp(min=1)
