# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Transforms: spectral indices, patch saliency, and image pairs."""

from .bitemporal import BitemporalAugmentation, bitemporal
from .formula import Formula
from .indices import (
    DEFAULT_INDICES,
    INDICES,
    AppendSpectralIndices,
    SpectralIndex,
    get_index,
    spectral_indices,
)
from .saliency import PatchSaliency, patch_saliency, patch_statistics

__all__ = (
    'DEFAULT_INDICES',
    'INDICES',
    'AppendSpectralIndices',
    'BitemporalAugmentation',
    'Formula',
    'PatchSaliency',
    'SpectralIndex',
    'bitemporal',
    'get_index',
    'patch_saliency',
    'patch_statistics',
    'spectral_indices',
)
