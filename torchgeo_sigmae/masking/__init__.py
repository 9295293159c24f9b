# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Masking strategies and the curriculum that drives them: tensors, no Lightning."""

from .curriculum import (
    MASKINGS,
    SCHEDULES,
    Curriculum,
    schedule,
)
from .fixed import fixed_mask
from .noise import SampleNoise
from .spectral import channel_mask, column_mask, group_mask
from .strategies import (
    TokenMask,
    num_masked_tokens,
    random_mask,
    saliency_mask,
    saliency_ranks,
    select_predicted,
)

__all__ = (
    'MASKINGS',
    'SCHEDULES',
    'Curriculum',
    'SampleNoise',
    'TokenMask',
    'channel_mask',
    'column_mask',
    'fixed_mask',
    'group_mask',
    'num_masked_tokens',
    'random_mask',
    'saliency_mask',
    'saliency_ranks',
    'schedule',
    'select_predicted',
)
