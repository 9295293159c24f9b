# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation of pretrained encoders and of reconstructions."""

from .frozen import BandStatistics, FrozenEncoder
from .positive import PositiveClassMetrics
from .probe import Features, extract_features
from .probes import Score, few_labels, fixed_split, repeated_folds, score
from .reconstruction import ReconstructionMetrics

__all__ = (
    'BandStatistics',
    'Features',
    'FrozenEncoder',
    'PositiveClassMetrics',
    'ReconstructionMetrics',
    'Score',
    'extract_features',
    'few_labels',
    'fixed_split',
    'repeated_folds',
    'score',
)
