# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The curriculum: from easy (random masks) to hard (salient patches hidden)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Generator, Tensor

from .fixed import fixed_mask
from .noise import SampleNoise
from .spectral import channel_mask, column_mask, group_mask
from .strategies import (
    TokenMask,
    check_mask_ratio,
    random_mask,
    saliency_mask,
)

__all__ = ('MASKINGS', 'SCHEDULES', 'Curriculum', 'schedule')

#: Known masking strategies, each with what it is for; G is the number of tokens at
#: every place.
MASKINGS: dict[str, str] = {
    'random': 'any token',
    'saliency': 'any token, salient patches more often',
    'spatial': 'the same places in every group (G > 1)',
    'saliency_spatial': 'the same places in every group, salient more often (G > 1)',
    'group': 'places of its own in every group (G > 1)',
    'channel': 'whole groups (G > 1)',
}

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
        masking: One of :data:`.MASKINGS`: ``'saliency'`` (SSDTM), ``'random'`` (MAE),
            or for tokens with a spectral axis ``'spatial'``, ``'saliency_spatial'``,
            ``'group'``, ``'channel'``.
        mask_ratio: Share of masked tokens in (0, 1), or a (start, end) pair.
        beta: Strength of the guidance, a (start, end) pair; 0 is random masking.
        shape: ``'linear'``, ``'cosine'`` or ``'constant'`` (the end values throughout).
        groups: Tokens at every place, G.
    """

    masking: str = 'saliency'
    mask_ratio: float | Sequence[float] = 0.9
    beta: tuple[float, float] = (0.0, 1.0)
    shape: str = 'linear'
    groups: int = 1

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
        if self.groups == 1 and self.masking not in {'random', 'saliency'}:
            same = 'saliency' if 'saliency' in self.masking else 'random'
            raise ValueError(
                f'masking: {self.masking!r} is for models with several tokens at every '
                'place (s2mae_vit_*, satmae_vit_*), this one has one token of all '
                f'bands. Use masking={same!r}.'
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

    @property
    def guided(self) -> bool:
        """Whether saliency steers the mask."""
        return self.masking.startswith('saliency')

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
        if not self.guided:
            return 0.0
        return schedule(progress, *self.beta, self.shape)

    def mask(
        self,
        saliency: Tensor,
        progress: float,
        generator: Generator | SampleNoise | None = None,
        valid: Tensor | None = None,
    ) -> TokenMask:
        """Mask tokens as at a point of training.

        Args:
            saliency: Saliency per token, ``(B, G * N)``.
            progress: Share of training done, in [0, 1].
            generator: Source of randomness; None for torch's global one.
            valid: Tokens that hold data, boolean ``(B, N)``; None if all do.

        Returns:
            Visible and masked token indices.
        """
        ratio, beta = self.ratio_at(progress), self.beta_at(progress)
        match self.masking:
            case 'random':
                return random_mask(saliency, ratio, generator, valid)
            case 'saliency':
                return saliency_mask(saliency, ratio, generator, valid, beta)
            case 'group':
                return group_mask(saliency, ratio, self.groups, generator, valid)
            case 'channel':
                return channel_mask(saliency, ratio, self.groups, generator, valid)
        return column_mask(saliency, ratio, self.groups, generator, valid, beta)

    def fixed_mask(
        self, index: Tensor, num_tokens: int, valid: Tensor | None = None
    ) -> TokenMask:
        """Mask as at the end of training, but by a sample's place and unguided.

        What is hidden together in training is hidden together here, so that a model is
        measured on what it was taught. Saliency has no say, so that guided and unguided
        runs are measured on the same masks.

        Args:
            index: Places of the samples in their dataset, integers ``(B,)``.
            num_tokens: Number of tokens, ``G * N``.
            valid: Tokens that hold data, boolean ``(B, G * N)``; None if all do.

        Returns:
            Visible and masked token indices, see :func:`.fixed_mask`.
        """
        plain, ratio = self.unguided(), self.ratio_at(1.0)
        return fixed_mask(index, num_tokens, ratio, valid, plain.masking, self.groups)

    def unguided(self, **changes: Any) -> 'Curriculum':
        """Leave saliency out.

        Args:
            **changes: Other attributes to change.

        Returns:
            A curriculum that hides together what this one does, at random.
        """
        masking = {'saliency': 'random', 'saliency_spatial': 'spatial'}
        name = masking.get(self.masking, self.masking)
        return replace(self, masking=name, **changes)
