# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation of pretrained encoders and of reconstructions."""

from .positive import PositiveClassMetrics
from .reconstruction import ReconstructionMetrics

__all__ = ('PositiveClassMetrics', 'ReconstructionMetrics')
