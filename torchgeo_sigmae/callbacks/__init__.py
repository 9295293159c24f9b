# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Callbacks for pretraining and fine-tuning."""

from .checkpoint import ResumableCheckpoint, newest_checkpoint
from .fine_tuning import FineTuning
from .finite import FiniteGuard
from .positive import PositiveClassMetrics

__all__ = (
    'FineTuning',
    'FiniteGuard',
    'PositiveClassMetrics',
    'ResumableCheckpoint',
    'newest_checkpoint',
)
