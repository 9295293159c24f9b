# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets, and the reader of rasters."""

from .chips import SceneChips
from .resumable import is_resumable, resumable
from .scenes import HeldScene, Scene, find_scenes
from .synthetic import SyntheticSentinel2, SyntheticSentinel2DataModule

__all__ = (
    'HeldScene',
    'Scene',
    'SceneChips',
    'SyntheticSentinel2',
    'SyntheticSentinel2DataModule',
    'find_scenes',
    'is_resumable',
    'resumable',
)
