# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation of pretrained encoders and of reconstructions."""

from .dense import PatchFeatures, extract_patches, patch_labels
from .frozen import BandStatistics, FrozenEncoder
from .paired import Difference, bootstrap, correct, decisions
from .positive import PositiveClassMetrics
from .probe import Features, extract_features
from .probes import (
    Score,
    few_labels,
    fixed_split,
    grouped_folds,
    repeated_folds,
    score,
)
from .reconstruction import ReconstructionMetrics

__all__ = (
    'BandStatistics',
    'Difference',
    'Features',
    'FrozenEncoder',
    'PatchFeatures',
    'PositiveClassMetrics',
    'ReconstructionMetrics',
    'Score',
    'bootstrap',
    'correct',
    'decisions',
    'extract_features',
    'extract_patches',
    'few_labels',
    'fixed_split',
    'grouped_folds',
    'patch_labels',
    'repeated_folds',
    'score',
)
