# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The mask schedule: from easy (random masks) to hard (salient patches hidden)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .masks import (
    TokenMask,
    check_mask_ratio,
    independent_group_mask,
    random_mask,
    saliency_mask,
    spatial_mask,
    whole_group_mask,
)

__all__ = ('MASKINGS', 'SCHEDULES', 'MaskSchedule', 'interpolate')

#: Masking strategies, each with what it hides; G is the number of tokens per patch
#: position.
MASKINGS: dict[str, str] = {
    'random': 'any token',
    'saliency': 'any token, salient patches more often',
    'spatial': 'the same positions in every group (G > 1)',
    'saliency_spatial': 'the same positions in every group, salient more often (G > 1)',
    'group': 'other positions in every group (G > 1)',
    'channel': 'whole groups (G > 1)',
}

#: Shapes of a schedule.
SCHEDULES: tuple[str, ...] = ('linear', 'cosine', 'constant')


def interpolate(
    progress: float, start: float, end: float, schedule: str = 'linear'
) -> float:
    """Interpolate between two values along training.

    *progress* is the share of training done, clamped to [0, 1]. *schedule* is
    ``'linear'``, ``'cosine'`` (slow, fast, slow) or ``'constant'`` (*end* throughout).
    """
    progress = min(max(progress, 0.0), 1.0)
    match schedule:
        case 'linear':
            weight = progress
        case 'cosine':
            weight = (1 - math.cos(math.pi * progress)) / 2
        case 'constant':
            weight = 1.0
        case _:
            raise ValueError(
                f'guidance.schedule: {schedule!r} is unknown. '
                f'Use one of {", ".join(SCHEDULES)}.'
            )
    return (1 - weight) * start + weight * end


@dataclass(frozen=True)
class MaskSchedule:
    """Masks of a run, from its first step to its last.

    SSDTM (SIGMAE, arXiv:2603.07463) raises the difficulty along training. The paper's
    text names no schedule; here the strength of the guidance, and optionally the mask
    ratio, move from a start to an end value.

    Attributes:
        strategy: One of :data:`.MASKINGS`: ``'saliency'`` (SSDTM), ``'random'`` (MAE),
            or with several tokens per patch position ``'spatial'``,
            ``'saliency_spatial'``, ``'group'``, ``'channel'``.
        ratio: Mask ratio in (0, 1), or a (start, end) pair.
        strength: Strength of the guidance, a (start, end) pair; 0 is random masking.
        schedule: ``'linear'``, ``'cosine'`` or ``'constant'`` (the end values
            throughout).
        groups: Tokens per patch position, G.
    """

    strategy: str = 'saliency'
    ratio: float | Sequence[float] = 0.9
    strength: tuple[float, float] = (0.0, 1.0)
    schedule: str = 'linear'
    groups: int = 1

    def __post_init__(self) -> None:
        """Refuse unknown names and values out of range."""
        if self.strategy not in MASKINGS:
            raise ValueError(
                f'masking: {self.strategy!r} is unknown. '
                f'Use one of {", ".join(MASKINGS)}.'
            )
        if self.groups == 1 and self.strategy not in {'random', 'saliency'}:
            instead = 'saliency' if self.guided else 'random'
            raise ValueError(
                f'masking: {self.strategy!r} is for models with several tokens per '
                'patch position (s2mae_vit_*, satmae_vit_*); this one has one token of '
                f'all bands. Use masking={instead!r}.'
            )
        if not isinstance(self.ratio, int | float) and len(self.ratio) != 2:
            raise ValueError(
                f'mask_ratio: {self.ratio} is neither a number nor a pair (start, end).'
            )
        if not all(map(math.isfinite, self.strength)):
            raise ValueError(
                f'guidance.strength: {self.strength} must be finite; 0 is '
                'random masking.'
            )
        for progress in (0.0, 1.0):
            check_mask_ratio(self.ratio_at(progress))

    @property
    def guided(self) -> bool:
        """True if the mask depends on saliency."""
        return self.strategy.startswith('saliency')

    def ratio_at(self, progress: float) -> float:
        """Mask ratio at *progress*, the share of training done in [0, 1]."""
        ratio = self.ratio
        start, end = (ratio, ratio) if isinstance(ratio, int | float) else ratio
        return interpolate(progress, start, end, self.schedule)

    def strength_at(self, progress: float) -> float:
        """Strength of the guidance at *progress*; 0 is random masking."""
        if not self.guided:
            return 0.0
        return interpolate(progress, *self.strength, self.schedule)

    def mask(
        self,
        score: Tensor,
        noise: Tensor,
        progress: float,
        valid: Tensor | None = None,
    ) -> TokenMask:
        """Mask tokens.

        Equal noise gives equal masks. If *score* is the same everywhere, the mask is
        not guided, and samples with fixed noise get fixed masks, whatever the strength.

        Args:
            score: Saliency per token, ``(B, G * N)``.
            noise: Uniform noise in (0, 1), same shape, see :func:`.sample_noise`.
            progress: Share of training done, in [0, 1].
            valid: Tokens that hold data, boolean, same shape; None if all do.
        """
        ratio, beta = self.ratio_at(progress), self.strength_at(progress)
        match self.strategy:
            case 'random':
                return random_mask(noise, ratio, valid)
            case 'saliency':
                return saliency_mask(score, noise, ratio, beta, valid)
            case 'group':
                return independent_group_mask(noise, ratio, self.groups, valid)
            case 'channel':
                return whole_group_mask(noise, ratio, self.groups, valid)
        return spatial_mask(score, noise, ratio, beta, self.groups, valid)
