# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretrained weights: read, load, write, and adapt to other bands."""

from ..models.registration import register_weights
from .adapt import adapt_bands
from .files import Weights, write_weights
from .load import load_weights
from .matching import AdaptedBand, BandReport
from .packaged import SIGMAE_Weights
from .read import read_weights

__all__ = (
    'AdaptedBand',
    'BandReport',
    'SIGMAE_Weights',
    'Weights',
    'adapt_bands',
    'load_weights',
    'read_weights',
    'write_weights',
)

register_weights(SIGMAE_Weights)
