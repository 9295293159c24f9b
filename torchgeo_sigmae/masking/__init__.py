# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Masking strategies and their schedule: tensors, no Lightning."""

from .masks import (
    TokenMask,
    band_mask,
    independent_group_mask,
    num_masked_tokens,
    random_mask,
    saliency_mask,
    select_targets,
    spatial_mask,
    whole_group_mask,
)
from .noise import sample_noise
from .schedule import MASKINGS, SCHEDULES, MaskSchedule

__all__ = (
    'MASKINGS',
    'SCHEDULES',
    'MaskSchedule',
    'TokenMask',
    'band_mask',
    'independent_group_mask',
    'num_masked_tokens',
    'random_mask',
    'saliency_mask',
    'sample_noise',
    'select_targets',
    'spatial_mask',
    'whole_group_mask',
)
