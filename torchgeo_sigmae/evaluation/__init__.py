# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation of pretrained encoders."""

from .features import Features, extract_features
from .frozen import BandStatistics, FrozenEncoder
from .probes import (
    Score,
    few_labels,
    fixed_split,
    grouped_folds,
    repeated_folds,
    score,
)

__all__ = (
    'BandStatistics',
    'Features',
    'FrozenEncoder',
    'Score',
    'extract_features',
    'few_labels',
    'fixed_split',
    'grouped_folds',
    'repeated_folds',
    'score',
)
