# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation of pretrained encoders."""

from .baseline import BandStatistics
from .encoders import FrozenEncoder
from .features import Features, extract_features
from .probes import few_labels, probe_scores

__all__ = (
    'BandStatistics',
    'Features',
    'FrozenEncoder',
    'extract_features',
    'few_labels',
    'probe_scores',
)
