# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The curriculum: from easy (random masks) to hard (salient patches hidden)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torchmetrics import Metric

from .strategies import (
    TokenMask,
    check_mask_ratio,
    random_mask,
    saliency_mask,
    saliency_ranks,
)

__all__ = ('MASKINGS', 'SCHEDULES', 'Curriculum', 'VisibilityRatio', 'schedule')

#: Known masking strategies.
MASKINGS: tuple[str, ...] = ('random', 'saliency')

#: Known shapes of a schedule.
SCHEDULES: tuple[str, ...] = ('linear', 'cosine', 'constant')


def schedule(progress: float, start: float, end: float, shape: str = 'linear') -> float:
    """Interpolate between two values along training.

    Args:
        progress: Share of training done, in [0, 1]; values outside are clamped.
        start: Value at the beginning.
        end: Value at the end.
        shape: ``'linear'``; ``'cosine'`` (slow, fast, slow); ``'constant'`` (*end*
            throughout).

    Returns:
        The value now.

    Raises:
        ValueError: If *shape* is unknown.
    """
    progress = min(max(progress, 0.0), 1.0)
    match shape:
        case 'linear':
            weight = progress
        case 'cosine':
            weight = (1 - math.cos(math.pi * progress)) / 2
        case 'constant':
            weight = 1.0
        case _:
            raise ValueError(
                f'curriculum: {shape!r} is unknown. Use one of {", ".join(SCHEDULES)}.'
            )
    return (1 - weight) * start + weight * end


@dataclass(frozen=True)
class Curriculum:
    """How a run masks, from its first step to its last.

    SSDTM (SIGMAE, arXiv:2603.07463) raises the difficulty along training. The paper's
    text names no schedule; here the strength of the guidance, and if wanted the mask
    ratio, move from a start to an end value.

    Attributes:
        masking: ``'saliency'`` (SSDTM) or ``'random'`` (MAE).
        mask_ratio: Share of masked tokens in (0, 1), or a (start, end) pair.
        beta: Strength of the guidance, a (start, end) pair; 0 is random masking.
        shape: ``'linear'``, ``'cosine'`` or ``'constant'`` (the end values throughout).
    """

    masking: str = 'saliency'
    mask_ratio: float | Sequence[float] = 0.9
    beta: tuple[float, float] = (0.0, 1.0)
    shape: str = 'linear'

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing.

        Raises:
            ValueError: If a name is unknown or a ratio out of range.
        """
        if self.masking not in MASKINGS:
            raise ValueError(
                f'masking: {self.masking!r} is unknown. '
                f'Use one of {", ".join(MASKINGS)}.'
            )
        if not isinstance(self.mask_ratio, int | float) and len(self.mask_ratio) != 2:
            raise ValueError(
                f'mask_ratio: {self.mask_ratio} is neither a number nor a pair '
                '(start, end).'
            )
        if not all(math.isfinite(beta) for beta in self.beta):
            raise ValueError(
                f'saliency_start, saliency_end: {self.beta} must be finite; 0 is '
                'random masking.'
            )
        for progress in (0.0, 1.0):
            check_mask_ratio(self.ratio_at(progress))

    def ratio_at(self, progress: float) -> float:
        """Look up the mask ratio.

        Args:
            progress: Share of training done, in [0, 1].

        Returns:
            The mask ratio in (0, 1).
        """
        ratio = self.mask_ratio
        start, end = (ratio, ratio) if isinstance(ratio, int | float) else ratio
        return schedule(progress, start, end, self.shape)

    def beta_at(self, progress: float) -> float:
        """Look up the strength of the guidance.

        Args:
            progress: Share of training done, in [0, 1].

        Returns:
            The strength; 0 is random masking.
        """
        if self.masking == 'random':
            return 0.0
        return schedule(progress, *self.beta, self.shape)

    def mask(
        self,
        saliency: Tensor,
        progress: float,
        generator: Generator | None = None,
        valid: Tensor | None = None,
    ) -> TokenMask:
        """Mask tokens as at a point of training.

        Args:
            saliency: Saliency per token, ``(B, N)``.
            progress: Share of training done, in [0, 1].
            generator: Source of randomness; None for torch's global one.
            valid: Tokens that hold data, boolean ``(B, N)``; None if all do.

        Returns:
            Visible and masked token indices.
        """
        ratio = self.ratio_at(progress)
        if self.masking == 'random':
            return random_mask(saliency, ratio, generator, valid)
        beta = self.beta_at(progress)
        return saliency_mask(saliency, ratio, generator, valid, beta)


class VisibilityRatio(Metric):
    """How many times likelier the least salient tenth is visible than the most salient.

    1 under random masking; above 1 where salient patches are hidden more often.
    """

    full_state_update = False
    is_differentiable = False

    least: Tensor
    most: Tensor

    def __init__(self) -> None:
        """Initialize a new VisibilityRatio instance."""
        super().__init__()
        self.add_state('least', torch.tensor(0.0), dist_reduce_fx='sum')
        self.add_state('most', torch.tensor(0.0), dist_reduce_fx='sum')

    def update(self, score: Tensor, keep: Tensor, valid: Tensor | None = None) -> None:
        """Count the visible tokens in both tenths.

        Args:
            score: Saliency per token, ``(B, N)``.
            keep: Indices of the visible tokens, ``(B, V)``.
            valid: Tokens that hold data, boolean ``(B, N)``; None if all do.
        """
        # A generator of its own: counting must not disturb the masks that follow.
        generator = torch.Generator(score.device).manual_seed(0)
        rank = saliency_ranks(score, generator, valid).gather(-1, keep)
        if valid is not None:
            rank = torch.where(valid.gather(-1, keep), rank, 0.5)
        self.least += (rank < 0.1).sum()
        self.most += (rank > 0.9).sum()

    def compute(self) -> Tensor:
        """Compute the ratio.

        Returns:
            The ratio, with half a token in place of a count of zero.
        """
        return self.least.clamp(min=0.5) / self.most.clamp(min=0.5)
